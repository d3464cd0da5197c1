"""Writes clips: H.264 pictures at 25 Hz and mono sound at 16 kHz in an .mp4.

Equal pictures and samples give equal bytes, on the same version
of FFmpeg. The encoder has one thread for that reason, and `SAME_BYTES` where the width
is no multiple of 256: x264's macroblock tree reads beyond the end of its rows there,
and what happens to be in memory decides how bits are spent.
"""

import pathlib
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from jaxtyping import Float, UInt8

from extract import sound
from tqa_jax import output, schema

VIDEO = {"crf": "15", "preset": "veryfast", "threads": "1"}
"""Settings of libx264: of good quality."""
SAME_BYTES = "mbtree=0"
"""x264-params that make pictures of any width come out the same twice."""
_FPS = int(schema.FPS)
_BIT_RATE = 96_000


def write(
    path: pathlib.Path,
    pictures: Iterable[UInt8[np.ndarray, "H W 3"]],
    samples: Float[np.ndarray, " N"],
    *,
    codec: str = "aac",
    x264: str = "",
) -> int:
    """Writes a clip; it appears complete or not at all.

    Args:
        path: the file.
        pictures: RGB, all of one even width and height.
        samples: mono at 16 kHz, within -1..1.
        codec: of the sound: `aac` at 96 kbit/s, or `flac`, exact to 16 bits.
        x264: further settings of the encoder, such as `SAME_BYTES`.

    Returns:
        How many pictures there were.
    """
    with (
        output.atomic(path) as part,
        av.open(str(part), "w", format="mp4") as container,
    ):
        return fill(container, pictures, samples, codec=codec, x264=x264)


def fill(
    container: av.container.OutputContainer,
    pictures: Iterable[UInt8[np.ndarray, "H W 3"]],
    samples: Float[np.ndarray, " N"] | None = None,
    *,
    codec: str = "aac",
    x264: str = "",
    crf: str = VIDEO["crf"],
) -> int:
    """Encodes pictures and sound into an open container; see `write`."""
    options = VIDEO | {"crf": crf} | ({"x264-params": x264} if x264 else {})
    video = container.add_stream("libx264", rate=_FPS, options=options)
    video.pix_fmt = "yuv420p"
    if samples is not None:
        audio = container.add_stream(codec, rate=sound.SAMPLE_RATE, layout="mono")
        if codec == "aac":
            audio.bit_rate = _BIT_RATE
    count = 0
    for count, pixels in enumerate(pictures, 1):
        if count == 1:
            video.height, video.width = pixels.shape[:2]
        picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        picture.pts, picture.time_base = count - 1, Fraction(1, _FPS)
        container.mux(video.encode(picture))
    container.mux(video.encode(None))
    if samples is not None:
        whole = codec == "flac"  # in whole numbers of 16 bits
        stored = np.round(samples * 32767).astype(np.int16) if whole else samples
        piece = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(stored, np.int16 if whole else np.float32)[None],
            format="s16" if whole else "fltp",
            layout="mono",
        )
        piece.sample_rate, piece.pts = sound.SAMPLE_RATE, 0
        piece.time_base = Fraction(1, sound.SAMPLE_RATE)
        container.mux(audio.encode(piece))
        container.mux(audio.encode(None))
    return count
