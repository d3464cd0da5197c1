"""What `experiments.interpret` left in a run's folder, as a report needs it.

The one thing to know: the file names the `predictions.csv` that it was made of by its
SHA-256; of another one it is stale, and is not shown.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tqa_jax.report import files

FILE = "interpretation.json"
_FORMAT = "tqa_jax.interpretation/1"


@dataclasses.dataclass(frozen=True)
class Importance:
    """What exchanging or hiding a part of the input costs.

    Attributes:
        kind: `permuted`, `hidden` or `group`.
        modality: which.
        group: of features, empty for the whole modality.
        features: how many.
        fall: of SRCC, by task.
    """

    kind: str
    modality: str
    group: str
    features: int
    fall: Mapping[str, files.Value]


@dataclasses.dataclass(frozen=True)
class OverTime:
    """A clip: attention by frame, and the change of its score when a stretch is hidden.

    Attributes:
        kind: `worst` or `right`.
        clip: its id.
        source: its source.
        task: that is shown.
        score: predicted.
        label: of the clip.
        frames: time of each frame in seconds.
        attention: by modality, 1 for even; NaN where nothing was measured.
        stretches: middle of each hidden stretch in seconds.
        change: by modality, and for all of them; NaN where nothing was hidden.
    """

    kind: str
    clip: str
    source: str
    task: str
    score: float
    label: float
    frames: np.ndarray
    attention: Mapping[str, np.ndarray]
    stretches: np.ndarray
    change: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Interpretation:
    """Content of `interpretation.json`.

    Attributes:
        clips: of the test split.
        sources: of these.
        repetitions: draws of other clips.
        resamples: for intervals.
        hidden_seconds: length of a hidden stretch; None without a clip over time.
        unnamed: modalities whose features have no names.
        modality_dropout: how often a modality was hidden in training.
        importance: in the order of modalities.
        attention: by modality, `evenness`, `strongest` and `agreement`.
        over_time: chosen clips.
    """

    clips: int
    sources: int
    repetitions: int
    resamples: int
    hidden_seconds: float | None
    unnamed: Sequence[str]
    modality_dropout: float
    importance: Sequence[Importance]
    attention: Mapping[str, Mapping[str, files.Value]]
    over_time: Sequence[OverTime]


def read(path: pathlib.Path, tasks: Sequence[str]) -> Interpretation | None:
    """Reads `interpretation.json`; None when `predictions.csv` is another now."""
    found = files.json_object(path)
    if found["format"] != _FORMAT:
        raise ValueError(f"format {found['format']!r}; expected {_FORMAT!r}")
    predictions = path.with_name("predictions.csv")
    if not predictions.is_file():
        return None
    digest = hashlib.sha256(predictions.read_bytes()).hexdigest()
    if found["run"]["predictions_sha256"] != digest:
        return None
    lengths = [files.checked_number(one["hidden_seconds"]) for one in found["clips"]]
    return Interpretation(
        clips=files.checked_count(found["run"]["clips"]),
        sources=files.checked_count(found["run"]["sources"]),
        repetitions=files.checked_count(found["settings"]["repetitions"]),
        resamples=files.checked_count(found["settings"]["resamples"]),
        hidden_seconds=max(lengths, default=None),
        unnamed=[str(n) for n, named in found["named_features"].items() if not named],
        modality_dropout=files.checked_number(found["modality_dropout"]),
        importance=[
            Importance(
                _one_of(one["kind"], ("permuted", "hidden", "group")),
                *(str(one[key]) for key in ("modality", "group")),
                files.checked_count(one["features"]),
                {t: files.checked_value(one["tasks"][t]["srcc"]) for t in tasks},
            )
            for one in found["importance"]
        ],
        attention={
            str(name): {
                key: files.checked_value(row[key])
                for key in ("evenness", "strongest", "agreement")
            }
            for name, row in found["attention"].items()
        },
        over_time=[_over_time(one, tasks) for one in found["clips"]],
    )


def _over_time(one: Mapping, tasks: Sequence[str]) -> OverTime:
    attention = {str(n): _column(v) for n, v in one["attention"].items()}
    stretches = _column(one["seconds"])
    change = {str(n): _column(v) for n, v in one["change"].items()}
    lengths = {len(column) for column in attention.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError("a clip's attention has no length, or several")
    if {len(column) for column in change.values()} - {len(stretches)}:
        raise ValueError("a clip's changes differ in length from its seconds")
    fps = files.checked_number(one["fps"])
    if not (fps and 0.01 <= fps <= 1e5):
        raise ValueError(f"fps is {fps}")
    score, label = (files.checked_number(one[key]) for key in ("score", "label"))
    if score is None or label is None:
        raise ValueError("a clip over time has no score or no label")
    return OverTime(
        kind=_one_of(one["kind"], ("worst", "right")),
        clip=str(one["clip"]),
        source=str(one["source"]),
        task=_one_of(one["task"], tasks),
        score=score,
        label=label,
        frames=np.arange(lengths.pop()) / fps,
        attention=attention,
        stretches=stretches,
        change=change,
    )


def _one_of(value: Any, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"{value!r} is none of {', '.join(choices)}"[:200])
    return value


def _column(values: Sequence[float | None]) -> np.ndarray:
    return np.array([files.checked_number(value) for value in values], float)
