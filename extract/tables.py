r"""Makes a data set out of tables of features that others measured, with their scores.

    python -m extract.tables --table=vvmf_results_a01.csv --frames=lib_c.csv \
        --clip=Image --source='(\d+)_' --task=overall=Score --score_range=0,5 \
        --frame_modality=visual=brisque:buffalo --modality=sync=avset:confi \
        --folds=5 --fold=0 --out=data/thqa0

All modalities of a clip have the same rows. With `--frames` these are the clip's rows
in that table, in their order, and what `--table` says once a clip is repeated on each
of them; without, a clip is one row.

The command above imports THQA (800 generated talking heads rated 0 to 5): 21 quality
measures of 3 to 10 key frames a clip, SyncNet's three numbers, splits by face. The
clip's id keeps the generator (`1_voice_en_35042678_dinet`). With `--source='.*_(\w+)'`
the source is the generator instead, and `--folds=8` tests on one that training never
saw. What the first table says of the 21 measures is their mean over key frames.

Columns are named by their header: one, several with commas, or `first:last`. A key
frame has no time, so the set's frame rate says nothing.
"""

import collections
import dataclasses
import hashlib
import math
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

import tqa_jax
from extract.importing import feature_table, folds
from tqa_jax import cli, records, schema

BACKEND = "table"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which columns are what.

    Attributes:
        clip: column of the clip's id, in both tables.
        source: regular expression that the whole clip id begins with; its first group
            is the source.
        tasks: column of each task.
        low: lowest possible score.
        high: highest possible score.
        modalities: columns of each modality of the table that has a row a clip.
        frame_modalities: columns of each modality of the table with a row a frame.
    """

    clip: str
    source: str
    tasks: Mapping[str, str]
    low: float
    high: float
    modalities: Mapping[str, str]
    frame_modalities: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    table: pathlib.Path
    """CSV with the scores, a row a clip."""
    frames: pathlib.Path | None = None
    """CSV with several rows a clip, in order."""
    out: pathlib.Path
    """Folder of the data set to make."""
    name: str = "imported"
    """Name of the data set."""
    clip: str = "clip"
    """Column of the clip's id."""
    source: str = "(.+)"
    """Regular expression for the start of a clip's id; its first group is the source
    (default: the whole id)."""
    task: cli.Repeated[tuple[str, ...]] = ()
    """NAME=COLUMN: a task and the column of its scores; may be given again."""
    modality: cli.Repeated[tuple[str, ...]] = ()
    """NAME=COLUMNS: a modality and its columns in --table; may be given again."""
    frame_modality: cli.Repeated[tuple[str, ...]] = ()
    """NAME=COLUMNS: a modality and its columns in --frames; may be given again."""
    score_range: str = "1,5"
    """LOW,HIGH: lowest and highest score."""
    folds: int = 5
    """Number of folds that sources are drawn into."""
    fold: int = 0
    """Fold to test on, from 0; the next is for validation."""
    dtype: Literal[records.DTYPES] = "float32"
    """How features are stored."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return cli.main(_run, Options, arguments)


def _run(options: Options) -> None:
    low, high = _score_range(options.score_range)
    layout = Layout(
        clip=options.clip,
        source=options.source,
        tasks=_named("task", options.task),
        low=low,
        high=high,
        modalities=_named("modality", options.modality),
        frame_modalities=_named("frame_modality", options.frame_modality),
    )
    info = convert(
        options.table,
        options.out,
        layout,
        frames=options.frames,
        num_folds=options.folds,
        fold=options.fold,
        dtype=options.dtype,
        name=options.name,
    )
    counts = [f"{split.clips} {name}" for name, split in info.splits.items()]
    print(f"{', '.join(counts)} clips; data set: {options.out}")


def convert(
    table: str | pathlib.Path,
    out: str | pathlib.Path,
    layout: Layout,
    *,
    frames: str | pathlib.Path | None = None,
    num_folds: int = 5,
    fold: int = 0,
    dtype: str = "float32",
    name: str = "imported",
) -> schema.DatasetInfo:
    """Writes the data set of one or two tables.

    Args:
        table: CSV with the scores. It has one row a clip, unless it is the table of
            frames as well: then what is read of it once a clip must be equal there.
        out: folder to make.
        layout: which columns are what.
        frames: CSV with several rows a clip, or None.
        num_folds: folds that the sources are drawn into.
        fold: the one to test on.
        dtype: how features are stored.
        name: of the data set.

    Raises:
        schema.InputError: for a missing column, a repeated clip, a clip without
            frames, a cell that is no number, a score out of range.
    """
    scores = feature_table.read(table, layout.clip)
    rows = None if frames is None else feature_table.read(frames, layout.clip)
    if not layout.tasks or not (layout.modalities or layout.frame_modalities):
        raise schema.InputError("expected at least one --task and one --modality")
    if layout.frame_modalities and rows is None:
        raise schema.InputError("--frame_modality needs the table of --frames")
    twice = set(layout.modalities) & set(layout.frame_modalities)
    if twice:
        raise schema.InputError(f"modality {min(twice)!r} is given twice")
    clip_wise = {n: scores.places(text) for n, text in layout.modalities.items()}
    frame_wise = {n: rows.places(text) for n, text in layout.frame_modalities.items()}
    tasks = [scores.place(column) for column in layout.tasks.values()]
    for name, places in clip_wise.items():
        _check_columns(name, [scores.header[at] for at in places], layout)
    for name, places in frame_wise.items():
        _check_columns(name, [rows.header[at] for at in places], layout)
    same = rows is not None and rows.path.resolve() == scores.path.resolve()
    if not same:
        feature_table.check_single(scores)
    if rows is not None:
        feature_table.check_same_clips(scores, rows)
    sources = {clip: _source(clip, layout.source) for clip in scores.rows}
    splits = folds.draw(
        collections.Counter(sources.values()), folds=num_folds, fold=fold
    )
    of = schema.Schema(
        tuple(
            schema.Modality(
                n, len(places), BACKEND, "1", description=_listed(t, places)
            )
            for t, part in ((rows, frame_wise), (scores, clip_wise))
            for n, places in part.items()
        ),
        tuple(schema.Task(n, layout.low, layout.high) for n in layout.tasks),
    )

    def made(clip: str) -> records.Clip:
        count = 1 if rows is None else len(rows.rows[clip])
        labels = scores.once(clip, tasks)
        for task, label in zip(of.tasks, labels, strict=True):
            if not (math.isnan(label) or task.low <= label <= task.high):
                raise schema.InputError(
                    f"{table} line {scores.rows[clip][0][0]}: {task.name} is "
                    f"{label:g}; expected {task.low:g} to {task.high:g} "
                    "(--score_range sets other limits)"
                )
        features = {
            n: np.tile(scores.once(clip, places), (count, 1))
            for n, places in clip_wise.items()
        } | {n: rows.numbers(clip, places) for n, places in frame_wise.items()}
        with np.errstate(over="ignore"):  # what float32 cannot hold is missing
            features = {n: values.astype(np.float32) for n, values in features.items()}
        features = {
            n: np.where(np.isfinite(values), values, np.float32(np.nan))
            for n, values in features.items()
        }
        return records.Clip(
            clip=clip,
            source=sources[clip],
            features=features,
            frame_mask={
                n: np.isfinite(values).any(axis=-1) for n, values in features.items()
            },
            labels=labels.astype(np.float32),
        )

    return records.write_dataset(
        out,
        ((splits[sources[clip]], made(clip)) for clip in scores.rows),
        name=name,
        schema=of,
        provenance={
            "kind": "ratings",
            "tool": "extract.tables",
            "version": tqa_jax.__version__,
            "tables": {
                t.path.name: hashlib.sha256(t.path.read_bytes()).hexdigest()
                for t in (scores, rows)
                if t is not None
            },
            "source": layout.source,
            "splits": f"fold {fold} of {num_folds} by source",
            "time_axis": "none: rows in the order of the table; fps is nominal",
            "repeated_on_every_row": list(clip_wise) if rows is not None else [],
        },
        dtype=dtype,
    )


def _source(clip: str, pattern: str) -> str:
    try:
        matched = re.match(pattern, clip)
        source = matched[1] if matched else None
    except (re.error, IndexError) as error:
        raise schema.InputError(
            f"--source is {pattern!r}; expected a regular expression with a group, "
            rf"for example '(\d+)_': {error}"
        ) from error
    if not source:
        raise schema.InputError(f"--source {pattern!r} finds no source in {clip!r}")
    return source


def _listed(table: feature_table.Table, places: Sequence[int]) -> str:
    return ", ".join(table.header[place] for place in places)


def _named(option: str, texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, columns = text.partition("=")
        if not (name and columns):
            raise schema.InputError(f"--{option} is {text!r}; expected NAME=COLUMNS")
        if name in found:
            raise schema.InputError(f"--{option} {name!r} is given twice")
        found[name] = columns
    return found


def _check_columns(name: str, columns: Sequence[str], layout: Layout) -> None:
    """Refuses a modality that holds a score, or a column twice."""
    for column, count in collections.Counter(columns).items():
        if column in layout.tasks.values():
            raise schema.InputError(
                f"--modality={name} holds {column}, which is a task's score"
            )
        if count > 1:
            raise schema.InputError(f"--modality={name} holds {column} twice")


def _score_range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise schema.InputError(
            f"--score_range is {text!r}; expected two numbers, the lowest score first"
        )
    return low, high


if __name__ == "__main__":
    sys.exit(main())
