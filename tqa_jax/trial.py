"""One run between its compiled segments: what it logs, validates, keeps and saves.

The one thing to know: a trial does not train. It says which batches come next, takes
what came out of them, and decides what a run decides: the best epoch, an early stop,
when to save. So one run and a whole sweep are the same to their folders. A sweep keeps
the arrays of all its runs together: its trials look at counters only, and fetch the
arrays when they are to be saved.
"""

import collections
import json
import logging
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from tqa_jax import (
    assemble,
    checkpoint,
    cli,
    conclude,
    evaluate,
    pipeline,
    prepare,
    progress,
    run_folder,
    runner,
    train_step,
)

_logger = logging.getLogger(__name__)
_EXPLODING = 20.0  # times the median gradient norm
_SAVE_SECONDS = 120.0  # Saves at least this often, if a segment ends.


class Stopped(cli.Stopped):
    """Training ended before its time; the state is saved and the message says why."""


class Trial:
    """The bookkeeping of one run.

    Attributes:
        config: of the run.
        workdir: its folder.
        state: of training, on the host or on devices; of a sweep, its counters only.
        improved: whether the latest validation was the best so far.
        step: steps taken.
        said: the latest validation in a few words.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        data: prepare.Dataset,
        train: prepare.Split,
        validation: prepare.Split,
        workdir: pathlib.Path,
        devices: runner.Devices | None = None,
    ) -> None:
        """Takes what a run is about; `start` comes next.

        Args:
            config: see `configs/default.py`.
            data: the data set.
            train: its training split.
            validation: its validation split.
            workdir: folder of the run, claimed.
            devices: that train it, and their processes, of which one writes the
                folder; None for those of this process.
        """
        self.config = config
        self.workdir = workdir
        self.said = ""
        self.improved = False
        self._data = data
        self._train = train
        self._validation = validation
        self._tasks = data.info.schema.tasks
        self.steps_per_epoch = len(self._order(0))
        self.metric = evaluate.choose_metric(
            config.train.select_metric,
            validation.clips.labels,
            self._tasks,
            config.train.select_weights,
        )
        if self.metric != config.train.select_metric:
            _logger.warning(
                "validation labels are too few for a correlation (fewer than 3 "
                "different ones in every selected task): the best epoch is chosen by "
                "validation loss"
            )
        self.devices = devices or runner.Devices()
        self._group = self.devices.group
        # None in a process that does not write.
        self._checkpoints: checkpoint.Checkpoints | None = None
        self._norms: collections.deque[float] = collections.deque(maxlen=100)
        self._log: run_folder.MetricsLog | None = None
        self._fetch: Callable[[], tuple[train_step.State, Any]] | None = None

    def start(
        self,
        state: train_step.State,
        fetch: Callable[[], tuple[train_step.State, Any]] | None = None,
    ) -> tuple[train_step.State, Any]:
        """Takes the first state, or the one of the latest checkpoint in its place.

        Args:
            state: the first one.
            fetch: returns the state and the best parameters, where another keeps them.

        Returns:
            The state and the best parameters to go on with.
        """
        first = checkpoint.Saved(state, state.params, jnp.zeros((), jnp.int32))
        saved = self._group.arrays_from_writer(first, lambda: self._open(first))
        self._fetch = fetch
        self.state = saved.state if fetch is None else _counters(saved.state)
        self._best = None if fetch else jax.tree.map(jnp.array, saved.best)
        self._best_epoch = int(saved.best_epoch)
        self._saved_step, self._saved_at = self.step, time.monotonic()
        self._began, self._clips = time.monotonic(), 0
        return saved.state, saved.best

    def _open(self, first: checkpoint.Saved) -> checkpoint.Saved:
        """Opens the files of the run; returns what it starts from."""
        self._checkpoints = checkpoint.Checkpoints(self.workdir / "checkpoints")
        saved = self._checkpoints.restore(first) or first
        if saved is not first:
            _logger.info("continuing from step %d", saved.state.step)
        self._log = run_folder.MetricsLog(
            self.workdir,
            from_step=int(saved.state.step),
            tensorboard=self.config.log.tensorboard,
            tasks=self._data.info.schema.task_names,
        )
        return saved

    @property
    def step(self) -> int:
        """Steps taken, skipped ones included."""
        return int(self.state.step)

    @property
    def total_steps(self) -> int:
        """Steps of the run unless it stops early."""
        return self.config.train.epochs * self.steps_per_epoch

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train."""
        config = self.config.train
        epoch = int(self.state.progress.epoch)
        return (
            epoch >= config.epochs
            or int(self.state.progress.since[0]) >= config.patience
        )

    def _order(self, epoch: int) -> np.ndarray:
        return pipeline.order(
            self._train.size,
            self.config.train.batch_size,
            seed=self.config.seed,
            epoch=epoch,
        )

    def next_rows(self) -> np.ndarray:
        """Rows of each batch of the next segment (S, B), all of one epoch."""
        epoch = int(self.state.progress.epoch)
        first = self.step - epoch * self.steps_per_epoch
        every = self.config.train.checkpoint_every
        return self._order(epoch)[first : first + every]

    def took(self, state: train_step.State, metrics: dict[str, np.ndarray]) -> bool:
        """Notes a segment.

        Args:
            state: after it.
            metrics: of its steps, leading axis S.

        Returns:
            Whether the epoch is complete; then `validated` comes next.

        Raises:
            Stopped: when too many steps in a row were not finite.
        """
        self.state = state if self._fetch is None else _counters(state)
        epoch = int(state.progress.epoch)
        self._log_steps(epoch, metrics)
        self._clips += len(metrics["total"]) * self.config.train.batch_size
        self._check_finite(metrics)
        return self.step == (epoch + 1) * self.steps_per_epoch

    def _check_finite(self, metrics: dict[str, np.ndarray]) -> None:
        row = int(self.state.skipped)
        if row < self.config.train.max_skipped:
            return
        self.save()
        what = self._not_finite({key: rows[-1] for key, rows in metrics.items()})
        raise Stopped(
            f"step {self.step}: {what} was not finite for {row} steps in a "
            "row; look at the audit, lower optim.learning_rate or use "
            "model.dtype=float32"
        )

    def _not_finite(self, metrics: dict[str, np.ndarray]) -> str:
        """What was not finite in a step that was skipped."""
        causes = run_folder.not_finite(metrics)
        names = [t.name for t, cause in zip(self._tasks, causes, strict=True) if cause]
        return f"task {', '.join(names)}" if names else "the gradient of the trunk"

    def _log_steps(self, epoch: int, metrics: dict[str, np.ndarray]) -> None:
        first = self.step - len(metrics["total"]) + 1
        names = self._data.info.schema.task_names
        stalls = np.asarray(self.state.progress.stalls[1:])
        factors = np.array(assemble.task_factors(self.config, names))
        factors = factors * self.config.optim.plateau_drop**stalls
        for number in range(len(metrics["total"])):
            one = {name: values[number] for name, values in metrics.items()}
            step = first + number
            if one["skipped"]:
                cause = self._not_finite(one)
                _logger.warning("step %d skipped: %s was not finite", step, cause)
            self._watch(step, float(one["grad_norm"]))
            due = one["skipped"] or step % self.config.train.log_every == 0
            if self._log and due:
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

    def validated(self, scores: np.ndarray, temp_bytes: int | None) -> None:
        """Notes the scores of validation clips at the end of an epoch.

        Args:
            scores: (clips, K).
            temp_bytes: working memory of the compiled program.
        """
        epoch = int(self.state.progress.epoch)
        clips_per_second = self._clips / max(time.monotonic() - self._began, 1e-9)
        labels = self._validation.clips.labels
        figures = evaluate.validate(
            scores, labels, self._tasks, l1_weight=self.config.loss.l1_weight
        )
        values = evaluate.selection(
            figures,
            metric=self.metric,
            weights=self.config.train.select_weights.to_dict(),
        )
        advanced = progress.advance(
            self.state.progress,
            values,
            patience=self.config.optim.plateau_patience,
            least=self.config.train.min_improvement,
        )
        self.state = self.state.replace(progress=advanced)
        self.improved = best = int(advanced.since[0]) == 0
        if best:
            self._best_epoch = epoch + 1
        if best and self._fetch is None:
            # A copy: the next segment reuses the memory of the parameters.
            self._best = jax.tree.map(jnp.copy, self.state.params)
        selected = self._as_measured(values[0])
        value = "undefined" if selected is None else f"{selected:.3f}"
        self.said = (
            f"validation {self.metric} {value}{' (best)' if best else ''}, "
            f"{clips_per_second:.0f} clips/s"
        )
        stats = jax.local_devices()[0].memory_stats() or {}
        line = {
            f"{metric}/{task}": value
            for metric, by_task in figures.items()
            for task, value in by_task.items()
        }
        if self._log:
            self._log.write(
                step=self.step,
                epoch=epoch + 1,
                split="validation",
                **line,
                selection=selected,
                best=best,
                correlation={
                    "predictions": prepare.label_statistics(scores)[1].tolist(),
                    "labels": prepare.label_statistics(labels)[1].tolist(),
                },
                clips_per_second=clips_per_second,
                **{
                    "memory/temp_bytes": temp_bytes,
                    "memory/peak_bytes": stats.get("peak_bytes_in_use"),
                },
            )
        self._began, self._clips = time.monotonic(), 0

    def _as_measured(self, selection: float | None) -> float | None:
        """The metric that selects, of which a selection is the larger the better."""
        if selection is None or self.metric != "loss":
            return selection
        return -selection

    def save_if_due(self) -> None:
        """Saves when `train.checkpoint_every` steps or two minutes have passed."""
        steps = self.step - self._saved_step
        seconds = time.monotonic() - self._saved_at
        if steps >= self.config.train.checkpoint_every or seconds >= _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Saves the state, if it is not saved yet."""
        if self.step != self._saved_step:
            if self._checkpoints:
                saved = checkpoint.Saved(
                    *self._arrays(), best_epoch=jnp.int32(self._best_epoch)
                )
                self._log.sync()
                self._checkpoints.save(self.step, saved)
            self._saved_step, self._saved_at = self.step, time.monotonic()

    def _arrays(self) -> tuple[train_step.State, Any]:
        """The state and the best parameters."""
        if self._fetch is None:
            return self.state, self._best
        state, best = self._fetch()
        return state.replace(progress=self.state.progress), best

    def finish(self, parts: assemble.Parts) -> dict[str, Any]:
        """Evaluates the best parameters on the test split, once.

        Args:
            parts: of the run.

        Returns:
            The content of `results.json`.

        Raises:
            Stopped: when no epoch is the best.
        """
        self.save()
        if self._checkpoints:
            self._checkpoints.wait()  # Whoever is killed from here loses nothing.
        if not self._best_epoch:
            raise Stopped(
                "no validation gave a finite value, so no epoch is the best; see "
                f"{self.workdir / 'metrics.jsonl'}"
            )
        results = conclude.conclude(
            self.workdir,
            config=self.config,
            data=self._data,
            train=self._train,
            validation=self._validation,
            parts=parts,
            params=self._arrays()[1],
            devices=self.devices,
        )
        if self._group.writes:
            results["selected"] = {
                "epoch": self._best_epoch,
                "metric": self.metric,
                "value": self._as_measured(float(self.state.progress.best[0])),
            }
            run_folder.write_json(self.workdir / "results.json", results)
        return json.loads(self._group.from_writer(lambda: json.dumps(results).encode()))

    def close(self) -> None:
        """Finishes what is being written."""
        if self._checkpoints is not None:
            self._checkpoints.close()
        if self._log is not None:
            self._log.close()


def _counters(state: train_step.State) -> train_step.State:
    """What a trial looks at, without the large arrays."""
    return state.replace(
        seed=None, params=None, opt_state=None, weighting=None, loss_scale=None
    )
