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
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence

from extract.build import Item
from tqa_jax import schema

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .mts .flv .wmv .3gp .ogv".split()
)
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
    seed: int = 0,
) -> Table:
    """Reads a labels file against the folder of its clips.

    Args:
        path: the CSV, UTF-8, comma separated.
        folder: where the clips are, at any depth.
        low: lowest possible score.
        high: highest possible score.
        seed: of the split by source, used when the file has no split.

    Raises:
        schema.InputError: naming every problem, one line each.
    """
    path, folder = pathlib.Path(path), pathlib.Path(folder)
    if not folder.is_dir():
        raise schema.InputError(f"no folder of clips at {folder}")
    header, lines = _lines(path)
    tasks = _tasks(path, header, low, high)
    files = _Files(folder)
    problems: list[str] = []
    items: list[Item] = []
    splits: dict[str, tuple[str, int]] = {}
    seen: dict[pathlib.Path, int] = {}
    stated = [line.get("split", "") for _, line in lines]
    drawn = not any(stated)
    for number, line in lines:

        def problem(text: str, number: int = number) -> None:
            problems.append(f"line {number}: {text}")

        file, clip = files.find(line["clip"], problem)
        if file is not None and seen.setdefault(file, number) != number:
            problem(f"clip {line['clip']!r} has a row already, line {seen[file]}")
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
            if (value := _score(line[task.name], task, problem)) is not None
        }
        if file is not None:
            items.append(Item(file, clip, source, split, scores))
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        shown = problems[:_MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise schema.InputError(f"{path} cannot be used:\n  " + "\n  ".join(shown))
    if drawn:
        split_of = draw_splits(
            collections.Counter(item.source for item in items), seed=seed, path=path
        )
        items = [
            dataclasses.replace(item, split=split_of[item.source]) for item in items
        ]
    left_out = tuple(file for file in files.paths if file not in seen)
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


def videos(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the videos in a folder and the folders in it, by name."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file()
    )


def _key(text: str) -> str:
    """Returns a name as it is compared.

    Cells lose the spaces around them, and an accent may be a letter's part or a
    character after it: macOS stores names in the other form than people type.
    """
    return unicodedata.normalize("NFC", pathlib.PurePosixPath(text).as_posix().strip())


class _Files:
    """Finds clips by file name or relative path, with or without extension."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self.paths = videos(folder)
        self._by_key: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
        for file in self.paths:
            inside = self._inside(file)
            names = (
                inside.as_posix(),
                inside.with_suffix("").as_posix(),
                file.name,
                file.stem,
            )
            for key in {_key(name) for name in names}:
                self._by_key[key].append(file)

    def find(self, text: str, problem) -> tuple[pathlib.Path | None, str]:
        """Returns the file and its clip id.

        The id is the relative path, without extension where that is unique.
        """
        if not text:
            problem("the clip is empty")
            return None, text
        key = _key(text)
        if key not in self._by_key:
            key = _key(text.replace("\\", "/"))
        found = self._by_key.get(key, [])
        found = (
            [file for file in found if file == self._folder / text]
            or [file for file in found if _key(self._inside(file).as_posix()) == key]
            or found
        )
        if len(found) != 1:
            problem(
                f"clip {text!r} is not in {self._folder}"
                if not found
                else f"clip {text!r} may be "
                + " or ".join(str(self._inside(file)) for file in found)
                + "; give its path with extension"
            )
            return None, text
        inside = self._inside(found[0])
        bare = inside.with_suffix("").as_posix()
        same = [
            file
            for file in self._by_key[_key(bare)]
            if self._inside(file).with_suffix("").as_posix() == bare
        ]
        clip = bare if len(same) == 1 else inside.as_posix()
        if clip != clip.encode("utf-8", "ignore").decode():
            problem(f"the name {clip!r} is not UTF-8, which data sets need: rename it")
            return None, text
        return found[0], clip

    def _inside(self, file: pathlib.Path) -> pathlib.Path:
        return file.relative_to(self._folder)


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
    for name in names:
        if not name.isidentifier():
            raise schema.InputError(
                f"{path}: the column {name!r} cannot be a task's name; "
                "expected letters, digits and underscores"
            )
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
        problem(f"{task.name} is {text!r}; expected a number, or an empty cell")
        return None
    if not task.low <= value <= task.high:
        problem(
            f"{task.name} is {text}; expected {task.low:g} to {task.high:g} "
            "(--score_range sets other limits)"
        )
        return None
    return value
