"""What a data set holds, and what in it can be neither learned nor evaluated.

The one thing to know: a flag is a finding for a person to judge, not an error. One
pass reads the clips; features are reduced to running statistics, only labels are kept.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from tqa_jax import feature_audit, metrics, records
from tqa_jax import schema as schema_lib

_MIN_TEST_LABELS = 10
_IDENTICAL = 0.999  # |correlation| from which two tasks are one
_CONSTANT = 1e-6  # share of the score range below which labels are the same


def audit(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads a data set once and reports what it holds.

    Args:
        path: folder of the data set.

    Returns:
        What `examine` returns. A progress bar is shown when stderr is a terminal.

    Raises:
        InputError: when the set cannot be read.
    """
    info = schema_lib.load(path)
    clips = (
        (split, clip)
        for split in info.splits
        for clip in records.read_split(path, info, split)
    )
    total = sum(split.clips for split in info.splits.values())
    bar = tqdm.tqdm(
        clips, "audit", total, leave=False, unit="clip", disable=None, mininterval=0.5
    )
    return examine(info, bar)


def examine(
    info: schema_lib.DatasetInfo, clips: Iterable[tuple[str, records.Clip]]
) -> dict[str, Any]:
    """Reports what clips hold and flags what cannot be learned or evaluated.

    Args:
        info: description of the data set.
        clips: pairs of split and clip, in any order; read once.

    Returns:
        A dict that `json` can write: `clips` and `sources` by split, `tasks` (label
        statistics by task and split), `correlation` between tasks on the training
        split, `modalities` (by name and split; shares are 0 to 1),
        `sync_offset_frames` of the training split, and `flags`, one line each.
    """
    features = feature_audit.Features(info.schema)
    labels: dict[str, list[np.ndarray]] = {}
    sources: dict[str, set[str]] = {}
    for split, clip in clips:
        labels.setdefault(split, []).append(clip.labels)
        sources.setdefault(split, set()).add(clip.source)
        features.add(split, clip)
    tables = {
        split: np.array(labels[split], float)
        for split in schema_lib.SPLITS
        if split in labels
    }
    names = info.schema.task_names
    train = tables.get("train", np.empty((0, len(names))))
    tasks = {
        task.name: {
            split: _label_statistics(table[:, index], task)
            for split, table in tables.items()
        }
        for index, task in enumerate(info.schema.tasks)
    }
    return {
        "name": info.name,
        "provenance": dict(info.provenance),
        "clips": {split: len(table) for split, table in tables.items()},
        "sources": {split: len(sources[split]) for split in tables},
        "tasks": tasks,
        "correlation": {
            first: {
                second: _correlation(train[:, i], train[:, j])
                for j, second in enumerate(names)
            }
            for i, first in enumerate(names)
        },
        "modalities": features.modalities(),
        "sync_offset_frames": features.sync_offset(),
        "flags": [
            *_split_flags(tables, sources),
            *_task_flags(tasks),
            *_pair_flags(train, names),
            *features.flags(),
        ],
    }


def text(report: Mapping[str, Any]) -> str:
    """Formats what `audit` or `examine` returned for a terminal."""
    names = list(report["tasks"])
    width = max(len(name) for name in [*names, *report["modalities"], "modality"])
    lines = [f"data set {report['name']}"]
    lines += [
        f"{split:<10} {clips:>6} clips of {report['sources'][split]} sources"
        for split, clips in report["clips"].items()
    ]
    lines.append(
        "\n"
        f"{'task':<{width}} {'split':<10} {'labels':>6} {'mean':>6} {'sd':>6} "
        f"{'range':^14} {'tied pairs':>10}"
    )
    for name, splits in report["tasks"].items():
        for split, row in splits.items():
            span = f"{_number(row['low'])}..{_number(row['high'])}"
            lines.append(
                f"{name:<{width}} {split:<10} {row['n']:>6} {_number(row['mean']):>6} "
                f"{_number(row['sd']):>6} {span:^14} {_percent(row['ties']):>10}"
            )
    columns = [max(len(name), 5) for name in names]
    lines += ["", "correlation between tasks on the training split"]
    header = " ".join(f"{n:>{c}}" for n, c in zip(names, columns, strict=True))
    lines.append(f"{'':<{width}} {header}")
    for first, row in report["correlation"].items():
        cells = zip(row.values(), columns, strict=True)
        body = " ".join(f"{_number(value):>{column}}" for value, column in cells)
        lines.append(f"{first:<{width}} {body}")
    lines += ["", f"{'modality':<{width}} split      clips absent   rows masked   NaN"]
    lines[-1] += "  constant features  misaligned"
    for name, splits in report["modalities"].items():
        for split, row in splits.items():
            lines.append(
                f"{name:<{width}} {split:<10} {row['clips']:>5} "
                f"{row['clips_without']:>6} {row['rows']:>6} "
                f"{_percent(row['masked']):>6} {_percent(row['missing']):>5} "
                f"{row['constant_features']:>18} "
                f"{_percent(row['misaligned_clips']):>11}"
            )
    offset = report["sync_offset_frames"]
    if offset["clips"]:
        lines += [
            "",
            f"median audio-video offset: {offset['median']:+.1f} frames "
            f"over {offset['clips']} training clips",
        ]
    flags = report["flags"]
    lines += ["", f"{len(flags)} flags" if flags else "no flags"]
    lines += [f"- {flag}" for flag in flags]
    return "\n".join(line.rstrip() for line in lines)


def _label_statistics(column: np.ndarray, task: schema_lib.Task) -> dict[str, Any]:
    """Returns count, mean, sd (n - 1), extremes and share of equal pairs."""
    values = column[~np.isnan(column)]
    n = len(values)
    if not n:
        keys = ("mean", "sd", "low", "high", "ties")
        return {"n": 0, **dict.fromkeys(keys), "constant": False}
    _, repeats = np.unique(values, return_counts=True)
    spread = float(np.ptp(values))
    return {
        "n": n,
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if n > 1 else None,
        "low": float(values.min()),
        "high": float(values.max()),
        "ties": _share(int((repeats * (repeats - 1)).sum()), n * (n - 1)),
        "constant": n > 1 and spread <= _CONSTANT * (task.high - task.low),
    }


def _both(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = ~(np.isnan(first) | np.isnan(second))
    return first[known], second[known]


def _correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    return metrics.measure("plcc", *_both(first, second)).value


def _split_flags(
    tables: Mapping[str, np.ndarray], sources: Mapping[str, set[str]]
) -> list[str]:
    flags = [
        f"split {split!r} has no clips"
        for split in schema_lib.SPLITS
        if split not in tables
    ]
    splits = list(tables)
    for index, first in enumerate(splits):
        for second in splits[index + 1 :]:
            if shared := sorted(sources[first] & sources[second]):
                flags.append(
                    f"sources in both {first!r} and {second!r}: {len(shared)}, for "
                    f"example {shared[0]!r}; results will be too good"
                )
    return flags


def _task_flags(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    flags = []
    for name, splits in tasks.items():
        for split, row in splits.items():
            if row["constant"]:
                use = "learned" if split == "train" else "evaluated"
                flags.append(
                    f"task {name!r} is constant ({row['mean']:g}) in {split!r}: "
                    f"it cannot be {use} there"
                )
        if "train" in splits and not splits["train"]["n"]:
            flags.append(f"task {name!r} has no training label: it cannot be learned")
        if "test" in splits and splits["test"]["n"] < _MIN_TEST_LABELS:
            flags.append(
                f"task {name!r} has {splits['test']['n']} valid test labels; "
                f"{_MIN_TEST_LABELS} are the least for an evaluation"
            )
    return flags


def _pair_flags(train: np.ndarray, names: Sequence[str]) -> list[str]:
    flags = []
    for i, first in enumerate(names):
        for j in range(i + 1, len(names)):
            a, b = _both(train[:, i], train[:, j])
            tasks = f"tasks {first!r} and {names[j]!r}"
            r = _correlation(a, b)
            if len(a) >= 3 and np.array_equal(a, b):
                flags.append(f"{tasks} have the same {len(a)} training labels")
            elif len(a) >= 5 and r is not None and abs(r) >= _IDENTICAL:
                flags.append(
                    f"{tasks} are one and the same: r = {r:.4f} on {len(a)} clips"
                )
    return flags


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _number(value: float | None) -> str:
    return "-" if value is None else metrics.text(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
