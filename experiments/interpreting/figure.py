"""One picture of an interpretation: what each modality and each group is worth."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np


def draw(found: Mapping[str, Any]) -> bytes:
    """Draws the fall of SRCC as a PNG.

    Args:
        found: from `outcome.gather`.

    Returns:
        The file's content: a panel a task with its modalities, and below the groups of
        features by task.
    """
    from matplotlib import figure

    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for one in found["importance"]:
        by_kind.setdefault(one["kind"], []).append(one)
    tasks = list(found["importance"][0]["tasks"])
    names = [one["modality"] for one in by_kind["permuted"]]
    rows = len(by_kind["group"])
    page = figure.Figure(
        figsize=(2.6 * len(tasks) + 1.5, 1.2 + 0.35 * len(names) + 0.26 * rows),
        layout="constrained",
    )
    panels = page.subfigures(2, 1, height_ratios=(1 + 0.35 * len(names), 0.26 * rows))
    axes = panels[0].subplots(1, len(tasks), sharey=True, sharex=True, squeeze=False)
    places = np.arange(len(names))
    for axis, task in zip(axes[0], tasks, strict=True):
        for kind, style in (("permuted", "o"), ("hidden", "x")):
            cells = [one["tasks"][task]["srcc"] for one in by_kind[kind]]
            axis.plot([_number(c, "value") for c in cells], places, style, label=kind)
            if kind == "permuted":
                ends = [[_number(c, end) for c in cells] for end in ("low", "high")]
                axis.hlines(places, *ends, alpha=0.5)
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_title(task, fontsize=10)
        axis.set_xlabel("fall of SRCC")
    axes[0, 0].set_yticks(places, names)
    axes[0, 0].invert_yaxis()
    axes[0, 0].legend(fontsize=7)
    axis = panels[1].subplots()
    values = np.array(
        [
            [_number(one["tasks"][task]["srcc"], "value") for task in tasks]
            for one in by_kind["group"]
        ]
    )
    reach = max(0.05, np.abs(np.nan_to_num(values)).max())
    image = axis.imshow(values, aspect="auto", cmap="RdBu", vmin=-reach, vmax=reach)
    labels = [f"{one['modality']}: {one['group']}" for one in by_kind["group"]]
    axis.set_yticks(np.arange(rows), labels, fontsize=8)
    axis.set_xticks(np.arange(len(tasks)), tasks, fontsize=8)
    panels[1].colorbar(image, ax=axis, label="fall of SRCC, group exchanged")
    buffer = io.BytesIO()
    page.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _number(cell: Mapping[str, Any], key: str) -> float:
    value = cell.get(key)
    return np.nan if value is None else value
