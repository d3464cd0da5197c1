"""What predictions are worth: over all clips, and within a generator.

The one thing to know: most of what ratings differ in is the generator, so a method that
only recognises it looks good over all clips. `within` is the SRCC among the clips of
one generator, averaged over generators. Pooled over folds, it is below 0 for a method
that predicts one number a generator: where a fold's clips are good, the others are not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.talking_heads import clips as clips_lib
from tqa_jax import metrics, statistics

Row = dict[str, Any]
_OVERALL = ("plcc", "srcc", "krcc", "rmse")
_WITHIN = {"within": "srcc", "within_plcc": "plcc"}
COMPARED = ("plcc", "srcc", "within")
"""Figures that methods are compared by."""
_WITHOUT_INTERVAL = ("krcc",)  # all pairs of clips, on every resample


def figure(
    name: str,
    scores: Float[np.ndarray, " N"],
    clips: clips_lib.Clips,
    rows: np.ndarray,
    counts: Float[np.ndarray, "R N"],
) -> Float[np.ndarray, " R"]:
    """Computes one figure on resamples; NaN where it is undefined.

    Args:
        name: `plcc`, `srcc`, `krcc`, `rmse`, `within` or `within_plcc`.
        scores: of the clips in `rows`.
        clips: all clips.
        rows: numbers of the clips.
        counts: how often each of these stands in each resample.
    """
    labels, names = clips.labels[rows], clips.generators[rows]
    if name not in _WITHIN:
        return metrics.resampled(name, scores, labels, counts)
    total = np.zeros(len(counts))
    weight = np.zeros(len(counts))
    varied = np.zeros(len(counts), bool)
    for generator in np.unique(names):
        mine = names == generator
        some = counts[:, mine]
        value = metrics.comparable(_WITHIN[name], scores[mine], labels[mine], some)
        varied |= metrics.varies(scores[mine], some)
        there = np.isfinite(value)
        total[there] += (value * some.sum(axis=-1))[there]
        weight[there] += some.sum(axis=-1)[there]
    defined = varied & (weight > 0)
    return np.where(defined, total / np.where(defined, weight, 1), np.nan)


def plain(
    name: str, scores: np.ndarray, clips: clips_lib.Clips, rows: np.ndarray
) -> float | None:
    """Computes one figure on every clip once; None where it is undefined."""
    value = figure(name, scores, clips, rows, np.ones((1, len(rows))))[0]
    return float(value) if np.isfinite(value) else None


def describe(
    scores: Mapping[str, np.ndarray],
    mapped: Mapping[str, np.ndarray | None],
    clips: clips_lib.Clips,
    folds: Sequence[np.ndarray],
    counts: Float[np.ndarray, "R N"],
) -> list[Row]:
    """Describes every method on the same clips.

    Args:
        scores: of each method, of all clips.
        mapped: the same after a logistic mapping; None where there is none.
        clips: all clips.
        folds: numbers of the test clips of each fold.
        counts: resamples of all clips (`statistics.resample_sources`).

    Returns:
        For each method its figures over all clips with the ends of 95 % intervals
        (`_low`, `_high`), and their means over folds (`_folds`).
    """
    everyone = np.arange(len(clips))
    found = []
    for method, values in scores.items():
        row: Row = {"method": method}
        for name in (*_OVERALL, *_WITHIN):
            row[name] = plain(name, values, clips, everyone)
            if name not in _WITHOUT_INTERVAL:
                draws = figure(name, values, clips, everyone, counts[1:])
                row[f"{name}_low"], row[f"{name}_high"] = statistics.interval(draws)
            by_fold = [plain(name, values[rows], clips, rows) for rows in folds]
            row[f"{name}_folds"] = _mean(by_fold)
        for name in ("plcc", "rmse"):
            one = mapped[method]
            row[f"{name}_fit"] = (
                None if one is None else plain(name, one, clips, everyone)
            )
        found.append(row)
    return found


def compare(
    scores: Mapping[str, np.ndarray],
    ours: str,
    others: Sequence[str],
    clips: clips_lib.Clips,
    counts: Float[np.ndarray, "R N"],
) -> list[Row]:
    """Compares one method with others by a paired bootstrap.

    Returns:
        A row for each figure and other method: `difference` (ours minus theirs),
        `low`, `high`, `p`, and `p_holm` over the other methods.
    """
    everyone = np.arange(len(clips))
    found = []
    for name in COMPARED:
        mine = figure(name, scores[ours], clips, everyone, counts)
        rows: list[Row] = []
        for other in others:
            value, *draws = mine - figure(name, scores[other], clips, everyone, counts)
            row = {"figure": name, "ours": ours, "other": other}
            row["difference"] = float(value) if np.isfinite(value) else None
            tested = statistics.paired(np.array(draws))
            rows.append(row | tested._asdict())
        statistics.correct(rows, ("p",), "_holm")
        found += rows
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean over folds; one in which a method's predictions collapsed counts as 0."""
    if all(value is None for value in values):
        return None
    return float(np.mean([0.0 if value is None else value for value in values]))
