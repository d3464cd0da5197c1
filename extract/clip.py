"""Measures one clip: the function that every command and pipeline calls.

The one thing to know: one decode pass feeds all backends, and all of a clip's
modalities have the same number of rows, 25 a second, row t at t/25 s after the first
picture. A row that a modality could not measure is NaN with mask False.
"""

import dataclasses
import pathlib
import time
from collections.abc import Mapping

import numpy as np

from extract import action_units, decode, keypoints, landmarks, logmel, nss, sound, sync
from tqa_jax import schema

BACKENDS: Mapping[str, tuple[str, ...]] = {
    "visual": (nss.NAME,),
    "audio": (logmel.NAME,),
    "keypoints": (keypoints.NAME,),
    "action_units": tuple(action_units.VERSIONS),
    "sync": (sync.NAME,),
}
"""Backends of each modality; the first is the default."""
STAGES = ("decode", "landmarks", "visual", "audio", "sync")
"""What the seconds of a clip are spent on."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How clips are measured; data sets made with different options don't mix.

    Attributes:
        visual: backend of the modality, of `BACKENDS`; likewise the other four.
        openface: folder with `<clip>.csv`, for `action_units="openface"`.
        max_seconds: longer clips are rejected.
        landmarker: path of `face_landmarker.task`; None finds the packaged one.
    """

    visual: str = nss.NAME
    audio: str = logmel.NAME
    keypoints: str = keypoints.NAME
    action_units: str = "blendshapes"
    sync: str = sync.NAME
    openface: str | None = None
    max_seconds: float = 120.0
    landmarker: str | None = None


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """What was measured in a clip of T rows.

    Attributes:
        features: modality to float32 (T, D), NaN where the mask is False.
        frame_mask: modality to bool (T,), True where the row was measured.
        notes: what a person should know of the clip, one line each.
        seconds: time spent by stage, of `STAGES`.
    """

    features: Mapping[str, np.ndarray]
    frame_mask: Mapping[str, np.ndarray]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def rows(self) -> int:
        """Rows of every modality."""
        return len(self.frame_mask["visual"])


def check(options: Options) -> pathlib.Path:
    """Checks options before any work and returns the landmarker's file.

    Raises:
        schema.InputError: for an unknown backend, a missing or wrong landmarker, a
            missing OpenFace folder, or a useless time limit.
    """
    for modality, available in BACKENDS.items():
        name = getattr(options, modality)
        if name not in available:
            raise schema.InputError(
                f"unknown {modality} backend {name!r}; available: "
                f"{', '.join(available)}"
            )
    if options.action_units == "openface" and not options.openface:
        raise schema.InputError(
            "action units from OpenFace need the folder of its tables: --openface=DIR"
        )
    if options.action_units != "openface" and options.openface:
        raise schema.InputError(
            f"--openface is given but action units come from {options.action_units!r}; "
            "add --action_units=openface"
        )
    if options.openface and not pathlib.Path(options.openface).is_dir():
        raise schema.InputError(f"no folder of OpenFace tables at {options.openface}")
    if not options.max_seconds > 0:
        raise schema.InputError(
            f"max_seconds is {options.max_seconds}; expected a positive number"
        )
    return landmarks.find_model(options.landmarker)


def modalities(options: Options) -> tuple[schema.Modality, ...]:
    """Describes what `extract_clip` gives with these options, for the data set."""
    face = landmarks.SHA256  # every backend but the audio's sees through the landmarker
    units = options.action_units
    return (
        schema.Modality(
            name="visual",
            width=len(nss.FEATURES),
            backend=nss.NAME,
            version=nss.VERSION,
            checksum=face,
            description=nss.DESCRIPTION,
        ),
        schema.Modality(
            name="audio",
            width=len(logmel.FEATURES),
            backend=logmel.NAME,
            version=logmel.VERSION,
            description=logmel.DESCRIPTION,
        ),
        schema.Modality(
            name="keypoints",
            width=len(keypoints.FEATURES),
            backend=keypoints.NAME,
            version=keypoints.VERSION,
            checksum=face,
            description=keypoints.DESCRIPTION,
        ),
        schema.Modality(
            name="action_units",
            width=len(action_units.FEATURES),
            backend=units,
            version=action_units.VERSIONS[units],
            checksum="" if units == "openface" else face,
            description=action_units.DESCRIPTIONS[units],
        ),
        schema.Modality(
            name="sync",
            width=len(sync.FEATURES),
            backend=sync.NAME,
            version=sync.VERSION,
            checksum=face,
            description=sync.DESCRIPTION,
        ),
    )


def extract_clip(path: str | pathlib.Path, options: Options) -> ClipFeatures:
    """Measures all modalities of one clip.

    A pure function of the file and the options, with arguments that can be pickled.

    Args:
        path: the video file.
        options: as checked by `check`.

    Raises:
        decode.ClipError: this clip cannot be used, and why.
        schema.InputError: the options or a table beside the clip cannot be used.
    """
    model = check(options)
    seconds = dict.fromkeys(STAGES, 0.0)
    clock = _Clock(seconds)
    media = decode.Media()
    state = nss.State()
    faces: list[landmarks.Face | None] = []
    visual = []
    aspect = 1.0
    with landmarks.tracker(model) as find:
        clock.spent("landmarks")
        for pixels in decode.frames(path, media, max_seconds=options.max_seconds):
            clock.spent("decode")
            face = find(pixels)
            clock.spent("landmarks")
            visual.append(nss.row(pixels, None if face is None else face.points, state))
            clock.spent("visual")
            faces.append(face)
            aspect = pixels.shape[1] / pixels.shape[0]
    if not any(faces):
        raise decode.ClipError(f"no face found in {len(faces)} frames")
    samples, present = sound.track(media.chunks, media.rows)
    clock.spent("decode")

    points = _stacked([face and face.points for face in faces])
    seen = np.array([face is not None for face in faces])
    features = {"visual": nss.finish(visual)}
    masks = {"visual": seen, "keypoints": seen}
    clock.spent("visual")
    features["audio"], masks["audio"] = logmel.features(samples, present, media.rows)
    clock.spent("audio")
    features["keypoints"] = keypoints.features(points)
    if options.action_units == "openface":
        units, masks["action_units"] = _openface(path, options, media)
    else:
        activations = _stacked([face and face.blendshapes for face in faces])
        units, masks["action_units"] = action_units.from_blendshapes(activations), seen
    features["action_units"] = units
    clock.spent("landmarks")
    features["sync"], masks["sync"] = sync.features(points, aspect, samples, present)
    clock.spent("sync")
    for name, values in features.items():
        values[~masks[name]] = np.nan
    _note(media.notes, faces, samples, masks)
    order = BACKENDS.keys()
    return ClipFeatures(
        features={name: features[name] for name in order},
        frame_mask={name: masks[name].copy() for name in order},
        notes=tuple(media.notes),
        seconds=seconds,
    )


class _Clock:
    """Adds the time since the last call to a stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._last = seconds, time.perf_counter()

    def spent(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage] += now - self._last
        self._last = now


def _stacked(rows: list) -> np.ndarray:
    """Stacks arrays of one shape, NaN where there is None."""
    like = next(row for row in rows if row is not None)
    missing = np.full_like(like, np.nan)
    return np.stack([missing if row is None else row for row in rows])


def _openface(path, options: Options, media: decode.Media):
    """Reads the clip's OpenFace table; a clip without one has no action units."""
    table = pathlib.Path(options.openface) / f"{pathlib.Path(path).stem}.csv"
    if not table.is_file():
        media.notes.append(f"no OpenFace table {table.name}: action units are missing")
        width = len(action_units.FEATURES)
        empty = np.full((media.rows, width), np.nan, np.float32)
        return empty, np.zeros(media.rows, bool)
    units, mask = action_units.read_openface(table, media.rows, media.frame_seconds)
    if not mask.all():
        media.notes.append(
            f"the OpenFace table covers {mask.sum()} of {len(mask)} rows"
        )
    return units, mask


def _note(notes: list[str], faces: list, samples: np.ndarray, masks: Mapping) -> None:
    """Adds what is unusual about faces and sound."""
    count = len(faces)
    several = sum(face is not None and face.count > 1 for face in faces)
    without = sum(face is None for face in faces)
    if several:
        notes.append(f"several faces in {several} of {count} rows; the largest taken")
    if without:
        notes.append(f"no face in {without} of {count} rows")
    if float(np.abs(samples).max(initial=0.0)) < 1e-3:
        notes.append("the sound is silent")
    deaf = int((~masks["audio"]).sum())
    if deaf:
        notes.append(f"no sound in {deaf} of {count} rows")
