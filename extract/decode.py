"""Decodes a clip in one pass: frames at 25 Hz and sound at 16 kHz on one time axis.

The one thing to know: time 0 is the first video frame. Row `t` is the frame nearest
to t/25 s, whatever the frame rate of the file, and sample `n` of the sound is the
instant n/16000 s, by the time stamps of the file.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, UInt8

from extract import picture, sound
from tqa_jax import schema

MIN_SIDE = 16
"""Smallest width and height, in pixels, in which a face can be found."""

_ROW = Fraction(1, int(schema.FPS))  # seconds
# Media containers only: playlists (HLS, DASH, concat) could name other files.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpeg,mpegts,mpegvideo,h264,hevc,avi,flv,"
    "asf,ogg,mxf,nut,dv,swf,rm,gif,wav,mp3,flac,aac"
)
_MAX_PIXELS = 1 << 26  # of a picture; 8192 x 8192, beyond what cameras give
_MAX_BAD_PACKETS = 0.05
_MAX_MISSING = 0.05  # of the length that the header promises
_MAX_TAIL_SECONDS = 0.5  # of sound after the pictures that nobody need know of


class ClipError(Exception):
    """A clip cannot be used; the message is a short reason for `rejected.csv`."""


class GoneError(ClipError):
    """A clip is not there now; it may be the next time."""


@dataclasses.dataclass
class Media:
    """What `frames` learns of a clip besides its pictures, filled while it runs.

    Attributes:
        notes: what was done to the clip, one line each, for people.
        rows: rows given so far, 25 a second.
        start_seconds: time stamp of the first frame.
        frame_seconds: time of each frame of the file, in seconds after the first.
        chunks: pieces of sound, each with its first sample on the clip's time axis.
    """

    notes: list[str] = dataclasses.field(default_factory=list)
    rows: int = 0
    start_seconds: float = 0.0
    frame_seconds: list[float] = dataclasses.field(default_factory=list)
    chunks: list[tuple[int, Float[np.ndarray, " N"]]] = dataclasses.field(
        default_factory=list
    )


def frames(
    path: str | pathlib.Path, media: Media, *, max_seconds: float = 120.0
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yields the RGB picture of each row, upright and with square pixels.

    Args:
        path: a video file with sound.
        media: filled while the frames are read; its chunks of sound, for
            `sound.track`, when they have ended.
        max_seconds: longer clips are refused, by their header or when it is reached.

    Raises:
        ClipError: the clip cannot be used.
    """
    # FFmpeg takes `12:30.mp4` for an address unless a folder stands before it.
    path = pathlib.Path(path).absolute()
    if not path.is_file():
        raise GoneError("no such file")
    if path.stat().st_size == 0:
        raise ClipError("the file is empty (0 bytes)")
    try:
        container = av.open(
            str(path),
            options={"format_whitelist": _FORMATS},
            metadata_errors="ignore",
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise ClipError(f"not a readable video: {_reason(error)}") from error
    with container:
        video, audio = _streams(container)
        in_video, in_all = _header_seconds(container, video)
        if (in_video or in_all or 0) > max_seconds:
            raise ClipError(
                f"lasts {in_video or in_all:.0f} s, longer than {max_seconds:g} s"
            )
        yield from _rows(container, video, audio, media, max_seconds)
    seconds = media.rows / schema.FPS
    heard = max((at + len(piece)) / sound.SAMPLE_RATE for at, piece in media.chunks)
    # Some headers state the last instant, which counts from time stamp 0.
    last = max(seconds, heard) + max(0.0, media.start_seconds)
    for promised, found in ((in_video, seconds), (in_all, last)):
        if promised and promised - found > max(0.5, _MAX_MISSING * promised):
            raise ClipError(
                f"truncated: {found:.1f} s of {promised:.1f} s could be decoded"
            )
    if heard - seconds > _MAX_TAIL_SECONDS:
        media.notes.append(
            f"the pictures end after {seconds:.2f} s: the {heard - seconds:.2f} s of "
            "sound after them are left out"
        )


def _streams(container):
    """Returns the video and the audio stream that players choose."""
    pictures = [
        stream
        for stream in container.streams.video
        if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    if not pictures:
        raise ClipError("no video stream")
    if not container.streams.audio:
        raise ClipError("no audio stream")
    video, audio = pictures[0], container.streams.audio[0]
    for stream in (video, audio):
        if stream.codec_context is None:
            raise ClipError(f"the {stream.type} is in an unknown format")
    if min(video.width, video.height) < MIN_SIDE:
        raise ClipError(
            f"pictures of {video.width}x{video.height} pixels are smaller than "
            f"{MIN_SIDE}x{MIN_SIDE}"
        )
    if video.width * video.height > _MAX_PIXELS:
        raise ClipError(
            f"pictures of {video.width}x{video.height} pixels are larger than "
            f"{_MAX_PIXELS / 1e6:.0f} million pixels"
        )
    # Clips are decoded side by side in processes: threads inside one only add memory.
    video.codec_context.thread_count = 1
    video.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}  # if it grows later
    return video, audio


def _rows(container, video, audio, media: Media, max_seconds: float):
    """Yields pictures at the rows' instants and collects the sound."""
    sounds = sound.Collector(int(2 * max_seconds * sound.SAMPLE_RATE))
    stamps = _Stamps(video)
    convert = _converter(float(video.sample_aspect_ratio or 1), media)
    max_rows = int(max_seconds * schema.FPS)
    previous = None  # (time, frame) before the current one
    pixels = None  # RGB of `previous`, converted when a row first needs it
    packets = bad_packets = 0
    for packet in _packets(container, video, audio):
        packets += 1
        try:
            decoded = packet.decode()
        except av.error.FFmpegError:
            bad_packets += 1
            continue
        for frame in decoded:
            if packet.stream is audio:
                sounds.add(frame)
                continue
            time = stamps(frame)
            if time is None:
                continue
            if time > max_seconds:
                raise ClipError(f"longer than {max_seconds:g} s")
            media.frame_seconds.append(float(time))
            if previous is None:
                previous = (time, frame)
                media.start_seconds = float(stamps.origin)
                continue
            # `previous` serves every row that is nearer to it than to this frame.
            while media.rows * _ROW <= (previous[0] + time) / 2:
                if media.rows >= max_rows:
                    raise ClipError(f"longer than {max_seconds:g} s")
                if pixels is None:
                    pixels = convert(previous[1])
                media.rows += 1
                yield pixels
            previous, pixels = (time, frame), None
    if previous is None:
        raise ClipError("no frame could be decoded")
    if bad_packets > _MAX_BAD_PACKETS * packets:
        raise ClipError(f"undecodable: {bad_packets} of {packets} packets are damaged")
    if bad_packets:
        media.notes.append(f"{bad_packets} of {packets} packets are damaged")
    # As many rows as the clip's length rounds to, so that a sliver makes none.
    end = previous[0] + stamps.last_duration - _ROW / 2
    while media.rows == 0 or media.rows * _ROW < end:
        if media.rows >= max_rows:
            raise ClipError(f"longer than {max_seconds:g} s")
        if pixels is None:
            pixels = convert(previous[1])
        media.rows += 1
        yield pixels
    sounds.flush()
    if not sounds.pieces:
        raise ClipError("the audio stream holds no sound")
    media.chunks = sound.place(sounds.pieces, stamps.origin)


def _packets(container, video, audio):
    """Yields packets in file order; a damaged end of the file ends them."""
    packets = container.demux(video, audio)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.InvalidDataError, av.error.EOFError):
            return
        except IndexError:
            # PyAV knows the streams of the header only and stops at a packet of
            # another, which damaged transport streams have; reading goes on.
            packets = container.demux(video, audio)
            continue
        except av.error.FFmpegError as error:
            raise ClipError(f"cannot be read to its end: {_reason(error)}") from error
        yield packet


class _Stamps:
    """Gives each video frame its time in seconds after the first frame."""

    def __init__(self, stream) -> None:
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._step = 1 / Fraction(rate)
        self._last: Fraction | None = None
        self.origin = Fraction(0)
        self.last_duration = self._step

    def __call__(self, frame) -> Fraction | None:
        """Returns the frame's time; None for a frame that goes back in time."""
        if frame.pts is not None:
            stamp = frame.pts * frame.time_base
        elif self._last is not None:
            stamp = self._last + self._step
        else:
            stamp = Fraction(0)
        if self._last is None:
            self.origin = stamp
        elif stamp <= self._last:
            return None
        self._last = stamp
        duration = (frame.duration or 0) * frame.time_base
        self.last_duration = duration if 0 < duration < 10 else self._step
        return stamp - self.origin


def _converter(aspect: float, media: Media) -> Callable:
    """Returns a function from a frame to its picture; it notes once what it did."""
    converter = VideoReformatter()

    def convert(frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
        pixels, notes = picture.rgb(frame, converter, aspect)
        if min(pixels.shape[:2]) < MIN_SIDE:
            raise ClipError(
                f"a picture of {frame.width}x{frame.height} pixels is too small"
            )
        media.notes.extend(note for note in notes if note not in media.notes)
        return pixels

    return convert


def _header_seconds(container, video) -> tuple[float | None, float | None]:
    """Returns the lengths of the video and of the file that the header states."""
    in_video = in_all = None
    if video.duration is not None:
        in_video = float(video.duration * video.time_base)
    if container.duration is not None:
        in_all = container.duration / av.time_base
    # Where the header is silent, FFmpeg divides the file's size by the bit rates that
    # it knows, often the sound's alone: that is no promise.
    bits = sum(getattr(s.codec_context, "bit_rate", 0) or 0 for s in container.streams)
    guess = 8 * container.size / bits if bits else math.inf
    if in_all and math.isclose(in_all, guess, rel_tol=1e-3):
        return None, None
    return in_video, in_all


def _reason(error: Exception) -> str:
    """Returns FFmpeg's words for an error, without the path."""
    return str(getattr(error, "strerror", None) or error)


def stated_seconds(path: str | pathlib.Path) -> float | None:
    """Reads how long a clip is from its header, None where that does not say it.

    Raises:
        ClipError: it cannot be opened.
    """
    try:
        with av.open(
            str(pathlib.Path(path).absolute()),
            options={"format_whitelist": _FORMATS},
            metadata_errors="ignore",
        ) as container:
            streams = [s.codec_context for s in container.streams]
            length, size = container.duration, container.size
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise ClipError(f"not a readable video: {_reason(error)}") from error
    if length is None:
        return None
    # FFmpeg's guess from the bit rates, see `_header_seconds`.
    bits = sum(getattr(stream, "bit_rate", 0) or 0 for stream in streams)
    guessed = bits and math.isclose(
        length / av.time_base, 8 * size / bits, rel_tol=1e-3
    )
    return None if guessed else length / av.time_base
