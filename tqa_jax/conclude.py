"""The end of a run: what the best parameters are worth, on the test split, once.

The one thing to know: everything that is fitted here (the logistic mapping, the
half-width of intervals, what training features look like) is fitted on training or
validation clips.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from tqa_jax import conformal, evaluate, pipeline, prepare, reference


def conclude(
    workdir: pathlib.Path,
    *,
    config: ml_collections.ConfigDict,
    data: prepare.Dataset,
    train: prepare.Split,
    validation: prepare.Split,
    score: Callable[..., jax.Array],
    draw: Callable[..., jax.Array] | None,
    params: Any,
) -> dict[str, Any]:
    """Evaluates parameters and writes `predictions.csv` and `reference.npz`.

    Args:
        workdir: folder of the run.
        config: see `configs/default.py`.
        data: the data set.
        train: its training split.
        validation: its validation split.
        score: compiled, see `assemble.Parts`.
        draw: compiled, see `assemble.Parts`.
        params: the best parameters.

    Returns:
        The content of `results.json`, but for what training selected.
    """
    batch_size = config.train.batch_size
    splits = {"validation": validation, "test": data.split("test")}
    tasks = data.info.schema.tasks
    scores, spreads = {}, {}
    for name, split in splits.items():
        members = _predict(score, params, split, batch_size)
        draws = members
        if draw is not None:
            rng = jax.random.key(config.seed)
            draws = _predict(
                lambda params, batch, rng=rng: draw(params, batch, rng),
                params,
                split,
                batch_size,
            )
        scores[name] = members.mean(axis=0)
        spreads[name] = draws.std(axis=0, ddof=1) if len(draws) > 1 else None
    pairs = {name: (scores[name], splits[name].clips.labels) for name in splits}
    common = {
        "sources": splits["test"].clips.sources,
        "tasks": tasks,
        "resamples": config.evaluate.resamples,
        "seed": config.seed,
    }
    results = evaluate.final(**pairs, **common)
    results["confidence"] = conformal.report(
        **pairs, spread=spreads["test"], **common
    ) | {"spread_over": _spread_over(config)}
    results["clips"] = {
        name: len(split.clips.names)
        for name, split in {"train": train, **splits}.items()
    }
    evaluate.write_predictions(
        workdir / "predictions.csv",
        {name: (splits[name].clips, scores[name], spreads[name]) for name in splits},
        tasks,
    )
    order = pipeline.in_order(train.size, batch_size)
    reference.save(
        workdir / "reference.npz", reference.fit(lambda: train.batches(order))
    )
    return results


def _predict(
    score: Callable[..., jax.Array], params: Any, split: prepare.Split, batch_size: int
) -> np.ndarray:
    order = pipeline.in_order(split.size, batch_size)
    return evaluate.predict(score, params, split.batches(order), split.clips)


def _spread_over(config: ml_collections.ConfigDict) -> str | None:
    if config.train.members > 1:
        return f"{config.train.members} members"
    draws = config.evaluate.dropout_draws
    return f"{draws} draws of dropout" if draws > 1 else None
