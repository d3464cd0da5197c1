"""A whole run: from a configuration and a data set to results.

The one thing to know: this is the last module that sees a `ConfigDict`. A run is a
sequence of segments, each one compiled program over many steps; between segments it
validates, logs and saves, and a resumed run goes through the same segments.
"""

import collections
import contextlib
import json
import logging
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from tqa_jax import (
    assemble,
    audit,
    checkpoint,
    conclude,
    evaluate,
    pipeline,
    prepare,
    progress,
    run_folder,
    runner,
    schema,
)

_logger = logging.getLogger(__name__)
_EXPLODING = 20.0  # times the median gradient norm


class Stopped(RuntimeError):
    """Training ended before its time; the state is saved and the message says why."""


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
        Stopped: on SIGTERM, or when the loss stays non-finite; the state is saved.
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
    """The loop around the compiled segments, and its files."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        data: prepare.Dataset,
        train: prepare.Split,
        validation: prepare.Split,
        workdir: pathlib.Path,
    ) -> None:
        self._config = config
        self._data = data
        self._train = train
        self._validation = validation
        self._workdir = workdir
        self._tasks = data.info.schema.tasks
        self._steps_per_epoch = len(self._order(0))
        self._metric = evaluate.choose_metric(
            config.train.select_metric,
            validation.clips.labels,
            self._tasks,
            config.train.select_weights,
        )
        if self._metric != config.train.select_metric:
            _logger.warning(
                "validation labels are too few for a correlation (fewer than 3 "
                "different ones in every selected task): the best epoch is chosen by "
                "validation loss"
            )
        parts = assemble.build(
            config,
            data,
            labels=train.clips.labels,
            steps_per_epoch=self._steps_per_epoch,
        )
        batch_size, devices = config.train.batch_size, len(jax.local_devices())
        if batch_size % devices:
            raise schema.InputError(
                f"train.batch_size {batch_size} does not divide over {devices} devices"
            )
        self._runner = runner.Runner(parts.step, train)
        self._score = jax.jit(parts.score)
        self._parts = parts
        self._checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
        state = parts.init(config.seed)
        start = checkpoint.Saved(state, state.params, jnp.zeros((), jnp.int32))
        if self._checkpoints.latest_step() is not None:
            start = self._checkpoints.restore(start)
            _logger.info("continuing from step %d", start.state.step)
        self._state = self._runner.place(start.state)
        self._best = jax.tree.map(jnp.array, start.best)
        self._best_epoch = int(start.best_epoch)
        self._saved_step = int(start.state.step)
        self._norms: collections.deque[float] = collections.deque(maxlen=100)
        self._bar = tqdm.tqdm(
            total=config.train.epochs * self._steps_per_epoch,
            initial=self._saved_step,
            unit="step",
            disable=not sys.stderr.isatty(),
        )
        self._log = run_folder.MetricsLog(
            workdir, from_step=self._saved_step, tensorboard=config.log.tensorboard
        )
        _logger.info(
            "%d parameters, %d training windows of %d clips, %d steps an epoch, "
            "best by validation %s",
            sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            train.size,
            len(train.clips.names),
            self._steps_per_epoch,
            self._metric,
        )

    def _order(self, epoch: int) -> np.ndarray:
        return pipeline.order(
            self._train.size,
            self._config.train.batch_size,
            seed=self._config.seed,
            epoch=epoch,
        )

    def train(self) -> None:
        """Trains until the last epoch or an early stop."""
        config = self._config.train
        with _sigterm() as asked_to_stop, self._bar:
            for epoch in range(int(self._state.progress.epoch), config.epochs):
                if int(self._state.progress.since[0]) >= config.patience:
                    _logger.info(
                        "stopped early: no better %s for %d epochs",
                        self._metric,
                        config.patience,
                    )
                    break
                self._epoch(epoch, asked_to_stop)
        self._save()

    def _epoch(self, epoch: int, asked_to_stop: Callable[[], bool]) -> None:
        order = self._order(epoch)
        done = int(self._state.step) - epoch * self._steps_per_epoch
        every = self._config.train.checkpoint_every
        began, clips = time.monotonic(), 0
        for start in range(done, len(order), every):
            rows = order[start : start + every]
            self._state, metrics = self._runner.run(self._state, rows)
            self._log_steps(epoch, metrics)
            self._bar.update(len(rows))
            clips += rows.size
            self._check_finite(metrics)
            last = start + every >= len(order)
            if not last:
                self._save_if_due(asked_to_stop())
        self._validate(epoch, clips / max(time.monotonic() - began, 1e-9))
        self._save_if_due(asked_to_stop())

    def _save_if_due(self, stop: bool) -> None:
        step = int(self._state.step)
        if stop or step - self._saved_step >= self._config.train.checkpoint_every:
            self._save()
        if stop:
            raise Stopped(
                f"stopped by SIGTERM after step {step}; the same command continues"
            )

    def _save(self) -> None:
        step = int(self._state.step)
        if step != self._saved_step:
            saved = checkpoint.Saved(
                self._state, self._best, jnp.int32(self._best_epoch)
            )
            self._checkpoints.save(step, saved)
            self._saved_step = step

    def _check_finite(self, metrics: dict[str, np.ndarray]) -> None:
        row = int(self._state.skipped)
        if row < self._config.train.max_skipped:
            return
        self._save()
        names = [
            task.name
            for k, task in enumerate(self._tasks)
            if not np.isfinite(metrics["loss"][-1, k])
            or not np.isfinite(metrics["task_grad_norm"][-1, k])
        ]
        what = f"task {', '.join(names)}" if names else "the gradient of the trunk"
        raise Stopped(
            f"step {int(self._state.step)}: {what} was not finite for {row} steps in a "
            "row; look at the audit, lower optim.learning_rate or use "
            "model.dtype=float32"
        )

    def _log_steps(self, epoch: int, metrics: dict[str, np.ndarray]) -> None:
        first = int(self._state.step) - len(metrics["total"]) + 1
        names = self._data.info.schema.task_names
        stalls = np.asarray(self._state.progress.stalls[1:])
        factors = np.array(assemble.task_factors(self._config, names))
        factors = factors * self._config.optim.plateau_drop**stalls
        for number in range(len(metrics["total"])):
            one = {name: values[number] for name, values in metrics.items()}
            step = first + number
            if one["skipped"]:
                _logger.warning("step %d skipped: not finite", step)
            self._watch(step, float(one["grad_norm"]))
            if step % self._config.train.log_every == 0:
                line = run_folder.step_line(one, names, factors)
                self._log.write(step=step, epoch=epoch + 1, split="train", **line)

    def _watch(self, step: int, norm: float) -> None:
        """Warns of a gradient far larger than the latest ones."""
        usual = float(np.median(self._norms)) if len(self._norms) >= 20 else np.inf
        if norm > _EXPLODING * usual:
            _logger.warning(
                "step %d: gradient norm %.3g, %.3g is usual", step, norm, usual
            )
        self._norms.append(norm)

    def _validate(self, epoch: int, clips_per_second: float) -> None:
        labels = self._validation.clips.labels
        order = pipeline.in_order(self._validation.size, self._config.train.batch_size)
        scores = evaluate.predict(
            self._score,
            self._state.params,
            self._validation.batches(order),
            self._validation.clips,
        ).mean(axis=0)
        figures = evaluate.validate(
            scores, labels, self._tasks, l1_weight=self._config.loss.l1_weight
        )
        values = evaluate.selection(
            figures,
            metric=self._metric,
            weights=self._config.train.select_weights.to_dict(),
        )
        advanced = progress.advance(
            self._state.progress,
            values,
            patience=self._config.optim.plateau_patience,
            least=self._config.train.min_improvement,
        )
        self._state = self._state.replace(progress=self._runner.place(advanced))
        best = int(advanced.since[0]) == 0
        if best:
            # A copy: the next segment reuses the memory of the parameters.
            self._best = jax.tree.map(jnp.copy, self._state.params)
            self._best_epoch = epoch + 1
        sign = -1 if self._metric == "loss" else 1  # selection: larger is better
        value = "undefined" if values[0] is None else f"{sign * values[0]:.3f}"
        said = f"validation {self._metric} {value}{' (best)' if best else ''}"
        self._bar.set_postfix_str(said)
        if self._bar.disable:
            _logger.info(
                "epoch %d of %d: %s, %.0f clips/s",
                epoch + 1,
                self._config.train.epochs,
                said,
                clips_per_second,
            )
        stats = jax.local_devices()[0].memory_stats() or {}
        line = {
            f"{metric}/{task}": value
            for metric, by_task in figures.items()
            for task, value in by_task.items()
        }
        self._log.write(
            step=int(self._state.step),
            epoch=epoch + 1,
            split="validation",
            **line,
            selection=values[0],
            best=best,
            correlation={
                "predictions": prepare.label_statistics(scores)[1].tolist(),
                "labels": prepare.label_statistics(labels)[1].tolist(),
            },
            clips_per_second=clips_per_second,
            **{
                "memory/temp_bytes": self._runner.temp_bytes,
                "memory/peak_bytes": stats.get("peak_bytes_in_use"),
            },
        )

    def finish(self) -> dict[str, Any]:
        """Evaluates the best parameters on the test split, once."""
        if not self._best_epoch:
            raise Stopped(
                "no validation gave a finite value, so no epoch is the best; see "
                f"{self._workdir / 'metrics.jsonl'}"
            )
        results = conclude.conclude(
            self._workdir,
            config=self._config,
            data=self._data,
            train=self._train,
            validation=self._validation,
            parts=self._parts,
            params=self._best,
        )
        results["selected"] = {
            "epoch": self._best_epoch,
            "metric": self._metric,
            "value": float(self._state.progress.best[0]),
        }
        # With results the run counts as finished: its checkpoint must be whole by then.
        self._checkpoints.wait()
        run_folder.write_json(self._workdir / "results.json", results)
        return results

    def close(self) -> None:
        """Finishes what is being written."""
        self._checkpoints.close()
        self._log.close()


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Notes SIGTERM instead of dying, so that the state can be saved."""
    asked = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)
