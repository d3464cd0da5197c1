"""Figures of a report about results: from what an evaluation left to charts.

The one thing to know: every function returns a list, empty when the run has nothing to
show there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tqa_jax.report import charts, files, record


class Figure(NamedTuple):
    """A chart and its heading; `key` are classes and names of a legend of its own."""

    title: str
    svg: str
    key: Sequence[tuple[str, str]] = ()


def metric_intervals(run: record.Record) -> list[Figure]:
    """Correlations of each task with their intervals."""
    found = []
    for metric in ("srcc", "plcc"):
        values = [
            run.results.metrics[task.name].get(metric, files.Value(None))
            for task in run.tasks
        ]
        ends = [v for value in values for v in value[:3] if v is not None]
        if not ends:
            continue
        low = min(0.0, np.floor(min(ends) * 4) / 4)
        chart = charts.Chart(
            f"{metric.upper()} of each task with its 95 % interval; the numbers are in "
            "the table",
            (low, 1.0),
            (0, 1),
            x_label=f"{metric.upper()}, 95 % interval",
            rows=[
                task.name + ("" if value.value is not None else " (undefined)")
                for task, value in zip(run.tasks, values, strict=True)
            ],
        )
        for row, value in enumerate(values):
            if value.value is not None:
                chart.interval(row, value.value, value.low, value.high)
        found.append(Figure(metric.upper(), chart.svg()))
    return found


def agreement(run: record.Record) -> list[Figure]:
    """Score against label of test clips, and the errors' histogram, a pair a task."""
    found = []
    if run.predictions is None:
        return found
    test = run.predictions.splits == "test"
    for k, task in enumerate(run.tasks):
        scores, labels = (
            run.predictions.scores[test, k],
            run.predictions.labels[test, k],
        )
        there = np.isfinite(scores) & np.isfinite(labels)
        if not there.any():
            continue
        scores, labels = scores[there], labels[there]
        outside = (scores < task.low) | (scores > task.high)
        chart = charts.Chart(
            f"{task.name}: predicted score against label of {len(scores)} test clips",
            (task.low, task.high),
            (task.low, task.high),
            x_label="label",
            y_label="score",
            height=300,
        )
        chart.diagonal()
        chart.dots(labels, scores, "s0")
        note = f"{outside.sum()} beyond the scale, at its edge" if outside.any() else ""
        errors = scores - labels
        reach = max(
            float(np.quantile(abs(errors), 0.995)), 1e-6 * (task.high - task.low)
        )
        edges = np.linspace(-reach, reach, 26)
        counts, _ = np.histogram(np.clip(errors, -reach, reach), edges)
        bars = charts.Chart(
            f"{task.name}: histogram of score minus label; mean {errors.mean():.2f}",
            (-reach, reach),
            (0, 1.06 * counts.max()),
            x_label="score − label",
            y_label="clips",
            height=150,
        )
        bars.bars(edges, counts)
        bars.vertical(0.0, "same")
        bars.vertical(float(errors.mean()), "mark", _signed(errors.mean()))
        found.append(
            Figure(task.name, chart.svg() + bars.svg(), [("", note)] if note else [])
        )
    return found


def _signed(mean: float) -> str:
    return f"mean {mean:+.2f}".replace("-", charts.MINUS)


def confidence(run: record.Record) -> list[Figure]:
    """Coverage of the conformal intervals, then risk by coverage of each task."""
    found, covered = [], []
    for task in run.tasks:
        one = run.results.confidence.get(task.name)
        if one and one.coverage and one.coverage.value is not None:
            covered.append((task.name, one.coverage))
    if covered:
        lows = [v for _, value in covered for v in value[:2] if v is not None]
        low = min(0.8, np.floor(min(lows) * 10) / 10)
        chart = charts.Chart(
            "Share of test labels within the interval, by task",
            (low, 1.0),
            (0, 1),
            x_label="share of test labels inside",
            rows=[name for name, _ in covered],
            percent=True,
        )
        if run.results.level is not None:
            chart.vertical(run.results.level, "same")
        for row, (_, value) in enumerate(covered):
            chart.interval(row, value.value, value.low, value.high)
        found.append(Figure("Coverage of the intervals", chart.svg()))
    for task in run.tasks:
        one = run.results.confidence.get(task.name)
        if one is None or not np.isfinite(one.risk_coverage).any():
            continue
        kept, risk = one.risk_coverage.T
        _, top = charts.span(risk, zero=True)
        chart = charts.Chart(
            f"{task.name}: RMSE of the clips that are kept when the least certain are "
            "left out",
            (0.0, 1.0),
            (0.0, top),
            x_label="most certain clips kept",
            y_label="RMSE",
            percent=True,
            height=180,
        )
        chart.line(kept, risk, "s0")
        chart.dots(kept, risk, "s0")
        found.append(Figure(f"Risk by coverage: {task.name}", chart.svg()))
    return found


def spread_of_sources(
    names: Sequence[str], errors: Sequence[Float[np.ndarray, " S"]]
) -> list[Figure]:
    """Mean absolute error of each source, a row of ticks a task.

    Args:
        names: of tasks.
        errors: of each task, by source, as a share of the score range.
    """
    bounds = charts.span(*errors, zero=True) if errors else None
    if bounds is None:
        return []
    chart = charts.Chart(
        "Mean absolute error of each source by task",
        bounds,
        (0, 1),
        x_label="mean absolute error in % of the score range",
        rows=names,
        percent=True,
    )
    for row, values in enumerate(errors):
        chart.strip(row, values)
    return [Figure("One line a source", chart.svg())]
