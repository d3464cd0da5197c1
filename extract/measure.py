"""Measures many clips, and keeps what was measured of each by clip and backend.

Workers decode and find faces; where a backend is a network, this process runs it
meanwhile on what they cut out. What a backend measured in a clip is a file whose name
is a digest of the clip's content and of all that the backend's numbers depend on: it is
found again whatever the clip is called, and never used for another.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import time
import zipfile
from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np

from extract import backends, jobs
from extract import clip as clips
from tqa_jax import output, schema


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What a clip's features depend on.

    Attributes:
        clip: digest of the content, the options and all backends; that of a useless
            clip is kept with the reason.
        parts: digest by `<modality>/<backend>`, of the content and that backend.
    """

    clip: str
    parts: Mapping[str, str]


def fingerprint(path: pathlib.Path, options: backends.Options) -> Fingerprint:
    """Reads a clip, and files beside it, and returns their fingerprint."""
    content = _content(path)
    parts = {}
    for setting in options.settings:
        depends = [content, dataclasses.asdict(backends.part(setting))]
        if hasattr(setting.module, "file"):
            file = setting.module.file(path, setting)
            depends.append(_content(file) if file.is_file() else None)
        parts[setting.name] = digest(depends)
    return Fingerprint(digest([content, public(options), parts]), parts)


def public(options: backends.Options) -> dict[str, Any]:
    """Returns the options without the paths of this machine.

    What these stand for is in `backends.describe`, and in the files beside a clip.
    """
    return {**options.backends, "max_seconds": options.max_seconds}


def digest(value: Any) -> str:
    """Returns the SHA-256 of a value that JSON can write."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _content(path: pathlib.Path) -> list[Any]:
    """Returns size and SHA-256; of a file that cannot be read, its name and why."""
    try:
        with pathlib.Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return [size, hashlib.file_digest(file, "sha256").hexdigest()]
    except OSError as error:
        return [str(path), error.strerror]


class Store:
    """A folder of measured features; it may be removed whenever nothing is at work."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Names the folder; whoever keeps anything makes it."""
        self.folder = folder

    def missing(self, of: Fingerprint, max_seconds: float) -> list[str]:
        """Lists the backends of which there is no result, as `<modality>/<backend>`.

        All of them if the clip is longer than what is allowed now.
        """
        lacking = [
            name
            for name, part in of.parts.items()
            # One that a power cut tore is no zip file.
            if not (self._file(part).is_file() and zipfile.is_zipfile(self._file(part)))
        ]
        if not lacking and self.load(of).rows > max_seconds * schema.FPS:
            return list(of.parts)
        return lacking

    def reason(self, of: Fingerprint) -> str | None:
        """Returns why the clip is useless, if that was found."""
        file = self.folder / f"{of.clip}.rejected"
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def load(self, of: Fingerprint) -> clips.ClipFeatures:
        """Reads what was measured in a clip; nothing may be missing."""
        parts, masks, remarks = {}, {}, {}
        for name, part in of.parts.items():
            with np.load(self._file(part), allow_pickle=False) as file:
                parts[name], masks[name] = file["features"], file["mask"]
                about = json.loads(str(file["about"]))
            remarks |= {"": about["clip"], name: about["backend"]}
        return clips.ClipFeatures(parts, masks, remarks)

    def keep(self, of: Fingerprint, measured: "clips.ClipFeatures | jobs.Failure"):
        """Writes what came of a clip; each file appears complete or not at all.

        Raises:
            schema.InputError: the folder cannot be written.
        """
        with jobs.writing(self.folder):
            if isinstance(measured, jobs.Failure):
                if measured.lasting:
                    with output.atomic(self.folder / f"{of.clip}.rejected") as part:
                        part.write_text(measured.reason, encoding="utf-8")
                return
            for name, features in measured.parts.items():
                remarks = measured.remarks
                about = {"clip": remarks[""], "backend": remarks[name]}
                with (
                    output.atomic(self._file(of.parts[name])) as part,
                    part.open("wb") as file,
                ):
                    np.savez(
                        file,
                        features=features,
                        mask=measured.masks[name],
                        about=np.array(json.dumps(about)),
                    )

    def _file(self, part: str) -> pathlib.Path:
        return self.folder / f"{part}.npz"


@dataclasses.dataclass(frozen=True)
class Job:
    """A clip to measure: its file, and the backends to use."""

    path: pathlib.Path
    names: tuple[str, ...]


@dataclasses.dataclass
class Tally:
    """What measuring did.

    Attributes:
        measured: clips.
        rejected: clips that could not be used.
        video_seconds: length of those measured.
        wall_seconds: time that it took.
        stage_seconds: time of the workers by stage, summed over them.
        network_seconds: time of the networks by stage.
        num_workers: processes that shared the workers' stages.
    """

    measured: int = 0
    rejected: int = 0
    video_seconds: float = 0.0
    wall_seconds: float = 0.0
    stage_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    network_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    num_workers: int = 1

    def add(self, seconds: float, stages: Mapping[str, float]) -> None:
        """Adds a clip of so many seconds, and the time of its stages."""
        self.measured += 1
        self.video_seconds += seconds
        for stage, spent in stages.items():
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

    def line(self) -> str:
        """Returns it in a line for people."""
        if not self.measured:
            return "nothing had to be measured"
        speed = self.video_seconds / max(self.wall_seconds, 1e-9)
        rates = ", ".join(f"{k} {v:,.0f}" for k, v in self.rates().items())
        return (
            f"measured {self.measured} clips, {self.video_seconds / 60:.1f} minutes of "
            f"video, {speed:.1f} times faster than real time; rows a second: {rates}; "
            f"limited by {self.limit()}"
        )


def measured(
    work: Mapping[str, Job],
    options: backends.Options,
    tally: Tally,
    *,
    num_workers: int | None = None,
    timeout_seconds: float | None = None,
    device_batch: int | None = None,
) -> Iterator[tuple[str, "clips.ClipFeatures | jobs.Failure"]]:
    """Measures clips in worker processes, networks in this one.

    Args:
        work: clips by a key of the caller's.
        options: as checked by `clip.check`.
        tally: gets what was done.
        num_workers: see `jobs.count`.
        timeout_seconds: a clip that takes longer is given up; None takes a minute and
            five times `options.max_seconds`.
        device_batch: rows that a network sees at once; None takes its default.

    Yields:
        Each key, as soon as its clip is done, with its features or why it has none.

    Raises:
        schema.InputError: a network's weights do not fit it, or the device's memory is
            too small for them.
    """
    if not work:
        return
    start = time.perf_counter()
    tally.num_workers = jobs.count(num_workers, len(work))
    names = {name for job in work.values() for name in job.names}
    networks = open_networks(options, names, device_batch)
    progress = jobs.progress_of(len(work), what="measured")
    # Few clips wait for networks, which may be slower: they take memory.
    with (
        contextlib.closing(jobs.Workers(tally.num_workers)) as workers,
        contextlib.closing(progress),
    ):
        for key, value in observe(
            workers, work, options, timeout_seconds, tally.num_workers + 1
        ):
            if isinstance(value, jobs.Failure):
                tally.rejected += 1
                done = [(key, value)]
            else:
                tally.add(value.rows / schema.FPS, value.seconds)
                done = networks.add(key, value) if value.pending else [(key, value)]
            del value  # what networks see may be large
            yield from done
            speed = tally.video_seconds / (time.perf_counter() - start)
            progress.update(1, f"{speed:.1f}x real time, {tally.rejected} rejected")
        if networks is not None:
            yield from networks.finish()
            tally.network_seconds = networks.seconds
    tally.wall_seconds = time.perf_counter() - start


def observe(
    workers: jobs.Workers,
    work: Mapping[str, Job],
    options: backends.Options,
    timeout_seconds: float | None = None,
    ahead: int | None = None,
) -> Iterator[tuple[str, "clips.ClipFeatures | jobs.Failure"]]:
    """Has workers measure clips, but for what networks will see; see `measured`."""
    return workers.run(
        clips.observe,
        {key: (job.path, options, job.names) for key, job in work.items()},
        timeout_seconds=timeout_seconds or 60 + 5 * options.max_seconds,
        ahead=ahead,
    )


def open_networks(
    options: backends.Options, names: Container[str], device_batch: int | None = None
):
    """Returns the `network_stage.Networks` of backends; None where none is one.

    Raises:
        schema.InputError: weights are missing or do not fit the network.
    """
    settings = [
        setting
        for setting in options.settings
        if setting.name in names and hasattr(setting.module, "network")
    ]
    if not settings:
        return None
    from extract import network_stage  # loads JAX, which workers don't need

    return network_stage.Networks(
        settings, device_batch=device_batch or network_stage.DEVICE_BATCH
    )
