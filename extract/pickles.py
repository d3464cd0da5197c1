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

A row of zeros is padding (no modality measures exact zeros throughout), a row of NaN a
picture without a face. In L2 zeros became some constant: there the rows at the end that
equal each other are padding, and imputed rows cannot be found.

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

import dataclasses
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from extract import importing
from extract.backends import geometry
from extract.importing import layouts
from extract.networks import weights
from tqa_jax import cli, schema

_MISSING = -1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(importing.Given):
    """The command line."""

    pickle: pathlib.Path
    """The file to read."""
    score_range: cli.Repeated[tuple[str, ...]] = ()
    """LOW,HIGH: lowest and highest score of all tasks, or TASK=LOW,HIGH of one; may be
    given again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return cli.main(_run, Options, arguments)


def _run(options: Options) -> None:
    for line in convert(options):
        print(line)


def convert(options: Options) -> list[str]:
    """Writes the data set of a pickle.

    Returns:
        What was done and what to know of it, one line each.

    Raises:
        schema.InputError: the file is none of the three layouts, or is refused.
    """
    path, ranges = options.pickle, _ranges(options.score_range)
    file = layouts.read(path)
    standardised = file.layout == "L2"

    def measured(rows: np.ndarray) -> np.ndarray:
        """Returns True for rows that are neither padding nor without a face."""
        mask = np.isfinite(rows).any(axis=-1)
        if not standardised:
            return mask & (np.nan_to_num(rows) != 0).any(axis=-1)
        same = (rows == rows[-1:]).all(axis=-1)  # zeros that the scaling moved
        padded = len(rows) if same.all() else int(np.argmin(same[::-1]))
        if padded > 1:
            mask[-padded:] = False
        return mask

    notes: list[str] = []
    samples = [
        sample
        for sample in file.samples
        # `syncnet` has no rows of its own.
        if any(measured(r).any() for k, r in sample.features.items() if k != "syncnet")
    ]
    if not samples:
        raise schema.InputError(f"{path} has no clip with a measured row")
    if len(samples) < len(file.samples):
        empty = {s.clip for s in file.samples} - {s.clip for s in samples}
        notes.append(f"left out, no measured row: {', '.join(sorted(empty))}")
    units = [s.features["au"] for s in samples if "au" in s.features]
    scaled = not standardised and all(
        rows.shape[-1] == len(geometry.UNITS)
        and geometry.undo_scaling(rows[measured(rows)])[1].all()
        for rows in units
    )
    if units and not scaled and not standardised:
        notes.append(
            "action units are not rows over their own maximum: kept as they are"
        )

    def features(sample: importing.Sample) -> dict[str, np.ndarray]:
        """Returns rows up to the last measured one, NaN in those that were not."""
        result = {}
        for key, rows in sample.features.items():
            if key != "syncnet":
                mask = measured(rows)
                rows = np.where(mask[:, None], rows, np.nan)
                if key == "au" and scaled:
                    rows, _ = geometry.undo_scaling(rows)
                end = np.max(np.flatnonzero(mask) + 1, initial=0)
                result[layouts.MODALITIES[key][0]] = rows[:end]
        if "syncnet" in sample.features:
            count = max(map(len, result.values()))
            result["sync"] = np.tile(sample.features["syncnet"], (count, 1))
        return result

    of = schema.Schema(
        _modalities(samples, scaled, standardised), _tasks(path, file.ranges, ranges)
    )
    notes += _mark_missing(path, samples, of.tasks, ranges)
    if any(sample.source == sample.clip for sample in samples):
        notes.append("the file has no clip ids: every clip is taken as its own source")
        if options.folds is not None:
            raise schema.InputError(
                f"{path} has no clip ids, so that splits by source cannot be drawn; "
                "leave out --folds"
            )
    counts = importing.write(
        options,
        samples,
        of,
        features,
        kind="imported",
        tool="extract.pickles",
        file=path.name,
        sha256=weights.sha256(path),
        layout=file.layout,
        time_axis="none: rows are those of the file, at a rate that it does not say "
        "and that differs between modalities; fps is nominal",
        padding=f"{'equal rows at the end' if standardised else 'rows of zeros'} "
        "masked; the length was not stored",
        notes=notes,
    )
    return [
        *notes,
        f"layout {file.layout}: {len(samples)} clips ({counts})",
        f"data set: {options.out}",
    ]


def _modalities(
    samples: Sequence[importing.Sample], scaled: bool, standardised: bool
) -> tuple[schema.Modality, ...]:
    """Describes the modalities that any sample has, in our order."""
    widths = {k: r.shape[-1] for s in reversed(samples) for k, r in s.features.items()}
    made = []
    for key, (name, text) in layouts.MODALITIES.items():
        backend, version = "original", "standardised" if standardised else "raw"
        if standardised:
            text += "; imputed and standardised with statistics of each split"
        if key == "au" and scaled:
            backend, version = "geometry", geometry.VERSION
            text = geometry.DESCRIPTION + "; mesh of Face Mesh"
        if key in widths:
            made.append(
                schema.Modality(name, widths[key], backend, version, description=text)
            )
    return tuple(made)


def _tasks(
    path,
    usual: Mapping[str, tuple[float, float]],
    ranges: Mapping[str, tuple[float, float]],
) -> tuple[schema.Task, ...]:
    """Returns the tasks of the file, in the usual order."""
    known = {task.name: task.description for task in schema.TASKS}
    order = [n for n in known if n in usual] + sorted(set(usual) - set(known))
    if unknown := set(ranges) - {"", *usual}:
        raise schema.InputError(
            f"--score_range names the task {min(unknown)!r}; {path} has "
            f"{', '.join(order)}"
        )
    limits = {n: ranges.get(n, ranges.get("", usual[n])) for n in order}
    return tuple(schema.Task(n, *limits[n], known.get(n, "")) for n in order)


def _mark_missing(
    path,
    samples: Sequence[importing.Sample],
    tasks: Sequence[schema.Task],
    ranges: Mapping[str, tuple[float, float]],
) -> list[str]:
    """Makes NaN of labels that are missing; returns what to know of them."""
    notes = []
    for task in tasks:
        legal = task.low <= _MISSING <= task.high
        stated = task.name in ranges or "" in ranges
        marked = 0
        for sample in samples:
            label = sample.labels.get(task.name, math.nan)
            if label == _MISSING and not (legal and stated):
                sample.labels[task.name] = math.nan
                marked += 1
            elif label < task.low or label > task.high:
                raise schema.InputError(
                    f"{path}: {task.name} of {sample.clip!r} is {label:g}; expected "
                    f"{task.low:g} to {task.high:g}: --score_range={task.name}="
                    "LOW,HIGH gives other limits"
                )
        if legal and marked:
            notes.append(
                f"{marked} labels of {task.name} are -1 and taken as missing, though "
                f"-1 is a score too; --score_range={task.name}={task.low:g},"
                f"{task.high:g} keeps them"
            )
    return notes


def _ranges(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    parts = [text.rpartition("=") for text in texts]
    return {task: importing.score_range(limits) for task, _, limits in parts}


if __name__ == "__main__":
    sys.exit(main())
