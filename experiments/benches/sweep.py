"""Several runs at once against one after another, and against PyTorch.

P3: runs that differ in seed and learning rate, dropout 0.1, at three sizes. Ours are
the programs of `tqa_jax.fleet`: one run after another on one device with all threads,
all of them vmapped on it, and both with a device for each core. PyTorch trains its
runs one after another in one process with all threads, or shared out over processes;
ratios are to the faster of the two. All keep freed memory (`tqa_jax.heap`) and train on
the same batch. That a run without dropout has the same scores, loss and gradient on
both sides is asserted at each size before anything is timed.
"""

import contextlib
import importlib.util
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments import sides, timing
from experiments.benches import _ours, _sizes
from experiments.benches import train as training
from tqa_jax import assemble, fleet, pipeline, prepare, schema, train_step

_THREADS = training.THREADS
_COMPARED = ("scores", "loss", "gradient")
_ALONE = "ours one after another"


def run(rounds: int, *, quick: bool) -> list[timing.Table]:
    """Measures all sizes.

    Raises:
        InputError: without PyTorch.
    """
    if importlib.util.find_spec("torch") is None:
        raise schema.InputError(
            "the bench sweep compares with PyTorch: pip install -e '.[bench]'"
        )
    # Runs, and steps of each in a turn.
    sizes = {"pooled 64": (8, 20), "pooled 256": (8, 5), "temporal 64": (4, 1)}
    if quick:
        sizes = {"tiny": (4, 2)}
    return [
        table
        for size, (runs, steps) in sizes.items()
        for table in _compare(size, runs, steps, rounds)
    ]


def _compare(size: str, runs: int, steps: int, rounds: int) -> list[timing.Table]:
    agreed = _agreed(size)
    rates = [_sizes.LEARNING_RATE * (1 + number) for number in range(runs)]
    ways = {
        _ALONE: (1, 1),
        "ours vmapped": (1, runs),
        f"ours on {_THREADS} devices, one after another": (_THREADS, 1),
        f"ours on {_THREADS} devices, vmapped": (_THREADS, runs // _THREADS),
    }
    with contextlib.ExitStack() as stack:
        cases = {}
        for name, (devices, at_once) in ways.items():
            arguments = {
                "size": size,
                "learning_rates": rates,
                "steps": steps,
                "devices": devices,
                "at_once": at_once,
            }
            one = sides.Side(f"{__name__}:side", arguments, _THREADS, keep_memory=True)
            cases[name] = stack.enter_context(sides.start(one)).turn
        peers = {}
        for processes in (1, _THREADS):
            name = f"PyTorch, {processes} x {_THREADS // processes} threads"
            peers[name] = stack.enter_context(
                training.torch_runs(size, rates, steps=steps, processes=processes)
            )
        seconds = timing.interleave(cases | peers, rounds, pause_seconds=0.1)
    best = min(peers, key=lambda name: float(np.median(seconds[name])))
    chosen = _sizes.SIZES[size]
    title = (
        f"P3: {runs} runs of {size}, {chosen.clips} clips of {chosen.frames} frames, "
        f"{steps} steps of each"
    )
    ours = {name: values for name, values in seconds.items() if name not in peers}
    return [
        timing.compare(title, seconds, best, f"The faster PyTorch. {agreed}"),
        timing.compare(f"{title}: at once or not", ours, _ALONE),
    ]


def _agreed(size: str) -> str:
    """Asserts that both sides train the same network; says how close they are."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        _ours.write(pathlib.Path(folder), _sizes.SIZES[size], 0.0)
        kinds = {
            "_ours": {"folder": folder, "size": size, "dropout": 0.0},
            "_torch_training": {"folder": folder, "compiled": False},
        }
        # PyTorch's side compares itself with what ours has written.
        for module, arguments in kinds.items():
            name = f"experiments.benches.{module}:side"
            one = sides.Side(name, arguments, _THREADS)
            said = stack.enter_context(sides.start(one)).check()
    _, found = said
    for what in _COMPARED:
        if not found[what] <= training.LIMITS[what]:
            raise RuntimeError(
                f"PyTorch and ours differ at {size} in {what} by {found[what]:.2g}; "
                f"expected at most {training.LIMITS[what]:g}"
            )
    differ = ", ".join(f"{what} {found[what]:.1g}" for what in _COMPARED)
    return f"One run differs from ours by: {differ}."


def side(
    size: str, learning_rates: Sequence[float], steps: int, devices: int, at_once: int
) -> sides.Work:
    """Trains runs through the programs of a sweep; a turn is `steps` steps of each.

    Args:
        size: a key of `_sizes.SIZES`.
        learning_rates: of each run.
        steps: of each run in a turn.
        devices: on a CPU, how many it is split into.
        at_once: runs that a device works on side by side.
    """
    jax.config.update("jax_num_cpu_devices", devices)
    chosen = _sizes.SIZES[size]
    network, fixed = _ours.model(chosen, 0.1), _ours.weights("fixed")

    def make(numbers: fleet.Numbers) -> assemble.Parts:
        rate = numbers["optim.learning_rate"]
        step = _ours.step(network, fixed, learning_rate=rate)

        def init(seed: Any) -> train_step.State:
            return train_step.init(
                seed,
                model=network,
                optimizer=_ours.optimizer(rate),
                weights=fixed,
                num_tasks=len(schema.TASKS),
                scale_loss=False,
            )

        return assemble.Parts(step, init, network.apply, None, network.apply)

    windows = _ours.draw(chosen, missing=0.1)  # As `_ours.write`, for PyTorch.
    numbers = np.arange(chosen.clips)
    clips = pipeline.Clips((), (), windows.labels, numbers, numbers, (), numbers, ())
    split = prepare.Split(clips, chosen.frames, windows, None)
    runs = range(len(learning_rates))
    group = fleet.Fleet(
        make,
        {
            "seed": np.arange(len(runs), dtype=np.uint32),
            "optim.learning_rate": np.array(learning_rates, np.float32),
        },
        split,
        split,
        batch_size=chosen.clips,
    )
    states = {number: group.first_state(number) for number in runs}
    group.load({n: (one, one.params) for n, one in states.items()}, at_once=at_once)
    rows = np.tile(numbers, (steps, 1))

    def once() -> None:
        waiting = [
            group.run(lane, {number: rows for _, number in lane.live})
            for lane in group.lanes
        ]
        for wait in waiting:
            wait()

    return sides.Work(once, lambda: jax.devices()[0].platform)
