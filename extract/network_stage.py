"""Runs networks over what was kept of clips, in batches over many clips.

A network sees batches of one shape, so it is compiled once; rows of several clips fill
a batch together, and a clip comes out when its last row has been seen.
"""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from extract import backends
from extract import clip as clips
from tqa_jax import schema

DEVICE_BATCH = 32
"""Rows that a network sees at once, unless another number is asked for."""


class Networks:
    """The networks of one job and the clips that wait for them."""

    def __init__(
        self, settings: Sequence[backends.Setting], *, device_batch: int = DEVICE_BATCH
    ) -> None:
        """Reads the weights.

        Args:
            settings: backends that are networks, as checked by `clip.check`.
            device_batch: rows that a network sees at once.

        Raises:
            schema.InputError: weights are missing or do not fit the network.
        """
        self._device_batch = device_batch
        self._stages = {
            setting.name: _Stage(
                setting.module.network(setting.weights, jnp.dtype(setting.dtype)),
                device_batch,
            )
            for setting in settings
        }
        self._open: dict[str, clips.ClipFeatures] = {}

    @property
    def seconds(self) -> dict[str, float]:
        """Time spent by stage, `<modality> network`."""
        spent: dict[str, float] = collections.defaultdict(float)
        for name, stage in self._stages.items():
            spent[f"{name.partition('/')[0]} network"] += stage.seconds
        return dict(spent)

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
        complete = []
        for name, pending in clip.pending.items():
            with self._memory():
                finished = self._stages[name].add(key, pending, clip.masks[name])
                complete += self._take(name, finished)
        return complete

    def finish(self) -> list[tuple[str, clips.ClipFeatures]]:
        """Runs what still waits; returns the clips that are complete now."""
        complete = []
        for name, stage in self._stages.items():
            with self._memory():
                complete += self._take(name, stage.finish())
        return complete

    def _take(
        self, name: str, finished: Iterable[tuple[str, np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[str, clips.ClipFeatures]]:
        """Keeps what a stage measured; yields the clips that lack nothing more."""
        for key, features, mask in finished:
            clip = self._open[key]
            clip = self._open[key] = dataclasses.replace(
                clip,
                parts={**clip.parts, name: features},
                masks={**clip.masks, name: mask},
            )
            if len(clip.parts) == len(clip.masks):
                yield key, self._open.pop(key)

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


class _Stage:
    """A network and the clips that wait for it."""

    def __init__(self, network: backends.Network, device_batch: int) -> None:
        self._network, self._device_batch = network, device_batch
        self._batches: dict[tuple, Batches] = {}
        self._waiting: dict[str, tuple[Mapping, np.ndarray, set, dict]] = {}

    @property
    def seconds(self) -> float:
        return sum(batches.seconds for batches in self._batches.values())

    def add(
        self, key: str, pending: Mapping[str, np.ndarray], mask: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        inputs = {
            stream: columns
            for stream, columns in self._network.inputs(pending).items()
            if len(columns[0])
        }
        self._waiting[key] = pending, mask, set(inputs), {}
        if not inputs:
            yield self._complete(key)
        for stream, columns in inputs.items():
            entry = tuple(column[0] for column in columns)
            shape = stream, *(np.shape(value) for value in entry)
            if shape not in self._batches:
                size = max(1, self._device_batch // self._network.rows(*entry))
                self._batches[shape] = Batches(self._network.run[stream], size)
            yield from self._take(stream, self._batches[shape].add(key, *columns))

    def finish(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for (stream, *_), batches in self._batches.items():
            yield from self._take(stream, batches.finish())

    def _take(
        self, stream: str, finished: Iterable[tuple[str, np.ndarray]]
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for key, rows in finished:
            _, _, streams, outputs = self._waiting[key]
            outputs[stream] = rows
            if len(outputs) == len(streams):
                yield self._complete(key)

    def _complete(self, key: str) -> tuple[str, np.ndarray, np.ndarray]:
        pending, mask, _, outputs = self._waiting.pop(key)
        return key, *self._network.finish(pending, mask, outputs)


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
