"""Small real media files for tests, written with PyAV."""

import contextlib
import os
import pathlib
import signal
import time
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np

RATE = 48_000
TICKS = 60_000  # of the video's time base, a second


def click(seconds: float, at: float) -> np.ndarray:
    """Returns sound that is silent but for 20 ms of noise from `at` seconds on."""
    samples = np.zeros(round(seconds * RATE), np.float32)
    start = round(at * RATE)
    noise = np.random.default_rng(0).uniform(-0.8, 0.8, RATE // 50)
    samples[start : start + len(noise)] = noise[: len(samples) - start]
    return samples


def flash(at: float, size: tuple[int, int] = (64, 64)) -> Callable:
    """Returns pictures that are dark before `at` seconds and bright from then on."""

    def picture(time: float) -> np.ndarray:
        level = 220 if time >= at - 1e-6 else 30
        return np.full((size[1], size[0], 3), level, np.uint8)

    return picture


def write(
    path: pathlib.Path,
    *,
    times: Sequence[float],
    picture: Callable[[float], np.ndarray] | None,
    sound: np.ndarray | None,
    fps: Fraction | int = 25,
    start: float = 0.0,
    sound_start: float = 0.0,
    codec: str = "mpeg4",
    b_frames: int | None = None,
    ticks: int = TICKS,
    sound_codec: str = "aac",
    sound_rate: int = RATE,
    layout: str = "mono",
    rotation: float = 0,
    pixel_aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
) -> pathlib.Path:
    """Writes a clip.

    Args:
        path: the file; its suffix chooses the container.
        times: seconds of each picture.
        picture: from seconds to an RGB picture; None for no video.
        sound: at `sound_rate`, (N,) or (channels, N); None for no audio.
        fps: the rate stated in the header.
        start: seconds by which both streams are late.
        sound_start: seconds by which the sound is late besides.
        codec: of the video.
        b_frames: most B-frames in a row; None leaves it to the encoder.
        ticks: of the video's time base, a second.
        sound_codec: of the sound.
        sound_rate: samples a second.
        layout: of the channels, as FFmpeg names it.
        pixel_aspect: width over height of a stored pixel.
        rotation: display rotation to store, degrees.
        options: of the container.
    """
    with av.open(str(path), "w", options=options or {}) as file:
        packets = []
        if picture is not None:
            first = picture(times[0])
            video = file.add_stream(codec, rate=fps)
            video.height, video.width = first.shape[:2]
            video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            video.time_base = video.codec_context.time_base = Fraction(1, ticks)
            if b_frames is not None:
                video.codec_context.max_b_frames = b_frames
            video.codec_context.bit_rate = 4_000_000
            if pixel_aspect:
                video.codec_context.sample_aspect_ratio = pixel_aspect
            if rotation:
                video.set_display_rotation(rotation)
        if sound is not None:
            audio = file.add_stream(sound_codec, rate=sound_rate, layout=layout)
        if picture is not None:
            for time in times:
                frame = av.VideoFrame.from_ndarray(picture(time), format="rgb24")
                frame.pts = round((time + start) * ticks)
                frame.time_base = Fraction(1, ticks)
                packets += video.encode(frame)
            packets += video.encode()
        if sound is not None:
            format = audio.codec_context.format.name
            sound = np.atleast_2d(sound)
            if len(sound) > 1:  # PyAV cannot fill 8 planes; the encoder converts
                format = format.removesuffix("p")
            planar = format.endswith("p")
            for at in range(0, sound.shape[1], 1024):
                piece = np.ascontiguousarray(sound[:, at : at + 1024])
                if format.startswith("s16"):
                    piece = (piece * 32767).astype(np.int16)
                if not planar:  # one row, the channels of an instant side by side
                    piece = piece.T.reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(piece, format=format, layout=layout)
                frame.sample_rate = sound_rate
                frame.pts = at + round((start + sound_start) * sound_rate)
                frame.time_base = Fraction(1, sound_rate)
                packets += audio.encode(frame)
            packets += audio.encode()
        for packet in sorted(packets, key=lambda p: float(p.dts * p.time_base)):
            file.mux(packet)
    return path


def mux(
    path: pathlib.Path,
    *parts: tuple[pathlib.Path, str, int],
    change: Callable[[av.Packet], bool | None] = lambda packet: True,
) -> pathlib.Path:
    """Copies streams of several files into one.

    Args:
        path: the file; its suffix chooses the container.
        parts: of each stream the file, "video" or "audio", and its flags.
        change: gets each packet and may change it; one for which it is false is left
            out.
    """
    packets = []
    with contextlib.ExitStack() as files, av.open(str(path), "w") as target:
        for source, kind, flags in parts:
            stream = files.enter_context(av.open(str(source))).streams.best(kind)
            copy = target.add_stream_from_template(stream)
            copy.disposition = av.stream.Disposition(flags)
            for packet in stream.container.demux(stream):
                if packet.size and change(packet):
                    packet.stream = copy
                    packets.append(packet)
        for packet in sorted(packets, key=lambda p: float((p.dts or 0) * p.time_base)):
            target.mux(packet)
    return path


def join(path: pathlib.Path, *parts: pathlib.Path) -> pathlib.Path:
    """Writes the bytes of files one after the other."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def simple(path: pathlib.Path, seconds: float = 1.0, **more) -> pathlib.Path:
    """Writes a clip at 25 fps with a flash and a click in its middle."""
    given = {
        "times": np.arange(round(seconds * 25)) / 25,
        "picture": flash(seconds / 2),
        "sound": click(seconds, seconds / 2),
    }
    return write(path, **{**given, **more})


def portrait(size: int = 256) -> np.ndarray:
    """Returns a public-domain photograph of a face, RGB."""
    import skimage.data

    return np.ascontiguousarray(skimage.data.astronaut()[0:size, 96 : 96 + size])


def talking(shift: int = 2) -> Callable:
    """Returns pictures of the portrait that sways by a few pixels."""
    still = portrait()

    def picture(time: float) -> np.ndarray:
        return np.roll(still, round(shift * np.sin(6 * time)), axis=1)

    return picture


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Returns noise in bursts of about four a second."""
    rng = np.random.default_rng(seed)
    count = round(seconds * RATE)
    loud = np.maximum(np.sin(2 * np.pi * 4 * np.arange(count) / RATE), 0.01)
    return (0.2 * loud * rng.normal(size=count)).astype(np.float32)


def face(path: pathlib.Path, seconds: float = 1.0, **more) -> pathlib.Path:
    """Writes a clip with a face and speech at 25 fps."""
    given = {
        "times": np.arange(round(seconds * 25)) / 25,
        "picture": talking(),
        "sound": speech(seconds),
    }
    return write(path, **{**given, **more})


class Fatal:
    """A path that ends the process which opens it, as a broken decoder would."""

    def __fspath__(self) -> str:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError("unreachable")


class Endless:
    """A path that hangs the process which opens it."""

    def __fspath__(self) -> str:
        time.sleep(600)
        raise AssertionError("unreachable")


class Defective:
    """A path that meets a defect of the program."""

    def __fspath__(self) -> str:
        raise KeyError("a defect")
