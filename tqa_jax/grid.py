"""Which runs a sweep consists of, and which of them share a program.

The one thing to know: a run is a whole configuration, the base with a few settings
changed. Runs that differ in `hyperparameters` only are a group: one compiled program.
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from tqa_jax import config_files, hyperparameters, schema

_KEYS = {"base", "grid", "random", "at_once"}
_OPTIONAL = {"cases", "traced"}
_LONGEST_NAME = 150


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        settings: what it changes in the base, by key; `case` for what a case changes.
        config: the whole configuration.
        data_changes: what it changes about its data, by key.
        traced: keys that its program takes as numbers even if all runs agree in them.
    """

    name: str
    settings: Mapping[str, Any]
    config: ml_collections.ConfigDict
    data_changes: Mapping[str, Any]
    traced: tuple[str, ...] = ()

    @property
    def setting(self) -> dict[str, Any]:
        """What it changes beside the seed; runs that agree in it are one row."""
        return {key: value for key, value in self.settings.items() if key != "seed"}

    @property
    def data_choice(self) -> str:
        """What it changes about its data, as `data.path=b`; `base` for nothing."""
        return ",".join(f"{k}={v}" for k, v in self.data_changes.items()) or "base"


def plan(sweep: ml_collections.ConfigDict) -> list[Run]:
    """Lists the runs of a sweep: all combinations of the grid, for each random draw.

    Args:
        sweep: see `configs/sweeps/weighting.py`. It may also have `cases`, settings by
            key of the base for each name: every case then has all those combinations;
            and `traced`, keys of numbers that may differ in a later sweep, whose runs
            then have the same programs.

    Returns:
        Runs in the alphabetical order of cases and of keys, the seed changing fastest.

    Raises:
        InputError: for a key that no run has, a sweep without runs, or equal runs.
    """
    if set(sweep) - _OPTIONAL != _KEYS:
        raise schema.InputError(
            f"the sweep has the sections {', '.join(sorted(sweep))}; expected "
            f"{', '.join(sorted(_KEYS))} (see configs/sweeps/weighting.py)"
        )
    if sweep.at_once < 0:
        raise schema.InputError(f"at_once is {sweep.at_once}; expected 0 or more")
    choices = dict(hyperparameters.flatten(sweep.grid.to_dict()))
    if "seed" in choices:
        choices["seed"] = choices.pop("seed")
    for key, values in choices.items():
        if not isinstance(values, tuple | list) or not values:
            raise schema.InputError(
                f"grid.{key} is {values!r}; expected one value or more, as (0, 1, 2)"
            )
    cases = sweep.get("cases", ml_collections.ConfigDict()).to_dict()
    planned = [
        (case, changes, draw | dict(zip(choices, values, strict=True)))
        for case, changes in (
            [(c, _flat(c, f)) for c, f in cases.items()] or [("", {})]
        )
        for draw in _draws(sweep.random)
        for values in itertools.product(*choices.values())
    ]
    if not planned or not (cases or planned[0][2]):
        raise schema.InputError("the sweep has no runs; give the grid a key")
    configs, settings, data_changes = [], [], []
    for case, changes, own in planned:
        config = apply(sweep.base, changes | own)
        # As the configuration has them: 0 is 0.0 where a float is expected.
        found = {key: _get(config, key) for key in changes | own}
        configs.append(config)
        settings.append(
            ({"case": case} if case else {}) | {key: found[key] for key in own}
        )
        data_changes.append({k: v for k, v in found.items() if k.startswith("data.")})
    traced = tuple(sweep.get("traced", ()))
    runs = [
        Run(*one, traced)
        for one in zip(_names(settings), settings, configs, data_changes, strict=True)
    ]
    seen: dict[str, str] = {}
    for run in runs:
        text = json.dumps(run.config.to_dict(), sort_keys=True)
        if text in seen:
            raise schema.InputError(f"runs {seen[text]} and {run.name} are the same")
        seen[text] = run.name
    return runs


def groups(runs: Sequence[Run]) -> list[tuple[list[Run], dict[str, np.ndarray]]]:
    """Puts together the runs that share a program.

    Returns:
        The runs of each group with the numbers in which they differ, and their seeds,
        by key: an array with an entry for each run.
    """
    found: dict[str, list[tuple[Run, dict[str, float]]]] = {}
    for run in runs:
        numbers = hyperparameters.find(run.config)
        rest = {
            key: value
            for key, value in hyperparameters.flatten(run.config.to_dict())
            if key not in numbers
        }
        key = json.dumps([rest, sorted(numbers)], sort_keys=True)
        found.setdefault(key, []).append((run, numbers))
    together = []
    for members in found.values():
        columns = {key: [n[key] for _, n in members] for key in members[0][1]}
        differ = {
            key: np.array(values, np.uint32 if key == "seed" else np.float32)
            for key, values in columns.items()
            if key == "seed" or len(set(values)) > 1 or key in members[0][0].traced
        }
        together.append(([run for run, _ in members], differ))
    return together


def share(sizes: Sequence[int], index: int, count: int) -> list[list[int]]:
    """Says which runs of each group are a process's: a block of all, in their order.

    Args:
        sizes: runs of each group.
        index: number of the process.
        count: of processes. Their numbers of runs differ by at most one.

    Returns:
        The numbers of its runs within each group.
    """
    found, first, total = [], 0, sum(sizes)
    for size in sizes:
        numbers = range(size)
        found.append([i for i in numbers if (first + i) * count // total == index])
        first += size
    return found


def _flat(case: str, changes: Any) -> dict[str, Any]:
    """What a case changes, by key."""
    if not isinstance(changes, Mapping):
        raise schema.InputError(
            f"cases.{case} is {changes!r}; expected settings by key of the base"
        )
    return dict(hyperparameters.flatten(changes))


def _draws(random: ml_collections.ConfigDict) -> Iterator[dict[str, float]]:
    """Draws settings at random; one that changes nothing without ranges."""
    ranges = dict(hyperparameters.flatten(random.ranges.to_dict()))
    if bool(ranges) != bool(random.number):
        raise schema.InputError(
            f"random.number is {random.number} with {len(ranges)} random.ranges; "
            "expected both or neither"
        )
    if not ranges:
        yield {}
    rng = np.random.default_rng(random.seed)
    for _ in range(random.number):
        yield {key: _draw(key, given, rng) for key, given in ranges.items()}


def _draw(key: str, given: Any, rng: np.random.Generator) -> float:
    match given:
        case ("uniform", low, high) if low < high:
            value = rng.uniform(low, high)
        case ("log", low, high) if 0 < low < high:
            value = math.exp(rng.uniform(math.log(low), math.log(high)))
        case _:
            raise schema.InputError(
                f"random.ranges.{key} is {given!r}; expected ('uniform', low, high) or "
                "('log', low, high) with low < high, above 0 for log"
            )
    return float(f"{value:.4g}")  # What names and tables show is what is used.


def apply(
    base: ml_collections.ConfigDict, settings: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Returns a configuration with some settings changed, by key.

    Raises:
        InputError: for a key that it does not have or a value of another type.
    """
    config = base.copy_and_resolve_references()
    for key, value in settings.items():
        config_files.put(config, key, value)
    return config


def _get(config: ml_collections.ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names for folders: what the run changes, or its number where that is too long."""
    names = [
        re.sub(
            r"[^A-Za-z0-9=.,+_-]+",
            "_",
            ",".join(f"{key}={value}" for key, value in one.items()),
        )
        for one in settings
    ]
    if len(set(names)) < len(names) or max(map(len, names)) > _LONGEST_NAME:
        return [f"run{number:04d}" for number in range(len(names))]
    return names
