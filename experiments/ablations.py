"""Takes parts out of the network, or makes them larger or smaller (A1 to A8).

    python -m experiments.ablations --data=data/mine --seeds=5 --out=studies/ablations

A1 no path A, A2 no path B, A3 no consistency, A4 dynamic weights, A5 layers of path B,
A6 depth of the encoders, A7 pooling over time, A8 activation of the heads; what
`synced` has over the older network: positions, modality embeddings, attention between
modalities, modality dropout; and time attention, which both have. The first row is the
base with fixed weights; what it has already is no row. Every row is tuned with as many
tries.
"""

import sys
from collections.abc import Sequence

from experiments.studying import cases, command, trials
from tqa_jax.models import presets


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(_run, arguments=arguments)


def _run(options: command.Options) -> None:
    reference = trials.tuned_fixed(options)
    rate = trials.rate_range(options.base)
    alpha = {"weighting.gradnorm.alpha": ("uniform", 0.1, 2.0)}
    changes = {
        "A1 no path A": {"model.paths": "b"},
        "A2 no path B": {"model.paths": "a"},
        **{f"A5 {n} layers": {"model.fusion_layers": n} for n in (2, 4, 6)},
        **{f"A6 depth {n}": {"model.depth": n} for n in (1, 2, 3)},
        **{
            f"A7 {p} pooling": {"model.pooling": p} for p in ("mean", "max", "mean_max")
        },
        **{
            f"A8 {a}": {"model.head_activation": a} for a in ("sigmoid", "tanh", "none")
        },
        "no positions": {"model.positions": False},
        "no time attention": {"model.temporal_layers": 0},
        "no modality embeddings": {"model.modality_embeddings": False},
        "no cross-modal attention": {"model.cross_layers": 0},
        "no modality dropout": {"model.modality_dropout": 0.0},
    }
    given = options.base.model.to_dict()
    base = presets.PRESETS[options.base.model.preset] | {
        name: value for name, value in given.items() if value is not None
    }
    found = {"base": reference} | {
        name: reference.but(change)
        for name, change in changes.items()
        if any(
            base[key.removeprefix("model.")] != value for key, value in change.items()
        )
    }
    found["A3 no consistency"] = reference.but({"consistency.weight": 0.0})
    found["A4 gradnorm"] = trials.Case({"weighting.name": "gradnorm"}, rate | alpha)
    found = dict(sorted(found.items(), key=lambda one: (one[0] != "base", one[0])))
    cases.study(options, "ablations", "Ablations", found)


if __name__ == "__main__":
    sys.exit(main())
