"""Which flaws are planted into which copies of a clip, and how strongly.

A clip gets one flawless copy and others with at most one flaw of the sound and one of
the picture, so that each can be measured on the finished file. What a copy gets depends
on the seed, the clip's id and the flaws that are asked for, not on the other clips, but
for whose sound is swapped in.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from extract import encode, measure
from extract.build import Item
from extract.degrading import flaws
from tqa_jax import schema

VERSION = 2  # of copies and labels; counts up with any change to them
FLAWS = flaws.SOUND + flaws.PICTURE
FILE = "provenance.json"  # beside `labels.csv`
CODEC = [encode.VIDEO, encode.SAME_BYTES]


@dataclasses.dataclass(frozen=True)
class Copy:
    """A degraded copy of a clip.

    Attributes:
        original: what it is made from.
        number: 0 for the flawless copy.
        seed: of all that is drawn when the flaws are planted.
        strengths: planted flaws, of `FLAWS`, in 0..1.
        other: whose sound is swapped in.
        key: digest of everything that the copy's file depends on.
    """

    original: Item
    number: int
    seed: int
    strengths: Mapping[str, float]
    other: Item | None = None
    key: str = ""


def others(
    item: Item, items: Sequence[Item], contents: Mapping[str, str]
) -> list[Item]:
    """Returns the clips whose sound may be swapped into one.

    Sound from another split would carry what training must not know.
    """
    return [
        other
        for other in items
        if other.split == item.split and contents[other.clip] != contents[item.clip]
    ]


def draw(
    items: Sequence[Item],
    contents: Mapping[str, str],
    per_clip: int,
    chosen: Sequence[str],
    seed: int,
) -> tuple[Copy, ...]:
    """Draws the copies of each clip; equal arguments give equal copies.

    Args:
        items: usable clips.
        contents: digests of their files by id.
        per_clip: copies of each, the flawless one among them.
        chosen: flaws to plant.
        seed: another gives other flaws.
    """
    copies = []
    for item in items:
        near = others(item, items, contents)
        possible = [flaw for flaw in chosen if flaw != "swap" or near]
        for number in range(per_clip):
            text = f"{VERSION}:{seed}:{item.clip}:{number}"
            own = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
            rng = np.random.default_rng(own)
            strengths = _strengths(possible, rng) if number else {}
            other = near[int(rng.integers(len(near)))] if "swap" in strengths else None
            foreign = other and contents[other.clip]
            depends = [VERSION, CODEC, contents[item.clip], own, strengths, foreign]
            key = measure.digest(depends)
            copies.append(Copy(item, number, own, strengths, other, key))
    return tuple(copies)


def _strengths(possible: Sequence[str], rng: np.random.Generator) -> dict[str, float]:
    """Draws a flaw of the sound, one of the picture, or both, and how strong."""
    groups = [
        [flaw for flaw in kind if flaw in possible]
        for kind in (flaws.SOUND, flaws.PICTURE)
    ]
    used = int(rng.integers(3))  # 0: sound, 1: picture, 2: both
    drawn = [g for at, g in enumerate(groups) if g and used in (at, 2)]
    strengths = {}
    for group in drawn or [g for g in groups if g]:
        flaw = group[int(rng.integers(len(group)))]
        strengths[flaw] = flaws.draw_strength(flaw, rng)
    return strengths


def provenance(labels: pathlib.Path) -> dict[str, Any] | None:
    """Reads what a labels file is made of, where it was made by planting flaws.

    Returns:
        The content of the `provenance.json` beside it, None where there is none.

    Raises:
        schema.InputError: it belongs to another version of the labels file.
    """
    path = pathlib.Path(labels).with_name(FILE)
    if not path.is_file() or not pathlib.Path(labels).is_file():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise schema.InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(about, dict) or about.get("tool") != "extract.degrade":
        return None
    found = hashlib.sha256(pathlib.Path(labels).read_bytes()).hexdigest()
    if about.get("labels_sha256") != found:
        raise schema.InputError(
            f"{labels} is not the file that {path} describes; restore it, or remove "
            f"{FILE} if the labels are ratings"
        )
    return about
