"""Figures of a report about training: from the metrics log to curves and matrices.

The one thing to know: every function returns a list, empty when the log has nothing to
show there; long curves are drawn as means over neighbouring lines of the log.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tqa_jax.report import charts, record
from tqa_jax.report.panels import Figure

_BINS = 120  # Points of a training curve.


def curves(run: record.Record) -> list[Figure]:
    """Losses, validation SRCC and learning rate by epoch."""
    if run.log is None:
        return []
    log, tasks = run.log, [task.name for task in run.tasks]
    sides = {"training": log.train, "validation": log.validation}
    means = [
        (*_by_epoch(run, at, _mean([at[f"loss/{task}"] for task in tasks])), f"s{i}")
        for i, at in enumerate(sides.values())
    ]
    loss, srcc = (
        [
            (
                log.validation["epoch"],
                log.validation[f"{kind}/{task}"],
                charts.series(k),
            )
            for k, task in enumerate(tasks)
        ]
        for kind in ("loss", "srcc")
    )
    rate = (*_by_epoch(run, log.train, log.train["lr"]), "s0")
    found = [
        _lines(run, "Mean loss of the tasks, unweighted", "loss", means, log=True),
        _lines(run, "Validation SRCC by task", "SRCC", srcc),
        _lines(run, "Validation loss by task", "loss", loss, log=True),
        _lines(run, "Learning rate", "rate", [rate]),
    ]
    if found[0] is not None:
        key = [(f"s{i}", name) for i, name in enumerate(sides)]
        found[0] = found[0]._replace(key=key)
    return [figure for figure in found if figure is not None]


def balance(run: record.Record) -> list[Figure]:
    """Weight, gradient norm and, with gradient surgery, coefficient of each task."""
    if run.log is None:
        return []
    kinds = [
        ("weight", "Weight of each task's loss", "weight", False),
        ("grad_norm", "Norm of each task's unweighted gradient", "norm", True),
        ("coefficient", "Coefficient after gradient surgery", "factor", False),
    ]
    found = []
    for kind, title, name, log in kinds:
        columns = [run.log.train[f"{kind}/{task.name}"] for task in run.tasks]
        if kind == "coefficient" and all(
            set(c[np.isfinite(c)]) <= {1} for c in columns
        ):
            continue
        most = 60 if log else _BINS  # Gradient norms are the noisiest.
        lines = [
            (*_by_epoch(run, run.log.train, column, most), charts.series(k))
            for k, column in enumerate(columns)
        ]
        found.append(_lines(run, title, name, lines, log=log))
    return [figure for figure in found if figure is not None]


def composition(run: record.Record) -> list[Figure]:
    """Share of each weighted task loss, and of the rest, in the training loss."""
    if run.log is None or len(run.log.train["step"]) < 2:
        return []
    train = run.log.train
    parts = [
        np.nan_to_num(train[f"weight/{task.name}"] * train[f"loss/{task.name}"])
        for task in run.tasks
    ]
    rest = np.nan_to_num(train["loss/total"]) - sum(parts)
    parts = [np.maximum(part, 0) for part in [*parts, rest]]
    binned = [_by_epoch(run, train, part, 80) for part in parts]
    x, heights = binned[0][0], np.array([y for _, y in binned])
    total = heights.sum(axis=0)
    if len(x) < 2 or not total.any():
        return []
    edges = np.cumsum(heights / np.where(total > 0, total, 1), axis=0)
    edges = np.concatenate([np.zeros((1, len(x))), edges])
    chart = charts.Chart(
        "Share of each weighted task loss in the training loss by epoch",
        (float(x[0]), float(x[-1])),
        (0, 1),
        x_label="epoch",
        y_label="share",
    )
    for k in range(len(parts)):
        kind = charts.series(k) if k < len(run.tasks) else "rest"
        chart.area(x, edges[k], edges[k + 1], kind)
    chart.vertical(run.results.best_epoch, "best", "best epoch")
    return [Figure("Share of the training loss", chart.svg())]


def correlations(run: record.Record) -> list[Figure]:
    """Correlations between tasks: of predictions by epoch, and of labels."""
    if run.log is None or not run.log.correlation:
        return []
    names = [task.name for task in run.tasks]
    by_epoch = {epoch: matrix for epoch, matrix, _ in run.log.correlation}
    chosen: dict[int, list[str]] = {}
    for epoch, what in (
        (min(by_epoch), "first"),
        (run.results.best_epoch, "best"),
        (max(by_epoch), "last"),
    ):
        if epoch in by_epoch:
            chosen.setdefault(epoch, []).append(what)
    shown = [
        (f"Predictions, epoch {epoch} ({' and '.join(what)})", by_epoch[epoch])
        for epoch, what in sorted(chosen.items())
    ]
    shown.append(("Labels", run.log.correlation[-1][2]))
    found = [
        Figure(
            title,
            charts.matrix(f"{title}: correlations between tasks", matrix, names),
        )
        for title, matrix in shown
    ]
    return found + _correlation_by_epoch(run)


def _correlation_by_epoch(run: record.Record) -> list[Figure]:
    """Mean correlation between tasks, and its distance from that of labels."""
    epochs = np.array([epoch for epoch, _, _ in run.log.correlation], float)
    pairs = np.triu_indices(len(run.tasks), 1)
    ours = np.array([matrix[pairs] for _, matrix, _ in run.log.correlation])
    labels = np.array([matrix[pairs] for _, _, matrix in run.log.correlation])
    lines = {
        "predictions": _mean(ours.T),
        "labels": _mean(labels.T),
        "distance from labels, pair by pair": _mean(abs(ours - labels).T),
    }
    figure = _lines(
        run,
        "Mean over pairs of tasks",
        "correlation",
        [(epochs, values, f"s{i}") for i, values in enumerate(lines.values())],
    )
    if figure is None:
        return []
    return [figure._replace(key=[(f"s{i}", name) for i, name in enumerate(lines)])]


def _mean(columns: Sequence[np.ndarray]) -> np.ndarray:
    known = np.isfinite(columns).sum(axis=0)
    total = np.nansum(columns, axis=0)
    return np.where(known, total / np.maximum(known, 1), np.nan)


def _by_epoch(
    run: record.Record,
    lines: Mapping[str, np.ndarray],
    y: np.ndarray,
    most: int = _BINS,
) -> tuple[np.ndarray, np.ndarray]:
    """Means of a column over at most so many runs of lines, and their epochs."""
    ends = run.log.validation
    if not len(lines["step"]):
        return np.empty(0), np.empty(0)
    at = lines["epoch"]
    if len(ends["step"]) and ends["step"][-1] > 0:
        at = lines["step"] * ends["epoch"][-1] / ends["step"][-1]
    return charts.binned(at, y, most)


def _lines(
    run: record.Record,
    title: str,
    name: str,
    lines: Sequence[tuple[np.ndarray, np.ndarray, str]],
    *,
    log: bool = False,
) -> Figure | None:
    """Lines over epochs with the best epoch marked; None without any value."""
    x = charts.span(*(x for x, _, _ in lines), zero=True)
    y = charts.span(*(y for _, y, _ in lines), log=log)
    if x is None or y is None:
        return None
    chart = charts.Chart(
        f"{title} by epoch", x, y, x_label="epoch", y_label=name, log=log
    )
    chart.vertical(run.results.best_epoch, "best", "best epoch")
    for at, values, kind in lines:
        chart.line(at, values, kind)
    return Figure(title, chart.svg())
