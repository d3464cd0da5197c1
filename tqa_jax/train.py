"""A whole run: from a configuration and a data set to results.

The one thing to know: this is the last module that sees a `ConfigDict`. A run is a
sequence of segments, each one compiled program over many steps; between segments it
validates, logs and saves, and a resumed run goes through the same segments.
"""

import contextlib
import json
import logging
import os
import pathlib
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jax
import ml_collections
import numpy as np

from tqa_jax import (
    assemble,
    audit,
    display,
    evaluate,
    memory,
    output,
    pipeline,
    prepare,
    processes,
    run_folder,
    runner,
    schema,
    start,
    trial,
)

_logger = logging.getLogger(__name__)


def run(
    config: ml_collections.ConfigDict, *, data_path: pathlib.Path, workdir: pathlib.Path
) -> dict[str, Any]:
    """Trains and evaluates, continuing a run that was interrupted.

    Several processes that were started together (see `processes.start`) train one
    model. Each calls this with the same configuration; the first one alone reads and
    writes the run's folder.

    Args:
        config: see `configs/default.py`.
        data_path: the data set.
        workdir: folder of the run.

    Returns:
        The content of `results.json`.

    Raises:
        InputError: for settings, data or a workdir that do not fit.
        trial.Stopped: on SIGTERM, or when the loss stays non-finite; the state is
            saved.
        KeyboardInterrupt: on Ctrl-C; the state is saved.
    """
    group = processes.group()
    _check_same(config, data_path, group)
    with contextlib.ExitStack() as stack:

        def claim() -> bytes:
            found = _claim(config, data_path, workdir)
            if json.loads(found)[1] is None:  # a finished run is only read
                stack.enter_context(output.lock(workdir / ".lock"))
            return found

        new, results = json.loads(group.from_writer(claim))
        if results is not None:
            _logger.info(
                "%s holds a finished run; showing its results. To train anew, give "
                "another --workdir",
                workdir,
            )
            return results
        try:
            splits = _open(config, data_path, workdir, group)
            signals = stack.enter_context(asked_to_stop())
            with display.stage("compiling the model"):
                trainer = _Trainer(config, *splits, workdir, group)
        except schema.InputError:
            # Nothing was trained: the corrected command may use the same folder.
            if new and group.writes:
                stack.close()
                shutil.rmtree(workdir)
            raise
        stack.enter_context(contextlib.closing(trainer))
        trainer.train(signals)
        with display.stage("evaluating the best epoch on the test split"):
            return trainer.finish()


def _check_same(
    config: ml_collections.ConfigDict, data_path: pathlib.Path, group: processes.Group
) -> None:
    """Checks settings, and that all processes were given the same."""

    def describe() -> dict[str, Any]:
        described = run_folder.describe(config.to_dict(), data_path)
        assemble.check(config, schema.load(data_path).schema)
        return described

    mine = group.together(describe)
    first = json.loads(group.from_writer(lambda: json.dumps(mine).encode()))

    def compare() -> None:
        if found := run_folder.difference(mine, first):
            raise schema.InputError(
                f"it was started with {found} as in process 0; give all processes the "
                "same command"
            )

    group.together(compare)


def _claim(
    config: ml_collections.ConfigDict, data_path: pathlib.Path, workdir: pathlib.Path
) -> bytes:
    """Takes the folder; returns whether it is new, and its results, as JSON."""
    new = run_folder.claim(workdir, config.to_dict(), data_path)
    return json.dumps([new, run_folder.finished(workdir)]).encode()


def check_data(data_path: pathlib.Path, workdir: pathlib.Path) -> bytes:
    """Audits a data set into `audit.json`; returns nothing, as bytes.

    Raises:
        InputError: when a split has no clips.
    """
    report = audit.audit(data_path)
    run_folder.write_json(workdir / "audit.json", report)
    for flag in report["flags"]:
        _logger.warning("data: %s", flag)
    for split in schema.SPLITS:
        if not report["clips"].get(split):
            raise schema.InputError(
                f"{data_path} has no {split} clips; give the labels CSV a split "
                "column, or more sources"
            )
    return b""


def _open(
    config: ml_collections.ConfigDict,
    data_path: pathlib.Path,
    workdir: pathlib.Path,
    group: processes.Group,
) -> tuple[prepare.Dataset, prepare.Split, prepare.Split]:
    """Audits and prepares the data set; returns it, and what is trained on."""

    def check() -> bytes:
        found = check_data(data_path, workdir)
        fitted = workdir / "preprocess.npz"
        start.take_over(config.train.start_from, schema.load(data_path), fitted)
        return found

    with display.stage(f"reading and preparing {data_path}"):
        group.from_writer(check)
        data = prepare.open_dataset(
            data_path,
            modalities=config.model.modalities,
            pca=config.preprocess.pca,
            winsorise=config.preprocess.winsorise,
            max_frames=config.data.max_frames,
            memory_bytes=config.data.memory_gb * 2**30,
            fitted=workdir / "preprocess.npz",
            group=group,
        )
        return group.together(
            lambda: (data, data.split("train"), data.split("validation"))
        )


class _Trainer:
    """The loop around the compiled segments of one run."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        data: prepare.Dataset,
        train: prepare.Split,
        validation: prepare.Split,
        workdir: pathlib.Path,
        group: processes.Group,
    ) -> None:
        self._devices = runner.Devices(group)

        def build() -> tuple[trial.Trial, assemble.Parts]:
            self._devices.check(config.train.batch_size)
            one = trial.Trial(config, data, train, validation, workdir, self._devices)
            labels, steps = train.clips.labels, one.steps_per_epoch
            return one, assemble.build(
                config, data, labels=labels, steps_per_epoch=steps
            )

        self._trial, self._parts = group.together(build)
        self._runner = runner.Runner(self._parts.step, train, self._devices)
        self._score = self._devices.scorer(self._parts.score)
        self._validation = validation
        try:
            self._start(config, train, group)
        except BaseException:
            self.close()  # Else Orbax's threads would outlive the error.
            raise

    def _start(
        self,
        config: ml_collections.ConfigDict,
        train: prepare.Split,
        group: processes.Group,
    ) -> None:
        """Opens the files of the run and compiles its first program."""
        self._trial.start(self._parts.init(config.seed))
        _logger.info(
            "%d parameters, %d training windows of %d clips, %d steps an epoch, "
            "best by validation %s",
            sum(leaf.size for leaf in jax.tree.leaves(self._trial.state.params)),
            train.size,
            len(train.clips.names),
            self._trial.steps_per_epoch,
            self._trial.metric,
        )
        if not self._trial.done:
            program = self._runner.compiled(self._trial.state, self._trial.next_rows())
            settings = memory.Settings(
                batch_size=config.train.batch_size,
                accumulation=config.train.accumulation,
                remat=config.model.remat,
                dtype=config.model.dtype,
                devices=self._devices.count,
                data_bytes=self._runner.data_bytes,
            )
            device = jax.local_devices()[0]
            group.together(lambda: memory.check(program, device, settings))

    def train(self, signals: Sequence[signal.Signals]) -> None:
        """Trains until the last epoch, an early stop, or a signal (`asked_to_stop`)."""
        one, group = self._trial, self._devices.group
        progress = display.Progress(one.total_steps, one.step, shown=group.writes)
        with contextlib.closing(progress):
            while True:
                if group.any(bool(signals)):
                    self._stop(signals)
                if one.done:
                    break
                rows = one.next_rows()
                with display.stage(f"training from step {one.step}", after=20):
                    whole = one.took(*self._runner.run(one.state, rows))
                if whole:
                    with display.stage("validating", after=5):
                        one.validated(self._validate(), self._runner.temp_bytes)
                progress.update(len(rows), one.said)
                if whole:
                    self._say(beside_bar=not progress.bar.disable)
                one.save_if_due()

    def _stop(self, signals: Sequence[signal.Signals]) -> NoReturn:
        """Saves and leaves, in all processes."""
        step = self._trial.step
        self._trial.save()
        if step:
            _logger.info("saved after step %d", step)
        if self._devices.group.any(signal.SIGINT in signals):
            raise KeyboardInterrupt
        name = signals[0].name if signals else "SIGTERM"
        raise trial.Stopped(
            f"stopped by {name} after step {step}; the same command continues"
        )

    def _validate(self) -> np.ndarray:
        order = pipeline.in_order(
            self._validation.size, self._trial.config.train.batch_size
        )
        return evaluate.predict(
            self._score,
            self._trial.state.params,
            self._validation.batches(self._devices.mine(order)),
            self._validation.clips,
        ).mean(axis=0)

    def _say(self, *, beside_bar: bool) -> None:
        epoch = int(self._trial.state.progress.epoch)
        epochs = self._trial.config.train.epochs
        if not beside_bar:
            _logger.info("epoch %d of %d: %s", epoch, epochs, self._trial.said)
        if self._trial.done:
            how = "stopped early" if epoch < epochs else "trained"
            _logger.info("%s after epoch %d", how, epoch)

    def finish(self) -> dict[str, Any]:
        """Evaluates the best parameters on the test split, once."""
        return self._trial.finish(self._parts)

    def close(self) -> None:
        """Finishes what is being written."""
        self._trial.close()


@contextlib.contextmanager
def asked_to_stop() -> Iterator[list[signal.Signals]]:
    """Notes Ctrl-C and SIGTERM instead of dying, so that the state can be saved.

    A closed terminal counts as well, unless `nohup` ignores it. A second Ctrl-C ends
    the process at once.
    """
    signals: list[signal.Signals] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        interrupts = 0
        while number := os.read(reader, 1):
            if number[0] != signal.SIGINT:
                continue
            interrupts += 1
            if interrupts == 1:
                _logger.warning(
                    "stopping once this is saved; Ctrl-C again quits at once"
                )
            else:
                os._exit(130)

    # Python runs a handler when the main thread is back from compiling; the pipe is
    # written to at once.
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    wakeup = signal.set_wakeup_fd(writer)
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none.
    if signal.getsignal(hangup) != signal.SIG_IGN:
        numbers.append(hangup)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in before:
        signal.signal(number, lambda n, frame: signals.append(signal.Signals(n)))
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        watcher.join()
        os.close(reader)
