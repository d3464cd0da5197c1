"""Where in a clip the network attends, and where hiding the input changes the score.

The one thing to know: attention is a mixing weight inside the network and no
explanation; what a moment is worth is told by hiding it, so both are measured on the
same clips and compared.

References:
    Jain, Wallace 2019, "Attention is not Explanation": attention against what happens
    when the input is removed. Zeiler, Fergus 2014, "Visualizing and Understanding
    Convolutional Networks", section 4.2: occlusion.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.interpreting import case as cases
from tqa_jax import batch, metrics, schema, statistics

ALL = "all modalities"
_SECONDS = 0.4  # That are hidden at a time.
_MOST_CLIPS = 200  # Over which attention and hiding are compared.


class Attended(NamedTuple):
    """Time attention of one clip.

    Attributes:
        received: by modality, the attention that each frame gets, in shares of what it
            would get if all were attended to alike; NaN where nothing was measured.
            Mean over measured queries, heads, layers, members, overlapping windows.
        evenness: by modality, entropy of the attention of a query over that of even
            attention, mean over queries and the rest: 1 is even, 0 a single frame;
            None without two frames.
    """

    received: Mapping[str, Float[np.ndarray, " T"]]
    evenness: Mapping[str, float | None]


class Occluded(NamedTuple):
    """What hiding a stretch of a clip changes.

    Attributes:
        starts: first hidden frame.
        length: hidden frames.
        change: by modality, and for all of them together, score with the stretch hidden
            minus score without; NaN where nothing was there to hide.
    """

    starts: Int[np.ndarray, " P"]
    length: int
    change: Mapping[str, Float[np.ndarray, "P K"]]


class Chosen(NamedTuple):
    """A clip that is shown, and the task on which."""

    kind: str
    clip: int
    task: int


def choose(
    scores: Float[np.ndarray, "N K"],
    labels: Float[np.ndarray, "N K"],
    ranges: Float[np.ndarray, " K"],
    *,
    most: int,
) -> list[Chosen]:
    """Picks clips to look at: those furthest off, and some that are right.

    Of each task one clip is `right`: the one with the smallest error among the quarter
    of labels furthest from the median, since a usual score shows nothing.

    Args:
        scores: of the test clips.
        labels: NaN where missing.
        ranges: of each task's scores.
        most: clips of either kind.
    """
    errors = np.abs(scores - labels) / ranges
    largest = np.where(np.isfinite(errors), errors, -1).max(axis=1)
    order = np.argsort(-largest, kind="stable")[:most]
    found = [
        Chosen("worst", int(clip), int(np.nanargmax(errors[clip])))
        for clip in order
        if largest[clip] >= 0
    ]
    taken = {one.clip for one in found}
    for k in range(labels.shape[1]):
        known = [n for n in np.flatnonzero(np.isfinite(labels[:, k])) if n not in taken]
        if not known or sum(one.kind == "right" for one in found) == most:
            continue
        unusual = np.abs(labels[known, k] - np.median(labels[known, k]))
        far = np.array(known)[unusual >= np.quantile(unusual, 0.75)]
        clip = int(far[np.argmin(errors[far, k])])
        taken.add(clip)
        found.append(Chosen("right", clip, k))
    return found


def received(
    weights: Float[np.ndarray, "*L M H T T"],
    mask: Bool[np.ndarray, "M T"],
    window: int = 0,
) -> Float[np.ndarray, "M T"]:
    """Attention that each frame gets over what it gets from even attention.

    Args:
        weights: of attention: what each query (second last axis) gives to each frame.
        mask: measured frames; only they ask, and only they can be seen.
        window: how many frames away a query sees; 0 for all.
    """
    even = _even(mask, window)
    asks = mask[:, None, :, None]
    given = np.where(asks, weights, 0).sum(axis=-2)  # (*L, M, H, T)
    given = given.mean(axis=(*range(given.ndim - 3), -2))  # (M, T)
    usual = np.where(mask[..., None], even, 0).sum(axis=-2)
    return np.where(mask, given / np.where(mask, usual, 1), np.nan)


def evenness(
    weights: Float[np.ndarray, "*L M H T T"],
    mask: Bool[np.ndarray, "M T"],
    window: int = 0,
) -> Float[np.ndarray, "M H"]:
    """Entropy of the attention of each head over that of even attention; NaN for none.

    Queries that see a single frame are left out. Arguments as of `received`.
    """
    seen = (_even(mask, window) > 0).sum(axis=-1)  # (M, T)
    counted = mask & (seen > 1)
    logs = np.log(np.where(weights > 0, weights, 1))
    entropy = -(weights * logs).sum(axis=-1)  # (*L, M, H, T)
    share = entropy / np.log(np.where(counted, seen, 2))[:, None]
    share = np.where(counted[:, None], share, 0).sum(axis=-1)
    share = share.mean(axis=tuple(range(share.ndim - 2)))  # (M, H)
    count = counted.sum(axis=-1)[:, None]
    return np.where(count > 0, share / np.maximum(count, 1), np.nan)


def _even(mask: Bool[np.ndarray, "M T"], window: int) -> Float[np.ndarray, "M T T"]:
    """Weights of queries that attend to all frames alike that they may see."""
    place = np.arange(mask.shape[-1])
    near = np.abs(place[:, None] - place) <= window if window else True
    seen = mask[:, None, :] & near
    return seen / np.maximum(seen.sum(axis=-1, keepdims=True), 1)


class Attention:
    """Time attention of a run's clips."""

    def __init__(self, case: cases.Case) -> None:
        """Compiles what returns the weights of all members.

        Raises:
            InputError: for a network without time attention.
        """
        self._case = case
        self._options = case.run.model.options
        if not self._options["temporal_layers"]:
            raise schema.InputError(
                f"the network of {case.run.folder} has no time attention "
                "(model.temporal_layers is 0), which is looked at here; expected 1 or "
                "more"
            )
        self._early = self._options["topology"] == "early"
        self._attend = case.run.each_member(case.run.model.attend)

    def of(self, clip: int) -> Attended:
        """Attention in one clip.

        Args:
            clip: its number.
        """
        case = self._case
        names = (ALL,) if self._early else case.modalities
        frames = case.clips.frames[clip]
        total = np.zeros((len(names), frames))
        count = np.zeros((len(names), frames))
        evens = []
        for row in case.windows_of(clip):
            one = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], case.windows)
            # Of each block (members, 1, M, H, T, T) -> (blocks, members, M, H, T, T)
            weights = np.stack(self._attend(case.run.params, one))[:, :, 0]
            mask = np.stack([one.frame_mask[name][0] for name in case.modalities])
            mask = mask.any(axis=0, keepdims=True) if self._early else mask
            window = self._options["temporal_window"]
            evens.append(evenness(weights, mask, window).mean(axis=-1))
            start = int(case.clips.window_start[row])
            shares = received(weights, mask, window)[:, : frames - start]
            there = np.isfinite(shares)
            place = slice(start, start + shares.shape[-1])
            total[:, place] += np.where(there, shares, 0)
            count[:, place] += there
        found = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        even = np.array(evens)
        return Attended(
            dict(zip(names, found, strict=True)),
            {
                name: float(np.nanmean(column)) if np.isfinite(column).any() else None
                for name, column in zip(names, even.T, strict=True)
            },
        )


def occlude(case: cases.Case, clip: int) -> Occluded:
    """Hides one stretch of a clip after another, in each modality and in all.

    Stretches are 0.4 s long, at most a third of the clip, and overlap by half.

    Args:
        case: the run and its clips.
        clip: number of the clip.
    """
    frames = case.clips.frames[clip]
    length = max(1, min(round(_SECONDS * case.info.schema.fps), frames // 3))
    step = max(1, length // 2)
    starts = np.unique([*range(0, frames - length + 1, step), frames - length])
    rows = case.windows_of(clip)
    base = jax.tree.map(lambda leaf: leaf[rows], case.windows)
    names = case.modalities
    targets = [names, *((name,) for name in names)]
    place = case.clips.window_start[rows][:, None] + np.arange(
        base.frame_mask[names[0]].shape[-1]
    )  # (w, T)
    hidden = (place >= starts[:, None, None]) & (
        place < starts[:, None, None] + length
    )  # (P, w, T)
    masks: dict[str, np.ndarray] = {}
    for name in names:
        whole = np.broadcast_to(base.frame_mask[name], hidden.shape)
        masks[name] = np.stack(
            [whole & ~hidden if name in target else whole for target in targets]
        )  # (targets, P, w, T)
    shape = masks[names[0]].shape[:3]

    def repeated(leaf):
        return np.broadcast_to(leaf, (*shape, *leaf.shape[1:])).reshape(
            -1, *leaf.shape[1:]
        )

    many = batch.Batch(
        {name: repeated(base.features[name]) for name in names},
        {name: masks[name].reshape(-1, masks[name].shape[-1]) for name in names},
        repeated(base.labels),
        repeated(base.label_mask),
    )
    weights = cases.window_weights(many).reshape(*shape, 1)
    scores = case.run.predict(many).reshape(*shape, -1)
    scores = (weights * scores).sum(axis=2) / weights.sum(axis=2)
    change = scores - case.run.predict(base).mean(axis=0)
    found = {}
    for target, name, values in zip(targets, (ALL, *names), change, strict=True):
        lost = sum((base.frame_mask[one] & hidden).any(axis=(1, 2)) for one in target)
        found[name] = np.where(lost[:, None] > 0, values, np.nan)
    return Occluded(starts, length, found)


def agreement(
    attended: Attended, occluded: Occluded, ranges: Float[np.ndarray, " K"]
) -> dict[str, float | None]:
    """Rank correlation, over a clip's stretches, of attention and what hiding changes.

    Args:
        attended: of the clip.
        occluded: of the clip.
        ranges: of each task's scores, by which changes are divided before their mean.

    Returns:
        By modality of the attention; None where undefined.
    """
    found = {}
    for name, shares in attended.received.items():
        effect = np.abs(occluded.change[name] / ranges).mean(axis=-1)
        given = np.array(
            [_mean(shares[at : at + occluded.length]) for at in occluded.starts]
        )
        known = np.isfinite(effect) & np.isfinite(given)
        found[name] = metrics.measure("srcc", given[known], effect[known]).value
    return found


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def summary(
    case: cases.Case, attention: Attention, *, resamples: int, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Evenness of attention, and its agreement with hiding, over the test clips.

    Of more than 200 clips, 200 evenly spaced ones are taken.

    Args:
        case: the run and its clips.
        attention: of the run.
        resamples: of sources.
        seed: of the resamples.

    Returns:
        By modality `evenness`, `agreement` (mean over clips with an interval over
        sources) and `strongest`: each `{"value", "low", "high", "clips"}`. `strongest`
        is the mean over clips of the largest attention of a frame, 1 for even.
    """
    ranges = np.array([task.high - task.low for task in case.run.schema.tasks])
    number = len(case.clips.names)
    rows = np.unique(np.linspace(0, number - 1, min(number, _MOST_CLIPS)).astype(int))
    attended = [attention.of(row) for row in rows]
    agreed = [
        agreement(one, occlude(case, row), ranges)
        for row, one in zip(rows, attended, strict=True)
    ]
    sources = np.array(case.clips.sources)[rows]
    found = {}
    for name in attended[0].received:
        peaks = [
            np.nanmax(one.received[name], initial=-np.inf, where=_there(one, name))
            for one in attended
        ]
        columns = {
            "evenness": [one.evenness[name] for one in attended],
            "strongest": [float(p) if np.isfinite(p) else None for p in peaks],
            "agreement": [one[name] for one in agreed],
        }
        found[name] = {
            what: _mean_over_sources(column, sources, resamples=resamples, seed=seed)
            for what, column in columns.items()
        }
    return found


def _there(one: Attended, name: str) -> np.ndarray:
    return np.isfinite(one.received[name])


def _mean_over_sources(
    column: Sequence[float | None],
    sources: np.ndarray,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    values = np.array([np.nan if value is None else value for value in column])
    known = np.isfinite(values)
    values, sources = values[known], sources[known]
    if not len(values):
        return {"value": None, "reason": "defined for no clip"}
    counts = statistics.resample_sources(sources, resamples, seed)
    value, *draws = (counts @ values) / counts.sum(axis=1)
    low, high = statistics.interval(np.array(draws))
    return {"value": float(value), "low": low, "high": high, "clips": len(values)}
