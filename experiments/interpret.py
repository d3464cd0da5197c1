"""What a finished run's scores depend on: `python -m experiments.interpret`.

It measures, on the test split, on which nothing was chosen, how much worse the run
scores when a modality or a group of features comes from another clip or is hidden,
where in a clip its attention goes, and what hiding 0.4 s changes. It writes
interpretation.json, .csv, .md, .png and interpretation_over_time.csv, which the report
shows, and changes nothing of the run. Exit status: 0 when they were written, 2 when the
run cannot be used.
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence

from experiments.interpreting import case as cases
from experiments.interpreting import figure, outcome
from tqa_jax import cli, output

_REPETITIONS, _RESAMPLES, _SHOWN = 10, 2000, 3
_QUICK = (2, 200, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    workdir: pathlib.Path
    """Folder of the run."""
    data: pathlib.Path | None = None
    """Folder of its data set (default: where it was in training)."""
    seeds: cli.Count | None = None
    """Draws of other clips (default: 10; quick: 2)."""
    out: pathlib.Path | None = None
    """Folder to write to (default: WORKDIR, where the report looks)."""
    quick: bool = False
    """2 draws, 200 resamples in place of 2000, and fewer clips over time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return cli.main(_run, Options, arguments)


def _run(options: Options) -> None:
    cli.need("matplotlib")
    cli.prepare_jax()
    started = time.monotonic()
    case = cases.load(options.workdir, options.data)
    out = options.out or options.workdir
    out.mkdir(parents=True, exist_ok=True)
    usual = _QUICK if options.quick else (_REPETITIONS, _RESAMPLES, _SHOWN)
    repetitions, resamples, shown = usual
    found = outcome.gather(
        case,
        repetitions=options.seeds or repetitions,
        resamples=resamples,
        shown=shown,
    )
    table = outcome.markdown(found)
    print(table)
    print("\n".join(outcome.strongest(found)))
    output.write(out / "interpretation.csv", outcome.importance_csv(found))
    output.write(out / "interpretation_over_time.csv", outcome.over_time_csv(found))
    output.write(out / "interpretation.md", table)
    output.write(out / "interpretation.png", figure.draw(found))
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    output.write(out / outcome.FILE, text + "\n")  # Last: it says that all are there.
    print(f"{out / outcome.FILE} ({time.monotonic() - started:.0f} s)")
    if out == options.workdir:
        print(f"in the report: python -m tqa_jax.report --workdir={options.workdir}")


if __name__ == "__main__":
    sys.exit(main())
