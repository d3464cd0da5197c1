"""Sides of a comparison, each in a process of its own.

The one thing to know: libraries that share a process share its threads, and OpenBLAS
that spins or OpenMP that waits slows down whoever comes next. So a side is a function
that a fresh process calls, with a number of threads that holds for every library; a
round asks each process once and the others sleep on their input.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import numpy as np

from experiments import timing
from tqa_jax import cli, heap

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
_PAUSE_SECONDS = 0.1
_WRITTEN = 4000
_RAISED = re.compile(r"^[\w.]*(?:Error|Exception|Failed)\b.*", re.MULTILINE)


class Work(NamedTuple):
    """What the function of a side returns.

    Attributes:
        once: does the work and returns when it is done.
        check: returns something for JSON by which sides are seen to be equal; it may
            change the state that `once` works on, and is called before it.
    """

    once: Callable[[], object]
    check: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Side:
    """One side.

    Attributes:
        function: `package.module:name` of what makes its `Work`; what the module
            imports is loaded into the process.
        arguments: of the function, by name, for JSON.
        threads: of every library in the process.
        times: calls of `once` in a turn; its time is their median.
        keep_memory: calls `heap.keep` first, as our commands do.
    """

    function: str
    arguments: Mapping[str, Any]
    threads: int
    times: int = 1
    keep_memory: bool = False


class Failed(RuntimeError):
    """A side ended by itself; says with what."""


class Worker(NamedTuple):
    """A side that runs.

    Attributes:
        check: asks for what `Work.check` returns; once, before any timing.
        begin: starts a turn and returns at once.
        end: waits for the turn that was begun and returns its seconds.
        peak_mib: asks for the largest memory that the process has held since its first
            turn began, so without what checks and compilers held; None where the
            system does not say.
    """

    check: Callable[[], Any]
    begin: Callable[[], None]
    end: Callable[[], float]
    peak_mib: Callable[[], float | None]

    def turn(self) -> float:
        """Does one turn and returns its seconds."""
        self.begin()
        return self.end()


@contextlib.contextmanager
def start(side: Side) -> Iterator[Worker]:
    """Starts a side, to be used as a context.

    Raises:
        Failed: from the functions of the worker, with what the process raised and the
            end of what it wrote to its standard error.
    """
    command = [sys.executable, "-m", __name__, side.function]
    command += [json.dumps(dict(side.arguments)), str(side.times)]
    command += ["--keep_memory"] * side.keep_memory
    environment = os.environ | dict.fromkeys(_THREADS, str(side.threads))
    environment["JAX_COMPILATION_CACHE_DIR"] = str(cli.cache_folder() / "jax")
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):

        def send(request: str) -> None:
            # A process that has ended is noticed when its answer does not come.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(request + "\n")
                process.stdin.flush()

        def receive() -> Any:
            answer = process.stdout.readline()
            if answer:
                return json.loads(answer)
            status = process.wait()
            errors.seek(0)
            written = errors.read()
            said = _RAISED.findall(written) or ["it raised nothing"]
            error = Failed(f"{side.function} ended with status {status}: {said[-1]}")
            error.add_note(written[-_WRITTEN:])
            raise error

        def ask(request: str) -> Any:
            send(request)
            return receive()

        try:
            yield Worker(
                lambda: ask("check"),
                lambda: send("turn"),
                receive,
                lambda: ask("memory"),
            )
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def together(workers: Sequence[Worker]) -> float:
    """Does one turn of several sides at the same time; seconds until all are done."""
    start = time.perf_counter()
    for worker in workers:
        worker.begin()
    for worker in workers:
        worker.end()
    return time.perf_counter() - start


def interleave(workers: Mapping[str, Worker], rounds: int) -> dict[str, np.ndarray]:
    """Times sides as `timing.interleave` does, with a pause before each turn."""
    return timing.interleave(
        {name: worker.turn for name, worker in workers.items()},
        rounds,
        pause_seconds=_PAUSE_SECONDS,
    )


def _serve(function: str, arguments: str, times: int, answers: TextIO) -> None:
    """Answers standard input, a line for a line."""
    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    turns = 0
    for request in sys.stdin:
        match request.strip():
            case "check":
                answer = work.check()
            case "turn":
                if not turns:
                    _forget_peak()
                turns += 1
                answer = statistics.median(_timed(work.once) for _ in range(times))
            case "memory":
                answer = _peak_mib()
            case _:
                raise ValueError(f"unknown request {request!r}")
        print(json.dumps(answer), file=answers, flush=True)


def _timed(once: Callable[[], object]) -> float:
    start = time.perf_counter()
    once()
    return time.perf_counter() - start


_STATUS = pathlib.Path("/proc/self/status")


def _forget_peak() -> None:
    """Starts the largest resident set anew, see proc(5)."""
    if _STATUS.exists():
        pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak_mib() -> float | None:
    """Largest resident set; `getrusage` would count that of the parent, too."""
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return None


if __name__ == "__main__":
    if "--keep_memory" in sys.argv[4:]:
        heap.keep()
    # Libraries print; only answers go where the parent reads.
    with os.fdopen(os.dup(1), "w") as _answers:
        os.dup2(2, 1)
        _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), _answers)
