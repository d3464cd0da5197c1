"""Compares ways to bring the modalities together.

    python -m experiments.fusion --data=data/mine --seeds=5 --out=studies/fusion

Both paths with their mean are the first row, fixed task weights tuned as in all rows;
path A is a concatenation, path B a transformer over modality tokens, the gate learns
how to weigh the two. `late only` has no attention between modalities before pooling and
cannot see synchrony; `early` fuses before time attention.
"""

import sys
from collections.abc import Sequence

from experiments.studying import cases, command, trials


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(_run, arguments=arguments)


def _run(options: command.Options) -> None:
    reference = trials.tuned_fixed(options)
    found = {
        "both, mean": reference.but({"model.paths": "both", "model.gate": False}),
        "both, gate": reference.but({"model.paths": "both", "model.gate": True}),
        "path A": reference.but({"model.paths": "a"}),
        "path B": reference.but({"model.paths": "b"}),
        "late only": reference.but({"model.cross_layers": 0, "model.gate": False}),
        "early": reference.but({"model.topology": "early"}),
    }
    cases.study(options, "fusion", "Fusion of the modalities", found)


if __name__ == "__main__":
    sys.exit(main())
