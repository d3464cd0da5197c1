"""Every command in the README and in docstrings is one that its program accepts.

Commands are taken out of the text and parsed by the program itself, which is stopped
there; those that train have their settings checked as before a run. A few run whole.
"""

import ast
import importlib.util
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from tests import small
from tqa_jax import assemble, cli, config_files, grid, main, schema, sweep  # noqa: F401

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = r"python -m (?:tqa_jax|extract|experiments)[.\w]*"
# The demo set's: 4 steps an epoch. Widths do not matter here.
FACTS = assemble.Facts(
    schema.TASKS,
    {"visual": 6, "audio": 5, "keypoints": 4, "action_units": 3, "sync": 2},
    np.full(5, 3.0),
    np.ones(5),
    np.eye(5),
    steps_per_epoch=4,
)


def texts():
    """Docstrings of modules, and the README, by file."""
    for folder in ("configs", "tqa_jax", "extract", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            yield path.relative_to(ROOT).as_posix(), doc or ""
    yield "README.md", (ROOT / "README.md").read_text(encoding="utf-8")


def commands(text):
    """Commands in a text, as lists of words; those with a placeholder left out."""
    text = re.sub(r"\\\n\s*", "", text)
    found = re.findall(rf"`({PROGRAM}[^`]*)`", text)
    found += re.findall(rf"^(?!.*`).*?({PROGRAM}.*)$", text, re.MULTILINE)
    for command in found:
        command = re.sub(r"\s+#.*|&&.*|[\[\]]", "", " ".join(command.split()))
        choices = re.search(r"\{(.*?)\}", command)
        for choice in choices[1].split(",") if choices else [""]:
            filled = command.replace(choices[0], choice) if choices else command
            words = shlex.split(filled.rstrip('"') if filled.count('"') % 2 else filled)
            # A number or a name that the reader is to fill in.
            arguments = [re.sub("=N$", "=3", word) for word in words[3:]]
            blanks = [re.fullmatch(r"[A-Z]+|\.\.\.|.*\.[A-Z]+", w) for w in words]
            if arguments and not any(blanks):
                yield words[2], arguments


def overrides(text):
    """Settings that prose gives as examples, each a command of its own."""
    text = re.sub(rf"{PROGRAM}.*(\\\n.*)*", "", text)
    for found in re.findall(r'--(config\.[\w.]+=(?:"[^"]*"|[^\s`,;)]+))', text):
        if not re.search(r"(\.\.\.|=[A-Z]+|KEY=\S*)$", found):
            (word,) = shlex.split("--" + found.rstrip("."))
            many = word.startswith(("--config.base.", "--config.grid", "--config.at_"))
            config = "sweeps/weighting" if many else "gradnorm"
            yield (
                "tqa_jax.sweep" if many else "tqa_jax.main",
                [f"--config=configs/{config}.py", "--workdir=runs/x", word],
            )


ALL = sorted(
    {
        shlex.join((program, *arguments))
        for _, text in texts()
        for program, arguments in (*commands(text), *overrides(text))
    }
)
TRAINING = [one for one in ALL if one.startswith(("tqa_jax.main ", "tqa_jax.sweep "))]


def test_the_text_has_the_commands_that_a_person_finds_in_it():
    assert len(ALL) > 40 and len(TRAINING) > 10
    found = [one for one in TRAINING if "configs/gradnorm.py" in one]
    assert any(one.endswith(" --config.train.epochs=5") for one in found)
    assert any(one.endswith(" --config.base.train.epochs=3") for one in TRAINING)
    assert "tqa_jax.report --workdir=runs/gradnorm" in ALL


@pytest.mark.parametrize("command", TRAINING)
def test_settings_of_a_documented_run_fit(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(command)
    overrides, others = config_files.split(arguments)
    config, _ = main.read(cli.parse(main.Options, others), overrides)
    runs = [config]
    if program == "tqa_jax.sweep":
        runs = [members[0].config for members, _ in grid.groups(grid.plan(config))]
    for run in runs[:2]:
        assemble.check_fit(run, FACTS)


class Parsed(BaseException):
    """The program has accepted its command line."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", [one for one in ALL if one not in TRAINING])
def test_a_documented_command_is_accepted(command, monkeypatch, capsys):
    program, *arguments = shlex.split(command)
    if program == "extract.beam" and not importlib.util.find_spec("apache_beam"):
        pytest.skip("needs the beam extra")
    read = cli.parse

    def parse(*given, **more):
        read(*given, **more)
        raise Parsed

    monkeypatch.setattr(cli, "parse", parse)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    monkeypatch.chdir(ROOT)
    try:
        runpy.run_module(program, run_name="__main__")
    except Parsed:
        return
    except SystemExit as error:
        pytest.fail(f"exit status {error.code}: {capsys.readouterr().err}")


def test_extras_that_are_named_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    named = {
        name
        for _, text in texts()
        for group in re.findall(r"pip install .*?\[([\w,]+)\]", text)
        for name in group.split(",")
    }
    assert "extract" in named and named <= set(extras)


@pytest.mark.slow
def test_some_documented_commands_run(tmp_path):
    small.write(tmp_path / "data")
    data, run = f"--config.data.path={tmp_path / 'data'}", tmp_path / "run"
    base = data.replace("config.", "config.base.")
    names = '--config.grid.weighting.name=("fixed", "uncertainty")'
    for arguments in (
        ("tqa_jax.data", "audit", tmp_path / "data"),
        *[
            ("tqa_jax.main", f"--config=configs/{config}.py", data, *more)
            for config, more in (
                ("gradnorm", ("--config.train.epochs=5", f"--workdir={run}")),
                ("smoke", (f"--workdir={tmp_path / 'smoke'}",)),
            )
        ],
        ("tqa_jax.export", f"--workdir={run}", f"--out={tmp_path / 'scorer.npz'}"),
        ("tqa_jax.report", f"--workdir={run}"),
        (
            *("tqa_jax.sweep", "--config=configs/sweeps/weighting.py", base, names),
            *("--config.base.train.epochs=3", "--config.grid.seed=(0, 1)"),
            f"--workdir={tmp_path / 'sweep'}",
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert (run / "report.html").exists() and (tmp_path / "scorer.npz").exists()
    assert (tmp_path / "sweep" / "sweep.csv").exists()
