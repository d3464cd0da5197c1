"""Layouts of the older PyTorch system's feature pickles, as clips one by one.

The one thing to know: L0 is a list of samples, L1 a dict of such lists by split, L2 a
dict of stacked arrays by split. Nothing is converted here; a label whose mask is False
is NaN, all else is as in the file, -1.0 included.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from extract.importing import unpickle
from tqa_jax import schema

FEATURES = ("visual", "audio", "keypoint", "au", "syncnet")
"""Names of the modalities in the file; `consistency` is left out."""
NEW_SYNC = "lip_sync_score_new"
"""The label that replaces `lip_sync_score` in L2, where it has a mask too."""

_SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_LARGEST = 1e6  # of a label; NaN passes
_CLIP_ID = re.compile(r"(.+)_\d{5}")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One clip; its arrays are views of the file.

    Attributes:
        clip: id.
        source: what the id says before its five digits; None where the file has no ids.
        split: of `schema.SPLITS`.
        features: by name, of `FEATURES`: (T, D), `syncnet` (2,).
        labels: by task, without `_score`; NaN where masked.
    """

    clip: str
    source: str | None
    split: str
    features: Mapping[str, np.ndarray]
    labels: Mapping[str, float]


def read(path: str | pathlib.Path) -> tuple[str, list[Sample]]:
    """Reads a pickle of one of the three layouts, level by level.

    Args:
        path: the file.

    Returns:
        `L0`, `L1` or `L2`, and the clips in the order of the file.

    Raises:
        schema.InputError: the file is refused, or has another layout.
    """
    value = unpickle.read(path)
    if type(value) is list:
        return "L0", [
            _sample(path, item, number, None) for number, item in enumerate(value)
        ]
    if type(value) is not dict or not value or not set(value) <= set(_SPLITS):
        found = f"keys {sorted(value)[:5]}" if type(value) is dict else type(value)
        raise schema.InputError(
            f"{path} holds {found}; expected a list of samples, or a dict with the "
            "keys train, val (or valid) and test"
        )
    if all(type(items) is list for items in value.values()):
        return "L1", [
            _sample(path, item, number, split)
            for split, items in value.items()
            for number, item in enumerate(items)
        ]
    samples = [
        sample
        for split, columns in value.items()
        for sample in _columnar(path, columns, split)
    ]
    replaced = {NEW_SYNC in sample.labels for sample in samples}
    if len(replaced) > 1:
        raise schema.InputError(
            f"{path} has {NEW_SYNC} in some splits only; expected all or none"
        )
    return "L2", samples


def _sample(path, item: Any, number: int, split: str | None) -> Sample:
    """Reads one sample of L0 or L1."""
    where = f"{path}: sample {number}" + (f" of {split!r}" if split else "")
    item = _dict(item, where, "features", "labels", "video_id")
    clip, stated = item["video_id"], split or item.get("split")
    if type(clip) is not str or not clip:
        raise schema.InputError(f"{where} has a video_id that is no text")
    if type(stated) is not str or stated not in _SPLITS:
        raise schema.InputError(
            f"{where} has no split or an unknown one; available: {', '.join(_SPLITS)}"
        )
    features = {
        key: _array(array, where, key, (1,) if key == "syncnet" else (2,))
        for key, array in _dict(item["features"], f"{where}, features").items()
        if key in FEATURES
    }
    labels = {
        key.removesuffix("_score"): _number(label, where, key)
        for key, label in _labels(item["labels"], where).items()
    }
    return Sample(clip, _source(clip, where), _SPLITS[stated], features, labels)


def _columnar(path, columns: Any, split: str) -> Iterator[Sample]:
    """Reads one split of L2."""
    where = f"{path}: split {split!r}"
    columns = _dict(columns, where, "features", "labels")
    features = {
        key: _array(array, where, key, (2,) if key == "syncnet" else (3,))
        for key, array in _dict(columns["features"], f"{where}, features").items()
        if key in FEATURES
    }
    labels = {
        key: _column(array, where, key)
        for key, array in _labels(columns["labels"], where).items()
    }
    masks = {
        key: _column(array, where, f"mask of {key}")
        for key, array in _dict(columns.get("valid_masks", {}), where).items()
    }
    names = columns.get("video_ids")
    if isinstance(names, unpickle.Array):
        names = names.value.tolist()
    counts = {key: len(array) for key, array in (features | labels).items()}
    counts |= {f"mask of {key}": len(array) for key, array in masks.items()}
    if names is not None:
        if type(names) is not list or not all(type(name) is str for name in names):
            raise schema.InputError(f"{where} has video_ids that are no list of text")
        counts["video_ids"] = len(names)
    if not features or not labels:
        raise schema.InputError(f"{where} has no features or no labels")
    if len(set(counts.values())) != 1:
        raise schema.InputError(f"{where} has unequal numbers of clips: {counts}")
    if NEW_SYNC in labels and NEW_SYNC in masks:
        labels.pop("lip_sync_score", None)
    else:
        labels.pop(NEW_SYNC, None)
    for number in range(next(iter(counts.values()))):
        clip = f"{split}_{number:05d}" if names is None else names[number]
        yield Sample(
            clip,
            None if names is None else _source(clip, where),
            _SPLITS[split],
            {key: array[number] for key, array in features.items()},
            {
                key.removesuffix("_score"): float(array[number].item())
                if key not in masks or masks[key][number].item()
                else math.nan
                for key, array in labels.items()
            },
        )


def _dict(value: Any, where: str, *keys: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise schema.InputError(f"{where} is a {type(value).__name__}, no dict")
    for key in keys:
        if key not in value:
            raise schema.InputError(f"{where} has no {key!r}")
    return value


def _labels(value: Any, where: str) -> dict[str, Any]:
    for key in _dict(value, f"{where}, labels"):
        if not key.isidentifier():
            raise schema.InputError(f"{where} has a label of the name {key[:80]!r}")
        if f"{key}_score" in value:
            raise schema.InputError(
                f"{where} has the labels {key[:80]!r} and '{key[:80]}_score', which "
                "would be one task; rename one"
            )
    return value


def _array(value: Any, where: str, key: str, dimensions: tuple[int, ...]) -> np.ndarray:
    found = value.value if isinstance(value, unpickle.Array) else None
    if found is None or found.ndim not in dimensions or found.dtype.kind not in "fiub":
        raise schema.InputError(
            f"{where}: {key} is no array of numbers with "
            f"{' or '.join(map(str, dimensions))} axes"
        )
    return found


def _number(value: Any, where: str, key: str) -> float:
    if isinstance(value, unpickle.Array) and value.value.size == 1:
        value = value.value.item()
    if type(value) not in (float, int) or abs(value) > _LARGEST:
        raise schema.InputError(f"{where}: {key} is a {type(value).__name__}, no score")
    return float(value)


def _column(value: Any, where: str, key: str) -> np.ndarray:
    """Returns one number a clip, whatever axes of length 1 it has besides."""
    found = _array(value, where, key, (1, 2))
    if found.size != len(found):
        raise schema.InputError(f"{where}: {key} has shape {found.shape}, no column")
    return found


def _source(clip: str, where: str) -> str:
    named = _CLIP_ID.fullmatch(clip)
    if not named or not clip.isprintable():
        raise schema.InputError(
            f"{where}: {clip[:80]!r} does not name its source; expected "
            "<source>_<five digits>"
        )
    return named[1]
