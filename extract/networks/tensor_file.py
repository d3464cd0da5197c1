"""Reads the tensors of a file of weights, and checks that they are a network's.

The one thing to know: nothing in a file can run code: safetensors holds numbers only,
and PyTorch's pickles are read by `torch.load(weights_only=True)`.
"""

import pathlib
import pickle
import struct
from collections.abc import Mapping

import numpy as np

from tqa_jax import schema

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# What `torch.load` raises for files that are cut off, damaged or no weights at all.
_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


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
    elif start.startswith((_ZIP, _PICKLE)):
        tensors = _read_pickle(path)
    else:
        raise schema.InputError(
            f"{path} has no weights: neither safetensors nor a checkpoint of PyTorch"
        )
    if not tensors:
        raise schema.InputError(f"{path} has no weights: it holds no tensor")
    return {
        name: value.astype(np.float32) if "float" in value.dtype.name else value
        for name, value in tensors.items()
    }


def check(
    tensors: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    network: str,
) -> None:
    """Checks that tensors are a network's, all of them and no others.

    Args:
        tensors: by name.
        expected: shapes by name.
        network: for the message.

    Raises:
        schema.InputError: for the first tensor that is missing, of another shape, not
            finite, or unknown.
    """
    for name, shape in expected.items():
        if name not in tensors:
            raise schema.InputError(f"the {network} checkpoint lacks the tensor {name}")
        if tensors[name].shape != shape:
            raise schema.InputError(
                f"the {network} checkpoint's {name} has shape {tensors[name].shape}; "
                f"expected {shape}: does config.json belong to it?"
            )
        if not np.isfinite(tensors[name]).all():
            raise schema.InputError(f"the {network} checkpoint's {name} is not finite")
    if unknown := sorted(set(tensors) - set(expected)):
        raise schema.InputError(
            f"the {network} checkpoint has the unknown tensor {unknown[0]}: does "
            "config.json belong to it?"
        )


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise schema.InputError(
            f"{path} is damaged or cut off; get it again ({one_line(error)})"
        ) from error


def _read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise schema.InputError(
            f"{path.name} is a checkpoint of PyTorch: `pip install torch` to read it, "
            "or convert it to safetensors where PyTorch is installed"
        ) from error
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


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
