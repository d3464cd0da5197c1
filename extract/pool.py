"""Measures many clips in worker processes and keeps each result on disk.

The one thing to know: a result's file name is a digest of the clip's content, the
options and the backends' versions, so a result is found again whatever the clip is
called, and never used for another clip. Workers decode and find faces; where a backend
is a network, this process runs it meanwhile on what they cut out.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pebble

from extract import backends, workers
from extract import clip as clips
from tqa_jax import output, schema

# Of a result, and of one that was being written when a job was stopped.
_RESULT = re.compile(r"([0-9a-f]{64})\.(npz|observed|rejected)(\.\d+\.part)?")


@dataclasses.dataclass(frozen=True)
class Observed:
    """How long a clip is, and the time by stage that observing it took, seconds."""

    video_seconds: float
    stage_seconds: Mapping[str, float]


@dataclasses.dataclass
class Progress:
    """What `measure` did.

    Attributes:
        rejected: digests of useless clips to reasons.
        measured: clips measured now.
        video_seconds: their length.
        wall_seconds: time that it took.
        stage_seconds: time of the workers by stage, summed over them.
        network_seconds: time of the networks by stage.
        num_workers: processes that shared the workers' stages.
    """

    rejected: dict[str, str] = dataclasses.field(default_factory=dict)
    measured: int = 0
    video_seconds: float = 0.0
    wall_seconds: float = 0.0
    stage_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    network_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    num_workers: int = 1

    def add(self, key: str, clip: Observed | None, reason: str | None) -> None:
        """Adds what came of a clip."""
        if clip is None:
            self.rejected[key] = reason
            return
        self.measured += 1
        self.video_seconds += clip.video_seconds
        for stage, spent in clip.stage_seconds.items():
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + spent

    def rates(self) -> dict[str, float]:
        """Returns rows a second by stage, as if it were the only one."""
        rows = self.video_seconds * schema.FPS
        shared = {k: v / self.num_workers for k, v in self.stage_seconds.items()}
        spent = {**shared, **self.network_seconds}
        return {name: rows / seconds for name, seconds in spent.items() if seconds > 0}

    def limit(self) -> str:
        """Returns the stage that limits: workers and networks run side by side."""
        workers = sum(self.stage_seconds.values()) / self.num_workers
        networks = sum(self.network_seconds.values())
        slower = self.network_seconds if networks > workers else self.stage_seconds
        return max(slower, key=slower.__getitem__)


def fingerprint(path: pathlib.Path, options: backends.Options) -> str:
    """Returns a digest of all that a clip's features depend on."""
    described = [dataclasses.asdict(item) for item in backends.describe(options)]
    beside = []
    for setting in options.settings:
        if hasattr(setting.module, "file"):
            file = setting.module.file(path, setting)
            beside.append(_content(file) if file.is_file() else None)
    return digest([_content(path), public(options), described, beside])


def public(options: backends.Options) -> dict[str, Any]:
    """Returns the options without the paths of this machine.

    What these stand for is in `backends.describe`, and in the files beside a clip.
    """
    return {**options.backends, "max_seconds": options.max_seconds}


def digest(value: Any) -> str:
    """Returns the SHA-256 of a value that JSON can write."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load(folder: pathlib.Path, key: str) -> clips.ClipFeatures:
    """Reads a saved result."""
    with np.load(_result(folder, key), allow_pickle=False) as file:
        return _loaded(file)


def take(folder: pathlib.Path, key: str) -> clips.ClipFeatures:
    """Reads a saved result and removes it."""
    result = load(folder, key)
    _result(folder, key).unlink()
    return result


def _result(folder: pathlib.Path, key: str) -> pathlib.Path:
    return folder / f"{key}.npz"


def _observed(folder: pathlib.Path, key: str) -> pathlib.Path:
    """Returns where a clip is kept that networks have not seen yet."""
    return folder / f"{key}.observed"


def _whole(path: pathlib.Path) -> bool:
    """Returns whether a result is there; one that a power cut tore is not."""
    return path.is_file() and zipfile.is_zipfile(path)


def _loaded(file: Mapping[str, np.ndarray]) -> clips.ClipFeatures:
    about = json.loads(str(file["about"]))
    return clips.ClipFeatures(
        parts={name: file[f"part/{name}"] for name in about["parts"]},
        masks={name: file[f"mask/{name}"] for name in about["masks"]},
        pending={
            name: {key: file[f"pending/{name}/{key}"] for key in keys}
            for name, keys in about["pending"].items()
        },
        notes=tuple(about["notes"]),
        seconds=about["seconds"],
    )


def save(folder: pathlib.Path, key: str, result: clips.ClipFeatures) -> None:
    """Writes a result; it appears complete or not at all."""
    path = (_observed if result.pending else _result)(folder, key)
    about = {
        "parts": list(result.parts),
        "masks": list(result.masks),
        "pending": {name: list(arrays) for name, arrays in result.pending.items()},
        "notes": result.notes,
        "seconds": dict(result.seconds),
    }
    arrays = {f"part/{name}": values for name, values in result.parts.items()}
    arrays |= {f"mask/{name}": values for name, values in result.masks.items()}
    for name, pending in result.pending.items():
        arrays |= {f"pending/{name}/{key}": value for key, value in pending.items()}
    with output.atomic(path) as part, part.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about)), **arrays)


def measure(
    work: Mapping[str, pathlib.Path],
    folder: pathlib.Path,
    options: backends.Options,
    *,
    num_workers: int,
    timeout_seconds: float,
    device_batch: int | None = None,
    done: Callable[[str, str | None], None] = lambda key, reason: None,
) -> Progress:
    """Measures the clips that have no result yet.

    Args:
        work: files by their fingerprints.
        folder: where results are kept.
        options: how clips are measured.
        num_workers: processes.
        timeout_seconds: a clip that takes longer is given up.
        device_batch: rows that a network sees at once; None takes its default.
        done: called with each fingerprint when its result is there, or with the reason
            when the clip is rejected.

    Raises:
        schema.InputError: the folder cannot be written, or a network's weights do not
            fit it.
    """
    progress, todo = begin(work, folder)
    if not todo:
        return progress
    start = time.perf_counter()
    progress.num_workers = min(num_workers, len(todo))
    networks = open_networks(options, device_batch)
    report = workers.Report("measured", len(work), len(work) - len(todo))
    pool = workers.start(progress.num_workers)
    try:
        # Few clips wait for networks, which may be slower: they take room on the disk.
        for key, clip, reason in observe(
            pool, todo, folder, options, timeout_seconds, 2 * progress.num_workers
        ):
            progress.add(key, clip, reason)
            complete = [key]
            if networks is not None and reason is None:
                complete = see(networks, folder, key)
            for name in complete:
                done(name, reason)
            speed = progress.video_seconds / (time.perf_counter() - start)
            rejected = len(progress.rejected)
            report.add(f"{speed:.1f}x real time, {rejected} rejected")
        if networks is not None:
            for name in finish(networks, folder):
                done(name, None)
            progress.network_seconds = networks.seconds
    finally:
        report.close()
        workers.stop(pool)
    progress.wall_seconds = time.perf_counter() - start
    return progress


def clear(folder: pathlib.Path, keys: Iterable[str] | None = None) -> None:
    """Removes results, and the folder if nothing else is in it.

    Args:
        folder: where results are kept.
        keys: whose; None for all.
    """
    wanted = None if keys is None else set(keys)
    for path in folder.iterdir():
        found = _RESULT.fullmatch(path.name)
        if found and (wanted is None or found[1] in wanted):
            path.unlink()
    with contextlib.suppress(OSError):  # of the user's own files
        (folder / ".lock").unlink(missing_ok=True)  # of this process
        folder.rmdir()


def begin(
    work: Mapping[str, pathlib.Path], folder: pathlib.Path
) -> tuple[Progress, dict[str, pathlib.Path]]:
    """Returns what was rejected earlier, and the clips that have no result yet."""
    progress, todo = Progress(), {}
    for key, path in work.items():
        reason = workers.reason_file(_result(folder, key))
        if reason.is_file():
            progress.rejected[key] = reason.read_text(encoding="utf-8")
        elif not _whole(_result(folder, key)):
            todo[key] = path
    return progress, todo


def open_networks(options: backends.Options, device_batch: int | None = None):
    """Returns the `network_stage.Networks` of the options, None without any.

    Raises:
        schema.InputError: weights are missing or do not fit the network.
    """
    if not options.networks:
        return None
    from extract import network_stage  # loads JAX, which workers don't need

    return network_stage.Networks(
        options, device_batch=device_batch or network_stage.DEVICE_BATCH
    )


def observe(
    pool: pebble.ProcessPool,
    todo: Mapping[str, pathlib.Path],
    folder: pathlib.Path,
    options: backends.Options,
    timeout_seconds: float,
    ahead: int | None = None,
) -> Iterator[tuple[str, Observed | None, str | None]]:
    """Has workers observe clips and keep what they find.

    Args:
        pool: from `workers.start`.
        todo: files by their fingerprints.
        folder: where results are kept.
        options: how clips are measured.
        timeout_seconds: a clip that takes longer is given up.
        ahead: most clips under way; None for no limit.

    Yields:
        For each clip its fingerprint, and how long it is or why it is rejected.

    Raises:
        schema.InputError: the folder cannot be written.
    """
    jobs = {key: (path, options, _result(folder, key)) for key, path in todo.items()}
    return workers.in_turn(
        pool, _observe_one, jobs, timeout_seconds=timeout_seconds, ahead=ahead
    )


def see(networks, folder: pathlib.Path, key: str) -> list[str]:
    """Gives an observed clip to the networks; keeps and lists those they complete."""
    with np.load(_observed(folder, key), allow_pickle=False) as file:
        clip = _loaded(file)
    return _keep(folder, networks.add(key, clip))


def finish(networks, folder: pathlib.Path) -> list[str]:
    """Completes and lists the clips that still wait for a full batch."""
    return _keep(folder, networks.finish())


def _keep(folder: pathlib.Path, complete) -> list[str]:
    for key, clip in complete:
        try:
            save(folder, key, clip)
        except OSError as error:
            raise schema.InputError(
                f"{folder} cannot be written: {error.strerror or error}; the same "
                "command goes on with what is there"
            ) from error
        _observed(folder, key).unlink()
    return [key for key, _ in complete]


def _observe_one(
    path: pathlib.Path, options: backends.Options, result: pathlib.Path
) -> Observed:
    """Observes one clip and keeps what was found."""
    folder, key = result.parent, result.stem
    if _whole(_observed(folder, key)):  # by a job that was stopped
        return Observed(0.0, {})
    found = clips.observe(path, options)
    save(folder, key, found)
    return Observed(found.rows / schema.FPS, found.seconds)


def _content(path: pathlib.Path) -> list[Any]:
    """Returns size and SHA-256; of a file that cannot be read, its name and why."""
    try:
        with pathlib.Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return [size, hashlib.file_digest(file, "sha256").hexdigest()]
    except OSError as error:
        return [str(path), error.strerror]
