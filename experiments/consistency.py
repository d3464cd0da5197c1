"""Compares ways to keep the tasks of a clip consistent, and none.

    python -m experiments.consistency --data=data/mine --seeds=5 --out=studies/agree

`std` pulls the scores of a clip together, `corr` and `corr_target` look at correlations
between tasks over a batch, `cov` at the variance of scores. Every mode's weight is
tuned; weights of the tasks are fixed, and tuned in every case. The first row has no
consistency.
"""

import sys
from collections.abc import Sequence

from experiments.studying import cases, command, trials
from tqa_jax import regularizers, schema


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(_run, arguments=arguments)


def _run(options: command.Options) -> None:
    reference = trials.tuned_fixed(options)
    tasks = options.info.schema.task_names
    without = options.base.consistency.exclude
    if len([name for name in tasks if name not in without]) < 2:
        raise schema.InputError(
            f"{options.data} has the tasks {', '.join(tasks)}; consistency compares "
            f"two or more beside {', '.join(without)}"
        )
    found = {"none": reference.but({"consistency.weight": 0.0})}
    for mode in regularizers.MODES:
        found[mode] = reference.but(
            {"consistency.mode": mode},
            {"consistency.weight": ("log", 0.01, 0.5)},
        )
    cases.study(options, "consistency", "Consistency of the tasks", found)


if __name__ == "__main__":
    sys.exit(main())
