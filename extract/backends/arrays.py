"""Backend `arrays`: a user's own features, `<clip>.npy` (T, D), as a modality.

    --arrays=emotion:emotion_features/@30

makes the modality `emotion` of the rows in `emotion_features/<clip>.npy`, 30 a second
from the clip's first picture on. They are brought to 25 rows a second by straight
lines; rows after an array's end, and rows with NaN or infinite numbers beside them, are
masked.
"""

import pathlib
import re

import numpy as np
from jaxtyping import Bool, Float

from extract import backends
from tqa_jax import cli, schema

MODALITY = None  # the option names it
VERSION = "1"
DESCRIPTION = "features of the user's own"
OPTION = backends.Option(
    "arrays",
    "NAME:DIR@FPS",
    "your own features as modality NAME: folder of arrays <clip>.npy (T, D) and their "
    "frame rate; may be given again",
    repeats=True,
)


def folder(setting: backends.Setting) -> tuple[pathlib.Path, float]:
    """Returns the folder and the frame rate of the option.

    Raises:
        schema.InputError: it says none.
    """
    parts = re.fullmatch(r"(.+)@(\d+\.?\d*|\.\d+)", setting.argument)
    if not parts or not float(parts[2]) > 0:
        raise schema.InputError(
            f"--arrays is {setting.modality}:{setting.argument}; expected "
            "NAME:DIR@FPS, for example emotion:emotion_features/@30"
        )
    return cli.path(parts[1]), float(parts[2])


def width(setting: backends.Setting) -> int:
    """Returns the number of features, that of the folder's first array.

    Raises:
        schema.InputError: there is no array.
    """
    where, _ = folder(setting)
    first = min(where.glob("*.npy"), default=None)
    if first is None:
        raise schema.InputError(
            f"--arrays: no array in {where}; expected <clip>.npy of shape (T, D)"
        )
    return _read(first).shape[-1]


check = width


def file(path: str | pathlib.Path, setting: backends.Setting) -> pathlib.Path:
    """Returns where a clip's array is, or would be."""
    return folder(setting)[0] / f"{pathlib.Path(path).stem}.npy"


def make(setting: backends.Setting) -> backends.Measurer:
    """Returns what measures a clip, see `extract.backends`."""

    def finish(clip: backends.Clip) -> tuple[np.ndarray, np.ndarray]:
        expected, path = width(setting), file(clip.path, setting)
        if not path.is_file():
            clip.notes.append(f"no array {path.name}: {setting.modality} is missing")
            missing = np.full((clip.rows, expected), np.nan, np.float32)
            return missing, np.zeros(clip.rows, bool)
        values = _read(path)
        if values.shape[-1] != expected:
            raise schema.InputError(
                f"{path.name} of {setting.modality} has {values.shape[-1]} features; "
                f"the first array of its folder has {expected}"
            )
        features, mask = resample(values, folder(setting)[1], clip.rows)
        if not mask.all():
            clip.notes.append(
                f"{path.name} covers {mask.sum()} of {len(mask)} rows of "
                f"{setting.modality}"
            )
        return features, mask

    return backends.Measurer(finish)


def resample(
    values: Float[np.ndarray, "F D"], fps: float, num_rows: int
) -> tuple[Float[np.ndarray, "T D"], Bool[np.ndarray, " T"]]:
    """Brings an array to the rows' instants, t/25 s, by lines between its own.

    Args:
        values: row f is the instant f/fps s.
        fps: rows a second.
        num_rows: rows of the clip.

    Returns:
        Features, NaN where the mask is False: where a neighbour is not finite, and
        more than half a step after the last row.
    """
    place = np.arange(num_rows) * fps / schema.FPS
    mask = place <= len(values) - 0.5
    place = np.minimum(place, len(values) - 1)
    low = np.floor(place).astype(int)
    share = (place - low)[:, None].astype(np.float32)
    high = np.where(share[:, 0] > 0, np.minimum(low + 1, len(values) - 1), low)
    with np.errstate(invalid="ignore"):
        features = (1 - share) * values[low] + share * values[high]
    mask &= np.isfinite(features).all(axis=-1)
    features[~mask] = np.nan
    return features.astype(np.float32), mask


def _read(path: pathlib.Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise schema.InputError(f"{path.name} is not a NumPy array: {error}") from error
    if values.ndim != 2 or not values.size or values.dtype.kind not in "fiub":
        raise schema.InputError(
            f"{path.name} holds {values.dtype} of shape {values.shape}; expected "
            "numbers of shape (T, D)"
        )
    return values.astype(np.float32)
