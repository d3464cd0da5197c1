"""Stores a clip in another way: codec, bit rate, size or frame rate."""

import pathlib
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np


class Way(NamedTuple):
    """How a clip is stored; None leaves size or rate as it is."""

    video: str = "libx264"
    options: tuple[tuple[str, str], ...] = (("crf", "18"), ("preset", "veryfast"))
    audio: str = "flac"
    bit_rate: int | None = None
    audio_rate: int | None = None
    side: int | None = None
    fps: Fraction | None = None
    suffix: str = ".mkv"


def encode(path: pathlib.Path, out: pathlib.Path, way: Way) -> None:
    """Encodes a clip again; pictures at another rate are the nearest in time."""
    kind = "mp4" if way.suffix == ".mp4" else "matroska"
    with av.open(str(path)) as read, av.open(str(out), "w", format=kind) as written:
        shown, heard = read.streams.video[0], read.streams.audio[0]
        least = min(shown.width, shown.height)
        scale = way.side / least if way.side else 1
        width, height = (
            round(side * scale / 2) * 2 for side in (shown.width, shown.height)
        )
        rate = way.fps or shown.average_rate
        video = written.add_stream(way.video, rate=rate, options=dict(way.options))
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio_rate = way.audio_rate or heard.rate
        audio = written.add_stream(way.audio, rate=audio_rate, layout="mono")
        if way.bit_rate:
            audio.bit_rate = way.bit_rate
        pictures = [(frame.time, frame) for frame in read.decode(shown)]
        start = pictures[0][0]
        times = np.array([time for time, _ in pictures]) - start
        count = round((times[-1] + 1 / float(shown.average_rate)) * float(rate))
        for number in range(count):
            nearest = int(np.argmin(np.abs(times - number / float(rate))))
            frame = pictures[nearest][1].reformat(width, height, "yuv420p")
            frame.pts, frame.time_base = number, 1 / rate
            frame.pict_type = av.video.frame.PictureType.NONE
            written.mux(video.encode(frame))
        written.mux(video.encode(None))
        read.seek(0)
        wanted = audio.codec_context.format or av.AudioFormat("s16")
        resampler = av.AudioResampler(wanted.name, "mono", audio_rate)
        fifo = av.AudioFifo()
        for frame in read.decode(heard):
            for piece in resampler.resample(frame):
                piece.pts = None
                fifo.write(piece)
        size, at = audio.codec_context.frame_size or 1024, 0
        while (piece := fifo.read(size, partial=True)) is not None:
            piece.pts, piece.time_base = at, Fraction(1, audio_rate)
            at += piece.samples
            written.mux(audio.encode(piece))
        written.mux(audio.encode(None))
