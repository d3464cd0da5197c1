"""The library's network on many folds, seeds and settings at once, as one program.

The one thing to know: every fold has its own copy of all clips, preprocessed by what
its training clips are like, in which only training clips have labels. So a fold is a
choice of rows, and all of them go through one compiled program.

Beside the five tasks, of which four have no label at all, the network has auxiliary
ones made from training clips: which generator made the clip, what that generator scores
on average, and how far the clip is from it. The score is that of `overall`. Inputs are
what the table says of a clip, how likely each generator is by a discriminant analysis
of training clips, and the key frames as a time axis, if a setting has them. The other
settings are numbers that runs of one program may differ in (`tqa_jax.hyperparameters`).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jaxtyping import Float
from sklearn import discriminant_analysis, preprocessing

from experiments.talking_heads import clips as clips_lib
from experiments.talking_heads import protocols
from tqa_jax import (
    assemble,
    config_files,
    hyperparameters,
    pipeline,
    preprocess,
    schema,
    train_step,
)
from tqa_jax import batch as batches

Setting = Mapping[str, Any]
Kept = Callable[[str, Callable[[], Any]], Any]
AT_ONCE = 16
"""Runs of a device side by side."""

_INPUTS = {"table": ("summary",), "key frames": ("summary", "visual")}
_SHARE = 3.0  # scale of probabilities, so that they stand out among z-scores
_WINSORISE = 1.5
_RUN = jax.sharding.PartitionSpec("run")
_SAME = jax.sharding.PartitionSpec()


class Run(NamedTuple):
    """One network: number of the fold, its seed, and a setting of `settings`."""

    fold: int
    seed: int
    setting: Setting


def settings(*, quick: bool = False) -> list[Setting]:
    """Returns what is tried on inner folds.

    `recognise` and `level` are weights of the auxiliary tasks. When training stops is
    chosen, too: `Plan.stops` lists the epochs.
    """
    found = [
        {
            "inputs": inputs,
            "recognise": recognise,
            "level": level,
            "learning_rate": rate,
            "weight_decay": decay,
        }
        for inputs, recognise, level, rate, decay in (
            ("table", 1.0, 0.0, 3e-3, 3.0),
            ("table", 1.0, 0.0, 3e-3, 1.0),
            ("table", 0.0, 0.0, 3e-3, 1.0),
            ("table", 1.0, 1.0, 3e-3, 3.0),
            ("key frames", 1.0, 0.0, 3e-3, 3.0),
        )
    ]
    return found[:1] if quick else found


class Plan(NamedTuple):
    """Size of the training.

    Attributes:
        stops: epochs after which scores are taken, rising by equal steps.
        width: of the network.
    """

    stops: tuple[int, ...] = (10, 20)
    width: int = 16


def train(
    clips: clips_lib.Clips,
    folds: Sequence[protocols.Fold],
    runs: Sequence[Run],
    plan: Plan,
    kept: Kept = lambda name, make: make(),
) -> list[Float[np.ndarray, "stops m"]]:
    """Trains networks and scores the test clips of their folds.

    Args:
        clips: all clips.
        folds: which clips each network is trained and tested on.
        runs: what to train.
        plan: how long, and how large.
        kept: `(name, make) -> value`, may know the value of a name from before; asked
            for the scores of runs that go through the program together.

    Returns:
        For each run, scores of its test clips at each of `Plan.stops`.
    """
    found: dict[int, np.ndarray] = {}
    for inputs in dict.fromkeys(run.setting["inputs"] for run in runs):
        mine = [i for i, run in enumerate(runs) if run.setting["inputs"] == inputs]
        scores = _train(clips, folds, [runs[i] for i in mine], plan, inputs, kept)
        found |= dict(zip(mine, scores, strict=True))
    return [found[i] for i in range(len(runs))]


def _train(
    clips: clips_lib.Clips,
    folds: Sequence[protocols.Fold],
    runs: Sequence[Run],
    plan: Plan,
    inputs: str,
    kept: Kept,
) -> list[np.ndarray]:
    """Trains runs that have the same inputs."""
    size = config_files.load("default").train.batch_size
    steps = min(len(fold.train) for fold in folds) // size
    if not steps:
        raise schema.InputError(
            f"a fold has fewer than {size} training clips; the network needs more"
        )
    devices = jax.local_devices()[: len(runs)]
    places = min(AT_ONCE, -(-len(runs) // len(devices))) * len(devices)
    widest = max(len(fold.test) for fold in folds)

    @functools.cache
    def prepared() -> tuple[Callable[..., jax.Array], batches.Batch]:
        data = jax.tree.map(
            lambda *parts: np.concatenate(parts),
            *[block(clips, fold.train, inputs) for fold in folds],
        )
        tasks = _tasks(clips)
        facts = assemble.Facts(
            tasks,
            {name: rows.shape[-1] for name, rows in data.features.items()},
            label_means=np.zeros(len(tasks), np.float32),  # nothing is smoothed
            label_variances=np.ones(len(tasks)),
            label_correlation=np.eye(len(tasks), dtype=np.float32),
            steps_per_epoch=steps,
        )
        config = _config(plan, steps)
        assemble.check_fit(config, facts)
        return _program(config, facts, devices), data

    def trained(some: Sequence[Run]) -> list[Any]:
        program, data = prepared()
        filled = [*some, *[some[0]] * (places - len(some))]
        scores = program(
            _numbers(filled, len(folds)),
            np.stack([_order(folds, one, len(clips), steps, plan) for one in filled]),
            np.stack([_tested(folds, one, len(clips), widest) for one in filled]),
            data,
        )
        return [
            values[:, : len(folds[one.fold].test)].tolist()
            for one, values in zip(some, np.asarray(scores), strict=False)
        ]

    found: list[np.ndarray] = []
    for start in range(0, len(runs), places):
        make = functools.partial(trained, runs[start : start + places])
        found += map(np.array, kept(f"{inputs}-{start}", make))
    return found


def block(clips: clips_lib.Clips, train: np.ndarray, inputs: str) -> batches.Batch:
    """All clips as a fold sees them: labels of its training clips only.

    Args:
        clips: all clips.
        train: numbers of the training clips.
        inputs: of `settings`.
    """
    names = _INPUTS[inputs]
    chosen = [clips.frames[number] for number in train]

    def rows():
        for clip in chosen:
            measured = pipeline.measured_rows(clip)
            yield {name: measured[name] for name in names}

    widths = {name: clips.schema.widths[name] for name in names}
    transforms = preprocess.fit(rows, widths, pca={}, winsorise=_WINSORISE)
    # What the table says of a clip is the same on all of its rows.
    frames = 1 if inputs == "table" else max(clip.frames for clip in clips.frames)
    windows = pipeline.stack(
        [pipeline.cut(clip, 0, frames, transforms) for clip in clips.frames]
    )
    recognised = np.repeat(_recognised(clips, train)[:, None], frames, axis=1)
    labels = np.full((len(clips), len(_tasks(clips))), np.nan)
    labels[train] = _labels(clips, train)
    present = np.isfinite(labels)
    summary = np.concatenate([windows.features["summary"], recognised], axis=-1)
    return batches.Batch(
        windows.features | {"summary": summary},
        windows.frame_mask,
        np.where(present, labels, 0).astype(np.float32),
        present,
    )


def _names(clips: clips_lib.Clips) -> list[str]:
    return sorted(set(clips.generators.tolist()))


def _tasks(clips: clips_lib.Clips) -> list[schema.Task]:
    """The tasks of the data set, then the auxiliary ones."""
    span = clips_lib.HIGH - clips_lib.LOW
    return [
        *clips.schema.tasks,
        schema.Task("level_mean", clips_lib.LOW, clips_lib.HIGH),
        schema.Task("level_rest", -span, span),
        *[schema.Task(f"recognise_{name}", 0.0, 1.0) for name in _names(clips)],
    ]


def _labels(clips: clips_lib.Clips, train: np.ndarray) -> Float[np.ndarray, "n K"]:
    """Labels of training clips for all tasks."""
    labels, names = clips.labels[train], clips.generators[train]
    rated = np.full((len(train), len(clips.schema.tasks)), np.nan)
    rated[:, clips.schema.task_names.index(clips_lib.RATED)] = labels
    means = {name: labels[names == name].mean() for name in set(names.tolist())}
    mean = np.array([means[name] for name in names.tolist()])
    one_hot = names[:, None] == np.array(_names(clips))
    return np.column_stack([rated, mean, labels - mean, one_hot])


def _recognised(clips: clips_lib.Clips, train: np.ndarray) -> Float[np.ndarray, "N G"]:
    """How likely each generator is, by a discriminant analysis of training clips."""
    scaler = preprocessing.StandardScaler().fit(clips.means[train])
    x = np.clip(scaler.transform(clips.means), -3, 3)
    model = discriminant_analysis.LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage="auto"
    ).fit(x[train], clips.generators[train])
    found = np.zeros((len(clips), len(_names(clips))), np.float32)
    places = [_names(clips).index(name) for name in model.classes_.tolist()]
    found[:, places] = _SHARE * model.predict_proba(x)
    return found


def _config(plan: Plan, steps: int) -> ml_collections.ConfigDict:
    config = config_files.load("default")
    config.update_from_flattened_dict(
        {
            "model.preset": "advanced",
            "model.width": plan.width,
            "model.depth": 1,
            "model.dropout": 0.1,
            # Attention over a row or ten loses more by its layer norms than it gains.
            "model.temporal_layers": 0,
            "model.pooling": "mean",
            "model.paths": "a",
            "model.head_hidden": (plan.width,),
            "model.head_dropout": 0.1,
            "model.head_style": "plain",
            "model.head_activation": "none",
            "weighting.name": "fixed",
            "consistency.weight": 0.0,
            "train.epochs": plan.stops[-1],
            "optim.warmup_steps": min(20, steps * plan.stops[-1] // 2),
        }
    )
    return config


def _program(
    config: ml_collections.ConfigDict,
    facts: assemble.Facts,
    devices: Sequence[jax.Device],
) -> Any:
    """Compiles training and scoring of runs, spread over devices."""
    task = facts.names.index(clips_lib.RATED)

    def one(numbers, order, tested, data):
        parts = assemble.make(_with(config, facts, numbers), facts)
        segment = train_step.segment(parts.step)

        def until_stop(state, rows):
            state, _ = segment(state, data, rows)
            scores = parts.score(state.params, batches.take(data, tested))
            return state, scores[0, :, task]

        _, scores = jax.lax.scan(until_stop, parts.init(numbers["seed"]), order)
        return scores

    mesh = jax.sharding.Mesh(np.array(devices), ("run",))
    return jax.jit(
        jax.shard_map(
            jax.vmap(one, in_axes=(0, 0, 0, None)),
            mesh=mesh,
            in_specs=(_RUN, _RUN, _RUN, _SAME),
            out_specs=_RUN,
            check_vma=False,
        )
    )


def _with(
    config: ml_collections.ConfigDict, facts: assemble.Facts, numbers: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Puts the numbers of a run into the configuration; they are traced."""
    weights = {
        name: numbers[kind]
        for name in facts.names
        for kind in ("recognise", "level")
        if name.startswith(f"{kind}_")
    }
    changed = hyperparameters.put(
        config,
        {
            "optim.learning_rate": numbers["learning_rate"],
            "optim.weight_decay": numbers["weight_decay"],
        },
    )
    with changed.unlocked():
        changed.weighting.fixed.values = ml_collections.ConfigDict(weights)
    return changed


def _numbers(runs: Sequence[Run], folds: int) -> dict[str, np.ndarray]:
    """The numbers of runs; networks of different folds share no seed."""
    keys = [key for key in runs[0].setting if key != "inputs"]
    return {
        "seed": np.array([run.seed * folds + run.fold for run in runs], np.uint32),
        **{key: np.array([r.setting[key] for r in runs], np.float32) for key in keys},
    }


def _order(
    folds: Sequence[protocols.Fold], run: Run, clips: int, steps: int, plan: Plan
) -> np.ndarray:
    """Rows of every batch until each stop (stops, steps, batch)."""
    train, size = folds[run.fold].train, config_files.load("default").train.batch_size
    epochs = [
        train[pipeline.order(len(train), size, seed=run.seed, epoch=epoch)[:steps]]
        for epoch in range(plan.stops[-1])
    ]
    rows = np.concatenate(epochs).reshape(len(plan.stops), -1, size)
    return (rows + run.fold * clips).astype(np.int32)


def _tested(
    folds: Sequence[protocols.Fold], run: Run, clips: int, widest: int
) -> np.ndarray:
    """Rows of the test clips, filled up with -1."""
    rows = folds[run.fold].test + run.fold * clips
    return np.pad(rows, (0, widest - len(rows)), constant_values=-1).astype(np.int32)
