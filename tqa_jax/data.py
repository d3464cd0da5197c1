"""Command line for data sets: `python -m tqa_jax.data audit PATH`."""

import json
import sys
from collections.abc import Sequence

from tqa_jax import audit, cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Args:
        arguments: of the command line, without the program's name; default those of
            the process.

    Returns:
        0 when the data set was read, with or without flags; 2 when it was not.
    """
    parser = cli.parser(
        prog="python -m tqa_jax.data", description="Looks into a data set."
    )
    commands = parser.add_subparsers(
        dest="command", required=True, parser_class=cli.parser
    )
    help_text = "print label and feature statistics and flag what is wrong with a set"
    command = commands.add_parser(
        "audit",
        help=help_text,
        description=(
            "Reads every clip of a data set once and prints, for each task and split: "
            "number of valid labels, mean, standard deviation, range and share of "
            "clip pairs with equal labels; the correlation between tasks on the "
            "training split; and for each modality the share of masked rows and of "
            "NaN values. Then flags what cannot be learned or evaluated."
        ),
        epilog=(
            "Exit status: 0 when the set was read, whatever was flagged; 2 when it "
            "cannot be read."
        ),
    )
    command.add_argument(
        "path", type=cli.path, metavar="PATH", help="folder that has a dataset.json"
    )
    command.add_argument(
        "--json", action="store_true", help="print JSON instead of text (default: text)"
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        report = audit.audit(options.path)
        if options.json:
            print(json.dumps(report, indent=1, allow_nan=False))
        else:
            print(audit.text(report))

    return cli.run(work)


if __name__ == "__main__":
    sys.exit(main())
