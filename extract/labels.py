"""Reads a labels CSV: which clips, how they were rated, and which split they are in.

The one thing to know: the header is `clip,source,split,<task>,...`; every other column
is a task. An empty cell is a missing rating; -1 is one too, but only where the score
range excludes it. All problems of a file are reported together.
"""

import collections
import csv
import dataclasses
import hashlib
import math
import os
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence

from extract import files
from extract.build import Item
from tqa_jax import schema

SPLIT_SHARES: Mapping[str, float] = {"train": 0.7, "validation": 0.15, "test": 0.15}

_RESERVED = ("clip", "source", "split")
_SPLIT_NAMES = {name: name for name in schema.SPLITS} | {
    "val": "validation",
    "valid": "validation",
}
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
    seed: int = 0,
) -> Table:
    """Reads a labels file against the folder of its clips.

    Args:
        path: the CSV, UTF-8, comma separated.
        folder: where the clips are, at any depth. A row may name any other file by
            its whole path.
        low: lowest possible score.
        high: highest possible score.
        empty: what else a cell without a score may hold, for example `NA`.
        scored: False reads no scores.
        seed: of the split by source, used when the file has no split.

    Raises:
        schema.InputError: naming every problem, one line each.
    """
    path, folder = pathlib.Path(path), pathlib.Path(folder)
    if not folder.is_dir():
        raise schema.InputError(f"no folder of clips at {folder}")
    header, lines = _lines(path)
    tasks = _tasks(path, header, low, high) if scored else ()
    listed = _Files(folder)
    problems: list[str] = []
    items: list[Item] = []
    splits: dict[str, tuple[str, int]] = {}
    paths = [listed.find(line["clip"]) for _, line in lines]
    # A file that only a row names may share its name with a listed one.
    every = list(dict.fromkeys([*listed.paths, *filter(None, paths)]))
    ids = dict(zip(every, files.ids(every, folder), strict=True))
    seen: dict[pathlib.Path, int] = {}
    repeated: list[str] = []
    stated = [line.get("split", "") for _, line in lines]
    drawn = not any(stated)
    for (number, line), file in zip(lines, paths, strict=True):

        def problem(text: str, number: int = number) -> None:
            problems.append(f"line {number}: {text}")

        clip = ids.get(file, line["clip"])
        if file is None:
            problem(listed.missing(line["clip"]))
        elif seen.setdefault(file, number) != number:
            repeated.append(
                f"line {number}: clip {line['clip']!r} has a row already, "
                f"line {seen[file]}"
            )
        elif clip != clip.encode("utf-8", "ignore").decode():
            problem(f"the name {clip!r} is not UTF-8, which data sets need: rename it")
        source = line.get("source") or clip
        split = "train" if drawn else _split(line["split"], problem)
        before = splits.setdefault(source, (split, number))
        if split and before[0] and before[0] != split:
            problem(
                f"source {source!r} is in {split!r} and, line {before[1]}, in "
                f"{before[0]!r}; a source belongs to one split"
            )
        scores = {
            task.name: value
            for task in tasks
            if line[task.name] != empty
            and (value := _score(line[task.name], task, problem)) is not None
        }
        if file is not None:
            items.append(Item(file, clip, source, split, scores))
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
        raise schema.InputError(f"{path} cannot be used:\n  " + "\n  ".join(shown))
    if scored and not any(item.labels for item in items):
        raise schema.InputError(
            f"{path} has no score at all: all cells of "
            f"{', '.join(task.name for task in tasks)} are missing ones"
        )
    if drawn:
        split_of = draw_splits(
            collections.Counter(item.source for item in items), seed=seed, path=path
        )
        items = [
            dataclasses.replace(item, split=split_of[item.source]) for item in items
        ]
    named = {file.resolve() for file in seen}
    left_out = tuple(file for file in listed.paths if file.resolve() not in named)
    return Table(tasks, tuple(items), left_out, drawn)


def draw_splits(
    clips: Mapping[str, int], *, seed: int, path: str | pathlib.Path
) -> dict[str, str]:
    """Draws a split for each source: 70/15/15 of the clips as nearly as sources allow.

    Args:
        clips: number of clips of each source.
        seed: another seed gives another draw; the order of `clips` does not matter.
        path: the labels file, for the message.

    Raises:
        schema.InputError: with fewer than three sources.
    """
    if len(clips) < len(SPLIT_SHARES):
        raise schema.InputError(
            f"{path} has no split and only {len(clips)} sources; a split by source "
            "into train, validation and test needs 3: add a `split` column, or a "
            "`source` column if the clips are of more speakers"
        )

    def digest(source: str) -> bytes:
        return hashlib.sha256(f"{seed}:{source}".encode()).digest()

    total = sum(clips.values())
    lacking = {name: share * total for name, share in SPLIT_SHARES.items()}
    empty = set(lacking)
    result = {}
    for index, source in enumerate(sorted(clips, key=digest)):
        # The last sources go to splits that have none yet.
        open_splits = empty if len(clips) - index <= len(empty) else set(lacking)
        split = max(
            (name for name in lacking if name in open_splits), key=lacking.__getitem__
        )
        result[source] = split
        lacking[split] -= clips[source]
        empty.discard(split)
    return result


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
        self._by_key: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
        for file in self.paths:
            inside = file.relative_to(folder)
            bare = files.bare(inside)
            names = (inside.as_posix(), bare.as_posix(), inside.name, bare.name)
            for key in {_key(name) for name in names}:
                self._by_key[key].append(file)

    def find(self, text: str) -> pathlib.Path | None:
        """Returns the file, None where there is none or several."""
        for name in (text, text.replace("\\", "/")):
            if text and os.path.isfile(self._folder / name):
                return self._inside(self._folder / name)
        same = self._matches(text)
        return same[0] if len(same) == 1 else None

    def missing(self, text: str) -> str:
        """Says why `find` returned None."""
        if not text:
            return "the clip is empty"
        same = self._matches(text)
        if not same:
            return f"clip {text!r} is not in {self._folder}"
        names = " or ".join(str(file.relative_to(self._folder)) for file in same)
        return f"clip {text!r} may be {names}; give its path with extension"

    def _matches(self, text: str) -> list[pathlib.Path]:
        key = _key(text)
        if key not in self._by_key:
            key = _key(text.replace("\\", "/"))
        same = self._by_key.get(key, [])
        return [
            file
            for file in same
            if _key(file.relative_to(self._folder).as_posix()) == key
        ] or same

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


def _lines(
    path: pathlib.Path,
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Returns the header and the rows with their line numbers, cells stripped."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, line) for line in reader if any(line)]
    except FileNotFoundError as error:
        raise schema.InputError(f"no labels file at {path}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise schema.InputError(f"{path} cannot be read: {error}") from error
    if "clip" not in header:
        hint = "; is it separated by semicolons?" if ";" in "".join(header) else ""
        raise schema.InputError(
            f"{path} has no column `clip`; expected the header "
            f"clip,source,split,<task>,... and found {','.join(header)[:80]!r}{hint}"
        )
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise schema.InputError(f"{path} has the column {repeated[0]!r} twice")
    if not rows:
        raise schema.InputError(f"{path} has a header and no rows")
    lines = []
    for number, cells in rows:
        if len(cells) != len(header):
            raise schema.InputError(
                f"{path} line {number} has {len(cells)} cells; "
                f"its header has {len(header)}"
            )
        stripped = (cell.strip() for cell in cells)
        lines.append((number, dict(zip(header, stripped, strict=True))))
    return header, lines


def _tasks(
    path: pathlib.Path, header: Sequence[str], low: float, high: float
) -> tuple[schema.Task, ...]:
    names = [name for name in header if name not in _RESERVED]
    if not names:
        raise schema.InputError(
            f"{path} has no task column; expected the header "
            "clip,source,split,<task>,..., for example with the task overall"
        )
    try:
        schema.check_names("task", names)
    except schema.InputError as error:
        raise schema.InputError(f"a column of {path}: {error}") from error
    known = {task.name: task.description for task in schema.TASKS}
    return tuple(schema.Task(name, low, high, known.get(name, "")) for name in names)


def _split(text: str, problem) -> str:
    if text.lower() not in _SPLIT_NAMES:
        problem(f"unknown split {text!r}; available: {', '.join(schema.SPLITS)}")
    return _SPLIT_NAMES.get(text.lower(), "")


def _score(text: str, task: schema.Task, problem) -> float | None:
    """Returns a score, None for a missing one."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value == -1 and not task.low <= -1 <= task.high:
        return None
    if not math.isfinite(value):
        problem(
            f"{task.name} is {text!r}; expected a number, or an empty cell "
            "(--empty=NA also takes NA for one)"
        )
        return None
    if not task.low <= value <= task.high:
        problem(
            f"{task.name} is {text}; expected {task.low:g} to {task.high:g} "
            "(--score_range sets other limits)"
        )
        return None
    return value
