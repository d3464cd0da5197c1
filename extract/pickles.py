r"""Imports the feature pickles of the older PyTorch system as a data set.

    python -m extract.pickles --pickle=ac.pkl --out=data/old

Nothing in the file is run (`extract/importing/unpickle.py`),
and nothing that it does not say is made up. It has no time stamps and no lengths, so
rows of the modalities are kept as they are, on no common time axis; rows of padding are
masked.

Three layouts are read: a list of samples (L0), a dict of lists by split (L1), and a
dict of stacked arrays by split (L2, standardised). `valid` and `val` are `validation`.
The source of `video_0001_00027` is `video_0001`; if a source is in two splits, as in
the older system's own L1 files, `--folds` draws them anew.

Labels. -1.0 is the older system's mark of a missing label, exactly; it is also the
lowest sentiment score, so that some labels are lost with it. `--score_range` says what
the scores are, and -1 is a score where a range that is given includes it. Without it
the ranges are those of the older system's files: lip_sync 0 to 5 and else -1 to 1
(CH-SIMS sentiment, no quality ratings), in L2 0 to 1 after its scaling by split.

Features. Action units of L0 and L1 are the backend `geometry`: the division of each
row by its own maximum is undone exactly. `syncnet` (2 numbers a clip) becomes the
modality `sync`, repeated on every row. `consistency` correlates the numbers of unlike
features and means nothing: it is left out. L2 was imputed and standardised with
statistics of each split, which cannot be undone.
"""

import collections
import dataclasses
import hashlib
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

import tqa_jax
from extract.importing import folds, layouts, older
from tqa_jax import cli, records, schema

_MISSING = -1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    pickle: pathlib.Path
    """The file to read."""
    out: pathlib.Path
    """Folder of the data set to make."""
    name: str = "imported"
    """Name of the data set."""
    score_range: cli.Repeated[tuple[str, ...]] = ()
    """LOW,HIGH: lowest and highest score of all tasks, or TASK=LOW,HIGH of one; may be
    given again."""
    folds: int | None = None
    """Draw splits by source, into so many folds (default: splits as in the file)."""
    fold: int = 0
    """Fold to test on, from 0; the next is for validation."""
    dtype: Literal[records.DTYPES] = "float32"
    """How features are stored."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return cli.main(_run, Options, arguments)


def _run(options: Options) -> None:
    for line in convert(
        options.pickle,
        options.out,
        ranges=_ranges(options.score_range),
        num_folds=options.folds,
        fold=options.fold,
        dtype=options.dtype,
        name=options.name,
    ):
        print(line)


def convert(
    path: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    num_folds: int | None = None,
    fold: int = 0,
    dtype: str = "float32",
    name: str = "imported",
) -> list[str]:
    """Writes the data set of a pickle.

    Args:
        path: the pickle.
        out: folder to make.
        ranges: lowest and highest score by task; the key "" is for all other tasks.
        num_folds: splits are drawn anew by source, into so many folds; None keeps
            those of the file.
        fold: the fold to test on.
        dtype: how features are stored.
        name: of the data set.

    Returns:
        What was done and what to know of it, one line each.

    Raises:
        schema.InputError: the file is none of the three layouts, or is refused.
    """
    layout, samples = layouts.read(path)
    standardised = layout == "L2"
    ranges = ranges or {}
    notes: list[str] = []
    tasks = _tasks(path, samples, ranges, standardised)
    labels = _labels(path, samples, tasks, ranges, notes)
    widths = older.widths(path, samples)
    geometry = not standardised and older.is_geometry(samples)
    if "au" in widths and not geometry and not standardised:
        notes.append(
            "action units are not rows over their own maximum: kept as they are"
        )
    measured = [older.has_rows(sample, standardised) for sample in samples]
    empty = [s.clip for s, there in zip(samples, measured, strict=True) if not there]
    if len(empty) == len(samples):
        raise schema.InputError(f"{path} has no clip with a measured row")
    if empty:
        notes.append(f"left out, no measured row: {', '.join(empty)}")
    labels = labels[measured]
    samples = [s for s, there in zip(samples, measured, strict=True) if there]
    if any(sample.source is None for sample in samples):
        notes.append("the file has no clip ids: every clip is taken as its own source")
    splits = _splits(path, samples, num_folds, fold)
    of = schema.Schema(
        older.modalities(widths, geometry, standardised), tuple(tasks.values())
    )
    provenance = {
        "kind": "imported",
        "tool": "extract.pickles",
        "version": tqa_jax.__version__,
        "file": pathlib.Path(path).name,
        "sha256": _sha256(path),
        "layout": layout,
        "time_axis": older.TIME_AXIS,
        "padding": (
            "equal rows at the end masked; the length was not stored"
            if standardised
            else "rows of zeros masked; the length was not stored"
        ),
        "splits": "as in the file"
        if num_folds is None
        else f"fold {fold} of {num_folds} by source",
        "notes": notes,
    }
    records.write_dataset(
        out,
        (
            (split, older.clip(sample, row, of, geometry, standardised))
            for sample, split, row in zip(samples, splits, labels, strict=True)
        ),
        name=name,
        schema=of,
        provenance=provenance,
        dtype=dtype,
    )
    count = collections.Counter(splits)
    told = ", ".join(f"{count[split]} {split}" for split in schema.SPLITS)
    return [
        *notes,
        f"layout {layout}: {len(samples)} clips ({told})",
        f"data set: {out}",
    ]


def _tasks(
    path,
    samples: Sequence[layouts.Sample],
    ranges: Mapping[str, tuple[float, float]],
    standardised: bool,
) -> dict[str, schema.Task]:
    """Returns the task of each label, in the usual order."""
    known = {task.name: task.description for task in schema.TASKS}
    labels = {label for sample in samples for label in sample.labels}
    names = {"lip_sync" if n == layouts.NEW_SYNC else n: n for n in labels}
    order = [n for n in known if n in names] + sorted(set(names) - set(known))
    unknown = set(ranges) - {"", *names}
    if unknown:
        raise schema.InputError(
            f"--score_range names the task {min(unknown)!r}; {path} has "
            f"{', '.join(order)}"
        )
    tasks = {}
    for name in order:
        usual = (0.0, 1.0) if standardised else (-1.0, 1.0)
        if name == "lip_sync" and (not standardised or names[name] != name):
            usual = (0.0, 5.0)
        low, high = ranges.get(name, ranges.get("", usual))
        tasks[names[name]] = schema.Task(name, low, high, known.get(name, ""))
    return tasks


def _labels(
    path,
    samples: Sequence[layouts.Sample],
    tasks: Mapping[str, schema.Task],
    ranges: Mapping[str, tuple[float, float]],
    notes: list[str],
) -> Float[np.ndarray, "N K"]:
    """Returns the labels of all clips, NaN for missing."""
    found = np.array(
        [[sample.labels.get(label, math.nan) for label in tasks] for sample in samples]
    )
    for column, task in zip(found.T, tasks.values(), strict=True):
        legal = task.low <= _MISSING <= task.high
        if not (legal and (task.name in ranges or "" in ranges)):
            marked = column == _MISSING
            column[marked] = math.nan
            if legal and marked.any():
                notes.append(
                    f"{marked.sum()} labels of {task.name} are -1 and taken as "
                    "missing, though -1 is a score too; "
                    f"--score_range={task.name}={task.low:g},{task.high:g} keeps them"
                )
        beyond = (column < task.low) | (column > task.high)
        if beyond.any():
            first = int(np.argmax(beyond))
            raise schema.InputError(
                f"{path}: {task.name} of {samples[first].clip!r} is "
                f"{column[first]:g}; expected {task.low:g} to {task.high:g}: "
                f"--score_range={task.name}=LOW,HIGH gives other limits"
            )
    return found.astype(np.float32)


def _splits(
    path, samples: Sequence[layouts.Sample], num_folds: int | None, fold: int
) -> list[str]:
    """Returns the split of each clip."""
    if num_folds is not None:
        if any(sample.source is None for sample in samples):
            raise schema.InputError(
                f"{path} has no clip ids, so that splits by source cannot be drawn; "
                "leave out --folds"
            )
        clips = collections.Counter(sample.source for sample in samples)
        drawn = folds.draw(clips, folds=num_folds, fold=fold)
        return [drawn[sample.source] for sample in samples]
    seen: dict[str, str] = {}
    for sample in samples:
        source = sample.source or sample.clip
        if seen.setdefault(source, sample.split) != sample.split:
            raise schema.InputError(
                f"{path} has the source {source!r} in {seen[source]!r} and "
                f"{sample.split!r}; a source belongs to one split: --folds=5 draws "
                "splits by source"
            )
    return [sample.split for sample in samples]


def _sha256(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ranges(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    found = {}
    for text in texts:
        task, _, limits = text.rpartition("=")
        try:
            low, high = (float(part) for part in limits.split(","))
        except ValueError:
            low = high = math.nan
        if not -math.inf < low < high < math.inf:
            raise schema.InputError(
                f"--score_range is {text!r}; expected LOW,HIGH for all tasks or "
                "TASK=LOW,HIGH for one"
            )
        found[task] = (low, high)
    return found


if __name__ == "__main__":
    sys.exit(main())
