"""Decodes a clip in one pass: frames at 25 Hz and sound at 16 kHz on one time axis.

Time 0 is the first video frame. Row `t` is the frame nearest
to t/25 s, whatever the frame rate of the file, and sample `n` of the sound is the
instant n/16000 s, by the time stamps of the file.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from jaxtyping import Float, UInt8

from extract import packets, picture, sound
from extract.packets import ClipError
from tqa_jax import schema

_ROW = Fraction(1, int(schema.FPS))  # seconds
_MAX_PIXELS = 1 << 26  # of a picture; 8192 x 8192, beyond what cameras give
_MAX_LOST = 0.05  # of the pictures, of the sound, and of the length that is promised
_MAX_TAIL_SECONDS = 0.5  # of sound after the pictures that nobody need know of
_MAX_STILL_SECONDS = 0.5  # between two pictures that nobody need know of


@dataclasses.dataclass
class Media:
    """What `frames` learns of a clip besides its pictures, filled while it runs.

    Attributes:
        notes: what was done to the clip, one line each, for people.
        rows: rows given so far, 25 a second.
        start_seconds: time stamp of the first frame.
        frame_seconds: time of each frame of the file, in seconds after the first.
        chunks: pieces of sound, each with its first sample on the clip's time axis.
        wants_native: whether to keep the sound at the file's own rate, too.
        native_rate: that rate, samples a second.
        native_chunks: `chunks` at that rate.
    """

    notes: list[str] = dataclasses.field(default_factory=list)
    rows: int = 0
    start_seconds: float = 0.0
    frame_seconds: list[float] = dataclasses.field(default_factory=list)
    chunks: list[tuple[int, Float[np.ndarray, " N"]]] = dataclasses.field(
        default_factory=list
    )
    wants_native: bool = False
    native_rate: int = 0
    native_chunks: list[tuple[int, Float[np.ndarray, " N"]]] = dataclasses.field(
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
        max_seconds: longer clips are refused, before or when it is reached.

    Raises:
        ClipError: the clip cannot be used.
    """
    # FFmpeg takes `12:30.mp4` for an address unless a folder stands before it.
    path = pathlib.Path(path).absolute()
    about = packets.survey(path, max_seconds)
    media.notes += about.notes
    with packets.open_file(path) as container:
        yield from _rows(container, about, media, max_seconds)
        seconds = media.rows / schema.FPS
        heard = max((at + len(piece)) / sound.SAMPLE_RATE for at, piece in media.chunks)
        _check_promises(container, about, media.start_seconds, seconds, heard)
    if heard - seconds > _MAX_TAIL_SECONDS and len(media.frame_seconds) == 1:
        raise ClipError(f"the video is one still picture beside {heard:.2f} s of sound")
    if heard - seconds > _MAX_TAIL_SECONDS:
        media.notes.append(
            f"the pictures end after {seconds:.2f} s: the {heard - seconds:.2f} s of "
            "sound after them are left out"
        )


def _rows(container, about: packets.Survey, media: Media, max_seconds: float):
    """Yields pictures at the rows' instants and collects the sound."""
    video, audio = (container.streams[at] for at in (about.video, about.audio))
    shape = f"pictures of {video.width}x{video.height} pixels"
    # Both are 0 where no keyframe stands near the start; one may come later.
    if video.width and min(video.width, video.height) < picture.MIN_SIDE:
        raise ClipError(
            f"{shape} are smaller than {picture.MIN_SIDE}x{picture.MIN_SIDE}"
        )
    if video.width * video.height > _MAX_PIXELS:
        raise ClipError(
            f"{shape} are larger than {_MAX_PIXELS / 1e6:.0f} million pixels"
        )
    # Clips are decoded side by side in processes: threads inside one only add memory.
    video.codec_context.thread_count = 1
    video.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}  # if it grows later
    sounds = sound.Collector(2 * max_seconds)
    native = sound.Collector(2 * max_seconds, rate=None)
    stamps = _Stamps(video)
    convert = picture.converter(float(video.sample_aspect_ratio or 1), media.notes)
    max_rows = int(max_seconds * schema.FPS)
    previous = None  # (time, frame) before the current one
    pixels = None  # RGB of `previous`, converted when a row first needs it
    damaged = {video: 0, audio: 0}
    heard_packets = 0
    for packet in packets.carried(packets.each(container, video, audio), about):
        heard_packets += packet.stream is audio
        try:
            decoded = packet.decode()
        except av.error.FFmpegError:
            damaged[packet.stream] += previous is not None or packet.stream is audio
            continue
        if packet.stream is video and packet.is_keyframe and stamps.keyframe is None:
            stamps.keyframe = packet.dts
        for frame in decoded:
            if packet.stream is audio:
                sounds.add(frame)
                if media.wants_native:
                    native.add(frame)
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
                if pixels is None:
                    pixels = convert(previous[1])
                media.rows += 1
                yield pixels
            previous, pixels = (time, frame), None
    if previous is None:
        if not about.pictures:
            raise ClipError("the video stream holds no picture")
        why = "they are damaged"
        if not about.keyframes:
            why = (
                "no keyframe is among them; cut clips at keyframes, or encode them "
                "again when cutting"
            )
        raise ClipError(f"none of {about.pictures} pictures can be decoded: {why}")
    before = 0
    if about.shown is not None:
        before = max(0, round((float(stamps.origin) - about.shown) / stamps.step))
    missing = _standing(media, about, float(stamps.step))
    reasons = {
        "missing in the file": missing,
        "time stamps that go back": stamps.dropped,
        "damaged": damaged[video],
        "before the first keyframe": before,
    }
    why = ", ".join(f"{reason}: {count}" for reason, count in reasons.items() if count)
    lost = sum(reasons.values())
    count = len(media.frame_seconds) + lost
    _lose(media, lost, count, f"{lost} of {count} pictures are lost ({why})")
    lost = damaged[audio]
    text = f"{lost} of {heard_packets} packets of sound are damaged"
    _lose(media, lost, heard_packets, text)
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
    media.notes += sounds.notes
    if media.wants_native:
        native.flush()
        media.native_rate = native.rate
        media.native_chunks = sound.place(native.pieces, stamps.origin, native.rate)
    length = sum(len(piece) for _, piece in media.chunks) / sound.SAMPLE_RATE
    twice = sound.overlapping(media.chunks) / sound.SAMPLE_RATE
    text = f"{twice:.2f} of {length:.2f} s of sound are overwritten by later sound"
    _lose(media, twice, length, text)


def _standing(media: Media, about: packets.Survey, step: float) -> int:
    """Counts the pictures that a broadcast lacks; notes where pictures stand still.

    Transport and program streams have pictures at a fixed rate. Other files may hold
    one as long as nothing moves.
    """
    times = np.array(media.frame_seconds)
    gaps = np.diff(times)
    long = np.flatnonzero(gaps > max(_MAX_STILL_SECONDS, 5 * step))
    if about.joinable and not about.joins:
        return round(float((gaps[long] / step - 1).sum()))
    media.notes.extend(
        f"no new picture from {times[at]:.2f} to {times[at + 1]:.2f} s" for at in long
    )
    return 0


def _lose(media: Media, lost: float, of: float, text: str) -> None:
    """Notes what a clip has lost, or refuses a clip that has lost much."""
    if lost > _MAX_LOST * of:
        raise ClipError(text)
    if lost:
        media.notes.append(text)


def _check_promises(container, about, start: float, seconds: float, heard: float):
    """Refuses a clip whose streams end before their headers say.

    A header may state the length, or the last instant, which counts from time stamp 0.
    """
    if about.joinable:
        return  # FFmpeg takes the last time stamps, which may start again
    in_all = _file_seconds(container)
    if container.duration and not in_all:
        return
    in_video, in_audio = (
        _stated_seconds(container.streams[at]) for at in (about.video, about.audio)
    )
    late = max(0.0, start)
    for what, promised, found in (
        ("pictures", in_video, seconds + late),
        # What is heard after the pictures is of no use.
        ("sound", min(in_audio, seconds + late), heard + late),
        ("the file", 0.0 if in_video else in_all, about.last),
    ):
        if promised - found > max(0.5, _MAX_LOST * promised):
            raise ClipError(
                f"truncated: {found:.1f} s of {promised:.1f} s of {what} are there"
            )


def _stated_seconds(stream) -> float:
    """Returns the length that the header states for a stream, 0 where it does not."""
    if stream.duration is not None:
        stated = float(stream.duration * stream.time_base)
        if stream.type == "video" and stream.average_rate:
            # Of a cut AVI, FFmpeg shortens the duration and leaves the count.
            stated = max(stated, float(stream.frames / stream.average_rate))
        return stated
    parts = stream.metadata.get("DURATION", "").split(":")  # of Matroska: 0:01:02.345
    try:
        hours, minutes, seconds = map(float, parts)
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds


class _Stamps:
    """Gives each video frame its time in seconds after the first frame.

    Attributes:
        origin: time stamp of the first frame.
        last: of the last frame.
        step: usual distance of frames.
        last_duration: of the last frame.
        dropped: frames whose stamp is not after that of the frame before.
        keyframe: decoding time of the first, which is the first frame to come out.
    """

    def __init__(self, stream) -> None:
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.step = self.last_duration = 1 / Fraction(rate)
        self.origin = Fraction(0)
        self.last: Fraction | None = None
        self.dropped = 0
        self.keyframe: int | None = None
        self._order: int | None = None  # decoding time at which a frame came out
        self._late = 0  # ticks by which it is later than the frame's own time
        self._by_order = False

    def __call__(self, frame) -> Fraction | None:
        """Returns the frame's time; None for a frame that goes back in time."""
        stamp = self._stamp(frame)
        if self.last is None:
            self.origin = stamp
        elif stamp <= self.last:
            self.dropped += 1
            return None
        self.last = stamp
        duration = (frame.duration or 0) * frame.time_base
        self.last_duration = duration if 0 < duration < 10 else self.step
        return stamp - self.origin

    def _stamp(self, frame) -> Fraction:
        """Returns the time stamp that is right, or the usual step after the last."""
        pts, dts, step = frame.pts, frame.dts, frame.time_base
        if self.last is None:
            self._by_order = pts is None
            start = self.keyframe if pts is None else pts
            self._late = dts - start if None not in (dts, start) else 0
        elif pts is not None and pts * step <= self.last:
            # Packed B-frames, made for AVI, have wrong times in other files too.
            self._by_order |= None not in (dts, self._order) and dts > self._order
        self._order = self._order if dts is None else dts
        if self._by_order and dts is not None:
            return (dts - self._late) * step
        if pts is not None and not self._by_order:
            return pts * step
        return Fraction(0) if self.last is None else self.last + self.step


def stated_seconds(path: str | pathlib.Path) -> float | None:
    """Reads how long a clip is from its header, None where that does not say it."""
    with packets.open_file(pathlib.Path(path).absolute()) as container:
        return _file_seconds(container) or None


def _file_seconds(container) -> float:
    """Returns the length that the header states for the file, 0 where it does not.

    Where the header is silent, FFmpeg divides the file's size by the bit rates that it
    knows, often the sound's alone: that is no promise.
    """
    stated = (container.duration or 0) / av.time_base
    bits = sum(getattr(s.codec_context, "bit_rate", 0) or 0 for s in container.streams)
    guess = 8 * container.size / bits if bits else math.inf
    return 0.0 if math.isclose(stated, guess, rel_tol=1e-3) else stated
