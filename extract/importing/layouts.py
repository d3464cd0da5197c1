"""Layouts of the older PyTorch system's feature pickles, as samples one by one.

L0 is a list of samples, L1 a dict of such lists by split, L2 a dict of stacked arrays
by split. Nothing is converted here; a label whose mask is False is NaN, all else is as
in the file, -1.0 included.
"""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from extract import folds, importing
from extract.importing import unpickle
from tqa_jax import schema

MODALITIES: Mapping[str, tuple[str, str]] = {
    "visual": ("visual", "py-feat: units, emotions, points in pixels; row per face"),
    "audio": ("audio", "HuBERT base, last hidden state, 50 rows a second or resampled"),
    "keypoint": ("keypoints", "468 points of MediaPipe Face Mesh, x, y, z as it gave"),
    "au": ("action_units", "distances named after action units, each row over its max"),
    "syncnet": ("sync", "score and offset of the whole clip, repeated on every row"),
}
"""The older system's name of each modality: ours, and what it is."""
_NEW_SYNC = "lip_sync_score_new"  # replaces `lip_sync_score` in L2, if it has a mask
_LARGEST = 1e6  # of a label; NaN passes
_CLIP_ID = re.compile(r"(.+)_\d{5}")


class File(NamedTuple):
    """What a pickle holds.

    Attributes:
        layout: `L0`, `L1` or `L2`.
        samples: in the order of the file, with its names of modalities; a clip is its
            own source where the file has no ids.
        ranges: usual lowest and highest score of each task.
    """

    layout: str
    samples: list[importing.Sample]
    ranges: dict[str, tuple[float, float]]


def read(path: str | pathlib.Path) -> File:
    """Reads a pickle of one of the three layouts, level by level.

    Raises:
        schema.InputError: the file is refused, or has another layout.
    """
    value, layout = unpickle.read(path), "L1"
    if type(value) is list:
        value, layout = {"": value}, "L0"
    elif (
        not isinstance(value, dict)
        or not value
        or not set(value) <= set(folds.SPLIT_NAMES)
    ):
        content = (
            f"keys {sorted(value)[:5]}" if isinstance(value, dict) else type(value)
        )
        raise schema.InputError(
            f"{path} holds {content}; expected a list of samples, or a dict with the "
            "keys train, val (or valid) and test"
        )
    elif not all(type(items) is list for items in value.values()):
        layout = "L2"
        value = {
            split: _unstacked(columns, f"{path}: split {split!r}", split)
            for split, columns in value.items()
        }
    samples = [
        _sample(
            item,
            f"{path}: sample {number}" + f" of {split!r}" * bool(split),
            split,
            f"{split}_{number:05d}" if layout == "L2" else None,
        )
        for split, items in value.items()
        for number, item in enumerate(items)
    ]
    new_sync = {_NEW_SYNC in sample.labels for sample in samples}
    if len(new_sync) > 1:
        raise schema.InputError(
            f"{path} has {_NEW_SYNC} in some splits only; expected all or none"
        )
    if True in new_sync:
        for sample in samples:
            sample.labels["lip_sync"] = sample.labels.pop(_NEW_SYNC)
    usual = (0.0, 1.0) if layout == "L2" else (-1.0, 1.0)
    ranges = {label: usual for sample in samples for label in sample.labels}
    if "lip_sync" in ranges and (layout != "L2" or True in new_sync):
        ranges["lip_sync"] = (0.0, 5.0)
    return File(layout, samples, ranges)


def _unstacked(columns: Any, where: str, split: str) -> list[dict[str, Any]]:
    """Returns one split of L2 as samples like those of the other layouts."""
    columns = _dict(columns, where, "features", "labels")
    features, labels, masks = (
        {
            key: _array(array, where, key, (1, 2, 3))
            for key, array in _dict(columns.get(part, {}), f"{where}, {part}").items()
            if part != "features" or key in MODALITIES
        }
        for part in ("features", "labels", "valid_masks")
    )
    if not features or not labels:
        raise schema.InputError(f"{where} has no features or no labels")
    names = columns.get("video_ids", [None] * len(next(iter(labels.values()))))
    if isinstance(names, unpickle.Array) and names.value is not None:
        names = names.value.tolist()
    if type(names) is not list:
        raise schema.InputError(f"{where} has video_ids that are no list of text")
    stacked = [*features.items(), *labels.items(), *masks.items(), ("video_ids", names)]
    if len({len(column) for _, column in stacked}) > 1:
        counts = {key: len(column) for key, column in stacked}
        raise schema.InputError(f"{where} has unequal numbers of clips: {counts}")
    new_sync = _NEW_SYNC in labels and _NEW_SYNC in masks
    labels.pop("lip_sync_score" if new_sync else _NEW_SYNC, None)
    return [
        {
            "video_id": name,
            "split": split,
            "features": {key: column[number] for key, column in features.items()},
            "labels": {
                key: column[number]
                if key not in masks or masks[key][number].all()
                else math.nan
                for key, column in labels.items()
            },
        }
        for number, name in enumerate(names)
    ]


def _sample(item: Any, where: str, split: str, default: str | None) -> importing.Sample:
    """Checks one sample; `default` is its id if it has none, None if it must."""
    item = _dict(item, where, "features", "labels", "video_id")
    clip, split = item["video_id"], split or item.get("split")
    if clip is None and default:
        clip = source = default
    elif type(clip) is str and clip.isprintable() and _CLIP_ID.fullmatch(clip):
        source = _CLIP_ID.fullmatch(clip)[1]
    else:
        shown = repr(clip[:80]) if type(clip) is str else type(clip).__name__
        raise schema.InputError(
            f"{where}: video_id {shown} does not name its source; expected "
            "<source>_<five digits>"
        )
    if split not in tuple(folds.SPLIT_NAMES):
        raise schema.InputError(
            f"{where} has no split or an unknown one; available: "
            f"{', '.join(folds.SPLIT_NAMES)}"
        )
    features = {
        key: _array(array, where, key, (1,) if key == "syncnet" else (2,))
        for key, array in _dict(item["features"], f"{where}, features").items()
        if key in MODALITIES
    }
    given = _dict(item["labels"], f"{where}, labels")
    labels = {
        key.removesuffix("_score"): _number(given[key], where, key) for key in given
    }
    for key in given:
        if f"{key}_score" in given:
            raise schema.InputError(
                f"{where} has the labels {key[:80]!r} and '{key[:80]}_score', which "
                "would be one task; rename one"
            )
    return importing.Sample(clip, source, folds.SPLIT_NAMES[split], features, labels)


def _dict(value: Any, where: str, *keys: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise schema.InputError(f"{where} is a {type(value).__name__}, no dict")
    for key in keys:
        if key not in value:
            raise schema.InputError(f"{where} has no {key!r}")
    return value


def _array(value: Any, where: str, key: str, dimensions: tuple[int, ...]) -> np.ndarray:
    array = getattr(value, "value", value)
    numbers = isinstance(array, np.ndarray) and array.dtype.kind in "fiub"
    if not numbers or array.ndim not in dimensions:
        raise schema.InputError(
            f"{where}: {key} is no array of numbers with "
            f"{' or '.join(map(str, dimensions))} axes"
        )
    return array


def _number(value: Any, where: str, key: str) -> float:
    value = getattr(value, "value", value)
    if isinstance(value, np.ndarray | np.generic) and value.size == 1:
        value = value.item()
    if type(value) not in (float, int) or abs(value) > _LARGEST:
        raise schema.InputError(f"{where}: {key} is a {type(value).__name__}, no score")
    return float(value)
