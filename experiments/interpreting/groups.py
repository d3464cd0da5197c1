"""Groups of a modality's features that mean something together.

The one thing to know: groups are made of the names that the extractor gives its
features, and every feature is in exactly one of them. Where the extractor is not ours,
or of another version, groups are single columns or blocks of neighbours, and say so.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tqa_jax import schema

_SINGLE = 24  # Columns up to which each is a group where names are not known.
_BLOCKS = 8

# Points of MediaPipe's face mesh, as its `FaceLandmarksConnections` has them.
_LIPS = (
    *(0, 13, 14, 17, 37, 39, 40, 61, 78, 80, 81, 82, 84, 87, 88, 91, 95, 146, 178, 181),
    *(185, 191, 267, 269, 270, 291, 308, 310, 311, 312, 314, 317, 318, 321, 324, 375),
    *(402, 405, 409, 415),
)
_EYES = (
    *(7, 33, 133, 144, 145, 153, 154, 155, 157, 158, 159, 160, 161, 163, 173, 246),
    *(249, 263, 362, 373, 374, 380, 381, 382, 384, 385, 386, 387, 388, 390, 398, 466),
)
_BROWS = (
    *(46, 52, 53, 55, 63, 65, 66, 70, 105, 107),
    *(276, 282, 283, 285, 293, 295, 296, 300, 334, 336),
)
_CONTOUR = (
    *(10, 21, 54, 58, 67, 93, 103, 109, 127, 132, 136, 148, 149, 150, 152, 162, 172),
    *(176, 234, 251, 284, 288, 297, 323, 332, 338, 356, 361, 365, 377, 378, 379, 389),
    *(397, 400, 454),
)
_POINTS = {
    **dict.fromkeys(_LIPS, "mouth"),
    **dict.fromkeys(_EYES, "eyes"),
    **dict.fromkeys(_BROWS, "brows"),
    **dict.fromkeys(_CONTOUR, "contour"),
}
_CHANGE = ("_change", "_change_peak", "_still_share")
_LEVEL = ("rms_db", "peak_db", "crest_db", "clipped_share", "clip_level_share")
_NOISE = ("noise_floor_db", "snr_db", "silent_share", "periodicity")
_UPPER = (1, 2, 4, 5, 6, 7, 45)
_OPENING = (25, 26)


class Group(NamedTuple):
    """Columns of a modality under one name."""

    name: str
    columns: np.ndarray


def of(modality: schema.Modality) -> tuple[list[Group], bool]:
    """Groups the features of a modality.

    Args:
        modality: of a data set.

    Returns:
        The groups, and whether they are those of a known extractor.

    Raises:
        InputError: when the extractor is ours and cannot be loaded.
    """
    known = _known(modality)
    if known is None:
        return _unnamed(modality.width), False
    names, name_of = known
    found: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        found.setdefault(name_of(name), []).append(column)
    return [Group(name, np.array(columns)) for name, columns in found.items()], True


def _known(
    modality: schema.Modality,
) -> tuple[Sequence[str], Callable[[str], str]] | None:
    """Names of features and the group of each, for extractors of this version."""
    if modality.backend not in _EXTRACTORS:
        return None
    module, name_of = _EXTRACTORS[modality.backend]
    try:
        extractor = importlib.import_module(f"extract.{module}")
    except ImportError as error:
        raise schema.InputError(
            f"the names of {modality.name} ({modality.backend}) need its extractor: "
            f"pip install 'tqa_jax[extract]' ({error})"
        ) from error
    if module == "action_units":
        names = extractor.NAMES[modality.backend]
        version = extractor.VERSIONS[modality.backend]
    else:
        names, version = extractor.FEATURES, extractor.VERSION
    if (modality.version, modality.width) != (version, len(names)):
        return None
    return names, name_of


def _unnamed(width: int) -> list[Group]:
    if width <= _SINGLE:
        return [Group(f"column {i}", np.array([i])) for i in range(width)]
    blocks = np.array_split(np.arange(width), _BLOCKS)
    return [Group(f"columns {b[0]} to {b[-1]}", b) for b in blocks]


def _nss(name: str) -> str:
    crop = name.split("_")[0]
    if crop not in ("face", "eyes", "mouth"):
        return "whole picture"
    return f"{crop}: {'change' if name.endswith(_CHANGE) else 'appearance'}"


def _logmel(name: str) -> str:
    if name.startswith("mel"):
        if name.endswith("_delta"):
            return "change of the mel bands"
        low = int(name[3:5]) < 32
        return "mel bands below 1.7 kHz" if low else "mel bands above 1.7 kHz"
    if name in _LEVEL:
        return "level and clipping"
    return "noise and pauses" if name in _NOISE else "spectral shape"


def _keypoints(name: str) -> str:
    return _POINTS.get(int(name[5:8]), "nose, cheeks, forehead")


def _action_units(name: str) -> str:
    unit = int(name[2:4])
    if unit in _OPENING:
        return "mouth opening"
    return "upper face" if unit in _UPPER else "lower face"


def _each(name: str) -> str:
    return name


_EXTRACTORS = {
    "nss": ("nss", _nss),
    "logmel": ("logmel", _logmel),
    "facelandmarker": ("keypoints", _keypoints),
    "blendshapes": ("action_units", _action_units),
    "openface": ("action_units", _action_units),
    "geometry": ("action_units", _action_units),
    "correlation": ("sync", _each),
    "head": ("sync_head", _each),
    "syncnet": ("networks.syncnet", _each),
}
