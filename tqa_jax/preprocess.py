"""Imputation, winsorising, z-scores and PCA, fitted on training frames only.

The one thing to know: `fit` sees the rows of the training split that were measured
and nothing else; `apply` is the same function for NumPy and JAX arrays.

PCA is the eigendecomposition of the correlation matrix, which is summed over clips in
float64. That is exact for sets larger than memory, where scikit-learn's
`IncrementalPCA` is an approximation; on a set that fits, the tests hold it against
scikit-learn's `PCA`.
"""

import dataclasses
import io
import logging
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from tqa_jax import output, schema

_logger = logging.getLogger(__name__)

_SAMPLE_ROWS = 50_000
# In standard deviations. Of fewer than a million rows none can be further from their
# mean, and what is further must not overflow, not even in float16 after PCA.
_FARTHEST = 1000.0
# Relative: rounding of float32 inputs leaves a constant feature with a tiny deviation.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Transform:
    """What `apply` does to one modality.

    Attributes:
        median: replaces NaN and infinity, float32 (D,).
        low: least value, float32 (D,): 1000 standard deviations below the mean, or the
            winsorising bound if that is higher. -inf in files of older versions.
        high: largest value, likewise, float32 (D,).
        mean: of the imputed, winsorised training rows, float32 (D,).
        scale: 1 / standard deviation, 0 for a constant feature, float32 (D,).
        components: principal directions, float32 (D, P), scaled by one number such
            that the outputs have mean variance 1 over the training rows; empty
            (D, 0) for a modality that is passed through.
        explained: share of the variance that the kept components hold, 1 without PCA.
    """

    median: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    explained: float

    @property
    def width(self) -> int:
        """Features a frame after `apply`."""
        return self.components.shape[1] or len(self.median)


def apply(transform: Transform, rows: Float[Any, "*T D"]) -> Float[Any, "*T P"]:
    """Applies a fitted transform to rows of one modality.

    Args:
        transform: what `fit` returned for the modality.
        rows: raw features, a NumPy or JAX array; NaN and infinity are imputed.

    Returns:
        Finite features, of the same kind of array; float16 can hold them.
    """
    xp = rows.__array_namespace__()
    rows = xp.where(xp.isfinite(rows), rows, transform.median)
    rows = xp.clip(rows, transform.low, transform.high)
    # In place in NumPy, on the copy that `where` made.
    rows -= transform.mean
    rows *= transform.scale
    if transform.components.shape[1]:
        rows = rows @ transform.components
    return rows


def fit(
    clips: Callable[[], Iterable[Mapping[str, np.ndarray]]],
    widths: Mapping[str, int],
    *,
    pca: Mapping[str, int],
    winsorise: float = 0.0,
) -> dict[str, Transform]:
    """Fits the transforms of all modalities in two passes over the training clips.

    Args:
        clips: starts a pass; yields for each clip the measured rows (frame mask True)
            of each modality, float32 (T_m, D_m).
        widths: width of each modality.
        pca: width after PCA by modality; others, and modalities that are not wider
            than their target, are passed through.
        winsorise: values beyond this many interquartile ranges outside the quartiles
            are moved to that bound; 0 is off, Tukey's fences are 1.5. A feature whose
            quartiles are equal is left alone: all that it says lies outside them.

    Returns:
        A transform for each modality. Medians and quartiles come from all rows, or
        from a random 50,000 of them if there are more; means, deviations and
        components from all rows.

    Raises:
        InputError: for a modality without a measured row.
    """
    if unknown := sorted(set(pca) - set(widths)):
        _logger.warning(
            "preprocess.pca names %s, which is not among the modalities %s",
            ", ".join(unknown),
            ", ".join(widths),
        )
    samples = {name: _Sample(width) for name, width in widths.items()}
    for clip in clips():
        for name, rows in clip.items():
            samples[name].add(rows)
    start = {name: samples[name].quartiles(name, winsorise) for name in widths}
    sums = {name: np.zeros(width) for name, width in widths.items()}
    products = {name: np.zeros((width, width)) for name, width in widths.items()}
    for clip in clips():
        for name, rows in clip.items():
            median, low, high = start[name]
            rows = np.where(np.isfinite(rows), rows, median).astype(np.float64)
            rows = np.clip(rows, low, high) - median
            sums[name] += rows.sum(axis=0)
            products[name] += rows.T @ rows
    return {
        name: _transform(
            start[name],
            sums[name] / samples[name].seen,
            products[name] / samples[name].seen,
            pca.get(name, 0),
        )
        for name in widths
    }


class _Sample:
    """Keeps a uniform random sample of rows (reservoir sampling)."""

    def __init__(self, width: int) -> None:
        self._rows = np.empty((0, width), np.float32)
        self._rng = np.random.default_rng(0)
        self.seen = 0

    def add(self, rows: np.ndarray) -> None:
        room = _SAMPLE_ROWS - len(self._rows)
        self._rows = np.concatenate([self._rows, rows[:room]]) if room else self._rows
        for number, row in enumerate(rows[room:], start=self.seen + room):
            place = self._rng.integers(number + 1)
            if place < _SAMPLE_ROWS:
                self._rows[place] = row
        self.seen += len(rows)

    def quartiles(
        self, name: str, winsorise: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not self.seen:
            raise schema.InputError(
                f"modality {name!r} has no measured frame in the training split; "
                "leave it out with model.modalities"
            )
        width = self._rows.shape[1]
        found = np.zeros((3, width))
        for column in range(width):
            values = self._rows[:, column]
            values = values[np.isfinite(values)]
            if len(values):
                values = values.astype(np.float64)  # Their differences may overflow.
                found[:, column] = np.percentile(values, (25, 50, 75))
        lower, median, upper = found
        sparse = upper - lower <= _ROUNDING * np.abs(median)
        reach = np.where(sparse | (not winsorise), np.inf, winsorise * (upper - lower))
        return median.astype(np.float32), lower - reach, upper + reach


def _transform(
    start: tuple[np.ndarray, np.ndarray, np.ndarray],
    mean: np.ndarray,
    product: np.ndarray,
    target: int,
) -> Transform:
    """Turns moments about the median into a transform."""
    median, low, high = start
    covariance = product - np.outer(mean, mean)
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
    constant = deviation <= _ROUNDING * (np.abs(median) + np.abs(mean)) + 1e-12
    scale = np.where(constant, 0, 1 / np.where(constant, 1, deviation))
    mean = median + mean
    largest = float(np.finfo(np.float32).max)
    reach = np.minimum(_FARTHEST * deviation, 0.99 * largest)
    low = np.maximum(low, np.maximum(mean - reach, -largest))
    high = np.minimum(high, np.minimum(mean + reach, largest))
    components = np.zeros((len(median), 0))
    explained = 1.0
    if 0 < target < len(median):
        values, vectors = np.linalg.eigh(covariance * np.outer(scale, scale))
        values = np.maximum(values[::-1][:target], 0)
        vectors = vectors[:, ::-1][:, :target]
        explained = float(values.sum() / max(np.count_nonzero(scale), 1))
        # An eigenvector's sign is arbitrary: its largest entry is made positive.
        largest = np.argmax(np.abs(vectors), axis=0)
        vectors = vectors * np.sign(vectors[largest, np.arange(target)])
        # Without a feature that varies all values are 0.
        components = vectors * np.sqrt(target / (values.sum() or target))
    arrays = (median, low, high, mean, scale, components)
    return Transform(*(array.astype(np.float32) for array in arrays), explained)


def save(path: pathlib.Path, transforms: Mapping[str, Transform]) -> None:
    """Writes transforms to an `.npz` file, atomically."""
    arrays = {
        f"{name}/{field}": value
        for name, transform in transforms.items()
        for field, value in dataclasses.asdict(transform).items()
    }
    output.write_arrays(path, **arrays)


def load(path: pathlib.Path | io.BytesIO) -> dict[str, Transform]:
    """Reads what `save` wrote.

    Raises:
        InputError: when the file is damaged.
    """
    arrays = output.read_arrays(path)
    names = dict.fromkeys(key.split("/")[0] for key in arrays)
    fields = [field.name for field in dataclasses.fields(Transform)]
    try:
        found = [[arrays[f"{name}/{field}"] for field in fields] for name in names]
    except KeyError as error:
        raise schema.InputError(f"{path} is damaged: it has no {error}") from error
    return {
        name: Transform(*values[:-1], explained=float(values[-1]))
        for name, values in zip(names, found, strict=True)
    }
