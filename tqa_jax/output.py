"""A file that is there and whole, or not there, even if the machine dies."""

import contextlib
import csv
import io
import os
import pathlib
import secrets
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence

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
def writing(path: str | pathlib.Path) -> Iterator[None]:
    """Turns what the disk refuses into one line.

    Raises:
        InputError: when something cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise schema.InputError(
            f"{path} cannot be written: {error.strerror or error}"
        ) from error


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
    with writing(path), atomic(path) as part:
        part.write_bytes(data)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a CSV.

    All of it is in quotes: Python before 3.13 leaves them out around a carriage return.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([header, *rows])
    return text.getvalue()


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
