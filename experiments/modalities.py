"""Removes one modality at a time, and keeps one at a time.

    python -m experiments.modalities --data=data/mine --seeds=5 --out=studies/modalities

A network is trained anew without the modality; `drop` is what of the mean SRCC that
costs, in per cent of the first row's. Every row is tuned, task weights included.
"""

import sys
from collections.abc import Sequence

from experiments.studying import cases, command, results, trials
from tqa_jax import schema


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(_run, arguments=arguments)


def _run(options: command.Options) -> None:
    reference = trials.tuned_fixed(options)
    names = options.base.model.modalities or tuple(options.info.schema.widths)
    if len(names) < 2:
        raise schema.InputError(
            f"{options.data} has the modality {', '.join(names)} only; expected two or "
            "more"
        )
    found = {"all": reference}
    for name in names:
        rest = tuple(other for other in names if other != name)
        found[f"without {name}"] = reference.but({"model.modalities": rest})
    if len(names) > 2:
        for name in names:
            found[f"{name} only"] = reference.but({"model.modalities": (name,)})
    cases.study(
        options, "modalities", "Modalities removed", found, said=drops, add=drop
    )


def drop(rows: list[results.Row]) -> None:
    """Adds to each row what of the first row's SRCC it has lost, in per cent."""
    whole = rows[0]["srcc"]
    for row in rows:
        there = row["srcc"] is not None and whole
        row["drop"] = 100 * (1 - row["srcc"] / whole) if there else None


def drops(rows: list[results.Row]) -> list[str]:
    """Says the losses in a sentence."""
    lost = [
        f"{row['case']} {row['drop']:.0f} %"
        for row in rows[1:]
        if row["drop"] is not None
    ]
    return [f"Loss of the mean SRCC: {', '.join(lost)}."] if lost else []


if __name__ == "__main__":
    sys.exit(main())
