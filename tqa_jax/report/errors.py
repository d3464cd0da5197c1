"""Where a model errs: by source and split, and clip by clip with a picture.

The one thing to know: scores may have different ranges, so errors of several tasks
are compared as shares of each task's range.
"""

import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tqa_jax import schema
from tqa_jax.report import record

_PICTURE = 144  # Pixels, the longer side of a thumbnail.
_ROW = 12  # Frame that is shown: half a second in, past a fade from black.


class Group(NamedTuple):
    """Errors of the labelled clips of one source or split.

    Attributes:
        name: of the group.
        clips: number of clips with any label.
        error: mean absolute error in shares of the score range, over tasks.
        bias: mean of score minus label, likewise.
        by_task: mean absolute error of each task, NaN without labels.
    """

    name: str
    clips: int
    error: float
    bias: float
    by_task: Float[np.ndarray, " K"]


class Worst(NamedTuple):
    """A clip and the task on which it is furthest off.

    Attributes:
        clip: its id.
        source: its source.
        task: name of the task.
        score: predicted.
        label: of the clip.
        spread: of the score, NaN without.
        picture: data URI of a frame, or empty.
        remark: why there is no picture, or empty.
    """

    clip: str
    source: str
    task: str
    score: float
    label: float
    spread: float
    picture: str = ""
    remark: str = ""


def groups(run: record.Record, column: str, *, split: str = "") -> list[Group]:
    """Errors by group, the worst first.

    Args:
        run: with predictions.
        column: of the predictions that names the group: `sources` or `splits`.
        split: only clips of this split; empty for all.
    """
    found = []
    errors = _errors(run)
    names = getattr(run.predictions, column)
    counted = np.isfinite(errors).any(axis=1)
    if split:
        counted &= run.predictions.splits == split
    for name in sorted(set(names[counted])):
        rows = errors[counted & (names == name)]
        known = np.isfinite(rows)
        count = known.sum(axis=0)
        by_task = np.where(
            count > 0, np.nansum(abs(rows), axis=0) / np.maximum(count, 1), np.nan
        )
        found.append(
            Group(
                name,
                len(rows),
                float(abs(rows[known]).mean()),
                float(rows[known].mean()),
                by_task,
            )
        )
    return sorted(found, key=lambda group: -group.error)


def worst(
    run: record.Record, *, most: int = 10, clips: pathlib.Path | None = None
) -> list[Worst]:
    """Test clips with the largest errors, the worst first.

    Args:
        run: with predictions.
        most: number of clips.
        clips: folder of the videos, for pictures; None for none.
    """
    errors = abs(_errors(run))
    errors[run.predictions.splits != "test"] = np.nan
    largest = np.max(errors, axis=1, initial=-1, where=np.isfinite(errors))
    chosen = np.argsort(-largest, kind="stable")[:most]
    files = {} if clips is None else _files(clips)
    found = []
    for row in chosen[largest[chosen] >= 0]:
        k = int(np.nanargmax(errors[row]))
        one = Worst(
            *(run.predictions.clips[row], run.predictions.sources[row]),
            run.tasks[k].name,
            run.predictions.scores[row, k],
            run.predictions.labels[row, k],
            run.predictions.spread[row, k],
        )
        if clips is not None:
            one = one._replace(**_picture(files.get(one.clip)))
        found.append(one)
    return found


def worst_by_task(run: record.Record, *, most: int = 3) -> dict[str, list[Worst]]:
    """Test clips with the largest errors on each task, the worst first.

    Args:
        run: with predictions.
        most: clips of a task.
    """
    errors = abs(_errors(run))
    errors[run.predictions.splits != "test"] = np.nan
    found = {}
    for k, task in enumerate(run.tasks):
        order = np.argsort(-np.nan_to_num(errors[:, k], nan=-1), kind="stable")
        found[task.name] = [
            Worst(
                *(run.predictions.clips[row], run.predictions.sources[row], task.name),
                run.predictions.scores[row, k],
                run.predictions.labels[row, k],
                run.predictions.spread[row, k],
            )
            for row in order[:most]
            if np.isfinite(errors[row, k])
        ]
    return found


def _errors(run: record.Record) -> Float[np.ndarray, "N K"]:
    """Score minus label as a share of the task's range."""
    ranges = np.array([task.high - task.low for task in run.tasks])
    return (run.predictions.scores - run.predictions.labels) / ranges


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Files below a folder by relative path, with and without extension.

    A clip's name is looked up here and never opened as a path.
    """
    if not folder.is_dir():
        raise schema.InputError(f"no folder of clips at {folder}")
    found: dict[str, pathlib.Path] = {}
    from extract import files

    for file in files.videos(folder):
        inside = file.relative_to(folder)
        for key in (inside.as_posix(), files.bare(inside).as_posix()):
            found.setdefault(key, file)
    return found


def _picture(file: pathlib.Path | None) -> dict[str, str]:
    """A frame of a video as a data URI, or why there is none."""
    if file is None:
        return {"remark": "not among the clips"}
    from extract import decode, thumbnail

    try:
        return {"picture": thumbnail.at(file, _ROW, size=_PICTURE)}
    except decode.ClipError as error:
        return {"remark": f"no picture: {error}"}
