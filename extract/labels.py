"""Reads a labels CSV: which clips, how they were rated, and which split they are in.

The header is `clip,source,split,<task>,...`; every other column is a task. An empty
cell is a missing rating; -1 is one too, but only where the score range excludes it. All
problems of a file are reported together.
"""

import collections
import dataclasses
import os
import pathlib
import re
import unicodedata

from extract import csv_file, files, folds
from extract.build import Item
from tqa_jax import schema

_RESERVED = ("clip", "source", "split")
_MAX_PROBLEMS = 20


@dataclasses.dataclass(frozen=True)
class Table:
    """What a labels file says.

    Attributes:
        tasks: in the order of their columns.
        items: one a row.
        left_out: files in the folder that no row names.
        drawn: True when the splits were drawn, False when the file states them.
    """

    tasks: tuple[schema.Task, ...]
    items: tuple[Item, ...]
    left_out: tuple[pathlib.Path, ...]
    drawn: bool


def read(
    path: str | pathlib.Path,
    folder: str | pathlib.Path,
    *,
    low: float = 1.0,
    high: float = 5.0,
    empty: str = "",
    scored: bool = True,
    split: bool = True,
) -> Table:
    """Reads a labels file against the folder of its clips.

    Args:
        path: the CSV, UTF-8, comma separated.
        folder: of the clips, at any depth; rows name others by their whole path.
        low: lowest possible score.
        high: highest possible score.
        empty: what else a cell without a score may hold, for example `NA`.
        scored: False reads no scores.
        split: False draws no splits where the file has none.

    Raises:
        schema.InputError: naming every problem, one line each.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise schema.InputError(f"no folder of clips at {folder}")
    if not os.path.exists(path):
        raise schema.InputError(f"no labels file at {path}")
    expected = "; expected the header clip,source,split,<task>,..."
    below = "" if low <= -1 <= high else r"|-1(\.0*)?"
    table = csv_file.read(
        path,
        "clip",
        expected=expected,
        missing=f"(?-i:{re.escape(empty)}{below})?",
        hint="an empty cell (--empty=NA also takes NA for one)",
    )
    tasks = _tasks(table, expected, low, high) if scored else ()
    listed = _Files(folder)
    found = [listed.find(row.cells["clip"]) for row in table.rows]
    # A file that only a row names may share its name with a listed one.
    every = dict.fromkeys([*listed.paths, *(file for file, _ in found if file)])
    ids = dict(zip(every, files.ids(list(every), folder), strict=True))
    drawn = not any(row.cells.get("split") for row in table.rows)
    problems: list[str] = []
    repeated: list[str] = []
    items: list[Item] = []
    seen: dict[pathlib.Path, int] = {}
    splits: dict[str, tuple[str, int]] = {}
    for row, (file, why) in zip(table.rows, found, strict=True):
        where, cells = f"line {row.line}: ", row.cells
        clip = ids.get(file, cells["clip"])
        if file is None:
            problems.append(where + why)
        elif seen.setdefault(file, row.line) != row.line:
            repeated.append(
                f"{where}clip {cells['clip']!r} has a row already, line {seen[file]}"
            )
        elif clip != clip.encode("utf-8", "ignore").decode():
            problems.append(
                f"{where}the name {clip!r} is not UTF-8, which data sets need: rename "
                "it"
            )
        part = "train" if drawn else folds.SPLIT_NAMES.get(cells["split"].lower(), "")
        if not part:
            problems.append(
                f"{where}unknown split {cells['split']!r}; available: "
                f"{', '.join(schema.SPLITS)}"
            )
        source = cells.get("source") or clip
        other, line = splits.setdefault(source, (part, row.line))
        if part and other and other != part:
            problems.append(
                f"{where}source {source!r} is in {part!r} and, line {line}, in "
                f"{other!r}; a source belongs to one split"
            )
        scores = {}
        for task in tasks:
            try:
                scores[task.name] = table.score(row, task.name, task)
            except schema.InputError as error:
                problems.append(str(error).removeprefix(f"{path} "))
        scores = {name: score for name, score in scores.items() if score == score}
        if file is not None:
            items.append(Item(file, clip, source, part, scores))
    if repeated:
        more = f" (and so have {len(repeated) - 1} more)" if repeated[1:] else ""
        problems.insert(
            0,
            f"{repeated[0]}{more}; average the ratings of a clip first, or give those "
            "of each rater to `python -m experiments.subjective analyse`, which writes "
            "labels.csv",
        )
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        shown = problems[:_MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise schema.InputError(f"{path} cannot be used: {'; '.join(shown)}")
    if scored and not any(item.labels for item in items):
        raise schema.InputError(
            f"{path} has no score at all: all cells of "
            f"{', '.join(task.name for task in tasks)} are missing ones"
        )
    if drawn and split:
        clips = collections.Counter(item.source for item in items)
        split_of = folds.draw_splits(clips, seed=0, path=path)
        items = [dataclasses.replace(i, split=split_of[i.source]) for i in items]
    named = {file.resolve() for file in seen}
    left_out = tuple(file for file in listed.paths if file.resolve() not in named)
    return Table(tasks, tuple(items), left_out, drawn)


def _tasks(
    table: csv_file.Table, expected: str, low: float, high: float
) -> tuple[schema.Task, ...]:
    names = [name for name in table.header if name not in _RESERVED]
    if not names:
        raise schema.InputError(
            f"{table.name} has no task column{expected}, for example with the task "
            "overall"
        )
    try:
        schema.check_names("task", names)
    except schema.InputError as error:
        raise schema.InputError(f"a column of {table.name}: {error}") from error
    known = {task.name: task.description for task in schema.TASKS}
    return tuple(schema.Task(name, low, high, known.get(name, "")) for name in names)


def _key(text: str) -> str:
    """Returns a name as it is compared.

    Cells lose the spaces around them, and an accent may be a letter's part or a
    character after it: macOS stores names in the other form than people type.
    """
    return unicodedata.normalize("NFC", pathlib.PurePosixPath(text).as_posix().strip())


class _Files:
    """Finds clips by path, or by file name with or without extension."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self.paths = files.videos(folder)
        self._by_key: dict[str, set[pathlib.Path]] = collections.defaultdict(set)
        for file in self.paths:
            inside = file.relative_to(folder)
            for path in (inside, files.bare(inside)):
                for key in (path.as_posix(), path.name):
                    self._by_key[_key(key)].add(file)

    def find(self, text: str) -> tuple[pathlib.Path | None, str]:
        """Returns the file; None where there is none or several, and why."""
        if not text:
            return None, "the clip is empty"
        forms = (text, text.replace("\\", "/"))
        for name in forms:
            if os.path.isfile(self._folder / name):
                return self._inside(self._folder / name), ""
        key = next((k for k in map(_key, forms) if k in self._by_key), "")
        same = self._by_key.get(key, set())
        whole = [f for f in same if _key(f.relative_to(self._folder).as_posix()) == key]
        matches = sorted(whole or same)
        if len(matches) == 1:
            return matches[0], ""
        if not matches:
            return None, f"clip {text!r} is not in {self._folder}"
        names = " or ".join(str(file.relative_to(self._folder)) for file in matches)
        return None, f"clip {text!r} may be {names}; give its path with extension"

    def _inside(self, file: pathlib.Path) -> pathlib.Path:
        """Writes a path as the listing does, so that a clip has one path."""
        whole = pathlib.Path(os.path.abspath(file))
        for base in (
            pathlib.Path(os.path.abspath(self._folder)),
            self._folder.resolve(),
        ):
            if whole.is_relative_to(base):
                return self._folder / whole.relative_to(base)
        return whole
