"""Results of a run with their uncertainty: intervals, comparisons and tables.

The one thing to know: clips of one source (speaker or source video) are not
independent, so resamples draw whole sources; over clips, intervals are too narrow.
With few sources they still are: where 95 % are asked for, a simulation with dependent
clips found 78-88 % with 5 sources, 84-90 % with 10, 87-91 % with 20 and 94 % with 50
(over clips: 71-80 %).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from tqa_jax import logistic as logistic_lib
from tqa_jax import metrics
from tqa_jax import schema as schema_lib

_CELLS = 2_000_000  # resamples x clips that are worked on at a time
_UNDEFINED = 0.1  # share of resamples that may leave a metric undefined
MIN_SOURCES = 3
"""Sources without which resampling them gives no interval."""
_FEW_SOURCES = 20
_LEVEL = (2.5, 97.5)  # percentiles


class Difference(NamedTuple):
    """The difference of a metric between two runs, first minus second.

    Attributes:
        value: None when it is undefined.
        reason: why `value`, or its interval and p, is None.
        low: lower end of the 95 % interval.
        high: upper end.
        p: two-sided, of the difference being 0.
    """

    value: float | None
    reason: str = ""
    low: float | None = None
    high: float | None = None
    p: float | None = None


def source_counts(
    sources: Sequence[str], *, resamples: int, rng: np.random.Generator
) -> Float[np.ndarray, "R N"]:
    """Draws resamples of sources with replacement; every draw takes all its clips.

    Args:
        sources: source of each clip.
        resamples: number of resamples.
        rng: where the draws come from.

    Returns:
        How often each clip stands in each resample. Depends on the set of sources,
        not on the order of the clips.
    """
    names, inverse = np.unique(np.asarray(sources), return_inverse=True)
    shares = np.full(len(names), 1 / len(names))
    drawn = rng.multinomial(len(names), shares, size=resamples)  # (R, sources)
    return drawn[:, inverse].astype(float)


def interval(
    metric: str,
    ready: metrics.Prepared,
    counts: Float[np.ndarray, "R N"],
    sources: Sequence[str],
) -> metrics.Value:
    """Computes a metric with its 95 % percentile interval over given resamples.

    Args:
        metric: a name in `metrics.METRICS`.
        ready: scores and labels from `metrics.prepare`.
        counts: from `source_counts`; without rows there is no interval.
        sources: source of each clip.
    """
    if ready.reason:
        return metrics.Value(None, ready.reason)
    value = _plain(metric, ready)
    if math.isnan(value):
        return metrics.Value(None, "not a finite number on these predictions")
    if not len(counts):
        return metrics.Value(value)
    reason, draws = _draws([(metric, ready)], counts, sources)
    if reason:
        return metrics.Value(value, reason)
    low, high = np.percentile(draws[0], _LEVEL)
    return metrics.Value(value, low=float(low), high=float(high))


def paired_difference(
    metric: str,
    scores_a: Float[np.ndarray, " N"],
    scores_b: Float[np.ndarray, " N"],
    labels: Float[np.ndarray, " N"],
    sources: Sequence[str],
    *,
    low: float = 1.0,
    high: float = 5.0,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Compares two runs on the same clips by a paired bootstrap of sources.

    For the fitted metrics map the scores first (`logistic.apply`) and compare
    `plcc` or `rmse`.

    Args:
        metric: a name in `metrics.METRICS`, not a fitted one.
        scores_a: predictions of the first run.
        scores_b: predictions of the second run, for the same clips.
        labels: opinion scores; NaN where missing.
        sources: source of each clip.
        low: lower end of the score range.
        high: upper end.
        resamples: number of resamples; p cannot be below 2 / (resamples + 1).
        seed: of the draws.

    Returns:
        The metric of the first run minus that of the second.

    Raises:
        ValueError: for an unknown or fitted metric, or lengths that differ.
    """
    if metric in metrics.METRICS and metrics.METRICS[metric].fitted:
        raise ValueError(
            f"{metric!r} needs a mapping; apply `logistic.apply` to the scores "
            f"and compare {metric.removesuffix('_fit')!r}"
        )
    labels = np.asarray(labels, float)
    sources = _check_sources(sources, len(labels))[~np.isnan(labels)]
    runs = []
    for run, scores in (("first", scores_a), ("second", scores_b)):
        ready = metrics.prepare(
            metric, *metrics.present(scores, labels), low=low, high=high
        )
        if ready.reason:
            return Difference(None, f"{run} run: {ready.reason}")
        runs.append((metric, ready))
    value = _plain(*runs[0]) - _plain(*runs[1])
    if not math.isfinite(value):
        return Difference(None, "not a finite number on these predictions")
    rng = np.random.default_rng(seed)
    counts = source_counts(sources, resamples=resamples, rng=rng)
    reason, draws = _draws(runs, counts, sources)
    if reason:
        return Difference(value, reason)
    differences = draws[0] - draws[1]
    ends = np.percentile(differences, _LEVEL)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, 2 * (1 + float(tail)) / (1 + len(differences)))
    return Difference(value, "", float(ends[0]), float(ends[1]), p)


def report(
    scores: Float[np.ndarray, "N K"],
    labels: Float[np.ndarray, "N K"],
    sources: Sequence[str],
    tasks: Sequence[schema_lib.Task],
    *,
    logistic: Mapping[str, logistic_lib.Logistic] | None = None,
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
        counts = np.empty((0, len(known)))
        if resamples and len(known):
            rng = np.random.default_rng(seed)
            counts = source_counts(known, resamples=resamples, rng=rng)
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
            row[name] = interval(name, ready, counts, known).to_json()
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
        few = drawn["sources"] < _FEW_SOURCES
        lines.append(line.format(**drawn) + ("; too narrow for so few" if few else ""))
    return "\n".join(line.rstrip() for line in lines)


def _plain(metric: str, ready: metrics.Prepared) -> float:
    """Returns the metric on every clip once; NaN when it overflows."""
    every = np.ones((1, len(ready.labels)))
    return float(metrics.resampled(metric, ready.scores, ready.labels, every)[0])


def _draws(
    runs: Sequence[tuple[str, metrics.Prepared]],
    counts: np.ndarray,
    sources: Sequence[str],
) -> tuple[str, np.ndarray]:
    """Returns a reason against an interval, and (runs, resamples) defined values."""
    distinct = len(np.unique(np.asarray(sources)))
    if distinct < MIN_SOURCES:
        found = f"{distinct} source" + ("s" if distinct > 1 else "")
        return f"no interval: {found}; at least {MIN_SOURCES} needed", np.empty(0)
    step = max(1, _CELLS // counts.shape[-1])
    values = np.array(
        [
            np.concatenate(
                [
                    metrics.resampled(
                        metric, ready.scores, ready.labels, counts[start : start + step]
                    )
                    for start in range(0, len(counts), step)
                ]
            )
            for metric, ready in runs
        ]
    )
    defined = np.isfinite(values).all(axis=0)
    undefined = 1 - defined.mean()
    if undefined > _UNDEFINED:
        return f"no interval: undefined on {undefined:.0%} of resamples", np.empty(0)
    return "", values[:, defined]


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
