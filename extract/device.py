"""Runs networks over what was cut out of clips, in batches over many clips.

The one thing to know: a network sees batches of one shape, so it is compiled once;
rows of several clips fill a batch together, and a clip comes out when its last row has
been seen. Speech networks see whole clips, padded to one of a few lengths: padding
changes nothing (`wav2vec2.hidden`).
"""

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from extract import clip as clips
from extract import sound
from extract.networks import (
    clip_vision,
    resnet,
    syncnet,
    syncnet_input,
    tensor_file,
    wav2vec2,
    weights,
)
from tqa_jax import schema

DEVICE_BATCH = 32
"""Rows that a network sees at once, unless another number is asked for."""

# Lengths of sound that are compiled for, in seconds: little of each is padding.
_SECONDS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 27, 33, 40, 50, 62, 77, 96, 120)

_Measured = tuple[str, Float[np.ndarray, "T D"], Bool[np.ndarray, " T"]]


class Networks:
    """The networks of one job and the clips that wait for them."""

    def __init__(
        self, options: clips.Options, *, device_batch: int = DEVICE_BATCH
    ) -> None:
        """Reads the weights.

        Args:
            options: as checked by `clip.check`.
            device_batch: rows that a network sees at once.

        Raises:
            schema.InputError: weights are missing or do not fit the network.
        """
        dtype = jnp.dtype(options.network_dtype)
        self._device_batch = device_batch
        self._stages = {
            name: _OPEN[getattr(options, name)](found, dtype, device_batch)
            for name, found in options.weights().items()
        }
        self._open: dict[str, clips.ClipFeatures] = {}
        self._measured: dict[str, dict[str, tuple]] = {}

    @property
    def seconds(self) -> dict[str, float]:
        """Time spent by stage, `<modality> network`."""
        return {f"{name} network": one.seconds for name, one in self._stages.items()}

    def add(
        self, key: str, clip: clips.ClipFeatures
    ) -> list[tuple[str, clips.ClipFeatures]]:
        """Adds what `clip.observe` gave; returns the clips that are complete now.

        Args:
            key: names the clip; not one that still waits.
            clip: with something pending.

        Raises:
            schema.InputError: the device has too little memory for a batch.
        """
        # What is pending stays with the stage that needs it.
        self._open[key] = dataclasses.replace(clip, pending={})
        self._measured[key] = {}
        complete = []
        for name, stage in self._stages.items():
            with self._memory():
                complete += self._take(name, stage.add(key, clip))
        return complete

    def finish(self) -> list[tuple[str, clips.ClipFeatures]]:
        """Runs what still waits; returns the clips that are complete now."""
        complete = []
        for name, stage in self._stages.items():
            with self._memory():
                complete += self._take(name, stage.finish())
        return complete

    def _take(self, modality: str, measured: Iterable[_Measured]):
        """Keeps what a stage measured; yields the clips that lack nothing more."""
        for key, features, mask in measured:
            self._measured[key][modality] = features, mask
            if len(self._measured[key]) < len(self._stages):
                continue
            clip, found = self._open.pop(key), self._measured.pop(key)
            features = {
                **clip.features,
                **{name: one[0] for name, one in found.items()},
            }
            masks = {**clip.frame_mask, **{name: one[1] for name, one in found.items()}}
            yield (
                key,
                dataclasses.replace(
                    clip,
                    features={name: features[name] for name in clips.BACKENDS},
                    frame_mask=masks,
                ),
            )

    @contextlib.contextmanager
    def _memory(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise schema.InputError(
                f"the networks need more memory than the device has for "
                f"{self._device_batch} rows at once; choose a smaller --device_batch"
            ) from error


class Batches:
    """Gathers rows of many clips and runs a function on batches of one size."""

    def __init__(self, run: Callable[..., Any], size: int) -> None:
        """Starts empty.

        Args:
            run: from arrays (size, ...) to an array (size, ...); rows don't mix.
            size: rows in a batch.
        """
        self._run, self._size = run, size
        self._waiting: collections.deque = collections.deque()
        self._found: dict[str, list[np.ndarray]] = {}
        self._total: dict[str, int] = {}
        self.seconds = 0.0

    def add(
        self, key: str, *columns: Sequence[np.ndarray]
    ) -> list[tuple[str, np.ndarray]]:
        """Adds a clip's rows; returns the clips that are finished now.

        Args:
            key: the clip, not added before.
            columns: the function's arguments, one row each; at least one row.
        """
        self._total[key], self._found[key] = len(columns[0]), []
        self._waiting.extend((key, row) for row in zip(*columns, strict=True))
        finished = []
        while len(self._waiting) >= self._size:
            finished += self._step(self._size)
        return finished

    def finish(self) -> list[tuple[str, np.ndarray]]:
        """Runs what is left, filled up with copies; returns the finished clips."""
        return self._step(len(self._waiting)) if self._waiting else []

    def _step(self, count: int) -> list[tuple[str, np.ndarray]]:
        start = time.perf_counter()
        taken = [self._waiting.popleft() for _ in range(count)]
        filled = taken + taken[:1] * (self._size - count)
        columns = (
            np.stack(column) for column in zip(*(r for _, r in filled), strict=True)
        )
        outputs = np.asarray(self._run(*columns), np.float32)[:count]
        finished = []
        for (key, _), output in zip(taken, outputs, strict=True):
            self._found[key].append(output)
            if len(self._found[key]) == self._total[key]:
                del self._total[key]
                finished.append((key, np.stack(self._found.pop(key))))
        self.seconds += time.perf_counter() - start
        return finished


class _Visual:
    """An image network over the crops of the rows with a face."""

    def __init__(self, run: Callable[..., Any], device_batch: int) -> None:
        self._batches = Batches(run, device_batch)
        self._masks: dict[str, np.ndarray] = {}

    @property
    def seconds(self) -> float:
        return self._batches.seconds

    def add(self, key: str, clip: clips.ClipFeatures) -> Iterator[_Measured]:
        self._masks[key] = clip.frame_mask["visual"]
        yield from self._placed(self._batches.add(key, clip.pending["visual/crops"]))

    def finish(self) -> Iterator[_Measured]:
        yield from self._placed(self._batches.finish())

    def _placed(self, finished) -> Iterator[_Measured]:
        for key, rows in finished:
            mask = self._masks.pop(key)
            values = np.full((len(mask), rows.shape[-1]), np.nan, np.float32)
            values[mask] = rows
            yield key, values, mask


class _Speech:
    """A speech network over whole clips; its frames are brought to the rows."""

    def __init__(self, run: Callable[..., Any], device_batch: int) -> None:
        self._run, self._device_batch = run, device_batch
        self._batches: dict[int, Batches] = {}
        self._clips: dict[str, tuple[int, np.ndarray]] = {}

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self._batches.values())

    def add(self, key: str, clip: clips.ClipFeatures) -> Iterator[_Measured]:
        samples = clip.pending["audio/samples"]
        count = len(samples)
        self._clips[key] = count, clip.frame_mask["audio"]
        length = padded_length(count)
        if length not in self._batches:
            rows = length * round(schema.FPS) // sound.SAMPLE_RATE
            size = max(1, self._device_batch // rows)
            self._batches[length] = Batches(self._run, size)
        padded = np.pad(wav2vec2.prepare(samples), (0, length - count))
        row = padded[None], np.array([count], np.int32)
        yield from self._placed(self._batches[length].add(key, *row))

    def finish(self) -> Iterator[_Measured]:
        for batches in self._batches.values():
            yield from self._placed(batches.finish())

    def _placed(self, finished) -> Iterator[_Measured]:
        for key, (frames,) in finished:
            count, mask = self._clips.pop(key)
            values = on_rows(frames[: wav2vec2.num_frames(count)], len(mask))
            values[~mask] = np.nan
            yield key, values, mask


class _Sync:
    """SyncNet over the windows of a clip's faces, and of its sound."""

    def __init__(
        self, faces: Callable[..., Any], sounds: Callable[..., Any], device_batch: int
    ) -> None:
        self._streams = Batches(faces, device_batch), Batches(sounds, device_batch)
        self._seen: dict[str, np.ndarray] = {}
        self._places: dict[str, tuple[np.ndarray, ...]] = {}
        self._found: dict[str, dict[int, np.ndarray]] = {}

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self._streams)

    def add(self, key: str, clip: clips.ClipFeatures) -> Iterator[_Measured]:
        seen = clip.frame_mask["sync"]
        first = syncnet_input.face_windows(seen)
        # The rows of a window all have a face, so their crops follow each other.
        crops = clip.pending["sync/crops"]
        places = np.cumsum(seen)[first] - 1
        faces = [crops[at : at + syncnet_input.FRAMES] for at in places]
        samples, present = clip.pending["sync/samples"], clip.pending["sync/present"]
        sounds, heard = syncnet_input.sound_windows(samples, present)
        self._seen[key], self._found[key] = seen, {}
        self._places[key] = first, np.flatnonzero(heard)
        for number, rows in enumerate((faces, sounds[heard])):
            if len(rows):
                yield from self._take(number, self._streams[number].add(key, rows))
            else:
                yield from self._take(number, [(key, np.zeros((0, syncnet.WIDTH)))])

    def finish(self) -> Iterator[_Measured]:
        for number, stream in enumerate(self._streams):
            yield from self._take(number, stream.finish())

    def _take(self, number: int, finished) -> Iterator[_Measured]:
        for key, rows in finished:
            self._found[key][number] = rows
            if len(self._found[key]) < len(self._streams):
                continue
            seen, found = self._seen.pop(key), self._found.pop(key)
            count = max(0, len(seen) - syncnet_input.FRAMES + 1)
            embeddings = np.full((2, count, syncnet.WIDTH), np.nan, np.float32)
            for one, places in enumerate(self._places.pop(key)):
                embeddings[one, places] = found[one]
            yield key, *syncnet.features(syncnet.lags(*embeddings), seen)


def _resnet101(found: weights.Found, dtype, device_batch: int) -> _Visual:
    config = resnet.Config.from_json(found.config)
    params = jax.device_put(resnet.from_tensors(tensor_file.read(found.file), config))
    run = jax.jit(functools.partial(resnet.features, config=config, dtype=dtype))
    return _Visual(lambda pixels: run(params, pixels=pixels), device_batch)


def _clip(found: weights.Found, dtype, device_batch: int) -> _Visual:
    del dtype  # PyTorch's, on the CPU
    return _Visual(clip_vision.load(found)[0], device_batch)


def _wav2vec2(found: weights.Found, dtype, device_batch: int) -> _Speech:
    config = wav2vec2.Config.from_json(found.config)
    params = jax.device_put(wav2vec2.from_tensors(tensor_file.read(found.file), config))
    run = jax.jit(functools.partial(wav2vec2.hidden, config=config, dtype=dtype))
    return _Speech(
        lambda samples, lengths: run(params, samples=samples, lengths=lengths),
        device_batch,
    )


def _syncnet(found: weights.Found, dtype, device_batch: int) -> _Sync:
    params = jax.device_put(syncnet.from_tensors(tensor_file.read(found.file)))
    faces = jax.jit(functools.partial(syncnet.faces, dtype=dtype))
    sounds = jax.jit(functools.partial(syncnet.sounds, dtype=dtype))
    return _Sync(
        lambda windows: faces(params, windows),
        lambda windows: sounds(params, windows),
        device_batch,
    )


_OPEN: Mapping[str, Callable[..., Any]] = {
    "resnet101": _resnet101,
    "clip": _clip,
    "hubert": _wav2vec2,
    "wav2vec2": _wav2vec2,
    "syncnet": _syncnet,
}


def padded_length(count: int) -> int:
    """Returns the number of samples to which a clip is padded before its network."""
    seconds = count / sound.SAMPLE_RATE
    fitting = [one for one in _SECONDS if one >= seconds]
    whole = fitting[0] if fitting else 30 * int(np.ceil(seconds / 30))
    return whole * sound.SAMPLE_RATE


def on_rows(
    frames: Float[np.ndarray, "F D"], num_rows: int
) -> Float[np.ndarray, "T D"]:
    """Brings a speech network's frames to the rows' instants, t/25 s, by lines.

    Args:
        frames: 50 a second; each is the instant of the middle of what it saw.
        num_rows: rows of the clip; before the first frame and after the last, that
            frame holds.
    """
    at = wav2vec2.frame_seconds(len(frames))
    place = np.interp(np.arange(num_rows) / schema.FPS, at, np.arange(len(at)))
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, len(frames) - 1)
    share = (place - low)[:, None].astype(np.float32)
    return (1 - share) * frames[low] + share * frames[high]
