"""Finished runs that score other clips: noisy ones, or those of another data set.

The one thing to know: on the test clips as they are, scores are those of the final
evaluation to the last bit: the same program on the same batches.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from tqa_jax import (
    batch,
    ensemble,
    evaluate,
    pipeline,
    records,
    runner,
    schema,
    trained,
)


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A finished run, ready to score.

    Attributes:
        run: what was trained.
        params: of the run, as its program takes them.
        program: compiled `(params, batch) -> scores` of each member.
    """

    run: trained.Trained
    params: Any
    program: Callable[[Any, batch.Batch], Float[Array, "M B K"]]

    @property
    def max_frames(self) -> int:
        """Longest window of the run."""
        return self.run.config.data.max_frames

    def windows(self, clips: Sequence[records.Clip]) -> batch.Batch:
        """Cuts clips into windows, preprocessed as the run's were, in NumPy."""
        frames = min(self.max_frames, max(clip.frames for clip in clips))
        return pipeline.load_windows(
            clips, self.run.transforms, max_frames=self.max_frames, frames=frames
        )

    def describe(self, clips: Sequence[records.Clip]) -> pipeline.Clips:
        """Lists the clips that have a measured frame, and their windows."""
        return pipeline.describe(clips, self.max_frames, self.run.transforms)

    def scores(
        self, windows: batch.Batch, clips: pipeline.Clips
    ) -> Float[np.ndarray, "N K"]:
        """Scores clips, the mean over their windows and the run's members.

        Args:
            windows: of the clips.
            clips: which windows are whose.
        """
        number = len(clips.window_clip)
        order = pipeline.in_order(number, self.run.config.train.batch_size)
        taken = (jax.tree.map(np.asarray, batch.take(windows, rows)) for rows in order)
        found = evaluate.predict(self.program, self.params, list(taken), clips)
        return found.mean(axis=0)


def load(folders: Sequence[pathlib.Path]) -> list[Scorer]:
    """Reads finished runs; those that differ in their seed only share a program.

    Args:
        folders: of the runs.

    Raises:
        InputError: when one is not finished.
    """
    device = runner.Devices(only=jax.local_devices()[:1])
    programs: dict[str, Callable[..., Any]] = {}
    found = []
    for folder in folders:
        run = trained.load(folder)
        alike = run.config.copy_and_resolve_references()
        alike.seed = 0
        key = repr((alike.to_json(), run.schema, len(run.members)))
        if key not in programs:
            programs[key] = device.scorer(_score(run))
        params = run.members[0]
        if len(run.members) > 1:
            params = jax.tree.map(lambda *leaves: np.stack(leaves), *run.members)
        found.append(Scorer(run, params, programs[key]))
    return found


def check(run: trained.Trained, info: schema.DatasetInfo, path: pathlib.Path) -> None:
    """Checks that a run can score a data set and be judged by its labels.

    Raises:
        InputError: naming a modality that is missing or was measured otherwise, or a
            task that is missing or has another range.
    """
    theirs = {one.name: one for one in info.schema.modalities}
    for one in run.schema.modalities:
        other = theirs.get(one.name)
        if other is None or dataclasses.replace(other, description="") != (
            dataclasses.replace(one, description="")
        ):
            said = "no such modality" if other is None else f"{other}"
            raise schema.InputError(
                f"{path} does not fit: trained on {one}, there {said}; measure both "
                "data sets in the same way"
            )
    ranges = {task.name: (task.low, task.high) for task in info.schema.tasks}
    for task in run.schema.tasks:
        if ranges.get(task.name, (task.low, task.high)) != (task.low, task.high):
            raise schema.InputError(
                f"{path} does not fit: {task.name} is {task.low:g} to {task.high:g} in "
                f"training and {ranges[task.name]} there"
            )
    if not any(task.name in ranges for task in run.schema.tasks):
        raise schema.InputError(
            f"{path} has none of the tasks {', '.join(run.schema.task_names)}"
        )


def _score(run: trained.Trained) -> Callable[[Any, batch.Batch], jax.Array]:
    if len(run.members) > 1:
        return ensemble.members(run.model.apply)
    return lambda params, one: run.model.apply(params, one)[None]
