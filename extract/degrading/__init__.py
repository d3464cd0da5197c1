"""Known flaws in copies of clips: what is planted, how, and what is found again.

A flaw is one `Flaw` in `sound_flaws`, `picture_flaws` or `mouth_flaws`. Its strength
runs to 1, and the constants beside it say what 1 means. Sound is an array of a whole
clip, mono at 16 kHz; pictures are RGB at 25 Hz and stream one by one.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from extract import backends, sound
from tqa_jax import schema

RATE = sound.SAMPLE_RATE
FPS = int(schema.FPS)
FRAME = RATE // FPS  # samples of sound a picture

Audio = Float[np.ndarray, " N"]
Pictures = Iterator[UInt8[np.ndarray, "H W 3"]]
Measured = tuple[float, float, bool | None]


@dataclasses.dataclass(frozen=True)
class Scene:
    """What planting knows of a clip beside its pictures and its sound.

    Attributes:
        seed: of all that is drawn.
        rows: how many pictures there are.
        other: sound to swap in, as long as the clip's.
        faces: the face in each picture.
        x264: further settings where pictures are encoded, as in `encode.SAME_BYTES`;
            without these, widths that are no multiple of 256 do not give the same
            bytes twice.
    """

    seed: int
    rows: int = 0
    other: Audio | None = None
    faces: backends.Clip | None = None
    x264: str = ""


class Flaw(NamedTuple):
    """A flaw.

    Attributes:
        kind: what shows it, `sound`, `picture` or `face`; `rendering` for one that can
            only be drawn, which the demo does.
        meaning: of its strength.
        unit: of what is planted and measured.
        penalties: what strength 1 takes from each task, as a share of the score's
            range.
        plant: from sound, or an iterator of pictures, its strength and the scene, to
            the sound or the pictures with the flaw.
        measure: from those of the original and of the copy (for a face: where it was
            found), strength and scene, to what the strength means, what was found (NaN
            where nothing could be), and whether the two agree (None where they are
            different quantities).
    """

    kind: str
    meaning: str
    unit: str
    penalties: Mapping[str, float]
    plant: Callable[[Any, float, Scene], Any] | None = None
    measure: Callable[[Any, Any, float, Scene], Measured] | None = None
