"""Action units backend `openface`: reads the tables that OpenFace wrote.

The one thing to know: lines are placed by their time, and a row between two good lines
is interpolated. On two real tables that leaves 0.30 to 0.44 of the error of taking the
nearest line when 30 lines a second become 25 rows, and 0.41 to 0.57 where every second
line is missing.
"""

import csv
import math
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from extract import backends
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
_PLAUSIBLE_STEP = (1 / 240, 1.0)  # seconds between lines of a table made from a video
_WIDEST_GAP = 1.5  # steps between two lines that are interpolated
_NO_NUMBER = re.compile(r"[+-]?(nan.*|1\.#.*)|", re.IGNORECASE)  # as Windows spells it


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
        units, mask = read(table, clip.rows, clip.frame_seconds)
        beyond = seconds_beyond(table, clip.rows, clip.frame_seconds)
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
    path = pathlib.Path(path)
    columns = _columns(path)
    missing = [name for name in FEATURES if f"{name}_r" not in columns]
    if missing:
        raise schema.InputError(
            f"{path.name} lacks the column {missing[0]}_r; expected an OpenFace table "
            f"with the {len(UNITS)} intensities {FEATURES[0]}_r to {FEATURES[-1]}_r"
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
    known, first = np.unique(seconds[lines], return_index=True)
    order = np.flatnonzero(lines)[first]
    values = np.clip(values[order], 0, MAX_INTENSITY)
    rows = np.arange(num_rows) / schema.FPS
    features = _resampled(rows, known, values, good[order], step)
    return features, np.isfinite(features[:, 0])


def seconds_beyond(
    path: str | pathlib.Path, num_rows: int, frame_seconds: Sequence[float]
) -> float:
    """Returns how long a table goes on after a clip: long where it is another's.

    Args:
        path: a table that `read` takes.
        num_rows: rows of the clip.
        frame_seconds: time of each of the clip's own frames, from 0.
    """
    path = pathlib.Path(path)
    seconds, _ = _placed(_columns(path), frame_seconds, path)
    last = np.max(seconds, initial=0.0, where=np.isfinite(seconds))
    return max(0.0, float(last) - num_rows / schema.FPS)


def _resampled(
    rows: np.ndarray,
    known: np.ndarray,
    values: np.ndarray,
    good: np.ndarray,
    step: float,
) -> np.ndarray:
    """Returns values at the times `rows` from lines at the times `known`, rising."""
    features = np.full((len(rows), values.shape[-1]), np.nan, np.float32)
    if not len(known):
        return features
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
    return features


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
            f"{path.name} has neither a usable timestamp nor a frame column; "
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
                cells = {
                    name: line[place].strip() if place < len(line) else ""
                    for name, place in places.items()
                }
                failed = _float(cells.get("success", "1")) != 1
                for name, cell in cells.items():
                    value = _float(cell)
                    if value is None and not (failed and name.endswith("_r")):
                        raise schema.InputError(
                            f"{path.name} line {number}: {name} is {cell!r}; expected "
                            "a number"
                        )
                    table[name].append(math.nan if value is None else value)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise schema.InputError(f"{path.name} cannot be read: {error}") from error
    return {name: np.array(values, float) for name, values in table.items()}


def _float(cell: str) -> float | None:
    """Returns a cell's number, NaN where it says that it has none, None for a word."""
    if _NO_NUMBER.fullmatch(cell):
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return None


def group(name: str) -> str:
    """Returns the group that a feature belongs to where groups are compared."""
    unit = int(name[2:4])
    if unit in (25, 26):
        return "mouth opening"
    return "upper face" if unit in (1, 2, 4, 5, 6, 7, 45) else "lower face"
