"""What is in the demo data set: who speaks, which flaws are planted, which labels.

A clip's labels are functions of the strengths of its flaws (`flaws.labels`), never
opinions of people, and a plan is drawn in full before anything is rendered, so that it
depends on the size and the seed alone.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from extract import backends
from extract.degrading import flaws
from tqa_jax import schema

VERSION = 2  # of the clips and labels; counts up with any change to them
SECONDS = 3.2
MISSING_LABELS = 0.08  # share of label cells
MISSING_MODALITIES = 0.04  # share of clips without one of their modalities
COVERED = 0.06  # share of clips with a hand before the face for 0.6 to 1.4 s
FLAWS = (
    *("offset", "swap", "noise", "band_limit", "clipping"),
    *("blur", "compression", "freeze", "jitter", "damping", "affect"),
)
"""Flaws that are rendered or planted into rendered clips."""
_FLAW_COUNTS = (0.10, 0.25, 0.35, 0.30)  # chance of 0, 1, 2 and 3 flaws in a clip
_CLIPS_PER_IDENTITY = 6
MEANINGS = {
    "swap": "share of the speech replaced by other words of the same voice",
    "damping": "smile, brows, blinks and head movement x (1 - strength)",
}
"""Of flaws that are drawn here, or planted otherwise than in clips of others."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that decides one clip.

    Attributes:
        clip: its id.
        source: its identity, a face with its voice.
        split: of the identity.
        identity_seed: of face and voice.
        seed: of everything else that is drawn.
        arousal: of the voice, 0 (calm) to 1 (excited); the face's without a flaw.
        strengths: planted flaws, of `flaws.FLAWS`, in 0..1.
        covered: first and last frame (exclusive) of a hand before the face.
        labels: scores by task; missing ones are not there.
        absent: modalities left out on purpose.
    """

    clip: str
    source: str
    split: str
    identity_seed: int
    seed: int
    arousal: float
    strengths: Mapping[str, float]
    covered: tuple[int, int] | None
    labels: Mapping[str, float]
    absent: tuple[str, ...]


def plan(clips: int, seed: int = 0) -> tuple[Plan, ...]:
    """Draws what to render; equal arguments give equal plans.

    Raises:
        schema.InputError: for fewer than 3 clips, one a split, or a negative seed.
    """
    if clips < 3:
        raise schema.InputError(f"the demo set of {clips} clips; expected at least 3")
    if seed < 0:
        raise schema.InputError(f"seed is {seed}; expected 0 or more")
    rng = np.random.default_rng([seed, clips, VERSION])
    splits = _identity_splits(clips)
    names = [task.name for task in schema.TASKS]
    modalities = list(backends.options().backends)
    frames = round(SECONDS * schema.FPS)
    gone = rng.choice(clips, math.ceil(MISSING_MODALITIES * clips), replace=False)
    hidden = rng.choice(clips, math.ceil(COVERED * clips), replace=False)
    cells = clips * len(names)
    unrated = rng.choice(cells, round(MISSING_LABELS * cells), replace=False)
    plans = []
    for index in range(clips):
        identity = index % len(splits)
        strengths = _draw_strengths(rng)
        calm = rng.uniform() < 0.5
        scores = flaws.labels(strengths)
        start = int(rng.integers(5, frames // 2))
        absent = modalities[rng.integers(len(modalities))]
        plans.append(
            Plan(
                clip=f"demo{index:04d}",
                source=f"identity{identity:03d}",
                split=splits[identity],
                identity_seed=seed * 100_000 + identity,
                seed=seed * 100_000 + index,
                arousal=float(rng.uniform(0.05, 0.3) + (0 if calm else 0.65)),
                strengths=strengths,
                covered=(start, start + int(rng.integers(15, 36)))
                if index in hidden
                else None,
                labels={
                    name: scores[name]
                    for at, name in enumerate(names)
                    if index * len(names) + at not in unrated
                },
                absent=(absent,) if index in gone else (),
            )
        )
    return tuple(plans)


def _identity_splits(clips: int) -> tuple[str, ...]:
    """Returns the split of each identity: about 65, 15 and 20 % of them."""
    count = min(clips, max(12, round(clips / _CLIPS_PER_IDENTITY)))
    least = 3 if count >= 9 else 1
    validation = max(least, round(0.15 * count))
    test = max(least, round(0.2 * count))
    train = count - validation - test
    return ("train",) * train + ("validation",) * validation + ("test",) * test


def _draw_strengths(rng: np.random.Generator) -> dict[str, float]:
    """Draws up to three flaws."""
    count = rng.choice(len(_FLAW_COUNTS), p=_FLAW_COUNTS)
    chosen = rng.choice(FLAWS, count, replace=False)
    return {str(flaw): flaws.draw_strength(flaw, rng) for flaw in sorted(chosen)}
