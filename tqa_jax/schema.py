"""What a data set says about itself: modalities, tasks, splits and provenance.

The one thing to know: every name, width and score range in the library comes from a
`Schema`, read from a data set's `dataset.json`; none is written in code.
"""

import dataclasses
import json
import math
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

FORMAT = "tqa_jax.dataset/1"
FPS = 25.0
SPLITS = ("train", "validation", "test")

# What stands beside the names of tasks in the logs and tables that we write and read,
# and what is put behind the name of a task there.
_OWN_NAMES = (
    *("clip", "source", "split", "seconds", "warnings", "error"),
    *("total", "consistency", "average"),
)
_OWN_ENDINGS = ("_score", "_label", "_spread", "_low", "_high", "_sd")


class InputError(ValueError):
    """A file, a label or a setting that a user gave cannot be used.

    Commands print its message as one line and exit with status 2; every other
    exception is a defect of the program and keeps its traceback.
    """


@dataclasses.dataclass(frozen=True)
class Modality:
    """One stream of per-frame features.

    Attributes:
        name: for example `visual`; letters, digits and underscores.
        width: features a frame.
        backend: what computed them, for example `nss`.
        version: version of the backend; features of different versions don't mix.
        checksum: SHA-256 of the backend's weights, empty when it has none.
        description: one line for people.
        features: their names, `width` of them; empty where they have none. Columns
            called `offset_frames`, `confidence` and `validity` are audited for sound
            that is late.
    """

    name: str
    width: int
    backend: str = ""
    version: str = ""
    checksum: str = ""
    description: str = ""
    features: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """One opinion score, in the closed range `low` to `high`."""

    name: str
    low: float = 1.0
    high: float = 5.0
    description: str = ""

    @property
    def unit(self) -> float:
        """Factor that makes differences of scores what they are on a 1-5 scale.

        Losses count in these units: factors, weightings and clipping mean the same
        on any score range, and tasks of different ranges are comparable.
        """
        return 4.0 / (self.high - self.low)


@dataclasses.dataclass(frozen=True)
class Schema:
    """Modalities and tasks of a data set, in the order in which arrays hold them."""

    modalities: tuple[Modality, ...]
    tasks: tuple[Task, ...]
    fps: float = FPS

    def __post_init__(self) -> None:
        """Refuses schemas that no data set can have.

        Raises:
            InputError: without modality or task, for a repeated or unusable name, a
                width below 1, or a score range that is empty or not finite.
        """
        for kind, items in (("modality", self.modalities), ("task", self.tasks)):
            if not items:
                raise InputError(f"a schema needs at least one {kind}; got none")
            check_names(kind, [item.name for item in items])
        for modality in self.modalities:
            if modality.width < 1:
                raise InputError(
                    f"modality {modality.name!r} has width {modality.width}; "
                    "expected at least 1"
                )
        for task in self.tasks:
            if not (math.isfinite(task.low) and math.isfinite(task.high)):
                raise InputError(f"task {task.name!r} has a range that is not finite")
            if task.low >= task.high:
                raise InputError(
                    f"task {task.name!r} has range {task.low}..{task.high}; "
                    "expected low < high"
                )
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise InputError(f"fps is {self.fps}; expected a positive number")

    @property
    def widths(self) -> dict[str, int]:
        """Width of each modality by name."""
        return {modality.name: modality.width for modality in self.modalities}

    @property
    def task_names(self) -> tuple[str, ...]:
        """Task names in the order of the last axis of labels and scores."""
        return tuple(task.name for task in self.tasks)

    def to_json(self) -> dict[str, Any]:
        """Returns a dict that `json` can write and `from_json` can read."""
        return {
            "fps": self.fps,
            "modalities": [
                dataclasses.asdict(item) | {"features": list(item.features)}
                for item in self.modalities
            ],
            "tasks": [dataclasses.asdict(item) for item in self.tasks],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Schema":
        """Builds a schema from what `to_json` returned.

        Raises:
            InputError: for missing or unknown keys, or values of the wrong kind.
        """
        try:
            return cls(
                modalities=tuple(
                    Modality(
                        **{
                            **item,
                            "width": int(item["width"]),
                            "features": tuple(item.get("features", ())),
                        }
                    )
                    for item in value["modalities"]
                ),
                tasks=tuple(
                    Task(
                        **{
                            **item,
                            "low": float(item["low"]),
                            "high": float(item["high"]),
                        }
                    )
                    for item in value["tasks"]
                ),
                fps=float(value["fps"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"schema cannot be read: {error!r}") from error


def check_names(kind: str, names: Sequence[str]) -> None:
    """Checks that names can be columns and keys beside each other and beside ours.

    Args:
        kind: `task` or `modality`.
        names: all of that kind.

    Raises:
        InputError: naming the first that is no word, is taken by us, or is another
            one but for upper case or for what we put behind a task's name.
    """
    known: dict[str, str] = {}
    for name in names:
        if not name.isidentifier():
            raise InputError(
                f"{kind} name {name!r} must be letters, digits and underscores"
            )
        folded = unicodedata.normalize("NFKC", name).casefold()
        if kind == "task" and folded in _OWN_NAMES:
            raise InputError(
                f"task name {name!r} is taken: tables and logs have it for something "
                "else; choose another name"
            )
        if known.setdefault(folded, name) != name:
            raise InputError(
                f"{kind} names {known[folded]!r} and {name!r} differ in case only; "
                "choose another name for one"
            )
        if names.count(name) > 1:
            raise InputError(f"{kind} {name!r} is listed twice")
    for folded, name in known.items() if kind == "task" else ():
        for ending in _OWN_ENDINGS:
            if folded + ending in known:
                raise InputError(
                    f"task name {known[folded + ending]!r} is taken: tables have "
                    f"{ending!r} behind {name!r} for something else; choose another "
                    "name"
                )


TASKS = (
    Task("lip_sync", description="do the lips move with the speech"),
    Task("expression", description="is the facial expression natural and alive"),
    Task("audio_quality", description="is the speech clean and undistorted"),
    Task("cross_modal", description="do face and voice belong to each other"),
    Task("overall", description="overall quality of the clip"),
)
"""Five opinion scores, the default of every command."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """One TFRecord file of a split; `sha256` is of the whole file."""

    file: str
    clips: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """Shards of a split and the sources (speakers, source videos) in it."""

    shards: tuple[Shard, ...]
    sources: tuple[str, ...]

    @property
    def clips(self) -> int:
        """Number of clips in the split."""
        return sum(shard.clips for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The content of `dataset.json`.

    Attributes:
        name: name of the data set; also its TFDS name.
        schema: modalities and tasks.
        splits: by name, of `SPLITS`.
        dtype: how features are stored, `float16` or `float32`.
        storage_error: per modality, the largest error that storing made, in units of
            the feature's standard deviation over the data set.
        provenance: who made it and how; `kind` is `ratings` for human opinion
            scores, `degradation` for labels computed from planted flaws.
    """

    name: str
    schema: Schema
    splits: Mapping[str, Split]
    dtype: str
    storage_error: Mapping[str, float]
    provenance: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Returns a dict that `json` can write and `from_json` can read."""
        return {
            "format": FORMAT,
            "name": self.name,
            **self.schema.to_json(),
            "storage": {"dtype": self.dtype, "error": dict(self.storage_error)},
            "splits": {
                name: {
                    "clips": split.clips,
                    "sources": list(split.sources),
                    "shards": [dataclasses.asdict(shard) for shard in split.shards],
                }
                for name, split in self.splits.items()
            },
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "DatasetInfo":
        """Builds a description from what `to_json` returned.

        Raises:
            InputError: for another format or version, a missing key, a split of
                unknown name, or a source that stands in two splits.
        """
        if value.get("format") != FORMAT:
            raise InputError(
                f"dataset.json has format {value.get('format')!r}; expected {FORMAT!r}"
            )
        try:
            splits = {
                name: Split(
                    shards=tuple(Shard(**shard) for shard in split["shards"]),
                    sources=tuple(split["sources"]),
                )
                for name, split in value["splits"].items()
            }
            info = cls(
                name=value["name"],
                schema=Schema.from_json(
                    {key: value[key] for key in ("fps", "modalities", "tasks")}
                ),
                splits=splits,
                dtype=value["storage"]["dtype"],
                storage_error=value["storage"]["error"],
                provenance=value["provenance"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"dataset.json cannot be read: {error!r}") from error
        check_splits({name: split.sources for name, split in splits.items()})
        return info


def check_splits(sources: Mapping[str, Sequence[str]]) -> None:
    """Checks that splits have known names and share no source.

    Args:
        sources: the sources of each split.

    Raises:
        InputError: naming the split, or the source and both of its splits.
    """
    seen: dict[str, str] = {}
    for split, names in sources.items():
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}; available: {', '.join(SPLITS)}")
        for source in names:
            if seen.setdefault(source, split) != split:
                raise InputError(
                    f"source {source!r} is in both {seen[source]!r} and {split!r}; "
                    "a source belongs to one split"
                )


def load(path: str | pathlib.Path) -> DatasetInfo:
    """Reads `dataset.json` of a data set folder.

    Args:
        path: the folder.

    Raises:
        InputError: when there is none or it cannot be read.
    """
    file = pathlib.Path(path) / "dataset.json"
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is no data set: it has no dataset.json; "
            "make one with `python -m extract.run`"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{file} must hold one JSON object")
    return DatasetInfo.from_json(value)
