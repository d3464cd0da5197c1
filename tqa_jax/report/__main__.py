"""One page about a finished run: `python -m tqa_jax.report --workdir=RUN`.

It has results with intervals, curves, errors, data audit, model card and settings. It
loads nothing, holds no script and can be printed. Exit status: 0 when the page was
written, 2 when it was not.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from tqa_jax import cli, output
from tqa_jax.report import page


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    workdir: pathlib.Path
    """Folder of the run."""
    out: pathlib.Path | None = None
    """File to write (default: WORKDIR/report.html)."""
    clips: pathlib.Path | None = None
    """Folder of the videos, for pictures of the worst clips (default: none)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return cli.main(_run, Options, arguments)


def _run(options: Options) -> None:
    out = options.out or options.workdir / "report.html"
    output.write(out, page.build(options.workdir, clips=options.clips))
    print(f"{out} ({out.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    sys.exit(main())
