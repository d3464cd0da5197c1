"""Scores videos: `python -m tqa_jax.score clip.mp4 --scorer=scorer.npz`.

The one thing to know: clips are measured by the function that measured the training
data, and a scorer refuses features of other backends or versions. Scoring itself is
NumPy; neither JAX nor a GPU is used.
"""

import argparse
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tqa_jax import cli, extraction, machine, output, schema, score_page, scorer

_FAR = 1.0  # Distance to training features, in units of what 99 % of them are below.
_FACELESS = 0.1  # Share of rows without a face from which a person should know.
_WINDOW_SECONDS = 2.0  # Of the timeline.
_HOP_SECONDS = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Args:
        arguments: of the command line, without the program's name; default those of
            the process.

    Returns:
        0 when every clip was scored, 3 when some could not be, 2 when nothing was
        tried.
    """
    from extract import no_network

    options = _parse(arguments)

    def work() -> int:
        if options.no_network:
            no_network.enter("tqa_jax.score", arguments)
        return _run(options)

    return cli.run(work)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    with cli.imports():
        from extract import backends

        of_backends = backends.command_options(choices=False)
    parser = cli.parser(
        prog="python -m tqa_jax.score",
        description=(
            "Scores talking-face clips. One clip gives JSON with intervals, a timeline "
            "and warnings; several, or a folder, give CSV with a row each."
        ),
        epilog=(
            "Exit status: 0 when every clip was scored, 3 when some could not be "
            "(their reason is in the output), 2 when nothing was tried."
        ),
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", type=cli.path, help="video or folder"
    )
    parser.add_argument(
        "--scorer",
        required=True,
        type=cli.path,
        metavar="FILE",
        help="what `python -m tqa_jax.export` wrote",
    )
    parser.add_argument(
        "--out",
        type=cli.path,
        metavar="FILE",
        help="write scores there (default: standard output)",
    )
    parser.add_argument(
        "--html",
        type=cli.path,
        metavar="FILE",
        help="also write a page with a timeline over thumbnails of each clip",
    )
    names = []
    for option in of_backends:
        parser.add_argument(f"--{option.name}", help=option.text, **option.parsing)
        names.append(option.name)
    parser.set_defaults(backend_options=names)
    parser.add_argument(
        "--max_seconds",
        type=float,
        default=120.0,
        metavar="S",
        help="longer clips are not scored (default: 120)",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=machine.cores(),
        metavar="N",
        help="processes that measure clips (default: one a CPU core)",
    )
    parser.add_argument(
        "--no_network",
        action="store_true",
        help="run where no network can be reached, and check that (Linux)",
    )
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    cli.at_least_one(num_workers=options.num_workers)
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
        **{name: getattr(options, name) for name in options.backend_options},
    )
    tasks = [task["name"] for task in judge.schema["tasks"]]
    schema.check_names("task", tasks)
    paths = _videos(options.paths)
    results = score_files(
        judge, paths, extraction_options=measured, num_workers=options.num_workers
    )
    several = len(paths) > 1 or options.paths[0].is_dir()
    text = _csv(results, tasks) if several else _json(results[0])
    if options.out is None:
        sys.stdout.write(text.encode("utf-8", "replace").decode("utf-8"))
    else:
        output.write(options.out, text)
    if template is not None:
        page = score_page.page(
            template,
            results,
            judge.schema["tasks"],
            max_seconds=options.max_seconds,
        )
        output.write(options.html, page)
    failed = [result for result in results if "error" in result]
    for result in failed:
        print(f"{result['clip']}: not scored: {result['error']}", file=sys.stderr)
    return 3 if failed else 0


def score_files(
    judge: "scorer.Scorer",
    paths: Sequence[pathlib.Path],
    *,
    extraction_options: Any,
    num_workers: int,
) -> list[dict[str, Any]]:
    """Measures and scores clips.

    Args:
        judge: a loaded scorer.
        paths: video files.
        extraction_options: from `extraction.options`.
        num_workers: processes that measure.

    Returns:
        For each clip a dict that JSON can write: `clip`, and `error`, or `seconds`,
        `scores` (task to `value`, `low`, `high`, `spread`), `timeline`, `distance`
        and `warnings`. `low` and `high` are None without calibration.
    """
    from extract import landmarks, pool

    landmarks.check_library(landmarks.find_model(extraction_options.landmarker))
    keys = [pool.fingerprint(path, extraction_options) for path in paths]
    with tempfile.TemporaryDirectory(prefix="tqa_score_") as folder:
        kept = pathlib.Path(folder)
        done = pool.measure(
            dict(zip(keys, paths, strict=True)),
            kept,
            extraction_options,
            num_workers=num_workers,
            timeout_seconds=60 + 5 * extraction_options.max_seconds,
        )
        results = []
        for key, path in zip(keys, paths, strict=True):
            if key in done.rejected:
                results.append({"clip": str(path), "error": done.rejected[key]})
                continue
            measured = pool.load(kept, key)
            found = score_features(judge, measured.features, measured.frame_mask)
            found["warnings"] = [*measured.notes, *found["warnings"]]
            results.append({"clip": str(path), **found})
        return results


def score_features(
    judge: "scorer.Scorer",
    features: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Scores one clip's features; see `score_files` for what is returned."""
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
        }
    distance = judge.distance(features, masks)
    return {
        "seconds": rows / fps,
        "scores": scores,
        "timeline": timeline(judge, features, masks),
        "distance": distance,
        "warnings": _warnings(rows / fps, masks, distance),
    }


def timeline(
    judge: "scorer.Scorer",
    features: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Scores stretches of 2 s, one every half second.

    They are shorter than what the network was trained on: read them as where a clip
    is better or worse than elsewhere, not as scores of their own.
    """
    fps = judge.schema["fps"]
    rows = len(next(iter(masks.values())))
    width, hop = round(_WINDOW_SECONDS * fps), round(_HOP_SECONDS * fps)
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


def _interval(
    judge: "scorer.Scorer", task: Mapping[str, Any], value: float
) -> tuple[float | None, float | None]:
    known = (judge.confidence or {}).get("tasks", {}).get(task["name"], {})
    width = known.get("half_width")
    if width is None:
        return None, None
    least, most = task["low"], task["high"]
    low, high = (min(max(end, least), most) for end in (value - width, value + width))
    return low, high


def _warnings(
    seconds: float, masks: Mapping[str, np.ndarray], distance: Mapping[str, float]
) -> list[str]:
    found = []
    if seconds < 1:
        found.append(f"only {seconds:.2f} s long: scores of less than 1 s are guesses")
    for name in ("keypoints", "visual"):
        if name in masks:
            share = 1 - masks[name].mean()
            if share > _FACELESS:
                found.append(f"no face in {100 * share:.0f} % of the frames")
            break
    if "audio" in masks and not masks["audio"].any():
        found.append("no sound")
    for name, value in distance.items():
        if value > _FAR:
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


def _json(result: Mapping[str, Any]) -> str:
    return json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(results: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> str:
    kinds = ("value", "low", "high", "spread")
    columns = [
        task if kind == "value" else f"{task}_{kind}"
        for task in tasks
        for kind in kinds
    ]
    rows = []
    for result in results:
        cells = ["", *[""] * len(columns), ""]
        if "error" not in result:
            numbers = [result["scores"][task][kind] for task in tasks for kind in kinds]
            cells = [
                f"{result['seconds']:.2f}",
                *("" if number is None else repr(number) for number in numbers),
                "; ".join(result["warnings"]),
            ]
        rows.append([result["clip"], *cells, result.get("error", "")])
    return output.table(["clip", "seconds", *columns, "warnings", "error"], rows)


if __name__ == "__main__":
    sys.exit(main())
