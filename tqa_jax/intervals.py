"""Results of a run with their uncertainty: intervals, comparisons and tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from tqa_jax import logistic as logistic_lib
from tqa_jax import metrics, statistics
from tqa_jax import schema as schema_lib

FEW_SOURCES = 20
"""Sources below which intervals are too narrow to be read without a word."""
Mappings = Mapping[str, logistic_lib.Logistic]


class Difference(NamedTuple):
    """The difference of a metric between two runs, first minus second.

    Attributes:
        value: None when it is undefined.
        reason: why `value`, or its interval and p, is None.
        low: lower end of the 95 % interval.
        high: upper end.
        p: two-sided, of the difference being 0.
        first: the metric of the first run, where there is a difference.
        second: of the second.
    """

    value: float | None
    reason: str = ""
    low: float | None = None
    high: float | None = None
    p: float | None = None
    first: float | None = None
    second: float | None = None


def interval(
    metric: str,
    ready: metrics.Prepared,
    counts: Float[np.ndarray, "1+R N"],
    sources: Sequence[str],
) -> metrics.Value:
    """Computes a metric with its 95 % percentile interval over given resamples.

    Args:
        metric: a name in `metrics.METRICS`.
        ready: scores and labels from `metrics.prepare`.
        counts: from `statistics.resample_sources`; without resamples there is no
            interval.
        sources: source of each clip, empty where no interval is asked for.
    """
    if ready.reason:
        return metrics.Value(None, ready.reason)
    values = metrics.resampled(metric, ready.scores, ready.labels, counts)
    value, draws = values[0], values[1:]
    if math.isnan(value):
        return metrics.Value(None, "not a finite number on these predictions")
    low, high = statistics.interval(draws)
    reason = _reason(draws, sources) if low is None else ""
    return metrics.Value(float(value), reason, low, high)


def figures(
    metric: str,
    scores: Float[np.ndarray, "S N"],
    labels: Float[np.ndarray, " N"],
    counts: Float[np.ndarray, "R N"],
) -> Float[np.ndarray, "S R"]:
    """Computes a figure of each of several runs on each resample.

    Args:
        metric: a name in `metrics.METRICS`; scores and labels are as it takes them (see
            `metrics.prepare`).
        scores: of each run.
        labels: opinion scores; NaN where missing.
        counts: from `statistics.resample_sources`.

    Returns:
        The figures, NaN where undefined; see `metrics.comparable`.
    """
    known = ~np.isnan(labels)
    if known.sum() < metrics.METRICS[metric].minimum:
        return np.full((len(scores), len(counts)), np.nan)
    labels, counts = labels[known].astype(float), counts[:, known]
    rows = np.asarray(scores, float)[:, known]
    return np.array([metrics.comparable(metric, row, labels, counts) for row in rows])


def paired_differences(
    metric: str,
    first: Float[np.ndarray, "N K"],
    second: Float[np.ndarray, "N K"],
    labels: Float[np.ndarray, "N K"],
    sources: Sequence[str],
    tasks: Sequence[schema_lib.Task],
    *,
    logistic: tuple[Mappings, Mappings] = ({}, {}),
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """Compares two runs on the same clips by a paired bootstrap of sources.

    Args:
        metric: a name in `metrics.METRICS`.
        first: predictions of the first run.
        second: predictions of the second run, for the same clips.
        labels: opinion scores; NaN where missing.
        sources: source of each clip.
        tasks: names and score ranges, in the order of the last axis.
        logistic: of both runs, the mapping of each task that was fitted on validation
            clips, for the fitted metrics.
        resamples: number of resamples; p cannot be below 2 / (resamples + 1).
        seed: of the draws, which are the same for all tasks and metrics.

    Returns:
        The metric of the first run minus that of the second for each task, and, last,
        for the mean over the tasks on which both runs have it. In that mean a
        correlation of constant predictions is 0 (see `metrics.comparable`), while the
        task itself has no difference but a reason.

    Raises:
        ValueError: for an unknown metric, or lengths that differ.
    """
    labels = np.asarray(labels, float)
    sources = _check_sources(sources, len(labels))
    counts = statistics.resample_sources(sources, resamples, seed)
    differences, every = [], []
    for k, task in enumerate(tasks):
        known = ~np.isnan(labels[:, k])
        run_scores, reasons, collapsed = [], [], True
        for name, scores, mappings in zip(
            ("first", "second"), (first, second), logistic, strict=True
        ):
            ready = metrics.prepare(
                metric,
                *metrics.present(scores[:, k], labels[:, k]),
                low=task.low,
                high=task.high,
                logistic=mappings.get(task.name),
            )
            run_scores.append(ready.scores)
            if ready.reason:
                reasons.append(f"{name} run: {ready.reason}")
                collapsed &= ready.reason.startswith("predictions are constant")
        if collapsed:
            every.append(
                figures(metric, np.array(run_scores), ready.labels, counts[:, known])
            )
        differences.append(
            Difference(None, reasons[0])
            if reasons
            else _difference(every[-1], sources[known])
        )
    mean = Difference(None, "defined for no task")
    if every:
        mean = _difference(statistics.mean_over_tasks(every), sources)
    return [*differences, mean]


def report(
    scores: Float[np.ndarray, "N K"],
    labels: Float[np.ndarray, "N K"],
    sources: Sequence[str],
    tasks: Sequence[schema_lib.Task],
    *,
    logistic: Mappings | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Computes every metric of every task, ready for `json`.

    Args:
        scores: predictions.
        labels: opinion scores; NaN where missing.
        sources: source of each clip.
        tasks: names and score ranges, in the order of the last axis.
        logistic: mapping of each task, fitted on validation clips.
        resamples: of the bootstrap; 0 for no intervals.
        seed: of the draws; each task starts from it anew.

    Returns:
        `{"tasks": {task: {"n": clips, metric: ...}}, "average": {metric: ...},
        "intervals": {"resamples", "sources", "seed"}}` with metrics as
        `metrics.Value.to_json` gives them. `average` is the mean over the tasks on
        which the metric is defined; its `tasks` says how many those are.

    Raises:
        ValueError: for shapes that do not fit each other.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels, float)
    expected = (len(scores), len(tasks))
    if scores.shape != expected or labels.shape != expected:
        raise ValueError(
            f"scores {scores.shape} and labels {labels.shape} must both be "
            f"(clips, {len(tasks)} tasks)"
        )
    sources = _check_sources(sources, len(scores))
    rows: dict[str, dict[str, Any]] = {}
    for index, task in enumerate(tasks):
        task_scores, task_labels = metrics.present(scores[:, index], labels[:, index])
        known = sources[~np.isnan(labels[:, index])]
        counts = statistics.resample_sources(known, resamples, seed)
        row: dict[str, Any] = {"n": len(known)}
        for name in metrics.METRICS:
            ready = metrics.prepare(
                name,
                task_scores,
                task_labels,
                low=task.low,
                high=task.high,
                logistic=(logistic or {}).get(task.name),
            )
            asked = known if resamples else ()
            row[name] = interval(name, ready, counts, asked).to_json()
        rows[task.name] = row
    drawn = {"resamples": resamples, "sources": len(set(sources)), "seed": seed}
    return {"tasks": rows, "average": _average(rows), "intervals": drawn}


def table(result: Mapping[str, Any]) -> str:
    """Formats what `report` returned for a terminal.

    Args:
        result: from `report`, or read back from its JSON.

    Returns:
        A line a task and one for the average, a line for each reason, and one that
        says what the intervals come from.
    """
    with_interval, alone = ("plcc", "srcc", "rmse"), ("krcc", "mae", "ccc", "qwk")
    names = list(result["tasks"])
    width = max(len(name) for name in [*names, "average"])
    head = f"{'task':<{width}} {'n':>5}"
    head += "".join(f" {name.upper():^19}" for name in with_interval)
    head += "".join(f" {name.upper():>5}" for name in alone)
    lines = [head]
    notes: dict[tuple[str, str], list[str]] = {}  # (task, reason) -> metrics
    for name in names:
        row = result["tasks"][name]
        line = f"{name:<{width}} {row['n']:>5}"
        for metric in with_interval:
            line += f" {_cell(row[metric]):<19}"
        for metric in alone:
            line += f" {_number(row[metric]['value'])}"
        lines.append(line)
        for metric in metrics.METRICS:
            if reason := row[metric].get("reason"):
                notes.setdefault((name, reason), []).append(metric)
    line = f"{'average':<{width}} {'':>5}"
    line += "".join(
        f" {_cell(result['average'][metric]):<19}" for metric in with_interval
    )
    line += "".join(
        f" {_number(result['average'][metric]['value'])}" for metric in alone
    )
    lines.append(line)
    shared: dict[str, list[str]] = {}  # tasks with the same note share a line
    for (name, reason), which in notes.items():
        shared.setdefault(f"{reason} ({', '.join(which)})", []).append(name)
    lines += [f"{', '.join(tasks)}: {note}" for note, tasks in shared.items()]
    drawn = result["intervals"]
    if drawn["resamples"]:
        line = "95 % intervals from {resamples} resamples of {sources} sources"
        few = drawn["sources"] < FEW_SOURCES
        lines.append(line.format(**drawn) + ("; too narrow for so few" if few else ""))
    return "\n".join(line.rstrip() for line in lines)


def _difference(values: np.ndarray, sources: np.ndarray) -> Difference:
    """The difference of two runs' figures (2, 1 + R), with its interval."""
    first, second = map(float, values[:, 0])
    if not math.isfinite(first - second):
        return Difference(None, "not a finite number on these predictions")
    draws = values[0, 1:] - values[1, 1:]
    if len(set(sources)) < statistics.MIN_SOURCES:
        draws = draws[:0]
    tested = statistics.paired(draws)
    reason = _reason(draws, sources) if tested.p is None else ""
    return Difference(first - second, reason, *tested, first, second)


def _reason(draws: np.ndarray, sources: Sequence[str]) -> str:
    """Says why there is no interval."""
    distinct = len(set(sources))
    if 0 < distinct < statistics.MIN_SOURCES:
        found = f"{distinct} source" + ("s" if distinct > 1 else "")
        return f"no interval: {found}; at least {statistics.MIN_SOURCES} needed"
    if not len(draws):
        return ""
    undefined = 1 - np.isfinite(draws).mean()
    return f"no interval: undefined on {undefined:.0%} of resamples"


def _average(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    average: dict[str, Any] = {}
    for metric in metrics.METRICS:
        values = [row[metric]["value"] for row in rows.values()]
        values = [value for value in values if value is not None]
        average[metric] = (
            {"value": float(np.mean(values)), "tasks": len(values)}
            if values
            else {"value": None, "reason": "defined for no task", "tasks": 0}
        )
    return average


def _check_sources(sources: Sequence[str], clips: int) -> np.ndarray:
    result = np.asarray(sources)
    if result.shape != (clips,):
        raise ValueError(f"{len(result)} sources for {clips} clips; expected one each")
    return result


def _number(value: float | None) -> str:
    return f"{'-' if value is None else metrics.text(value):>5}"


def _cell(entry: Mapping[str, Any]) -> str:
    if entry.get("low") is None:
        return _number(entry["value"])
    value, low, high = (_number(entry[key]) for key in ("value", "low", "high"))
    return f"{value} [{low},{high}]"
