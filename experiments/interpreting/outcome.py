"""What an interpretation found, as one JSON object, as CSV and as Markdown.

The one thing to know: the object names the run's `predictions.csv` by its SHA-256, so
that a report can tell whether the run has changed since.
"""

import datetime
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.interpreting import case as cases
from experiments.interpreting import groups, over_time, permutation
from tqa_jax import output, run_folder

FORMAT = "tqa_jax.interpretation/1"
FILE = "interpretation.json"


def gather(
    case: cases.Case,
    *,
    repetitions: int,
    resamples: int,
    shown: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures everything.

    Args:
        case: the run and its test clips.
        repetitions: draws of other clips for each modality and group.
        resamples: of sources, for intervals.
        shown: clips of either kind to show over time.
        seed: of all draws.

    Returns:
        What `json` can write; see `FORMAT`.
    """
    described = {modality.name: modality for modality in case.run.schema.modalities}
    attention = over_time.Attention(case)
    before = case.scores(case.windows)
    importance = [
        {
            **{"kind": changed.kind, "modality": changed.modality},
            **{"group": changed.group, "features": changed.size},
            "tasks": permutation.losses(
                before, changed, case, resamples=resamples, seed=seed
            ),
        }
        for changed in permutation.measure(case, repetitions=repetitions, seed=seed)
    ]
    predictions = (case.run.folder / "predictions.csv").read_bytes()
    return _rounded(
        {
            "format": FORMAT,
            "run": {
                "predictions_sha256": hashlib.sha256(predictions).hexdigest(),
                "split": cases.SPLIT,
                "clips": len(case.clips.names),
                "sources": len(set(case.clips.sources)),
            },
            "settings": {
                **{"repetitions": repetitions, "resamples": resamples},
                **{"seed": seed},
            },
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "environment": run_folder.environment(),
            "named_features": {
                name: groups.of(described[name])[1] for name in case.modalities
            },
            "modality_dropout": float(case.run.model.options["modality_dropout"]),
            "importance": importance,
            "attention": over_time.summary(
                case, attention, resamples=resamples, seed=seed
            ),
            "clips": _clips(case, before, attention, shown),
        }
    )


def _clips(
    case: cases.Case, before: np.ndarray, attention: over_time.Attention, shown: int
) -> list[dict[str, Any]]:
    tasks, clips, fps = case.run.schema.tasks, case.clips, case.info.schema.fps
    ranges = np.array([task.high - task.low for task in tasks])
    found = []
    for one in over_time.choose(before, clips.labels, ranges, most=shown):
        hidden = over_time.occlude(case, one.clip)
        found.append(
            {
                **{"kind": one.kind, "clip": clips.names[one.clip]},
                **{"source": clips.sources[one.clip], "task": tasks[one.task].name},
                "score": float(before[one.clip, one.task]),
                "label": float(clips.labels[one.clip, one.task]),
                "fps": fps,
                "attention": {
                    name: shares.tolist()
                    for name, shares in attention.of(one.clip).received.items()
                },
                "hidden_seconds": hidden.length / fps,
                "seconds": ((hidden.starts + (hidden.length - 1) / 2) / fps).tolist(),
                "change": {
                    name: change[:, one.task].tolist()
                    for name, change in hidden.change.items()
                },
            }
        )
    return found


def _rounded(value: Any) -> Any:
    """Numbers to five digits, NaN as None."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def importance_csv(found: Mapping[str, Any]) -> str:
    """One row for each change of the input, task and metric."""
    header = ["kind", "modality", "group", "features", "task", "metric", "loss"]
    header += ["low", "high", "sd", "reason"]
    rows = []
    for one in found["importance"]:
        for task, by_metric in one["tasks"].items():
            for metric, cell in by_metric.items():
                numbers = [cell.get(key) for key in ("value", "low", "high", "sd")]
                rows.append(
                    [
                        *(one["kind"], one["modality"], one["group"]),
                        *(str(one["features"]), task, metric),
                        *("" if value is None else str(value) for value in numbers),
                        cell.get("reason", ""),
                    ]
                )
    return output.table(header, rows)


def over_time_csv(found: Mapping[str, Any]) -> str:
    """One row for each shown clip, modality and moment."""
    rows = []
    for one in found["clips"]:
        head = [one["kind"], one["clip"], one["task"]]
        frames = len(next(iter(one["attention"].values())))
        times = [round(frame / one["fps"], 5) for frame in range(frames)]
        for what, seconds, columns in (
            ("attention", times, one["attention"]),
            ("change", one["seconds"], one["change"]),
        ):
            for name, values in columns.items():
                for second, value in zip(seconds, values, strict=True):
                    cell = "" if value is None else str(value)
                    rows.append([*head, what, name, str(second), cell])
    header = ["kind", "clip", "task", "what", "modality", "second", "value"]
    return output.table(header, rows)


def markdown(found: Mapping[str, Any]) -> str:
    """Tables: fall of SRCC for each change of the input, and attention."""
    importance = found["importance"]
    tasks = list(importance[0]["tasks"])
    run, settings = found["run"], found["settings"]
    lines = [
        f"Fall of SRCC on {run['clips']} {run['split']} clips of {run['sources']} "
        f"sources, mean of {settings['repetitions']} draws, 95 % interval over "
        "sources.",
        "",
        "| input | change | " + " | ".join(f"`{task}`" for task in tasks) + " |",
        "|" + "---|" * (2 + len(tasks)),
    ]
    words = {"permuted": "of another clip", "hidden": "hidden"}
    for one in importance:
        name = f"`{one['modality']}`" + (f" {one['group']}" if one["group"] else "")
        cells = [_cell(one["tasks"][task]["srcc"]) for task in tasks]
        change = words.get(one["kind"], words["permuted"])
        lines.append(f"| {name} | {change} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| attention over time | evenness | strongest frame | agreement with hiding |",
        "|---|---|---|---|",
    ]
    for name, row in found["attention"].items():
        cells = [_cell(row[key]) for key in ("evenness", "strongest", "agreement")]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(cell: Mapping[str, Any]) -> str:
    if cell["value"] is None:
        return "undefined"
    if cell["low"] is None:
        return f"{cell['value']:.2f}"
    return f"{cell['value']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"


def strongest(found: Mapping[str, Any]) -> Sequence[str]:
    """For each task, the modality whose exchange costs most SRCC, in words."""
    lines = []
    permuted = [one for one in found["importance"] if one["kind"] == "permuted"]
    for task in permuted[0]["tasks"]:
        known = [
            (one["tasks"][task]["srcc"], one["modality"])
            for one in permuted
            if one["tasks"][task]["srcc"]["value"] is not None
        ]
        if not known:
            lines.append(f"{task}: SRCC is undefined")
            continue
        cell, name = max(known, key=lambda pair: pair[0]["value"])
        sure = cell["low"] is not None and cell["low"] > 0
        what = f"{name}, SRCC falls by {_cell(cell)}"
        lines.append(f"{task}: {what if sure else f'no modality for sure ({what})'}")
    return lines
