"""What a finished run's scores depend on: `python -m experiments.interpret`.

The one thing to know: everything is measured on the test split, on which nothing was
chosen, and nothing here changes the run. The report shows it when it is there.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence

from experiments.interpreting import case as cases
from experiments.interpreting import figure, outcome
from tqa_jax import cli, output

_REPETITIONS, _RESAMPLES, _SHOWN = 10, 2000, 3
_QUICK = (2, 200, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Args:
        arguments: of the command line, without the program's name; default those of
            the process.
    """
    parser = cli.parser(
        prog="python -m experiments.interpret",
        description=(
            "Measures, on the test split, how much worse a finished run scores when a "
            "modality or a group of features comes from another clip or is hidden, "
            "where in a clip its attention goes, and what hiding 0.4 s changes. Writes "
            "interpretation.json, .csv, .md, .png and interpretation_over_time.csv."
        ),
        epilog="Exit status: 0 when it was written, 2 when the run cannot be used.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workdir", required=True, type=cli.path, help="folder of the run"
    )
    parser.add_argument(
        "--data",
        type=cli.path,
        help="folder of its data set (default: where it was in training)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        help=f"draws of other clips (default: {_REPETITIONS}; quick: {_QUICK[0]})",
    )
    parser.add_argument(
        "--out",
        type=cli.path,
        help="folder to write to (default: WORKDIR, where the report looks)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{_QUICK[0]} draws, {_QUICK[1]} resamples, fewer clips over time",
    )
    options = parser.parse_args(arguments)
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; expected at least 1")
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
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
