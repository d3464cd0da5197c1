"""Reads a CSV by the names of its columns; every complaint names the file and the line.

Names and cells lose the spaces around them, and the file its byte order mark.
"""

import collections
import csv
import dataclasses
import math
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tqa_jax import schema


class Row(NamedTuple):
    """A line of the file: its number, and its cells by column."""

    line: int
    cells: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Table:
    """What a file says.

    Attributes:
        name: of the file, as messages call it.
        header: names of its columns.
        rows: in order.
        missing: matches the cell of a missing number.
        hint: what messages say of such a cell.
    """

    name: str
    header: tuple[str, ...]
    rows: Sequence[Row]
    missing: re.Pattern[str]
    hint: str

    def need(self, column: str, expected: str = "") -> str:
        """Returns the name of a column; refuses one that the table lacks."""
        if column not in self.header:
            header = ", ".join(self.header)[:300]
            hint = "; is it separated by semicolons?" if ";" in header else ""
            raise schema.InputError(
                f"{self.name} has no column {column!r}{expected}; it has {header}{hint}"
            )
        return column

    def columns(self, text: str) -> list[str]:
        """Returns the columns that `a`, `a,b` or `first:last` names."""
        names: list[str] = []
        for part in text.split(","):
            if part in self.header or ":" not in part:
                names.append(self.need(part))
                continue
            first, last = (self.header.index(self.need(p)) for p in part.split(":", 1))
            if first > last:
                raise schema.InputError(
                    f"{self.name}: the columns {part!r} are in the other order"
                )
            names += self.header[first : last + 1]
        return names

    def by(self, column: str) -> dict[str, list[Row]]:
        """Groups rows by a cell; refuses an empty one."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            if not row.cells[column]:
                raise self.error(row, f"the {column} is empty")
            groups.setdefault(row.cells[column], []).append(row)
        return groups

    def error(self, row: Row, text: str) -> schema.InputError:
        """Returns the error that names a line."""
        return schema.InputError(f"{self.name} line {row.line}: {text}")

    def number(self, row: Row, column: str) -> float:
        """Returns a cell as a finite number, NaN for a missing one."""
        cell = row.cells[column]
        if self.missing.fullmatch(cell):
            return math.nan
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(
                row, f"{column} is {cell[:40]!r}; expected a number, or {self.hint}"
            )
        return value

    def score(self, row: Row, column: str, task: schema.Task) -> float:
        """Returns a score in the range of its task, NaN for a missing one."""
        value = self.number(row, column)
        if value < task.low or value > task.high:
            raise self.error(
                row,
                f"{task.name} is {value:g}; expected {task.low:g} to {task.high:g} "
                "(--score_range sets other limits)",
            )
        return value

    def numbers(
        self, rows: Sequence[Row], columns: Sequence[str]
    ) -> Float[np.ndarray, "T D"]:
        """Returns cells as numbers, NaN for missing ones."""
        return np.array([[self.number(row, name) for name in columns] for row in rows])


def read(
    path: str | pathlib.Path,
    *needed: str,
    expected: str = "",
    missing: str = "([+-]?nan)?",
    hint: str = "an empty cell",
    only: Collection[str] = (),
    ragged: bool = False,
    name: str = "",
) -> Table:
    """Reads a table.

    Args:
        path: a CSV with a header, UTF-8, separated by commas.
        needed: columns that it must have.
        expected: goes on after the name of a column that is missing.
        missing: regular expression for the cell of a missing number, in either case.
        hint: what messages say of such a cell.
        only: columns to keep, all if there are none.
        ragged: whether lines may be longer or shorter than the header, with empty
            cells for what is missing, and whether there may be none.
        name: what messages call the file; its path if empty.
    """
    name, rows = name or str(path), []
    try:
        with pathlib.Path(path).open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            header = tuple(cell.strip() for cell in next(lines, []))
            table = Table(name, header, rows, re.compile(missing, re.IGNORECASE), hint)
            for column in needed:
                table.need(column, expected)
            for column, count in collections.Counter(header).most_common(1):
                if count > 1:
                    raise schema.InputError(f"{name} has the column {column!r} twice")
            for cells in filter(any, lines):
                lacking = len(header) - len(cells)
                if lacking and not ragged:
                    raise schema.InputError(
                        f"{name} line {lines.line_num} has {len(cells)} cells; its "
                        f"header has {len(header)}"
                    )
                by_column = zip(header, cells + [""] * lacking, strict=False)
                kept = {n: c.strip() for n, c in by_column if not only or n in only}
                rows.append(Row(lines.line_num, kept))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise schema.InputError(f"{name} cannot be read: {reason}") from error
    if not rows and not ragged:
        raise schema.InputError(f"{name} has a header and no rows")
    return table
