"""A CSV with one or several rows for each clip, read by the names of its columns.

The one thing to know: every complaint names the file and the line or the column.
"""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from tqa_jax import schema


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        path: the file.
        header: names of the columns.
        rows: by clip, its rows in order: number of the line, and the cells.
    """

    path: pathlib.Path
    header: tuple[str, ...]
    rows: Mapping[str, Sequence[tuple[int, Sequence[str]]]]

    def place(self, name: str) -> int:
        """Returns where a column is."""
        if name not in self.header:
            raise schema.InputError(
                f"{self.path} has no column {name!r}; it has "
                f"{', '.join(self.header)[:300]}"
            )
        return self.header.index(name)

    def places(self, text: str) -> list[int]:
        """Returns where the columns `a`, `a,b` or `a:b` are."""
        found: list[int] = []
        for part in text.split(","):
            if part in self.header or ":" not in part:
                found.append(self.place(part))
                continue
            first, last = map(self.place, part.split(":", 1))
            if first > last:
                raise schema.InputError(
                    f"{self.path}: the columns {part!r} are in the other order"
                )
            found += range(first, last + 1)
        return found

    def numbers(self, clip: str, places: Sequence[int]) -> Float[np.ndarray, "T D"]:
        """Returns the cells of a clip as numbers, NaN for empty ones."""
        return np.array(
            [
                [
                    _number(row[place], self.path, line, self.header[place])
                    for place in places
                ]
                for line, row in self.rows[clip]
            ],
            np.float64,
        )

    def once(self, clip: str, places: Sequence[int]) -> Float[np.ndarray, " D"]:
        """Returns what the table says once a clip: cells that are equal in its rows."""
        rows = self.numbers(clip, places)
        differing = (rows != rows[0]) & ~(np.isnan(rows) & np.isnan(rows[0]))
        if differing.any():
            line, column = np.argwhere(differing)[0]
            raise schema.InputError(
                f"{self.path} line {self.rows[clip][line][0]}: "
                f"{self.header[places[column]]} differs within clip {clip!r}"
            )
        return rows[0]


def read(path: str | pathlib.Path, clip: str) -> Table:
    """Reads a table; cells are stripped of spaces.

    Args:
        path: a CSV with a header, UTF-8.
        clip: the column of the clip's id.

    Raises:
        schema.InputError: it cannot be read or lacks the column, a line is of another
            length or names no clip.
    """
    path = pathlib.Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = tuple(name.strip() for name in next(reader, []))
            lines = [
                (reader.line_num, [cell.strip() for cell in line])
                for line in reader
                if any(line)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise schema.InputError(f"{path} cannot be read: {error}") from error
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise schema.InputError(f"{path} has the column {repeated[0]!r} twice")
    rows: dict[str, list[tuple[int, Sequence[str]]]] = {}
    table = Table(path, header, rows)
    place = table.place(clip)
    for number, line in lines:
        if len(line) != len(header):
            raise schema.InputError(
                f"{path} line {number} has {len(line)} cells; its header has "
                f"{len(header)}"
            )
        if not line[place]:
            raise schema.InputError(f"{path} line {number}: the {clip} is empty")
        rows.setdefault(line[place], []).append((number, line))
    if not rows:
        raise schema.InputError(f"{path} has a header and no rows")
    return table


def check_single(table: Table) -> None:
    """Refuses a table with several rows of a clip."""
    for clip, rows in table.rows.items():
        if len(rows) > 1:
            raise schema.InputError(
                f"{table.path} line {rows[1][0]}: clip {clip!r} has a row already, "
                f"line {rows[0][0]}; give a table with several rows a clip by --frames"
            )


def check_same_clips(scores: Table, rows: Table) -> None:
    """Refuses tables of different clips."""
    for one, other, what in ((scores, rows, "frames"), (rows, scores, "scores")):
        lacking = [clip for clip in one.rows if clip not in other.rows]
        if lacking:
            raise schema.InputError(
                f"{other.path} has no {what} of {len(lacking)} clips of {one.path}, "
                f"for example {lacking[0]!r}"
            )


def _number(text: str, path: pathlib.Path, line: int, name: str) -> float:
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise schema.InputError(
            f"{path} line {line}: {name} is {text[:40]!r}; expected a number, or an "
            "empty cell"
        )
    return value
