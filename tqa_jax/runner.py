"""Segments of training steps as compiled programs, on one device or many.

The one thing to know: when a split's windows are in memory they lie on the devices and
a segment is one program with no Python between its steps; else each step's batch is
streamed. The numbers are the same.
"""

from typing import Any

import jax
import numpy as np

from tqa_jax import prepare, train_step


class Runner:
    """Runs segments of steps on the windows of a split.

    Attributes:
        temp_bytes: working memory of the largest compiled segment, None when streamed.
    """

    def __init__(self, step: train_step.Step, split: prepare.Split) -> None:
        """Puts the windows on all devices; the batch axis is split over them."""
        devices = jax.local_devices()
        mesh = jax.sharding.Mesh(np.array(devices), ("data",))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._split = split
        self._spread = jax.sharding.NamedSharding(
            mesh, jax.sharding.PartitionSpec("data")
        )
        self._everywhere = everywhere
        self._programs: dict[int, Any] = {}
        self._data = None
        if split.windows is not None:
            self._data = jax.device_put(split.windows, everywhere)
            self._scan = train_step.scan(step, self._spread)
        else:
            self._step = jax.jit(step, donate_argnums=0)
        self.temp_bytes: int | None = None

    def place(self, state: train_step.State) -> train_step.State:
        """Puts a state on all devices."""
        return jax.device_put(state, self._everywhere)

    def run(
        self, state: train_step.State, order: np.ndarray
    ) -> tuple[train_step.State, dict[str, np.ndarray]]:
        """Takes the steps of `order`; metrics come back with a leading step axis."""
        if self._data is not None:
            rows = jax.device_put(order, self._everywhere)
            if len(order) not in self._programs:
                lowered = self._scan.lower(state, self._data, rows)
                program = lowered.compile()
                needed = program.memory_analysis().temp_size_in_bytes
                self.temp_bytes = max(needed, self.temp_bytes or 0)
                self._programs[len(order)] = program
            state, metrics = self._programs[len(order)](state, self._data, rows)
            return state, jax.tree.map(np.asarray, metrics)
        found = []
        for batch in self._split.batches(order):
            state, metrics = self._step(state, jax.device_put(batch, self._spread))
            found.append(metrics)
        return state, jax.tree.map(lambda *leaves: np.stack(leaves), *found)
