"""Opens a media file, chooses what to show and hear, and puts its packets in time.

Players take the default stream, never a still picture, and carry time stamps that start
again half-way (joined recordings) on; so does this. Nothing is decoded here.
"""

import bisect
import collections
import dataclasses
import math
import pathlib
from collections.abc import Iterator

import av

# Media containers only: playlists (HLS, DASH, concat) could name other files.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpeg,mpegts,mpegvideo,h264,hevc,avi,flv,"
    "asf,ogg,mxf,nut,dv,swf,rm,gif,wav,mp3,flac,aac"
)
_KINDS = av.stream.Disposition
_STILL = _KINDS.attached_pic | _KINDS.still_image | _KINDS.timed_thumbnails
_SECONDARY = (
    _KINDS.dub | _KINDS.comment | _KINDS.hearing_impaired | _KINDS.visual_impaired
)
# Steps of decoding time, in seconds, that FFmpeg takes for a new recording.
_BACK = {True: 0.1, False: 1.0}  # by whether the format may be joined byte by byte
_AHEAD = 10.0


class ClipError(Exception):
    """A clip cannot be used; the message is a short reason for `rejected.csv`."""


class GoneError(ClipError):
    """A clip is not there now; it may be the next time."""


@dataclasses.dataclass
class Survey:
    """What the packets of a file say before they are decoded, in seconds.

    Attributes:
        video: position of the video among the streams.
        audio: of the audio.
        notes: what a person should know of them, one line each.
        joinable: whether the format may be joined byte by byte; its headers state no
            lengths of their own then.
        joins: places in the file at which time stamps start again.
        shifts: what to add to the stamps before, between and after the joins.
        pictures: packets of the video.
        keyframes: how many of them can be decoded without the others.
        shown: time stamp of the first picture; None without stamps.
        last: last instant of any stream, as the file has it, from 0 or its first.
    """

    video: int
    audio: int
    notes: list[str]
    joinable: bool
    joins: list[int] = dataclasses.field(default_factory=list)
    shifts: list[float] = dataclasses.field(default_factory=list)
    pictures: int = 0
    keyframes: int = 0
    shown: float | None = None
    last: float = 0.0


def open_file(path: pathlib.Path) -> av.container.InputContainer:
    """Opens a file; `ClipError` if it is gone, empty, or no media file."""
    if not path.is_file():
        raise GoneError("no such file")
    if path.stat().st_size == 0:
        raise ClipError("the file is empty (0 bytes)")
    try:
        return av.open(
            str(path),
            options={"format_whitelist": _FORMATS},
            metadata_errors="ignore",
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise ClipError(f"not a readable video: {_reason(error)}") from error


def each(container, *streams) -> Iterator[av.Packet]:
    """Yields packets of some or all streams in file order, to a damaged end.

    Raises:
        ClipError: the file cannot be read to its end.
    """
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.InvalidDataError, av.error.EOFError):
            return
        except IndexError:
            # PyAV knows the streams of the header only and stops at a packet of
            # another, which damaged transport streams have; reading goes on.
            packets = container.demux(*streams)
            continue
        except av.error.FFmpegError as error:
            raise ClipError(f"cannot be read to its end: {_reason(error)}") from error
        if packet.stream.type == "video" and container.format.name == "avi":
            # AVI files number their packets and hold no times of pictures: what FFmpeg
            # makes up is wrong for H.264 and packed B-frames.
            packet.pts = None
        yield packet


def survey(path: pathlib.Path, max_seconds: float) -> Survey:
    """Chooses streams and reads the packets of a file once.

    The video and the audio are those with the default flag, else the first that is no
    dub, comment or version for the impaired. Still pictures, flagged or of a single
    packet, are no video.

    Raises:
        ClipError: a stream is missing or in an unknown format, the clip is longer than
            `max_seconds`, or the file cannot be read.
    """
    with open_file(path) as container:
        joinable = bool(container.format.flags & av.format.Flags.ts_discont.value)
        video, audio, notes = _chosen(container, path)
        about = Survey(video=video, audio=audio, notes=notes, joinable=joinable)
        entries = _read(container, about, max_seconds)
    if joinable:  # FFmpeg gives the last packet of a stream when it meets its next one
        entries.sort(key=lambda entry: entry[0])
    about.joins, parts = _parts(entries, joinable)
    if about.joins:
        notes.append(f"{len(parts)} recordings joined: time stamps start again")
    shift = 0.0
    ends: dict[int, float] = {}
    for part in parts:
        over = [ends[index] - at[0] for index, at in part.items() if index in ends]
        shift = max(over, default=shift)
        about.shifts.append(shift)
        ends |= {index: at[1] + shift for index, at in part.items()}
        if about.shown is None and video in part:
            about.shown = part[video][0] + shift
    return about


def _read(container, about: Survey, max_seconds: float) -> list[tuple]:
    """Returns of each packet place, stream, decoding time, start and end."""
    entries = []
    place = {about.video: 0, about.audio: 0}
    latest: dict[int, float] = {}
    read: dict[int, float] = collections.defaultdict(float)  # seconds of each stream
    first = math.inf
    for packet in each(container):
        index, step = packet.stream_index, packet.time_base
        stamp = packet.dts if packet.pts is None else packet.pts
        if index == about.video and packet.size:
            about.pictures += 1
            about.keyframes += packet.is_keyframe
        if not packet.size or packet.is_discard or stamp is None:
            continue
        decoded = None if packet.dts is None else float(packet.dts * step)
        ahead = 0.0
        if decoded is not None:
            ahead = max(0.0, decoded - latest.get(index, decoded))
            ahead = 0.0 if about.joinable and ahead > _AHEAD else ahead
            if about.joinable or decoded > latest.get(index, -math.inf):
                latest[index] = decoded
        start = float(stamp * step)
        end = start + (float((packet.duration or 0) * step) or ahead)
        first = min(first, start)
        about.last = max(about.last, end, end - first)
        if index not in place:
            continue
        read[index] += ahead
        if read[about.video] > max_seconds:
            stream = container.streams[about.video]
            stated = float((stream.duration or 0) * stream.time_base)
            length = f"lasts {stated:.0f} s, " if stated > max_seconds else ""
            raise ClipError(f"{length}longer than {max_seconds:g} s")
        place[index] = place[index] if packet.pos is None else packet.pos
        if read[index] <= 2 * max_seconds:  # what is later is never used
            entries.append((place[index], index, decoded, start, end))
    return entries


def _chosen(container, path: pathlib.Path) -> tuple[int, int, list[str]]:
    """Returns the positions of video and audio, and notes where there was a choice."""
    videos = [s for s in container.streams.video if not s.disposition & _STILL]
    chosen, notes = [], []
    for kind, streams in (("video", videos), ("audio", container.streams.audio)):
        if not streams:
            raise ClipError(f"no {kind} stream")
        known = [stream for stream in streams if stream.codec_context is not None]
        if not known:
            raise ClipError(f"the {kind} is in an unknown format")
        if kind == "video" and len(known) > 1:
            known = _moving(path, known)
        # The first of those with the default flag, else the first that is primary.
        best = max(
            known,
            key=lambda stream: (
                bool(stream.disposition & _KINDS.default),
                not stream.disposition & _SECONDARY,
            ),
        )
        if len(streams) > 1:
            number = list(streams).index(best) + 1
            notes.append(f"{len(streams)} {kind} streams: number {number} is taken")
        chosen.append(best.index)
    return *chosen, notes


def _moving(path: pathlib.Path, videos: list) -> list:
    """Returns the streams of more than one picture; all when none has."""
    counts = {stream.index: 0 for stream in videos}
    with open_file(path) as container:
        for packet in each(container, *counts):
            counts[packet.stream_index] += packet.size > 0
            if min(counts.values()) > 1:
                break
    return [stream for stream in videos if counts[stream.index] > 1] or videos


def _parts(entries: list[tuple], joinable: bool) -> tuple[list[int], list[dict]]:
    """Cuts packets where time starts again.

    Returns:
        Places of the cuts; of each part and stream the first and last instant.
    """
    joins: list[int] = []
    parts: list[dict[int, tuple[float, float]]] = [{}]
    latest: dict[int, float] = {}
    for place, index, decoded, start, end in entries:
        if decoded is not None:
            back = latest.get(index, decoded) - decoded > _BACK[joinable]
            ahead = latest and decoded - max(latest.values()) > _AHEAD
            if back or (joinable and ahead):
                joins.append(place)
                parts.append({})
                latest = {}
            latest[index] = decoded
        first, last = parts[-1].get(index, (start, end))
        parts[-1][index] = min(first, start), max(last, end)
    return joins, parts


def carried(packets: Iterator[av.Packet], about: Survey) -> Iterator[av.Packet]:
    """Moves time stamps after each join, of all streams alike; changes the packets."""
    place: dict[int, int] = {}
    for packet in packets:
        if about.joins and packet.size:
            index = packet.stream_index
            place[index] = place.get(index, 0) if packet.pos is None else packet.pos
            shift = about.shifts[bisect.bisect(about.joins, place[index])]
            ticks = round(shift / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
        yield packet


def _reason(error: Exception) -> str:
    """Returns FFmpeg's words for an error, without the path."""
    return str(getattr(error, "strerror", None) or error)
