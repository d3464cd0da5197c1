"""What a teacher makes of clips, as tasks of a data set that its students train on.

The one thing to know: a data set may have any tasks, so scores and features to imitate
are tasks like others and need no training of their own. What is judged and exported
afterwards are the real tasks only.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from experiments.studying import derived
from tqa_jax import comparison, evaluate, intervals, models, records, schema
from tqa_jax import run as run_lib

RANGE = (1.0, 5.0)
_DEVIATIONS = 3.0  # Of a component on either side of its mean are its range.


class View(NamedTuple):
    """What a teacher makes of training clips.

    Attributes:
        clips: their names.
        scores: of the ensemble.
        features: shared features of all members side by side.
    """

    clips: tuple[str, ...]
    scores: Float[np.ndarray, "N K"]
    features: Float[np.ndarray, "N D"]


def view(folder: pathlib.Path, data: pathlib.Path, split: str = "train") -> View:
    """Runs a teacher on the clips of a split.

    Args:
        folder: of its run.
        data: folder of the data set.
        split: of it.
    """
    run = run_lib.Run.load(folder)
    found = run.open_dataset(data).split(split)
    features = evaluate.pooled(run.features(found), found.clips)  # (M, N, D)
    return View(
        tuple(found.clips.names),
        run.score(found.clips, found),
        np.concatenate(list(features), axis=-1),
    )


def components(
    features: Float[np.ndarray, "N D"], number: int
) -> Float[np.ndarray, "N C"]:
    """First principal components as scores from 1 to 5.

    Args:
        features: of clips.
        number: of components; fewer where the features have no more.

    Returns:
        Each component, its mean at 3 and three standard deviations at either end,
        where it is cut. The sign is such that its largest loading is positive.
    """
    centred = features - features.mean(axis=0)
    left, spread, right = np.linalg.svd(centred, full_matrices=False)
    number = min(number, int((spread > 1e-6 * max(spread[0], 1e-12)).sum()))
    largest = np.abs(right[:number]).argmax(axis=1)
    sign = np.sign(right[np.arange(number), largest])
    units = left[:, :number] * sign * np.sqrt(len(features))  # Standard deviation 1.
    low, high = RANGE
    half = (high - low) / 2
    return np.clip(low + half + units * half / _DEVIATIONS, low, high)


def widen(
    source: pathlib.Path,
    out: pathlib.Path,
    tasks: Sequence[schema.Task],
    values: Float[np.ndarray, "N K"],
    clips: Sequence[str],
) -> pathlib.Path:
    """Makes a data set with further tasks, which training clips have labels of.

    Args:
        source: folder of the data set.
        out: folder to make.
        tasks: to add.
        values: of the training clips.
        clips: their names.
    """
    before = schema.load(source).schema
    of = dict(zip(clips, np.asarray(values, np.float32), strict=True))
    nothing = np.full(len(tasks), np.nan, np.float32)

    def change(split: str, clip: records.Clip) -> derived.Pair:
        more = of.get(clip.clip, nothing) if split == "train" else nothing
        labels = np.concatenate([clip.labels, more])
        return split, dataclasses.replace(clip, labels=labels)

    return derived.make(
        source,
        out,
        change,
        description="what a teacher makes of training clips, as further tasks: "
        f"{', '.join(task.name for task in tasks)}",
        content=np.asarray(values, np.float32).tobytes(),
        schema=dataclasses.replace(before, tasks=(*before.tasks, *tasks)),
    )


def real(
    outcome: comparison.Outcome, tasks: Sequence[schema.Task]
) -> comparison.Outcome:
    """What became of a run, judged by some of its tasks."""
    said = outcome.predictions
    said = said.at(np.arange(len(said.clips)), [task.name for task in tasks])
    report = intervals.report(
        said.scores, said.labels, said.sources, tasks, resamples=0
    )
    return dataclasses.replace(
        outcome, results=outcome.results | report, predictions=said
    )


def only(run: run_lib.Run, tasks: Sequence[schema.Task]) -> run_lib.Run:
    """A run without the heads of other tasks; what is left scores as before."""
    at = np.array([run.schema.task_names.index(task.name) for task in tasks])

    def cut(path, leaf):
        # Heads are stacked: their parameters have a leading axis of tasks.
        return leaf[at] if path[0].key == "head" else leaf

    widths = {name: transform.width for name, transform in run.transforms.items()}
    return run.but(
        schema=dataclasses.replace(run.schema, tasks=tuple(tasks)),
        model=models.from_config(run.config, widths, tasks),
        members=[jax.tree_util.tree_map_with_path(cut, one) for one in run.members],
        results={},
    )
