"""Numbers of a configuration that runs of one compiled program may differ in.

The one thing to know: a number listed here only enters arithmetic, so it may be a
traced array in place of a Python number; everything else decides what is compiled. Code
that must look at such a number asks `known` first: a traced one was checked before,
when it was plain.
"""

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections

# Floats at these keys. The rates of dropout on attention weights and of whole
# modalities decide what is computed, and are not among them.
_FLOATS = (
    "loss.l1_weight",
    "loss.label_smoothing",
    "consistency.weight",
    "optim.*",
    "weighting.*.*",
    "model.dropout",
    "model.temporal_dropout",
    "model.fusion_dropout",
    "model.head_dropout",
)
# Where 0 leaves something out of the program.
_SWITCHES = ("consistency.weight", "model.*dropout")


def known(value: Any) -> bool:
    """Whether a number can be looked at: False where it is traced."""
    return not isinstance(value, jax.Array)


def off(value: Any) -> bool:
    """Whether a number is the plain 0, which leaves something out of the program."""
    return known(value) and not value


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every setting of nested mappings with its key, as `optim.beta1`."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def find(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Returns the numbers of a configuration that may be traced, by key."""
    return {
        key: value
        for key, value in flatten(config.to_dict())
        if key == "seed"
        or (isinstance(value, float) and _is_one_of(key, _FLOATS))
        and (value or not _is_one_of(key, _SWITCHES))
    }


def put(
    config: ml_collections.ConfigDict, numbers: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Returns a copy of a configuration with other numbers, which may be traced."""
    copy = config.to_dict()
    for key, value in numbers.items():
        *path, name = key.split(".")
        section = copy
        for part in path:
            section = section[part]
        section[name] = value
    return ml_collections.ConfigDict(copy)


def _is_one_of(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
