"""A finished run, read back from its folder: where all that goes on from one starts.

What it was trained on is not needed, but for `open_dataset`. The preprocessing, the
network and its parameters are read when they are first used, so that a table of many
runs costs no more than their JSON.
"""

import contextlib
import copy
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from tqa_jax import batch as batches
from tqa_jax import (
    checkpoint,
    ensemble,
    evaluate,
    models,
    pipeline,
    prepare,
    preprocess,
    records,
    run_folder,
    scorer,
)
from tqa_jax import schema as schema_lib

_MADE = ("params", "_scores", "_features")  # of other attributes, see `Run.but`


@dataclasses.dataclass(eq=False)
class Run:
    """A finished run.

    Attributes:
        folder: of the run; None for one that is in memory only.
        description: content of `config.json`.
        results: content of `results.json`.
    """

    folder: pathlib.Path | None = None
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> "Run":
        """Reads a finished run.

        Raises:
            InputError: when there is no run, it is not finished, or one of the files
                is damaged; the attributes raise it likewise when they are first used.
        """
        folder = pathlib.Path(folder)
        read = []
        for name, what, remedy in (
            ("config.json", "no run", "make one with `python -m tqa_jax.main`"),
            (
                "results.json",
                "a run that is not finished",
                "the command that started it finishes it",
            ),
        ):
            if not (folder / name).is_file():
                raise schema_lib.InputError(f"{folder} holds {what}; {remedy}")
            read.append(run_folder.read_json(folder / name, remedy))
        return cls(folder, *read)

    @classmethod
    def of_scorer(cls, path: str | pathlib.Path) -> "Run":
        """Reads preprocessing and parameters back from a scorer's file.

        Returns:
            A run without folder, configuration and results.

        Raises:
            ScorerError: when the file cannot be used.
        """
        judge = scorer.load(path)
        found = schema_lib.Schema.from_json(judge.schema)
        transforms = {
            one.name: preprocess.Transform(
                *(
                    judge.arrays[f"transforms/{one.name}/{field}"]
                    for field in scorer.TRANSFORM
                ),
                explained=1.0,
            )
            for one in found.modalities
        }
        members = [
            traverse_util.unflatten_dict(
                {
                    tuple(name.split("/")[1:]): array[number]
                    for name, array in judge.arrays.items()
                    if name.startswith("params/")
                }
            )
            for number in range(judge.description["members"])
        ]
        return cls().but(data_schema=found, transforms=transforms, members=members)

    def but(self, **parts: Any) -> "Run":
        """Returns the run with other attributes, such as `model` or `members`."""
        other = copy.copy(self)
        for name in _MADE:
            vars(other).pop(name, None)
        vars(other).update(parts)
        return other

    @functools.cached_property
    def config(self) -> ml_collections.ConfigDict:
        """Resolved configuration."""
        config = ml_collections.ConfigDict(self.description["config"])
        if "members" not in config.train:
            raise schema_lib.InputError(
                f"{self.folder} is a run of an earlier version of tqa_jax; train it "
                "again"
            )
        return config

    @functools.cached_property
    def data_schema(self) -> schema_lib.Schema:
        """Of the data set."""
        return schema_lib.Schema.from_json(self.description["data"]["schema"])

    @functools.cached_property
    def schema(self) -> schema_lib.Schema:
        """Of the data set, with the modalities that the model reads."""
        by_name = {one.name: one for one in self.data_schema.modalities}
        used = tuple(by_name[name] for name in self.transforms)
        return dataclasses.replace(self.data_schema, modalities=used)

    @functools.cached_property
    def transforms(self) -> Mapping[str, preprocess.Transform]:
        """Fitted preprocessing of each modality, in the order of tokens."""
        return preprocess.load(self.folder / "preprocess.npz")

    @functools.cached_property
    def model(self) -> models.Model:
        """The network."""
        widths = {name: transform.width for name, transform in self.transforms.items()}
        return models.from_config(self.config, widths, self.schema.tasks)

    @functools.cached_property
    def members(self) -> Sequence[Any]:
        """Parameters of the best epoch, in NumPy: a tree for each network."""
        number = self.config.train.members
        place, epoch = self.folder / "checkpoints", self.results["selected"]["epoch"]
        with contextlib.closing(checkpoint.Checkpoints(place)) as found:
            params = found.best(epoch)
        if number == 1:
            return [params]
        return [
            jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), params)
            for i in range(number)
        ]

    @functools.cached_property
    def params(self) -> Any:
        """The parameters as training has them: stacked if there are several members."""
        first, *others = self.members
        if not others:
            return jax.tree.map(jnp.asarray, first)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), first, *others)

    def each_member(
        self, function: Callable[[Any, batches.Batch], Any]
    ) -> Callable[[Any, batches.Batch], Any]:
        """Compiles a function of one network's parameters and a batch.

        Returns:
            The function of `params` and a batch; a leading axis is that of members.
        """
        return jax.jit(ensemble.members(function, len(self.members)))

    @functools.cached_property
    def _scores(self) -> Callable[[Any, batches.Batch], Float[Array, "M B K"]]:
        return self.each_member(self.model.apply)

    @functools.cached_property
    def _features(self) -> Callable[[Any, batches.Batch], Float[Array, "M B D"]]:
        model = self.model
        return self.each_member(
            lambda params, rows: model.join(params, model.trunk(params, rows))
        )

    def predict(
        self, windows: batches.Batch | prepare.Split
    ) -> Float[np.ndarray, "W K"]:
        """Scores windows, in the units of each task.

        Args:
            windows: preprocessed, see `windows`; or a split, which may be streamed.

        Returns:
            The mean over members. Of the test split, `evaluate.pooled` makes of them
            the scores in `predictions.csv`: it is the same program on the same batches.
        """
        return self._over(self._scores, windows).astype(float).mean(axis=0)

    def features(
        self, windows: batches.Batch | prepare.Split
    ) -> Float[np.ndarray, "M W D"]:
        """Computes what all heads of each member read, for each window."""
        return self._over(self._features, windows)

    def _over(self, function: Callable, windows: batches.Batch | prepare.Split):
        split = isinstance(windows, prepare.Split)
        size = windows.size if split else len(windows.labels)
        order = pipeline.in_order(size, self.config.train.batch_size)
        taken = windows.batches(order) if split else pipeline.pick(windows, order)
        rows = [np.asarray(function(self.params, one)) for one in taken]
        return np.concatenate(rows, axis=1)[:, :size]

    def windows(
        self, clips: Sequence[records.Clip]
    ) -> tuple[pipeline.Clips, batches.Batch]:
        """Cuts clips into windows and preprocesses them, in NumPy.

        Returns:
            The clips that have a measured frame, and their windows.
        """
        most = self.config.data.max_frames
        described = pipeline.describe(clips, most, self.transforms)
        frames = min(most, max(described.frames, default=1))
        return described, pipeline.load_windows(
            [clips[n] for n in described.record],
            self.transforms,
            max_frames=most,
            frames=frames,
        )

    def score(self, clips: pipeline.Clips, windows: batches.Batch | prepare.Split):
        """Scores clips: the mean over their windows and over members (N, K)."""
        return evaluate.pooled(self.predict(windows), clips)

    def open_dataset(self, path: str | pathlib.Path | None = None) -> prepare.Dataset:
        """Opens the data set that the run was trained on, preprocessed as it was then.

        Args:
            path: its folder; None for where it was in training.

        Raises:
            InputError: when there is none, or another one.
        """
        written = self.description["data"]
        path = pathlib.Path(path or written["path"])
        if not (path / "dataset.json").is_file():
            raise schema_lib.InputError(
                f"no data set at {path}, where the run had it; say where it is with "
                "--data"
            )
        found = run_folder.checksum(path)
        if found != written["sha256"]:
            raise schema_lib.InputError(
                f"{path} is not the data set that the run was trained on: its "
                f"dataset.json has sha256 {found[:12]}..., expected "
                f"{written['sha256'][:12]}..."
            )
        return prepare.Dataset(
            path,
            schema_lib.load(path),
            tuple(self.transforms),
            self.transforms,
            self.config.data.max_frames,
            self.config.data.memory_gb * 2**30,
        )

    def check_scores(
        self, clips: pipeline.Clips, scores: Float[np.ndarray, "N K"]
    ) -> None:
        """Checks that scores of the test clips are those that the run wrote.

        Raises:
            InputError: for other clips, or scores that differ by more than rounding.
        """
        path, written = self.folder / "predictions.csv", self.predictions().of("test")
        if tuple(written.clips) != tuple(clips.names):
            raise schema_lib.InputError(
                f"{path} has other test clips than the data set; train the run again"
            )
        ranges = np.array([task.high - task.low for task in self.schema.tasks])
        off = np.abs(scores - written.scores) / ranges
        # Lower precision rounds otherwise in another program.
        allowed = 1e-3 if self.config.model.dtype == "float32" else 3e-2
        if not off.max() <= allowed:
            raise schema_lib.InputError(
                f"scores differ from those in {path} by up to {off.max():.3g} of the "
                "range: parameters and predictions are not of the same run"
            )

    def predictions(self) -> evaluate.Predictions:
        """Reads `predictions.csv`: scores and labels of validation and test clips.

        Raises:
            InputError: when it is missing or damaged.
        """
        path = self.folder / "predictions.csv"
        if not path.is_file():
            raise schema_lib.InputError(f"{path} is missing; train the run again")
        return evaluate.read_predictions(path, self.data_schema.task_names)
