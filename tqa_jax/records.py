"""Data sets on disk: clips in TFRecord shards beside a `dataset.json`.

The one thing to know: a data set appears under its name complete or not at all. It is
written into a temporary folder and renamed; TensorFlow and TFDS read it as it is.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from tqa_jax import schema, tfds_metadata, tfrecord

DTYPES = ("float16", "float32")


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip: features on a common time axis, and its labels.

    Attributes:
        clip: id, unique in the data set.
        source: the speaker or source video; splits never share one.
        features: by modality, float32 (T, D_m); NaN where a value is missing.
        frame_mask: by modality, bool (T,); False where nothing was measured.
        labels: float32 (K,) in the order of the schema's tasks, NaN for missing.
    """

    clip: str
    source: str
    features: Mapping[str, np.ndarray]
    frame_mask: Mapping[str, np.ndarray]
    labels: np.ndarray

    @property
    def frames(self) -> int:
        """Number of rows T, the same for every modality."""
        return len(next(iter(self.frame_mask.values())))


def check_clip(clip: Clip, of: schema.Schema) -> None:
    """Checks that a clip fits a schema.

    Raises:
        InputError: for a missing or unknown modality, a wrong width, length or
            number of labels, no frame at all, or a label outside its range.
    """
    where = f"clip {clip.clip!r}"
    if set(clip.features) != set(of.widths) or set(clip.frame_mask) != set(of.widths):
        raise schema.InputError(
            f"{where} has modalities {sorted(clip.features)}; "
            f"expected {sorted(of.widths)}"
        )
    if clip.frames < 1:
        raise schema.InputError(f"{where} has no frames")
    for name, width in of.widths.items():
        if clip.features[name].shape != (clip.frames, width):
            raise schema.InputError(
                f"{where}: {name} has shape {clip.features[name].shape}; "
                f"expected {(clip.frames, width)}"
            )
        if clip.frame_mask[name].shape != (clip.frames,):
            raise schema.InputError(f"{where}: mask of {name} has the wrong length")
    if clip.labels.shape != (len(of.tasks),):
        raise schema.InputError(
            f"{where} has {clip.labels.size} labels; expected {len(of.tasks)}"
        )
    for task, label in zip(of.tasks, clip.labels.tolist(), strict=True):
        if not (math.isnan(label) or task.low <= label <= task.high):
            raise schema.InputError(
                f"{where}: {task.name} is {label:g}; "
                f"expected {task.low:g}..{task.high:g} or nothing"
            )


def encode(clip: Clip, of: schema.Schema, dtype: str) -> bytes:
    """Serialises a clip; rows that the mask rules out are stored as NaN."""
    values: dict[str, bytes | float] = {
        "clip": clip.clip.encode(),
        "source": clip.source.encode(),
    }
    for name in of.widths:
        mask = clip.frame_mask[name]
        rows = np.where(mask[:, None], clip.features[name], np.nan)
        values[f"features/{name}"] = rows.astype(np.dtype(dtype)).tobytes()
        values[f"frame_mask/{name}"] = mask.astype(np.uint8).tobytes()
    for name, label in zip(of.task_names, clip.labels.tolist(), strict=True):
        values[f"labels/{name}"] = float(label)
    return tfrecord.encode_example(values)


def decode(data: bytes, of: schema.Schema, dtype: str) -> Clip:
    """Reads what `encode` wrote, features as float32.

    Raises:
        InputError: when the record does not fit the schema.
    """
    values = tfrecord.decode_example(data)
    try:
        features, frame_mask = {}, {}
        for name, width in of.widths.items():
            mask = np.frombuffer(values[f"frame_mask/{name}"], np.uint8)
            rows = np.frombuffer(values[f"features/{name}"], np.dtype(dtype))
            frame_mask[name] = mask.astype(bool)
            features[name] = rows.reshape(len(mask), width).astype(np.float32)
        clip = Clip(
            clip=values["clip"].decode(),
            source=values["source"].decode(),
            features=features,
            frame_mask=frame_mask,
            labels=np.array(
                [values[f"labels/{name}"] for name in of.task_names], np.float32
            ),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise schema.InputError(
            f"a record does not fit the schema in dataset.json: {error}"
        ) from error
    check_clip(clip, of)
    return clip


class _StorageError:
    """Largest rounding error of each modality in units of its features' spread."""

    def __init__(self, of: schema.Schema, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        self._count = dict.fromkeys(of.widths, 0)
        self._moments = {
            name: np.zeros((3, width)) for name, width in of.widths.items()
        }

    def add(self, clip: Clip) -> None:
        for name, rows in clip.features.items():
            rows = rows[clip.frame_mask[name]].astype(np.float64)
            rows = np.where(np.isfinite(rows), rows, np.nan)
            if not len(rows):
                continue
            with np.errstate(over="ignore"):
                stored = rows.astype(self._dtype)
            beyond = np.isinf(stored).any(axis=0)
            if beyond.any():
                column = int(np.argmax(beyond))
                raise schema.InputError(
                    f"clip {clip.clip!r}: {name} feature {column} reaches "
                    f"{np.nanmax(np.abs(rows[:, column])):g}, beyond {self._dtype}; "
                    "store the set as float32"
                )
            error = np.abs(stored.astype(np.float64) - rows)
            sums, squares, worst = self._moments[name]
            sums += np.nan_to_num(rows).sum(axis=0)
            squares += np.nan_to_num(rows**2).sum(axis=0)
            np.maximum(worst, np.nan_to_num(error).max(axis=0), out=worst)
            self._count[name] += len(rows)

    def result(self) -> dict[str, float]:
        found = {}
        for name, (sums, squares, worst) in self._moments.items():
            count = max(self._count[name], 1)
            deviation = np.sqrt(np.maximum(squares / count - (sums / count) ** 2, 0))
            # A feature with no spread carries nothing that rounding could harm.
            varies = deviation > 1e-6 * np.maximum(np.abs(sums / count), 1e-6)
            ratio = worst[varies] / deviation[varies]
            found[name] = float(ratio.max()) if ratio.size else 0.0
        return found


class _Shards:
    """Writes the records of one split, starting a new file when one is full."""

    def __init__(self, folder: pathlib.Path, split: str, shard_bytes: int) -> None:
        self._folder = folder
        self._split = split
        self._limit = shard_bytes
        self._file: BinaryIO | None = None
        self._done: list[tuple[int, int]] = []
        self._clips = self._bytes = 0
        self.sources: set[str] = set()

    def _name(self, number: int) -> pathlib.Path:
        return self._folder / f"{self._split}-{number:05d}.part"

    def add(self, data: bytes, source: str) -> None:
        if self._file is None or (self._clips and self._bytes >= self._limit):
            self._finish()
            self._file = self._name(len(self._done)).open("wb")
        self._bytes += tfrecord.write(self._file, data)
        self._clips += 1
        self.sources.add(source)

    def _finish(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._done.append((self._clips, self._bytes))
            self._file, self._clips, self._bytes = None, 0, 0

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()

    def close(self) -> schema.Split:
        self._finish()
        shards = []
        for number, (clips, size) in enumerate(self._done):
            name = f"{self._split}-{number:05d}-of-{len(self._done):05d}.tfrecord"
            part = self._name(number)
            with part.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
            part.rename(self._folder / name)
            shards.append(schema.Shard(name, clips, size, checksum))
        return schema.Split(tuple(shards), tuple(sorted(self.sources)))


def _check_clips(
    clips: Iterable[tuple[str, Clip]], of: schema.Schema
) -> Iterator[tuple[str, Clip]]:
    seen: set[str] = set()
    for split, clip in clips:
        if split not in schema.SPLITS:
            raise schema.InputError(
                f"clip {clip.clip!r} has split {split!r}; "
                f"available: {', '.join(schema.SPLITS)}"
            )
        if clip.clip in seen:
            raise schema.InputError(f"clip {clip.clip!r} comes twice")
        seen.add(clip.clip)
        check_clip(clip, of)
        yield split, clip
    if not seen:
        raise schema.InputError("a data set needs at least one clip; got none")


def write_dataset(
    path: str | pathlib.Path,
    clips: Iterable[tuple[str, Clip]],
    *,
    name: str,
    schema: schema.Schema,
    provenance: Mapping[str, Any],
    dtype: str = "float16",
    shard_bytes: int = 64 << 20,
    files: Mapping[str, str] | None = None,
    replace: bool = False,
) -> "schema.DatasetInfo":
    """Writes a data set folder; it appears complete or not at all.

    Args:
        path: the folder to make.
        clips: pairs of split name and clip, in the order to store.
        name: name of the set, letters, digits and underscores.
        schema: modalities and tasks; every clip must fit.
        provenance: who made the set and how; see `DatasetInfo`.
        dtype: `float16` (half the size; the rounding error that it makes is
            measured and stored in `dataset.json`) or `float32`.
        shard_bytes: a shard is closed when it has reached this size.
        files: further text files of the folder, by name.
        replace: a data set that is there, when the new one is complete; files in it
            that no data set has stay.

    Returns:
        The content of the new `dataset.json`.

    Raises:
        InputError: for an existing path, a clip that does not fit, a repeated clip,
            a source in two splits, or a value beyond the range of `dtype`.
    """
    path = pathlib.Path(path)
    _check_request(path, name, dtype, replace)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(
        tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    )
    shards: dict[str, _Shards] = {}
    try:
        error = _StorageError(schema, dtype)
        for split, clip in _check_clips(clips, schema):
            error.add(clip)
            if split not in shards:
                shards[split] = _Shards(folder, split, shard_bytes)
            shards[split].add(encode(clip, schema, dtype), clip.source)
        info = _info(name, schema, shards, dtype, error.result(), provenance)
        documents = {"dataset.json": info.to_json(), **tfds_metadata.describe(info)}
        for file, value in documents.items():
            text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
            (folder / file).write_text(text + "\n", encoding="utf-8")
        for file, text in (files or {}).items():
            (folder / file).write_text(text, encoding="utf-8")
        folder.chmod(0o755)
        _put(folder, path)
    finally:
        for split in shards.values():
            split.abandon()
        shutil.rmtree(folder, ignore_errors=True)
    return info


def _put(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Moves a folder to its place; one that is there is taken out first."""
    if not path.exists():
        folder.rename(path)
        return
    old = folder.with_suffix(".old")
    path.rename(old)
    try:
        folder.rename(path)
    except OSError:
        old.rename(path)
        raise
    for file in old.iterdir():
        if file.suffix != ".tfrecord" and not (path / file.name).exists():
            file.rename(path / file.name)
    shutil.rmtree(old)


def _check_request(path: pathlib.Path, name: str, dtype: str, replace: bool) -> None:
    if path.exists() and not replace:
        raise schema.InputError(f"{path} exists already; choose another folder")
    if not name.isidentifier():
        raise schema.InputError(
            f"data set name {name!r} must be letters, digits and underscores"
        )
    if dtype not in DTYPES:
        raise schema.InputError(
            f"unknown storage dtype {dtype!r}; available: {', '.join(DTYPES)}"
        )


def _info(
    name: str,
    of: schema.Schema,
    shards: Mapping[str, _Shards],
    dtype: str,
    storage_error: Mapping[str, float],
    provenance: Mapping[str, Any],
) -> schema.DatasetInfo:
    schema.check_splits({split: tuple(s.sources) for split, s in shards.items()})
    return schema.DatasetInfo(
        name=name,
        schema=of,
        splits={
            split: shards[split].close() for split in schema.SPLITS if split in shards
        },
        dtype=dtype,
        storage_error=storage_error,
        provenance=provenance,
    )


def read_split(
    path: str | pathlib.Path, info: schema.DatasetInfo, split: str
) -> Iterator[Clip]:
    """Yields the clips of a split in stored order, every checksum verified.

    Args:
        path: the data set's folder.
        info: its description, from `schema.load`.
        split: a split's name; one that the set lacks has no clips.

    Raises:
        InputError: for a missing, truncated or corrupt shard, or records that do
            not fit `info`.
    """
    if split not in info.splits:
        return
    for shard in info.splits[split].shards:
        spans = shard_index(path, shard)
        with (pathlib.Path(path) / shard.file).open("rb") as file:
            for offset, length in spans.tolist():
                data = tfrecord.read(file, offset, length)
                yield decode(data, info.schema, info.dtype)


def shard_index(path: str | pathlib.Path, shard: schema.Shard) -> np.ndarray:
    """Finds the records of a shard and checks that it is whole.

    Returns:
        Offset and length of each record, int64 (clips, 2).

    Raises:
        InputError: when the file is missing or differs in size or number of records
            from what `dataset.json` says.
    """
    file = pathlib.Path(path) / shard.file
    if not file.is_file():
        raise schema.InputError(f"{file} is missing; dataset.json lists it")
    spans = tfrecord.index(file)
    size = file.stat().st_size
    if size != shard.bytes or len(spans) != shard.clips:
        raise schema.InputError(
            f"{file} holds {len(spans)} records in {size} bytes; dataset.json says "
            f"{shard.clips} in {shard.bytes}: copy or make the data set again"
        )
    return spans
