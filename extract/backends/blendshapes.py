"""Action units backend `blendshapes`: the landmarker's activations, mapped to 17 units.

MediaPipe's blendshapes are named as ARKit's (Apple, `ARFaceAnchor.BlendShapeLocation`,
says for each which movement it is). The table pairs each with the unit whose definition
in FACS (Ekman, Friesen, Hager 2002) is that movement; see also M. Ozel, "ARKit to FACS
Cheat Sheet" (melindaozel.com/arkit-to-facs-cheat-sheet). Left and right are averaged
and the activation in 0..1 is multiplied by 5: that is OpenFace's scale and nobody's
calibration, so compare the backends by correlation.
Two units have no shape of their own: AU23 (lip tightener) takes `mouthPress` (AU24,
its neighbour), AU25 (lips part) the largest of lips and jaw apart less closure.
MediaPipe's `cheekSquint` and `noseSneer` hardly ever leave 0, so AU06 and AU09 carry
little.

| unit | blendshapes | unit | blendshapes |
|---|---|---|---|
| AU01 inner brow raiser | browInnerUp | AU14 dimpler | mouthDimple |
| AU02 outer brow raiser | browOuterUp | AU15 lip corner depressor | mouthFrown |
| AU04 brow lowerer | browDown | AU17 chin raiser | mouthShrugLower |
| AU05 upper lid raiser | eyeWide | AU20 lip stretcher | mouthStretch |
| AU06 cheek raiser | cheekSquint | AU23 lip tightener | mouthPress |
| AU07 lid tightener | eyeSquint | AU25 lips part | see above |
| AU09 nose wrinkler | noseSneer | AU26 jaw drop | jawOpen |
| AU10 upper lip raiser | mouthUpperUp | AU45 blink | eyeBlink |
| AU12 lip corner puller | mouthSmile | | |
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from extract import backends, landmarks
from extract.backends import openface

MODALITY = "action_units"
VERSION = "1"
DESCRIPTION = "17 action units, 0-5, from the face landmarker's blendshapes"
NEEDS = ("face",)
DEFAULT = True
FEATURES = openface.FEATURES
"""Names of the features, in the order of the last axis."""

group = openface.group

_TABLE: Mapping[int, tuple[str, ...]] = {
    1: ("browInnerUp",),
    2: ("browOuterUpLeft", "browOuterUpRight"),
    4: ("browDownLeft", "browDownRight"),
    5: ("eyeWideLeft", "eyeWideRight"),
    6: ("cheekSquintLeft", "cheekSquintRight"),
    7: ("eyeSquintLeft", "eyeSquintRight"),
    9: ("noseSneerLeft", "noseSneerRight"),
    10: ("mouthUpperUpLeft", "mouthUpperUpRight"),
    12: ("mouthSmileLeft", "mouthSmileRight"),
    14: ("mouthDimpleLeft", "mouthDimpleRight"),
    15: ("mouthFrownLeft", "mouthFrownRight"),
    17: ("mouthShrugLower",),
    20: ("mouthStretchLeft", "mouthStretchRight"),
    23: ("mouthPressLeft", "mouthPressRight"),
    26: ("jawOpen",),
    45: ("eyeBlinkLeft", "eyeBlinkRight"),
}


def from_blendshapes(
    activations: Float[np.ndarray, "*T 52"],
) -> Float[np.ndarray, "*T 17"]:
    """Maps blendshape activations (0..1) to action unit intensities (0..5).

    Args:
        activations: in the order of `landmarks.BLENDSHAPES`; NaN where missing.
    """

    def mean(*names: str) -> np.ndarray:
        columns = [landmarks.BLENDSHAPES.index(name) for name in names]
        return activations[..., columns].mean(axis=-1)

    units = {unit: mean(*names) for unit, names in _TABLE.items()}
    lower = mean("mouthLowerDownLeft", "mouthLowerDownRight")
    apart = np.maximum(units[26] - mean("mouthClose"), 0)
    units[25] = np.maximum(apart, np.maximum(lower, units[10]))
    stacked = np.stack([units[unit] for unit in openface.UNITS], axis=-1)
    return (openface.MAX_INTENSITY * stacked).astype(np.float32)


def make(setting: backends.Setting) -> backends.Measurer:
    """Returns what measures a clip, see `extract.backends`."""
    return backends.Measurer(
        lambda clip: (from_blendshapes(clip.blendshapes), clip.seen)
    )
