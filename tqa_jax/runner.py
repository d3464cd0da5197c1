"""Segments of training steps as compiled programs, on one device or many.

The one thing to know: parameters lie on all devices and each batch is split over them,
those of other processes included (`jax.pmap` without the leading axis). When a split's
windows are in memory they lie on every device and a segment is one program with no
Python between its steps; else each step's batch is streamed, and a process reads only
the rows of its own devices. The numbers are the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from tqa_jax import batch as batches
from tqa_jax import prepare, processes, schema, train_step


class Devices:
    """The devices that share the work of a run, and where arrays lie on them.

    Attributes:
        group: the processes that they belong to.
        count: how many there are.
        spread: sharding of the batch axis over them.
    """

    def __init__(
        self,
        group: processes.Group = processes.ALONE,
        only: Sequence[jax.Device] | None = None,
    ) -> None:
        """Takes all devices of a group, or only some.

        Args:
            group: the processes; all devices of this process if it is alone.
            only: devices to take instead.
        """
        found = jax.local_devices() if group.count == 1 else jax.devices()
        found = only or found
        # Rows of one process lie side by side.
        found = sorted(found, key=lambda device: (device.process_index, device.id))
        mesh = jax.sharding.Mesh(np.array(found), ("data",))
        self.group = group
        self.count = len(found)
        self.spread = jax.sharding.NamedSharding(
            mesh, jax.sharding.PartitionSpec("data")
        )
        self._everywhere = jax.sharding.NamedSharding(
            mesh, jax.sharding.PartitionSpec()
        )

    def check(self, batch_size: int) -> None:
        """Refuses a batch that cannot be split.

        Raises:
            InputError: with the sizes.
        """
        if batch_size % self.count:
            of = f" of {self.group.count} processes" if self.group.count > 1 else ""
            raise schema.InputError(
                f"train.batch_size {batch_size} does not divide over {self.count} "
                f"devices{of}"
            )

    def place(self, tree: Any) -> Any:
        """Puts arrays on all devices; the same in all processes (`Group.same`)."""
        if self.group.count == 1:
            return jax.device_put(tree, self._everywhere)

        def one(leaf: Any) -> jax.Array:
            if isinstance(leaf, jax.Array) and leaf.sharding == self._everywhere:
                return leaf
            host = np.asarray(leaf)
            return jax.make_array_from_callback(
                host.shape, self._everywhere, lambda index: host[index]
            )

        return jax.tree.map(one, tree)

    def mine(self, order: Int[np.ndarray, "S B"]) -> Int[np.ndarray, "S b"]:
        """Picks the columns of an order that this process's devices work on."""
        parts = self.spread.addressable_devices_indices_map(order.shape[1:])
        columns = np.arange(order.shape[1])
        return order[:, np.unique([columns[part] for (part,) in parts.values()])]

    def share(self, batch: batches.Batch) -> batches.Batch:
        """Puts a batch on the devices, given this process's rows of it (`mine`)."""
        return jax.tree.map(
            lambda rows: jax.make_array_from_process_local_data(self.spread, rows),
            batch,
        )

    def compile(self, function: Callable[..., Any], **options: Any) -> Callable:
        """Compiles a function whose results are to lie on all devices."""
        return jax.jit(function, out_shardings=self._everywhere, **options)

    def scorer(
        self, score: Callable[..., jax.Array], *more: jax.Array
    ) -> Callable[[Any, batches.Batch], jax.Array]:
        """Compiles a scoring function, for the rows of `mine`.

        Args:
            score: `(params, batch, *more) -> scores`.
            more: arguments that stay the same.

        Returns:
            `(params, batch) -> scores` of all rows, in every process.
        """
        compiled = self.compile(score)
        return lambda params, rows: compiled(
            self.place(params), self.share(rows), *more
        )


class Runner:
    """Runs segments of steps on the windows of a split.

    Attributes:
        temp_bytes: working memory of the largest compiled segment, or of a step when
            batches are streamed; None before the first.
        data_bytes: of the windows that lie on each device.
    """

    def __init__(
        self, step: train_step.Step, split: prepare.Split, devices: Devices
    ) -> None:
        """Puts the windows on all devices; the batch axis is split over them."""
        self._split = split
        self._devices = devices
        self._programs: dict[int, jax.stages.Compiled] = {}
        self._data = None
        self.data_bytes = 0
        if split.windows is not None:
            self._data = devices.place(split.windows)
            self.data_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._data))
            step = train_step.segment(step, devices.spread)
        self._step = devices.compile(step, donate_argnums=0)
        self.temp_bytes: int | None = None

    def compiled(
        self, state: train_step.State, order: Int[np.ndarray, "S B"]
    ) -> jax.stages.Compiled:
        """Compiles the program that takes these steps, once for each length.

        Raises:
            InputError: when a streamed batch cannot be read.
        """
        length = len(order) if self._data is not None else 0
        if length not in self._programs:
            state = self._devices.place(state)
            if self._data is None:
                rows = self._devices.mine(order[:1])
                batch = self._devices.group.together(
                    lambda: next(self._split.batches(rows))
                )
                lowered = self._step.lower(state, self._devices.share(batch))
            else:
                rows = self._devices.place(order)
                lowered = self._step.lower(state, self._data, rows)
            program = lowered.compile()
            needed = program.memory_analysis().temp_size_in_bytes
            self.temp_bytes = max(needed, self.temp_bytes or 0)
            self._programs[length] = program
        return self._programs[length]

    def run(
        self, state: train_step.State, order: Int[np.ndarray, "S B"]
    ) -> tuple[train_step.State, dict[str, np.ndarray]]:
        """Takes the steps of `order`.

        Args:
            state: on the host or on devices; donated.
            order: rows of each step's batch, in all processes the same.

        Returns:
            The state, on the devices but for what validation changes, and metrics with
            a leading step axis.
        """
        program = self.compiled(state, order)
        state = self._devices.place(state)
        if self._data is None:
            found = []
            for batch in self._split.batches(self._devices.mine(order)):
                state, one = program(state, self._devices.share(batch))
                found.append(one)
            metrics = jax.tree.map(lambda *leaves: np.stack(leaves), *found)
        else:
            state, metrics = program(state, self._data, self._devices.place(order))
            metrics = jax.tree.map(np.asarray, metrics)
        progress = jax.tree.map(np.asarray, state.progress)
        return state.replace(progress=progress), metrics
