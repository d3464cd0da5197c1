"""Studies with human raters: `python -m experiments.subjective COMMAND`.

`make` writes a folder with a page out of clips, raters open it and send back the CSV
that it gives them, and `analyse` says what these are worth. `plan` tells before how
many raters it takes, and `simulate` whether the analysis finds a known truth.
"""

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from typing import Literal

from tqa_jax import cli

# By command, the module that has its `Options` and `run`.
_MODULES = {
    "make": "make",
    "analyse": "analysis",
    "simulate": "simulation",
    "plan": "planning",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line up to the command."""

    command: cli.Positional[Literal[tuple(_MODULES)]]
    """COMMAND --help says more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    command, *others = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if command not in _MODULES:
        return cli.main(lambda options: None, Options, arguments)
    module = importlib.import_module(f"experiments.subjective.{_MODULES[command]}")
    name = f"experiments.subjective {command}"
    return cli.main(module.run, module.Options, others[:-1], name=name)


if __name__ == "__main__":
    sys.exit(main())
