"""Which files of a folder are videos, and what their clips are called.

A path that somebody names is opened as it stands; only a listing leaves files out.
"""

import collections
import logging
import os
import pathlib
from collections.abc import Sequence

SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .m2t .m2ts .m4v .mj2 .mkv .mov .mp4 .mpe "
    ".mpeg .mpg .mts .mxf .nut .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv".split()
)
# How the content begins of files whose name does not say what they are.
_BEGINNINGS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"OggS",
    b".RMF",
    b"0&\xb2u\x8ef\xcf\x11",  # ASF
    b"\x06\x0e+4",  # MXF
    b"\x00\x00\x01\xba",  # MPEG programme stream
    b"\x00\x00\x01\xb3",  # MPEG video
)
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # MP4, QuickTime

_logger = logging.getLogger(__name__)


def videos(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the videos in a folder and the folders in it, by name.

    Links are followed, and each folder is listed once, under its own name if it lies
    inside. Hidden files and folders are left out, as are the `._` files of macOS. A
    file without a suffix, or with a number for one, is a video if its content begins
    as one.
    """
    folders, links, paths = [folder], [], []
    listed = {os.path.realpath(above) for above in folder.resolve().parents}
    while folders or links:
        current = folders.pop() if folders else links.pop(links.index(min(links)))
        place = os.path.realpath(current)
        if place in listed:
            continue
        listed.add(place)
        try:
            inside = [path for path in current.iterdir() if path.name[0] != "."]
        except OSError as error:
            _logger.warning("%s is left out: %s", current, error.strerror)
            continue
        for path in inside:
            if os.path.isdir(path):
                (links if path.is_symlink() else folders).append(path)
            elif os.path.isfile(path) and _is_video(path):
                paths.append(path)
    return sorted(paths)


def _is_video(path: pathlib.Path) -> bool:
    suffix = path.suffix.lower()
    if suffix[1:] and not suffix[1:].isdigit():
        return suffix in SUFFIXES
    try:
        with path.open("rb") as file:
            head = file.read(389)
    except OSError:
        return False
    packets = head[::188][:3], head[4::192][:3]  # of transport streams
    return (
        head.startswith(_BEGINNINGS)
        or head[4:8] in _BOXES
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or b"GGG" in packets
    )


def bare(path: pathlib.PurePath) -> pathlib.PurePath:
    """Returns a path without the suffix of a video; other dots belong to the name."""
    return path.with_suffix("") if path.suffix.lower() in SUFFIXES else path


def ids(paths: Sequence[pathlib.Path], folder: pathlib.Path) -> list[str]:
    """Names clips: the path inside the folder, without extension where that is unique.

    Args:
        paths: of all clips that might share a name, each once.
        folder: of the clips; one outside of it has its whole path.
    """
    names = [
        path.relative_to(folder) if path.is_relative_to(folder) else path
        for path in paths
    ]
    counts = collections.Counter(map(bare, names))
    return [
        (bare(name) if counts[bare(name)] == 1 else name).as_posix() for name in names
    ]
