"""Files appear whole, are on the disk then, and damaged ones are told in one line."""

import os
import pathlib

import numpy as np
import pytest

from tqa_jax import output, schema


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, pathlib.Path.replace

    def syncing(handle):
        events.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def replacing(part, path):
        events.append("replace")
        return replace(part, path)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(pathlib.Path, "replace", replacing)
    output.write(tmp_path / "a.txt", "text")
    part, *rest = events
    assert part.startswith(str(tmp_path / "a.txt.")) and part.endswith(".part")
    assert rest == ["replace", str(tmp_path)]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["text"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with output.atomic(path) as one, output.atomic(path) as other:
        one.write_text("first")
        other.write_text("second")
    assert path.read_text() == "first" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("keep", [0, 0.5, None])
def test_damaged_arrays_are_one_line(tmp_path, keep):
    path = tmp_path / "a.npz"
    output.write_arrays(path, a=np.arange(1000) ** 2)
    content = path.read_bytes()
    garbage = bytes(len(content)) if keep is None else content[: int(keep * 1000)]
    path.write_bytes(garbage)
    with pytest.raises(schema.InputError, match="a.npz is damaged: [^\n]*$"):
        output.read_arrays(path)
