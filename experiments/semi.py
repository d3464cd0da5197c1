"""Trains with few labels and many clips without: pseudo-labels and consistency.

    python -m experiments.semi --data=data/mine --seeds=5 --out=studies/semi

At each share of the labels an ensemble, trained on the labelled clips only, scores the
other training clips. Compared with training on the labels alone: `consistency`, in
which those clips have no labels and only the consistency of the scores sees them; `all
pseudo-labels`; `sure pseudo-labels`, of each task the half on which the members agree
best; and `shuffled pseudo-labels`, the control, in which clips have each other's. Every
case has as many steps and tries, and the same range for the weight of the consistency;
the last column is against training on all labels. The hidden labels of those clips are
used for nothing but the error of the pseudo-labels. Validation keeps all its labels at
every share. `--out` needs about five times the space of the data set for each seed and
share.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.studying import by_seed, command, pseudo, results, shares, trials
from tqa_jax import schema

_ALONE, _EVERYTHING = "labels alone", "all labels"
_MEMBERS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(command.Given):
    """The command line."""

    shares: str | None = None
    """Per cent of the labels (default: 10,25,50; quick: 25)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(_run, Given, arguments)


def _run(options: command.Options) -> None:
    usual = "25" if options.quick else "10,25,50"
    asked = shares.parse(options.given.shares or usual)
    counts = shares.count(options.data)
    kept = {
        seed: shares.draw(counts, asked, seed=seed) for seed in by_seed.seeds(options)
    }
    if asked[-1] == 100 or any(
        some[asked[-1]] == set(counts) for some in kept.values()
    ):
        raise schema.InputError(
            f"{asked[-1]} % of the labels leaves none of the {len(counts)} training "
            "sources without; give smaller --shares, or a larger data set"
        )
    ranges = {"consistency.weight": ("log", 0.01, 0.5)}
    reference = trials.tuned_fixed(options).but({}, ranges)

    def place(share: int, seed: int, what: str) -> pathlib.Path:
        return options.out / "data" / f"{share}-{seed}-{what}"

    def supervised(seed: int) -> Mapping[str, trials.Case]:
        found = {}
        for share, mine in kept[seed].items():
            data = shares.only(options.data, place(share, seed, "labelled"), mine)
            found[_name(_ALONE, share)] = reference.but({"data.path": str(data)})
        return found | {_EVERYTHING: reference}

    tuned, trained = by_seed.study(options, supervised, folder="supervised")
    teachers = {
        seed: _teach(options, kept[seed], seed, tuned, place)
        for seed in by_seed.seeds(options)
    }
    several = len(options.info.schema.tasks) > 1

    def semi(seed: int) -> Mapping[str, trials.Case]:
        found = {}
        for share, mine in kept[seed].items():
            said = teachers[seed][share]
            made = {"consistency": np.full_like(said.scores, np.nan)} if several else {}
            made |= {
                f"{kind} pseudo-labels": pseudo.choose(said, kind)
                for kind in pseudo.KINDS
            }
            for kind, labels in made.items():
                data = pseudo.give(
                    options.data,
                    place(share, seed, kind.split()[0]),
                    mine,
                    dict(zip(said.clips, labels, strict=True)),
                    description=kind,
                )
                found[_name(kind, share)] = reference.but({"data.path": str(data)})
        return found

    more_tuned, more_trained = by_seed.study(options, semi, folder="semi")
    outcomes = trials.outcomes(trained | more_trained)
    kinds = list(dict.fromkeys(name.rpartition(",")[0] for name in more_trained))
    order = [_name(kind, s) for s in asked for kind in (_ALONE, *kinds)]
    outcomes = {name: outcomes[name] for name in [*order, _EVERYTHING]}
    references = {_name(kind, s): _name(_ALONE, s) for s in asked for kind in kinds}
    rows = by_seed.compare(outcomes, references)
    by_seed.add(rows, outcomes, dict.fromkeys(order, _EVERYTHING), "to all labels")
    lines = {
        kind: {share: _name(kind, share) for share in asked}
        for kind in (_ALONE, *kinds)
    }
    lines[_ALONE] = lines[_ALONE] | {100: _EVERYTHING}
    tasks = options.info.schema.tasks
    error = pseudo.errors(teachers, asked, options.seeds, tasks)
    results.write(
        options,
        "semi",
        rows,
        table=by_seed.table(rows, "to all labels")
        + "\n\nPseudo-labels against the labels that were hidden:\n\n"
        + results.markdown(error),
        said=by_seed.said(options, rows)
        + _said(options, kept, counts, several=several),
        more={"tuned": tuned | more_tuned, "pseudo_labels": error},
        figure=shares.figure(rows, lines, "Clips without labels"),
    )


def _name(kind: str, share: int) -> str:
    return f"{kind}, {share} %"


def _teach(
    options: command.Options,
    kept: Mapping[int, frozenset[str]],
    seed: int,
    tuned: Mapping[str, trials.Changes],
    place: Callable[[int, int, str], pathlib.Path],
) -> dict[int, pseudo.Pseudo]:
    """Trains an ensemble at each share, tuned as labels alone are; scores the rest."""
    cases = {}
    for share, mine in kept.items():
        data = pseudo.teaching(options.data, place(share, seed, "teaching"), mine)
        cases[str(share)] = {
            **trials.tuned_fixed(options).changes,
            **tuned[_name(_ALONE, share)],
            "data.path": str(data),
            "train.members": 2 if options.quick else _MEMBERS,
        }
    found = trials.run(
        options.base,
        cases,
        seeds=(seed,),
        folder=options.out / "teachers" / str(seed),
        traced=tuple(sorted({key for some in tuned.values() for key in some})),
    )
    tasks = options.info.schema.tasks
    return {
        int(share): pseudo.read(runs[0].folder, tasks) for share, runs in found.items()
    }


def _said(
    options: command.Options,
    kept: Mapping[int, Mapping[int, frozenset[str]]],
    counts: Mapping[str, int],
    *,
    several: bool,
) -> list[str]:
    clips = {
        share: np.mean(
            [sum(counts[name] for name in kept[seed][share]) for seed in options.seeds]
        )
        for share in kept[options.seeds[0]]
    }
    found = [
        "Clips with labels, mean over seeds: "
        + ", ".join(f"{number:.0f} at {share} %" for share, number in clips.items())
        + f", of {sum(counts.values())}. Validation keeps all its labels, so that a "
        "small share is better off than it would be alone."
    ]
    if not several:
        found.append("No case `consistency`: the data set has one task.")
    return found


if __name__ == "__main__":
    sys.exit(main())
