"""Runs a function over many clips in worker processes, each clip's result on disk.

The one thing to know: a job is done when its file is there, so a stopped command goes
on with what is missing. A clip that cannot be used leaves a file with the reason; one
whose process dies or hangs is given up this time and tried again the next.
"""

import dataclasses
import functools
import itertools
import logging
import multiprocessing
import pathlib
import queue
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any

import cv2
import pebble
import tqdm

from extract import packets
from tqa_jax import output, schema

_logger = logging.getLogger(__name__)

_LOG_SECONDS = 10.0


class CannotSaveError(Exception):
    """A result cannot be written; it ends the job instead of rejecting the rest."""


@dataclasses.dataclass(frozen=True)
class Useless:
    """In place of a job's value: why the clip cannot be used."""

    reason: str


def run(
    jobs: Mapping[str, tuple[Any, ...]],
    function: Callable[..., None],
    results: Mapping[str, pathlib.Path],
    *,
    num_workers: int,
    timeout_seconds: float,
    what: str,
) -> dict[str, str]:
    """Runs `function(*job, result)` for each job that has no result yet.

    Args:
        jobs: arguments that can be pickled, by key.
        function: of a module; writes its result, whole or not at all.
        results: the files, by key.
        num_workers: processes.
        timeout_seconds: a job that takes longer is given up.
        what: is being done, for the progress bar.

    Returns:
        Reasons of the jobs that have no result, by key.

    Raises:
        schema.InputError: a result cannot be written.
    """
    rejected, todo = {}, {}
    for key, result in results.items():
        reason = reason_file(result)
        if reason.is_file():
            rejected[key] = reason.read_text(encoding="utf-8")
        elif not result.is_file():
            todo[key] = (*jobs[key], result)
    if not todo:
        return rejected
    pool = start(min(num_workers, len(todo)))
    report = Report(what, len(todo))
    try:
        for key, _, reason in in_turn(
            pool, function, todo, timeout_seconds=timeout_seconds
        ):
            if reason is not None:
                rejected[key] = reason
            report.add()
    finally:
        report.close()
        stop(pool)
    return rejected


def start(count: int) -> pebble.ProcessPool:
    """Opens worker processes; one that dies is replaced."""
    return pebble.ProcessPool(
        max_workers=count,
        initializer=cv2.setNumThreads,
        initargs=[1],  # since every core has a worker
        context=multiprocessing.get_context("spawn"),
    )


def stop(pool: pebble.ProcessPool) -> None:
    """Ends them, at once where they still work."""
    pool.stop()
    pool.join()


def in_turn(
    pool: pebble.ProcessPool,
    function: Callable[..., Any],
    jobs: Mapping[str, tuple[Any, ...]],
    *,
    timeout_seconds: float,
    ahead: int | None = None,
) -> Iterator[tuple[str, Any, str | None]]:
    """Yields what came of each job, in the order in which they end.

    Args:
        pool: from `start`.
        function: of a module, with arguments and a value that can be pickled.
        jobs: its arguments by key; the last one is the file of its result.
        timeout_seconds: a job that takes longer is given up.
        ahead: most jobs under way, so that they wait for a caller that is slower;
            None for no limit.

    Yields:
        The key, the function's value, and why there is none, None or text.

    Raises:
        schema.InputError: a result cannot be written.
    """
    finished: queue.SimpleQueue = queue.SimpleQueue()
    left = iter(jobs.items())

    def begin(count: int | None) -> int:
        chosen = list(itertools.islice(left, count))
        for key, arguments in chosen:
            future = pool.schedule(
                _guarded, (function, *arguments), timeout=timeout_seconds
            )
            future.add_done_callback(functools.partial(_put, finished, key))
        return len(chosen)

    waiting = begin(ahead)
    while waiting:
        key, future = finished.get()
        waiting += begin(1) - 1
        yield key, *_ended(future, jobs[key][-1], timeout_seconds)


def reason_file(result: pathlib.Path) -> pathlib.Path:
    """Returns where it is kept why a clip has no result."""
    return result.with_suffix(".rejected")


class Report:
    """Shows progress: a bar on a terminal, else a log line every ten seconds."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        """Starts; `done` of `total` were done before."""
        self._what, self._total, self._first, self._done = what, total, done, done
        self._start = self._last = time.monotonic()
        self._bar = tqdm.tqdm(
            total=total,
            initial=done,
            unit="clip",
            desc=what,
            disable=total == 1 or not sys.stderr.isatty(),
        )
        self._logs = total > 1 and self._bar.disable
        if self._logs:
            _logger.info("%s: %d of %d clips", what, done, total)

    def add(self, more: str = "") -> None:
        """Counts one clip; `more` is said beside the count."""
        self._done += 1
        self._bar.set_postfix_str(more, refresh=False)
        self._bar.update()
        if self._logs and time.monotonic() - self._last >= _LOG_SECONDS:
            self._last = time.monotonic()
            rate = (self._done - self._first) / (self._last - self._start)
            left = tqdm.tqdm.format_interval((self._total - self._done) / rate)
            line = (
                f"{self._what}: {self._done} of {self._total} clips, "
                f"{60 * rate:.1f} a minute, {left} left"
            )
            _logger.info("%s", f"{line}, {more}" if more else line)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


def _guarded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function in a worker; its last argument is the file of its result.

    Returns:
        Its value; `Useless` where the clip cannot be used, which is kept.

    Raises:
        CannotSaveError: the disk refuses.
    """
    try:
        try:
            return function(*arguments)
        except packets.GoneError as error:
            return Useless(str(error))
        except (packets.ClipError, schema.InputError) as error:
            reason = " ".join(str(error).split())
            with output.atomic(reason_file(arguments[-1])) as part:
                part.write_text(reason, encoding="utf-8")
            return Useless(reason)
    except OSError as error:
        raise CannotSaveError(error.strerror or str(error)) from error


def _put(finished: queue.SimpleQueue, key: str, future: futures.Future) -> None:
    finished.put((key, future))


def _ended(
    future: futures.Future, result: pathlib.Path, timeout_seconds: float
) -> tuple[Any, str | None]:
    """Returns a job's value, or None and why it has none."""
    error = future.exception()
    if error is None:
        value = future.result()
        return (None, value.reason) if isinstance(value, Useless) else (value, None)
    if isinstance(error, CannotSaveError):
        raise schema.InputError(
            f"{result.parent} cannot be written: {error}; the same command goes on "
            "with what is there"
        ) from error
    if isinstance(error, TimeoutError):
        return None, f"given up after {timeout_seconds:.0f} s"
    if isinstance(error, pebble.ProcessExpired):
        return None, f"the process that worked on it died (exit code {error.exitcode})"
    # A defect of ours; it costs this clip, not the job.
    print("".join(traceback.format_exception(error)), file=sys.stderr)
    return None, " ".join(f"internal error: {type(error).__name__}: {error}".split())
