"""Data that other programs left: read without trust, brought into our form.

Importers differ in what they read. From there on a clip is rows of numbers by modality,
NaN where nothing was measured, and scores by task; `write` makes a data set of them.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

import tqa_jax
from tqa_jax import records, schema


class Sample(NamedTuple):
    """A clip as an importer reads it.

    Attributes:
        clip: id.
        source: the speaker or source video.
        split: of `schema.SPLITS`.
        features: by modality (T, D), shorter ones end before the longest; NaN, what
            float32 cannot hold, or no entry where nothing was measured.
        labels: scores by task; NaN or no entry for a missing one.
    """

    clip: str
    source: str
    split: str
    features: Mapping[str, np.ndarray]
    labels: Mapping[str, float]


def write(
    options: Any,
    samples: Iterable[Sample],
    of: schema.Schema,
    **provenance: Any,
) -> str:
    """Writes a data set.

    Args:
        options: of the command: `out`, `name`, `dtype`, `folds` and `fold`.
        samples: clips in the order to store.
        of: modalities and tasks.
        **provenance: where the data are from.

    Returns:
        How many clips each split has.
    """
    splits = f"fold {options.fold} of {options.folds} by source"
    info = records.write_dataset(
        options.out,
        ((sample.split, _clip(sample, of)) for sample in samples),
        name=options.name,
        schema=of,
        provenance={
            **provenance,
            "version": tqa_jax.__version__,
            "splits": "as in the file" if options.folds is None else splits,
        },
        dtype=options.dtype,
    )
    return ", ".join(f"{split.clips} {name}" for name, split in info.splits.items())


def _clip(sample: Sample, of: schema.Schema) -> records.Clip:
    count = max(len(rows) for rows in sample.features.values())
    features = {}
    for name, width in of.widths.items():
        rows = np.asarray(sample.features.get(name, np.empty((0, width))))
        features[name] = np.full((count, rows.shape[-1]), np.nan, np.float32)
        with np.errstate(over="ignore"):
            features[name][: len(rows)] = rows
        features[name][~np.isfinite(features[name])] = np.nan
    return records.Clip(
        clip=sample.clip,
        source=sample.source,
        features=features,
        frame_mask={n: np.isfinite(rows).any(axis=-1) for n, rows in features.items()},
        labels=np.array([sample.labels.get(n, np.nan) for n in of.task_names], "f4"),
    )


def score_range(text: str) -> tuple[float, float]:
    """Returns the lowest and the highest score that `LOW,HIGH` says."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise schema.InputError(
            f"--score_range is {text!r}; expected two numbers, the lowest score first"
        )
    return low, high
