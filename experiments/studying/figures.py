"""Figures of the studies, drawn with matplotlib.

The one thing to know: matplotlib is imported where something is drawn, after the
command has checked that it is there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tqa_jax import comparison


def differences(
    rows: Sequence[Mapping[str, Any]],
    cases: Mapping[str, Sequence[comparison.Outcome]],
    title: str,
) -> Any:
    """Draws each case: SRCC of its seeds, and the difference to the first.

    Args:
        rows: from `results.compare`.
        cases: what became of the runs of each.
        title: of the figure.
    """
    pyplot = start()
    figure, (left, right) = pyplot.subplots(
        1, 2, sharey=True, figsize=(9, 1.2 + 0.32 * len(rows)), layout="constrained"
    )
    names = [row["case"] for row in rows]
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        values = [comparison.average(o.results, "srcc") for o in cases[name]]
        values = [value for value in values if value is not None]
        left.plot(values, [place] * len(values), "o", color="C0", alpha=0.5, ms=4)
        if row["srcc"] is not None:
            left.plot(row["srcc"], place, "|", color="black", ms=12)
        if row["difference"] is not None:
            right.plot(row["difference"], place, "o", color="C1")
        if row["low"] is not None:
            right.plot([row["low"], row["high"]], [place] * 2, color="C1")
    right.axvline(0, color="grey", lw=0.8)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xlabel("test SRCC, mean over tasks; a dot a seed")
    right.set_xlabel("difference to the first, 95 % interval over sources")
    figure.suptitle(title)
    return figure


def start() -> Any:
    """Returns pyplot, drawing to files only."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
