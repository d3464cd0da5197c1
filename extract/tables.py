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

import dataclasses
import pathlib
import re
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from extract import csv_file, importing
from extract.networks import weights
from tqa_jax import cli, schema

BACKEND = "table"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(importing.Given):
    """The command line."""

    table: pathlib.Path
    """CSV with the scores, a row a clip."""
    frames: pathlib.Path | None = None
    """CSV with several rows a clip, in order."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return cli.main(_run, Options, arguments)


def _run(options: Options) -> None:
    print(f"{convert(options)} clips; data set: {options.out}")


def convert(options: Options) -> str:
    """Writes the data set of one or two tables; returns how many clips splits have.

    What `table` says once a clip must be equal in its rows there; it may be `frames`.
    """
    table, frames = options.table, options.frames
    tasks = _named("task", options.task)
    modalities = _named("modality", options.modality)
    frame_modalities = _named("frame_modality", options.frame_modality)
    score_range = importing.score_range(options.score_range)
    if not tasks or not (modalities or frame_modalities):
        raise schema.InputError("expected at least one --task and one --modality")
    if frame_modalities and frames is None:
        raise schema.InputError("--frame_modality needs the table of --frames")
    scores = csv_file.read(table, options.clip)
    rows = scores if frames is None else csv_file.read(frames, options.clip)
    lines, frame_lines = scores.by(options.clip), rows.by(options.clip)
    for one, other, what in (
        (lines, frame_lines, f"{rows.name} has no frames"),
        (frame_lines, lines, f"{scores.name} has no scores"),
    ):
        if lacking := [clip_id for clip_id in one if clip_id not in other]:
            raise schema.InputError(
                f"{what} of {len(lacking)} clips, for example {lacking[0]!r}"
            )
    of_frames = {n: rows.columns(c) for n, c in frame_modalities.items()}
    of_clips = {n: scores.columns(c) for n, c in modalities.items()}
    scored = [scores.need(column) for column in tasks.values()]
    listed = [*of_frames.items(), *of_clips.items()]
    for modality, columns in listed:
        for column in columns:
            if column in scored or columns.count(column) > 1:
                what = ", which is a task's score" if column in scored else " twice"
                raise schema.InputError(f"--modality={modality} holds {column}{what}")
    of = schema.Schema(
        tuple(
            schema.Modality(n, len(c), BACKEND, "1", description=", ".join(c))
            for n, c in listed
        ),
        tuple(schema.Task(n, *score_range) for n in tasks),
    )

    def sample(clip_id: str) -> importing.Sample:
        own, frame_rows = lines[clip_id], frame_lines[clip_id]
        features = {n: rows.numbers(frame_rows, c) for n, c in of_frames.items()}
        for modality, columns in of_clips.items():
            count = 1 if frames is None else len(frame_rows)
            features[modality] = np.tile(_once(scores, own, columns), (count, 1))
        _once(scores, own, scored)
        labels = {
            task.name: scores.score(own[0], column, task)
            for task, column in zip(of.tasks, scored, strict=True)
        }
        source = _source(clip_id, options.source)
        return importing.Sample(clip_id, source, "train", features, labels)

    return importing.write(
        options,
        [sample(clip_id) for clip_id in lines],
        of,
        kind="ratings",
        tool="extract.tables",
        tables={
            path.name: weights.sha256(path)
            for path in (table, frames)
            if path is not None
        },
        source=options.source,
        time_axis="none: rows in the order of the table; fps is nominal",
        repeated_on_every_row=[] if frames is None else list(modalities),
    )


def _once(
    table: csv_file.Table, rows: Sequence[csv_file.Row], columns: Sequence[str]
) -> Float[np.ndarray, " D"]:
    """Returns what a table says once a clip: cells that are equal in its rows."""
    values = table.numbers(rows, columns)
    differing = (values != values[0]) & ~(np.isnan(values) & np.isnan(values[0]))
    for row, column in np.argwhere(differing)[:1]:
        raise table.error(
            rows[row],
            f"{columns[column]} differs within clip, from line {rows[0].line}; a table "
            "with several rows a clip goes to --frames",
        )
    return values[0]


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


if __name__ == "__main__":
    sys.exit(main())
