"""Looks into a data set: `python -m tqa_jax.data audit PATH`.

It reads every clip once and prints, for each task and split: number of valid labels,
mean, standard deviation, range and share of clip pairs with equal labels; the
correlation between tasks on the training split; and for each modality the share of
masked rows and of NaN values. Then it flags what cannot be learned or evaluated.

Exit status: 0 when the set was read, whatever was flagged; 2 when it cannot be read.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

from tqa_jax import audit, cli, schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    command: cli.Positional[str] = dataclasses.field(metadata={"metavar": "audit"})
    """What to do."""
    path: cli.Positional[pathlib.Path]
    """Folder that has a dataset.json."""
    json: bool = False
    """Print JSON instead of text."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return cli.main(_run, Options, arguments)


def _run(options: Options) -> None:
    if options.command != "audit":
        raise schema.InputError(f"unknown command {options.command!r}; expected audit")
    report = audit.audit(options.path)
    if options.json:
        print(json.dumps(report, indent=1, allow_nan=False))
    else:
        print(audit.text(report))


if __name__ == "__main__":
    sys.exit(main())
