"""Plants flaws into one clip, picture by picture, and measures them in the copy.

The sound of a clip is in memory, its pictures are not: they stream from the decoder to
the encoder, a dozen at a time at most. The flaw `compression` holds the clip once more
as H.264.

Every copy, the flawless one too, is written with the same settings and at the same
size: 25 Hz and 16 kHz as `decode` gives them, less the last row or column of pixels
where their number is odd, which 4:2:0 lacks.
"""

import json
import pathlib
import pickle

import numpy as np
from jaxtyping import Float

from extract import backends, clip, decode, encode, sound
from extract.degrading import FPS, FRAME, Audio, Pictures, Scene, damping, flaws
from extract.degrading.degrade_plan import Copy
from extract.degrading.sound_flaws import limited
from tqa_jax import output

COLUMNS = ("flaw", "strength", "unit", "planted", "measured", "agrees")
MIN_SECONDS = 1.0  # shorter clips have no room for the largest offset


def hear(path: pathlib.Path, max_seconds: float) -> Audio:
    """Decodes a clip to its end and returns its sound, 640 samples a picture.

    Full scale is 1 at most; 0 stands where the file has no sound.
    """
    media = decode.Media()
    for _ in pictures(path, media, max_seconds):
        pass
    if media.rows < MIN_SECONDS * FPS:
        raise decode.ClipError(
            f"lasts {media.rows / FPS:.2f} s; flaws need {MIN_SECONDS:g} s"
        )
    samples, _ = sound.track(media.chunks, media.rows)
    return limited(samples)


def keep_sound(path: pathlib.Path, max_seconds: float, result: pathlib.Path) -> None:
    """Writes the sound of a clip, as `hear` returns it, into a file of NumPy's."""
    samples = hear(path, max_seconds)
    with output.atomic(result) as part, part.open("wb") as file:
        np.save(file, samples)


def plant(
    copy: Copy,
    heard: pathlib.Path,
    foreign: pathlib.Path | None,
    max_seconds: float,
    model: pathlib.Path,
    result: pathlib.Path,
) -> None:
    """Writes a copy and measures its flaws in the finished file.

    Args:
        copy: what to plant.
        heard: the clip's sound, from `keep_sound`.
        foreign: the sound of the clip to swap in.
        max_seconds: longer clips are refused.
        model: from `landmarks.find_model`.
        result: gets a row of `COLUMNS` for each flaw, as JSON; the copy is beside it.
    """
    original, path = copy.original.path, result.with_suffix(".mp4")
    samples = np.load(heard)
    has_face = any(flaws.FLAWS[name].kind == "face" for name in copy.strengths)
    scene = Scene(
        seed=copy.seed,
        rows=len(samples) // FRAME,
        other=foreign and alike(np.load(foreign), samples, copy.seed),
        faces=_kept_faces(original, model, max_seconds, heard) if has_face else None,
        x264=encode.SAME_BYTES,
    )
    shown = pictures(original, decode.Media(), max_seconds)
    for kind in ("face", "picture"):
        shown = flaws.plant(kind, shown, copy.strengths, scene)
    changed = limited(flaws.plant("sound", samples, copy.strengths, scene))
    encode.write(path, shown, changed, codec="flac", x264=encode.SAME_BYTES)
    rows = []
    for name, strength in copy.strengths.items():
        flaw = flaws.FLAWS[name]
        if flaw.kind == "sound":
            both = samples, hear(path, max_seconds)
        elif flaw.kind == "face":
            both = scene.faces, find_faces(path, model, max_seconds)
        else:
            both = [pictures(p, decode.Media(), max_seconds) for p in (original, path)]
        values = name, strength, flaw.unit, *flaw.measure(*both, strength, scene)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    with output.atomic(result) as part:
        part.write_text(json.dumps(rows))


def alike(other: Float[np.ndarray, " M"], samples: Audio, seed: int) -> Audio:
    """Makes sound as long and as loud as a clip's, from any place in another's.

    A shorter one is repeated. Loudness is the root mean square.
    """
    start = int(np.random.default_rng([seed, 21]).integers(len(other)))
    foreign = np.resize(np.roll(other, -start), len(samples))
    power = np.mean(np.square(foreign, dtype=np.float64))
    wanted = np.mean(np.square(samples, dtype=np.float64))
    return limited((np.sqrt(wanted / power) * foreign).astype(np.float32))


def pictures(path: pathlib.Path, media: decode.Media, max_seconds: float) -> Pictures:
    """Yields the pictures of a clip at 25 Hz, all of one even width and height."""
    size = None
    for pixels in decode.frames(path, media, max_seconds=max_seconds):
        tall, wide = pixels.shape[:2]
        if (size := size or (tall, wide)) != (tall, wide):
            raise decode.ClipError(
                f"pictures change from {size[1]}x{size[0]} to {wide}x{tall}"
            )
        yield np.ascontiguousarray(pixels[: tall // 2 * 2, : wide // 2 * 2])


def _kept_faces(
    path: pathlib.Path, model: pathlib.Path, max_seconds: float, heard: pathlib.Path
) -> backends.Clip:
    """Finds a clip's faces once for all of its copies; see `find_faces`."""
    kept = heard.with_suffix(".faces")
    if kept.exists():
        return pickle.loads(kept.read_bytes())
    faces = find_faces(path, model, max_seconds)
    with output.atomic(kept) as part:
        part.write_bytes(pickle.dumps(faces))
    return faces


def find_faces(
    path: pathlib.Path, model: pathlib.Path, max_seconds: float
) -> backends.Clip:
    """Finds the face in each picture; `decode.ClipError` if too few show one."""
    faces = clip.watch(path, model, max_seconds, pictures=pictures)
    if faces.seen.mean() < damping.MIN_SHARE:
        raise decode.ClipError(
            f"a face in {faces.seen.sum()} of {faces.rows} frames; damping its "
            f"expression needs {damping.MIN_SHARE:.0%}"
        )
    return faces
