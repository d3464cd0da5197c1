r"""Makes a data set out of tables of features that others measured, with their scores.

    python -m extract.tables --table=vvmf_results_a01.csv --frames=lib_c.csv \
        --clip=Image --source='(\d+)_' --task=overall=Score --score_range=0,5 \
        --frame_modality=visual=brisque:buffalo --modality=sync=avset:confi \
        --folds=5 --fold=0 --out=data/thqa0

The one thing to know: all modalities of a clip have the same rows. With `--frames`
these are the clip's rows in that table, in their order, and what `--table` says once a
clip is repeated on each of them; without, a clip is one row.

The command above imports THQA (800 generated talking heads rated 0 to 5): 21 quality
measures of 3 to 10 key frames a clip, SyncNet's three numbers, splits by face. The
clip's id keeps the generator (`1_voice_en_35042678_dinet`). With `--source='.*_(\w+)'`
the source is the generator instead, and `--folds=8` tests on one that training never
saw. What the first table says of the 21 measures is their mean over key frames.

Columns are named by their header: one, several with commas, or `first:last`. A key
frame has no time, so the set's frame rate says nothing.
"""

import argparse
import collections
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from extract import csv_file, folds, importing
from extract.networks import weights
from tqa_jax import cli, records, schema

BACKEND = "table"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    given = _parse(arguments)

    def work() -> None:
        counts = convert(
            given.table,
            given.out,
            clip=given.clip,
            source=given.source,
            tasks=_named("task", given.task),
            score_range=importing.score_range(given.score_range),
            modalities=_named("modality", given.modality),
            frame_modalities=_named("frame_modality", given.frame_modality),
            frames=given.frames,
            num_folds=given.folds,
            fold=given.fold,
            dtype=given.dtype,
            name=given.name,
        )
        print(f"{counts} clips; data set: {given.out}")

    return cli.run(work)


def convert(
    table: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    clip: str,
    source: str,
    tasks: Mapping[str, str],
    score_range: tuple[float, float],
    modalities: Mapping[str, str],
    frame_modalities: Mapping[str, str] | None = None,
    frames: str | pathlib.Path | None = None,
    num_folds: int = 5,
    fold: int = 0,
    dtype: str = "float32",
    name: str = "imported",
) -> str:
    """Writes the data set of one or two tables.

    Args:
        table: CSV with the scores. What is read of it is said once a clip: it has one
            row a clip, or rows that are equal there.
        out: folder to make.
        clip: column of the clip's id, in both tables.
        source: regular expression that the whole clip id begins with; its first group
            is the source.
        tasks: column of each task.
        score_range: lowest and highest possible score.
        modalities: columns of each modality of `table`.
        frame_modalities: columns of each modality of `frames`.
        frames: CSV with several rows a clip, or None; it may be `table`.
        num_folds: folds that the sources are drawn into.
        fold: the one to test on.
        dtype: how features are stored.
        name: of the data set.

    Returns:
        How many clips each split has.

    Raises:
        schema.InputError: for a missing column, rows of a clip that differ, a clip
            without frames, a cell that is no number, a score out of range.
    """
    if not tasks or not (modalities or frame_modalities):
        raise schema.InputError("expected at least one --task and one --modality")
    if frame_modalities and frames is None:
        raise schema.InputError("--frame_modality needs the table of --frames")
    scores = csv_file.read(table, clip)
    rows = scores if frames is None else csv_file.read(frames, clip)
    lines, frame_lines = scores.by(clip), rows.by(clip)
    for one, other, what in (
        (lines, frame_lines, f"{rows.name} has no frames"),
        (frame_lines, lines, f"{scores.name} has no scores"),
    ):
        if lacking := [clip_id for clip_id in one if clip_id not in other]:
            raise schema.InputError(
                f"{what} of {len(lacking)} clips, for example {lacking[0]!r}"
            )
    of_frames = {n: rows.columns(c) for n, c in (frame_modalities or {}).items()}
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
    sources = {clip_id: _source(clip_id, source) for clip_id in lines}
    split_of = folds.draw(
        collections.Counter(sources.values()), folds=num_folds, fold=fold
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
        split = split_of[sources[clip_id]]
        return importing.Sample(clip_id, sources[clip_id], split, features, labels)

    return importing.write(
        out,
        map(sample, lines),
        name=name,
        of=of,
        dtype=dtype,
        kind="ratings",
        tool="extract.tables",
        tables={
            pathlib.Path(path).name: weights.sha256(path)
            for path in (table, frames)
            if path is not None
        },
        source=source,
        splits=f"fold {fold} of {num_folds} by source",
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


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.parser(
        prog="python -m extract.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, text: str, **more) -> None:
        parser.add_argument(f"--{name}", help=text, **more)

    table = {"type": cli.path, "metavar": "CSV"}
    add("table", "CSV with the scores, a row a clip", required=True, **table)
    add("frames", "CSV with several rows a clip, in order", **table)
    add(
        "out",
        "folder of the data set to make",
        required=True,
        type=cli.path,
        metavar="DIR",
    )
    add("name", "name of the data set (default: %(default)s)", default="imported")
    add("clip", "column of the clip's id (default: %(default)s)", default="clip")
    add(
        "source",
        "regular expression for the start of a clip's id; its first group is the "
        "source (default: the whole id)",
        default="(.+)",
        metavar="REGEX",
    )
    for name, text in (
        ("task", "a task and the column of its scores"),
        ("modality", "a modality and its columns in --table"),
        ("frame_modality", "a modality and its columns in --frames"),
    ):
        add(
            name,
            f"{text}; may be given again",
            action="append",
            default=[],
            metavar="NAME=COLUMN" + ("" if name == "task" else "S"),
        )
    add(
        "score_range",
        "lowest and highest score (default: %(default)s)",
        default="1,5",
        metavar="LOW,HIGH",
    )
    add(
        "folds",
        "number of folds that sources are drawn into (default: %(default)s)",
        type=int,
        default=5,
        metavar="N",
    )
    add(
        "fold",
        "fold to test on, from 0; the next is for validation (default: %(default)s)",
        type=int,
        default=0,
        metavar="F",
    )
    add(
        "dtype",
        "how features are stored (default: %(default)s)",
        choices=records.DTYPES,
        default="float32",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
