"""Answers that other tools wrote, turned into the page's.

None recorded all that an analysis of pairs needs, and what is assumed for it is said in
notes. `ab_eval_results.csv` (of the older PyTorch system's Gradio form) has no
preference; `evaluation_results.csv` (of its Flask study) has no sides and no names of
clips; a table of ratings by rater and clip has no pairs.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from tqa_jax import schema

Lines = Sequence[tuple[int, list[str]]]


class Page(NamedTuple):
    """A file in the page's layout.

    Attributes:
        header: its columns; `derived` is `yes` where a preference is the sign of a
            difference of ratings.
        lines: number and cells of each.
        notes: what was assumed.
    """

    header: list[str]
    lines: list[tuple[int, list[str]]]
    notes: tuple[str, ...]


_FIXED = ["rater_id", "item_id", "trial_index", "kind", "left_label", "right_label"]
_FIXED += ["left_path", "right_path", "preference", "derived"]
_RATERS = {"rater", "rater_id"}  # names of the column, of which a table has one
_SLIDERS = 3.0  # where the older form's sliders stood before they were moved


def as_page(path: pathlib.Path, header: Sequence[str], lines: Lines) -> Page:
    """Turns a file of another tool into the page's layout.

    Args:
        path: for messages.
        header: names of its columns.
        lines: number and cells of each line.

    Raises:
        schema.InputError: it is none of the three.
    """
    if "clip" in header and _RATERS & set(header):
        return _single(header, lines)
    if {"rater_id", "item_id", "left_path", "right_path"} <= set(header):
        return _form(header, lines)
    if {"participant_id", "video_index", "preference"} <= set(header):
        return _study(path, header, lines)
    raise schema.InputError(
        f"{path} is no file of ratings: it has neither the column kind (of the page) "
        "nor rater and clip, nor those of ab_eval_results.csv or "
        "evaluation_results.csv; it has "
        f"{', '.join(header)[:200]}"
    )


def _single(header: Sequence[str], lines: Lines) -> Page:
    """Reads a table `clip,source,rater,<task>,...`, in which -1 is a missing rating."""
    (rater, *_) = sorted(_RATERS & set(header))
    tasks = [t for t in header if t not in _RATERS | {"clip", "source", "split"}]
    times: dict[tuple[str, str], int] = {}
    found = []
    for number, line in lines:
        cells = dict(zip(header, line, strict=True))
        clip = cells["clip"]
        key = cells[rater], clip
        times[key] = times.get(key, 0) + 1
        fixed = [cells[rater], clip, str(times[key]), "trial", "A", "B", clip, clip]
        values = ["" if _float(cells[task]) == -1 else cells[task] for task in tasks]
        nothing = [""] * len(tasks)
        found.append(
            (number, [*fixed, "", "", cells.get("source", ""), *values, *nothing])
        )
    columns = [f"{side}_{task}" for side in ("left", "right") for task in tasks]
    notes = ("clips were rated one by one: there are no preferences and no sides",)
    return Page([*_FIXED, "source", *columns], found, notes)


def _form(header: Sequence[str], lines: Lines) -> Page:
    """Reads `ab_eval_results.csv`."""
    tasks = [
        name.removeprefix("left_")
        for name in header
        if name.startswith("left_")
        and name not in ("left_path", "left_label")
        and "right_" + name.removeprefix("left_") in header
    ]
    ratings = [f"{side}_{task}" for task in tasks for side in ("left", "right")]
    found = []
    untouched = 0
    times: dict[str, int] = {}
    for number, line in lines:
        cells = dict(zip(header, line, strict=True))
        pairs = {t: (_float(cells[f"left_{t}"]), _float(cells[f"right_{t}"]))
                 for t in tasks}  # fmt: skip
        values = [value for pair in pairs.values() for value in pair]
        untouched += bool(values) and all(value == _SLIDERS for value in values)
        times[cells["rater_id"]] = times.get(cells["rater_id"], 0) + 1
        # When it was sent tells answers apart, and copies of one answer from two.
        index = cells.get("timestamp") or str(times[cells["rater_id"]])
        label = cells.get("left_label", "A").upper()
        fixed = [cells["rater_id"], cells["item_id"], index, "trial"]
        fixed += ["A" if label in ("A", "VIDEO_A") else "B", ""]
        fixed += [cells["left_path"], cells["right_path"], _preferred(pairs), "yes"]
        found.append((number, fixed + [cells[name] for name in ratings]))
    notes = (
        "the older form asked for no preference: the sign of the difference of "
        "`overall`, or of the mean over tasks without it, is taken for one",
        "the older form's sliders stood at 3.0 and an untouched one was saved as a "
        f"rating: {untouched} of {len(lines)} answers are 3.0 throughout, and ratings "
        "are drawn towards 3.0",
    )
    return Page([*_FIXED, *ratings], found, notes)


def _study(path: pathlib.Path, header: Sequence[str], lines: Lines) -> Page:
    """Reads `evaluation_results.csv`."""
    tasks = [
        name.removesuffix("_A")
        for name in header
        if name.endswith("_A") and f"{name.removesuffix('_A')}_B" in header
    ]
    words = {"A": "left", "B": "right", "EQUAL": "equal", "": ""}
    found = []
    for number, line in lines:
        cells = dict(zip(header, line, strict=True))
        said = cells["preference"].upper()
        if said not in words:
            raise schema.InputError(
                f"{path} line {number}: preference is {cells['preference']!r}; "
                "expected A, B or equal"
            )
        video = cells["video_index"]
        index = cells.get("trial_index") or cells.get("trial_id") or str(number)
        fixed = [cells["participant_id"], video, index, "trial", "A", "B"]
        fixed += [f"{video}/A", f"{video}/B", words[said], ""]
        rated = [cells[f"{task}_{side}"] for task in tasks for side in ("A", "B")]
        found.append((number, fixed + rated))
    columns = [f"{side}_{task}" for task in tasks for side in ("left", "right")]
    notes = (
        "the older study recorded neither sides nor files: A is taken to have been on "
        "the left, and A and B of a video index to be the same two clips for everybody",
        "the older study drew the conditions of A and B apart from each other, so that "
        "both may have been the same: A against B says nothing about conditions",
    )
    return Page([*_FIXED, *columns], found, notes)


def _preferred(pairs: dict[str, tuple[float, float]]) -> str:
    """The side that was rated higher."""
    chosen = [pairs["overall"]] if "overall" in pairs else list(pairs.values())
    differences = [left - right for left, right in chosen]
    known = [one for one in differences if not math.isnan(one)]
    if not known:
        return ""
    total = round(sum(known), 9)
    return "equal" if not total else "left" if total > 0 else "right"


def _float(text: str) -> float:
    """A rating; what is no number is complained about where all ratings are read."""
    try:
        return float(text)
    except ValueError:
        return math.nan
