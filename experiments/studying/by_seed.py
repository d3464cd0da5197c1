"""Cases whose data, or whose start, are another one for every seed.

The one thing to know: a seed draws which clips have labels, or trains the teacher, and
all cases of that seed share it. So differences between cases stay paired, and their
spread over seeds includes that of the draw. Tuning has a draw of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.studying import command, figures, results, trials
from tqa_jax import comparison, statistics

Cases = Callable[[int], Mapping[str, trials.Case]]
TUNING = 1_000_000
"""Seed of the data that settings are tuned on; it takes part in no comparison."""


def seeds(options: command.Options) -> tuple[int, ...]:
    """Seeds for which data are needed: those of the runs, and that of the tuning."""
    return options.seeds if options.draws == 1 else (*options.seeds, TUNING)


def study(
    options: command.Options, cases: Cases, *, folder: str = ""
) -> tuple[dict[str, trials.Changes], dict[str, list[trials.Trained]]]:
    """Tunes cases and trains them with every seed.

    Args:
        options: what the study was asked for.
        cases: for a seed; names and ranges are the same for all.
        folder: under `--out`, for studies that have several rounds.

    Returns:
        What was tuned of each case, and its runs in the order of the seeds.
    """
    place = options.out / folder
    at_tuning = cases(seeds(options)[-1])
    chosen = trials.tune(
        options.base, at_tuning, draws=options.draws, folder=place / "tuning"
    )
    tuned = {
        name: {key: chosen[name][key] for key in case.ranges if key in chosen[name]}
        for name, case in at_tuning.items()
    }
    trained: dict[str, list[trials.Trained]] = {name: [] for name in at_tuning}
    for seed in options.seeds:
        now = {
            name: {**case.changes, **tuned[name]} for name, case in cases(seed).items()
        }
        found = trials.run(
            options.base,
            now,
            seeds=(seed,),
            folder=place / "runs" / str(seed),
            traced=trials.traced(at_tuning),
        )
        for name, runs in found.items():
            trained[name] += runs
    return tuned, trained


def compare(
    outcomes: Mapping[str, Sequence[comparison.Outcome]],
    references: Mapping[str, str],
) -> list[results.Row]:
    """Compares cases, each with its own reference.

    Args:
        outcomes: what became of the runs of each case.
        references: case that each is compared with; one without is only described.

    Returns:
        A row a case as from `results.compare`, with its `reference`; p values are
        corrected by Holm over all comparisons.
    """
    rows = []
    for name, mine in outcomes.items():
        other = references.get(name)
        both = [*outcomes[other], *mine] if other else list(mine)
        row = comparison.compare(both)[-1]
        # The rank among two says nothing.
        rows.append({"case": name, "reference": other or ""} | row | {"rank": None})
    statistics.correct(rows, ("p_seeds", "p_clips"))
    for row in rows:
        row["verdict"] = results.verdict(row) if row["reference"] else ""
    return rows


def add(
    rows: Sequence[results.Row],
    outcomes: Mapping[str, Sequence[comparison.Outcome]],
    references: Mapping[str, str],
    column: str,
) -> None:
    """Adds a second comparison to rows, as text: its difference and its verdict.

    Args:
        rows: from `compare`.
        outcomes: what became of the runs of each case.
        references: what each case is compared with; p values are corrected by Holm
            over these.
        column: to add.
    """
    for row, other in zip(rows, compare(outcomes, references), strict=True):
        text = difference(other)
        row[column] = f"{text}, {other['verdict']}" if text else None


def table(rows: Sequence[results.Row], *columns: str) -> str:
    """The rows of `compare` as Markdown, with further columns of theirs."""
    return results.markdown(
        [
            {
                "case": row["case"],
                "seeds": row["seeds"],
                **{
                    metric.upper(): _spread(row, metric)
                    for metric in ("srcc", "plcc", "rmse")
                },
                "compared with": row["reference"] or None,
                "difference": difference(row),
                "p (seeds)": row["p_seeds"],
                "p (clips)": row["p_clips"],
                "verdict": row["verdict"] or None,
                **{column: row[column] for column in columns},
            }
            for row in rows
        ]
    )


def difference(row: results.Row) -> str | None:
    """The difference of a row with its interval."""
    if row["difference"] is None:
        return None
    if row["low"] is None:
        return f"{row['difference']:+.3f}"
    return "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row)


def said(options: command.Options, rows: Sequence[results.Row]) -> list[str]:
    """Says how cases were compared, and how each comparison came out."""
    tries = f"{options.draws} settings" if options.draws > 1 else "no other settings"
    found = [
        f"{len(options.seeds)} seeds a case, each after {tries} tried by validation. "
        "Differences of the mean SRCC over tasks are to the case named beside them, "
        "paired over seeds (p of a t-test) and over test clips (95 % interval and p of "
        "a bootstrap of sources), corrected by Holm over all of them."
    ]
    meanings = {
        "better": "{case} is better than {reference}.",
        "worse": "{case} is worse than {reference}.",
        "no difference": "{case}: no difference to {reference} that these runs show.",
        "unclear": "{case}: unclear, one of two tests tells it from {reference}.",
        "too few": "{case}: too few seeds or sources to tell from {reference}.",
    }
    return found + [
        meanings[row["verdict"]].format(**row) for row in rows if row["reference"]
    ]


def figure(
    rows: Sequence[results.Row],
    outcomes: Mapping[str, Sequence[comparison.Outcome]],
    title: str,
) -> Any:
    """Draws the cases and their differences."""
    found = figures.differences(rows, outcomes, title)
    found.axes[1].set_xlabel(
        "difference to the case's reference, 95 % interval over sources"
    )
    return found


def _spread(row: results.Row, metric: str) -> str | None:
    if row[metric] is None:
        return None
    spread = row[f"{metric}_sd"]
    return f"{row[metric]:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
