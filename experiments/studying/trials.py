"""Runs of a study: named cases over seeds, and the tuning of each case before.

The one thing to know: every case gets the same number of tries. A case's settings are
drawn from its ranges, the first draw being the case as it is; the draw with the best
validation score, a mean over two seeds, goes on, with seeds that took no part in the
choice. The test split is not looked at before that. With one seed a draw, what was
chosen was luck: tuned fixed weights came out .04 SRCC below equal ones.
"""

import dataclasses
import math
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from tqa_jax import comparison, grid, schema, sweep

Changes = Mapping[str, Any]
Range = tuple[str, float, float]
_TUNING_SEEDS = (1_000_000, 1_000_001)


@dataclasses.dataclass(frozen=True)
class Case:
    """One of the things that a study compares.

    Attributes:
        changes: in the base configuration, by key, as `{"model.paths": "a"}`.
        ranges: what is tuned: `("log" or "uniform", low, high)` by key.
    """

    changes: Changes = dataclasses.field(default_factory=dict)
    ranges: Mapping[str, Range] = dataclasses.field(default_factory=dict)

    def but(
        self, changes: Changes, ranges: Mapping[str, Range] | None = None
    ) -> "Case":
        """Returns the case with further changes, and more that is tuned."""
        return Case({**self.changes, **changes}, {**self.ranges, **(ranges or {})})


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run that has ended.

    Attributes:
        folder: of the run.
        seed: of the run.
        outcome: its results and predictions.
    """

    folder: pathlib.Path
    seed: int
    outcome: comparison.Outcome


def rate_range(base: ml_collections.ConfigDict) -> dict[str, Range]:
    """Range of the learning rate that every case is tuned over: a factor of 3."""
    rate = base.optim.learning_rate
    return {"optim.learning_rate": ("log", rate / 3, rate * 3)}


def weight_ranges(of: schema.Schema) -> dict[str, Range]:
    """Ranges of fixed task weights; none for a data set with one task."""
    names = of.task_names
    if len(names) < 2:
        return {}
    return {f"weighting.fixed.values.{name}": ("log", 0.25, 4.0) for name in names}


def tuned_fixed(options: Any) -> Case:
    """The reference of every comparison: fixed weights, tuned.

    Args:
        options: of the study (see `command.Options`).
    """
    ranges = weight_ranges(options.info.schema)
    given = options.base.weighting["fixed"]["values"]
    weights = {key: float(given.get(key.rpartition(".")[2], 1)) for key in ranges}
    changes = {"weighting.name": "fixed"} | weights
    return Case(changes, rate_range(options.base) | ranges)


def run(
    base: ml_collections.ConfigDict,
    cases: Mapping[str, Changes],
    *,
    seeds: Sequence[int],
    folder: pathlib.Path,
    traced: Sequence[str] = (),
) -> dict[str, list[Trained]]:
    """Trains and evaluates every case with every seed; continues what was stopped.

    Args:
        base: configuration of all runs.
        cases: what each changes in it.
        seeds: of the runs.
        folder: of the sweep.
        traced: numbers that other sweeps change, so that they share its programs.

    Returns:
        The runs of each case, in the order of the seeds. Cases with the same settings
        share theirs.

    Raises:
        InputError: for settings or data that do not fit, or when a run failed.
    """
    like = _likes(base, cases)
    config = _sweep(
        base,
        {name: cases[name] for name in dict.fromkeys(like.values())},
        seeds,
        traced,
    )
    found = sweep.run(config, workdir=folder)
    if found.failed:
        name, reason = next(iter(found.failed.items()))
        raise schema.InputError(
            f"{len(found.failed)} of the runs in {folder} failed; {name}: {reason}"
        )
    runs = grid.plan(config)
    trained: dict[str, list[Trained]] = {name: [] for name in like.values()}
    for one, outcome in zip(runs, comparison.read(runs, folder), strict=True):
        place = folder / "runs" / one.name
        trained[one.settings["case"]].append(Trained(place, one.config.seed, outcome))
    return {name: trained[same] for name, same in like.items()}


def outcomes(
    trained: Mapping[str, Sequence[Trained]],
) -> dict[str, list[comparison.Outcome]]:
    """What became of the runs of each case, for `results.compare`."""
    return {
        case: [dataclasses.replace(one.outcome, setting={"case": case}) for one in some]
        for case, some in trained.items()
    }


def _likes(
    base: ml_collections.ConfigDict, cases: Mapping[str, Changes]
) -> dict[str, str]:
    """The first case with the same configuration as each: it is trained once."""
    first: dict[str, str] = {}
    return {
        name: first.setdefault(grid.apply(base, changes).to_json(), name)
        for name, changes in cases.items()
    }


def tune(
    base: ml_collections.ConfigDict,
    cases: Mapping[str, Case],
    *,
    draws: int,
    folder: pathlib.Path,
) -> dict[str, Changes]:
    """Chooses the settings of each case by validation.

    Args:
        base: configuration of all runs.
        cases: to tune.
        draws: settings tried for each; 1 tunes nothing.
        folder: of the sweep.

    Returns:
        What each case changes in the base, with the numbers that were best.
    """
    if draws == 1:
        return {name: dict(case.changes) for name, case in cases.items()}
    tried: dict[str, Changes] = {}
    for name, case in cases.items():
        for number in range(draws):
            tried[f"{name}/{number}"] = dict(case.changes) | draw(
                case.ranges, number, seed=zlib.crc32(name.encode())
            )
    trained = run(base, tried, seeds=_TUNING_SEEDS, folder=folder, traced=traced(cases))
    chosen = {}
    for name in cases:
        mine = [key for key in tried if key.rpartition("/")[0] == name]
        best = max(mine, key=lambda key: _validation(trained[key]))
        chosen[name] = tried[best]
    return chosen


def traced(cases: Mapping[str, Case]) -> tuple[str, ...]:
    """The numbers that are tuned: traced in all sweeps, which so share programs."""
    return tuple(sorted({key for case in cases.values() for key in case.ranges}))


def _validation(runs: Sequence[Trained]) -> float:
    found = [run.outcome.results["selected"] for run in runs]
    if any(one["value"] is None for one in found):
        return -math.inf
    signs = [-1 if one["metric"] == "loss" else 1 for one in found]
    return float(
        np.mean([s * one["value"] for s, one in zip(signs, found, strict=True)])
    )


def draw(ranges: Mapping[str, Range], number: int, *, seed: int) -> dict[str, float]:
    """Draws settings; number 0 changes nothing."""
    if not number:
        return {}
    rng = np.random.default_rng([seed, number])
    found = {}
    for key, (kind, low, high) in ranges.items():
        if kind == "log":
            value = math.exp(rng.uniform(math.log(low), math.log(high)))
        else:
            value = rng.uniform(low, high)
        found[key] = float(f"{value:.4g}")
    return found


def _sweep(
    base: ml_collections.ConfigDict,
    cases: Mapping[str, Changes],
    seeds: Sequence[int],
    traced: Sequence[str],
) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.base = base
    config.cases = ml_collections.ConfigDict(
        {name: _nested(changes) for name, changes in cases.items()}
    )
    config.grid = ml_collections.ConfigDict({"seed": tuple(seeds)})
    config.random = ml_collections.ConfigDict({"number": 0, "seed": 0, "ranges": {}})
    config.traced = tuple(traced)
    config.at_once = 0
    return config


def _nested(changes: Changes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in changes.items():
        *path, name = key.split(".")
        section = found
        for part in path:
            section = section.setdefault(part, {})
        section[name] = value
    return found
