"""Files that are whole or not there, even if the machine dies; CSVs and locks."""

import contextlib
import csv
import io
import os
import pathlib
import secrets
import types
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import filelock
import numpy as np

from tqa_jax import schema


@contextlib.contextmanager
def atomic(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path to write to; what is there at the end appears as `path`.

    It is on the disk then: after a power cut, `path` is the old file or the new one,
    never an empty one.
    """
    # A number of its own: other processes, of other machines too, may write the same.
    part = path.with_name(f"{path.name}.{secrets.randbelow(10**9)}.part")
    try:
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)  # a full disk gets its room back


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    if os.name == "nt":  # Opens no folder, and flushes no file opened for reading.
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # Some file systems cannot be asked about folders.
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def lock(file: pathlib.Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes from working in the folder of a lock file, as a context.

    The file stays; a process that dies lets go of it.

    Args:
        file: made where it is missing.
        wait: for a process that holds it, rather than refuse.

    Raises:
        InputError: when another process holds it, or the disk refuses the lock.
    """
    # Not thread_local: whatever thread leaves the context lets go.
    holder = filelock.FileLock(file, timeout=-1 if wait else 0, thread_local=False)
    try:
        holder.acquire()
    except filelock.Timeout as error:
        raise schema.InputError(
            f"another process works in {file.parent}; wait for it, or choose another "
            "folder"
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise schema.InputError(
            f"{file} cannot be locked: {reason}; choose a folder that can be written, "
            "on a disk that has locks"
        ) from error
    try:
        yield
    finally:
        holder.release()


def write(path: pathlib.Path, data: str | bytes) -> None:
    """Writes a file beside its place and moves it there when it is complete.

    Args:
        path: of the file, which is replaced if there.
        data: text is written as UTF-8; half of a surrogate pair, which a file name may
            hold and no encoding can write, becomes a question mark.

    Raises:
        InputError: when it cannot be written; nothing is left behind.
    """
    if isinstance(data, str):
        data = data.encode("utf-8", "replace")
    try:
        with atomic(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise schema.InputError(
            f"{path} cannot be written: {error.strerror or error}"
        ) from error


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a CSV that reads back, whatever the cells hold; None is an empty cell.

    Python before 3.13 puts quotes around a line end only if it is a character of
    `lineterminator`, so lines are made to end in both and lose the first again.
    """
    lines: list[str] = []
    sink = types.SimpleNamespace(write=lines.append)
    csv.writer(sink, lineterminator="\r\n").writerows([header, *rows])
    return "".join(f"{line[:-2]}\n" for line in lines)


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a CSV of rows that have the same keys, which are its header."""
    header = list(rows[0])
    return table(header, ([row[key] for key in header] for row in rows))


def write_arrays(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes a compressed `.npz` file, as `write` does."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write(path, buffer.getvalue())


def read_arrays(file: pathlib.Path | io.BytesIO) -> dict[str, np.ndarray]:
    """Reads what `write_arrays` wrote.

    Raises:
        InputError: when the file is missing or damaged.
    """
    try:
        # Opened here, since NumPy leaves a damaged archive open.
        with (
            file.open("rb") if isinstance(file, pathlib.Path) else file as opened,
            np.load(opened, allow_pickle=False) as arrays,
        ):
            return dict(arrays)
    except (
        *(OSError, ValueError, KeyError, EOFError, TypeError, NotImplementedError),
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        reason = " ".join(str(error).split())
        raise schema.InputError(f"{file} is damaged: {reason}") from error
