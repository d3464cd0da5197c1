"""From shards to batches: windows of clips, in an order fixed by seed and epoch.

A row is a *window*. A clip of up to `max_frames` is one window, padded and masked; a
longer one becomes several full windows, evenly spaced between its first and its last
measured frame, which share its labels and whose scores are pooled afterwards. What was
not measured in any modality of the run makes no window.
"""

import concurrent.futures
import contextlib
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

import jax
import numpy as np
from jaxtyping import Int

from tqa_jax import batch, preprocess, records, schema, tfrecord


@dataclasses.dataclass(frozen=True)
class Clips:
    """Identity of the clips of a split that have a measured frame, in stored order.

    Attributes:
        names: clip ids.
        sources: source of each clip.
        labels: float32 (clips, K), NaN for missing.
        window_clip: for each window, the number of its clip, int (windows,).
        window_start: for each window, its first frame, int (windows,).
        frames: length of each clip.
        record: for each clip, the number of its record in the split, int (clips,).
        unmeasured: ids of the clips without a measured frame, which are left out.
    """

    names: tuple[str, ...]
    sources: tuple[str, ...]
    labels: np.ndarray
    window_clip: np.ndarray
    window_start: np.ndarray
    frames: tuple[int, ...]
    record: np.ndarray
    unmeasured: tuple[str, ...]


def window_starts(
    clip: records.Clip, max_frames: int, modalities: Iterable[str]
) -> list[int]:
    """Places full windows evenly over the measured part of a clip.

    Args:
        clip: the clip.
        max_frames: length of a window.
        modalities: those that are read; a frame counts as measured if one of them is.

    Returns:
        The first frame of each window. The stretch from the first measured frame to
        the last is one window if it fits, else ceil(frames / max_frames) of them, less
        those in which nothing was measured. None without a measured frame.
    """
    measured = np.any([clip.frame_mask[name] for name in modalities], axis=0)
    frames = np.flatnonzero(measured)
    if not len(frames):
        return []
    first, length = int(frames[0]), int(frames[-1] - frames[0]) + 1
    number = -(-length // max_frames)
    # Rounded before `first` is added, so that frames in front move no window.
    starts = np.linspace(0, max(0, length - max_frames), number).round() + first
    return [int(start) for start in starts if measured[int(start) :][:max_frames].any()]


def describe(
    clips: Iterable[records.Clip], max_frames: int, modalities: Iterable[str]
) -> Clips:
    """Lists clips and their windows (see `window_starts`); keeps no features."""
    names, sources, labels, window_clip, starts, frames = [], [], [], [], [], []
    record, unmeasured = [], []
    for number, clip in enumerate(clips):
        windows = window_starts(clip, max_frames, modalities)
        if not windows:
            unmeasured.append(clip.clip)
            continue
        window_clip += [len(names)] * len(windows)
        starts += windows
        names.append(clip.clip)
        sources.append(clip.source)
        labels.append(clip.labels)
        frames.append(clip.frames)
        record.append(number)
    return Clips(
        tuple(names),
        tuple(sources),
        np.array(labels, np.float32),
        np.array(window_clip, np.int64),
        np.array(starts, np.int64),
        tuple(frames),
        np.array(record, np.int64),
        tuple(unmeasured),
    )


def measured_rows(clip: records.Clip) -> dict[str, np.ndarray]:
    """Rows of each modality whose mask is True, as `preprocess.fit` takes them."""
    return {name: rows[clip.frame_mask[name]] for name, rows in clip.features.items()}


def cut(
    clip: records.Clip,
    start: int,
    frames: int,
    transforms: Mapping[str, preprocess.Transform],
) -> batch.Batch:
    """Preprocesses one window of a clip.

    Args:
        clip: the clip.
        start: first frame of the window.
        frames: length to pad to.
        transforms: fitted preprocessing of the modalities to keep.

    Returns:
        A batch without batch axis, in NumPy.
    """
    found = _empty((), frames, transforms, len(clip.labels))
    _fill(found, (), clip, start, transforms)
    return found


def _empty(
    lead: tuple[int, ...],
    frames: int,
    transforms: Mapping[str, preprocess.Transform],
    num_tasks: int,
) -> batch.Batch:
    """A batch of windows in which nothing is there, in NumPy."""
    return batch.Batch(
        {
            name: np.zeros((*lead, frames, transform.width), np.float32)
            for name, transform in transforms.items()
        },
        {name: np.zeros((*lead, frames), bool) for name in transforms},
        np.zeros((*lead, num_tasks), np.float32),
        np.zeros((*lead, num_tasks), bool),
    )


def _fill(
    into: batch.Batch,
    place: tuple[int, ...],
    clip: records.Clip,
    start: int,
    transforms: Mapping[str, preprocess.Transform],
) -> None:
    """Writes a preprocessed window of a clip into an empty place of a batch."""
    for name, transform in transforms.items():
        there, features = into.frame_mask[name][place], into.features[name][place]
        end = start + len(there)
        mask = clip.frame_mask[name][start:end]
        keep = slice(None) if mask.all() else mask  # a slice copies nothing
        rows = clip.features[name][start:end][keep]
        there[: len(mask)] = mask
        features[: len(mask)][keep] = preprocess.apply(transform, rows)
    present = np.isfinite(clip.labels)
    into.labels[place] = np.where(present, clip.labels, 0)
    into.label_mask[place] = present


def stack(windows: Sequence[batch.Batch]) -> batch.Batch:
    """Stacks windows into one batch, in NumPy."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *windows)


def load_windows(
    clips: Iterable[records.Clip],
    transforms: Mapping[str, preprocess.Transform],
    *,
    max_frames: int,
    frames: int,
) -> batch.Batch:
    """Reads a whole split into memory, preprocessed.

    Args:
        clips: the clips in stored order.
        transforms: fitted preprocessing of the modalities to keep.
        max_frames: length of a window.
        frames: length of the time axis, that of the longest window.
    """
    return stack(
        [
            cut(clip, start, frames, transforms)
            for clip in clips
            for start in window_starts(clip, max_frames, transforms)
        ]
    )


def order(
    windows: int, batch_size: int, *, seed: int, epoch: int
) -> Int[np.ndarray, "S B"]:
    """Draws the rows of every training batch of an epoch.

    Every window is drawn at most once; the remainder that fills no batch is left
    out, another one each epoch. A set smaller than a batch is one batch, filled up
    with -1 (see `batch.take`).
    """
    rows = np.random.default_rng((seed, epoch)).permutation(windows)
    steps = windows // batch_size
    if not steps:
        return np.pad(rows, (0, batch_size - windows), constant_values=-1)[None]
    return rows[: steps * batch_size].reshape(steps, batch_size)


def in_order(windows: int, batch_size: int) -> Int[np.ndarray, "S B"]:
    """Lists all rows in stored order; the last batch is filled up with -1."""
    steps = -(-windows // batch_size)
    rows = np.pad(
        np.arange(windows), (0, steps * batch_size - windows), constant_values=-1
    )
    return rows.reshape(steps, batch_size)


def pick(windows: batch.Batch, order: Int[np.ndarray, "S B"]) -> Iterator[batch.Batch]:
    """Yields the batches of an order of windows that are in memory, in NumPy."""
    windows = jax.tree.map(np.asarray, windows)
    for rows in order:
        yield jax.tree.map(np.asarray, batch.take(windows, rows))


class Stream:
    """A split that is read from its shards when batches are asked for.

    `rows` gives the same numbers as taking the rows from `load_windows`.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        info: schema.DatasetInfo,
        split: str,
        transforms: Mapping[str, preprocess.Transform],
        *,
        clips: Clips,
        frames: int,
    ) -> None:
        """Indexes the shards; see `load_windows` for the arguments."""
        self._info = info
        self._transforms = transforms
        self._clips = clips
        self._frames = frames
        self._places = [
            (pathlib.Path(path) / shard.file, offset, length)
            for shard in info.splits[split].shards
            for offset, length in records.shard_index(path, shard).tolist()
        ]

    def rows(self, rows: Int[np.ndarray, " B"]) -> batch.Batch:
        """Reads the windows of one batch; -1 gives an empty row."""
        num_tasks = len(self._info.schema.tasks)
        found = _empty((len(rows),), self._frames, self._transforms, num_tasks)
        with contextlib.ExitStack() as stack:
            opened: dict[pathlib.Path, BinaryIO] = {}
            for place, row in enumerate(rows.tolist()):
                if row < 0:
                    continue
                record = self._clips.record[self._clips.window_clip[row]]
                path, offset, length = self._places[record]
                if path not in opened:
                    opened[path] = stack.enter_context(path.open("rb"))
                data = tfrecord.read(opened[path], offset, length)
                clip = records.decode(data, self._info.schema, self._info.dtype)
                start = int(self._clips.window_start[row])
                _fill(found, (place,), clip, start, self._transforms)
        return found

    def batches(
        self, order: Int[np.ndarray, "S B"], *, ahead: int = 2
    ) -> Iterator[batch.Batch]:
        """Yields the batches of an order, reading `ahead` of them in the background."""
        with concurrent.futures.ThreadPoolExecutor(max_workers=ahead) as pool:
            waiting = [pool.submit(self.rows, rows) for rows in order[:ahead]]
            for number in range(len(order)):
                found = waiting.pop(0).result()
                if number + ahead < len(order):
                    waiting.append(pool.submit(self.rows, order[number + ahead]))
                yield found
