r"""Compares pre-training on planted flaws with none, at shares of the labels.

    python -m experiments.pretrain --data=data/mine --pretrain=data/planted \
        --seeds=5 --out=studies/pretrain

`--pretrain` is a set with the same features and labels that cost nothing, as
`extract.degrade` and `extract.run` make it. Without `--data` both are demo sets, of
other people; then the labels of both follow from the flaws by the same formula, so that
what is found is an upper bound. Each seed pre-trains a network and fine-tunes it from
there, with the preprocessing of the pre-training; the other case starts afresh. Both
have the same labelled clips and as many steps, and are tuned alike, fixed task weights
included; a share repeats its clips. Validation keeps all its labels at every share.
`--out` needs about the space of the data set for each seed and share.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.studying import by_seed, command, derived, results, shares, trials
from tqa_jax import cli, comparison, records, schema

_ALONE, _PRETRAINED = "labels alone", "pre-trained"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(command.Given):
    """The command line."""

    pretrain: pathlib.Path | None = None
    """Data set to pre-train on (default: another demo set, for the demo)."""
    shares: str | None = None
    """Per cent of the labels (default: 10,25,50,100; quick: 25)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(_run, Given, arguments)


def _run(options: command.Options) -> None:
    usual = "25" if options.quick else "10,25,50,100"
    asked = shares.parse(options.given.shares or usual)
    counts = shares.count(options.data)
    source = options.given.pretrain or _demo(options)
    planted, left_out = fitting(source, options.data, options.out / "data" / "pretrain")
    starts = {
        run.seed: run
        for run in trials.run(
            options.base,
            {"pre-training": {"weighting.name": "fixed", "data.path": str(planted)}},
            seeds=by_seed.seeds(options),
            folder=options.out / "pretraining",
        )["pre-training"]
    }
    reference = trials.tuned_fixed(options)
    rate = options.base.optim.learning_rate

    def cases(seed: int) -> Mapping[str, trials.Case]:
        found = {}
        for share, kept in shares.draw(counts, asked, seed=seed).items():
            place = options.out / "data" / f"{share}-{seed}"
            data = shares.only(options.data, place, kept)
            alone = reference.but({"data.path": str(data)})
            found[f"{_ALONE}, {share} %"] = alone
            found[f"{_PRETRAINED}, {share} %"] = alone.but(
                {"train.start_from": str(starts[seed].folder)},
                # What is learned already may want a smaller rate.
                {"optim.learning_rate": ("log", rate / 10, rate)},
            )
        return found

    tuned, trained = by_seed.study(options, cases)
    outcomes = trials.outcomes(trained)
    lines = {
        kind: {share: f"{kind}, {share} %" for share in asked}
        for kind in (_ALONE, _PRETRAINED)
    }
    references = {lines[_PRETRAINED][share]: lines[_ALONE][share] for share in asked}
    rows = by_seed.compare(outcomes, references)
    _count(rows, lines, counts, options.seeds)
    before = [
        comparison.average(starts[seed].outcome.results, "srcc")
        for seed in options.seeds
    ]
    results.write(
        options,
        "pretrain",
        rows,
        table=by_seed.table(rows, "clips"),
        said=by_seed.said(options, rows) + _said(options, source, left_out, before),
        more={"tuned": tuned, "pretrain": {"path": str(source)}},
        figure=shares.figure(rows, lines, "Pre-training on planted flaws"),
    )


def fitting(
    source: pathlib.Path, rated: pathlib.Path, out: pathlib.Path
) -> tuple[pathlib.Path, int]:
    """Makes of a set one that a network for the rated set can be pre-trained on.

    It has the rated set's modalities and tasks: labels are mapped from one score range
    to the other, and a task that it lacks has none. Clips of a source that the rated
    set has in another split are left out, so that no test speaker is pre-trained on.

    Args:
        source: folder of the set to pre-train on.
        rated: folder of the rated set.
        out: folder to make.

    Returns:
        `out`, and how many clips were left out.

    Raises:
        InputError: when features were measured otherwise, or no task is common.
    """
    theirs, mine = schema.load(source), schema.load(rated)
    known = {one.name: one for one in theirs.schema.modalities}
    for one in mine.schema.modalities:
        if known.get(one.name) != one:
            other = known.get(one.name)
            raise schema.InputError(
                f"--pretrain={source} has {_measured(other)}, and {rated} has "
                f"{_measured(one)}; measure both in the same way"
            )
    if theirs.schema.fps != mine.schema.fps:
        raise schema.InputError(
            f"--pretrain={source} has {theirs.schema.fps:g} rows a second, and {rated} "
            f"has {mine.schema.fps:g}; measure both in the same way"
        )
    columns = {task.name: k for k, task in enumerate(theirs.schema.tasks)}
    if not columns.keys() & set(mine.schema.task_names):
        raise schema.InputError(
            f"--pretrain={source} has the tasks {', '.join(columns)}; expected one of "
            f"{', '.join(mine.schema.task_names)} at least"
        )
    split_of = {
        name: key for key, split in mine.splits.items() for name in split.sources
    }
    kept = [one.name for one in mine.schema.modalities]

    def leaves(split: str, name: str) -> bool:
        return split_of.get(name, split) != split

    def change(split: str, clip: records.Clip) -> derived.Pair | None:
        if leaves(split, clip.source):
            return None
        labels = np.full(len(mine.schema.tasks), np.nan, np.float32)
        for k, task in enumerate(mine.schema.tasks):
            if task.name in columns:
                at = columns[task.name]
                was = theirs.schema.tasks[at]
                share = (clip.labels[at] - was.low) / (was.high - was.low)
                label = task.low + share * (task.high - task.low)
                labels[k] = np.clip(label, task.low, task.high)
        return split, dataclasses.replace(
            clip,
            features={name: clip.features[name] for name in kept},
            frame_mask={name: clip.frame_mask[name] for name in kept},
            labels=labels,
        )

    left_out = [
        clip.clip for split, clip in derived.pairs(source) if leaves(split, clip.source)
    ]
    made = derived.make(
        source,
        out,
        change,
        description=f"modalities and tasks of {mine.name}, without {len(left_out)} "
        "clips of sources that are in another split there",
        schema=mine.schema,
    )
    return made, len(left_out)


def _measured(one: schema.Modality | None) -> str:
    if one is None:
        return "no such modality"
    return f"{one.name} of {one.backend} {one.version} with {one.width} features"


def _demo(options: command.Options) -> pathlib.Path:
    if options.given.data:
        raise schema.InputError(
            "--pretrain=FOLDER is missing; make one of your clips with extract.degrade "
            "and extract.run"
        )
    from extract import demo

    clips = options.info.provenance["clips"]
    return demo.build(cli.cache_folder(), clips=clips, seed=1)


def _count(
    rows: list[results.Row],
    lines: Mapping[str, Mapping[int, str]],
    counts: Mapping[str, int],
    seeds: Sequence[int],
) -> None:
    """Adds to each row how many clips had labels, the mean over seeds."""
    share_of = {case: share for some in lines.values() for share, case in some.items()}
    for row in rows:
        share = share_of[row["case"]]
        row["clips"] = float(
            np.mean(
                [
                    sum(counts[name] for name in found[share])
                    for found in (
                        shares.draw(counts, (share,), seed=seed) for seed in seeds
                    )
                ]
            )
        )


def _said(
    options: command.Options,
    source: pathlib.Path,
    left_out: int,
    before: Sequence[float | None],
) -> list[str]:
    info = schema.load(source)
    there = [value for value in before if value is not None]
    reached = f" (mean test SRCC {np.mean(there):.3f})" if there else ""
    found = [
        f"Pre-training{reached}: {info.splits['train'].clips} training clips of "
        f"{info.name}, {left_out} clips left out because of their source. Its labels: "
        f"{info.provenance.get('description', 'of unknown origin')}. A pre-trained "
        "case has the steps of its pre-training on top. Validation keeps all its "
        "labels, so that a small share is better off than it would be alone."
    ]
    if options.info.provenance.get("kind") == "degradation":
        found.append(
            f"The labels of {options.info.name} are computed from planted flaws too, "
            "and no opinions: what pre-training gains here is an upper bound."
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
