"""How much worse scores get when part of the input comes from other clips.

The one thing to know: a modality is exchanged whole, with its mask, after
preprocessing; a group of features is exchanged before it, since PCA mixes columns.
Features that say the same stand in for each other, so that both can look unimportant;
and a group that comes from another clip makes input that does not occur.

References:
    Breiman 2001, "Random Forests", section 10: permutation importance. Fisher, Rudin,
    Dominici 2019, "All models are wrong, but many are useful", eq. 3: every clip gets
    another's, none its own.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.interpreting import case as cases
from experiments.interpreting import groups
from tqa_jax import batch, metrics, pipeline, schema, statistics

METRICS = ("srcc", "plcc", "rmse")


class Changed(NamedTuple):
    """Scores of the test clips after a change of the input.

    Attributes:
        kind: `permuted` (a modality of another clip), `hidden` (no modality) or
            `group` (a group of features of another clip).
        modality: which.
        group: name of the group, empty for a whole modality.
        size: number of raw features that changed.
        scores: one row a repetition.
    """

    kind: str
    modality: str
    group: str
    size: int
    scores: Float[np.ndarray, "R N K"]


def donors(clips: int, rng: np.random.Generator) -> Int[np.ndarray, " N"]:
    """Draws for every clip another one; each gives once."""
    order = rng.permutation(clips)
    found = np.empty(clips, np.int64)
    found[order] = np.roll(order, 1)
    return found


def donor_windows(
    clips: pipeline.Clips, donor: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " W"]:
    """For every window, the window at the same place of the clip's donor."""
    count = np.bincount(clips.window_clip, minlength=len(clips.names))
    first = np.cumsum(count) - count
    place = np.arange(len(clips.window_clip)) - first[clips.window_clip]
    giver = donor[clips.window_clip]
    return first[giver] + place * count[giver] // count[clips.window_clip]


def measure(case: cases.Case, *, repetitions: int, seed: int = 0) -> Iterator[Changed]:
    """Scores the test clips with each modality and each group exchanged or hidden.

    Args:
        case: the run and its clips.
        repetitions: draws of other clips.
        seed: of the draws, which are the same for every modality and group.

    Raises:
        InputError: for fewer than two test clips.
    """
    number = len(case.clips.names)
    if number < 2:
        raise schema.InputError(
            f"the test split of {case.path} has {number} clip; exchanging needs two"
        )
    rng = np.random.default_rng(seed)
    givers = [
        donor_windows(case.clips, donors(number, rng)) for _ in range(repetitions)
    ]
    described = {modality.name: modality for modality in case.run.schema.modalities}
    for name in case.modalities:
        width = described[name].width
        found = [case.scores(_exchanged(case.windows, name, g)) for g in givers]
        yield Changed("permuted", name, "", width, np.array(found))
        hidden = case.scores(_hidden(case.windows, name))
        yield Changed("hidden", name, "", width, hidden[None])
        raw = case.raw(name)
        for group in groups.of(described[name])[0]:
            found = [
                case.scores(case.filled(name, with_columns(raw, g, group.columns)))
                for g in givers
            ]
            size = len(group.columns)
            yield Changed("group", name, group.name, size, np.array(found))


def with_columns(
    raw: Sequence[Float[np.ndarray, "t D"]],
    givers: Int[np.ndarray, " W"],
    columns: Int[np.ndarray, " C"],
) -> list[Float[np.ndarray, "t D"]]:
    """Takes columns from other windows, measured row by measured row.

    A shorter giver starts again from its first row; one without any leaves NaN, which
    preprocessing fills in.
    """
    found = []
    for rows, giver in zip(raw, givers, strict=True):
        rows = rows.copy()
        taken = raw[giver]
        if len(taken):
            rows[:, columns] = taken[np.arange(len(rows)) % len(taken)][:, columns]
        else:
            rows[:, columns] = np.nan
        found.append(rows)
    return found


def _exchanged(
    windows: batch.Batch, name: str, givers: Int[np.ndarray, " W"]
) -> batch.Batch:
    features, mask = windows.features[name], windows.frame_mask[name]
    return windows.replace(
        features=windows.features | {name: features[givers]},
        frame_mask=windows.frame_mask | {name: mask[givers]},
    )


def _hidden(windows: batch.Batch, name: str) -> batch.Batch:
    mask = np.zeros_like(windows.frame_mask[name])
    return windows.replace(frame_mask=windows.frame_mask | {name: mask})


def losses(
    before: Float[np.ndarray, "N K"],
    changed: Changed,
    case: cases.Case,
    *,
    resamples: int,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Says what a change cost, by task and metric.

    Args:
        before: scores of the unchanged clips.
        changed: scores after the change.
        case: the run and its clips.
        resamples: of sources, for intervals; 0 for none.
        seed: of the resamples, the same for all changes.

    Returns:
        `{"value", "low", "high", "sd"}`: the fall of `srcc` and `plcc` or the rise of
        `rmse`, mean over repetitions, with its 95 % interval over sources and the
        standard deviation over repetitions (None for one); or `{"value": None,
        "reason"}`.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for k, task in enumerate(case.run.schema.tasks):
        labels = case.clips.labels[:, k]
        known = np.isfinite(labels)
        sources = np.array(case.clips.sources)[known]
        counts = statistics.resample_sources(sources, resamples, seed)
        found[task.name] = {
            metric: _loss(
                metric,
                before[known, k],
                changed.scores[:, known, k],
                labels[known].astype(float),
                counts,
                task,
            )
            for metric in METRICS
        }
    return found


def _loss(
    metric: str,
    before: Float[np.ndarray, " n"],
    after: Float[np.ndarray, "R n"],
    labels: Float[np.ndarray, " n"],
    counts: Float[np.ndarray, "S n"],
    task: schema.Task,
) -> dict[str, Any]:
    drawn = []
    for scores in (before, *after):
        ready = metrics.prepare(
            metric, scores.astype(float), labels, low=task.low, high=task.high
        )
        if ready.reason:
            return {"value": None, "reason": ready.reason}
        drawn.append(metrics.resampled(metric, ready.scores, ready.labels, counts))
    sign = -1.0 if metric == "rmse" else 1.0
    fall = sign * (drawn[0] - np.array(drawn[1:]))  # (R, S)
    sd = float(fall[:, 0].std(ddof=1)) if len(fall) > 1 else None
    low, high = statistics.interval(fall[:, 1:].mean(axis=0))
    return {"value": float(fall[:, 0].mean()), "low": low, "high": high, "sd": sd}
