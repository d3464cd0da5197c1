"""Reads pickles of plain data without running anything that is in them.

A pickle is a program. Python's own reader runs this one with two things taken from it:
opcodes that make or change objects, and every name but those by which NumPy and Python
write arrays, numbers and dicts. Those names lead to functions of this module, so that
nothing of the file is looked up, and no method of NumPy sees what the file says.

Memory is bounded by the file: an array must have as many bytes as its shape says, and
text that is turned into bytes again and again is refused. Keys must be text, so that
hashing cannot be made slow or deep.
"""

import math
import mmap
import pathlib
import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from tqa_jax import schema

_MAX_DIMENSIONS = 8
_CODE = re.compile(r"([<>=|]?)(f2|f4|f8|[iu][1248]|b1|\?|U\d{1,6})")
_REFUSED = frozenset(
    """INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4 PERSID BINPERSID NEXT_BUFFER
    READONLY_BUFFER EMPTY_SET ADDITEMS FROZENSET""".split()
)
_INERT = frozenset(
    ["numpy.ndarray"]
    + [
        f"{module}.{kind}"
        for module in ("builtins", "__builtin__")
        for kind in ("dict", "list", "int", "float")
    ]
)
"""Names given as arguments only: of `_reconstruct`, or what a defaultdict makes."""


class _Bad(ValueError):
    """The file is no plain data; the message goes on after its name."""


class _Dtype:
    """What `numpy.dtype` was called with, and the byte order it was given after."""

    def __init__(self, code: Any, *_: Any) -> None:
        if type(code) is not str or not _CODE.fullmatch(code):
            raise _Bad("holds an array that is not of numbers, truth values or text")
        order, self._code = _CODE.fullmatch(code).groups()
        self.value = np.dtype((order or "=") + self._code)

    def build(self, state: Any) -> None:
        if type(state) is not tuple or state[2:5] != (None, None, None):
            raise _Bad("holds an array that is not of numbers, truth values or text")
        if state[1] not in ("<", ">", "=", "|"):
            raise _Bad("holds an array of an unknown byte order")
        self.value = np.dtype(state[1] + self._code)


class Array:
    """An array of the file.

    Attributes:
        value: read-only; None while it is being read.
    """

    value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Takes what NumPy wrote as the array's state, once."""
        if type(state) is not tuple or len(state) != 5 or self.value is not None:
            raise _Bad("sets the state of an object; nothing in it was run")
        _, shape, dtype, fortran, data = state
        self.value = _values(data, dtype, shape, "F" if fortran is True else "C")


class _Reader(pickle._Unpickler):
    """Python's reader in Python, since the one in C cannot be limited so."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, mapped: mmap.mmap) -> None:
        super().__init__(mapped, encoding="latin1")
        self._left = len(mapped)  # bytes that text may become; honest files do it once
        self.arrays: list[Array] = []
        self._names: dict[str, Callable[..., Any]] = {
            "numpy.dtype": _Dtype,
            "_codecs.encode": self._encoded,
            "collections.OrderedDict": _empty(dict),
            "collections.defaultdict": lambda factory=None, *rest: _empty(dict)(*rest),
            "builtins.bytes": _empty(bytes),  # protocol 2 writes empty bytes so
            "__builtin__.bytes": _empty(bytes),
        }
        for core in ("numpy.core", "numpy._core"):
            self._names[f"{core}.multiarray._reconstruct"] = self._array
            self._names[f"{core}.multiarray.scalar"] = _scalar
            self._names[f"{core}.numeric._frombuffer"] = self._whole_array

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name of the file; nothing is looked up."""
        text = f"{module}.{name}"
        if text in _INERT:
            return text
        if text not in self._names:
            raise _Bad(
                f"asks for {text[:80]!r}, which is no plain data; nothing in it was run"
            )
        return self._names[text]

    def _array(self, *_: Any) -> Array:
        self.arrays.append(Array())
        return self.arrays[-1]

    def _whole_array(self, data: Any, dtype: Any, shape: Any, order: Any) -> Array:
        made = self._array()
        made.value = _values(data, dtype, shape, order)
        return made

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

    def _put_in(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise _Bad("puts keys into what is no dict")
        if len(items) % 2 or not all(type(key) is str for key in items[::2]):
            raise _Bad("holds a dict whose keys are not all text")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._put_in(items)

    def _bytearray(self) -> None:
        # Not made at the size that the file states before its bytes are there.
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.SETITEM[0]] = lambda self: self._put_in(
        [self.stack.pop(), self.stack.pop()][::-1]
    )
    dispatch[pickle.SETITEMS[0]] = lambda self: self._put_in(self.pop_mark())
    dispatch[pickle.DICT[0]] = _dict
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray


def _refuse(name: str) -> Callable[[Any], None]:
    def load(reader: Any) -> None:
        raise _Bad(f"uses the opcode {name}; nothing in it was run")

    return load


_Reader.dispatch |= {
    ord(opcode.code): _refuse(opcode.name)
    for opcode in pickletools.opcodes
    if opcode.name in _REFUSED
}


def read(path: str | pathlib.Path) -> Any:
    """Reads a pickle, protocols 0 to 5.

    Args:
        path: the file.

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
        reader = _Reader(mapped)
        value = reader.load()
        if mapped.tell() != len(mapped):
            raise _Bad("goes on after its end")
        if any(array.value is None for array in reader.arrays):
            raise _Bad("holds an array without content")
    except _Bad as error:
        raise schema.InputError(
            f"{path} is not a pickle of plain data: it {error}"
        ) from error
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise schema.InputError(
            f"{path} is no pickle or is damaged near byte {mapped.tell()}: {reason}"
        ) from error
    return value


def _values(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    if (
        not isinstance(dtype, _Dtype)
        or not isinstance(data, bytes)
        or order not in ("C", "F")
    ):
        raise _Bad("holds an array that is not of numbers, truth values or text")
    sizes = type(shape) is tuple and all(
        type(size) is int and 0 <= size < 1 << 62 for size in shape
    )
    if not sizes or len(shape) > _MAX_DIMENSIONS:
        raise _Bad("holds an array with an impossible shape")
    width = dtype.value.itemsize
    if math.prod(shape) * width != len(data) or not width:
        raise _Bad(f"holds an array whose {len(data)} bytes do not fit its shape")
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _scalar(dtype: Any, data: Any) -> Any:
    return _values(data, dtype, ()).item()


def _empty(kind: type) -> Callable[..., Any]:
    def make(*arguments: Any) -> Any:
        if any(argument is not None for argument in arguments):
            raise _Bad(f"makes a {kind.__name__} in a way that is not known")
        return kind()

    return make
