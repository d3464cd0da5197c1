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

from tqa_jax import (
    assemble,
    conformal,
    evaluate,
    output,
    pipeline,
    prepare,
    reference,
    runner,
)


def conclude(
    workdir: pathlib.Path,
    *,
    config: ml_collections.ConfigDict,
    data: prepare.Dataset,
    train: prepare.Split,
    validation: prepare.Split,
    parts: assemble.Parts,
    params: Any,
    devices: runner.Devices,
) -> dict[str, Any]:
    """Evaluates parameters and writes files about the clips.

    They are `predictions.csv`, `reference.npz` (see `reference`) and
    `representation.npz` (`clip`, `split`, `features`: mean over windows and members).

    Args:
        workdir: folder of the run.
        config: see `configs/default.py`.
        data: the data set.
        train: its training split.
        validation: its validation split.
        parts: of the run.
        params: the best parameters.
        devices: that score, and their processes, of which one writes.

    Returns:
        The content of `results.json`, but for what training selected; empty in a
        process that does not write.
    """
    batch_size = config.train.batch_size
    test = devices.group.together(lambda: data.split("test"))
    splits = {"validation": validation, "test": test}
    tasks = data.info.schema.tasks
    rng = jax.random.key(config.seed)
    params = devices.place(params)

    def predict(
        score: Callable[..., jax.Array], split: prepare.Split, *more: jax.Array
    ) -> np.ndarray:
        compiled = devices.scorer(score, *more)
        order = devices.mine(pipeline.in_order(split.size, batch_size))
        return evaluate.predict(compiled, params, split.batches(order), split.clips)

    scores, spreads, features = {}, {}, {}
    for name, split in splits.items():
        draws = members = predict(parts.score, split)
        if parts.draw is not None:
            draws = predict(parts.draw, split, rng, *parts.more)
        features[name] = predict(parts.represent, split).mean(axis=0)
        scores[name] = members.mean(axis=0)
        spreads[name] = draws.std(axis=0, ddof=1) if len(draws) > 1 else None
    if not devices.group.writes:
        return {}
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
    output.write_arrays(
        workdir / "representation.npz",
        clip=np.array(
            [name for split in splits.values() for name in split.clips.names]
        ),
        split=np.repeat(list(splits), [len(rows) for rows in features.values()]),
        features=np.concatenate(list(features.values())).astype(np.float32),
    )
    order = pipeline.in_order(train.size, batch_size)
    reference.save(
        workdir / "reference.npz", reference.fit(lambda: train.batches(order))
    )
    return results


def _spread_over(config: ml_collections.ConfigDict) -> str | None:
    if config.train.members > 1:
        return f"{config.train.members} members"
    draws = config.evaluate.dropout_draws
    return f"{draws} draws of dropout" if draws > 1 else None
