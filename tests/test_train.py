"""Whole runs: learning, resuming bit for bit, streaming, and what is refused."""

import json
import logging
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import small
from tqa_jax import prepare, records, run_folder, schema, train, trial

STEPS = 6  # An epoch's: 36 clips in 51 windows, 8 a step.
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small"
    small.write(path)
    return path


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train.run(small.config(), data_path=data, workdir=workdir)
    return workdir


def saved_arrays(workdir):
    """All arrays of the latest checkpoint by name."""
    steps = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(
            (workdir / "checkpoints" / str(max(steps)) / "default").absolute()
        )
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_same_run(one, other):
    """Compares two run folders, bit for bit but for times."""
    first, second = saved_arrays(one), saved_arrays(other)
    assert first.keys() == second.keys() and len(first) > 100
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name
    for name in ("results.json", "predictions.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    logs = []
    for folder in (one, other):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
        for line in logs[-1]:
            # Neither is part of the result: speed, and which programs were compiled.
            line.pop("clips_per_second", None)
            line.pop("memory/temp_bytes", None)
    assert logs[0] == logs[1]


def test_run_learns_and_leaves_documented_files(whole):
    results = json.loads((whole / "results.json").read_text())
    assert set(results["tasks"]) == {"lip_sync", "audio_quality", "overall"}
    # Labels are linear in two features: even four epochs see that.
    losses = [
        line["loss/overall"]
        for line in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())
        if line["split"] == "validation"
    ]
    assert len(losses) == 4 and losses[-1] < 0.8 * losses[0]
    assert results["clips"] == {"train": 36, "validation": 12, "test": 12}
    for name in (
        *("config.json", "environment.json", "audit.json"),
        *("preprocess.npz", "reference.npz"),
    ):
        assert (whole / name).exists()
    confidence = results["confidence"]
    assert confidence["spread_over"] == "16 draws of dropout"
    # 12 validation clips are too few for a 95 % interval, and it says so.
    for one in confidence["tasks"].values():
        assert one["half_width"] is None and "19 are needed" in one["reason"]
    lines = [json.loads(s) for s in (whole / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in steps] == list(range(1, 4 * STEPS + 1))
    assert {line["epoch"] for line in steps} == {1, 2, 3, 4}
    for line in steps:
        weights = [line[f"weight/{task}"] for task in results["tasks"]]
        assert sum(weights) == pytest.approx(3, abs=1e-5)
        assert all(line[f"grad_norm/{task}"] > 0 for task in results["tasks"])
    found = [line for line in lines if line["split"] == "validation"]
    assert [line["step"] for line in found] == [STEPS * e for e in (1, 2, 3, 4)]
    best = max(range(4), key=lambda epoch: found[epoch]["selection"])
    assert results["selected"]["epoch"] == best + 1
    assert results["selected"]["value"] == pytest.approx(found[best]["selection"])


def test_finished_run_is_shown_where_nothing_can_be_locked(data, whole, monkeypatch):
    monkeypatch.setattr(train.output, "lock", None)
    assert train.run(small.config(), data_path=data, workdir=whole)["tasks"]


def test_finished_run_is_shown_not_repeated(data, whole):
    before = {p: p.stat().st_mtime_ns for p in whole.iterdir()}
    results = train.run(small.config(), data_path=data, workdir=whole)
    assert results == json.loads((whole / "results.json").read_text())
    assert before == {p: p.stat().st_mtime_ns for p in whole.iterdir()}


@pytest.mark.parametrize(
    "killed_at", [3, 16, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4, 9))]
)
def test_run_that_dies_at_any_step_resumes_bit_for_bit(
    data, whole, tmp_path, monkeypatch, killed_at
):
    class Killed(BaseException):
        pass

    write = run_folder.MetricsLog.write

    def dying(self, *, step, **line):
        write(self, step=step, **line)
        if step >= killed_at:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run_folder.MetricsLog, "write", dying)
        train.run(small.config(), data_path=data, workdir=tmp_path / "run")
    train.run(small.config(), data_path=data, workdir=tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (signal.SIGTERM, trial.Stopped),
        (signal.SIGINT, KeyboardInterrupt),
        pytest.param(signal.SIGHUP, trial.Stopped, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_same_command_continues(
    data, whole, tmp_path, monkeypatch, number, error
):
    write = run_folder.MetricsLog.write

    def interrupting(self, *, step, **line):
        write(self, step=step, **line)
        if step == 5:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.MetricsLog, "write", interrupting)
        with pytest.raises(error) as stopped:
            train.run(small.config(), data_path=data, workdir=tmp_path / "run")
    if error is trial.Stopped:
        name = signal.Signals(number).name
        assert f"{name} after step 6; the same" in str(stopped.value)
    assert int(saved_arrays(tmp_path / "run")["['state']['step']"]) == 6
    assert signal.getsignal(number) == before
    train.run(small.config(), data_path=data, workdir=tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


def test_a_second_ctrl_c_quits_and_nohup_holds(monkeypatch, caplog):
    statuses, quitting = [], threading.Event()
    before = signal.getsignal(signal.SIGINT)
    hangup = signal.getsignal(signal.SIGHUP)

    def leave(status):
        statuses.append(status)
        quitting.set()

    monkeypatch.setattr(os, "_exit", leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with train.asked_to_stop() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals == []
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            assert signals == [signal.SIGTERM, signal.SIGINT] and statuses == []
            signal.raise_signal(signal.SIGINT)
            assert quitting.wait(10) and statuses == [130]
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert signal.getsignal(signal.SIGINT) == before
    assert signal.set_wakeup_fd(-1) == -1
    assert caplog.messages == [
        "stopping once this is saved; Ctrl-C again quits at once"
    ]


def test_damaged_files_of_a_finished_run_are_made_again(data, whole, tmp_path, caplog):
    damaged = tmp_path / "run"
    shutil.copytree(whole, damaged)
    steps = sorted(int(path.name) for path in (damaged / "checkpoints").iterdir())
    for path in (damaged / "checkpoints" / str(steps[1])).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    for name in ("results.json", "preprocess.npz", "audit.json"):
        (damaged / name).write_bytes(b"")
    predictions = (damaged / "predictions.csv").read_bytes()
    (damaged / "predictions.csv").write_bytes(predictions[: len(predictions) // 2])
    train.run(small.config(), data_path=data, workdir=damaged)
    assert_same_run(whole, damaged)
    said = [line for line in caplog.messages if "damaged" in line]
    assert len(said) == 3
    for line, part in zip(
        said,
        ("results.json", "preprocess.npz", f"step {steps[1]}"),
        strict=True,
    ):
        assert part in line and "\n" not in line


@pytest.mark.parametrize(
    "name", ["results.json", "predictions.csv", "audit.json", "representation.npz"]
)
@pytest.mark.parametrize("way", ["empty", "half", "zeros", "gone"])
def test_a_run_is_finished_only_with_its_files_whole(whole, tmp_path, name, way):
    for file in whole.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    assert run_folder.finished(tmp_path)["tasks"]
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(
        {"empty": b"", "half": content[: len(content) // 2]}.get(
            way, bytes(len(content))
        )
    )
    if way == "gone":
        (tmp_path / name).unlink()
    assert run_folder.finished(tmp_path) is None


def test_time_saves_where_steps_do_not(data, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    write = run_folder.MetricsLog.write

    def dying(self, *, step, **line):
        write(self, step=step, **line)
        if step > STEPS:
            raise Killed

    monkeypatch.setattr(run_folder.MetricsLog, "write", dying)
    config = small.config(train__checkpoint_every=1000)
    for seconds, saved in ((1e9, []), (0.0, [str(STEPS)])):
        monkeypatch.setattr(trial, "_SAVE_SECONDS", seconds)
        with pytest.raises(Killed):
            train.run(config, data_path=data, workdir=tmp_path / "run")
        places = (tmp_path / "run" / "checkpoints").iterdir()
        assert [path.name for path in places] == saved


def test_selection_by_loss_is_a_loss_and_the_last_line_is_the_last(
    data, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "tqa_jax")
    config = small.config(train__select_metric="loss", train__epochs=2)
    results = train.run(config, data_path=data, workdir=tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    found = [
        line
        for line in map(json.loads, text.splitlines())
        if line["split"] == "validation"
    ]
    for line in found:
        losses = [line[f"loss/{task}"] for task in results["tasks"]]
        assert line["selection"] == pytest.approx(np.mean(losses))
    least = min(line["selection"] for line in found)
    assert results["selected"]["value"] == pytest.approx(least) and least > 0
    said = [line for line in caplog.messages if "epoch 2" in line]
    assert said[0].startswith("epoch 2 of 2: validation loss ")
    assert said[1] == "trained after epoch 2"


def test_streamed_run_gives_the_same_numbers(data, whole, tmp_path):
    config = small.config(data__memory_gb=0.0)
    train.run(config, data_path=data, workdir=tmp_path / "run")
    first, second = saved_arrays(whole), saved_arrays(tmp_path / "run")
    for name, array in first.items():
        if "['key']['bias']" not in name:  # No score depends on it.
            # An error near 0 has another sign in another program, and moments hold it.
            atol = 1e-3 if "['mu']" in name else 1e-4
            np.testing.assert_allclose(
                array, second[name], rtol=1e-3, atol=atol, err_msg=name
            )


def test_nothing_that_is_trained_or_selected_depends_on_test_labels(whole, tmp_path):
    small.write(tmp_path / "other", test_label=1.0)
    workdir = tmp_path / "run"
    results = train.run(small.config(), data_path=tmp_path / "other", workdir=workdir)
    first, second = saved_arrays(whole), saved_arrays(workdir)
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name
    # And what cannot be evaluated is null with a reason.
    found = results["tasks"]["overall"]["srcc"]
    assert found["value"] is None and "constant" in found["reason"]


def test_memory_limit_decides_what_is_streamed(data, tmp_path):
    for gigabytes, streamed in ((1.0, False), (1e-6, True)):
        opened = prepare.open_dataset(
            data,
            modalities=(),
            pca={},
            winsorise=0.0,
            max_frames=8,
            memory_bytes=gigabytes * 2**30,
            fitted=tmp_path / "fit.npz",
        )
        assert (opened.split("train").windows is None) == streamed


def test_corrected_command_may_use_the_same_folder(data, tmp_path):
    with pytest.raises(schema.InputError, match="unknown weighting 'grad_norm'"):
        train.run(
            small.config(weighting__name="grad_norm"),
            data_path=data,
            workdir=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model__modalities": ("smell",)},
            "unknown modality 'smell'; .* visual, audio, sync",
        ),
        ({"optim__schedule": "cosin"}, "unknown schedule 'cosin'; available: warm"),
        ({"consistency__mode": "cor"}, "unknown consistency 'cor'"),
        ({"train__accumulation": 3}, "accumulation 3 does not divide"),
        ({"train__select_metric": "acc"}, "unknown metric 'acc'; available: srcc"),
        ({"optim__clip_norm": math.nan}, "optim.clip_norm is nan; expected a finite"),
        ({"optim__clip_norm": math.inf}, "optim.clip_norm is inf; expected a finite"),
        ({"seed": -1}, "seed is -1; expected 0 to 4294967295"),
        ({"model__depth": 0}, "model.depth is 0; expected at least 1"),
        ({"model__dropout": 2.0}, "model.dropout is 2.0; expected 0 or more and less"),
        ({"optim__clip_norm": 0.0}, "optim.clip_norm is 0.0; expected more than 0"),
        (
            {"train__members": 3, "seed": 1431655765},
            "seed is 1431655765; expected 0 to 1431655764",
        ),
        (
            {"optim__end_learning_rate": 0.1},
            "optim.end_learning_rate is 0.1; expected at most the peak, .* 0.01",
        ),
    ],
)
def test_impossible_setting_is_one_clear_line(data, tmp_path, change, message):
    with pytest.raises(schema.InputError, match=message):
        train.run(small.config(**change), data_path=data, workdir=tmp_path / "run")


def test_other_data_in_the_same_folder_is_refused(whole, tmp_path):
    small.write(tmp_path / "other", clips=45)
    with pytest.raises(schema.InputError, match="holds a run with data.*choose anoth"):
        train.run(small.config(), data_path=tmp_path / "other", workdir=whole)


def test_too_few_tasks_for_consistency_switch_it_off_and_say_so(data, tmp_path, caplog):
    caplog.set_level(logging.INFO, "tqa_jax")
    config = small.config(consistency__exclude=("overall", "lip_sync"), train__epochs=1)
    train.run(config, data_path=data, workdir=tmp_path / "run")
    assert "no consistency: it compares two tasks" in caplog.text
    line = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["loss/consistency"] == 0


def test_data_without_a_test_split_are_refused_before_training(tmp_path):
    info = small.write(tmp_path / "all")
    pairs = [
        (split, clip)
        for split in ("train", "validation")
        for clip in records.read_split(tmp_path / "all", info, split)
    ]
    records.write_dataset(
        tmp_path / "data",
        pairs,
        name="small",
        schema=small.SCHEMA,
        provenance={"kind": "degradation"},
    )
    with pytest.raises(schema.InputError, match="has no test clips; give the labels"):
        train.run(small.config(), data_path=tmp_path / "data", workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_loss_that_stays_non_finite_stops_with_the_task_named(data, tmp_path):
    config = small.config(train__max_skipped=2, optim__learning_rate=1e30)
    with pytest.raises(trial.Stopped, match="was not finite for . steps in a row"):
        train.run(config, data_path=data, workdir=tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    last = json.loads(text.splitlines()[-1])
    causes = [last[f"skipped/{task.name}"] for task in small.SCHEMA.tasks]
    assert last["skipped"] >= 2 and max(causes) == 1
    assert saved_arrays(tmp_path / "run")["['state']['skipped']"] >= 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.slow
def test_low_precision_run_finishes_and_learns(data, tmp_path, dtype):
    config = small.config(model__dtype=dtype, train__epochs=8)
    results = train.run(config, data_path=data, workdir=tmp_path / "run")
    assert results["average"]["srcc"]["value"] > 0.3


@pytest.mark.slow
def test_kill_9_at_several_points_gives_the_same_bytes(data, tmp_path):
    command = [
        *(sys.executable, "-m", "tqa_jax.main", "--config=configs/smoke.py"),
        *(f"--config.data.path={data}", "--config.train.epochs=6"),
        "--config.train.checkpoint_every=3",
    ]

    def start(workdir):
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    done = start(tmp_path / "whole")
    assert done.wait() == 0, done.stderr.read()
    done.stderr.close()
    total = 24
    for number, lines in enumerate((1, 8, 17, total)):
        workdir = tmp_path / f"killed{number}"
        log = workdir / "metrics.jsonl"
        process = start(workdir)
        while process.poll() is None:
            if log.exists() and len(log.read_text().splitlines()) >= lines:
                process.kill()
                process.wait()
            time.sleep(0.005)
        process.stderr.close()
        again = start(workdir)
        assert again.wait() == 0, again.stderr.read()
        again.stderr.close()
        assert_same_run(tmp_path / "whole", workdir)
