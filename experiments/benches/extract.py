"""How fast clips are measured: rate by stage, Beam against workers, networks.

The one thing to know: real clips are taken where there are some (the folder
`data/clips` of `TQA_SHARED`), else talking faces that the project renders, which are
smaller pictures. Every core has a worker, and the backends are the weight-free ones.
Times are those of whole jobs, the start of their processes included; clips of a few
seconds make that start a large part of them, so a long job is faster. The networks'
rows are those of the bench `networks`.
"""

import functools
import importlib.util
import os
import pathlib
import sys
import tempfile

import numpy as np

from experiments import timing
from experiments.benches import networks
from extract import build, demo, encode, measure
from extract.rendering import demo_plan
from tqa_jax import machine, schema

_MOST_ROUNDS = 3
_RENDERED = 6


def run(rounds: int, *, quick: bool) -> list[timing.Table]:
    """Measures the clips anew in every round, by workers and by Beam.

    Raises:
        schema.InputError: without Beam.
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise schema.InputError("there is no apache_beam; pip install -e '.[beam]'")
    from extract import beam

    cores = machine.cores()
    options = [
        f"--direct_num_workers={cores}",
        "--direct_running_mode=multi_processing",
        "--default_sdk_harness_log_level=ERROR",
    ]
    ways = {
        "workers": build.local,
        "Beam, DirectRunner": functools.partial(beam.measured, pipeline=options),
    }
    tallies: dict[str, list[measure.Tally]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        paths, kind = _clips(folder, few=quick)
        items = [build.Item(path, path.stem, path.stem, "train", {}) for path in paths]
        for number in range(min(rounds, _MOST_ROUNDS)):
            for way, run in ways.items():
                summary = build.build(
                    items,
                    folder / f"{way}-{number}",
                    tasks=schema.TASKS,
                    name="bench",
                    provenance={"kind": "degradation", "description": "a benchmark"},
                    run=run,
                )
                tallies[way].append(summary.tally)
    ours = tallies["workers"]
    seconds = ours[0].video_seconds
    speeds = [seconds / one.wall_seconds for one in ours]
    rates = {name: [one.rates()[name] for one in ours] for name in ours[0].rates()}
    tables = [
        timing.Table(
            f"E3: extraction of {ours[0].measured} {kind} clips, {seconds:.0f} s of "
            f"video, {cores} workers",
            [
                {
                    "times_real_time": float(np.median(speeds)),
                    "low": min(speeds),
                    "high": max(speeds),
                    "limited_by": ours[0].limit(),
                    "rejected": ours[0].rejected,
                }
            ],
        ),
        timing.Table(
            "E3: rows a second of each stage, as if it were the only one",
            [
                {"stage": stage, "rows_a_second": float(np.median(values))}
                for stage, values in rates.items()
            ],
        ),
        timing.compare(
            f"E4: the same clips on Apache Beam, {cores} workers",
            {
                way: np.array([one.wall_seconds for one in done])
                for way, done in tallies.items()
            },
            "workers",
        ),
    ]
    if importlib.util.find_spec("torch") is None:
        print("E1 and E2 need PyTorch: pip install -e '.[bench]'", file=sys.stderr)
        return tables
    return [*tables, *networks.run(rounds, quick=quick)]


def _clips(folder: pathlib.Path, *, few: bool) -> tuple[list[pathlib.Path], str]:
    """Videos to measure, and what they are."""
    real = pathlib.Path(os.environ.get("TQA_SHARED", "../shared")) / "data" / "clips"
    found = sorted(
        path for path in real.glob("*") if path.suffix in (".mp4", ".mpg", ".avi")
    )
    if found:
        return (found[:2] if few else found), "real"
    for item in demo_plan.plan(_RENDERED)[: 2 if few else _RENDERED]:
        path = folder / f"{item.seed}.mp4"
        encode.write(path, *demo.make_clip(item))
        found.append(path)
    return found, "rendered"
