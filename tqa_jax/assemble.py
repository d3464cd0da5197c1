"""From a configuration to the pure functions that it stands for.

The one thing to know: `build` checks settings before a step is compiled, a misspelt
name or a number that cannot work is an `InputError`, and then calls `make`, which only
puts functions together. So `make` may itself be called while tracing, with numbers of
the configuration that are traced (see `hyperparameters`): that is how the runs of a
sweep share a program.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float

from tqa_jax import batch as batches
from tqa_jax import (
    cli,
    ensemble,
    evaluate,
    hyperparameters,
    models,
    multitask,
    optim,
    prepare,
    regularizers,
    schema,
    start,
    surgery,
    train_step,
    weighting,
)

_logger = logging.getLogger(__name__)


class Parts(NamedTuple):
    """The pure functions that a configuration stands for.

    Attributes:
        step: `(state, batch) -> (state, metrics)`, of all members of an ensemble.
        init: `seed -> state`, compiled.
        score: `(params, batch) -> scores` of every member, compiled.
        draw: `(params, batch, rng) -> scores` of draws of dropout, compiled; None for
            an ensemble, whose members say how certain a score is.
        represent: `(params, batch) -> (M, B, D)`, the features that all heads read,
            compiled.
        more: further arguments of `draw`: numbers of a sweep's run.
    """

    step: train_step.Step
    init: Callable[[int | jax.Array], train_step.State]
    score: Callable[[Any, batches.Batch], Float[Array, "M B K"]]
    draw: Callable[[Any, batches.Batch, jax.Array], Float[Array, "S B K"]] | None
    represent: Callable[[Any, batches.Batch], Float[Array, "M B D"]]
    more: tuple[Any, ...] = ()


class Facts(NamedTuple):
    """What a configuration needs to know of the data.

    Attributes:
        tasks: of the data set.
        widths: of each modality after preprocessing, in the order of tokens.
        label_means: of each task over training clips.
        label_variances: of each task over training clips, as on a 1-5 scale.
        label_correlation: between tasks over training clips (K, K).
        steps_per_epoch: training steps of an epoch.
        start: parameters to start from, None for fresh ones.
    """

    tasks: Sequence[schema.Task]
    widths: Mapping[str, int]
    label_means: np.ndarray
    label_variances: np.ndarray
    label_correlation: np.ndarray
    steps_per_epoch: int
    start: Any = None

    @property
    def names(self) -> list[str]:
        """Names of the tasks."""
        return [task.name for task in self.tasks]

    @property
    def units(self) -> np.ndarray:
        """`schema.Task.unit` of each task."""
        return np.array([task.unit for task in self.tasks])


def look_up(
    data: prepare.Dataset,
    *,
    labels: np.ndarray,
    steps_per_epoch: int,
    start_from: str = "",
) -> Facts:
    """Finds what configurations need to know of a data set.

    Args:
        data: the opened data set.
        labels: training labels (clips, K).
        steps_per_epoch: training steps of an epoch.
        start_from: finished run to start from, or empty.
    """
    means, correlation = prepare.label_statistics(labels)
    tasks = data.info.schema.tasks
    units = np.array([task.unit for task in tasks])
    return Facts(
        tasks,
        {name: data.transforms[name].width for name in data.modalities},
        means,
        prepare.label_variances(labels * units),
        correlation,
        steps_per_epoch,
        start.params(start_from),
    )


def build(
    config: ml_collections.ConfigDict,
    data: prepare.Dataset,
    *,
    labels: np.ndarray,
    steps_per_epoch: int,
) -> Parts:
    """Builds model, weighting, optimiser and step from a configuration.

    Args:
        config: see `configs/default.py`.
        data: the opened data set.
        labels: training labels (clips, K), for smoothing and `corr_target`.
        steps_per_epoch: training steps of an epoch.

    Raises:
        InputError: for a setting that does not exist or does not fit the data.
    """
    facts = look_up(
        data,
        labels=labels,
        steps_per_epoch=steps_per_epoch,
        start_from=config.train.start_from,
    )
    for remark in check_fit(config, facts):
        _logger.info("%s", remark)
    check_shared(config, facts)
    return make(config, facts)


def make(config: ml_collections.ConfigDict, facts: Facts) -> Parts:
    """Puts the functions together; looks at no number that may be traced.

    Args:
        config: checked by `check_fit`; its `hyperparameters` may be traced.
        facts: of the data.
    """
    names = facts.names
    model = models.from_config(config, facts.widths, facts.tasks)
    if facts.start is not None:
        model = model._replace(init=lambda rng: jax.tree.map(jnp.asarray, facts.start))
    weights = weighting.make(
        config.weighting.name,
        tasks=names,
        facts={
            "label_variances": facts.label_variances,
            "steps_per_epoch": facts.steps_per_epoch,
        },
        **config.weighting.get(config.weighting.name, {}),
    )
    combine = None
    if config.surgery.name:
        combine = surgery.make(
            config.surgery.name, **config.surgery.get(config.surgery.name, {})
        )
    optimizer = optim.make(
        learning_rate=config.optim.learning_rate,
        schedule=config.optim.schedule,
        warmup_steps=_warmup_steps(config, facts),
        total_steps=config.train.epochs * facts.steps_per_epoch,
        end_learning_rate=config.optim.end_learning_rate,
        stretch=config.optim.stretch,
        weight_decay=config.optim.weight_decay,
        clip_norm=config.optim.clip_norm,
        beta1=config.optim.beta1,
        beta2=config.optim.beta2,
        task_factors=task_factors(config, names),
        plateau_drop=config.optim.plateau_drop,
    )
    columns = _consistency_columns(config, names)
    objective = train_step.Objective(
        l1_weight=config.loss.l1_weight,
        consistency=regularizers.make(
            config.consistency.mode,
            facts.label_correlation[np.ix_(columns, columns)],
            low=np.array([facts.tasks[k].low for k in columns]),
            units=facts.units[columns],
        ),
        consistency_weight=config.consistency.weight if len(columns) > 1 else 0.0,
        consistency_tasks=tuple(columns),
        smoothing=config.loss.label_smoothing,
        label_means=jnp.asarray(facts.label_means),
        units=facts.units,
    )
    step = train_step.make(
        model=model,
        optimizer=optimizer,
        weights=weights,
        objective=objective,
        peak_learning_rate=config.optim.learning_rate,
        accumulation=config.train.accumulation,
        combine=combine,
        shared=_shared(config),
    )

    def init(seed: jax.Array) -> train_step.State:
        return train_step.init(
            seed,
            model=model,
            optimizer=optimizer,
            weights=weights,
            num_tasks=len(names),
            scale_loss=config.model.dtype == "float16",
        )

    @jax.jit
    def draw(params, batch, rng):
        rngs = jax.random.split(rng, config.evaluate.dropout_draws)
        return jax.lax.map(lambda one: model.apply(params, batch, one), rngs)

    score = ensemble.members(model.apply, config.train.members)
    represent = ensemble.members(
        lambda params, batch: model.join(params, model.trunk(params, batch)),
        config.train.members,
    )
    if config.train.members > 1:
        step = ensemble.step(step)
        init = ensemble.init(init, config.train.members)
    if config.train.members > 1 or not config.evaluate.dropout_draws:
        draw = None
    compiled = jax.jit(init)
    return Parts(
        step,
        lambda seed: compiled(jnp.uint32(seed)),
        jax.jit(score),
        draw,
        jax.jit(represent),
    )


def check(config: ml_collections.ConfigDict, described: schema.Schema) -> None:
    """Checks all that needs no more of a data set than its description.

    Args:
        config: see `configs/default.py`.
        described: of the data set, whose clips need not be read for it.

    Raises:
        InputError: for a number out of range, an unknown name, or a missing library.
    """
    _check_numbers(config)
    if config.log.tensorboard:
        cli.need("tensorboardX")
    if config.train.start_from:
        start.read(config.train.start_from)
    metric, names = config.train.select_metric, config.model.modalities
    _check_known("train.select_metric", "metric", [metric], evaluate.SELECT_METRICS)
    _check_known("model.modalities", "modality", names, described.widths)
    tasks = described.task_names
    _check_known("optim.task_factors", "task", config.optim.task_factors, tasks)
    _check_known("train.select_weights", "task", config.train.select_weights, tasks)
    values = config.weighting.get("fixed", {}).get("values", {})  # Not `.values`.
    _check_known("weighting.fixed.values", "task", values, tasks)
    excluded = set(config.consistency.exclude) - {"overall"}  # as the default says
    _check_known("consistency.exclude", "task", sorted(excluded), tasks)
    if config.train.batch_size % config.train.accumulation:
        raise schema.InputError(
            f"train.accumulation {config.train.accumulation} does not divide "
            f"train.batch_size {config.train.batch_size}"
        )
    facts = Facts(
        described.tasks,
        {name: described.widths[name] for name in names or described.widths},
        np.zeros(len(tasks)),
        np.ones(len(tasks)),
        np.eye(len(tasks)),
        steps_per_epoch=1 + config.optim.warmup_steps,
    )
    make(config, facts)  # Factories check their own options.
    check_shared(config, facts)


def _check_numbers(config: ml_collections.ConfigDict) -> None:
    for key, value in hyperparameters.flatten(config.to_dict()):
        if isinstance(value, float) and not math.isfinite(value):
            raise schema.InputError(f"{key} is {value}; expected a finite number")
        if key.startswith("preprocess.pca.") and value < 1:
            raise schema.InputError(f"{key} is {value}; expected at least 1")
    # The members of an ensemble take seeds from `members * seed` on, see `ensemble`.
    most = 2**32 // max(config.train.members, 1) - 1
    if not 0 <= config.seed <= most:
        raise schema.InputError(f"seed is {config.seed}; expected 0 to {most}")
    for key, least in (
        ("data.max_frames", 1),
        ("optim.plateau_patience", 1),
        ("train.epochs", 1),
        ("train.batch_size", 1),
        ("train.accumulation", 1),
        ("train.members", 1),
        ("train.patience", 1),
        ("train.checkpoint_every", 1),
        ("train.log_every", 1),
        ("train.max_skipped", 1),
        ("evaluate.resamples", 0),
        ("evaluate.dropout_draws", 0),
        ("optim.warmup_steps", 0),
        ("optim.end_learning_rate", 0),
        ("consistency.weight", 0),
        ("optim.weight_decay", 0),
    ):
        section, name = key.split(".")
        if config[section][name] < least:
            raise schema.InputError(
                f"{key} is {config[section][name]}; expected at least {least}"
            )
    for name in ("learning_rate", "clip_norm"):
        if config.optim[name] <= 0:
            raise schema.InputError(
                f"optim.{name} is {config.optim[name]}; expected more than 0"
            )
    peak, end = config.optim.learning_rate, config.optim.end_learning_rate
    if end > peak and config.optim.schedule != "constant":
        raise schema.InputError(
            f"optim.end_learning_rate is {end}; expected at most the peak, "
            f"optim.learning_rate {peak}"
        )


def check_fit(config: ml_collections.ConfigDict, facts: Facts) -> list[str]:
    """Checks every setting against the data, but for `check_shared`.

    Returns:
        What is done otherwise than the configuration says, a line each.

    Raises:
        InputError: for a setting that does not exist or does not fit the data.
    """
    _check_numbers(config)
    remarks = []
    warmup = _warmup_steps(config, facts)
    if warmup < config.optim.warmup_steps:
        remarks.append(
            f"warm-up of {warmup} steps, not {config.optim.warmup_steps} "
            "(optim.warmup_steps): at most a tenth of the run's "
            f"{config.train.epochs * facts.steps_per_epoch} steps"
        )
    names = facts.names
    columns = _consistency_columns(config, names)
    if config.consistency.weight and len(columns) < 2:
        remarks.append(
            f"no consistency: it compares two tasks, and of {', '.join(names)} it may "
            f"look at {len(columns)} (consistency.exclude)"
        )
    model = models.from_config(config, facts.widths, facts.tasks)
    start.check(facts.start, jax.eval_shape(model.init, jax.random.key(0)))
    make(config, facts)  # Factories check their own options.
    return remarks


def _warmup_steps(config: ml_collections.ConfigDict, facts: Facts) -> int:
    """Steps of the warm-up, at most a tenth of the run's."""
    total_steps = config.train.epochs * facts.steps_per_epoch
    return min(config.optim.warmup_steps, total_steps // 10)


def _consistency_columns(
    config: ml_collections.ConfigDict, names: Sequence[str]
) -> list[int]:
    """Numbers of the tasks that the consistency looks at."""
    return [k for k, n in enumerate(names) if n not in config.consistency.exclude]


def _shared(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Path that the configuration gives for the last shared parameter, or empty."""
    return tuple(config.weighting.shared.split("/")) if config.weighting.shared else ()


def check_shared(config: ml_collections.ConfigDict, facts: Facts) -> None:
    """Checks, on shapes alone, that all tasks share `weighting.shared`, if it is given.

    Raises:
        InputError: with the parameters to choose from.
    """
    if not config.weighting.shared:
        return
    model = models.from_config(config, facts.widths, facts.tasks)
    features = {name: jnp.zeros((1, 1, width)) for name, width in facts.widths.items()}
    one = batches.Batch(
        features,
        {name: jnp.ones((1, 1), bool) for name in features},
        jnp.zeros((1, 1)),
        jnp.ones((1, 1), bool),
    )
    params = jax.eval_shape(model.init, jax.random.key(0))
    joined = jax.eval_shape(model.trunk, params, one)
    multitask.check_shared(model.join, params, joined, _shared(config))


def _check_known(
    key: str, kind: str, given: Iterable[str], names: Iterable[str]
) -> None:
    for name in given:
        if name not in names:
            raise schema.InputError(
                f"{key} names unknown {kind} {name!r}; available: {', '.join(names)}"
            )


def task_factors(
    config: ml_collections.ConfigDict, names: Sequence[str]
) -> list[float]:
    """Factor on the learning rate of each task's head."""
    return [config.optim.task_factors.get(name, 1.0) for name in names]
