"""A study that compares cases: tune each, train each over seeds, compare, write.

The one thing to know: the first case is what the others are compared with, and it is
fixed task weights, tuned with as many tries as each of the others.
"""

from collections.abc import Callable, Mapping

from experiments.studying import command, figures, results, trials


def study(
    options: command.Options,
    name: str,
    title: str,
    cases: Mapping[str, trials.Case],
    *,
    add: Callable[[list[results.Row]], None] = lambda rows: None,
    said: Callable[[list[results.Row]], list[str]] = lambda rows: [],
) -> list[results.Row]:
    """Runs the study and writes its results.

    Args:
        options: what it was asked for.
        name: of the study.
        title: of its figure.
        cases: what to compare with the first of them.
        add: adds columns of the study's own to the rows.
        said: further sentences, from the rows.

    Returns:
        The rows of the table.
    """
    chosen = trials.tune(
        options.base, cases, draws=options.draws, folder=options.out / "tuning"
    )
    trained = trials.run(
        options.base,
        chosen,
        seeds=options.seeds,
        folder=options.out / "runs",
        traced=trials.traced(cases),
    )
    outcomes = trials.outcomes(trained)
    rows = results.compare(outcomes)
    add(rows)
    results.write(
        options,
        name,
        rows,
        table=results.compared(rows),
        said=results.summary(options, rows) + said(rows),
        more={"chosen": chosen},
        figure=figures.differences(rows, outcomes, title),
    )
    return rows
