"""A finished run beside the clips of its test split, ready to be scored in other ways.

The one thing to know: the data set must be the one that the run was trained on, and
scores made here must be those of `predictions.csv`; else the run is refused.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from tqa_jax import (
    batch,
    ensemble,
    evaluate,
    pipeline,
    preprocess,
    records,
    schema,
    trained,
)
from tqa_jax.report import files

SPLIT = "test"


@dataclasses.dataclass(frozen=True)
class Case:
    """What was trained and what it is asked about.

    Attributes:
        run: the finished run.
        folder: of the run.
        path: of the data set.
        info: description of the data set.
        clips: of the test split.
        windows: of those clips, preprocessed, in NumPy.
    """

    run: trained.Trained
    folder: pathlib.Path
    path: pathlib.Path
    info: schema.DatasetInfo
    clips: pipeline.Clips
    windows: batch.Batch

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that the model reads, in the order of tokens."""
        return tuple(self.run.transforms)

    @functools.cached_property
    def params(self) -> Any:
        """Parameters of all members, stacked."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *self.run.members)

    @functools.cached_property
    def _score(self):
        return jax.jit(ensemble.members(self.run.model.apply))

    def window_scores(self, windows: batch.Batch) -> Float[np.ndarray, "W K"]:
        """Scores windows, the mean over members."""
        size = self.run.config.train.batch_size
        number = len(windows.labels)
        found = []
        for rows in pipeline.in_order(number, size):
            taken = rows[rows >= 0]
            short = size - len(taken)

            def pick(array, taken=taken, short=short):
                pad = [(0, short)] + [(0, 0)] * (array.ndim - 1)
                return np.pad(array[taken], pad)

            one = jax.tree.map(pick, windows)
            found.append(np.asarray(self._score(self.params, one)))
        return np.concatenate(found, axis=1)[:, :number].mean(axis=0)

    def scores(self, windows: batch.Batch) -> Float[np.ndarray, "N K"]:
        """Scores the test clips from windows that stand in for theirs."""
        weights = window_weights(windows)[:, None]
        scores = weights * self.window_scores(windows)
        weights = np.broadcast_to(weights, scores.shape)
        scores, weights = evaluate.pooled(np.stack([scores, weights]), self.clips)
        return scores / weights

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
    run = trained.load(workdir)
    # The path and the checksum are no part of what `trained` reads.
    described = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    path = pathlib.Path(data or described["data"]["path"])
    if not (path / "dataset.json").is_file():
        raise schema.InputError(
            f"no data set at {path}, where the run had it; say where it is with --data"
        )
    found = hashlib.sha256((path / "dataset.json").read_bytes()).hexdigest()
    expected = described["data"]["sha256"]
    if found != expected:
        raise schema.InputError(
            f"{path} is not the data set that the run was trained on: its "
            f"dataset.json has sha256 {found[:12]}..., expected {expected[:12]}..."
        )
    info = schema.load(path)
    most = run.config.data.max_frames
    clips = pipeline.describe(
        records.read_split(path, info, SPLIT), most, run.transforms
    )
    windows = pipeline.load_windows(
        records.read_split(path, info, SPLIT),
        run.transforms,
        max_frames=most,
        frames=min(most, max(clips.frames)),
    )
    case = Case(run, workdir, path, info, clips, windows)
    _check(case)
    return case


def _check(case: Case) -> None:
    """Compares the scores with those that the run wrote."""
    path = case.folder / "predictions.csv"
    if not path.is_file():
        raise schema.InputError(f"{path} is missing; train the run again")
    tasks = case.run.schema.tasks
    try:
        kept = files.predictions(path, [task.name for task in tasks])
    except (ValueError, KeyError) as error:
        raise schema.InputError(f"{path} is damaged: {error}") from error
    test = kept.splits == SPLIT
    if tuple(kept.clips[test]) != case.clips.names:
        raise schema.InputError(
            f"{path} has other test clips than {case.path}; train the run again"
        )
    ranges = np.array([task.high - task.low for task in tasks])
    off = np.abs(case.scores(case.windows) - kept.scores[test]) / ranges
    # Lower precision rounds otherwise in another program.
    allowed = 1e-3 if case.run.config.model.dtype == "float32" else 3e-2
    if not off.max() <= allowed:
        raise schema.InputError(
            f"scores differ from those in {path} by up to {off.max():.3g} of the "
            "range: parameters and predictions are not of the same run"
        )
