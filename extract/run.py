r"""Makes a data set out of a folder of clips and a labels CSV.

    python -m extract.run --clips=my_clips/ --labels=labels.csv --out=data/mine

Exit status 0 means that every clip is in the set, 3 that some
were rejected (`rejected.csv` in the set says which and why), 2 that the input cannot
be used and nothing was measured or made. The same command goes on after a stop.
"""

import dataclasses
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Literal

import tqa_jax
from tqa_jax import cli, records

with cli.imports():
    from extract import backends, build, clip, importing, jobs, labels, landmarks
    from extract.degrading import degrade_plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(clip.Given):
    """The command line, without the backends' options."""

    clips: pathlib.Path
    """Folder of video files, at any depth."""
    labels: pathlib.Path
    """CSV with the header clip,source,split,<task>,...; source and split may be left
    out, an empty cell is a missing score."""
    out: pathlib.Path
    """Folder of the data set to make; one that was made before is replaced."""
    features: pathlib.Path | None = None
    """Folder where what is measured is kept by clip and backend, so that another data
    set measures only what is new (default: <out>.features)."""
    name: str = ""
    """Name of the data set (default: made from --out)."""
    device_batch: cli.Count | None = None
    """Rows that a network sees at once (default: 32; more for a GPU)."""
    dtype: Literal[records.DTYPES] = "float16"
    """How features are stored."""
    score_range: str = "1,5"
    """LOW,HIGH: lowest and highest score."""
    empty: str = ""
    """What a cell of the labels without a score may hold besides nothing, as NA."""
    network_dtype: Literal[backends.DTYPES] = "float32"
    """What networks compute in."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = backends.command_line(Options)
    return cli.main(_run, options, arguments, stopped=jobs.STOPPED)


def _run(options: Options) -> int:
    return make("extract.run", options, build.local)


def make(command: str, given: Options, measure: Callable[..., dict[str, str]]) -> int:
    """Makes the data set for a command and returns its exit status.

    Args:
        command: its module.
        given: its options.
        measure: as `build.local`.
    """
    low, high = importing.score_range(given.score_range)
    options = backends.options(
        network_dtype=given.network_dtype,
        max_seconds=given.max_seconds,
        landmarker=given.landmarker,
        **backends.given(given),
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


def _shown(name: str) -> str:
    """Returns a name on one line that any terminal can print."""
    return name if name.isprintable() else repr(name)


def _name(out: pathlib.Path) -> str:
    """Makes a data set name of a folder's name."""
    name = re.sub(r"\W+", "_", out.absolute().name).strip("_")
    return name if name.isidentifier() else f"set_{name}"


if __name__ == "__main__":
    sys.exit(main())
