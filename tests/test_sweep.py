"""Sweeps: every run as if it were alone, resumable, one program a group, one table."""

import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs.sweeps import weighting
from tests import small
from tqa_jax import (
    fleet,
    grid,
    lockstep,
    memory,
    processes,
    run_folder,
    schema,
    sweep,
    sweep_folder,
    train,
    train_step,
)
from tqa_jax import run as run_lib

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
STEPS = 6  # An epoch's.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small"
    small.write(path)
    return path


def config_of(data, of_grid, *, at_once=2, **changes):
    config = weighting.get_config()
    config.base = small.config(
        **{"train__epochs": 2, "optim__learning_rate": 1e-3} | changes
    )
    config.base.data.path = str(data)
    config.grid = ml_collections.ConfigDict(of_grid)
    config.at_once = at_once
    return config


def usual(data, **changes):
    numbers = {
        "model": {"dropout": (0.1, 0.2)},
        "optim": {"learning_rate": (1e-3, 3e-3)},
        "seed": (3,),
    }
    # Half of the network, which is compiled in half the time.
    small_network = {"model__paths": "a", "model__cross_layers": 0}
    return config_of(data, numbers, **small_network | changes)


@pytest.fixture(scope="module")
def swept(data, tmp_path_factory):
    """A finished sweep of four runs, two at a time, and how often it was traced."""
    workdir = tmp_path_factory.mktemp("swept") / "w"
    traced = []
    segment = train_step.segment

    def counting(*arguments):
        traced.append(arguments)
        return segment(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step, "segment", counting)
        found = sweep.run(usual(data, train__checkpoint_every=6), workdir=workdir)
    return workdir, found, len(traced)


def arrays_of(folder):
    """All arrays of the latest checkpoint by name, but for one kind."""
    steps = [int(p.name) for p in (folder / "checkpoints").iterdir()]
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(
            (folder / "checkpoints" / str(max(steps)) / "default").absolute()
        )
    return {
        name: np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        # No score depends on it: its gradient is rounding, which Adam scales up.
        if "['key']['bias']" not in (name := jax.tree_util.keystr(path))
    }


def assert_same_run(one, other, *, atol=1e-6):
    first, second = arrays_of(one), arrays_of(other)
    assert first.keys() == second.keys() and len(first) > 100
    for name, array in first.items():
        if "opt_state" in name or "optimizer" in name:
            continue
        # A layer norm undoes this scale but for a bias that starts at 0: its gradient
        # is small, too.
        loose = 5 if "['head']['stack']['scale']" in name else 1
        np.testing.assert_allclose(
            array, second[name], rtol=loose * 1e-6, atol=loose * atol, err_msg=name
        )
    logs = []
    for folder in (one, other):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    assert len(logs[0]) == len(logs[1])
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            if key.startswith(("clips_per", "memory/")):
                continue  # Speed and the program are no results.
            if isinstance(value, float):
                # A correlation of scores that hardly differ yet magnifies rounding.
                loose = 10 if key == "loss/consistency" else 1
                tolerance = {"rel": loose * 1e-5, "abs": loose * 1e-6}
                assert b[key] == pytest.approx(value, **tolerance), key
            elif key != "correlation":
                assert b[key] == value, key


def single(data, workdir, run):
    train.run(run.config, data_path=data, workdir=workdir)
    return workdir


def test_run_of_a_sweep_equals_its_single_run(data, swept, tmp_path):
    run = grid.plan(usual(data, train__checkpoint_every=6))[-1]
    assert run.name == "model.dropout=0.2,optim.learning_rate=0.003,seed=3"
    alone = single(data, tmp_path / "alone", run)
    assert_same_run(alone, swept[0] / "runs" / run.name)
    for name in ("results.json", "predictions.csv", "audit.json"):
        assert (swept[0] / "runs" / run.name / name).exists()


def test_a_group_is_compiled_once(swept):
    assert swept[2] == 1


def test_each_run_has_a_normal_folder(data, swept):
    workdir, found, _ = swept
    for run in grid.plan(usual(data, train__checkpoint_every=6)):
        folder = workdir / "runs" / run.name
        assert (
            run_lib.Run.load(folder).model.options["dropout"]
            == run.config.model.dropout
        )
        before = (folder / "results.json").stat().st_mtime_ns
        shown = train.run(run.config, data_path=data, workdir=folder)
        assert shown == json.loads((folder / "results.json").read_text())
        assert (folder / "results.json").stat().st_mtime_ns == before


def test_tables_hold_a_row_a_setting_and_a_row_a_run(swept):
    workdir, found, _ = swept
    with (workdir / "sweep.csv").open() as file:
        settings = list(csv.DictReader(file))
    with (workdir / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert len(settings) == len(runs) == 4 and found.failed == {}
    for row, run in zip(settings, runs, strict=True):
        folder = workdir / "runs" / run["run"]
        results = json.loads((folder / "results.json").read_text())
        value = results["average"]["srcc"]["value"]
        assert float(row["srcc"]) == float(run["srcc"]) == pytest.approx(value)
        assert run["status"] == "finished" and float(run["seconds_of_last_start"]) > 0


def test_same_command_shows_a_finished_sweep(data, swept):
    before = {p: p.stat().st_mtime_ns for p in (swept[0] / "runs").rglob("*.json")}
    again = sweep.run(usual(data, train__checkpoint_every=6), workdir=swept[0])
    assert again == swept[1]
    assert before == {
        p: p.stat().st_mtime_ns for p in (swept[0] / "runs").rglob("*.json")
    }


def test_sweep_that_dies_continues_each_run_from_its_own_checkpoint(
    data, swept, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    write = run_folder.MetricsLog.write
    lines = []

    def dying(self, **line):
        write(self, **line)
        lines.append(line)
        if len(lines) == 21:  # In the first epoch; one lane saved, the other not.
            raise Killed

    config = usual(data, train__checkpoint_every=6)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run_folder.MetricsLog, "write", dying)
        sweep.run(config, workdir=tmp_path / "w")
    found = sweep.run(config, workdir=tmp_path / "w")
    assert found.failed == {} and len(found.table) == 4
    for run in grid.plan(config):
        assert_same_run(
            swept[0] / "runs" / run.name, tmp_path / "w" / "runs" / run.name
        )


def test_ctrl_c_saves_every_run_and_the_same_command_continues(
    data, swept, tmp_path, monkeypatch
):
    write = run_folder.MetricsLog.write
    lines = []

    def interrupting(self, **line):
        write(self, **line)
        lines.append(line)
        if len(lines) == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    config = usual(data, train__checkpoint_every=6)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_folder.MetricsLog, "write", interrupting)
        sweep.run(config, workdir=tmp_path / "w")
    folders = list((tmp_path / "w" / "runs").iterdir())
    saved = [list((folder / "checkpoints").iterdir()) for folder in folders]
    assert [[path.name for path in steps] for steps in saved] == [["6"]] * 4
    assert signal.getsignal(signal.SIGINT) == before
    found = sweep.run(config, workdir=tmp_path / "w")
    assert found.failed == {} and len(found.table) == 4
    for run in grid.plan(config):
        assert_same_run(
            swept[0] / "runs" / run.name, tmp_path / "w" / "runs" / run.name
        )


def test_damaged_files_of_a_sweep_are_made_again(data, swept, tmp_path, caplog):
    shutil.copytree(swept[0], tmp_path / "w")
    first, second, third, _ = sorted((tmp_path / "w" / "runs").iterdir())
    (first / "status.json").write_bytes(b"")
    (second / "results.json").write_bytes(b"")
    (third / "predictions.csv").write_bytes(b"")
    (tmp_path / "w" / "sweep.csv").write_bytes(b"")
    before = [folder / "status.json" for folder in (second, third)]
    config = usual(data, train__checkpoint_every=6)
    found = sweep.run(config, workdir=tmp_path / "w")
    assert found.failed == {}
    for name in ("results.json", "predictions.csv"):
        for folder in (first, second, third):
            whole = swept[0] / "runs" / folder.name / name
            assert (folder / name).read_bytes() == whole.read_bytes()
    assert all(json.loads(file.read_text())["reason"] is None for file in before)
    for name in ("status.json", "results.json", "predictions.csv"):
        assert f"{name} is damaged: " in caplog.text
    whole = (swept[0] / "sweep.csv").read_bytes()
    assert (tmp_path / "w" / "sweep.csv").read_bytes() == whole
    (tmp_path / "w" / "sweep.json").write_bytes(b"")
    with pytest.raises(schema.InputError, match="sweep.json is damaged: .*; restore"):
        sweep.run(config, workdir=tmp_path / "w")


def test_run_that_fails_is_recorded_and_leaves_the_others_alone(data, swept, tmp_path):
    config = usual(data, train__checkpoint_every=6, train__max_skipped=2)
    config.grid.optim.learning_rate = (1e-3, 1e30)
    found = sweep.run(config, workdir=tmp_path / "w")
    bad = [run.name for run in grid.plan(config) if "1e+30" in run.name]
    assert sorted(found.failed) == sorted(bad) and len(bad) == 2
    assert all("was not finite for" in reason for reason in found.failed.values())
    good = "model.dropout=0.1,optim.learning_rate=0.001,seed=3"
    assert_same_run(swept[0] / "runs" / good, tmp_path / "w" / "runs" / good)
    assert [row["failed"] for row in found.table] == [0, 1, 0, 1]
    assert sweep.run(config, workdir=tmp_path / "w").failed == found.failed


def test_other_sweep_in_the_same_folder_is_refused(data, swept, tmp_path):
    other = usual(data, train__checkpoint_every=6)
    other.base.train.epochs = 3
    with pytest.raises(schema.InputError, match="base.train.epochs = 2, not 3; choose"):
        sweep.run(other, workdir=swept[0])
    folder = next((swept[0] / "runs").iterdir())
    with pytest.raises(schema.InputError, match="not empty and holds no sweep"):
        sweep.run(other, workdir=folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weighting__name": "grad_norm"}, "dropout=0.1.*unknown weighting 'grad_nor"),
        ({"data__memory_gb": 0.0}, "a sweep keeps its data on the device: raise"),
        ({"train__epochs": 0}, "train.epochs is 0; expected at least 1"),
    ],
)
def test_impossible_setting_names_the_run_and_leaves_nothing(
    data, tmp_path, changes, message
):
    with pytest.raises(schema.InputError, match=message):
        sweep.run(usual(data, **changes), workdir=tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_process_refuses_what_only_another_would_train(data, tmp_path):
    config = usual(data)
    config.grid.weighting = {"name": ("fixed", "grad_norm")}
    assert [len(runs) for runs, _ in grid.groups(grid.plan(config))] == [4, 4]
    with pytest.raises(schema.InputError, match="unknown weighting 'grad_norm'"):
        sweep.run(config, workdir=tmp_path / "w", share=(0, 2))
    assert not (tmp_path / "w").exists()


class Killed(BaseException):
    """A process ends before it trains."""


def kill(*arguments):
    raise Killed


def test_data_set_may_move_but_not_change(tmp_path, monkeypatch):
    small.write(tmp_path / "data")
    config = usual(tmp_path / "data")
    monkeypatch.setattr(sweep, "_train", kill)
    with pytest.raises(Killed):
        sweep.run(config, workdir=tmp_path / "w")
    (fitted,) = (tmp_path / "w").glob("data/*-0/preprocess.npz")
    before = fitted.stat().st_mtime_ns
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(Killed):
        sweep.run(usual(tmp_path / "moved"), workdir=tmp_path / "w")
    assert [fitted] == list((tmp_path / "w").glob("data/*/preprocess.npz"))
    assert fitted.stat().st_mtime_ns == before
    small.write(tmp_path / "data", seed=1)
    message = "holds a sweep with a data set whose sha256 data.base = .*, not .*choose"
    with pytest.raises(schema.InputError, match=message):
        sweep.run(config, workdir=tmp_path / "w")


def test_same_sweep_twice_at_once_is_refused(data, tmp_path, monkeypatch):
    config, workdir = usual(data), tmp_path / "w"

    def again(*arguments):
        with pytest.raises(schema.InputError, match="another process works in .*/w;"):
            sweep.run(config, workdir=workdir, share=(0, 2))
        monkeypatch.setattr(sweep, "_train", kill)
        with pytest.raises(Killed):
            sweep.run(config, workdir=workdir, share=(1, 2))
        raise Killed

    monkeypatch.setattr(sweep, "_train", again)
    with pytest.raises(Killed):
        sweep.run(config, workdir=workdir)
    with pytest.raises(Killed):  # The lock went with its process.
        sweep.run(config, workdir=workdir)


def test_folder_that_another_process_makes_meanwhile_is_shared(
    data, tmp_path, monkeypatch
):
    mine = sweep_folder.describe(usual(data), {"base": "0"})
    listed = []

    def make(folder):
        run_folder.write_json(folder / "sweep.json", mine)
        listed.append(folder)
        return iter([folder / "sweep.json"])

    monkeypatch.setattr(pathlib.Path, "iterdir", make)
    assert not sweep_folder.check(tmp_path, mine) and listed == [tmp_path]


def test_program_too_large_for_an_accelerator_is_refused(monkeypatch, caplog):
    group = object.__new__(fleet.Fleet)
    group._data = jnp.ones(256)  # 1024 bytes
    monkeypatch.setattr(fleet.memory, "needed", lambda _: memory.Needed(9216, 8192))
    monkeypatch.setattr(fleet.memory, "available", lambda _: 10240)
    group.devices = [types.SimpleNamespace(platform="gpu")]
    # 8 runs take 16 KiB beside the data, and 9 KiB of 10 may be used: 8 * 8 / 16.
    with pytest.raises(schema.InputError) as refused:
        group._check_memory(None, 8)
    assert str(refused.value) == (
        "8 runs side by side need 1.74e-05 GB of memory, the device has 1.02e-05 GB; "
        "set --config.at_once=4"
    )
    with pytest.raises(schema.InputError, match="1 runs side.*train.accumulation"):
        group._check_memory(None, 1)
    group.devices = [types.SimpleNamespace(platform="cpu")]
    group._check_memory(None, 8)
    assert "set --config.at_once=4" in caplog.text


@pytest.mark.soak
@pytest.mark.slow
def test_early_stop_frees_a_place_and_the_rest_move_together(data, tmp_path):
    config = config_of(
        data,
        {"optim": {"learning_rate": (1e-3, 1e-9)}, "seed": (0, 1)},
        at_once=1,
        train__epochs=4,
        train__patience=1,
        train__select_metric="loss",
        train__min_improvement=1e-3,
        weighting__name="fixed",
        optim__end_learning_rate=0.0,
    )
    found = sweep.run(config, workdir=tmp_path / "w")
    epochs = {}
    for run in grid.plan(config):
        text = (tmp_path / "w" / "runs" / run.name / "metrics.jsonl").read_text()
        epochs[run.config.optim.learning_rate, run.config.seed] = max(
            json.loads(line)["epoch"] for line in text.splitlines()
        )
    assert found.failed == {}
    # A rate of nearly 0 improves nothing after the first epoch.
    assert epochs[1e-9, 0] == epochs[1e-9, 1] == 2
    assert epochs[1e-3, 0] == epochs[1e-3, 1] == 4


def pace(devices=1, at_once=0):
    return lockstep._Pace(devices, at_once)


def test_both_ways_are_measured_and_the_faster_one_is_kept():
    for alone, kept in ((0.5, 1), (2.0, 8)):
        one = pace()
        assert one.choose(8, 8000, []) == 8
        one.saw(80, 99.0, compiled=True)  # Warm-up, with compiling.
        assert one.choose(8, 7920, [20.0]) == 8
        one.saw(80, 80.0, compiled=False)  # A second a step.
        assert one.choose(8, 7840, [20.0]) == 1
        one.saw(80, 30.0, compiled=True)
        assert one.choose(8, 7760, [20.0, 20.0]) == 1
        one.saw(80, 80 * alone, compiled=False)
        assert one.choose(8, 7680, [20.0, 20.0]) == kept


def test_nothing_is_compiled_for_little_work_and_choices_by_hand_are_kept():
    one = pace()
    assert one.choose(8, 100, []) == 8
    one.saw(80, 9.0, compiled=True)
    one.saw(80, 80.0, compiled=False)
    assert one.choose(8, 79, [20.0]) == 8  # 79 s are left, compiling takes 20.
    fixed = pace(at_once=3)
    assert fixed.choose(8, 10**6, []) == 3
    fixed.saw(80, 1.0, compiled=True)
    fixed.saw(80, 80.0, compiled=False)
    assert fixed.choose(8, 10**6, [20.0]) == 3


def test_many_runs_do_not_all_start_side_by_side_unless_asked_to():
    assert pace(devices=2).choose(64, 10**4, []) == 16
    assert pace(devices=2, at_once=20).choose(64, 10**4, []) == 20


def test_places_of_runs_that_stopped_are_given_up_when_that_pays():
    one = pace(devices=2)
    assert one.choose(16, 10**4, []) == 8
    one.saw(160, 1.0, compiled=True)
    one.saw(160, 16.0, compiled=False)
    one._warm.add(1)
    one._seconds[1] = 1.0  # One at a time is ten times slower.
    assert one.choose(15, 9000, [20.0, 20.0]) == 8
    # 4 of 16 places in use: 2 a device take a quarter of the time.
    assert one.choose(4, 1000, [20.0, 20.0]) == 2
    assert one.choose(4, 10, [20.0, 20.0]) == 2


COMMAND = (sys.executable, "-m", "tqa_jax.sweep")


def start(*arguments, devices=8):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate()
    return process.returncode, output, errors


CONFIG = """
import ml_collections
from tests import test_sweep

def get_config():
    config = test_sweep.config_of({data!r}, {grid!r}, at_once=0)
    return config
"""


def command(data, folder, of_grid):
    file = folder / "sweep_config.py"
    file.write_text(CONFIG.format(data=str(data), grid=of_grid))
    return [f"--config={file}", f"--workdir={folder / 'w'}"]


def test_help_describes_the_command():
    _, output, errors = finish(start("--help", devices=1))
    text = output + errors
    assert all(part in text for part in ("--workdir", "--num_processes", "runs.csv"))


@pytest.mark.slow
def test_eight_devices_equal_single_runs_whatever_the_weighting(data, tmp_path):
    of_grid = {
        "weighting": {
            "name": ("gradnorm", "uncertainty"),
            "gradnorm": {"alpha": (0.5, 1.5)},
        },
        "optim": {"learning_rate": (1e-3, 3e-3)},
        "seed": (0, 1, 2),
    }
    code, output, errors = finish(start(*command(data, tmp_path, of_grid)))
    assert code == 0, errors
    runs = grid.plan(config_of(data, of_grid))
    assert len(runs) == 24 and output.count("| gradnorm |") == 4
    for number in (5, 23):
        run = runs[number]
        alone = single(data, tmp_path / f"alone{number}", run)
        assert_same_run(alone, tmp_path / "w" / "runs" / run.name)


@pytest.mark.slow
def test_kill_9_at_several_points_and_the_same_command_ends_the_same(data, tmp_path):
    of_grid = {"optim": {"learning_rate": (1e-3, 3e-3)}, "seed": (0, 1, 2, 3)}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    more = ["--config.base.train.checkpoint_every=3", "--config.base.train.epochs=4"]
    code, _, errors = finish(start(*command(data, whole, of_grid), *more, devices=2))
    assert code == 0, errors
    arguments = [*command(data, killed, of_grid), *more]
    for lines in (1, 120):
        process = start(*arguments, devices=2)
        while process.poll() is None:
            logs = (killed / "w").glob("runs/*/metrics.jsonl")
            if sum(len(log.read_text().splitlines()) for log in logs) >= lines:
                process.kill()
            time.sleep(0.01)
        process.communicate()
    code, _, errors = finish(start(*arguments, devices=2))
    assert code == 0, errors
    for folder in (whole / "w" / "runs").iterdir():
        assert_same_run(folder, killed / "w" / "runs" / folder.name, atol=1e-5)


@pytest.mark.slow
def test_processes_share_the_runs_and_the_last_writes_the_table(data, tmp_path):
    of_grid = {"model": {"fusion_ffn": (16, 32)}, "seed": (0, 1, 2)}
    arguments = command(data, tmp_path, of_grid)
    both = [
        start(*arguments, "--num_processes=2", f"--process_id={index}", devices=2)
        for index in (0, 1)
    ]
    found = [finish(process) for process in both]
    assert [code for code, _, _ in found] == [0, 0], found
    assert any("| 32 | 3 |" in output for _, output, _ in found)
    assert (tmp_path / "w" / "sweep.csv").exists()
    for number, run in enumerate(grid.plan(config_of(data, of_grid))):
        text = (tmp_path / "w" / "runs" / run.name / "environment.json").read_text()
        (index,) = [a for a in json.loads(text)["command"] if "process_id" in a]
        assert index == f"--process_id={number // 3}"  # A block each: its group.


@pytest.mark.parametrize(
    ("variables", "given", "message"),
    [
        ({}, {"coordinator": "a:1"}, "is 'a:1', but the processes of a sweep need not"),
        ({"PROCID": "x", "NTASKS": "2"}, {}, "SLURM_PROCID is 'x' and SLURM_NTASKS is"),
        ({"PROCID": "2", "NTASKS": "2"}, {}, "is '2' and SLURM_NTASKS is '2'; expecte"),
    ],
)
def test_impossible_share_is_one_clear_line(monkeypatch, variables, given, message):
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(schema.InputError, match=message):
        processes.share(distributed=True, **given)


@pytest.mark.slow
def test_failed_run_is_status_1_and_bad_input_status_2(data, tmp_path):
    arguments = command(data, tmp_path, {"optim": {"learning_rate": (1e-3, 1e30)}})
    code, output, errors = finish(
        start(*arguments, "--config.base.train.max_skipped=2", devices=1)
    )
    assert code == 1 and "failed: optim.learning_rate=1e+30: step" in errors
    assert "| 1e+30 | 0 (1 failed) |" in output
    code, output, errors = finish(start(*arguments, devices=1))
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1
