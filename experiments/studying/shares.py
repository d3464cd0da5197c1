"""Shares of the training labels: which sources keep theirs.

The one thing to know: shares are nested, a source that has labels at 10 % has them at
25 %, and a set with few labels repeats its labelled clips, so that every share trains
for as many steps. Validation and test clips are the same at every share.
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.studying import derived, figures, results
from tqa_jax import records, schema


def parse(text: str) -> tuple[int, ...]:
    """Reads `--shares`: rising whole numbers.

    Raises:
        InputError: for anything else.
    """
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise schema.InputError(
            f"--shares={text}; expected per cent of the labels, as 10,25,50,100"
        )
    found = tuple(int(part) for part in text.split(","))
    if list(found) != sorted(set(found)) or found[0] < 1 or found[-1] > 100:
        raise schema.InputError(
            f"--shares={text}; expected rising numbers from 1 to 100"
        )
    return found


def draw(
    sources: Mapping[str, int], shares: Sequence[int], *, seed: int
) -> dict[int, frozenset[str]]:
    """Draws which sources keep their labels.

    Args:
        sources: number of labelled clips of each.
        shares: in per cent.
        seed: of the order of sources.

    Returns:
        For each share the fewest first sources, in a random order, that have as many
        of the clips.
    """
    names = sorted(sources)
    order = [
        names[i] for i in np.random.default_rng([seed, 17]).permutation(len(names))
    ]
    reached = list(itertools.accumulate(sources[name] for name in order))
    found = {}
    for share in shares:
        number = int(np.searchsorted(reached, share / 100 * reached[-1] - 1e-9)) + 1
        found[share] = frozenset(order[:number])
    return found


def count(source: pathlib.Path) -> dict[str, int]:
    """Counts the training clips with a label, by source.

    Raises:
        InputError: when fewer than two sources have one.
    """
    found: dict[str, int] = {}
    for clip in records.read_split(source, schema.load(source), "train"):
        if np.isfinite(clip.labels).any():
            found[clip.source] = found.get(clip.source, 0) + 1
    if len(found) < 2:
        raise schema.InputError(
            f"{source} has {len(found)} training sources with labels; shares of the "
            "labels are drawn by source and need at least two"
        )
    return found


def only(source: pathlib.Path, out: pathlib.Path, kept: frozenset[str]) -> pathlib.Path:
    """Makes the set in which only some sources can be trained on.

    Their labelled clips are repeated, in turn, until there are as many as before.

    Args:
        source: folder of the data set.
        out: folder to make.
        kept: sources that stay in the training split.

    Returns:
        `out`, or `source` where nothing would change.
    """
    train = records.read_split(source, schema.load(source), "train")
    if all(mine(clip, kept) for clip in train):
        return source

    def change(pairs: Iterator[derived.Pair]) -> Iterator[derived.Pair]:
        train = []
        for split, clip in pairs:
            if split == "train":
                train.append(clip)
            else:
                yield split, clip
        labelled = [clip for clip in train if mine(clip, kept)]
        yield from (("train", clip) for clip in repeated(labelled, len(train)))

    return derived.rewrite(
        source,
        out,
        change,
        description="labelled training clips of these sources only, repeated to as "
        f"many as before: {', '.join(sorted(kept))}",
    )


def mine(clip: records.Clip, kept: frozenset[str]) -> bool:
    """Whether a training clip keeps its labels and has one."""
    return clip.source in kept and bool(np.isfinite(clip.labels).any())


def repeated(clips: Sequence[records.Clip], number: int) -> Iterator[records.Clip]:
    """Yields clips in turn, so many in all; a repeated one has a name of its own."""
    for place in range(number):
        turn, at = divmod(place, len(clips))
        clip = clips[at]
        if turn:
            clip = dataclasses.replace(clip, clip=f"{clip.clip} ({turn + 1})")
        yield clip


def figure(
    rows: Sequence[results.Row], lines: Mapping[str, Mapping[int, str]], title: str
) -> Any:
    """Draws SRCC by share.

    Args:
        rows: of the cases.
        lines: the case of each share, by label of the line.
        title: of the figure.
    """
    pyplot = figures.start()
    by_case = {row["case"]: row for row in rows}
    found, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for place, (label, cases) in enumerate(lines.items()):
        shown = [
            (share, by_case[case]["srcc"], by_case[case]["srcc_sd"] or 0.0)
            for share, case in cases.items()
            if by_case[case]["srcc"] is not None
        ]
        if shown:
            at, mean, spread = zip(*shown, strict=True)
            # Aside a little, so that bars don't hide each other.
            at = [share * (1 + 0.02 * place) for share in at]
            axes.errorbar(at, mean, spread, marker="o", ms=4, capsize=3, label=label)
    axes.set_xscale("log")
    ticks = sorted({share for cases in lines.values() for share in cases})
    axes.set_xticks(ticks, [f"{share} %" for share in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training labels")
    axes.set_ylabel("test SRCC, mean over tasks; bars: sd over seeds")
    axes.legend()
    axes.set_title(title)
    return found
