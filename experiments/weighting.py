"""Compares task weightings and gradient surgeries with fixed weights that were tuned.

    python -m experiments.weighting --data=data/mine --seeds=5 --out=studies/weighting

Every case is tuned over as many settings as the fixed weights: the learning rate, and
its own numbers. `equal` are fixed weights of 1.
"""

import sys
from collections.abc import Sequence

from experiments.studying import cases, command, trials


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(_run, arguments=arguments)


def _run(options: command.Options) -> None:
    rate = trials.rate_range(options.base)
    tasks = options.info.schema.task_names
    fixed = trials.tuned_fixed(options)
    equal = trials.Case(fixed.changes, rate)

    def weighting(name: str, **ranges: trials.Range) -> trials.Case:
        own = {f"weighting.{name}.{key}": value for key, value in ranges.items()}
        return trials.Case({"weighting.name": name}, rate | own)

    def surgery(name: str) -> trials.Case:
        return equal.but({"surgery.name": name})

    found = {
        "fixed, tuned": fixed,
        "equal": equal,
        "variance": weighting("variance"),
        "uncertainty": weighting("uncertainty", learning_rate=("log", 1e-4, 1e-2)),
        "learned": weighting("learned", learning_rate=("log", 1e-4, 1e-2)),
        "gradnorm": weighting(
            "gradnorm", alpha=("uniform", 0.1, 2.0), learning_rate=("log", 3e-3, 1e-1)
        ),
        "gradnorm_simple": weighting(
            "gradnorm_simple", alpha=("uniform", 0.1, 2.0), step=("log", 1e-3, 1e-1)
        ),
        "dwa": weighting("dwa", temperature=("log", 0.5, 8.0)),
        "rlw": weighting("rlw"),
        "famo": weighting("famo", learning_rate=("log", 3e-3, 1e-1)),
        "stch": weighting("stch", mu=("log", 0.1, 10.0)),
        "pcgrad": surgery("pcgrad"),
        "aligned": surgery("aligned"),
    }
    if "lip_sync" in tasks and len(tasks) > 1:
        found["lip_sync 1000"] = equal.but({"weighting.fixed.values.lip_sync": 1000.0})
    cases.study(options, "weighting", "Task weightings", found)


if __name__ == "__main__":
    sys.exit(main())
