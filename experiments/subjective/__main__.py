"""Studies with human raters: `python -m experiments.subjective COMMAND`.

The one thing to know: `make` writes a folder with a page, raters open it and send back
the CSV that it gives them, and `analyse` says what these are worth. `plan` tells before
how many raters it takes, and `simulate` whether the analysis finds a known truth.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from tqa_jax import cli

_COMMANDS = {
    "make": ("make", "make the page of a study out of clips"),
    "analyse": ("analysis", "analyse the answers of the raters"),
    "simulate": ("simulation", "simulate raters and see if the analysis is right"),
    "plan": ("planning", "how many raters and pairs a study needs"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Args:
        arguments: of the command line, without the program's name; default those of
            the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = cli.parser(
        prog="python -m experiments.subjective",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", parser_class=cli.parser
    )
    for name, (file, text) in _COMMANDS.items():
        if arguments[:1] != [name]:
            commands.add_parser(name, help=text)
            continue
        module = importlib.import_module(f"experiments.subjective.{file}")
        command = commands.add_parser(
            name,
            help=text,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    return cli.run(lambda: options.run(options))


if __name__ == "__main__":
    sys.exit(main())
