"""Figures of a report about what scores depend on.

The one thing to know: every function returns a list, empty when the run was not
interpreted; a modality has the same colour everywhere.
"""

import itertools

import numpy as np

from tqa_jax.report import charts, record
from tqa_jax.report.panels import Figure

_LEVELS = (0.5, 1.0, 2.0, 4.0)  # Attention at which the shade changes; 1 is even.
_LEFT = 42  # Where both charts of a clip begin, so that times stand above each other.
_LEAST = 1.0  # Percent that the axis of changes reaches at least, either way.


def importance(run: record.Record) -> list[Figure]:
    """Fall of SRCC without each modality, a chart a task."""
    found = run.interpretation
    if found is None:
        return []
    whole = [one for one in found.importance if not one.group]
    names = list(dict.fromkeys(one.modality for one in whole))
    figures = []
    ends = [
        end
        for one in whole
        for value in one.fall.values()
        for end in value[:3]
        if end is not None
    ]
    bounds = charts.span(np.array(ends), zero=True) if ends else None
    if bounds is None:
        return []
    for task in run.tasks:
        chart = charts.Chart(
            f"{task.name}: fall of SRCC when a modality is exchanged or hidden; the "
            "numbers are in the table",
            bounds,
            (0, 1),
            x_label="fall of SRCC",
            rows=names,
        )
        for one in whole:
            value, row = one.fall[task.name], names.index(one.modality)
            if value.value is None:
                continue
            if one.kind == "hidden":
                chart.mark(row, value.value, "s1")
            else:
                chart.interval(row, value.value, value.low, value.high)
        figures.append(Figure(task.name, chart.svg()))
    return figures


def over_time(run: record.Record) -> list[Figure]:
    """Attention by frame above what hiding changes, for each chosen clip."""
    if run.interpretation is None:
        return []
    figures = []
    ranges = {task.name: task.high - task.low for task in run.tasks}
    for one in run.interpretation.over_time:
        step = one.frames[1] - one.frames[0] if len(one.frames) > 1 else 1.0
        edges = np.append(one.frames, one.frames[-1] + step)
        seconds = (0.0, float(edges[-1]))
        upper = charts.Chart(
            f"{one.clip}: attention that each frame gets, by modality",
            *(seconds, (0, 1)),
            rows=list(one.attention),
            left=_LEFT,
        )
        for row, values in enumerate(one.attention.values()):
            steps = np.where(np.isfinite(values), np.digitize(values, _LEVELS), -1)
            upper.shade(row, edges, steps)
        change = {n: 100 * v / ranges[one.task] for n, v in one.change.items()}
        lower = charts.Chart(
            f"{one.clip}: change of {one.task} when the time around is hidden",
            *(seconds, charts.span(*change.values(), np.array([-_LEAST, _LEAST]))),
            x_label="seconds",
            y_label="change, % of the range",
            height=190,
            left=_LEFT,
        )
        lower.line(np.array(seconds), np.zeros(2), "same")
        for name, values in change.items():
            lower.line(one.stretches, values, kind(run, name))
        title = f"{one.clip}, {one.task} {one.score:.2f} for {one.label:.2f}: "
        title += {"worst": "far off", "right": "right"}[one.kind]
        figures.append(Figure(title, upper.svg() + lower.svg()))
    return figures


def shades() -> list[tuple[str, str]]:
    """Classes and meanings of the shades of attention."""
    names = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(_LEVELS)]
    names = [f"below {_LEVELS[0]:g}", *names, f"above {_LEVELS[-1]:g}"]
    return [(f"shade h{step}", name) for step, name in enumerate(names)]


def keys(run: record.Record) -> list[tuple[str, str]]:
    """Classes and names of the lines of changes."""
    if run.interpretation is None:
        return []
    names = {name: None for one in run.interpretation.over_time for name in one.change}
    return [(kind(run, name), name) for name in names]


def kind(run: record.Record, name: str) -> str:
    """Class of a modality's line; all modalities together have their own."""
    names = [modality.name for modality in run.modalities]
    return charts.series(names.index(name)) if name in names else "all"
