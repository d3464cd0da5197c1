"""Files of a run's folder as a report needs them: read, checked, in arrays and rows.

The one thing to know: what is not as expected raises one of the errors of the standard
library (`ValueError`, `KeyError`, ...); `record` says which file is damaged.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_HUGE = 1e100  # What is larger is no measurement, and overflows in charts.

_MOST_STEPS = 1 << 50


class Value(NamedTuple):
    """A metric with its interval; None and a reason where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Confidence:
    """Conformal interval of a task, and what the spread of its scores is worth."""

    half_width: float | None
    calibration_clips: int
    coverage: Value | None
    mean_spread: float | None
    risk_coverage: np.ndarray  # (points, 2): share of clips kept, RMSE
    reason: str


@dataclasses.dataclass(frozen=True)
class Results:
    """Content of `results.json`; `metrics` is by task, then by metric."""

    labelled: Mapping[str, int]
    metrics: Mapping[str, Mapping[str, Value]]
    average: Mapping[str, Value]
    resamples: int
    sources: int
    level: float | None
    spread_over: str | None
    confidence: Mapping[str, Confidence]
    best_epoch: int
    selected_by: str
    selected_value: float


@dataclasses.dataclass(frozen=True)
class Log:
    """Content of `metrics.jsonl`: columns by field, NaN where null or absent.

    Attributes:
        train: a row a step.
        validation: a row an epoch.
        correlation: epoch, matrix of predictions and matrix of labels (K, K).
    """

    train: Mapping[str, np.ndarray]
    validation: Mapping[str, np.ndarray]
    correlation: Sequence[tuple[int, np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Audit:
    """Content of `audit.json` as rows of tables; None where undefined.

    Attributes:
        name: of the data set.
        provenance: how the labels were made, empty when the file does not say.
        clips: by split.
        sources: by split.
        tasks: task, split, labels, mean, sd, low, high, share of tied pairs.
        modalities: modality, split, clips, clips without, then shares: rows masked,
            NaN, clips misaligned; then number of constant features.
        offset: clips and median audio-video offset in frames.
        flags: what cannot be learned or evaluated.
    """

    name: str
    provenance: Mapping[str, Any]
    clips: Mapping[str, int]
    sources: Mapping[str, int]
    tasks: Sequence[tuple]
    modalities: Sequence[tuple]
    offset: tuple[int, float | None]
    flags: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Representation:
    """Content of `representation.npz`: what the network makes of each clip."""

    clips: np.ndarray  # (N,)
    splits: np.ndarray  # (N,)
    features: np.ndarray  # (N, D)


def json_object(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object, without NaN or infinity."""
    return _parsed(path.read_text(encoding="utf-8"))


def results(found: Mapping[str, Any], tasks: Sequence[str]) -> Results:
    """Takes what the page shows out of the content of `results.json`."""
    rows = {task: found["tasks"][task] for task in tasks}
    confidence = found.get("confidence", {"level": None, "tasks": {}})
    return Results(
        labelled={task: checked_count(row["n"]) for task, row in rows.items()},
        metrics={
            task: {name: checked_value(row[name]) for name in found["average"]}
            for task, row in rows.items()
        },
        average={
            name: checked_value(entry) for name, entry in found["average"].items()
        },
        resamples=checked_count(found["intervals"]["resamples"]),
        sources=checked_count(found["intervals"]["sources"]),
        level=checked_number(confidence["level"]),
        spread_over=confidence.get("spread_over"),
        confidence={
            task: _confidence(confidence["tasks"][task])
            for task in tasks
            if confidence["tasks"]
        },
        best_epoch=checked_count(found["selected"]["epoch"]),
        selected_by=str(found["selected"]["metric"]),
        selected_value=checked_number(found["selected"]["value"]),
    )


def _confidence(entry: Mapping[str, Any]) -> Confidence:
    curve = [
        (checked_number(point["coverage"]), checked_number(point["rmse"]))
        for point in entry.get("risk_coverage", [])
    ]
    return Confidence(
        half_width=checked_number(entry["half_width"]),
        calibration_clips=checked_count(entry["calibration_clips"]),
        coverage=checked_value(entry["coverage"]) if "coverage" in entry else None,
        mean_spread=checked_number(entry.get("mean_spread")),
        risk_coverage=np.array(curve, float).reshape(-1, 2),
        reason=str(entry.get("reason", "")),
    )


def log(path: pathlib.Path, tasks: Sequence[str]) -> Log:
    """Reads `metrics.jsonl`."""
    lines: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                line = _parsed(text)
                before = lines[line["split"]]
                _check_follows(line, before[-1] if before else {})
                before.append(line)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"line {number}: {error}") from error
    if not any(lines.values()):
        raise ValueError("it is empty")
    fields = {
        "train": ["loss/total", "loss/consistency", "lr", "grad_norm/total"]
        + [
            f"{kind}/{task}"
            for kind in ("loss", "weight", "coefficient", "grad_norm")
            for task in tasks
        ],
        "validation": ["selection"]
        + [f"{kind}/{task}" for kind in ("loss", "srcc") for task in tasks],
    }
    correlation = []
    for line in lines["validation"]:
        if line.get("correlation") is not None:
            pair = [
                _matrix(line["correlation"][kind], len(tasks))
                for kind in ("predictions", "labels")
            ]
            correlation.append((line["epoch"], *pair))
    return Log(
        *(_columns(lines[split], ["step", "epoch", *fields[split]]) for split in lines),
        correlation,
    )


def _check_follows(line: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    for name, least in (("step", 1), ("epoch", 0)):
        found, last = checked_count(line[name]), before.get(name, 0)
        if not last + least <= found < _MOST_STEPS:
            raise ValueError(f"{name} {found} after {name} {last}")


def _columns(lines: Sequence[Mapping], fields: Sequence[str]) -> dict[str, np.ndarray]:
    return {
        name: np.array([checked_number(line.get(name)) for line in lines], float)
        for name in fields
    }


def _matrix(rows: Sequence[Sequence[float | None]], size: int) -> np.ndarray:
    matrix = np.array([[checked_number(value) for value in row] for row in rows], float)
    if matrix.shape != (size, size):
        raise ValueError(f"a correlation matrix has shape {matrix.shape}, not {size}")
    return matrix


def audit(path: pathlib.Path) -> Audit:
    """Reads `audit.json`."""
    found = json_object(path)
    shown = ("mean", "sd", "low", "high", "ties")
    shares = ("masked", "missing", "misaligned_clips")
    offset = found["sync_offset_frames"]
    return Audit(
        name=str(found["name"]),
        provenance=dict(found.get("provenance", {})),
        clips={split: checked_count(n) for split, n in found["clips"].items()},
        sources={split: checked_count(n) for split, n in found["sources"].items()},
        tasks=[
            (
                task,
                split,
                checked_count(row["n"]),
                *(checked_number(row[key]) for key in shown),
            )
            for task, splits in found["tasks"].items()
            for split, row in splits.items()
        ],
        modalities=[
            (
                *(
                    name,
                    split,
                    checked_count(row["clips"]),
                    checked_count(row["clips_without"]),
                ),
                *(checked_number(row[key]) for key in shares),
                checked_count(row["constant_features"]),
            )
            for name, splits in found["modalities"].items()
            for split, row in splits.items()
        ],
        offset=(checked_count(offset["clips"]), checked_number(offset.get("median"))),
        flags=[str(flag) for flag in found["flags"]],
    )


def representation(path: pathlib.Path) -> Representation:
    """Reads `representation.npz`; arrays of objects are refused."""
    # A file of our own, since NumPy leaves that of a damaged archive open.
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        clips, splits, features = (file[n] for n in ("clip", "split", "features"))
    if features.ndim != 2 or not len(clips) == len(splits) == len(features):
        raise ValueError(
            f"{len(clips)} clips, {len(splits)} splits and features of shape "
            f"{features.shape}; expected one row of features a clip"
        )
    return Representation(clips.astype(str), splits.astype(str), features.astype(float))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _parsed(text: str) -> dict[str, Any]:
    value = json.loads(text, parse_constant=_refuse)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {text[:40]!r}")
    return value


def checked_number(value: Any) -> float | None:
    """A finite number, or None for null and for what is too large to be one."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, found {value!r}"[:200])
    return float(value) if abs(value) < _HUGE else None


def checked_count(value: Any) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, found {value!r}"[:200])
    return value


def checked_value(entry: Mapping[str, Any]) -> Value:
    """A metric's entry."""
    return Value(
        checked_number(entry["value"]),
        checked_number(entry.get("low")),
        checked_number(entry.get("high")),
        str(entry.get("reason", "")),
    )
