"""Pseudo-labels: what a teacher says of training clips whose labels are hidden.

The one thing to know: the teacher finds those clips where test clips stand, so its
predictions of them are in its run's folder; the hidden labels serve to say how wrong
pseudo-labels are, and for nothing else.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.studying import derived, results, shares
from tqa_jax import intervals, records, run, schema

KINDS = ("all", "sure", "shuffled")


class Pseudo(NamedTuple):
    """Scores of a teacher on clips that it has not seen.

    Attributes:
        clips: their names.
        scores: of the ensemble.
        labels: what people, or the data set, said; for the error only.
        spread: of the members.
    """

    clips: tuple[str, ...]
    scores: Float[np.ndarray, "N K"]
    labels: Float[np.ndarray, "N K"]
    spread: Float[np.ndarray, "N K"]


def teaching(
    source: pathlib.Path, out: pathlib.Path, kept: frozenset[str]
) -> pathlib.Path:
    """Makes the teacher's set: what it is to score stands where test clips stand.

    Args:
        source: folder of the data set.
        out: folder to make.
        kept: sources that it is trained on.
    """

    def change(pairs: Iterator[derived.Pair]) -> Iterator[derived.Pair]:
        train = []
        for split, clip in pairs:
            if split == "train":
                train.append(clip)
            elif split == "validation":
                yield split, clip
        mine = [clip for clip in train if shares.mine(clip, kept)]
        yield from (("train", clip) for clip in shares.repeated(mine, len(train)))
        # Clips of a labelled source that have no label are left as they are.
        yield from (("test", clip) for clip in train if clip.source not in kept)

    return derived.rewrite(
        source,
        out,
        change,
        description="labelled training clips of these sources, the other training "
        f"clips as test split: {', '.join(sorted(kept))}",
    )


def read(folder: pathlib.Path, tasks: Sequence[schema.Task]) -> Pseudo:
    """Reads what a teacher said of the clips that it was not trained on."""
    found = run.Run.load(folder).predictions().of("test")
    low = np.array([task.low for task in tasks])
    high = np.array([task.high for task in tasks])
    return Pseudo(
        tuple(found.clips),
        np.clip(found.scores, low, high),
        found.labels,
        found.spread,
    )


def choose(pseudo: Pseudo, kind: str) -> Float[np.ndarray, "N K"]:
    """Decides which pseudo-labels are used; the others are NaN.

    Args:
        pseudo: from a teacher.
        kind: `all`; `sure`, the half of each task with the smallest spread; or
            `shuffled`, all of them at other clips.
    """
    if kind == "all":
        return pseudo.scores
    if kind == "shuffled":
        order = np.random.default_rng(len(pseudo.scores)).permutation(
            len(pseudo.scores)
        )
        return pseudo.scores[order]
    number = -(-len(pseudo.scores) // 2)
    ranks = pseudo.spread.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    return np.where(ranks < number, pseudo.scores, np.nan)


def give(
    source: pathlib.Path,
    out: pathlib.Path,
    kept: frozenset[str],
    labels: Mapping[str, np.ndarray],
    *,
    description: str,
) -> pathlib.Path:
    """Makes the set in which training clips of other sources have given labels.

    Args:
        source: folder of the data set.
        out: folder to make.
        kept: sources that keep their labels.
        labels: of the other training clips, by name.
        description: of the labels.
    """

    def change(split: str, clip: records.Clip) -> derived.Pair:
        if split != "train" or clip.source in kept:
            return split, clip
        unknown = np.full_like(clip.labels, np.nan)  # Of a clip without a frame.
        new = np.asarray(labels.get(clip.clip, unknown), np.float32)
        return split, dataclasses.replace(clip, labels=new)

    return derived.make(
        source,
        out,
        change,
        description=f"{description}, on training clips of other sources than "
        f"{', '.join(sorted(kept))}",
        content=np.array(list(labels.values()), np.float32).tobytes(),
    )


def errors(
    teachers: Mapping[int, Mapping[int, Pseudo]],
    asked: Sequence[int],
    seeds: Sequence[int],
    tasks: Sequence[schema.Task],
) -> list[results.Row]:
    """Says how wrong pseudo-labels are: the mean over tasks and seeds.

    Returns:
        For each share and kind: `rmse` and `srcc` against the hidden labels, and how
        many cells have both.
    """
    rows = []
    for share in asked:
        for kind in KINDS:
            found: dict[str, list[float]] = {"rmse": [], "srcc": []}
            cells = []
            for seed in seeds:
                pseudo = teachers[seed][share]
                chosen = choose(pseudo, kind)
                every = np.ones((1, len(chosen)))
                cells.append(int(np.isfinite(chosen + pseudo.labels).sum()))
                for k in range(len(tasks)):
                    hidden = np.where(
                        np.isnan(chosen[:, k]), np.nan, pseudo.labels[:, k]
                    )
                    for metric, values in found.items():
                        (value,) = intervals.figures(
                            metric, np.nan_to_num(chosen[None, :, k]), hidden, every
                        )[0]
                        if np.isfinite(value):
                            values.append(float(value))
            rows.append(
                {"labels": f"{share} %", "pseudo-labels": kind}
                | {"cells": float(np.mean(cells))}
                | {m: float(np.mean(v)) if v else None for m, v in found.items()}
            )
    return rows
