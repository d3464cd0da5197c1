"""Two processes that train one model, against one process with the same batch.

The one thing to know: both sides have the same two cores: the one process has two
threads, each of the two has one. What is left is the cost of being several: gradients
are summed over the loopback interface, and a step waits for the slower process.
"""

import concurrent.futures
import contextlib
import pathlib
import socket
import tempfile
from collections.abc import Sequence

import jax
import numpy as np

from experiments import sides, timing
from experiments.benches import _ours, _sizes
from tqa_jax import processes, runner, train_step

_CHECKED_STEPS = 3
_COUNTS = {"one process": 1, "two processes": 2}
_CORES = 2


def side(
    folder: str, size: str, steps: int, index: int, count: int, port: int
) -> sides.Work:
    """One process of a side.

    Args:
        folder: in which the first process leaves the parameters after the check.
        size: of `_sizes.SIZES`.
        steps: of a turn, in one program.
        index: of the process.
        count: of the processes.
        port: of the first one.
    """
    if count > 1:
        processes.start(
            coordinator=f"localhost:{port}", num_processes=count, process_id=index
        )
    devices = runner.Devices(processes.group())
    chosen = _sizes.SIZES[size]
    weights = _ours.weights("gradnorm")
    model = _ours.model(chosen, 0.1)
    segment = train_step.segment(_ours.step(model, weights), devices.spread)
    program = devices.compile(segment, donate_argnums=0)
    state = devices.place(_ours.state(model, weights))
    data = devices.place(_ours.draw(chosen, missing=0.1))
    rows = np.arange(chosen.clips)

    def train(number: int) -> dict[str, jax.Array]:
        nonlocal state
        order = devices.place(np.tile(rows, (number, 1)))
        state, metrics = program(state, data, order)
        return jax.block_until_ready(metrics)

    def check() -> list[float]:
        totals = train(_CHECKED_STEPS)["total"]
        if devices.group.writes:
            np.savez(_file(folder, count), **_ours.flat(state.params))
        return np.asarray(totals, np.float64).tolist()

    return sides.Work(lambda: train(steps), check)


def _file(folder: str, count: int) -> pathlib.Path:
    return pathlib.Path(folder) / f"{count}.npz"


def run(rounds: int, *, quick: bool) -> list[timing.Table]:
    """Trains with one and with two processes.

    Args:
        rounds: timed rounds.
        quick: tiny sizes, to see that it works.

    Returns:
        Tables of how equal the parameters are, and of the time of a step.
    """
    name, steps = ("tiny", 20) if quick else ("standard", 2)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(_CORES))
        teams = {}
        for case, count in _COUNTS.items():
            port = _free_port()
            teams[case] = [
                stack.enter_context(
                    sides.start(
                        sides.Side(
                            f"{__name__}:side",
                            {
                                "folder": folder,
                                "size": name,
                                "steps": steps,
                                "index": index,
                                "count": count,
                                "port": port,
                            },
                            threads=_CORES // count,
                        )
                    )
                )
                for index in range(count)
            ]
        for team in teams.values():
            # Together: each waits for the others of its team.
            list(pool.map(lambda worker: worker.check(), team))
        equal = _equal(folder, name)
        seconds = timing.interleave(
            {
                case: lambda team=team: _turn(team) / steps
                for case, team in teams.items()
            },
            rounds,
        )
    return [
        equal,
        timing.compare(
            f"Training step, {name}, batch {_sizes.SIZES[name].clips}, GradNorm",
            seconds,
            "one process",
            "The same two cores: one process with two threads, or two with one each.",
        ),
    ]


def _turn(team: Sequence[sides.Worker]) -> float:
    for worker in team:
        worker.begin()
    return max([worker.end() for worker in team])


def _equal(folder: str, name: str) -> timing.Table:
    one, two = (np.load(_file(folder, count)) for count in _COUNTS.values())
    # No score depends on the keys' biases: their gradients are rounding errors.
    names = [key for key in one.files if not key.endswith("key/bias")]
    apart = [float(np.abs(one[key] - two[key]).max()) for key in names]
    worst = int(np.argmax(apart))
    return timing.Table(
        f"Parameters after {_CHECKED_STEPS} steps of one process and of two, {name}",
        [
            {
                "arrays": len(names),
                "largest difference": apart[worst],
                "in": names[worst],
                "median of arrays": float(np.median(apart)),
            }
        ],
        "Goal: at most 1e-6.",
    )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]
