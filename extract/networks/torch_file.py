"""Reads the tensors of a file that PyTorch saved, without PyTorch.

Such a file is a zip archive: a pickle that says what each tensor is, and the numbers of
each storage. Nothing in it is run: every name that the pickle asks for leads to a
function of this module or is refused.
"""

import io
import math
import pathlib
import pickle
import zipfile
from typing import Any

import numpy as np

from tqa_jax import schema

_DTYPES = {
    "BoolStorage": np.bool_,
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
}
_DAMAGE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, NotImplementedError),
    *(OSError, TypeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile),
)


def read(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads a dict of tensors, or of such dicts.

    Raises:
        schema.InputError: it is no such file, is damaged or holds other things.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive).load()
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise schema.InputError(
            f"{path} is no file of tensors that PyTorch saved, or is damaged: {reason}"
        ) from error


class _Dict(dict):
    """Tensors by name; versions of modules, which PyTorch writes too, are left out."""

    def __setstate__(self, state: Any) -> None:
        """Takes nothing."""


class _Reader(pickle.Unpickler):
    """Python's reader, limited to tensors by name."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        self._archive, self._folder = archive, name.removesuffix("data.pkl")
        super().__init__(io.BytesIO(archive.read(name)))

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name of the file; nothing is looked up."""
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _DTYPES:
            return np.dtype(_DTYPES[name])
        raise pickle.UnpicklingError(f"it asks for {module}.{name}"[:100])

    def persistent_load(self, stated: Any) -> np.ndarray:
        """Returns the numbers of a storage."""
        _, dtype, key, *_ = stated
        return np.frombuffer(self._archive.read(f"{self._folder}data/{key}"), dtype)


def _tensor(
    storage: np.ndarray, start: int, shape: tuple, strides: tuple, *_: Any
) -> np.ndarray:
    """Returns a part of a storage as a tensor."""
    usual = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if strides != usual:
        raise ValueError(f"a tensor of shape {shape} has strides {strides}")
    return storage[start : start + math.prod(shape)].reshape(shape)
