"""Reads the tensors of a file of weights, and hands them to the network they are for.

Nothing in a file can run code: safetensors holds numbers only, and PyTorch's pickles
are read by `torch.load(weights_only=True)`.
"""

import dataclasses
import functools
import pathlib
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tqa_jax import cli, schema

# What `torch.load` raises for files that are cut off, damaged or no weights at all.
_UNREADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError),
    *(RuntimeError, TypeError, ValueError, pickle.UnpicklingError, struct.error),
)
_NORM = ("weight", "bias", "running_mean", "running_var")
_EPSILON = 1e-5  # of batch norm, PyTorch's default


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file of weights; numbers with fractions come as float32.

    Args:
        path: safetensors, or a pickle of PyTorch, whatever its name.

    Returns:
        Tensors by name.

    Raises:
        schema.InputError: the file is damaged or has no weights, or it is a pickle
            and PyTorch is not installed.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise schema.InputError(f"{path} cannot be read: {error.strerror}") from error
    if start[8:] == b"{":
        tensors = _read_safetensors(path)
    elif start.startswith((b"PK\x03\x04", b"\x80")):
        tensors = _read_pickle(path)
    else:
        tensors = {}
    if not tensors:
        raise schema.InputError(
            f"{path} has no weights: it is neither safetensors nor a checkpoint of "
            "PyTorch, or has no tensor in it"
        )
    return {
        name: value.astype(np.float32) if "float" in value.dtype.name else value
        for name, value in tensors.items()
    }


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise schema.InputError(
            f"{path} is damaged or cut off; get it again ({reason})"
        ) from error


def _read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
    cli.need(
        "torch",
        instead=f"; or convert {path.name}, a checkpoint of PyTorch, to safetensors "
        "where PyTorch is installed",
    )
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise schema.InputError(
            f"{path} is damaged, or holds other things than weights; nothing in it was "
            "run"
        ) from error
    if not isinstance(loaded, Mapping):
        raise schema.InputError(
            f"{path} holds a {type(loaded).__name__}; expected tensors by name"
        )
    tensors = {}
    for name, value in loaded.items():
        if isinstance(value, torch.Tensor):
            value = value.detach()
            value = value.float() if value.is_floating_point() else value
            tensors[str(name)] = value.numpy()
    return tensors


def sizes(
    module: type, config: Mapping[str, Any], fixed: Mapping[str, tuple]
) -> Callable[..., Any]:
    """Reads a network's sizes from what the hub's `config.json` says.

    Args:
        module: Flax module that has the sizes as fields, each with the default for when
            it is not there: a whole number, a tuple of as many, or a fraction.
        config: the settings.
        fixed: the values that a setting may have, where it is there, for the network
            to be this one.

    Returns:
        The module with its sizes.

    Raises:
        schema.InputError: for another network, and for sizes that cannot be.
    """
    for key, valid in fixed.items():
        if config.get(key, valid[0]) not in valid:
            raise schema.InputError(
                f"config.json is of another network: {key} is {config[key]!r}; "
                f"expected {' or '.join(map(repr, valid))}"
            )
    values = {}
    for field in dataclasses.fields(module):
        if not isinstance(field.default, int | float | tuple):
            continue
        value, usual = config.get(field.name, field.default), field.default
        numbers, like = (
            list(size) if isinstance(size, list | tuple) else [size]
            for size in (value, usual)
        )
        if [*map(type, numbers)] != [*map(type, like)] or min(numbers) <= 0:
            raise schema.InputError(
                f"config.json has {field.name} {value!r}; expected sizes like {usual!r}"
            )
        values[field.name] = tuple(numbers) if isinstance(usual, tuple) else value
    return functools.partial(module, **values)


class Tensors:
    """The tensors of a checkpoint, taken one by one by the network they are for."""

    def __init__(self, tensors: Mapping[str, np.ndarray], network: str) -> None:
        """Starts with all tensors.

        Args:
            tensors: by name.
            network: for messages.
        """
        self._tensors, self._network = dict(tensors), network

    def __call__(self, name: str, *shape: int) -> np.ndarray:
        """Takes a tensor.

        Raises:
            schema.InputError: it is missing, of another shape or not finite.
        """
        if name not in self._tensors:
            others = ", ".join([*self._tensors][:3]) or "nothing"
            raise schema.InputError(
                f"the {self._network} checkpoint lacks the tensor {name}, expected of "
                f"shape {shape}; it has {others}"
            )
        value = self._tensors.pop(name)
        if value.shape != shape or value.dtype.kind not in "fi":
            raise schema.InputError(
                f"the {self._network} checkpoint's {name} has shape {value.shape} and "
                f"type {value.dtype}; expected numbers of shape {shape}: does its "
                "config.json belong to it?"
            )
        if not np.isfinite(value).all():
            raise schema.InputError(
                f"the {self._network} checkpoint's {name} is not finite"
            )
        return value

    def folded(
        self, kernel: np.ndarray, norm: str, bias: np.ndarray | float = 0.0
    ) -> dict[str, np.ndarray]:
        """Takes a batch norm and multiplies it into the layer before it.

        Args:
            kernel: of the layer, its outputs last.
            norm: name of the batch norm.
            bias: of the layer.

        Returns:
            Parameters of the layer that does what both did.
        """
        width = kernel.shape[-1]
        scale, shift, mean, variance = (
            self(f"{norm}.{part}", width).astype(np.float64) for part in _NORM
        )
        scale = scale / np.sqrt(variance + _EPSILON)
        shift = shift - mean * scale
        return {
            "kernel": (kernel * scale).astype(np.float32),
            "bias": (bias * scale + shift).astype(np.float32),
        }

    def finish(self) -> None:
        """Checks that all tensors were taken.

        Raises:
            schema.InputError: for the first one that was not.
        """
        for name in sorted(self._tensors):
            raise schema.InputError(
                f"the {self._network} checkpoint has the unknown tensor {name}: does "
                "its config.json belong to it?"
            )
