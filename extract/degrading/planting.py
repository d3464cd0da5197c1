"""Plants flaws into one clip: decodes it, changes it picture by picture, writes a copy.

The one thing to know: the sound of a clip is in memory, its pictures are not: they
stream from the decoder to the encoder, a dozen at a time at most. The flaw
`compression` holds the clip once more as H.264.

Every copy, the flawless one too, is written with the same settings and at the same
size: 25 Hz and 16 kHz as `decode` gives them, less the last row or column of pixels
where their number is odd, which 4:2:0 lacks.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from extract import decode, encode, landmarks, sound
from extract.degrading import damping, degrade_plan, flaws

MIN_SECONDS = 1.0  # shorter clips have no room for an offset of `flaws.MAX_OFFSET`
_SILENT = 1e-3  # of full scale; a clip that never exceeds it has no speech

Picture = UInt8[np.ndarray, "H W 3"]


@dataclasses.dataclass(frozen=True)
class Faces:
    """The face in each picture of a clip.

    Attributes:
        points: landmarks in picture widths and heights, 0 where unseen.
        activations: blendshapes, 0 where unseen.
        seen: pictures with a face.
        aspect: picture width over height.
    """

    points: Float[np.ndarray, "T 478 3"]
    activations: Float[np.ndarray, "T 52"]
    seen: Bool[np.ndarray, " T"]
    aspect: float


def hear(path: pathlib.Path, max_seconds: float) -> Float[np.ndarray, " N"]:
    """Decodes a clip to its end and returns its sound, full scale 1 at most.

    Args:
        path: the video file.
        max_seconds: longer clips are refused.

    Returns:
        640 samples a picture; 0 where the file has no sound.

    Raises:
        decode.ClipError: the clip cannot be used.
    """
    media = decode.Media()
    for _ in pictures(path, media, max_seconds):
        pass
    if media.rows < MIN_SECONDS * flaws.FPS:
        raise decode.ClipError(
            f"lasts {media.rows / flaws.FPS:.2f} s; flaws need {MIN_SECONDS:g} s"
        )
    samples, _ = sound.track(media.chunks, media.rows)
    return _limited(samples)


def is_silent(samples: Float[np.ndarray, " N"]) -> bool:
    """Tells whether there is nothing to hear in which a flaw could be planted."""
    return float(np.max(np.abs(samples))) < _SILENT


def plant(
    copy: degrade_plan.Copy,
    samples: Float[np.ndarray, " N"],
    other: Float[np.ndarray, " M"] | None,
    path: pathlib.Path,
    *,
    max_seconds: float,
    faces: Faces | None,
) -> None:
    """Writes a copy.

    Args:
        copy: what to plant.
        samples: the clip's sound, from `hear`.
        other: the sound of the clip to swap in.
        path: the file to write.
        max_seconds: longer clips are refused.
        faces: from `find_faces`, for the flaw `damping`.

    Raises:
        decode.ClipError: the clip cannot be used.
    """
    rows = len(samples) * flaws.FPS // flaws.RATE
    shown = pictures(copy.original.path, decode.Media(), max_seconds)
    changed = _changed(shown, rows, copy, faces)
    sounds = degraded(samples, other, copy)
    encode.write(path, changed, sounds, codec="flac", x264=encode.SAME_BYTES)


def degraded(
    samples: Float[np.ndarray, " N"],
    other: Float[np.ndarray, " M"] | None,
    copy: degrade_plan.Copy,
) -> Float[np.ndarray, " N"]:
    """Plants the copy's flaw of the sound, if it has one."""
    strength = {flaw: copy.strengths.get(flaw, 0.0) for flaw in degrade_plan.SOUND}
    if other is not None:
        foreign = alike(other, samples, copy.seed)
        samples = flaws.swap(samples, foreign, strength["swap"], copy.seed)
    samples = flaws.offset(samples, strength["offset"], copy.seed)
    samples = flaws.clipping(samples, strength["clipping"])
    samples = flaws.noise(samples, strength["noise"], copy.seed)
    samples = flaws.band_limit(samples, strength["band_limit"])
    return _limited(samples)


def alike(
    other: Float[np.ndarray, " M"], samples: Float[np.ndarray, " N"], seed: int
) -> Float[np.ndarray, " N"]:
    """Makes sound as long and as loud as a clip's, from any place in another's.

    A shorter one is repeated. Loudness is the root mean square.
    """
    start = int(np.random.default_rng([seed, 21]).integers(len(other)))
    foreign = np.resize(np.roll(other, -start), len(samples))
    power = np.mean(np.square(foreign, dtype=np.float64))
    wanted = np.mean(np.square(samples, dtype=np.float64))
    gain = np.sqrt(wanted / power) if power > 0 else 1.0
    return _limited((gain * foreign).astype(np.float32))


def pictures(
    path: pathlib.Path, media: decode.Media, max_seconds: float
) -> Iterator[Picture]:
    """Yields the pictures of a clip at 25 Hz, all of one even width and height.

    Raises:
        decode.ClipError: the clip cannot be used, or its pictures change their size.
    """
    size = None
    for pixels in decode.frames(path, media, max_seconds=max_seconds):
        tall, wide = pixels.shape[:2]
        if (size := size or (tall, wide)) != (tall, wide):
            raise decode.ClipError(
                f"pictures change from {size[1]}x{size[0]} to {wide}x{tall}"
            )
        yield pixels[: tall // 2 * 2, : wide // 2 * 2]


def find_faces(path: pathlib.Path, model: pathlib.Path, max_seconds: float) -> Faces:
    """Finds the face in each picture of a clip.

    Args:
        path: the video file.
        model: from `landmarks.find_model`.
        max_seconds: longer clips are refused.

    Raises:
        decode.ClipError: too few pictures show a face, or the clip cannot be used.
    """
    found = []
    with landmarks.tracker(model) as find:
        for pixels in pictures(path, decode.Media(), max_seconds):
            found.append(find(np.ascontiguousarray(pixels)))
            aspect = pixels.shape[1] / pixels.shape[0]
    seen = np.array([face is not None for face in found])
    if seen.mean() < damping.MIN_SHARE:
        raise decode.ClipError(
            f"a face in {seen.sum()} of {len(seen)} frames; damping its expression "
            f"needs {damping.MIN_SHARE:.0%}"
        )
    like = found[int(np.argmax(seen))]
    return Faces(
        np.stack([f.points if f else np.zeros_like(like.points) for f in found]),
        np.stack(
            [f.blendshapes if f else np.zeros_like(like.blendshapes) for f in found]
        ),
        seen,
        aspect,
    )


def picks(copy: degrade_plan.Copy, rows: int) -> Int[np.ndarray, " T"]:
    """Returns which picture of the clip the copy shows at each instant."""
    held = flaws.freeze_picks(rows, copy.strengths.get("freeze", 0.0), copy.seed)
    off = flaws.jitter_picks(rows, copy.strengths.get("jitter", 0.0), copy.seed)
    return off[held]


def _changed(
    shown: Iterator[Picture], rows: int, copy: degrade_plan.Copy, faces: Faces | None
) -> Iterable[Picture]:
    """Plants the copy's flaw of the picture, if it has one."""
    strengths = copy.strengths
    if "damping" in strengths:
        shown = _damped(shown, faces, strengths["damping"])
    if "freeze" in strengths or "jitter" in strengths:
        shown = _reordered(shown, picks(copy, rows))
    if "blur" in strengths:
        shown = (flaws.blur(p[None], strengths["blur"])[0] for p in shown)
    if "compression" in strengths:
        strength = strengths["compression"]
        shown = flaws.compressed(shown, strength, x264=encode.SAME_BYTES)
    return shown


def _damped(
    shown: Iterator[Picture], faces: Faces, strength: float
) -> Iterator[Picture]:
    shifts = damping.shifts(faces.points, faces.seen, faces.aspect, strength)
    for pixels, points, shift in zip(shown, faces.points, shifts, strict=True):
        yield damping.bend(pixels, points, shift)


def _reordered(
    shown: Iterator[Picture], order: Int[np.ndarray, " T"]
) -> Iterator[Picture]:
    """Yields pictures in another order and keeps those that are still to come."""
    last = {int(pick): at for at, pick in enumerate(order)}
    numbered = enumerate(shown)
    kept: dict[int, Picture] = {}
    for at, pick in enumerate(order):
        while pick not in kept:
            number, pixels = next(numbered)
            if last.get(number, -1) >= at:
                kept[number] = pixels
        yield kept[pick]
        if last[int(pick)] == at:
            del kept[pick]
    for _ in numbered:  # the decoder's last words
        pass


def _limited(samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Scales so that no sample leaves -1..1, which would clip."""
    return (samples / max(1.0, float(np.max(np.abs(samples))))).astype(np.float32)
