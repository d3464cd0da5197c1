"""Changes that nobody minds, planted so that scores learn to ignore them.

Another loudness, a good codec, other colours, a smaller picture. Each is one entry
like a flaw, without penalties.
"""

import math

import cv2
import numpy as np

from extract.degrading import Audio, Flaw, Pictures, Scene
from extract.degrading.sound_flaws import coded, limited, spectral_distance

MAX_GAIN = 12.0  # dB, up or down
AAC_RATE = (160_000, 64_000)  # bit/s just above strength 0, and at 1
MAX_GRADE = 0.25  # of brightness, contrast and each colour
LEAST_SIDE = 256  # pixels of the shorter side

FLAWS: dict[str, Flaw] = {}


def _gain_db(strength: float, seed: int) -> float:
    sign = 1 if np.random.default_rng([seed, 31]).uniform() < 0.3 else -1
    return sign * MAX_GAIN * strength


def _gain(audio: Audio, strength: float, scene: Scene) -> Audio:
    return limited(audio * 10 ** (_gain_db(strength, scene.seed) / 20))


def _measure_gain(before, after, strength, scene):
    ratio = np.mean(np.square(after)) / max(np.mean(np.square(before)), 1e-12)
    measured = 10 * math.log10(max(ratio, 1e-12))
    planted = _gain_db(strength, scene.seed)
    # Louder sound stops at full scale.
    return planted, measured, bool(abs(measured - planted) < 0.5 or planted > 0)


FLAWS["gain"] = Flaw(
    "sound", f"up to {MAX_GAIN} dB louder or quieter", "dB", {}, _gain, _measure_gain
)


def _aac_rate(strength: float) -> int:
    return round(AAC_RATE[0] + (AAC_RATE[1] - AAC_RATE[0]) * strength)


def _aac(audio: Audio, strength: float, scene: Scene) -> Audio:
    return coded(audio, "aac", "adts", _aac_rate(strength))


def _measure_aac(before, after, strength, scene):
    return _aac_rate(strength), spectral_distance(before, after), None


FLAWS["aac"] = Flaw(
    "sound",
    "AAC at {} down to {} bit/s".format(*AAC_RATE),
    "bit/s; measured: dB distance of log spectra",
    {},
    _aac,
    _measure_aac,
)


def _grade(pictures: Pictures, strength: float, scene: Scene) -> Pictures:
    rng = np.random.default_rng([scene.seed, 32])
    gains = 1 + MAX_GRADE * strength * rng.uniform(-1, 1, 3) / 2
    power = 1 + MAX_GRADE * strength * rng.uniform(-1, 1)
    levels = np.linspace(0, 1, 256)[:, None] ** power * gains
    table = np.round(255 * np.clip(levels, 0, 1)).astype(np.uint8)[None]
    for pixels in pictures:
        yield cv2.LUT(pixels, table)


def _scale(pictures: Pictures, strength: float, scene: Scene) -> Pictures:
    for pixels in pictures:
        sides = np.array(pixels.shape[1::-1])
        least = max(LEAST_SIDE / sides.min(), 1 - 0.6 * strength)
        if least < 1:
            small = np.round(sides * least / 2).astype(int) * 2
            pixels = cv2.resize(pixels, tuple(small), interpolation=cv2.INTER_AREA)
        yield pixels


def _unmeasured(before, after, strength, scene):
    return strength, math.nan, None


FLAWS["grade"] = Flaw(
    "picture",
    f"gamma and the gain of each colour by up to {MAX_GRADE:.0%} x strength",
    "strength; not measured",
    {},
    _grade,
    _unmeasured,
)
FLAWS["scale"] = Flaw(
    "picture",
    f"smaller, by up to 0.4, with {LEAST_SIDE} pixels at least",
    "strength; not measured",
    {},
    _scale,
    _unmeasured,
)
