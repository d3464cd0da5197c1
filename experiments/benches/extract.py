"""How much faster than real time clips are measured, and which stage limits.

The one thing to know: real clips are taken where there are some (the folder
`data/clips` of `TQA_SHARED`), else talking faces that the project renders, which are
smaller pictures. Every core has a worker, and the backends are the weight-free ones.
The time is that of the whole pool, the start of its processes included; clips of a few
seconds make that start a large part of it, so a long job is faster.
"""

import os
import pathlib
import tempfile

import numpy as np

from experiments import timing
from extract import build, demo, demo_plan
from tqa_jax import schema

_MOST_ROUNDS = 3
_RENDERED = 6


def run(rounds: int, *, quick: bool) -> list[timing.Table]:
    """Measures the clips anew in every round."""
    speeds, stages = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        paths, kind = _clips(folder, few=quick)
        items = [build.Item(path, path.stem, path.stem, "train", {}) for path in paths]
        for number in range(min(rounds, _MOST_ROUNDS)):
            summary = build.build(
                items,
                folder / f"set-{number}",
                tasks=schema.TASKS,
                name="bench",
                provenance={"kind": "degradation", "description": "a benchmark"},
            )
            speeds.append(summary.video_seconds / summary.wall_seconds)
            stages.append(summary.stage_seconds)
    spent = {
        name: float(np.median([one[name] for one in stages])) for name in stages[0]
    }
    limit = max(spent, key=spent.__getitem__)
    seconds = summary.video_seconds
    return [
        timing.Table(
            f"E3: extraction of {summary.measured} {kind} clips, {seconds:.0f} s of "
            f"video, {os.cpu_count()} workers",
            [
                {
                    "times_real_time": float(np.median(speeds)),
                    "low": float(np.min(speeds)),
                    "high": float(np.max(speeds)),
                    "limited_by": limit,
                    "rejected": len(summary.rejected),
                }
            ],
        ),
        timing.Table(
            "E3: time by stage, summed over the workers",
            [
                {
                    "stage": stage,
                    "seconds": value,
                    "share": value / sum(spent.values()),
                    "ms_per_frame": 1000 * value / (seconds * schema.FPS),
                }
                for stage, value in spent.items()
            ],
        ),
    ]


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
        demo.write_video(path, *demo.make_clip(item))
        found.append(path)
    return found, "rendered"
