"""A whole run: from a configuration and a data set to results.

The one thing to know: this is the last module that sees a `ConfigDict`. A run is a
sequence of segments, each one compiled program over many steps; between segments it
validates, logs and saves, and a resumed run goes through the same segments.
"""

import contextlib
import json
import logging
import pathlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm

from tqa_jax import (
    assemble,
    audit,
    evaluate,
    pipeline,
    prepare,
    run_folder,
    runner,
    schema,
    trial,
)

_logger = logging.getLogger(__name__)


def run(
    config: ml_collections.ConfigDict, *, data_path: pathlib.Path, workdir: pathlib.Path
) -> dict[str, Any]:
    """Trains and evaluates, continuing a run that was interrupted.

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
    """
    assemble.check(config)
    new = run_folder.claim(workdir, config.to_dict(), data_path)
    if (workdir / "results.json").exists():
        _logger.info("%s holds a finished run; showing its results", workdir)
        return json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    try:
        trainer = _open(config, data_path, workdir)
    except schema.InputError:
        # Nothing was trained: the corrected command may use the same folder.
        if new:
            shutil.rmtree(workdir)
        raise
    with contextlib.closing(trainer):
        trainer.train()
        return trainer.finish()


def _open(
    config: ml_collections.ConfigDict, data_path: pathlib.Path, workdir: pathlib.Path
) -> "_Trainer":
    """Audits and prepares the data set and builds what trains on it."""
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
    data = prepare.open_dataset(
        data_path,
        modalities=config.model.modalities,
        pca=config.preprocess.pca,
        winsorise=config.preprocess.winsorise,
        max_frames=config.data.max_frames,
        memory_bytes=config.data.memory_gb * 2**30,
        fitted=workdir / "preprocess.npz",
    )
    return _Trainer(
        config, data, data.split("train"), data.split("validation"), workdir
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
    ) -> None:
        self._trial = trial.Trial(config, data, train, validation, workdir)
        self._parts = assemble.build(
            config,
            data,
            labels=train.clips.labels,
            steps_per_epoch=self._trial.steps_per_epoch,
        )
        batch_size, devices = config.train.batch_size, len(jax.local_devices())
        if batch_size % devices:
            raise schema.InputError(
                f"train.batch_size {batch_size} does not divide over {devices} devices"
            )
        self._runner = runner.Runner(self._parts.step, train)
        self._score = jax.jit(self._parts.score)
        self._validation = validation
        self._trial.start(self._parts.init(config.seed))
        self._bar = tqdm.tqdm(
            total=config.train.epochs * self._trial.steps_per_epoch,
            initial=self._trial.step,
            unit="step",
            disable=not sys.stderr.isatty(),
        )
        _logger.info(
            "%d parameters, %d training windows of %d clips, %d steps an epoch, "
            "best by validation %s",
            sum(leaf.size for leaf in jax.tree.leaves(self._trial.state.params)),
            train.size,
            len(train.clips.names),
            self._trial.steps_per_epoch,
            self._trial.metric,
        )

    def train(self) -> None:
        """Trains until the last epoch or an early stop."""
        one, runner = self._trial, self._runner
        with sigterm() as asked_to_stop, self._bar:
            while not one.done:
                rows = one.next_rows()
                whole = one.took(*runner.run(runner.place(one.state), rows))
                self._bar.update(len(rows))
                if whole:
                    one.validated(self._validate(), runner.temp_bytes)
                    self._say()
                if asked_to_stop():
                    one.save()
                    raise trial.Stopped(
                        f"stopped by SIGTERM after step {one.step}; the same command "
                        "continues"
                    )
                one.save_if_due()

    def _validate(self) -> np.ndarray:
        order = pipeline.in_order(
            self._validation.size, self._trial.config.train.batch_size
        )
        return evaluate.predict(
            self._score,
            self._trial.state.params,
            self._validation.batches(order),
            self._validation.clips,
        ).mean(axis=0)

    def _say(self) -> None:
        self._bar.set_postfix_str(self._trial.said)
        if self._bar.disable:
            _logger.info(
                "epoch %d of %d: %s",
                int(self._trial.state.progress.epoch),
                self._trial.config.train.epochs,
                self._trial.said,
            )

    def finish(self) -> dict[str, Any]:
        """Evaluates the best parameters on the test split, once."""
        return self._trial.finish(self._parts)

    def close(self) -> None:
        """Finishes what is being written."""
        self._trial.close()


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
    """Notes SIGTERM instead of dying, so that the state can be saved."""
    asked = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)
