"""Tables that a user writes: a CSV with a header, UTF-8, separated by commas.

The one thing to know: cells lose the spaces around them, and a row comes with the
number of its line, so that a message can say where something is wrong.
"""

import csv
import pathlib
from collections.abc import Sequence

from tqa_jax import schema


def read(path: pathlib.Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Reads a table.

    Args:
        path: of the file.
        needed: columns that it must have; it may have others.

    Returns:
        Line number and cells by column of each row.

    Raises:
        InputError: when it cannot be read, lacks a column or has no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, line) for line in reader if any(line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise schema.InputError(f"{path} cannot be read: {error}") from error
    for name in needed:
        if header.count(name) != 1:
            raise schema.InputError(
                f"{path} needs one column {name!r}; its header is "
                f"{','.join(header)[:80]!r}, expected {','.join(needed)},..."
            )
    if not rows:
        raise schema.InputError(f"{path} has a header and no rows")
    found = []
    for number, cells in rows:
        if len(cells) != len(header):
            raise schema.InputError(
                f"{path} line {number} has {len(cells)} cells; "
                f"its header has {len(header)}"
            )
        stripped = (cell.strip() for cell in cells)
        found.append((number, dict(zip(header, stripped, strict=True))))
    return found
