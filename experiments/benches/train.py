"""The training step against PyTorch, on the same network, batch and parameters.

P1 is the standard size at batch 32, P2 the optimized one at batch 8, each with dropout
and without: PyTorch spends about half of its step on dropout. Ours is the step of
`train_step`, which also computes and logs every task's gradient norm; PyTorch's does
not. That both sides give the same scores and, without dropout, the same loss, gradient
and parameters after a step is asserted before anything is timed.

Our commands keep freed memory (`tqa_jax.heap`), and so does our side; both libraries
are also timed the other way.
"""

import contextlib
import dataclasses
import importlib.util
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments import sides, timing
from experiments.benches import _ours, _sizes
from tqa_jax import schema

THREADS = 2
# Largest differences; see `_torch_training.differences`.
LIMITS = {
    "scores": 1e-4,
    "loss": 1e-5,
    "gradient": 1e-4,
    "params": 2e-2,
    "unsure": 1e-1,
}
_PEER = "experiments.benches._torch_training"
_OURS, _OURS_USUAL = "tqa_jax", "tqa_jax, memory given back"
_EAGER, _COMPILED = "PyTorch eager", "torch.compile"
_EAGER_KEPT = "PyTorch eager, memory kept"
_PEERS = (_EAGER, _EAGER_KEPT, _COMPILED)


def run(rounds: int, *, quick: bool) -> list[timing.Table]:
    """Measures all sizes, each without and with dropout.

    Raises:
        InputError: without PyTorch.
    """
    if importlib.util.find_spec("torch") is None:
        raise schema.InputError(
            "the bench train compares with PyTorch: pip install -e '.[bench]'"
        )
    sizes = {"tiny": "tiny"} if quick else {"P1": "standard", "P2": "optimized"}
    return [
        _compare(row, size, dropout, rounds)
        for row, size in sizes.items()
        for dropout in (0.0, 0.1)
    ]


@contextlib.contextmanager
def torch_runs(
    size: str, learning_rates: Sequence[float], *, steps: int, processes: int
) -> Iterator[Callable[[], float]]:
    """Starts PyTorch on several runs, shared out over processes, as a context.

    Each process trains its runs one after another, eagerly, with dropout 0.1, and has
    its share of `THREADS`. Which number of processes is best depends on the size.

    Args:
        size: a key of `_sizes.SIZES`.
        learning_rates: of each run; as many runs as processes, or a multiple.
        steps: of each run in a turn.
        processes: divides `THREADS`.

    Returns:
        What does a turn of all runs and returns its seconds; the first is a warm-up.
    """
    shares = [list(learning_rates[first::processes]) for first in range(processes)]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        _ours.write(pathlib.Path(folder), _sizes.SIZES[size], 0.1)
        workers = []
        for share in shares:
            arguments = {"folder": folder, "learning_rates": share, "steps": steps}
            side = sides.Side(
                f"{_PEER}:runs", arguments, THREADS // processes, keep_memory=True
            )
            workers.append(stack.enter_context(sides.start(side)))
        yield lambda: sides.together(workers)


def _compare(row: str, size: str, dropout: float, rounds: int) -> timing.Table:
    chosen = _sizes.SIZES[size]
    title = (
        f"{row}: {size}, {chosen.clips} clips of {chosen.frames} frames, "
        f"dropout {dropout:g}, {THREADS} threads"
    )
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        _ours.write(pathlib.Path(folder), chosen, dropout)
        arguments = {"folder": folder, "size": size, "dropout": dropout}
        ours = sides.Side("experiments.benches._ours:side", arguments, THREADS)
        kinds = {_OURS: dataclasses.replace(ours, keep_memory=True), _OURS_USUAL: ours}
        for name in _PEERS:
            compiled = {"folder": folder, "compiled": name == _COMPILED}
            eager = sides.Side(f"{_PEER}:side", compiled, THREADS)
            kinds[name] = dataclasses.replace(eager, keep_memory=name == _EAGER_KEPT)
        workers = {
            name: stack.enter_context(sides.start(kind)) for name, kind in kinds.items()
        }
        platform = workers[_OURS].check()
        workers[_OURS_USUAL].check()
        notes = []
        for name in _PEERS:
            try:
                device, found = workers[name].check()
            except sides.Failed as error:
                if name != _COMPILED:
                    raise
                del workers[name]
                notes.append(f"Without {name}: {error}.")
                continue
            if (device == "cpu") != (platform == "cpu"):
                raise schema.InputError(
                    f"JAX runs on {platform} and PyTorch on {device}; install both "
                    "for the same device, or set JAX_PLATFORMS=cpu"
                )
            notes.append(_agreed(name, found, dropout))
        seconds = sides.interleave(workers, rounds)
        peaks = {name: worker.peak_mib() for name, worker in workers.items()}
    table = timing.compare(title, seconds, _EAGER, " ".join(notes))
    rows = [dict(row) | {"peak_mib": peaks[row["case"]]} for row in table.rows]
    return timing.Table(table.title, rows, table.note)


def _agreed(name: str, found: dict[str, Any], dropout: float) -> str:
    """Asserts that a side equals ours; says by how much."""
    compared = ["scores"] if dropout else list(LIMITS)
    for what in compared:
        if not found[what] <= LIMITS[what]:
            raise RuntimeError(
                f"{name} and ours differ in {what} by {found[what]:.2g}; "
                f"expected at most {LIMITS[what]:g}"
            )
    said = ", ".join(f"{what} {found[what]:.1g}" for what in compared)
    return f"{name} differs from ours by: {said}."
