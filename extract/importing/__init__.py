"""Data that other programs left: read without trust, brought into our form.

Importers differ in what they read. From there on a clip is rows of numbers by modality,
NaN where nothing was measured, and scores by task; `write` makes a data set of them.
"""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

import tqa_jax
from extract import folds
from tqa_jax import records, schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """Options of all importers."""

    out: pathlib.Path
    """Folder of the data set to make."""
    name: str = "imported"
    """Name of the data set."""
    folds: int | None = None
    """Draw splits by source, into so many folds (default: splits as in the file)."""
    fold: int = 0
    """Fold to test on, from 0; the next is for validation."""
    dtype: Literal[records.DTYPES] = "float32"
    """How features are stored."""


class Sample(NamedTuple):
    """A clip as an importer reads it.

    Attributes:
        clip: id.
        source: the speaker or source video.
        split: of `schema.SPLITS`; any where splits are drawn.
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
    options: Given,
    samples: Sequence[Sample],
    of: schema.Schema,
    features: Callable[[Sample], Mapping[str, np.ndarray]] = lambda s: s.features,
    **provenance: Any,
) -> str:
    """Writes a data set, in splits that share no source.

    Args:
        options: of the command.
        samples: clips in the order to store.
        of: modalities and tasks.
        features: of a sample, when its turn comes.
        **provenance: where the data are from.

    Returns:
        How many clips each split has, for people.
    """
    splits = "as in the file"
    if options.folds is None:
        sources = collections.defaultdict(list)
        for sample in samples:
            sources[sample.split].append(sample.source)
        try:
            schema.check_splits(sources)
        except schema.InputError as error:
            raise schema.InputError(f"{error}: --folds=5 draws by source") from error
    else:
        splits = f"fold {options.fold} of {options.folds} by source"
        clips = collections.Counter(sample.source for sample in samples)
        drawn = folds.draw(clips, folds=options.folds, fold=options.fold)
        samples = [sample._replace(split=drawn[sample.source]) for sample in samples]
    info = records.write_dataset(
        options.out,
        ((s.split, _clip(s._replace(features=features(s)), of)) for s in samples),
        name=options.name,
        schema=of,
        provenance={
            **provenance,
            "version": tqa_jax.__version__,
            "splits": splits,
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
            f"--score_range is {text!r}; expected two numbers, the lowest score first, "
            "for example 1,5"
        )
    return low, high
