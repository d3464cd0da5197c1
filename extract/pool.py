"""Measures many clips in worker processes and keeps each result on disk.

The one thing to know: a result's file name is a digest of the clip's content, the
options and the backends' versions, so a result is found again whatever the clip is
called, and never used for another clip.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import multiprocessing
import os
import pathlib
import queue
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any

import cv2
import numpy as np
import pebble
import tqdm

from extract import clip as clips
from extract import decode
from tqa_jax import schema

_logger = logging.getLogger(__name__)

_LOG_SECONDS = 10.0


class _CannotSaveError(Exception):
    """A result cannot be written."""


@dataclasses.dataclass
class Progress:
    """What `measure` did; `rejected` maps the digests of useless clips to reasons."""

    rejected: dict[str, str] = dataclasses.field(default_factory=dict)
    measured: int = 0
    video_seconds: float = 0.0
    wall_seconds: float = 0.0
    stage_seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(clips.STAGES, 0.0)
    )


def fingerprint(path: pathlib.Path, options: clips.Options) -> str:
    """Returns a digest of all that a clip's features depend on."""
    parts: list[Any] = [_content(path), public(options)]
    parts.append([dataclasses.asdict(item) for item in clips.modalities(options)])
    if options.openface:
        table = pathlib.Path(options.openface) / f"{pathlib.Path(path).stem}.csv"
        parts.append(_content(table) if table.is_file() else None)
    return digest(parts)


def public(options: clips.Options) -> dict[str, Any]:
    """Returns the options without the paths of this machine."""
    values = dataclasses.asdict(options)
    del values["openface"], values["landmarker"]
    return values


def digest(value: Any) -> str:
    """Returns the SHA-256 of a value that JSON can write."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load(folder: pathlib.Path, key: str) -> clips.ClipFeatures:
    """Reads a saved result."""
    with np.load(folder / f"{key}.npz", allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        names = about["modalities"]
        return clips.ClipFeatures(
            features={name: file[f"features/{name}"] for name in names},
            frame_mask={name: file[f"frame_mask/{name}"] for name in names},
            notes=tuple(about["notes"]),
            seconds=about["seconds"],
        )


@contextlib.contextmanager
def atomic(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path to write to; what is there at the end appears as `path`."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # a full disk gets its room back


def save(folder: pathlib.Path, key: str, result: clips.ClipFeatures) -> None:
    """Writes a result; it appears complete or not at all."""
    about = {
        "modalities": list(result.features),
        "notes": result.notes,
        "seconds": dict(result.seconds),
    }
    arrays = {f"features/{name}": value for name, value in result.features.items()}
    arrays |= {f"frame_mask/{name}": v for name, v in result.frame_mask.items()}
    with atomic(folder / f"{key}.npz") as part, part.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about)), **arrays)


def measure(
    work: Mapping[str, pathlib.Path],
    folder: pathlib.Path,
    options: clips.Options,
    *,
    num_workers: int,
    timeout_seconds: float,
) -> Progress:
    """Measures the clips that have no result yet.

    Args:
        work: files by their fingerprints.
        folder: where results are kept.
        options: how clips are measured.
        num_workers: processes.
        timeout_seconds: a clip that takes longer is given up.

    Raises:
        schema.InputError: the folder cannot be written.
    """
    progress = Progress()
    todo = {}
    for key, path in work.items():
        reason = folder / f"{key}.rejected"
        if reason.is_file():
            progress.rejected[key] = reason.read_text(encoding="utf-8")
        elif not (folder / f"{key}.npz").is_file():
            todo[key] = path
    if not todo:
        return progress
    start = time.perf_counter()
    report = _Report(len(work), len(work) - len(todo))
    finished: queue.SimpleQueue = queue.SimpleQueue()
    workers = pebble.ProcessPool(
        max_workers=min(num_workers, len(todo)),
        initializer=_start_worker,
        context=multiprocessing.get_context("spawn"),
    )
    try:
        for key, path in todo.items():
            future = workers.schedule(
                _measure_one, (path, options, folder, key), timeout=timeout_seconds
            )
            future.add_done_callback(functools.partial(_put, finished, key))
        for _ in todo:
            key, future = finished.get()
            _take(progress, key, todo[key], future, folder, timeout_seconds)
            report.add(progress)
        workers.close()
        workers.join()
    finally:
        report.close()
        if workers.active:
            workers.stop()
            workers.join()
    progress.wall_seconds = time.perf_counter() - start
    return progress


def _put(finished: queue.SimpleQueue, key: str, future: futures.Future) -> None:
    finished.put((key, future))


def _take(
    progress: Progress,
    key: str,
    path: pathlib.Path,
    future: futures.Future,
    folder: pathlib.Path,
    timeout_seconds: float,
) -> None:
    """Adds what came of one clip."""
    error = future.exception()
    if error is None:
        reason, seconds, stages = future.result()
        progress.measured += reason is None
        progress.video_seconds += seconds
        for stage, spent in stages.items():
            progress.stage_seconds[stage] += spent
        if reason is None:
            return
    elif isinstance(error, _CannotSaveError):
        raise schema.InputError(f"{folder} cannot be written: {error}") from error
    elif isinstance(error, TimeoutError):
        reason = f"given up after {timeout_seconds:.0f} s"
    elif isinstance(error, pebble.ProcessExpired):
        reason = f"the process that measured it died (exit code {error.exitcode})"
    else:  # a defect of ours; it costs this clip, not the job
        reason = f"internal error: {type(error).__name__}: {error}"
        lines = traceback.format_exception(error)
        print(f"{path}:\n{''.join(lines)}", file=sys.stderr)
    progress.rejected[key] = " ".join(reason.split())


def _measure_one(
    path: pathlib.Path, options: clips.Options, folder: pathlib.Path, key: str
) -> tuple[str | None, float, Mapping[str, float]]:
    """Measures and saves one clip; returns a reason or None, its length, and times."""
    result = reason = None
    try:
        result = clips.extract_clip(path, options)
    except (decode.ClipError, schema.InputError) as error:
        reason = str(error)
    try:
        if result is not None:
            save(folder, key, result)
            return None, result.rows / schema.FPS, result.seconds
        # A property of the clip, so the next run need not try again.
        with atomic(folder / f"{key}.rejected") as part:
            part.write_text(reason, encoding="utf-8")
        return reason, 0.0, {}
    except OSError as error:  # a full disk ends the job instead of rejecting the rest
        raise _CannotSaveError(error.strerror or str(error)) from error


def _start_worker() -> None:
    """Sets a worker up: one thread each, since every core has a worker."""
    cv2.setNumThreads(1)


class _Report:
    """Shows progress: a bar on a terminal, else a log line every ten seconds."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done = total, done
        self._start = self._last = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                total=total, initial=done, unit="clip", desc="measuring"
            )

    def add(self, progress: Progress) -> None:
        self._done += 1
        now = time.monotonic()
        speed = progress.video_seconds / max(now - self._start, 1e-9)
        text = f"{speed:.1f}x real time, {len(progress.rejected)} rejected"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
        elif now - self._last >= _LOG_SECONDS:
            self._last = now
            _logger.info("measured %d of %d clips, %s", self._done, self._total, text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _content(path: pathlib.Path) -> list[Any]:
    """Returns size and SHA-256; of a file that cannot be read, its name and why."""
    try:
        with pathlib.Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return [size, hashlib.file_digest(file, "sha256").hexdigest()]
    except OSError as error:
        return [str(path), error.strerror]
