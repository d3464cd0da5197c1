"""Runs a function over many clips in worker processes.

A clip that cannot be used, or whose process dies or hangs, costs that clip. Where each
result is a file (`make_files`), a job is done when its file is there, so that a stopped
command goes on with what is missing.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import multiprocessing
import pathlib
import queue
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import pebble

from extract import packets
from tqa_jax import cli, display, machine, output, schema

_logger = logging.getLogger(__name__)

STOPPED = "stopped; the same command goes on"
"""What commands say that keep what is finished."""
_WORKER_BYTES = 600 << 20  # 310 MiB were measured; crops for networks come on top


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """Options of commands that have worker processes."""

    num_workers: cli.Count | None = None
    """Processes that read and make clips; without it, as many as cores and free memory
    allow."""


class Failure(NamedTuple):
    """In place of a job's value.

    Attributes:
        reason: why there is none.
        lasting: whether it lies in the clip, so that trying again is of no use.
    """

    reason: str
    lasting: bool


class CannotSaveError(Exception):
    """A result cannot be written; it ends the job instead of rejecting the rest."""


@contextlib.contextmanager
def writing(place: pathlib.Path) -> Iterator[None]:
    """Turns what the disk refuses into a line that says so."""
    try:
        yield
    except OSError as error:
        raise schema.InputError(
            f"{place} cannot be written: {error.strerror or error}; the same command "
            "goes on with what is there"
        ) from error


def count(asked: int | None = None, most: int | None = None) -> int:
    """Returns how many worker processes to use.

    Args:
        asked: by the user; None takes one for each CPU core that this process may use,
            as far as free memory goes.
        most: more are of no use.
    """
    number = asked or machine.cores()
    free = machine.free_memory()
    if asked is None and free is not None and free < number * _WORKER_BYTES:
        number = max(1, free // _WORKER_BYTES)
        _logger.info("%d worker processes, since little memory is free", number)
    return number if most is None else max(1, min(number, most))


class Workers:
    """Worker processes; one that dies is replaced."""

    def __init__(self, number: int) -> None:
        """Starts them."""
        self._pool = pebble.ProcessPool(
            max_workers=number,
            initializer=cv2.setNumThreads,
            initargs=[1],  # since every core has a worker
            context=multiprocessing.get_context("spawn"),
        )

    def close(self) -> None:
        """Ends them, at once where they still work."""
        self._pool.stop()
        self._pool.join()

    def run(
        self,
        function: Callable[..., Any],
        jobs: Mapping[str, tuple[Any, ...]],
        *,
        timeout_seconds: float,
        ahead: int | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Yields what came of each job, in the order in which they end.

        Args:
            function: of a module, with arguments and a value that can be pickled.
            jobs: its arguments by key.
            timeout_seconds: a job that takes longer is given up.
            ahead: most jobs under way or not taken yet, so that they wait for a caller
                that is slower; None for no limit.

        Yields:
            The key, and the value or a `Failure`.

        Raises:
            schema.InputError: a result cannot be written.
        """
        finished: queue.SimpleQueue = queue.SimpleQueue()
        left = iter(jobs.items())

        def begin(number: int | None) -> int:
            chosen = list(itertools.islice(left, number))
            for key, arguments in chosen:
                future = self._pool.schedule(
                    _guarded, (function, *arguments), timeout=timeout_seconds
                )
                future.add_done_callback(
                    functools.partial(lambda key, one: finished.put((key, one)), key)
                )
            return len(chosen)

        waiting = begin(ahead)
        while waiting:
            key, future = finished.get()
            waiting += begin(1) - 1
            if error := future.exception():
                yield key, _failed(error, timeout_seconds)
            else:
                yield key, future.result()
            del future  # what it holds may be large


def make_files(
    jobs: Mapping[str, tuple[Any, ...]],
    function: Callable[..., None],
    files: Mapping[str, pathlib.Path],
    *,
    num_workers: int | None,
    timeout_seconds: float,
    what: str,
) -> dict[str, str]:
    """Runs `function(*job, file)` for each job whose file is not there yet.

    Args:
        jobs: arguments that can be pickled, by key.
        function: of a module; writes its file, whole or not at all.
        files: by key. Why a clip is useless is kept beside, as `.rejected`.
        num_workers: processes, see `count`.
        timeout_seconds: a job that takes longer is given up.
        what: is being done, for people.

    Returns:
        Reasons of the jobs that have no file, by key.

    Raises:
        schema.InputError: a file cannot be written.
    """
    reasons, todo = {}, {}
    for key, file in files.items():
        reason = file.with_suffix(".rejected")
        if reason.is_file():
            reasons[key] = reason.read_text(encoding="utf-8")
        elif not file.is_file():
            todo[key] = (*jobs[key], file)
    if not todo:
        return reasons
    with contextlib.closing(Workers(count(num_workers, len(todo)))) as workers:
        progress = progress_of(len(todo), what=what)
        for key, value in workers.run(function, todo, timeout_seconds=timeout_seconds):
            if isinstance(value, Failure):
                reasons[key] = value.reason
                if value.lasting:
                    output.write(files[key].with_suffix(".rejected"), value.reason)
            progress.update(1, f"{len(reasons)} rejected" if reasons else "")
        progress.close()
    return reasons


def progress_of(total: int, *, what: str) -> display.Progress:
    """Shows how far clips are; nothing of a single one."""
    return display.Progress(total, what=what, unit="clip", shown=total > 1)


def _guarded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function in a worker; its exceptions must be such as can be pickled."""
    try:
        return function(*arguments)
    except packets.GoneError as error:
        return Failure(str(error), lasting=False)
    except (packets.ClipError, schema.InputError) as error:
        return Failure(" ".join(str(error).split()), lasting=True)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise CannotSaveError(f"{where}{error.strerror or error}") from error


def _failed(error: BaseException, timeout_seconds: float) -> Failure:
    """Says why a job has no value."""
    if isinstance(error, CannotSaveError):
        raise schema.InputError(
            f"a result cannot be written: {error}; the same command goes on with what "
            "is there"
        ) from error
    if isinstance(error, TimeoutError):
        reason = f"given up after {timeout_seconds:.0f} s"
    elif isinstance(error, pebble.ProcessExpired):
        reason = f"the process that worked on it died (exit code {error.exitcode})"
    else:  # A defect of ours; it costs this clip, not the job.
        print("".join(traceback.format_exception(error)), file=sys.stderr)
        reason = f"internal error: {type(error).__name__}: {error}"
    return Failure(" ".join(reason.split()), lasting=False)
