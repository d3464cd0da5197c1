"""Reads pickles of plain data without running anything that is in them.

Python's reader runs the file, but the names in it lead to functions of this module:
nothing is looked up, and no method of NumPy sees what the file says.

It is the reader in Python, since the one in C crashes on a key that is a deep tuple and
allocates what the file states. Memory is bounded by the file: an array must have as
many bytes as its shape says, and text is turned into bytes once.
"""

import math
import mmap
import pathlib
import pickle
import re
import struct
from typing import Any

import numpy as np

from tqa_jax import schema

_CODE = re.compile(r"[<>=|]?(f[248]|[iu][1248]|b1|\?|U\d{1,6})")
_MAX_DIMENSIONS = 8
_DAMAGE = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
)


class _Bad(ValueError):
    """The file is no plain data; the message goes on after its name."""


class _Dtype:
    """What `numpy.dtype` was called with, and the byte order it was given after."""

    def __init__(self, code: Any, *_: Any) -> None:
        if type(code) is not str or not _CODE.fullmatch(code):
            raise _Bad("holds an array that is not of numbers, truth values or text")
        self.value = np.dtype(code)

    def build(self, state: Any) -> None:
        self.value = self.value.newbyteorder(state[1])


class Array:
    """An array of the file.

    Attributes:
        value: read-only; None until the file has said what it is.
    """

    def __init__(self, value: np.ndarray | None = None) -> None:
        """Makes an array."""
        self.value = value

    def build(self, state: Any) -> None:
        """Takes what NumPy wrote as the array's state, once."""
        if self.value is not None:
            raise _Bad("sets the state of an array again")
        _, shape, dtype, fortran, data = state
        self.value = _values(data, dtype, shape, "F" if fortran is True else "C")


class _Dict(dict):
    """A dict whose keys are text, so that hashing cannot be made slow or deep."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is not str:
            raise _Bad("holds a dict whose keys are not all text")
        super().__setitem__(key, value)


def _values(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise _Bad("holds an array that is not of numbers, truth values or text")
    if type(shape) is not tuple or len(shape) > _MAX_DIMENSIONS:
        raise _Bad("holds an array with an impossible shape")
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in shape):
        raise _Bad("holds an array with an impossible shape")
    if math.prod(shape) * dtype.value.itemsize != len(data):
        raise _Bad(f"holds an array whose {len(data)} bytes do not fit its shape")
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _scalar(dtype: Any, data: Any) -> Any:
    return _values(data, dtype, ()).item()


class _Reader(pickle._Unpickler):
    """Python's reader, limited to plain data."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, mapped: mmap.mmap) -> None:
        super().__init__(mapped, encoding="latin1")
        self._left = len(mapped)  # bytes that text may become; honest files do it once
        self._names = {
            "_codecs.encode": self._encoded,
            "builtins.bytes": lambda: b"",  # protocol 2 writes empty bytes so
            "collections.OrderedDict": lambda: _Dict(),
            "collections.defaultdict": lambda kind=None: _Dict(),
            "numpy.dtype": _Dtype,
            "numpy.core.multiarray._reconstruct": lambda *_: Array(),
            "numpy.core.multiarray.scalar": _scalar,
            "numpy.core.numeric._frombuffer": lambda *of: Array(_values(*of)),
            # Given as arguments only, of `_reconstruct` and defaultdicts.
            **dict.fromkeys(("numpy.ndarray", "builtins.dict", "builtins.list")),
            **dict.fromkeys(("builtins.int", "builtins.float")),
        }

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name of the file; nothing is looked up."""
        text = f"{module}.{name}"
        known = text.replace("__builtin__", "builtins").replace("._core", ".core")
        if known not in self._names:
            raise _Bad(
                f"asks for {text[:80]!r}, which is no plain data; nothing in it was run"
            )
        return self._names[known]

    def get_extension(self, code: int) -> None:
        raise _Bad(f"asks for the extension {code}; nothing in it was run")

    def _encoded(self, text: Any, encoding: Any = None) -> bytes:
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise _Bad("encodes text as something other than latin1")
        self._left -= len(text)
        if self._left < 0:
            raise _Bad("unpacks to more bytes than it has")
        return text.encode("latin1")

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Array | _Dtype):
            raise _Bad("sets the state of an object; nothing in it was run")
        self.stack[-1].build(state)

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append(_Dict())
        for place in range(0, len(items), 2):
            self.stack[-1][items[place]] = items[place + 1]

    def _bytearray(self) -> None:
        # Not made at the size that the file states before its bytes are there.
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def _set(self) -> None:
        raise _Bad("holds a set; expected lists and dicts")

    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.EMPTY_DICT[0]] = lambda self: self.append(_Dict())
    dispatch[pickle.DICT[0]] = _dict
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray
    dispatch[pickle.EMPTY_SET[0]] = dispatch[pickle.FROZENSET[0]] = _set


def read(path: str | pathlib.Path) -> Any:
    """Reads a pickle, protocols 0 to 5.

    Returns:
        None, truth values, numbers, text, bytes, lists, tuples, dicts with text as
        keys, and `Array`s.

    Raises:
        schema.InputError: it cannot be read, is damaged, or asks for anything else.
            Nothing in it was run.
    """
    try:
        with open(path, "rb") as file:
            # Reads no more than there is, whatever length the file states; an empty
            # file cannot be mapped.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise schema.InputError(f"{path} cannot be read: {error}") from error
    try:
        value = _Reader(mapped).load()
        if mapped.tell() != len(mapped):
            raise _Bad("goes on after its end")
        return value
    except _DAMAGE as error:
        what = f"no pickle or is damaged near byte {mapped.tell()}:"
        if isinstance(error, _Bad):
            what = "not a pickle of plain data: it"
        reason = " ".join(str(error).split())[:200]
        raise schema.InputError(f"{path} is {what} {reason}") from error
