"""Many runs as one program: states with a leading axis of runs, spread over devices.

The one thing to know: `jax.vmap` makes a function of one run one of the runs of a
device, and `jax.shard_map` puts a share of the runs on each device, where each goes its
own way: nothing is exchanged (what `jax.pmap` was for). The training data lie on every
device once. A program has a fixed number of places; runs beyond it take turns.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from tqa_jax import assemble, display, machine, memory, prepare, schema, train_step
from tqa_jax import batch as batches

_logger = logging.getLogger(__name__)
_NEAR = 0.9  # of a device's memory: what the program does not count has to fit as well
Numbers = Mapping[str, Any]
_RUNS = jax.sharding.PartitionSpec("run")
_SAME = jax.sharding.PartitionSpec()


@dataclasses.dataclass
class Lane:
    """Runs that go through the program together; arrays have a leading axis of places.

    Attributes:
        runs: number of the run in each place; a place that is left over repeats one,
            and nobody looks at it.
        numbers: in which the runs differ, by key.
        state: of training.
        best: parameters.
    """

    runs: list[int | None]
    numbers: Numbers
    state: train_step.State
    best: Any

    @property
    def live(self) -> list[tuple[int, int]]:
        """Place and run of the places in use."""
        return [(place, run) for place, run in enumerate(self.runs) if run is not None]


def device_for_each_core() -> None:
    """Makes a device of each processor core, unless something else was asked for.

    Runs side by side on one core each are faster than runs one after another on all.
    In a process where JAX has begun, such as a notebook's, its devices stay.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not forced and jax.config.jax_num_cpu_devices < 0:
        with contextlib.suppress(RuntimeError):  # JAX has begun.
            jax.config.update("jax_num_cpu_devices", machine.cores())


class Fleet:
    """The programs of a group of runs, and the arrays of the runs that train.

    Attributes:
        devices: that share the runs.
        compile_seconds: that each training program took to compile.
        temp_bytes: working memory of the latest training program.
        lanes: of the runs that were loaded.
    """

    def __init__(
        self,
        make: Callable[[Numbers], assemble.Parts],
        numbers: Mapping[str, np.ndarray],
        train: prepare.Split,
        validation: prepare.Split,
        *,
        batch_size: int,
    ) -> None:
        """Puts the data on the devices; compiles nothing yet.

        Args:
            make: the functions of a run, given the numbers in which runs differ.
            numbers: those, by key, with an entry for each run; `seed` is one of them.
            train: training windows, in memory.
            validation: validation windows, in memory.
            batch_size: of the scoring of validation windows.
        """
        count = len(numbers["seed"])
        self.devices = jax.local_devices()[:count]
        self._mesh = jax.sharding.Mesh(np.array(self.devices), ("run",))
        self._by_run = jax.sharding.NamedSharding(self._mesh, _RUNS)
        everywhere = jax.sharding.NamedSharding(self._mesh, _SAME)
        self._numbers = numbers
        self._clips = validation.clips
        self._data = jax.device_put(train.windows, everywhere)
        self._validation = jax.device_put(
            _in_batches(validation.windows, batch_size), everywhere
        )
        self._init = jax.jit(lambda numbers: make(numbers).init(numbers["seed"]))

        def segment(numbers, state, rows, data):
            return train_step.segment(make(numbers).step)(state, data, rows)

        def score(numbers, params, batches):
            scores = make(numbers).score
            return jax.lax.map(lambda one: scores(params, one), batches)

        self._segment = jax.jit(self._of_all(segment, own=3), donate_argnums=1)
        self._score = jax.jit(self._of_all(score, own=2))
        self._keep = jax.jit(self._of_all(_choose, own=3), donate_argnums=1)
        self._programs: dict[tuple[int, ...], Any] = {}
        self.compile_seconds: list[float] = []
        self.temp_bytes = 0
        self.lanes: list[Lane] = []
        self._fetched: dict[int, tuple[train_step.State, Any]] = {}

    def _of_all(self, one: Callable[..., Any], *, own: int) -> Callable[..., Any]:
        """Makes a function of one run one of all; it shares arguments after `own`."""

        def places(*arguments):
            mine, common = arguments[:own], arguments[own:]
            if len(jax.tree.leaves(mine)[0]) == 1:
                # The program of a single run: what it does not do to a step that is
                # skipped, a vmapped one does and throws away.
                alone = one(*jax.tree.map(lambda leaf: leaf[0], mine), *common)
                return jax.tree.map(lambda leaf: leaf[None], alone)
            return jax.vmap(lambda *mine: one(*mine, *common))(*mine)

        def all_places(*arguments):
            specs = (_RUNS,) * own + (_SAME,) * (len(arguments) - own)
            return jax.shard_map(
                places,
                mesh=self._mesh,
                in_specs=specs,
                out_specs=_RUNS,
                check_vma=False,
            )(*arguments)

        return all_places

    def first_state(self, run: int) -> train_step.State:
        """The state that a run starts from, on the host."""
        mine = {key: values[run] for key, values in self._numbers.items()}
        return jax.device_get(self._init(mine))

    def load(
        self, arrays: Mapping[int, tuple[train_step.State, Any]], *, at_once: int
    ) -> None:
        """Puts runs on the devices; forgets those that were there.

        Args:
            arrays: state and best parameters of each run, on the host. Runs in one
                lane must be at the same step.
            at_once: places of each device.
        """
        width = at_once * len(self.devices)
        self.lanes = []
        steps = sorted({int(state.step) for state, _ in arrays.values()})
        for step in steps:
            runs = [run for run, (state, _) in arrays.items() if state.step == step]
            for start in range(0, len(runs), width):
                self.lanes.append(
                    self._lane(runs[start : start + width], arrays, width)
                )
        self._fetched = dict(arrays)

    def _lane(
        self,
        runs: Sequence[int],
        arrays: Mapping[int, tuple[train_step.State, Any]],
        width: int,
    ) -> Lane:
        filled = [*runs, *[runs[0]] * (width - len(runs))]
        state, best = jax.tree.map(
            lambda *leaves: np.stack(leaves), *[arrays[run] for run in filled]
        )
        numbers = {
            key: values[np.array(filled)] for key, values in self._numbers.items()
        }
        places: list[int | None] = [*runs, *[None] * (width - len(runs))]
        return Lane(places, *jax.device_put((numbers, state, best), self._by_run))

    def run(
        self, lane: Lane, rows: Mapping[int, Int[np.ndarray, "S B"]]
    ) -> Callable[[], dict[int, tuple[train_step.State, dict[str, np.ndarray]]]]:
        """Starts a segment of each run of a lane.

        Args:
            lane: its state is replaced.
            rows: of each run's batches, all of one shape.

        Returns:
            What waits for it and returns, by run, the state's counters (its other
            fields are None) and the metrics of the steps.
        """
        any_rows = next(iter(rows.values()))
        order = np.stack([rows.get(run, any_rows) for run in lane.runs]).astype(
            np.int32
        )
        order = jax.device_put(order, self._by_run)
        arguments = lane.numbers, lane.state, order, self._data
        if order.shape[:2] not in self._programs:
            started = time.monotonic()
            with display.stage("compiling the training steps"):
                program = self._segment.lower(*arguments).compile()
            self.compile_seconds.append(time.monotonic() - started)
            self._check_memory(program, len(lane.runs) // len(self.devices))
            self._programs[order.shape[:2]] = program
        lane.state, metrics = self._programs[order.shape[:2]](*arguments)
        self._fetched = {}

        def wait() -> dict[int, tuple[train_step.State, dict[str, np.ndarray]]]:
            state = lane.state.replace(
                seed=None, params=None, opt_state=None, weighting=None, loss_scale=None
            )
            # Copies: the next segment reuses the memory.
            found = jax.tree.map(np.array, (state, metrics))
            return {run: _row(found, place) for place, run in lane.live}

        return wait

    def _check_memory(self, program: jax.stages.Compiled, places: int) -> None:
        """Refuses a program that an accelerator has no room for; a CPU may swap."""
        need, device = memory.needed(program), self.devices[0]
        self.temp_bytes = need.temp
        limit = memory.available(device)
        if limit is None or need.total <= limit:
            return
        common = sum(leaf.nbytes for leaf in jax.tree.leaves(self._data))
        text = too_large(need.total, limit, common=common, places=places)
        if device.platform != "cpu":
            raise schema.InputError(text)
        _logger.warning("%s", text)

    def scores(self, lane: Lane) -> dict[int, Float[np.ndarray, "M windows K"]]:
        """Scores of validation windows, by run."""
        found = self._score(lane.numbers, lane.state.params, self._validation)
        found = np.moveaxis(np.asarray(found), 2, 1)  # (places, M, S, B, K)
        windows = len(self._clips.window_clip)
        flat = found.reshape(*found.shape[:2], -1, found.shape[-1])[:, :, :windows]
        return {run: flat[place] for place, run in lane.live}

    def validated(
        self, lane: Lane, progress: Mapping[int, Any], improved: set[int]
    ) -> None:
        """Takes what validation decided.

        Args:
            lane: whose runs were validated.
            progress: of each run, for its state.
            improved: runs whose parameters are the best so far.
        """
        any_progress = next(iter(progress.values()))
        stacked = jax.tree.map(
            lambda *leaves: np.stack(leaves),
            *[progress.get(run, any_progress) for run in lane.runs],
        )
        lane.state = lane.state.replace(progress=jax.device_put(stacked, self._by_run))
        if improved:
            better = np.array([run in improved for run in lane.runs])
            better = jax.device_put(better, self._by_run)
            lane.best = self._keep(better, lane.best, lane.state.params)
        self._fetched = {}

    def fetch(self, run: int) -> tuple[train_step.State, Any]:
        """State and best parameters of a run, on the host."""
        if run not in self._fetched:
            lane = next(lane for lane in self.lanes if run in lane.runs)
            found = jax.tree.map(np.array, (lane.state, lane.best))
            for place, other in lane.live:
                self._fetched[other] = _row(found, place)
        return self._fetched[run]

    def drop(self, run: int) -> None:
        """Frees the place of a run that has ended."""
        for lane in self.lanes:
            lane.runs = [None if other == run else other for other in lane.runs]
        self.lanes = [lane for lane in self.lanes if lane.live]


def too_large(need: int, limit: int, *, common: int, places: int) -> str:
    """Says in one line that runs side by side do not fit, and how many would.

    Args:
        need: bytes on a device.
        limit: bytes that it has.
        common: part of `need` that does not grow with the runs.
        places: runs side by side.
    """
    text = (
        f"{places} runs side by side need {need / 1e9:.3g} GB of memory, the device "
        f"has {limit / 1e9:.3g} GB; "
    )
    fit = int(places * (_NEAR * limit - common) / (need - common))
    if places > 1:
        return f"{text}set --config.at_once={max(fit, 1)}"
    return f"{text}raise --config.base.train.accumulation or lower data.max_frames"


def _row(tree: Any, place: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[place], tree)


def _choose(better: Bool[jax.Array, ""], best: Any, params: Any) -> Any:
    return jax.tree.map(functools.partial(jnp.where, better), params, best)


def _in_batches(windows: batches.Batch, batch_size: int) -> batches.Batch:
    """Cuts windows into batches (S, B, ...); empty ones fill up the last."""

    def cut(array: np.ndarray) -> np.ndarray:
        steps = -(-len(array) // batch_size)
        fill = [(0, steps * batch_size - len(array))] + [(0, 0)] * (array.ndim - 1)
        return np.pad(array, fill).reshape(steps, batch_size, *array.shape[1:])

    return jax.tree.map(cut, windows)
