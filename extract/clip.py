"""Measures one clip: the function that every command and pipeline calls.

The one thing to know: one decode pass feeds all backends, and all of a clip's
modalities have the same number of rows, 25 a second, row t at t/25 s after the first
picture. A row that a modality could not measure is NaN with mask False. Networks come
second: `observe` cuts out what they will see, `extract.device` runs them.
"""

import dataclasses
import pathlib
import time
from collections.abc import Mapping

import numpy as np

from extract import (
    action_units,
    crops,
    decode,
    deep,
    keypoints,
    landmarks,
    logmel,
    nss,
    openface,
    sound,
    sync,
    sync_head,
)
from extract.networks import syncnet_input, weights
from tqa_jax import schema

BACKENDS: Mapping[str, tuple[str, ...]] = {
    "visual": (nss.NAME, *deep.names("visual")),
    "audio": (logmel.NAME, *deep.names("audio")),
    "keypoints": (keypoints.NAME,),
    "action_units": tuple(action_units.VERSIONS),
    "sync": (sync.NAME, sync_head.NAME, *deep.names("sync")),
}
"""Backends of each modality; the first is the default."""
STAGES = ("decode", "landmarks", "visual", "audio", "sync")
"""What a worker's seconds with a clip are spent on."""
DTYPES = ("float32", "bfloat16")
"""What networks may compute in."""

_MAX_BEYOND = 0.5  # seconds that an OpenFace table may go on after its clip


@dataclasses.dataclass(frozen=True)
class Options:
    """How clips are measured; data sets made with different options don't mix.

    Attributes:
        visual: backend of the modality, of `BACKENDS`; likewise the other four.
        visual_weights: of a backend that is a network: a file, a folder in the hub's
            format, or `owner/name@revision`; None takes the backend's own.
        audio_weights: likewise.
        sync_weights: likewise; for `head`, the file that `extract.train_sync` made.
        network_dtype: what networks compute in, of `DTYPES`.
        openface: folder with `<clip>.csv`, for `action_units="openface"`.
        max_seconds: longer clips are rejected.
        landmarker: path of `face_landmarker.task`; None finds the packaged one.
    """

    visual: str = nss.NAME
    audio: str = logmel.NAME
    keypoints: str = keypoints.NAME
    action_units: str = "blendshapes"
    sync: str = sync.NAME
    visual_weights: str | pathlib.Path | None = None
    audio_weights: str | pathlib.Path | None = None
    sync_weights: str | pathlib.Path | None = None
    network_dtype: str = "float32"
    openface: str | pathlib.Path | None = None
    max_seconds: float = 120.0
    landmarker: str | pathlib.Path | None = None

    def networks(self) -> dict[str, str]:
        """Returns the backend of each modality that a network measures."""
        chosen = {name: getattr(self, name) for name in BACKENDS}
        return {
            name: backend for name, backend in chosen.items() if backend in deep.KINDS
        }

    def weights(self) -> dict[str, weights.Found]:
        """Finds the weights of each modality that a network measures.

        Raises:
            schema.InputError: they are not there.
        """
        return {
            name: deep.find(backend, getattr(self, f"{name}_weights"))
            for name, backend in self.networks().items()
        }


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """What was measured in a clip of T rows.

    Attributes:
        features: modality to float32 (T, D), NaN where the mask is False.
        frame_mask: modality to bool (T,), True where the row was measured.
        notes: what a person should know of the clip, one line each.
        seconds: time spent by stage, of `STAGES`.
        pending: what networks still have to see, by `<modality>/<name>`: `visual/crops`
            uint8 (n, 224, 224, 3) of the rows with a face, `audio/samples` (N,) at 16
            kHz, `sync/crops` as those, `sync/samples` (N,), `sync/present` (N,).
            Their modalities have a mask and no features yet.
    """

    features: Mapping[str, np.ndarray]
    frame_mask: Mapping[str, np.ndarray]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    pending: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of every modality."""
        return len(self.frame_mask["visual"])


def check(options: Options) -> pathlib.Path:
    """Checks options before any work and returns the landmarker's file.

    Raises:
        schema.InputError: for an unknown backend, missing or wrong weights, a missing
            OpenFace folder, or a useless time limit.
    """
    for modality, available in BACKENDS.items():
        name = getattr(options, modality)
        if name not in available:
            raise schema.InputError(
                f"unknown {modality} backend {name!r}; available: "
                f"{', '.join(available)}"
            )
    for modality in ("visual", "audio", "sync"):
        name, given = (
            getattr(options, modality),
            getattr(options, f"{modality}_weights"),
        )
        if given and name not in deep.KINDS and name != sync_head.NAME:
            raise schema.InputError(
                f"--{modality}_weights is given but the backend {name!r} has none; "
                f"choose --{modality}=BACKEND of {', '.join(with_weights(modality))}"
            )
    if options.sync == sync_head.NAME and not options.sync_weights:
        raise schema.InputError(
            f"--sync={sync_head.NAME} needs a trained head, --sync_weights=FILE; "
            "`python -m extract.train_sync` makes one of your own clips"
        )
    if options.sync == sync_head.NAME:
        sync_head.load(options.sync_weights)
    if options.network_dtype not in DTYPES:
        raise schema.InputError(
            f"unknown network dtype {options.network_dtype!r}; available: "
            f"{', '.join(DTYPES)}"
        )
    computing = {name for name in options.networks().values() if name != "clip"}
    if options.network_dtype != "float32" and not computing:
        raise schema.InputError(
            f"--network_dtype={options.network_dtype} is given, but no backend is a "
            "network that computes in it"
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
    modalities(options)
    return landmarks.find_model(options.landmarker)


def with_weights(modality: str) -> tuple[str, ...]:
    """Returns the backends of a modality that take weights."""
    head = (sync_head.NAME,) if modality == "sync" else ()
    return (*head, *deep.names(modality))


def modalities(options: Options) -> tuple[schema.Modality, ...]:
    """Describes what `extract_clip` gives with these options, for the data set.

    Raises:
        schema.InputError: weights are missing or wrong.
    """
    face = landmarks.SHA256  # every backend but the audio's sees through the landmarker
    units = options.action_units

    def without_weights(name: str, of, checksum: str = face) -> schema.Modality:
        return schema.Modality(
            name=name,
            width=len(of.FEATURES),
            backend=of.NAME,
            version=of.VERSION,
            checksum=checksum,
            description=of.DESCRIPTION,
        )

    described = {
        "visual": without_weights("visual", nss),
        "audio": without_weights("audio", logmel, checksum=""),
        "keypoints": without_weights("keypoints", keypoints),
        "action_units": schema.Modality(
            name="action_units",
            width=len(action_units.NAMES[units]),
            backend=units,
            version=action_units.VERSIONS[units],
            checksum="" if units == "openface" else face,
            description=action_units.DESCRIPTIONS[units],
        ),
        "sync": without_weights("sync", sync),
    }
    if options.sync == sync_head.NAME:
        checksum = weights.sha256(pathlib.Path(options.sync_weights))
        described["sync"] = without_weights("sync", sync_head, checksum)
    for name, found in options.weights().items():
        backend = getattr(options, name)
        dtype = "float32" if backend == "clip" else options.network_dtype
        described[name] = deep.describe(backend, found, dtype)
    return tuple(described.values())


def observe(path: str | pathlib.Path, options: Options) -> ClipFeatures:
    """Measures all modalities of one clip but those of networks.

    A pure function of the file and the options, with arguments that can be pickled.

    Args:
        path: the video file.
        options: as checked by `check`.

    Raises:
        decode.ClipError: this clip cannot be used, and why.
        schema.InputError: the options or a table beside the clip cannot be used.
    """
    model = landmarks.find_model(options.landmarker)
    networks = options.networks()
    seconds = dict.fromkeys(STAGES, 0.0)
    clock = _Clock(seconds)
    media = decode.Media()
    state = nss.State()
    cropper = syncnet_input.Cropper()
    faces: list[landmarks.Face | None] = []
    visual, mouths = [], []
    aspect = 1.0
    with landmarks.tracker(model) as find:
        clock.spent("landmarks")
        for pixels in decode.frames(path, media, max_seconds=options.max_seconds):
            clock.spent("decode")
            face = find(pixels)
            points = None if face is None else face.points
            clock.spent("landmarks")
            if "visual" not in networks:
                visual.append(nss.row(pixels, points, state))
            elif face is not None:
                visual.append(crops.aligned(pixels, points))
            clock.spent("visual")
            if "sync" in networks:
                mouths += cropper.push(pixels, points)
            clock.spent("sync")
            faces.append(face)
            aspect = pixels.shape[1] / pixels.shape[0]
    if not any(faces):
        raise decode.ClipError(f"no face found in {len(faces)} frames")
    samples, present = sound.track(media.chunks, media.rows)
    clock.spent("decode")

    points = _stacked([face and face.points for face in faces])
    seen = np.array([face is not None for face in faces])
    features: dict[str, np.ndarray] = {"keypoints": keypoints.features(points)}
    masks = {"visual": seen, "keypoints": seen}
    pending: dict[str, np.ndarray] = {}
    if "visual" in networks:
        pending["visual/crops"] = np.stack(visual)
    else:
        features["visual"] = nss.finish(visual)
    clock.spent("visual")
    if "audio" in networks:
        masks["audio"] = sound.heard(present, media.rows)
        pending["audio/samples"] = samples
    else:
        features["audio"], masks["audio"] = logmel.features(
            samples, present, media.rows
        )
    clock.spent("audio")
    activations = _stacked([face and face.blendshapes for face in faces])
    features["action_units"], masks["action_units"] = _units(
        path, options, media, points, activations, seen
    )
    clock.spent("landmarks")
    if "sync" in networks:
        mouths += cropper.finish()
        pending["sync/crops"] = np.stack([one for one in mouths if one is not None])
        pending["sync/samples"], pending["sync/present"] = samples, present
        masks["sync"] = seen
    elif options.sync == sync_head.NAME:
        head = sync_head.load(options.sync_weights)
        features["sync"], masks["sync"] = sync_head.features(
            points, aspect, samples, present, head
        )
    else:
        features["sync"], masks["sync"] = sync.features(
            points, aspect, samples, present
        )
    clock.spent("sync")
    for name, values in features.items():
        values[~masks[name]] = np.nan
    _note(media.notes, faces, samples, masks)
    return ClipFeatures(
        features={name: features[name] for name in BACKENDS if name in features},
        frame_mask={name: masks[name].copy() for name in BACKENDS},
        notes=tuple(media.notes),
        seconds=seconds,
        pending=pending,
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


def _units(path, options: Options, media: decode.Media, points, activations, seen):
    """Measures the action units by the backend of the options."""
    if options.action_units == "blendshapes":
        return action_units.from_blendshapes(activations), seen
    if options.action_units == "geometry":
        return action_units.from_geometry(points), seen
    table = pathlib.Path(options.openface) / f"{pathlib.Path(path).stem}.csv"
    if not table.is_file():
        media.notes.append(f"no OpenFace table {table.name}: action units are missing")
        width = len(action_units.NAMES["openface"])
        empty = np.full((media.rows, width), np.nan, np.float32)
        return empty, np.zeros(media.rows, bool)
    units, mask = openface.read(table, media.rows, media.frame_seconds)
    beyond = openface.seconds_beyond(table, media.rows, media.frame_seconds)
    if beyond > _MAX_BEYOND:
        media.notes.append(
            f"the OpenFace table goes on for {beyond:.1f} s after the clip: is it of "
            "another video?"
        )
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
