"""A file that is there and whole, or not there."""

import contextlib
import csv
import io
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tqa_jax import schema


@contextlib.contextmanager
def atomic(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path to write to; what is there at the end appears as `path`."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # a full disk gets its room back


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
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise schema.InputError(
            f"{path} cannot be written: {error.strerror}"
        ) from error


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
