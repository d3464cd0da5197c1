r"""Asks whether scores of a good clip stay when it is only stored in another way.

    python -m experiments.invariances --clips=clips/ --out=studies/invariances

Every clip is encoded again in each of the ways below, at rates that people do not mind,
and scored. `invariances.csv` has for each way and task the mean change of the score,
its 95 % interval over clips, and the share of clips that change by at most 0.15.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from tqa_jax import cli, extraction, output, schema, score, scorer, statistics

with cli.imports():
    from extract import backends, files
    from extract.transcode import Way, encode

LIMIT = 0.15
"""Change of a score that nobody needs to mind."""


WAYS = {
    "H.264 crf 23": Way(options=(("crf", "23"), ("preset", "medium"))),
    "H.265 crf 26": Way("libx265", (("crf", "26"), ("x265-params", "log-level=none"))),
    "VP9 crf 30": Way("libvpx-vp9", (("crf", "30"), ("b", "0"), ("cpu-used", "5"))),
    "AAC 128 kbit/s": Way(audio="aac", bit_rate=128_000, suffix=".mp4"),
    "MP3 128 kbit/s": Way(audio="libmp3lame", bit_rate=128_000, audio_rate=44_100),
    "Opus 64 kbit/s": Way(audio="libopus", bit_rate=64_000, audio_rate=48_000),
    "short side 256": Way(side=256),
    "short side 512": Way(side=512),
    "short side 1080": Way(side=1080),
    "23.976 fps": Way(fps=Fraction(24_000, 1001)),
    "30 fps": Way(fps=Fraction(30)),
    "60 fps": Way(fps=Fraction(60)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    clips: pathlib.Path
    """Folder of good clips."""
    out: pathlib.Path
    """Folder for the results; the encoded clips stay there."""
    scorer: pathlib.Path = pathlib.Path(scorer.DEFAULT)
    """What `python -m tqa_jax.export` wrote (default: the packaged scorer)."""
    num_workers: cli.Count | None = None
    """Processes that measure clips; without it, as many as cores and free memory
    allow."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return cli.main(_run, backends.command_line(Options, choices=False), arguments)


def _run(options: Options) -> None:
    paths = files.videos(options.clips)
    if not paths:
        raise schema.InputError(f"no video in {options.clips}")
    judge = scorer.load(options.scorer)
    measured = extraction.options(judge.schema, **backends.given(options))
    every = {"as it is": list(paths)}
    for name, way in WAYS.items():
        folder = options.out / name.replace("/", " per ")
        folder.mkdir(parents=True, exist_ok=True)
        every[name] = []
        for path in paths:
            copy = folder / (path.stem + way.suffix)
            if not copy.exists():
                with output.atomic(copy) as part:
                    encode(path, part, way)
            every[name].append(copy)
    results: list[dict] = []
    score.score_files(
        judge,
        [path for some in every.values() for path in some],
        extraction_options=measured,
        num_workers=options.num_workers,
        take=results.append,
    )
    tasks = [task["name"] for task in judge.schema["tasks"]]
    scores = np.array(
        [
            [one["scores"][t]["value"] if "scores" in one else np.nan for t in tasks]
            for one in results
        ]
    ).reshape(len(every), len(paths), len(tasks))
    rows = table(dict(zip(every, scores, strict=True)), tasks)
    cells = [list(map(_text, row.values())) for row in rows]
    text = output.table(list(rows[0]), cells)
    output.write(options.out / "invariances.csv", text.encode())
    for line in cells:
        print("  ".join(f"{cell:>16}" for cell in line))


def table(scores: dict[str, np.ndarray], tasks: Sequence[str]) -> list[dict]:
    """Compares the scores of each way (clips, tasks) with those of the first."""
    first, *ways = scores
    rows = []
    for way in ways:
        for k, task in enumerate(tasks):
            change = scores[way][:, k] - scores[first][:, k]
            change = change[np.isfinite(change)]
            counts = statistics.resample_sources(range(len(change)))
            means = counts @ change / counts.sum(axis=1)
            low, high = statistics.interval(means[1:])
            rows.append(
                {
                    "way": way,
                    "task": task,
                    "clips": len(change),
                    "change": float(change.mean()),
                    "low": low,
                    "high": high,
                    "within": float(np.mean(np.abs(change) <= LIMIT)),
                }
            )
    return rows


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
