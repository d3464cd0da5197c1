"""Reads pickles of plain data without running anything that is in them.

The one thing to know: a pickle is a program, and Python's own reader runs it, calls
included; what it may call can be limited, what a call does with hostile arguments
cannot. Here nothing of the file is called, no class is looked up and no method of an
object is used: this module interprets the opcodes of plain data itself, and knows the
few names by which NumPy and Python write arrays, numbers and dicts.

All other opcodes and names end the reading with an error. Memory is bounded by the
file: an array must have as many bytes as its shape says and stays in the mapped file
until it is asked for, memo indices are keys of a dict, and text that is turned into
bytes again and again is refused. Keys must be text, so that
hashing cannot be made slow or deep.
"""

import dataclasses
import math
import mmap
import pathlib
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tqa_jax import schema

_MAX_DIMENSIONS = 8
_CODE = re.compile(r"([<>=|]?)(f2|f4|f8|[iu][1248]|b1|\?|U\d{1,6})")
_PUSHED = frozenset(
    """INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING
    SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8""".split()
)
_HEADERS = {"SHORT_BINBYTES": 2, "BINBYTES": 5, "BINBYTES8": 9, "BYTEARRAY8": 9}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT = frozenset("PUT BINPUT LONG_BINPUT".split())
_GET = frozenset("GET BINGET LONG_BINGET".split())


@dataclasses.dataclass
class Array:
    """An array of the file, its bytes still in the file.

    Attributes:
        dtype: of numbers, truth values or text; None while it is being read.
        shape: as stored.
        order: `C` or `F`.
        data: as many bytes as the shape needs.
    """

    dtype: np.dtype | None = None
    shape: tuple[int, ...] = ()
    order: str = "C"
    data: bytes | memoryview = b""

    def values(self) -> np.ndarray:
        """Returns the array, read-only."""
        flat = np.frombuffer(self.data, self.dtype)
        return flat.reshape(self.shape, order=self.order)


@dataclasses.dataclass
class _Dtype:
    """What `numpy.dtype` was called with, and the byte order it was given after."""

    code: str
    order: str = "="

    def found(self) -> np.dtype:
        stated, code = _CODE.fullmatch(self.code).groups()
        return np.dtype((stated or self.order) + code)


@dataclasses.dataclass(frozen=True)
class _Name:
    """A name that the file mentions; never looked up."""

    text: str


class _Bad(ValueError):
    """The file is no plain data; the message goes on after its name."""


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
            # An empty file cannot be mapped.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise schema.InputError(f"{path} cannot be read: {error}") from error
    reader = _Reader(memoryview(mapped))
    place = 0
    try:
        for opcode, argument, place in pickletools.genops(mapped):
            reader.step(opcode.name, argument, place)
        if mapped.tell() != len(mapped):
            raise _Bad("goes on after its end")
        return reader.result()
    except ValueError as error:  # `_Bad`, and what genops raises for damaged files
        reason = " ".join(str(error).split())[:200]
        raise schema.InputError(
            f"{path} is not a pickle of plain data: it {reason}"
            if isinstance(error, _Bad)
            else f"{path} is no pickle or is damaged near byte {place}: {reason}"
        ) from error


class _Reader:
    """The stack machine of a pickle, for opcodes that make plain data."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # stacks below the marks
        self._memo: dict[int, Any] = {}
        self._empty = 0  # arrays that have no content yet
        self._copied = 0  # bytes; honest files hold each of them once

    def result(self) -> Any:
        if len(self._stack) != 1 or self._outer:
            raise _Bad("does not end with one value")
        if self._empty:
            raise _Bad("holds an array without content")
        return self._stack[0]

    def step(self, name: str, argument: Any, place: int) -> None:
        """Carries out one opcode.

        Args:
            name: as `pickletools` calls it.
            argument: as `pickletools` decodes it.
            place: of the opcode in the file.
        """
        push = self._stack.append
        if name in ("PROTO", "FRAME", "STOP"):
            return
        if name in _PUSHED:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _HEADERS:
            start = place + _HEADERS[name]
            push(self._data[start : start + len(argument)])
        elif name in _PUT:
            self._memo[argument] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in _GET:
            if argument not in self._memo:
                raise _Bad(f"refers to a value that it does not have, byte {place}")
            push(self._memo[argument])
        elif name in _TUPLES:
            push(tuple(self._pop(_TUPLES[name])))
        elif name == "MARK":
            self._outer.append(self._stack)
            self._stack = []
        elif name == "POP":
            self._pop(1)
        elif name == "POP_MARK":
            self._marked()
        elif name == "DUP":
            push(self._top())
        elif name == "EMPTY_LIST":
            push([])
        elif name == "EMPTY_DICT":
            push({})
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self._marked()
            made = {"TUPLE": tuple, "LIST": list, "DICT": _pairs}[name](items)
            self._stack.append(made)
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._marked()
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._marked()
            self._top(dict).update(_pairs(items))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ") if argument is not None else self._pop(2)
            push(_name(parts, place))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            made = _called(function, arguments, place)
            self._empty += isinstance(made, Array) and made.dtype is None
            if isinstance(made, str | bytes):
                self._copied += len(made)
                if self._copied > len(self._data):
                    raise _Bad("unpacks to more bytes than it has")
            push(made)
        elif name == "BUILD":
            (state,) = self._pop(1)
            _filled(self._top(), state, place)
            self._empty -= isinstance(self._top(), Array)
        else:
            raise _Bad(f"uses the opcode {name} at byte {place}; nothing in it was run")

    def _top(self, kind: type = object) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise _Bad(f"puts items into what is no {kind.__name__}")
        return self._stack[-1]

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise _Bad("takes a value that is not there")
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _marked(self) -> list[Any]:
        if not self._outer:
            raise _Bad("refers to a mark that is not there")
        items, self._stack = self._stack, self._outer.pop()
        return items


def _pairs(items: list[Any]) -> dict[str, Any]:
    keys = items[::2]
    if len(items) % 2 or not all(type(key) is str for key in keys):
        raise _Bad("holds a dict whose keys are not all text")
    return dict(zip(keys, items[1::2], strict=True))


def _name(parts: Any, place: int) -> _Name:
    text = ".".join(part if type(part) is str else "?" for part in parts)
    if text not in _CALLS and text not in _INERT:
        raise _Bad(
            f"asks for {text[:80]!r} at byte {place}, which is no plain data; nothing "
            "in it was run"
        )
    return _Name(text)


def _called(function: Any, arguments: Any, place: int) -> Any:
    call = _CALLS.get(function.text) if isinstance(function, _Name) else None
    if call is None or type(arguments) is not tuple:
        raise _Bad(f"calls what cannot be called, byte {place}; nothing in it was run")
    return call(*_expected(arguments, place))


def _expected(arguments: tuple, place: int) -> list[Any]:
    """Returns four arguments, None for those that are not there."""
    if len(arguments) > 4:
        raise _Bad(f"calls with {len(arguments)} arguments, byte {place}")
    return [*arguments, *[None] * (4 - len(arguments))]


def _filled(target: Any, state: Any, place: int) -> None:
    """Gives a new array or dtype its state, once."""
    if isinstance(target, Array) and target.dtype is None:
        if type(state) is tuple and len(state) == 5:
            _, shape, dtype, fortran, data = state
            found = _array(data, dtype, shape, "F" if fortran is True else "C")
            vars(target).update(vars(found))
            return
    elif isinstance(target, _Dtype) and type(state) is tuple and len(state) >= 5:
        _, order, *structure = state[:5]
        if order in ("<", ">", "=", "|") and structure == [None] * 3:
            target.order = order
            return
    raise _Bad(f"sets the state of an object at byte {place}; nothing in it was run")


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise _Bad("holds an array that is not of numbers, truth values or text")
    sizes = type(shape) is tuple and all(
        type(n) is int and 0 <= n < 1 << 62 for n in shape
    )
    if not sizes or len(shape) > _MAX_DIMENSIONS:
        raise _Bad("holds an array with an impossible shape")
    found = dtype.found()
    data = _bytes(data)
    if math.prod(shape) * found.itemsize != len(data) or not found.itemsize:
        raise _Bad(f"holds an array whose {len(data)} bytes do not fit its shape")
    return Array(found, shape, order, data)


def _bytes(data: Any) -> bytes | memoryview:
    if type(data) is str:  # of Python 2
        return _encoded(data, "latin1")
    if not isinstance(data, bytes | memoryview):
        raise _Bad("holds an array that is not of numbers, truth values or text")
    return data


def _dtype(code: Any, *_: Any) -> _Dtype:
    if type(code) is not str or not _CODE.fullmatch(code):
        raise _Bad("holds an array that is not of numbers, truth values or text")
    return _Dtype(code)


def _scalar(dtype: Any, data: Any, *_: Any) -> Any:
    return _array(data, dtype, (), "C").values().item()


def _encoded(text: Any, encoding: Any, *_: Any) -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise _Bad("encodes text as something other than latin1")
    return text.encode("latin1")


def _empty(kind: type) -> Callable[..., Any]:
    def make(*arguments: Any) -> Any:
        if any(argument is not None for argument in arguments):
            raise _Bad(f"makes a {kind.__name__} in a way that is not known")
        return kind()

    return make


def _calls() -> dict[str, Callable[..., Any]]:
    """What a file may name and call, each as a function of ours."""
    calls = {
        "numpy.dtype": _dtype,
        "_codecs.encode": _encoded,
        "collections.OrderedDict": _empty(dict),
        "collections.defaultdict": lambda factory, *rest: _empty(dict)(*rest),
        "builtins.bytes": _empty(bytes),  # protocol 2 writes empty bytes so
    }
    calls["__builtin__.bytes"] = calls["builtins.bytes"]
    for core in ("numpy.core", "numpy._core"):
        calls[f"{core}.multiarray._reconstruct"] = lambda *_: Array()
        calls[f"{core}.multiarray.scalar"] = _scalar
        calls[f"{core}.numeric._frombuffer"] = _array
    return calls


_CALLS = _calls()
# Named as arguments only: of `_reconstruct`, or what a defaultdict makes.
_INERT = frozenset(
    ["numpy.ndarray"]
    + [
        f"{module}.{kind}"
        for module in ("builtins", "__builtin__")
        for kind in ("dict", "list", "int", "float")
    ]
)
