import os
import subprocess
import sys

import pytest

from extract import no_network
from tests import media
from tqa_jax import schema

_POSSIBLE = (
    subprocess.run([*no_network._UNSHARE, "true"], capture_output=True).returncode == 0
    if sys.platform == "linux"
    else False
)
blocks = pytest.mark.skipif(
    not _POSSIBLE, reason="this machine does not let users block the network"
)

_PROBE = "from extract import no_network; print(no_network.reachable())"


@blocks
def test_inside_nothing_can_be_reached():
    command = [*no_network._UNSHARE, sys.executable, "-c", _PROBE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@blocks
def test_clips_are_measured_without_a_network(tmp_path):
    (tmp_path / "clips").mkdir()
    media.face(tmp_path / "clips" / "a.mp4", 0.4)
    (tmp_path / "labels.csv").write_text("clip,split,overall\na,train,3\n")
    command = [sys.executable, "-m", "extract.run", "--no_network", "--num_workers=1"]
    command += [f"--clips={tmp_path / 'clips'}", f"--out={tmp_path / 'set'}"]
    command += [f"--labels={tmp_path / 'labels.csv'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no network: none can be reached from here (checked)" in done.stderr
    assert schema.load(tmp_path / "set").splits["train"].clips == 1
    assert (tmp_path / "set").stat().st_uid == os.getuid()


def test_what_cannot_be_blocked_is_refused(monkeypatch):
    monkeypatch.setattr(no_network, "_UNSHARE", ("no-such-program",))
    with pytest.raises(schema.InputError, match="needs `unshare` of util-linux"):
        no_network.enter("extract.run", [])
    monkeypatch.setattr(no_network, "_UNSHARE", ("false",))
    with pytest.raises(schema.InputError, match="does not let users block"):
        no_network.enter("extract.run", [])


def test_a_network_inside_is_found_out(monkeypatch):
    monkeypatch.setenv("TQA_NO_NETWORK", "net:[1]")
    monkeypatch.setattr(no_network, "reachable", lambda: True)
    with pytest.raises(schema.InputError, match="a network can be reached; unset it"):
        no_network.enter("extract.run", [])


def test_a_process_that_was_not_moved_is_found_out(monkeypatch):
    monkeypatch.setenv("TQA_NO_NETWORK", no_network._namespace())
    monkeypatch.setattr(no_network, "reachable", lambda: False)
    with pytest.raises(schema.InputError, match="a network can be reached; unset it"):
        no_network.enter("extract.run", [])
