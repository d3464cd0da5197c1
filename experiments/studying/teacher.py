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
from tqa_jax import (
    assemble,
    comparison,
    ensemble,
    evaluate,
    intervals,
    pipeline,
    prepare,
    records,
    schema,
    trained,
)

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
    run = trained.load(folder)
    opened = prepare.open_dataset(
        data,
        modalities=tuple(run.transforms),
        pca=run.config.preprocess.pca,
        winsorise=run.config.preprocess.winsorise,
        max_frames=run.config.data.max_frames,
        memory_bytes=run.config.data.memory_gb * 2**30,
        fitted=folder / "preprocess.npz",
    )
    found = opened.split(split)
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *run.members)

    def represent(one, batch):
        return run.model.join(one, run.model.trunk(one, batch))

    def predict(function) -> np.ndarray:
        program = jax.jit(ensemble.members(function))
        order = pipeline.in_order(found.size, run.config.train.batch_size)
        return evaluate.predict(program, params, found.batches(order), found.clips)

    features = predict(represent)  # (M, N, D)
    return View(
        found.clips.names,
        predict(run.model.apply).mean(axis=0),
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
    names = [task.name for task in tasks]
    said = outcome.predictions
    scores = {name: said.scores[name] for name in names}
    labels = {name: said.labels[name] for name in names}
    report = intervals.report(
        np.stack(list(scores.values()), axis=1),
        np.stack(list(labels.values()), axis=1),
        said.sources,
        tasks,
        resamples=0,
    )
    return dataclasses.replace(
        outcome,
        results=outcome.results | report,
        predictions=dataclasses.replace(said, scores=scores, labels=labels),
    )


def only(run: trained.Trained, tasks: Sequence[schema.Task]) -> trained.Trained:
    """A run without the heads of other tasks; what is left scores as before."""
    at = np.array([run.schema.task_names.index(task.name) for task in tasks])

    def cut(path, leaf):
        # Heads are stacked: their parameters have a leading axis of tasks.
        return leaf[at] if path[0].key == "head" else leaf

    return dataclasses.replace(
        run,
        schema=dataclasses.replace(run.schema, tasks=tuple(tasks)),
        model=assemble.make_model(
            run.config, {n: t.width for n, t in run.transforms.items()}, tasks
        ),
        members=[jax.tree_util.tree_map_with_path(cut, one) for one in run.members],
        results={},
    )
