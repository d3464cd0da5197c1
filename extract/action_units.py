"""Action units (FACS) in OpenFace's order and 0..5 scale, from two backends.

The one thing to know: `blendshapes` maps the landmarker's 52 activations to the 17
units by the table below, `openface` reads intensities that OpenFace wrote. Both have
the same names and scale, not the same calibration: a data set holds one of them.

MediaPipe's blendshapes are named as ARKit's. The table pairs each with the unit whose
FACS definition (Ekman, Friesen, Hager 2002) describes the same movement; see also
M. Ozel, "ARKit to FACS Cheat Sheet". Left and right are averaged and the activation in
0..1 is multiplied by 5.
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

import csv
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from extract import landmarks
from tqa_jax import schema

UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
FEATURES = tuple(f"AU{unit:02d}" for unit in UNITS)
"""Names of the features, in the order of the last axis."""
VERSIONS: Mapping[str, str] = {"blendshapes": "1", "openface": "1"}
DESCRIPTIONS: Mapping[str, str] = {
    "blendshapes": "17 action units, 0-5, from the face landmarker's blendshapes",
    "openface": "17 action unit intensities, 0-5, written by OpenFace",
}
MAX_INTENSITY = 5.0

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
_MIN_CONFIDENCE = 0.5  # of OpenFace's detector, where the table has the column
_PLAUSIBLE_STEP = (1 / 240, 1.0)  # seconds between rows of a table made from a video


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
    stacked = np.stack([units[unit] for unit in UNITS], axis=-1)
    return (MAX_INTENSITY * stacked).astype(np.float32)


def read_openface(
    path: str | pathlib.Path, num_rows: int, frame_seconds: Sequence[float]
) -> tuple[Float[np.ndarray, "T 17"], Bool[np.ndarray, " T"]]:
    """Reads OpenFace's intensities `AUxx_r` onto the 25 Hz rows of a clip.

    A row takes the nearest line, half a step away at most. Lines are placed by
    `timestamp`, or by `frame` (from 1) and the clip's own frame times when there is
    no `timestamp` or it cannot be one (OpenFace writes 1 ms steps for image
    sequences). Lines with `success` 0 or `confidence` below 0.5 are missing; of
    several faces the one with most lines counts.

    Args:
        path: the table; column names may have spaces around them.
        num_rows: rows of the clip.
        frame_seconds: time of each of the clip's own frames, from 0.

    Returns:
        Intensities, NaN where missing, and the mask.

    Raises:
        schema.InputError: the table cannot be read or lacks a column.
    """
    columns = _columns(pathlib.Path(path))
    missing = [name for name in FEATURES if f"{name}_r" not in columns]
    if missing:
        raise schema.InputError(
            f"{path} lacks the column {missing[0]}_r; expected an OpenFace table with "
            f"the {len(UNITS)} intensities {FEATURES[0]}_r to {FEATURES[-1]}_r"
        )
    values = np.stack([columns[f"{name}_r"] for name in FEATURES], axis=-1)
    good = np.isfinite(values).all(axis=-1)
    if "success" in columns:
        good &= columns["success"] == 1
    if "confidence" in columns:
        good &= columns["confidence"] >= _MIN_CONFIDENCE
    seconds, step = _placed(columns, frame_seconds, path)
    lines = np.isfinite(seconds)
    if "face_id" in columns and good.any():
        faces, counts = np.unique(columns["face_id"][good], return_counts=True)
        lines &= columns["face_id"] == faces[counts.argmax()]
    features = np.full((num_rows, len(UNITS)), np.nan, np.float32)
    if lines.any():
        order = np.flatnonzero(lines)[np.argsort(seconds[lines], kind="stable")]
        known = seconds[order]
        rows = np.arange(num_rows) / schema.FPS
        nearest = np.searchsorted((known[1:] + known[:-1]) / 2, rows)
        near = np.abs(known[nearest] - rows) <= 0.5 * max(step, 1 / schema.FPS) + 1e-3
        taken = near & good[order[nearest]]
        features[taken] = np.clip(values[order[nearest[taken]]], 0, MAX_INTENSITY)
    return features, np.isfinite(features[:, 0])


def _placed(
    columns: Mapping[str, np.ndarray], frame_seconds: Sequence[float], path
) -> tuple[np.ndarray, float]:
    """Returns the time of each line and the usual step, in seconds."""
    if "timestamp" in columns:
        seconds = columns["timestamp"]
        steps = np.diff(np.unique(seconds[np.isfinite(seconds)]))
        step = float(np.median(steps)) if len(steps) else 1 / schema.FPS
        if _PLAUSIBLE_STEP[0] <= step <= _PLAUSIBLE_STEP[1]:
            return seconds, step
    if "frame" not in columns:
        raise schema.InputError(
            f"{path} has neither a usable timestamp nor a frame column; "
            "expected `timestamp` in seconds or `frame` counted from 1"
        )
    times = np.asarray(frame_seconds, float)
    index = columns["frame"] - 1
    inside = (index >= 0) & (index < len(times))
    seconds = np.full(len(index), np.nan)
    seconds[inside] = times[index[inside].astype(int)]
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / schema.FPS
    return seconds, step


def _columns(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the numeric columns that are needed, by name stripped of spaces."""
    wanted = {f"{name}_r" for name in FEATURES}
    wanted |= {"frame", "face_id", "timestamp", "confidence", "success"}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            header = [name.strip() for name in next(lines, [])]
            places = {name: header.index(name) for name in wanted & set(header)}
            table: dict[str, list[float]] = {name: [] for name in places}
            for number, line in enumerate(lines, 2):
                if not line:
                    continue
                if len(line) < len(header):
                    raise schema.InputError(
                        f"{path} line {number} has {len(line)} of {len(header)} columns"
                    )
                for name, place in places.items():
                    table[name].append(_number(line[place], path, number, name))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise schema.InputError(f"{path} cannot be read: {error}") from error
    return {name: np.array(values, float) for name, values in table.items()}


def _number(text: str, path: pathlib.Path, line: int, name: str) -> float:
    if not text.strip():
        return math.nan
    try:
        return float(text)
    except ValueError as error:
        raise schema.InputError(
            f"{path} line {line}: {name} is {text.strip()!r}; expected a number"
        ) from error
