"""Action units backend `openface`: reads the tables that OpenFace wrote.

Lines are placed by their time, and a row between two good lines is interpolated. On two
real tables that leaves 0.30 to 0.44 of the error of taking the nearest line when 30
lines a second become 25 rows, and 0.41 to 0.57 where every second line is missing.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from extract import backends, csv_file
from tqa_jax import schema

MODALITY = "action_units"
VERSION = "2"
DESCRIPTION = "17 action unit intensities, 0-5, written by OpenFace"
OPTION = backends.Option(
    "openface", "DIR", "folder of OpenFace tables, <clip>.csv each"
)
UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
FEATURES = tuple(f"AU{unit:02d}" for unit in UNITS)
"""Names of the features, in OpenFace's order; its columns are these with `_r`."""
MAX_INTENSITY = 5.0

_MAX_BEYOND = 0.5  # seconds that a table may go on after its clip
_MIN_CONFIDENCE = 0.5  # of OpenFace's detector, where the table has the column
_LEAST_STEP, _MOST_STEP = 1 / 240, 1.0  # seconds between lines, made from a video
_WIDEST_GAP = 1.5  # steps between two lines that are interpolated
_COLUMNS = tuple(f"{name}_r" for name in FEATURES)
_OTHERS = ("frame", "face_id", "timestamp", "confidence", "success")
# No number as builds for Windows spell it, too, and what is too large for one.
_MISSING = r"[+-]?(nan|1\.#|inf|\d+e\d{3}).*|"


def check(setting: backends.Setting) -> None:
    """Checks the option, see `extract.backends`.

    Raises:
        schema.InputError: there is no such folder.
    """
    if not pathlib.Path(setting.argument).is_dir():
        raise schema.InputError(f"no folder of OpenFace tables at {setting.argument}")


def file(path: str | pathlib.Path, setting: backends.Setting) -> pathlib.Path:
    """Returns where a clip's table is, or would be."""
    return pathlib.Path(setting.argument) / f"{pathlib.Path(path).stem}.csv"


def make(setting: backends.Setting) -> backends.Measurer:
    """Returns what measures a clip, see `extract.backends`."""

    def finish(clip: backends.Clip) -> tuple[np.ndarray, np.ndarray]:
        table = file(clip.path, setting)
        if not table.is_file():
            clip.notes.append(
                f"no OpenFace table {table.name}: action units are missing"
            )
            missing = np.full((clip.rows, len(FEATURES)), np.nan, np.float32)
            return missing, np.zeros(clip.rows, bool)
        lines = _lines(table, clip.frame_seconds)
        units, mask = _at_rows(clip.rows, *lines)
        last = np.max(lines[0], initial=0.0, where=np.isfinite(lines[0]))
        beyond = last - clip.rows / schema.FPS
        if beyond > _MAX_BEYOND:
            clip.notes.append(
                f"the OpenFace table goes on for {beyond:.1f} s after the clip: is it "
                "of another video?"
            )
        if not mask.all():
            clip.notes.append(
                f"the OpenFace table covers {mask.sum()} of {len(mask)} rows"
            )
        return units, mask

    return backends.Measurer(finish)


def read(
    path: str | pathlib.Path, num_rows: int, frame_seconds: Sequence[float]
) -> tuple[Float[np.ndarray, "T 17"], Bool[np.ndarray, " T"]]:
    """Reads OpenFace's intensities `AUxx_r` onto the 25 Hz rows of a clip.

    A row between two good lines is interpolated linearly. Next to a line that is
    missing, and at the ends, it takes the nearest line, half a step away at most.
    Lines are placed by `timestamp`, or by `frame` (from 1) and the clip's own frame
    times when there is no `timestamp` or it cannot be one (OpenFace writes 1 ms steps
    for image sequences). Lines with `success` 0, with `confidence` below 0.5 or without
    one of the intensities (an empty cell, not a number, infinite) are missing; of
    several faces the one with most lines counts.

    Args:
        path: the table; column names may have spaces around them.
        num_rows: rows of the clip.
        frame_seconds: time of each of the clip's own frames, from 0.

    Returns:
        Intensities in 0..5, NaN where missing, and the mask.

    Raises:
        schema.InputError: the table cannot be read or lacks a column.
    """
    return _at_rows(num_rows, *_lines(pathlib.Path(path), frame_seconds))


def _lines(
    path: pathlib.Path, frame_seconds: Sequence[float]
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """Returns the time of each line, the usual step, intensities and faces.

    NaN is the time of a line that has none, and the intensities of one that is missing.
    """
    table = csv_file.read(
        path,
        *_COLUMNS,
        expected=f"; expected an OpenFace table with {len(UNITS)} intensities",
        missing=_MISSING,
        only=(*_COLUMNS, *_OTHERS),
        ragged=True,
        name=path.name,
    )

    def column(name: str, default: float) -> np.ndarray:
        if name not in table.header:
            return np.full(len(table.rows), default)
        return np.array([table.number(row, name) for row in table.rows])

    good = column("success", 1) == 1
    values = np.full((len(good), len(_COLUMNS)), np.nan)
    for line in np.flatnonzero(good):  # Any word may stand where OpenFace failed.
        values[line] = table.numbers([table.rows[line]], _COLUMNS)
    good &= column("confidence", 1) >= _MIN_CONFIDENCE
    values[~good | np.isnan(values).any(axis=-1)] = np.nan
    faces = column("face_id", 0)
    seconds = column("timestamp", np.nan)
    steps = np.diff(np.unique(seconds[~np.isnan(seconds)]))
    step = float(np.median(steps)) if len(steps) else 1 / schema.FPS
    if "timestamp" in table.header and _LEAST_STEP <= step <= _MOST_STEP:
        return seconds, step, values, faces
    if "frame" not in table.header:
        raise schema.InputError(
            f"{path.name} has neither a usable timestamp nor a frame column; "
            "expected `timestamp` in seconds or `frame` counted from 1"
        )
    times = np.asarray(frame_seconds, float)
    index = column("frame", np.nan) - 1
    inside = (index >= 0) & (index < len(times))
    seconds = np.full(len(index), np.nan)
    seconds[inside] = times[index[inside].astype(int)]
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / schema.FPS
    return seconds, step, values, faces


def _at_rows(
    num_rows: int,
    seconds: np.ndarray,
    step: float,
    values: np.ndarray,
    faces: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `read` does, from what `_lines` returned."""
    rows = np.arange(num_rows) / schema.FPS
    features = np.full((num_rows, values.shape[-1]), np.nan, np.float32)
    good = np.isfinite(values[:, 0])
    lines = np.isfinite(seconds)
    if good.any():
        names, counts = np.unique(faces[good], return_counts=True)
        lines &= faces == names[counts.argmax()]
    known, first = np.unique(seconds[lines], return_index=True)
    order = np.flatnonzero(lines)[first]
    values, good = np.clip(values[order], 0, MAX_INTENSITY), good[order]
    if len(known):
        nearest = np.searchsorted((known[1:] + known[:-1]) / 2, rows)
        near = np.abs(known[nearest] - rows) <= 0.5 * max(step, 1 / schema.FPS) + 1e-3
        taken = near & good[nearest]
        features[taken] = values[nearest[taken]]
    if len(known) > 1:
        after = np.clip(np.searchsorted(known, rows), 1, len(known) - 1)
        gap = known[after] - known[after - 1]
        share = (rows - known[after - 1]) / gap
        between = (share >= 0) & (share <= 1) & (gap <= _WIDEST_GAP * step + 1e-3)
        between &= good[after] & good[after - 1]
        after, share = after[between], share[between, None]
        features[between] = (1 - share) * values[after - 1] + share * values[after]
    return features, np.isfinite(features[:, 0])


def group(name: str) -> str:
    """Returns the group that a feature belongs to where groups are compared."""
    unit = int(name[2:4])
    if unit in (25, 26):
        return "mouth opening"
    return "upper face" if unit in (1, 2, 4, 5, 6, 7, 45) else "lower face"
