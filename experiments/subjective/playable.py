"""Whether browsers play a clip, by what the file itself says.

The one thing to know: an .mp4 may hold pictures that no browser shows, for example
MPEG-4 part 2 (`mp4v`), which older tools write; raters would see a black box. Codecs
are named in the header (ISO/IEC 14496-12, box `stsd`), so no decoder is needed.
"""

import pathlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

SUFFIXES = (".mp4", ".m4v", ".webm")
"""Containers that every browser plays."""
_CODECS = {
    "vide": ("avc1", "avc3", "av01", "vp08", "vp09"),
    "soun": ("mp4a", "Opus", "fLaC", ".mp3"),
}
_EBML = b"\x1a\x45\xdf\xa3"


def problem(path: pathlib.Path) -> str:
    """Says why browsers do not play a clip; empty when they do.

    Args:
        path: of the file.

    Returns:
        Half a sentence. Pictures must be H.264, AV1, VP8 or VP9 and sound AAC, MP3,
        Opus or FLAC. A .webm cannot hold anything else that matters and is only
        looked at for being one.

    Raises:
        OSError: when the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        return f"is no {', '.join(SUFFIXES)}"
    with path.open("rb") as file:
        if suffix == ".webm":
            return "" if file.read(4) == _EBML else "is no WebM file"
        end = file.seek(0, 2)
        tracks = [
            (_word(file, kind + 8), _word(file, entries + 12))
            for track in _inside(file, 0, end, (b"moov", b"trak", b"mdia"))
            for kind, _ in _inside(file, *track, (b"hdlr",))
            for entries, _ in _inside(file, *track, (b"minf", b"stbl", b"stsd"))
        ]
    if not any(kind == "vide" for kind, _ in tracks):
        return "is no MP4 file with pictures"
    for kind, codec in tracks:
        if codec not in _CODECS.get(kind, (codec,)):
            what = "pictures" if kind == "vide" else "sound"
            return f"has {what} in the codec {codec!r}"
    return ""


def _inside(
    file: BinaryIO, start: int, end: int, path: tuple[bytes, ...]
) -> Iterator[tuple[int, int]]:
    """Yields first byte and end of the content of the boxes at a path of names."""
    for name, first, last in _boxes(file, start, end):
        if name == path[0]:
            if len(path) == 1:
                yield first, last
            else:
                yield from _inside(file, first, last, path[1:])


def _word(file: BinaryIO, at: int) -> str:
    file.seek(at)
    return file.read(4).decode("latin-1")


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields name, first byte and end of the content of each box."""
    while start + 8 <= end:
        file.seek(start)
        size, name = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1 and start + 16 <= end:
            size, head = struct.unpack(">Q", file.read(8))[0], 16
        after = end if size == 0 else start + size
        if after < start + head or after > end:
            return  # cut off, or no such file at all
        yield name, start + head, after
        start = after
