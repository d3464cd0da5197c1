"""Many runs, compared: a grid or random search over settings and seeds.

    python -m tqa_jax.sweep --config=configs/sweeps/weighting.py --workdir=runs/w

The config says which runs (see there); --config.base.KEY=VALUE changes them all. Runs
that differ in seeds and numbers only train as one program, spread over all devices.
Each run has a folder under WORKDIR/runs, as `tqa_jax.main` would have made it; the
table at the end is WORKDIR/sweep.csv, and WORKDIR/runs.csv has a line a run. The same
command continues: runs that have ended are not repeated, not even if they failed. To
try on with one, delete status.json in its folder; to repeat it, the whole folder.

Several processes share the runs and need not meet: start the same command in each, with
a common WORKDIR, with --distributed under Slurm or Open MPI, else with --num_processes
and --process_id. The last to end writes the table. A process takes all devices that it
sees: start one on a machine, or give each its own (as by CUDA_VISIBLE_DEVICES).
"""

import contextlib
import hashlib
import json
import logging
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tqa_jax import cli

with cli.imports():
    import jax
    import ml_collections
    import numpy as np

    from tqa_jax import (
        assemble,
        comparison,
        display,
        fleet,
        grid,
        hyperparameters,
        lockstep,
        output,
        pipeline,
        prepare,
        processes,
        run_folder,
        runner,
        schema,
        start,
        sweep_folder,
        train,
        trial,
    )
    from tqa_jax import main as main_command


_logger = logging.getLogger("tqa_jax.sweep")  # A command is `__main__`.
# Each run's folder gets its own copy.
_FILES = ("audit.json", "preprocess.npz")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sweep; returns its exit status, 1 if a run failed; see `cli.run`."""
    return main_command.command(_command, arguments)


def _command(
    sweep: ml_collections.ConfigDict, workdir: pathlib.Path, job: processes.Job
) -> int:
    if "base" not in sweep:
        raise schema.InputError("this config is of one run: python -m tqa_jax.main")
    fleet.device_for_each_core()
    # One line for each of many runs would bury the sweep's own.
    logging.getLogger(trial.__name__).setLevel(logging.WARNING)
    found = run(sweep, workdir=workdir, share=processes.share(**job.given()))
    if found.table:
        print(comparison.to_markdown(found.table))
        print(workdir / "sweep.csv", workdir / "runs.csv", sep="\n")
    else:
        print(f"{found.missing} runs of other processes have not ended; the last one ")
        print("to end writes the table")
    for name, reason in found.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if found.failed else 0


def run(
    sweep: ml_collections.ConfigDict,
    *,
    workdir: pathlib.Path,
    share: tuple[int, int] = (0, 1),
) -> comparison.Found:
    """Trains and compares the runs of a sweep, continuing one that was interrupted.

    Args:
        sweep: see `configs/sweeps/weighting.py`.
        workdir: folder of the sweep.
        share: number of this process, and how many share the runs.

    Raises:
        InputError: for settings, data or a workdir that do not fit.
        trial.Stopped: on SIGTERM; all states are saved.
        KeyboardInterrupt: on Ctrl-C; all states are saved.
    """
    runs = grid.plan(sweep)
    sources = _sources(runs)
    mine = sweep_folder.describe(
        sweep, {one.data_choice: sources[one.name].sha256 for one in runs}
    )
    with tempfile.TemporaryDirectory() as scratch:
        opened: dict[str, _Data] = {}
        if sweep_folder.check(workdir, mine):
            with display.stage("checking the runs against their data"):
                opened = _check(runs, sources, pathlib.Path(scratch))
        sweep_folder.claim(workdir, mine)
        with output.lock(workdir / f".lock-{share[0]}"):
            _train(_groups(runs, sources, opened, workdir, share), sweep.at_once)
            return comparison.conclude(runs, workdir)


class _Source(NamedTuple):
    """Where the data set of a run is, and the checksum of its description."""

    path: pathlib.Path
    sha256: str


class _Data(NamedTuple):
    """A data set, ready for the runs that use it."""

    path: pathlib.Path
    folder: pathlib.Path  # With the files that each run's folder gets a copy of.
    data: prepare.Dataset
    train: prepare.Split
    validation: prepare.Split


class _Group(NamedTuple):
    """Runs of one program that have not ended."""

    facts: assemble.Facts
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


def _sources(runs: Sequence[grid.Run]) -> dict[str, _Source]:
    """Finds each run's data set; builds the demo set if one asks for it."""
    for one in runs:
        with _about(one):
            main_command.check(one.config)
    found = {}
    for one in runs:
        with _about(one):
            place = main_command.find_data(one.config)
            described = run_folder.describe(one.config.to_dict(), place)
        found[one.name] = _Source(place, described["data"]["sha256"])
    return found


def _data_key(config: ml_collections.ConfigDict, source: _Source) -> str:
    """What decides how a data set is prepared, as a name for a folder."""
    decides = [
        source.sha256,
        config.data.max_frames,
        config.data.memory_gb,
        config.preprocess.to_dict(),
        config.model.modalities,
        config.train.start_from,
    ]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]


def _check(
    runs: Sequence[grid.Run], sources: Mapping[str, _Source], scratch: pathlib.Path
) -> dict[str, "_Data"]:
    """Checks all runs against their data, before the sweep has a folder.

    Every process checks the runs of all, so that none trains what another refuses.

    Returns:
        The data sets by `_data_key`.
    """
    opened: dict[str, _Data] = {}
    remarks: dict[str, None] = {}
    for members, _ in grid.groups(runs):
        config, source = members[0].config, sources[members[0].name]
        key = _data_key(config, source)
        with _about(members[0]):
            if key not in opened:
                opened[key] = _open(config, source.path, scratch / key)
            facts = _facts(opened[key], config)
            assemble.check_shared(config, facts)
        for one in members:
            with _about(one):
                remarks |= dict.fromkeys(assemble.check_fit(one.config, facts))
    for remark in remarks:
        _logger.warning("%s", remark)
    return opened


def _groups(
    runs: Sequence[grid.Run],
    sources: Mapping[str, _Source],
    opened: dict[str, _Data],
    workdir: pathlib.Path,
    share: tuple[int, int],
) -> list[_Group]:
    """Puts this process's runs together; leaves out what has ended."""
    groups = grid.groups(runs)
    shares = grid.share([len(members) for members, _ in groups], *share)
    found = []
    for (members, numbers), mine in zip(groups, shares, strict=True):
        folders = [workdir / "runs" / one.name for one in members]
        pending = [i for i in mine if sweep_folder.status(folders[i]) is None]
        if not pending:
            continue
        config, source = members[0].config, sources[members[0].name]
        key = _data_key(config, source)
        folder = workdir / "data" / f"{key}-{share[0]}"
        if key not in opened:
            with _about(members[0]):
                opened[key] = _open(config, source.path, folder)
        if opened[key].folder != folder:
            folder.mkdir(parents=True, exist_ok=True)
            for name in _FILES:
                output.write(folder / name, (opened[key].folder / name).read_bytes())
            opened[key] = opened[key]._replace(folder=folder)
        found.append(
            _Group(
                _facts(opened[key], config),
                [members[i] for i in pending],
                {name: values[np.array(pending)] for name, values in numbers.items()},
                opened[key],
                [folders[i] for i in pending],
            )
        )
    return found


def _open(
    config: ml_collections.ConfigDict, path: pathlib.Path, folder: pathlib.Path
) -> _Data:
    """Audits and prepares a data set, once for all runs that use it."""
    folder.mkdir(parents=True, exist_ok=True)
    train.check_data(path, folder)
    start.take_over(
        config.train.start_from, schema.load(path), folder / "preprocess.npz"
    )
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
        data.data,
        labels=data.train.clips.labels,
        steps_per_epoch=steps,
        start_from=config.train.start_from,
    )


def _train(groups: Sequence[_Group], at_once: int) -> None:
    """Trains the groups one after another."""
    total = sum(
        one.facts.steps_per_epoch * run.config.train.epochs
        for one in groups
        for run in one.runs
    )
    with (
        train.asked_to_stop() as signals,
        contextlib.closing(display.Progress(total)) as progress,
    ):
        for number, group in enumerate(groups):
            title = f"group {number + 1} of {len(groups)}"
            if signals or not _train_group(group, at_once, title, progress, signals):
                _logger.info("all states are saved")
                if signal.SIGINT in signals:
                    raise KeyboardInterrupt
                raise trial.Stopped(
                    f"stopped by {signals[0].name}; the same command continues"
                )


def _train_group(
    group: _Group,
    at_once: int,
    title: str,
    progress: display.Progress,
    signals: Sequence[signal.Signals],
) -> bool:
    """Trains and evaluates the runs of a group; False when asked to stop."""
    config, data, facts = group.runs[0].config, group.data, group.facts

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
        ended: list[int] = []
        files = [stack.enter_context(contextlib.ExitStack()) for _ in group.runs]
        for i, (run, folder) in enumerate(zip(group.runs, group.folders, strict=True)):
            with _about(run):
                run_folder.claim(folder, run.config.to_dict(), data.path)
                files[i].enter_context(output.lock(folder / ".lock"))
            for name in _FILES:
                output.write(folder / name, (data.folder / name).read_bytes())
            trials[i] = trial.Trial(
                run.config, data.data, data.train, data.validation, folder, one_device
            )
            files[i].callback(trials[i].close)

        def end(i: int, reason: str | None) -> None:
            started = time.monotonic()
            if reason is None:
                mine = {key: values[i] for key, values in group.numbers.items()}
                try:
                    with display.stage(f"evaluating {group.runs[i].name}", after=5):
                        trials[i].finish(parts._replace(more=(mine,)))
                except trial.Stopped as error:
                    reason = str(error)
            spent = seconds[i] + time.monotonic() - started
            status = {"reason": reason, "seconds_of_last_start": round(spent, 2)}
            run_folder.write_json(group.folders[i] / "status.json", status)
            files[i].close()
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
            ended.extend(found.ended)
            count = f"{len(ended)} of {len(group.runs)} runs ended"
            progress.update(found.steps, f"{title}, {count}; {found.said}")

        return lockstep.train(
            trials,
            ships,
            clips=data.validation.clips,
            at_once=at_once,
            report=report,
            stop=lambda: bool(signals),
        )


if __name__ == "__main__":
    sys.exit(main())
