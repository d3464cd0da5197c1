"""Scores of clips from a model, and what they are worth.

The one thing to know: a clip's score is the mean over its windows, and every
statistic is over clips.
"""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from tqa_jax import batch as batches
from tqa_jax import intervals, logistic, losses, metrics, output, pipeline, schema

SELECT_METRICS = ("srcc", "plcc", "ccc", "loss")
_HUGE = 1e100  # What is larger is no measurement, and overflows in charts.


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Scores and labels of clips, as in `predictions.csv`; NaN where there is none."""

    tasks: tuple[str, ...]
    clips: np.ndarray  # (N,) of str, as the next two
    sources: np.ndarray
    splits: np.ndarray
    scores: Float[np.ndarray, "N K"]
    labels: Float[np.ndarray, "N K"]
    spread: Float[np.ndarray, "N K"]

    def at(self, rows: np.ndarray, tasks: Sequence[str] = ()) -> "Predictions":
        """Those of some clips, by number or mask; of all tasks, or of those named."""
        tasks = tuple(tasks or self.tasks)
        columns = [self.tasks.index(task) for task in tasks]
        return Predictions(
            tasks,
            *(names[rows] for names in (self.clips, self.sources, self.splits)),
            *(v[rows][:, columns] for v in (self.scores, self.labels, self.spread)),
        )

    def of(self, split: str) -> "Predictions":
        """Those of the clips of a split."""
        return self.at(self.splits == split)


def pooled(
    window_scores: Float[np.ndarray, "*S windows K"], clips: pipeline.Clips
) -> Float[np.ndarray, "*S clips K"]:
    """Averages the scores of each clip's windows."""
    *runs, _, tasks = window_scores.shape
    total = np.zeros((*runs, len(clips.names), tasks))
    np.add.at(total, (..., clips.window_clip, slice(None)), window_scores)
    count = np.bincount(clips.window_clip, minlength=len(clips.names))
    return total / count[:, None]


def predict(
    score: Callable[[Any, batches.Batch], Float[Array, "S B K"]],
    params: Any,
    found: Sequence[batches.Batch] | Any,
    clips: pipeline.Clips,
) -> Float[np.ndarray, "S clips K"]:
    """Scores the clips of a split.

    Args:
        score: compiled `(params, batch) -> scores` of each member or draw.
        params: of the model.
        found: all windows in stored order, in batches (see `pipeline.in_order`).
        clips: of the split.
    """
    rows = np.concatenate([np.asarray(score(params, one)) for one in found], axis=1)
    return pooled(rows[:, : len(clips.window_clip)], clips)


def validate(
    scores: Float[np.ndarray, "clips K"],
    labels: Float[np.ndarray, "clips K"],
    tasks: Sequence[schema.Task],
    *,
    l1_weight: float = 0.1,
) -> dict[str, dict[str, float | None]]:
    """Computes the figures of one validation.

    Returns:
        `loss`, `srcc`, `plcc` and `ccc` by task, None where undefined.
    """
    sums, counts = losses.task_loss_sums(
        scores,
        labels,
        np.isfinite(labels),
        l1_weight=l1_weight,
        units=np.array([task.unit for task in tasks]),
    )
    means = np.asarray(losses.mean(sums, counts)).tolist()
    found: dict[str, dict[str, float | None]] = {
        "loss": {
            task.name: mean if count else None
            for task, mean, count in zip(tasks, means, counts.tolist(), strict=True)
        }
    }
    for metric in ("srcc", "plcc", "ccc"):
        found[metric] = {
            task.name: metrics.measure(
                metric, scores[:, k], labels[:, k], low=task.low, high=task.high
            ).value
            for k, task in enumerate(tasks)
        }
    return found


def selection(
    figures: Mapping[str, Mapping[str, float | None]],
    *,
    metric: str,
    weights: Mapping[str, float],
) -> list[float | None]:
    """Turns a validation into what selects the best parameters.

    Args:
        figures: from `validate`.
        metric: one of `SELECT_METRICS`.
        weights: by task, for the mean; empty weighs all tasks equally.

    Returns:
        The weighted mean over the tasks on whose labels the metric is defined (see
        `metrics.counted`), then the metric of each task. Larger is better; None where
        undefined.
    """
    sign = -1.0 if metric == "loss" else 1.0
    values = {
        name: None if value is None else sign * value
        for name, value in figures[metric].items()
    }
    counted = {
        name: number
        for name, value in values.items()
        if (number := metrics.counted(value, figures["ccc"][name])) is not None
    }
    shares = {name: weights.get(name, 0.0) if weights else 1.0 for name in counted}
    total = sum(shares.values())
    mean = None
    if total > 0:
        mean = sum(shares[name] * value for name, value in counted.items()) / total
    return [mean, *values.values()]


def choose_metric(
    metric: str,
    labels: Float[np.ndarray, "clips K"],
    tasks: Sequence[schema.Task],
    weights: Mapping[str, float],
) -> str:
    """Decides, before training, what selects the best epoch.

    Args:
        metric: the one asked for, of `SELECT_METRICS`.
        labels: of the validation clips.
        tasks: of the data set.
        weights: see `selection`; tasks of weight 0 are not selected by.

    Returns:
        `metric`, or `loss` when no selected task has 3 different labels, which
        leaves every correlation undefined.

    Raises:
        InputError: without any label to select by.
    """
    different = [
        np.unique(column[np.isfinite(column)]).size
        for task, column in zip(tasks, labels.T, strict=True)
        if not weights or weights.get(task.name, 0) > 0
    ]
    if not any(different):
        raise schema.InputError(
            "the validation split has no label of a selected task, so no epoch could "
            "be the best; label some of its clips or change train.select_weights"
        )
    return metric if max(different) >= 3 else "loss"


def final(
    *,
    validation: tuple[Float[np.ndarray, "V K"], Float[np.ndarray, "V K"]],
    test: tuple[Float[np.ndarray, "N K"], Float[np.ndarray, "N K"]],
    sources: Sequence[str],
    tasks: Sequence[schema.Task],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Computes the final results on the test split.

    Args:
        validation: scores and labels of validation clips, for the logistic mapping.
        test: scores and labels of test clips.
        sources: of the test clips.
        tasks: of the data set.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        What `intervals.report` returns.
    """
    return intervals.report(
        *test,
        sources,
        tasks,
        logistic=fit(*validation, tasks),
        resamples=resamples,
        seed=seed,
    )


def fit(
    scores: Float[np.ndarray, "V K"],
    labels: Float[np.ndarray, "V K"],
    tasks: Sequence[schema.Task],
) -> dict[str, logistic.Logistic]:
    """Fits the logistic mapping of each task on validation clips."""
    return {
        task.name: logistic.fit(
            scores[:, k], labels[:, k], low=task.low, high=task.high
        )
        for k, task in enumerate(tasks)
    }


def write_predictions(
    path: pathlib.Path,
    splits: Mapping[
        str,
        tuple[
            pipeline.Clips,
            Float[np.ndarray, "N K"],
            Float[np.ndarray, "N K"] | None,
        ],
    ],
    tasks: Sequence[schema.Task],
) -> None:
    """Writes `clip,source,split,<task>_score,<task>_label,<task>_spread,...`.

    Args:
        path: of the CSV, written atomically.
        splits: by name: clips, their scores, and the scores' spread or None. Numbers
            have the digits that give them back.
        tasks: of the data set.
    """
    kinds = ("score", "label", "spread")
    columns = [f"{task.name}_{kind}" for task in tasks for kind in kinds]
    rows = []
    for split, (clips, scores, spread) in splits.items():
        for number, name in enumerate(clips.names):
            cells = []
            for k, label in enumerate(clips.labels[number]):
                cells += [
                    str(scores[number, k]),
                    "" if np.isnan(label) else str(label),
                    "" if spread is None else str(spread[number, k]),
                ]
            rows.append([name, clips.sources[number], split, *cells])
    output.write(path, output.table(["clip", "source", "split", *columns], rows))


def read_predictions(
    path: pathlib.Path, tasks: Sequence[str] | None = None
) -> Predictions:
    """Reads what `write_predictions` wrote.

    Args:
        path: of the CSV.
        tasks: in the order that is wanted; None for those that it has.

    Raises:
        InputError: when it is missing, damaged or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows, header = list(reader), reader.fieldnames or []
        if not header:
            raise ValueError("it is empty")
        for number, row in enumerate(rows, 2):
            if None in row or None in row.values():
                raise ValueError(
                    f"row {number} has another number of cells than the header"
                )
        if tasks is None:
            ends = (key for key in header if key.endswith("_score"))
            tasks = [key.removesuffix("_score") for key in ends]
        names = [
            np.array([row[key] for row in rows], object)
            for key in ("clip", "source", "split")
        ]
        numbers = [
            np.array(
                [[_number(row[f"{task}_{kind}"]) for row in rows] for task in tasks]
            ).reshape(len(tasks), len(rows))
            for kind in ("score", "label", "spread")
        ]
        return Predictions(tuple(tasks), *names, *(each.T for each in numbers))
    except KeyError as error:
        raise schema.InputError(f"{path} is damaged: no {error}") from error
    except (OSError, ValueError, csv.Error) as error:
        raise schema.InputError(f"{path} is damaged: {error}") from error


def _number(text: str) -> float:
    value = float(text) if text else math.nan
    return value if abs(value) < _HUGE else math.nan
