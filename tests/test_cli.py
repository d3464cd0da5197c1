"""What all commands share: exit statuses, one line for what a user can mend, paths."""

import dataclasses
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import tomllib
from typing import Literal

import pytest

from extract import tables
from tests import small, test_imports
from tqa_jax import assemble, cli, config_files, schema, scorer, train
from tqa_jax import main as main_command

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = sorted(
    path.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
    for path in test_imports.SOURCES
    if '__name__ == "__main__"' in (REPOSITORY / path).read_text(encoding="utf-8")
    # Not for users, and a file that is used alone.
    and path not in ("experiments/sides.py", "experiments/benches/startup.py")
    and path != "tqa_jax/scorer.py"
)
NEEDY = ("run", "beam", "degrade", "demo", "train_sync")
# Each command in a fork, so that what they share is imported once.
WITHOUT_EXTRAS = """
import contextlib, io, json, os, runpy, sys
from tqa_jax import cli, train

class Missing:
    def find_spec(name, *_):
        if name in cli.EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing)
names, sys.argv[1:] = json.loads(sys.argv[1]), ["--help"]
for name in names:
    if os.fork():
        os.wait()
        continue
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as error:
            status = error.code or 0
    print(json.dumps([name, status, out.getvalue(), err.getvalue()]), flush=True)
    os._exit(0)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """Options of several commands."""

    out: pathlib.Path
    """Folder for the
    results."""
    num_workers: cli.Count | None = None
    """Processes (default: one for each CPU core)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Shared):
    """Options of one command."""

    paths: cli.Positional[tuple[pathlib.Path, ...]]
    """Videos."""
    rate: float = 1e-3
    """Share of a second."""
    trials: tuple[int, ...] = (5, 10)
    """Pairs."""
    task: cli.Repeated[tuple[str, ...]] = ()
    """May be given again."""
    name: str | None = None
    """Name."""
    dtype: Literal["float16", "float32"] = "float32"
    """Type."""
    quick: bool = False
    """Tiny."""


def raises(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (schema.InputError("a is 3; expected 2"), 2, "error: a is 3; expected 2"),
        (scorer.ScorerError("x is damaged"), 2, "error: x is damaged"),
        (schema.InputError("no clip a\nb\r.mp4"), 2, r"error: no clip a\nb\n.mp4"),
        (cli.Stopped("after step 6"), 1, "stopped: after step 6"),
        (KeyboardInterrupt(), 130, "stopped; go on"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/a"),
            2,
            "error: /data/a: No space left on device",
        ),
        (OSError(errno.EIO, "Input/output error"), 2, "error: Input/output error"),
        (
            ModuleNotFoundError("No module named 'cv2'", name="cv2"),
            2,
            "error: No module named 'cv2', of the extra extract: "
            "pip install -e '.[extract]'",
        ),
        (
            ImportError("libGL.so.1: cannot open shared object file", name="cv2"),
            2,
            "error: a system library is missing (libGL.so.1: cannot open shared object "
            "file); on Debian and Ubuntu: apt-get install libegl1 libgles2 libgl1 "
            "libglib2.0-0",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_a_status(capsys, error, status, line):
    assert cli.run(raises(error), stopped="stopped; go on") == status
    out, err = capsys.readouterr()
    assert (out, err) == ("", line + "\n")


@pytest.mark.parametrize(
    "error", [ValueError("x"), ModuleNotFoundError("No module named 'a'", name="a")]
)
def test_a_defect_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        cli.run(raises(error))


def test_status_is_what_the_work_returns():
    assert [cli.run(lambda: None), cli.run(lambda: 3)] == [0, 3]


def test_ctrl_c_during_imports_ends_a_command_without_a_traceback():
    code = "import os, signal\nfrom tqa_jax import cli\nwith cli.imports():\n"
    code += "    os.kill(os.getpid(), signal.SIGINT)\nprint('went on')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGINT
    assert (done.stdout, done.stderr) == ("", "")
    before = signal.getsignal(signal.SIGINT)
    with cli.imports():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_nobody_reading_is_no_traceback():
    code = "import sys; from tqa_jax import cli; sys.exit(cli.run(lambda: print('x')))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=writer, stderr=-1
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_name_that_the_terminal_lacks_is_printed_escaped(tmp_path):
    table = tmp_path / "table.csv"
    rows = "".join(f"c{number},{number % 5 + 1},0.5\n" for number in range(10))
    table.write_text("clip,mos,x\n" + rows)
    command = [sys.executable, "-m", "extract.tables", f"--table={table}"]
    command += ["--task=overall=mos", "--modality=audio=x"]
    command += [f"--out={tmp_path / '名前'}"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(r"\u540d\u524d")
    assert (tmp_path / "名前" / "dataset.json").is_file()


def test_options_are_fields_of_a_dataclass(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    plain = cli.parse(Options, ["a.mp4", "--out=~/x"])
    path = pathlib.Path("a.mp4")
    assert plain == Options(paths=(path,), out=tmp_path / "x") and not plain.quick
    arguments = ["b=c.mp4", "~/d", "--out", "x=y", "--num_workers=3", "--rate", "-1e-5"]
    arguments += ["--trials", "7", "8", "--task=a=b,c", "--task", "d", "--quick"]
    assert cli.parse(
        Options, [*arguments, "--name=None", "--dtype=float16"]
    ) == Options(
        paths=(pathlib.Path("b=c.mp4"), tmp_path / "d"),
        out=pathlib.Path("x=y"),
        num_workers=3,
        rate=-1e-5,
        trials=(7, 8),
        task=("a=b,c", "d"),
        name="None",
        dtype="float16",
        quick=True,
    )


def test_options_that_are_known_at_run_time_extend_a_dataclass():
    field = dataclasses.field(default=None, metadata={"help": "x", "metavar": "WHERE"})
    more = dataclasses.make_dataclass(
        "More",
        [("openface", str | None, field)],
        bases=(Options,),
        frozen=True,
        kw_only=True,
    )
    given = cli.parse(more, ["a", "--out=b", "--openface=c", "--quick"])
    assert (given.openface, given.quick) == ("c", True)


LONG = "s3://" + 300 * "a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"--out={LONG}"], f"error: --out: {LONG} is an address; expected a path of"),
        ([LONG], f"{LONG} is an address"),
        (["--out="], "error: --out: expected a path; got an empty one; see --help"),
        (["--num_workers=0"], "error: --num_workers is 0; expected at least 1; see"),
        (["--num_workers=1.5"], "--num_workers is '1.5'; expected a whole number"),
        (["--rate=fast"], "error: --rate is 'fast'; expected a number; see --help"),
        (["--trials", "1", "b"], "error: --trials is 'b'; expected a whole number"),
        (["--trials"], "error: --trials is empty; expected one or more"),
        (["--dtype=int"], "'--dtype'. Expected one of ('float16', 'float32'); see"),
        (["--qick"], "error: Unrecognized options: --qick; Perhaps you meant: --quick"),
        (["--quick=True"], "error: Unrecognized options: True"),
        (["--name"], "error: Missing value for argument '--name'"),
    ],
)
def test_a_wrong_option_is_one_whole_line(arguments, message, capsys):
    arguments = ["--out=x", "a.mp4", *arguments]
    columns = os.environ.get("COLUMNS")
    assert cli.main(raises(AssertionError), Options, arguments) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1
    assert message in err and os.environ.get("COLUMNS") == columns


def test_missing_options_are_named(capsys):
    assert cli.main(raises(AssertionError), Options, ["a", "--ot=x"]) == 2
    said = "error: missing --out PATH; Unrecognized options: --ot=x; see --help\n"
    assert capsys.readouterr().err == said
    assert cli.main(raises(AssertionError), Options, ["--out=x"]) == 2
    assert "is empty; expected one or more" in capsys.readouterr().err


def test_help_is_of_the_module_and_of_each_option(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(raises(AssertionError), Options, ["--help"])
    out, err = capsys.readouterr()
    assert not ended.value.code and not err
    assert out.startswith(__doc__) and "python -m tests.test_cli" in out
    for text in (
        "--out PATH ",
        "Folder for the results. (required)",
        "--num_workers N",
        "Share of a second. (default: 0.001)",
        "Pairs. (default: 5 10)",
        "--dtype {float16,float32}",
    ):
        assert text in out
    assert "None" not in out and "False" not in out and "no-quick" not in out


@pytest.mark.parametrize(
    "text", ["gs://b/x", "s3://b/x", "http://h/x", "file:///tmp/x", "", "~nobody_/x"]
)
def test_a_path_that_cannot_be_opened_is_refused(text):
    with pytest.raises(schema.InputError):
        cli.path(text)


def test_paths_are_those_of_a_shell(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.path("~/x") == tmp_path / "x"
    assert cli.path("http:x.mp4") == pathlib.Path("http:x.mp4")
    monkeypatch.chdir(tmp_path)
    pathlib.Path("~old.mp4").touch()
    assert cli.path("~old.mp4") == pathlib.Path("~old.mp4")
    monkeypatch.setenv("TQA_CACHE", "~/c")
    assert cli.cache_folder() == tmp_path / "c"


@pytest.mark.parametrize("address", ["gs://b/x", "s3://b/x"])
def test_commands_refuse_addresses_for_folders(address, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small.write(tmp_path / "data")
    given = ["--config=smoke", "--config.data.path=data"]
    assert main_command.main([*given, f"--workdir={address}"]) == 2
    assert main_command.main([*given, f"--config.train.start_from={address}"]) == 2
    assert main_command.main(["--config=smoke", f"--config.data.path={address}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(f"{address} is an address" in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_option_that_cannot_be_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["--table=a.csv", "--out=gs://b/x"],
        ["--table=a.csv", "--out=x", "--fold=a"],
        ["--table=a.csv"],
        ["--table=a.csv", "--out=x", "--nothing"],
    ):
        assert tables.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_options_for_paths_are_of_the_one_type():
    for path in test_imports.SOURCES:
        text = (REPOSITORY / path).read_text(encoding="utf-8")
        assert "type=pathlib.Path" not in text, path


def test_without_extras_every_command_helps_or_names_the_extra():
    assert len(COMMANDS) > 20
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, json.dumps(COMMANDS)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in found] == COMMANDS, done.stderr
    for name, status, out, err in found:
        if status == 0:
            assert "--" in out and not err, name
        else:
            assert status == 2 and not out, (name, err)
            assert len(err.splitlines()) == 1 and "pip install -e '.[" in err, name
    needy = {name for name, status, *_ in found if status}
    assert not {"tqa_jax.main", "tqa_jax.sweep"} & needy
    others = {f"experiments.{name}" for name in ("invariances", "pretrained", "thqa")}
    others |= {"tqa_jax.calibrate", "tqa_jax.score"}
    assert needy <= {f"extract.{name}" for name in NEEDY} | others


def test_every_optional_library_names_an_extra_that_there_is():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert set(cli.EXTRAS.values()) <= set(project["optional-dependencies"])
    core = {"flax.linen", "tensorflow", "tensorflow_datasets", "librosa", "soundfile"}
    assert set(test_imports.PLACES) - core <= set(cli.EXTRAS)


def test_tensorboard_without_its_extra_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    small.write(tmp_path / "data")
    config = small.config(log__tensorboard=True)
    with pytest.raises(
        schema.InputError, match=r"extra logs: pip install -e '\.\[logs"
    ):
        train.run(config, data_path=tmp_path / "data", workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weighting.name", "gradnrm"),
        ("surgery.name", "pcgrd"),
        ("model.preset", "advancd"),
        ("model.pooling", "men"),
        ("model.modalities", "('visul',)"),
        ("model.head_hidden", "a,b"),
        ("consistency.mode", "cor"),
        ("optim.schedule", "cosin"),
        ("optim.task_factors.overal", "2"),
        ("train.select_metric", "plc"),
        ("train.select_weights.overal", "2"),
        ("weighting.fixed.values.overal", "2"),
        ("consistency.exclude", "overal"),
        ("weighting.shared", "nowhere/kernel"),
        ("train.start_from", "nowhere"),
    ],
)
def test_names_are_checked_before_data_are_loaded(tmp_path, key, value):
    info = small.write(tmp_path / "data")
    for split in info.splits.values():
        for shard in split.shards:
            (tmp_path / "data" / shard.file).unlink()
    config = config_files.load("smoke", [f"--config.{key}={value}"])
    with pytest.raises(schema.InputError) as caught:
        train.run(config, data_path=tmp_path / "data", workdir=tmp_path / "run")
    assert key.split(".")[1] in str(caught.value) or value in str(caught.value)
    assert ".tfrecord" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_names_are_checked_before_the_demo_set_is_built(monkeypatch, capsys):
    from extract import demo

    monkeypatch.setattr(demo, "build", raises(AssertionError("built")))
    assert main_command.main(["--config=smoke", "--config.model.preset=x"]) == 2
    assert "unknown preset 'x'; available: advanced" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle.width=64", "unknown config key modle; did you mean model?"),
        ("model.wdth=64", "unknown config key model.wdth; did you mean model.width?"),
        ("model={'wdth': 3}", "unknown config key model.wdth; did you mean model.wi"),
        ("train.epochs.x=3", "unknown config key train.epochs.x; train.epochs has no"),
        ("model=3", "--config.model is '3'; expected a value for one of its keys"),
        ("model", "--config.model is 'true'; expected a value for one of its keys"),
        ("train.epochs=", "--config.train.epochs is ''; expected int"),
        ("train.epochs=5.5", "--config.train.epochs is '5.5'; expected int"),
        ("train.epochs", "--config.train.epochs is 'true'; expected int"),
        ("model.width=None", "--config.model.width is 'None'; expected int"),
        ("model.gate=maybe", "--config.model.gate is 'maybe'; expected bool"),
        ("model.head_hidden=(a", "--config.model.head_hidden is '(a'; expected tuple"),
        ("model={[]: 3}", "--config.model is '{[]: 3}'; expected a value for one of"),
        ("model={'width': 'a'}", "model.width is 'a'; expected int"),
        ("weighting.fixed.values.overall=x", "values.overall is 'x'; expected float"),
        ("weighting.fixed.values={'a': 'x'}", "values.a is 'x'; expected a number"),
        ("weighting.fixed.values.a.b=1", "unknown config key weighting.fixed.values.a"),
        ("=3", "--config.=3 is no override"),
    ],
)
def test_a_wrong_override_is_one_line(override, message):
    with pytest.raises(schema.InputError) as caught:
        config_files.load("gradnorm", [f"--config.{override}"])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_override_given_twice_is_refused():
    with pytest.raises(schema.InputError, match="--config.seed is given twice"):
        config_files.load("gradnorm", ["--config.seed=1", "--config.seed=2"])


def test_overrides_are_read_as_the_type_of_their_key():
    arguments = ["--config.seed", "5", "--config.optim.end_learning_rate=1e-7"]
    arguments += ["--config.model.head_hidden=32,16", "--noconfig.model.gate"]
    arguments += ["--config.model.modalities=visual,audio", "--config.log.tensorboard"]
    arguments += ["--config.weighting.fixed.values.overall=2", "--config.data.path=a=b"]
    overrides, rest = config_files.split(["--config=x", *arguments, "--workdir=y"])
    assert rest == ["--config=x", "--workdir=y"]
    config = config_files.load("gradnorm", overrides)
    assert (config.seed, config.optim.end_learning_rate) == (5, 1e-7)
    assert config.model.head_hidden == (32, 16)
    assert config.model.modalities == ("visual", "audio")
    assert (config.model.gate, config.log.tensorboard) == (False, True)
    assert config.weighting.fixed["values"].to_dict() == {"overall": 2.0}
    assert config.data.path == "a=b"


def test_a_weight_by_task_is_given_by_its_key(tmp_path):
    described = small.write(tmp_path / "data").schema
    overrides = ["--config.weighting.name=fixed"]
    right = "--config.weighting.fixed.values.overall=2"
    assemble.check(config_files.load("smoke", [*overrides, right]), described)
    wrong = "--config.weighting.fixed.values.overal=2"
    with pytest.raises(schema.InputError, match="values names unknown task 'overal'"):
        assemble.check(config_files.load("smoke", [*overrides, wrong]), described)


def test_keys_of_a_sweep_are_overridden():
    overrides = ["--config.base.train.epochs=3", "--config.grid.seed=(0, 1)"]
    overrides += ["--config.base.weighting.fixed.values.overall=2"]
    sweep = config_files.load("weighting", overrides)
    assert sweep.base.train.epochs == 3 and sweep.grid.seed == (0, 1)
    assert sweep.base.weighting.fixed["values"].overall == 2.0
    sweep = config_files.load("weighting", ["--config.grid.seed=1e0,2e0"])
    assert sweep.grid.seed == (1.0, 2.0)
    sweep = config_files.load("weighting", ["--config.grid={'seed': (7,)}"])
    assert sweep.grid.to_dict() == {"seed": (7,)}


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A folder with another package `configs`, first on the path, to work in."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").touch()
    (tmp_path / "configs" / "default.py").write_text("foreign = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "gradnorm",
        "gradnorm.py",
        "configs/gradnorm.py",
        str(REPOSITORY / "configs" / "gradnorm.py"),
    ],
)
def test_a_shipped_config_is_found_from_anywhere(foreign, text):
    assert config_files.load(text).model.width == 64
    assert "configs" not in sys.modules


def test_a_config_of_ones_own_builds_on_shipped_ones_and_on_its_own(foreign):
    text = "from configs import gradnorm\nfrom configs import extra\n"
    text += "def get_config():\n    config = gradnorm.get_config()\n"
    text += "    config.seed = extra.SEED\n    return config\n"
    (foreign / "configs" / "extra.py").write_text("SEED = 7\n")
    (foreign / "mine.py").write_text(text)
    assert config_files.load("mine.py").seed == 7
    (foreign / "configs" / "mine.py").write_text("from configs import default\n" + text)
    with pytest.raises(schema.InputError, match="mine.py cannot be loaded: Attribute"):
        config_files.load("configs/mine.py")  # Their `default` has no `get_config`.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no configuration x.py; expected a .py file, or one of default, fixed"),
        ("x = ", "x.py cannot be loaded: SyntaxError"),
        ("import nothing_such", "x.py cannot be loaded: ModuleNotFoundError"),
        ("x = 1", "x.py cannot be loaded: AttributeError"),
        ("def get_config(): return {}", "x.py returns no ConfigDict"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "x.py").write_text(content)
    with pytest.raises(schema.InputError, match=message):
        config_files.load("x.py")


def test_a_sweep_and_a_run_are_told_apart(capsys, tmp_path):
    from tqa_jax import sweep

    folder = f"--workdir={tmp_path / 'x'}"
    assert main_command.main(["--config=weighting", folder]) == 2
    assert sweep.main(["--config=gradnorm", folder]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: this config is of a sweep: python -m tqa_jax.sweep",
        "error: this config is of one run: python -m tqa_jax.main",
    ]
    assert not list(tmp_path.iterdir())
