"""A data set made ready for a run: fitted preprocessing and the windows of a split.

The one thing to know: everything that is fitted or counted here sees the training
split only. A split's features are read when they are first needed; those of the test
split are not used before the final evaluation.
"""

import dataclasses
import io
import logging
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from tqa_jax import batch as batches
from tqa_jax import pipeline, preprocess, processes, records, schema

_logger = logging.getLogger(__name__)
_NAMED = 5  # Clips that a line of the log names at most.


@dataclasses.dataclass(frozen=True)
class Split:
    """Windows of one split, in memory or streamed.

    Attributes:
        clips: which clip each window belongs to, and their labels.
        frames: length of the time axis.
        windows: all of them in NumPy, or None when they are streamed.
        stream: reads windows from the shards.
    """

    clips: pipeline.Clips
    frames: int
    windows: batches.Batch | None
    stream: pipeline.Stream

    @property
    def size(self) -> int:
        """Number of windows."""
        return len(self.clips.window_clip)

    def batches(self, order: Int[np.ndarray, "S B"]) -> Iterator[batches.Batch]:
        """The batches of an order, in NumPy."""
        if self.windows is None:
            return self.stream.batches(order)
        return pipeline.pick(self.windows, order)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set folder and how to preprocess it."""

    path: pathlib.Path
    info: schema.DatasetInfo
    modalities: tuple[str, ...]
    transforms: Mapping[str, preprocess.Transform]
    max_frames: int
    memory_bytes: float

    def split(self, name: str) -> Split:
        """Reads a split, into memory if it fits in `memory_bytes`.

        Raises:
            InputError: when the split has no measured clip or a shard is damaged.
        """
        clips = pipeline.describe(
            records.read_split(self.path, self.info, name),
            self.max_frames,
            self.modalities,
        )
        if clips.unmeasured:
            _logger.warning(
                "%d %s clip(s) without a measured frame are left out: %s%s",
                len(clips.unmeasured),
                name,
                ", ".join(clips.unmeasured[:_NAMED]),
                ", ..." * (len(clips.unmeasured) > _NAMED),
            )
        if not clips.names:
            if clips.unmeasured:
                raise schema.InputError(
                    f"no {name} clip of {self.path} has a measured frame of "
                    f"{', '.join(self.modalities)}; extract other clips"
                )
            raise schema.InputError(
                f"{self.path} has no {name} clips; give the labels CSV a split column, "
                "or more sources"
            )
        frames = min(self.max_frames, max(clips.frames))
        stream = pipeline.Stream(
            self.path, self.info, name, self.transforms, clips=clips, frames=frames
        )
        width = sum(transform.width for transform in self.transforms.values())
        windows = None
        if len(clips.window_clip) * frames * width * 4 <= self.memory_bytes:
            windows = pipeline.load_windows(
                records.read_split(self.path, self.info, name),
                self.transforms,
                max_frames=self.max_frames,
                frames=frames,
            )
        return Split(clips, frames, windows, stream)


def open_dataset(
    path: str | pathlib.Path,
    *,
    modalities: Sequence[str],
    pca: Mapping[str, int],
    winsorise: float,
    max_frames: int,
    memory_bytes: float,
    fitted: pathlib.Path,
    group: processes.Group = processes.ALONE,
) -> Dataset:
    """Opens a data set and fits its preprocessing on the training split.

    Of several processes one fits and tells the others.

    Args:
        path: the folder.
        modalities: which to use, or empty for all.
        pca: see `preprocess.fit`.
        winsorise: see `preprocess.fit`.
        max_frames: longest window.
        memory_bytes: a split larger than this is streamed.
        fitted: file that keeps the fit; read when it exists, else written.
        group: processes that open the data set together.

    Raises:
        InputError: for an unknown modality or an unreadable data set.
    """
    path = pathlib.Path(path)

    def fit() -> bytes:
        info = schema.load(path)
        names = _names(info, modalities, path)
        if not is_fitted(fitted):
            _fit(path, info, names, pca=pca, winsorise=winsorise, fitted=fitted)
        found = list(preprocess.load(fitted))
        if found != list(names):
            raise schema.InputError(
                f"{fitted} holds the fit of {', '.join(found)}, not of "
                f"{', '.join(names)}; delete it or choose another --workdir"
            )
        return fitted.read_bytes()

    transforms = preprocess.load(io.BytesIO(group.from_writer(fit)))
    for name, transform in transforms.items():
        _logger.info(
            "%s: %d features, %d after preprocessing, %.1f %% of variance kept",
            name,
            len(transform.median),
            transform.width,
            100 * transform.explained,
        )
    info = group.together(lambda: schema.load(path))
    return Dataset(path, info, tuple(transforms), transforms, max_frames, memory_bytes)


def is_fitted(fitted: pathlib.Path) -> bool:
    """Whether a file keeps a fit; says so where it is damaged."""
    try:
        return fitted.exists() and bool(preprocess.load(fitted))
    except schema.InputError as error:
        _logger.warning("%s; fitting again", error)
        return False


def _names(
    info: schema.DatasetInfo, modalities: Sequence[str], path: pathlib.Path
) -> tuple[str, ...]:
    unknown = [name for name in modalities if name not in info.schema.widths]
    if unknown:
        raise schema.InputError(
            f"model.modalities names {unknown[0]!r}; {path} has "
            f"{', '.join(info.schema.widths)}"
        )
    return tuple(modalities) or tuple(info.schema.widths)


def _fit(
    path: pathlib.Path,
    info: schema.DatasetInfo,
    names: Sequence[str],
    *,
    pca: Mapping[str, int],
    winsorise: float,
    fitted: pathlib.Path,
) -> None:
    def rows() -> Iterable[dict[str, np.ndarray]]:
        for clip in records.read_split(path, info, "train"):
            measured = pipeline.measured_rows(clip)
            yield {name: measured[name] for name in names}

    widths = {name: info.schema.widths[name] for name in names}
    transforms = preprocess.fit(rows, widths, pca=pca, winsorise=winsorise)
    preprocess.save(fitted, transforms)


def label_statistics(
    labels: Float[np.ndarray, "clips K"],
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, "K K"]]:
    """Mean of each task and correlation between tasks over training clips.

    Returns:
        Means, 0 for a task without labels (nothing reads it), and Pearson
        correlations over the clips that have both labels, NaN where undefined.
    """
    present = np.isfinite(labels)
    filled = np.where(present, labels, 0).astype(np.float64)
    means = filled.sum(axis=0) / np.maximum(present.sum(axis=0), 1)
    tasks = labels.shape[1]
    correlation = np.full((tasks, tasks), np.nan)
    for i in range(tasks):
        for j in range(tasks):
            both = present[:, i] & present[:, j]
            x, y = labels[both, i], labels[both, j]
            if both.sum() >= 3 and np.ptp(x) > 0 and np.ptp(y) > 0:
                correlation[i, j] = np.corrcoef(x, y)[0, 1]
    return means.astype(np.float32), correlation.astype(np.float32)


def label_variances(labels: Float[np.ndarray, "clips K"]) -> Float[np.ndarray, " K"]:
    """Variance of each task over its training labels; NaN for a task without."""
    columns = [column[np.isfinite(column)].astype(np.float64) for column in labels.T]
    return np.array([c.var() if c.size else np.nan for c in columns])
