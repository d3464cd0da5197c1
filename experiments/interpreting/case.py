"""A finished run beside the clips of its test split, ready to be scored in other ways.

The one thing to know: the data set must be the one that the run was trained on, and
scores made here must be those of `predictions.csv`; else the run is refused.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from tqa_jax import batch, evaluate, pipeline, preprocess, records, schema
from tqa_jax import run as run_lib

SPLIT = "test"


@dataclasses.dataclass(frozen=True)
class Case:
    """What was trained and what it is asked about.

    Attributes:
        run: the finished run.
        path: of the data set.
        info: description of the data set.
        clips: of the test split.
        windows: of those clips, preprocessed, in NumPy.
    """

    run: run_lib.Run
    path: pathlib.Path
    info: schema.DatasetInfo
    clips: pipeline.Clips
    windows: batch.Batch

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that the model reads, in the order of tokens."""
        return tuple(self.run.transforms)

    def scores(self, windows: batch.Batch) -> Float[np.ndarray, "N K"]:
        """Scores the test clips from windows that stand in for theirs."""
        weights = window_weights(windows)[:, None]
        scores = evaluate.pooled(weights * self.run.predict(windows), self.clips)
        return scores / evaluate.pooled(weights, self.clips)

    def raw(self, name: str) -> list[Float[np.ndarray, "t D"]]:
        """Features of a modality before preprocessing: the measured rows by window."""
        frames = self.windows.frame_mask[name].shape[-1]
        found = []
        for clip in records.read_split(self.path, self.info, SPLIT):
            for start in pipeline.window_starts(
                clip, self.run.config.data.max_frames, self.modalities
            ):
                there = clip.frame_mask[name][start : start + frames]
                found.append(clip.features[name][start : start + frames][there])
        return found

    def filled(
        self, name: str, rows: Sequence[Float[np.ndarray, "t D"]]
    ) -> batch.Batch:
        """The windows with other raw rows where a modality was measured."""
        mask, transform = self.windows.frame_mask[name], self.run.transforms[name]
        features = np.zeros_like(self.windows.features[name])
        features[mask] = preprocess.apply(transform, np.concatenate(rows))
        return self.windows.replace(features=self.windows.features | {name: features})

    def windows_of(self, clip: int) -> Int[np.ndarray, " w"]:
        """Numbers of the windows of a clip."""
        return np.flatnonzero(self.clips.window_clip == clip)


def window_weights(windows: batch.Batch) -> Float[np.ndarray, " W"]:
    """Weighs windows for the mean over a clip's.

    A window from which everything was hidden does not count, as one in which nothing
    was measured does not, unless no window of its clip has anything left.
    """
    return np.where(windows.clip_mask, 1.0, 1e-12)


def load(workdir: pathlib.Path, data: pathlib.Path | None = None) -> Case:
    """Reads a run and the test split of its data set.

    Args:
        workdir: folder of the run.
        data: folder of the data set; None for where it was in training.

    Raises:
        InputError: when the run is not finished, the data set is gone or another one,
            or scores differ from those that the run wrote.
    """
    run = run_lib.Run.load(workdir)
    opened = run.open_dataset(data)
    split = dataclasses.replace(opened, memory_bytes=math.inf).split(SPLIT)
    case = Case(run, opened.path, opened.info, split.clips, split.windows)
    run.check_scores(case.clips, case.scores(case.windows))
    return case
