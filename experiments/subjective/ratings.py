"""Answers of raters: who preferred which clip of a pair, and how both were rated.

The one thing to know: a clip is its path, so the same file in several pairs is one
clip. Nothing is dropped in silence: `notes` says what was left out or assumed.
"""

import csv
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.subjective import older_ratings
from tqa_jax import schema

# The page puts it before what a spreadsheet would compute, such as the clip -7TM.mp4.
_GUARD = re.compile(r"^'(?=[=+\-@])")
KINDS = ("training", "trial", "repeat", "control")
_PREFERENCES = {"left": 1.0, "equal": 0.0, "right": -1.0, "": math.nan}
_FIXED = (
    "rater_id",
    "item_id",
    "trial_index",
    "kind",
    "left_label",
    "left_path",
    "right_path",
    "preference",
)


@dataclasses.dataclass(frozen=True)
class Ratings:
    """N answers, each to one pair of clips.

    Attributes:
        raters: names, sorted.
        clips: paths, sorted.
        tasks: what was rated.
        rater: who answered, an index (N,).
        left: clip on the left, an index (N,).
        right: clip on the right, an index (N,).
        a_left: whether the pair's video A was on the left (N,).
        item: the pair's name (N,).
        kind: one of `KINDS` (N,).
        opinions: of the left and the right clip, NaN where not rated (N, 2, K).
        preference: 1 for left, 0 for equal, -1 for right, NaN for none (N,).
        seconds: that the answer took, NaN where unknown (N,).
        plays: of the clip that was played less often, NaN where unknown (N,).
        derived: whether preferences are signs of differences of ratings.
        notes: what a reader of the results must know.
        sources: of each clip what it shows, such as the speaker; empty where no answer
            or several say it.
    """

    raters: tuple[str, ...]
    clips: tuple[str, ...]
    tasks: tuple[str, ...]
    rater: Int[np.ndarray, " N"]
    left: Int[np.ndarray, " N"]
    right: Int[np.ndarray, " N"]
    a_left: Bool[np.ndarray, " N"]
    item: np.ndarray
    kind: np.ndarray
    opinions: Float[np.ndarray, "N 2 K"]
    preference: Float[np.ndarray, " N"]
    seconds: Float[np.ndarray, " N"]
    plays: Float[np.ndarray, " N"]
    derived: bool = False
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def take(self, rows: Bool[np.ndarray, " N"]) -> "Ratings":
        """Returns some of the answers; names and indices stay."""
        fields = ("rater", "left", "right", "a_left", "item", "kind", "opinions")
        fields += ("preference", "seconds", "plays")
        return dataclasses.replace(
            self, **{name: getattr(self, name)[rows] for name in fields}
        )

    def trials(self) -> "Ratings":
        """Returns the answers that results are made of."""
        return self.take(self.kind == "trial")

    def without(self, names: Iterable[str]) -> "Ratings":
        """Returns the answers of the other raters."""
        found = set(names)
        gone = np.array([name in found for name in self.raters], bool)
        return self.take(~gone[self.rater])


def read(paths: Sequence[str | pathlib.Path]) -> Ratings:
    """Reads the answers of a study.

    Args:
        paths: CSV files, or folders that hold some or have a folder `ratings` of them:
            as the page exports them, as the older system's two tools wrote them, or
            with a line for each rater and clip.

    Raises:
        schema.InputError: nothing is there, a file is none of these, a cell is
            none, or two answers contradict each other.
    """
    rows: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    for path in _files(paths):
        header, lines = _lines(path)
        said = ()
        if "kind" not in header:
            header, lines, said = older_ratings.as_page(path, header, lines)
        notes |= dict.fromkeys(said)
        rows += _rows(path, header, lines)
    if not rows:
        raise schema.InputError("the files of ratings hold no answers")
    studies = sorted({row["study"] for row in rows})
    if len(studies) > 1:
        raise schema.InputError(
            f"ratings of several studies: {', '.join(map(repr, studies[:5]))}; "
            "analyse one at a time"
        )
    rows, repeated = _unique(rows)
    if repeated:
        notes[f"{repeated} answers are there twice and are counted once"] = None
    return _gather(rows, notes)


def _files(paths: Sequence[str | pathlib.Path]) -> list[pathlib.Path]:
    found: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        inside = [path]
        if path.is_dir():
            inside = sorted(path.glob("[!.]*.csv"))
            inside = inside or sorted(path.glob("ratings/[!.]*.csv"))
        if not inside:
            raise schema.InputError(f"{path} holds no CSV file of ratings")
        found += inside
    return found


def _lines(path: pathlib.Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and the other lines with their numbers, cells stripped."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            lines = [
                (reader.line_num, [_GUARD.sub("", cell.strip()) for cell in line])
                for line in reader
                if any(line)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise schema.InputError(f"{path} cannot be read: {error}") from error
    for number, line in lines:
        if len(line) != len(header):
            raise schema.InputError(
                f"{path} line {number} has {len(line)} cells; its header has "
                f"{len(header)}"
            )
    return header, lines


def _rows(
    path: pathlib.Path, header: Sequence[str], lines: Sequence[tuple[int, list[str]]]
) -> list[dict[str, Any]]:
    """The answers of a file in the page's layout."""
    lacking = [name for name in _FIXED if name not in header]
    if lacking:
        raise schema.InputError(
            f"{path} is no file of ratings: it lacks {', '.join(lacking)}; it has "
            f"{', '.join(header)[:200]}"
        )
    rest = [name.removeprefix("left_") for name in header if name.startswith("left_")]
    tasks = [t for t in rest if t not in ("label", "path") and f"right_{t}" in header]
    found = []
    for number, line in lines:
        cells = dict(zip(header, line, strict=True))
        where = f"{path} line {number}"
        for name in ("rater_id", "item_id", "left_path", "right_path"):
            if not cells[name]:
                raise schema.InputError(f"{where}: {name} is empty")
        _one_of(cells["kind"], KINDS, "kind", where)
        _one_of(cells["preference"], _PREFERENCES, "preference", where)
        _one_of(cells["left_label"], ("A", "B"), "left_label", where)
        opinions = {
            task: [
                _number(cells[f"{side}_{task}"], where, f"{side}_{task}")
                for side in ("left", "right")
            ]
            for task in tasks
        }
        plays = [
            _number(cells.get(f"plays_{side}", ""), where, f"plays_{side}")
            for side in ("left", "right")
        ]
        found.append(
            {
                "where": where,
                "study": cells.get("study", ""),
                "rater": cells["rater_id"],
                "item": cells["item_id"],
                "index": cells["trial_index"],
                "kind": cells["kind"],
                "source": cells.get("source", ""),
                "left": cells["left_path"],
                "right": cells["right_path"],
                "a_left": cells["left_label"] == "A",
                "opinions": opinions,
                "preference": _PREFERENCES[cells["preference"]],
                "derived": cells.get("derived") == "yes",
                "seconds": _number(cells.get("seconds", ""), where, "seconds"),
                "plays": min(plays),
            }
        )
    return found


def _unique(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Drops copies of answers; two answers to one question are an error."""
    kept: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["rater"], row["index"], row["kind"], row["item"])
        first = kept.setdefault(key, row)
        if repr(_content(first)) != repr(_content(row)):
            raise schema.InputError(
                f"{row['where']}: rater {row['rater']!r} has another answer to trial "
                f"{row['index']} in {first['where']}; remove one, or rename one of two "
                "raters of the same name"
            )
    return list(kept.values()), len(rows) - len(kept)


def _content(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "where"}


def _gather(rows: Sequence[dict[str, Any]], notes: Mapping[str, None]) -> Ratings:
    raters = sorted({row["rater"] for row in rows})
    clips = sorted({row[side] for row in rows for side in ("left", "right")})
    tasks = list(dict.fromkeys(task for row in rows for task in row["opinions"]))
    nothing = [math.nan, math.nan]
    opinions = [[row["opinions"].get(t, nothing) for t in tasks] for row in rows]
    rater_index = {name: number for number, name in enumerate(raters)}
    clip_index = {name: number for number, name in enumerate(clips)}
    counts = {
        kind: number
        for kind in KINDS
        if (number := sum(row["kind"] == kind for row in rows))
    }
    sources: dict[str, set[str]] = {clip: set() for clip in clips}
    for row in rows:
        for side in ("left", "right"):
            sources[row[side]].add(row["source"])
    answers = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    return Ratings(
        tuple(raters),
        tuple(clips),
        tuple(tasks),
        np.array([rater_index[row["rater"]] for row in rows]),
        np.array([clip_index[row["left"]] for row in rows]),
        np.array([clip_index[row["right"]] for row in rows]),
        np.array([row["a_left"] for row in rows]),
        np.array([row["item"] for row in rows]),
        np.array([row["kind"] for row in rows]),
        np.array(opinions, float).reshape(len(rows), len(tasks), 2).swapaxes(1, 2),
        np.array([row["preference"] for row in rows]),
        np.array([row["seconds"] for row in rows]),
        np.array([row["plays"] for row in rows]),
        any(row["derived"] for row in rows),
        (f"answers by kind: {answers}; results are of trials", *notes),
        tuple(min(said) if len(said) == 1 else "" for said in sources.values()),
    )


def _number(text: str, where: str, name: str) -> float:
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise schema.InputError(f"{where}: {name} is {text!r}; expected a number")
    return value


def _one_of(value: str, known: Iterable[str], name: str, where: str) -> None:
    if value not in known:
        choices = ", ".join(one or "nothing" for one in known)
        raise schema.InputError(f"{where}: {name} is {value!r}; expected {choices}")
