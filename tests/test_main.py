"""The commands as a user types them: results, and one clear line for bad input."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import small
from tqa_jax import data as data_command
from tqa_jax import schema

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small"
    small.write(path)
    return path


def run(*arguments, cwd=REPOSITORY):
    return subprocess.run(
        [sys.executable, "-m", "tqa_jax.main", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )


def test_main_command_trains_and_says_where_its_files_are(data, tmp_path):
    # From elsewhere, where another package is called `configs`, with a default folder.
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").touch()
    arguments = (
        "--config=configs/smoke.py",
        f"--config.data.path={data}",
        "--config.log.tensorboard=True",
    )
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = done.stdout.strip().splitlines()[-4:]
    workdir = pathlib.Path("runs/smoke")
    assert files[0] == str(workdir / "results.json")
    assert all((tmp_path / file).exists() for file in files)
    results = json.loads((tmp_path / files[0]).read_text())
    assert "overall" in done.stdout and results["tasks"]["overall"]["n"] == 12
    assert "epoch 3 of 3: validation srcc" in done.stderr
    assert any((tmp_path / workdir / "tensorboard").iterdir())
    environment = json.loads((tmp_path / workdir / "environment.json").read_text())
    assert environment["packages"]["jax"]
    again = run(*arguments, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout == done.stdout
    assert again.stderr.strip() == (
        f"{workdir} holds a finished run; showing its results. To train anew, give "
        "another --workdir"
    )
    other = run(*arguments, "--config.seed=1", cwd=tmp_path)
    assert other.returncode == 2
    assert other.stderr.strip() == (
        f"error: {workdir} holds a run with config.seed = 0, not 1; "
        "choose another --workdir"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.epoch=3"], "key train.epoch; did you mean train.epochs?"),
        (
            ["--config.train.epochs=many"],
            "--config.train.epochs is 'many'; expected int",
        ),
        (["--config.data.path=/nowhere"], "/nowhere is no data set"),
        (["runs/x"], "Unrecognized options: runs/x"),
        (["--workdir="], "expected a path; got an empty one"),
        (["--confg=x"], "Unrecognized options: --confg=x; Perhaps you meant: --config"),
        (
            ["--config=configs/none.py"],
            "no configuration configs/none.py; expected a .py",
        ),
    ],
)
def test_wrong_command_line_is_one_line_and_status_2(tmp_path, arguments, message):
    done = run("--config=configs/smoke.py", f"--workdir={tmp_path / 'x'}", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not (tmp_path / "x").exists()


def test_corrupt_shard_stops_every_reader_with_one_line(tmp_path, capsys):
    info = small.write(tmp_path / "data")
    shard = tmp_path / "data" / info.splits["train"].shards[0].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    done = run(
        "--config=configs/smoke.py",
        f"--config.data.path={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "is corrupt at byte" in line and shard.name in line
    assert not (tmp_path / "run").exists()
    assert data_command.main(["audit", str(tmp_path / "data")]) == 2
    assert "is corrupt at byte" in capsys.readouterr().err


def test_data_that_do_not_fit_the_run_are_refused(data, tmp_path):
    arguments = ("--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}")
    assert run(*arguments, f"--config.data.path={data}").returncode == 0
    description = json.loads((data / "dataset.json").read_text())
    assert schema.load(data).schema.widths["visual"] == 6
    other = tmp_path / "other"
    other.mkdir()
    description["modalities"][0]["width"] = 7
    (other / "dataset.json").write_text(json.dumps(description))
    done = run(*arguments, f"--config.data.path={other}")
    assert done.returncode == 2
    assert "data.schema.modalities[0].width = 6, not 7" in done.stderr


def test_help_describes_the_command():
    done = run("--help")
    assert done.returncode == 0 and not done.stderr
    assert "--workdir" in done.stdout and "TQA_CACHE" in done.stdout
    assert str(REPOSITORY / "configs" / "default.py") in done.stdout
    assert len(done.stdout.splitlines()) < 40
