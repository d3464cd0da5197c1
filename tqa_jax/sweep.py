"""Many runs, compared: a grid or random search over settings and seeds.

    python -m tqa_jax.sweep --config=configs/sweeps/weighting.py --workdir=runs/w

The config says which runs (see there); --config.base.KEY=VALUE changes them all. Runs
that differ in seeds and numbers only train as one program, spread over all devices.
Each run has a folder under WORKDIR/runs, as `tqa_jax.main` would have made it; the
table at the end is WORKDIR/sweep.csv, and WORKDIR/runs.csv has a line a run. The same
command continues: finished runs are not repeated.

Several processes share the runs and need not meet: start the same command in each, with
a common WORKDIR, with --distributed under Slurm or Open MPI, else with --num_processes
and --process_id. The last to end writes the table.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import app, flags

from tqa_jax import (
    assemble,
    cache,
    comparison,
    fleet,
    grid,
    heap,
    hyperparameters,
    lockstep,
    pipeline,
    prepare,
    processes,
    run_folder,
    runner,
    schema,
    sweep_folder,
    sweep_progress,
    train,
    trial,
)
from tqa_jax import main as main_command

_logger = logging.getLogger(__name__)

flags.adopt_module_key_flags(main_command)
flags.adopt_module_key_flags(processes)


def main(argv: Sequence[str]) -> None:
    """Runs the sweep; exits with 2 for bad input and 1 if a run failed."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    given = flags.FLAGS
    cache.keep_programs()
    heap.keep()
    _device_for_each_core()
    main_command.show_progress(logging.INFO)
    # One line for each of many runs would bury the sweep's own.
    logging.getLogger(trial.__name__).setLevel(logging.WARNING)
    workdir = pathlib.Path(given.workdir)
    try:
        share = processes.share(
            distributed=given.distributed,
            num_processes=given.num_processes,
            process_id=given.process_id,
        )
        found = run(given.config, workdir=workdir, share=share)
    except schema.InputError as error:
        main_command.refuse(str(error))
    except trial.Stopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    if found.table:
        print(comparison.to_markdown(found.table))
        print(workdir / "sweep.csv", workdir / "runs.csv", sep="\n")
    else:
        print(f"{found.missing} runs of other processes have not ended; the last one ")
        print("to end writes the table")
    for name, reason in found.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    sys.exit(1 if found.failed else 0)


class Found(NamedTuple):
    """What a sweep found.

    Attributes:
        table: see `comparison.compare`; None while runs of other processes train.
        failed: why runs ended before their time, by name.
        missing: runs of other processes that have not ended.
    """

    table: list[comparison.Row] | None
    failed: dict[str, str]
    missing: int


def run(
    sweep: ml_collections.ConfigDict,
    *,
    workdir: pathlib.Path,
    share: tuple[int, int] = (0, 1),
) -> Found:
    """Trains and compares the runs of a sweep, continuing one that was interrupted.

    Args:
        sweep: see `configs/sweeps/weighting.py`.
        workdir: folder of the sweep.
        share: number of this process, and how many share the runs.

    Raises:
        InputError: for settings, data or a workdir that do not fit.
        trial.Stopped: on SIGTERM; all states are saved.
    """
    runs = grid.plan(sweep)
    paths = _data_paths(runs)
    for one in runs:
        with _about(one):
            assemble.check(one.config)
            run_folder.describe(one.config.to_dict(), paths[one.name])
    new = sweep_folder.claim(workdir, sweep, share[0])
    try:
        groups = _groups(runs, paths, workdir, share)
    except schema.InputError:
        # Nothing was trained: the corrected command may use the same folder.
        if new:
            shutil.rmtree(workdir)
        raise
    _train(groups, sweep.at_once)
    return _conclude(runs, workdir, share[0])


class _Data(NamedTuple):
    """A data set, ready for the runs that use it."""

    path: pathlib.Path
    folder: pathlib.Path  # With the files that each run's folder gets a copy of.
    data: prepare.Dataset
    train: prepare.Split
    validation: prepare.Split


class _Group(NamedTuple):
    """Runs of one program that have not ended."""

    runs: list[grid.Run]
    numbers: Mapping[str, np.ndarray]
    data: _Data
    folders: list[pathlib.Path]


@contextlib.contextmanager
def _about(run: grid.Run) -> Any:
    """Says which run an error is about."""
    try:
        yield
    except schema.InputError as error:
        raise schema.InputError(f"run {run.name}: {error}") from error


def _data_paths(runs: Sequence[grid.Run]) -> dict[str, pathlib.Path]:
    """Where each run's data set is; builds the demo set if one asks for it."""
    demos: dict[int, pathlib.Path] = {}
    found = {}
    for one in runs:
        path, clips = one.config.data.path, one.config.data.demo_clips
        if not path and clips not in demos:
            demos[clips] = main_command.build_demo(clips)
        found[one.name] = pathlib.Path(path) if path else demos[clips]
    return found


def _groups(
    runs: Sequence[grid.Run],
    paths: Mapping[str, pathlib.Path],
    workdir: pathlib.Path,
    share: tuple[int, int],
) -> list[_Group]:
    """Checks all runs against their data; leaves out what has ended."""
    index, count = share
    opened: dict[str, _Data] = {}
    found = []
    for members, numbers in grid.groups(runs):
        config = members[0].config
        mine = list(range(len(members)))[index::count]
        pending = [
            i
            for i in mine
            if sweep_folder.status(workdir / "runs" / members[i].name) is None
        ]
        if not pending:
            continue
        key = _data_key(config, paths[members[0].name])
        if key not in opened:
            name = hashlib.sha256(key.encode()).hexdigest()[:12]
            folder = workdir / "data" / f"{name}-{index}"
            with _about(members[0]):
                opened[key] = _open(config, paths[members[0].name], folder)
        data = opened[key]
        facts = _facts(data, config)
        with _about(members[0]):
            assemble.check_shared(config, facts)
        for i in pending:
            with _about(members[i]):
                assemble.check_fit(members[i].config, facts)
        found.append(
            _Group(
                [members[i] for i in pending],
                {name: values[np.array(pending)] for name, values in numbers.items()},
                data,
                [workdir / "runs" / members[i].name for i in pending],
            )
        )
    return found


def _data_key(config: ml_collections.ConfigDict, path: pathlib.Path) -> str:
    """What decides how a data set is prepared."""
    return json.dumps(
        [
            str(path),
            config.data.max_frames,
            config.data.memory_gb,
            config.preprocess.to_dict(),
            config.model.modalities,
        ]
    )


def _open(
    config: ml_collections.ConfigDict, path: pathlib.Path, folder: pathlib.Path
) -> _Data:
    """Audits and prepares a data set, once for all runs that use it."""
    folder.mkdir(parents=True, exist_ok=True)
    train.check_data(path, folder)
    data = prepare.open_dataset(
        path,
        modalities=config.model.modalities,
        pca=config.preprocess.pca,
        winsorise=config.preprocess.winsorise,
        max_frames=config.data.max_frames,
        memory_bytes=config.data.memory_gb * 2**30,
        fitted=folder / "preprocess.npz",
    )
    splits = data.split("train"), data.split("validation")
    if any(split.windows is None for split in splits):
        raise schema.InputError(
            f"a split of {path} takes more than data.memory_gb "
            f"({config.data.memory_gb:g}); a sweep keeps its data on the device: raise "
            "data.memory_gb, or train the runs one by one with tqa_jax.main"
        )
    return _Data(path, folder, data, *splits)


def _facts(data: _Data, config: ml_collections.ConfigDict) -> assemble.Facts:
    steps = len(
        pipeline.order(data.train.size, config.train.batch_size, seed=0, epoch=0)
    )
    return assemble.look_up(
        data.data, labels=data.train.clips.labels, steps_per_epoch=steps
    )


def _train(groups: Sequence[_Group], at_once: int) -> None:
    """Trains the groups one after another."""
    totals = [
        _facts(one.data, run.config).steps_per_epoch * run.config.train.epochs
        for one in groups
        for run in one.runs
    ]
    with train.sigterm() as asked_to_stop, sweep_progress.Progress(totals) as progress:
        for number, group in enumerate(groups):
            progress.group = f"group {number + 1} of {len(groups)}"
            if not _train_group(group, at_once, progress, asked_to_stop):
                raise trial.Stopped("stopped by SIGTERM; the same command continues")


def _train_group(
    group: _Group,
    at_once: int,
    progress: sweep_progress.Progress,
    asked_to_stop: Callable[[], bool],
) -> bool:
    """Trains and evaluates the runs of a group; False when asked to stop."""
    config, data = group.runs[0].config, group.data
    facts = _facts(data, config)

    def make(numbers: fleet.Numbers) -> assemble.Parts:
        return assemble.make(hyperparameters.put(config, numbers), facts)

    @jax.jit
    def draw(params, batch, rng, numbers):
        return make(numbers).draw(params, batch, rng)

    parts = assemble.make(config, facts)
    if parts.draw is not None:
        parts = parts._replace(draw=draw)
    ships = fleet.Fleet(
        make,
        group.numbers,
        data.train,
        data.validation,
        batch_size=config.train.batch_size,
    )
    one_device = runner.Devices(only=ships.devices[:1])
    seconds = dict.fromkeys(range(len(group.runs)), 0.0)
    with contextlib.ExitStack() as stack:
        trials = {}
        for i, (run, folder) in enumerate(zip(group.runs, group.folders, strict=True)):
            with _about(run):
                run_folder.claim(folder, run.config.to_dict(), data.path)
            for name in ("audit.json", "preprocess.npz"):
                sweep_folder.copy(data.folder / name, folder / name)
            trials[i] = trial.Trial(
                run.config, data.data, data.train, data.validation, folder, one_device
            )
            stack.callback(trials[i].close)

        def end(i: int, reason: str | None) -> None:
            started = time.monotonic()
            if reason is None:
                mine = {name: values[i] for name, values in group.numbers.items()}
                try:
                    trials[i].finish(parts._replace(more=(mine,)))
                except trial.Stopped as error:
                    reason = str(error)
            spent = seconds[i] + time.monotonic() - started
            status = {"reason": reason, "seconds": round(spent, 2)}
            run_folder.write_json(group.folders[i] / "status.json", status)
            if reason is not None:
                _logger.warning("%s failed: %s", group.runs[i].name, reason)

        def report(found: lockstep.Report) -> None:
            for i, spent in found.seconds.items():
                seconds[i] += spent
            for i, reason in found.ended.items():
                end(i, reason)
            left = [trials[i].total_steps - trials[i].step for i in found.ended]
            # Steps of an earlier start, or of a run that ends early, are not taken now.
            progress.skip(found.before + sum(left))
            progress.update(found.steps, len(found.ended), found.said)

        return lockstep.train(
            trials,
            ships,
            clips=data.validation.clips,
            at_once=at_once,
            report=report,
            stop=asked_to_stop,
        )


def _conclude(runs: Sequence[grid.Run], workdir: pathlib.Path, index: int) -> Found:
    """Writes the tables if all runs have ended."""
    statuses = {
        run.name: sweep_folder.status(workdir / "runs" / run.name) for run in runs
    }
    failed = {name: s["reason"] for name, s in statuses.items() if s and s["reason"]}
    missing = sum(status is None for status in statuses.values())
    if missing:
        return Found(None, failed, missing)
    outcomes, rows = [], []
    for run in runs:
        folder, status = workdir / "runs" / run.name, statuses[run.name]
        results = predictions = None
        if not status["reason"]:
            text = (folder / "results.json").read_text(encoding="utf-8")
            results = json.loads(text)
            predictions = comparison.read_predictions(folder / "predictions.csv")
        outcomes.append(
            comparison.Outcome(run.setting, run.config.seed, results, predictions)
        )
        rows.append(_run_row(run, status, results))
    table = comparison.compare(outcomes)
    sweep_folder.write(workdir / "runs.csv", comparison.to_csv(rows), index)
    sweep_folder.write(workdir / "sweep.csv", comparison.to_csv(table), index)
    return Found(table, failed, 0)


def _run_row(
    run: grid.Run, status: Mapping[str, Any], results: Mapping[str, Any] | None
) -> comparison.Row:
    row: comparison.Row = {"run": run.name} | dict(run.settings)
    row["status"] = "failed" if status["reason"] else "finished"
    row["best_epoch"] = results and results["selected"]["epoch"]
    for metric in ("srcc", "plcc", "rmse"):
        row[metric] = results and results["average"][metric]["value"]
    return row | {"seconds": status["seconds"], "reason": status["reason"]}


def _device_for_each_core() -> None:
    """Makes a device of each processor core, unless something else was asked for.

    Runs side by side on one core each are faster than runs one after another on all.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not forced and jax.config.jax_num_cpu_devices < 0:
        jax.config.update("jax_num_cpu_devices", os.cpu_count())


if __name__ == "__main__":
    app.run(main, flags_parser=main_command.parse)
