"""All flaws by name, how strong they are drawn, and the labels that follow."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from extract.degrading import (
    Flaw,
    Scene,
    harmless,
    mouth_flaws,
    picture_flaws,
    sound_flaws,
)
from tqa_jax import schema

FLAWS: Mapping[str, Flaw] = {
    **sound_flaws.FLAWS,
    **picture_flaws.FLAWS,
    **mouth_flaws.FLAWS,
    **harmless.FLAWS,
    "affect": Flaw(
        "rendering",
        "a calm face with an excited voice, or the other way, at 1 in full",
        "",
        {"cross_modal": 0.90, "overall": 0.30},
    ),
}
SOUND = tuple(name for name, flaw in FLAWS.items() if flaw.kind == "sound")
PICTURE = tuple(n for n, flaw in FLAWS.items() if flaw.kind in ("picture", "face"))
_ORDER = (
    *(
        "offset",
        "swap",
        "vocoder",
        "clipping",
        "noise",
        "band_limit",
        "codec",
        "aac",
        "gain",
    ),
    *("damping", "mumble", "identity", "mouth_jitter", "mouth_blur"),
    *("jitter", "freeze", "blur", "grade", "scale", "compression"),
)  # in which several are planted


def plant(kind: str, media: Any, strengths: Mapping[str, float], scene: Scene) -> Any:
    """Plants the flaws of a kind, see `degrading.Flaw`, into sound or pictures."""
    for name in _ORDER:
        if name in strengths and FLAWS[name].kind == kind:
            media = FLAWS[name].plant(media, strengths[name], scene)
    return media


def labels(strengths: Mapping[str, float]) -> dict[str, float]:
    """Computes the scores of a clip from the flaws planted in it.

    A task's score is `1 + 4 * product over flaws of (1 - penalty * strength)`: 5
    without flaws, falling with each strength, never below 1.

    Args:
        strengths: by flaw, in 0..1.

    Example:
        >>> labels({"offset": 0.5})["lip_sync"], labels({"offset": 0.5})["expression"]
        (3.1, 5.0)
    """
    scores = {}
    for task in schema.TASKS:
        left = 1.0
        for flaw, strength in strengths.items():
            left *= 1 - FLAWS[flaw].penalties.get(task.name, 0.0) * strength
        scores[task.name] = task.low + (task.high - task.low) * left
    return scores


def draw_strength(flaw: str, rng: np.random.Generator) -> float:
    """Draws how strong a flaw is; an offset is a whole number of frames."""
    strength = float(rng.uniform(0.15, 1.0))
    if flaw == "offset":
        return round(strength * sound_flaws.MAX_OFFSET) / sound_flaws.MAX_OFFSET
    return strength


def described(names: Iterable[str]) -> dict[str, Any]:
    """Says how labels follow from flaws and what each means, for `provenance`."""
    return {
        "label": "1 + 4 * product over flaws of (1 - penalty * strength)",
        "penalties": {name: dict(FLAWS[name].penalties) for name in names},
        "flaws": {name: FLAWS[name].meaning for name in names},
    }
