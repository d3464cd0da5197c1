"""Files that would do something when Python's own reader opened them do nothing."""

import collections
import copyreg
import os
import pathlib
import pickle
import struct

import numpy as np
import pytest

from extract.importing import layouts, unpickle
from tqa_jax import schema


def _plain(value):
    if isinstance(value, unpickle.Array):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _write(path: pathlib.Path, data: bytes) -> pathlib.Path:
    path.write_bytes(data)
    return path


DATA = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">f8"),
    "strided": np.arange(8.0).reshape(2, 2, 2)[:, ::-1],
    "truths": np.array([True, False]),
    "text": np.array(["ab", "cde"]),
    "none": np.zeros((0, 3)),
    "scalar": np.float32(0.5),
    "long": 1 << 80,
    "items": [1, -2, 2.5, None, True, "\u00e4\n", (), (1,), (1, 2), (1, 2, 3, 4)],
    "bytes": b"\x00\xff",
    "ordered": collections.OrderedDict(a=1, b=2),
    "default": collections.defaultdict(list, {"a": [1]}),
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_read_as_python_reads_it(tmp_path, protocol):
    data = DATA | {"again": DATA["float32"]}
    found = unpickle.read(_write(tmp_path / "a.pkl", pickle.dumps(data, protocol)))
    assert found["again"] is found["float32"]
    found = _plain(found)
    assert list(found) == list(data)
    for name, expected in data.items():
        if isinstance(expected, np.ndarray):
            assert found[name].dtype == expected.dtype
            np.testing.assert_array_equal(found[name], expected)
        else:
            assert found[name] == expected


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_of_older_numpy_are_read(tmp_path, protocol):
    data = pickle.dumps(DATA["float32"], protocol)
    old, new = b"numpy.core.multiarray", b"numpy._core.multiarray"
    if protocol == 4:  # the text's length stands before it, the frame's at the start
        data = data.replace(b"\x8c\x16" + new, b"\x8c\x15" + old)
        data = data[:3] + struct.pack("<Q", len(data) - 11) + data[11:]
    else:
        data = data.replace(new, old)
    assert old in data and pickle.loads(data) is not None
    found = unpickle.read(_write(tmp_path / "a.pkl", data))
    np.testing.assert_array_equal(found.value, DATA["float32"])


class Reduce:
    """Pickles as a call."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def _gadgets(mark: pathlib.Path) -> dict[str, bytes]:
    """Pickles that would make the file `mark`, or bring something near it."""
    touch = f"touch {mark}"
    python = f"open({str(mark)!r}, 'w').close()"
    inner = pickle.dumps(Reduce(os.system, (touch,)))
    line = touch.encode() + b"\n"
    holder = np.empty(2, object)
    holder[:] = [Reduce(os.system, (touch,)), 1.0]
    start, stop = b"\x80\x04", b"."
    dtype = pickle.dumps(np.dtype("f4"), 4)[len(start) + 9 : -1]
    array = pickle.dumps(np.zeros(2, np.float32), 4)[len(start) + 9 : -1]
    call = b"(X" + struct.pack("<I", len(touch)) + touch.encode() + b"t"
    return {
        "reduce os.system": pickle.dumps(Reduce(os.system, (touch,))),
        "reduce at protocol 0": pickle.dumps(Reduce(os.system, (touch,)), 0),
        "eval": pickle.dumps(Reduce(eval, (python,))),
        "exec in a sample": pickle.dumps([{"features": Reduce(exec, (python,))}], 2),
        "after plain data": pickle.dumps([*DATA.values(), Reduce(eval, (python,))]),
        "open": pickle.dumps(Reduce(open, (str(mark), "w"))),
        "INST": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + touch.encode() + b"'\no.",
        "GLOBAL alone": b"cos\nsystem\n.",
        "STACK_GLOBAL": start + _text("os") + _text("system") + b"\x93" + call + b"R.",
        "STACK_GLOBAL, dotted name": (
            start + _text("numpy") + _text("os.system") + b"\x93" + call + b"R."
        ),
        "STACK_GLOBAL, dotted ndarray": (
            start + _text("numpy") + _text("ndarray.__class__") + b"\x93" + stop
        ),
        "STACK_GLOBAL, dotted module": (
            start + _text("os.path.os") + _text("system") + b"\x93" + call + b"R."
        ),
        "STACK_GLOBAL, name that is no text": start + b"K\x01K\x02\x93.",
        "GLOBAL, attribute walk": (
            b"\x80\x04cnumpy._core.multiarray\nscalar.__globals__\n."
        ),
        "numpy.load": pickle.dumps(Reduce(np.load, (str(mark),))),
        "numpy.fromfile": pickle.dumps(Reduce(np.fromfile, (str(mark),))),
        "numpy.memmap makes the file": (
            start
            + _text("numpy")
            + _text("memmap")
            + b"\x93("
            + b"X"
            + struct.pack("<I", len(str(mark)))
            + str(mark).encode()
            + _text("f4")
            + _text("w+")
            + b"K\x00K\x08tR."
        ),
        "getattr": (b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'__subclasses__'\ntR(tR."),
        "__import__": b"c__builtin__\n__import__\n(S'os'\ntR.",
        "operator.attrgetter": b"coperator\nattrgetter\n(S'system'\ntR.",
        "functools.partial": b"cfunctools\npartial\n(cos\nsystem\nS'x'\ntR.",
        "pickle.loads of bytes": pickle.dumps(Reduce(pickle.loads, (inner,))),
        "codecs other than latin1": (
            b"\x80\x02c_codecs\nencode\n("
            + b"X\x02\x00\x00\x00ab"
            + _b2("zlib")
            + b"tR."
        ),
        "codecs.decode": b"\x80\x02c_codecs\ndecode\n("
        + _b2("ab")
        + _b2("hex")
        + b"tR.",
        "copyreg": (
            b"ccopyreg\n_reconstructor\n(cos\n_wrap_close\nc__builtin__\nobject\nNtR."
        ),
        "copyreg.add_extension": (
            b"ccopyreg\nadd_extension\n(S'os'\nS'system'\nI240\ntR."
        ),
        "persistent id": b"Pname\n.",
        "binary persistent id": b"\x80\x02" + _b2("x") + b"Q.",
        "NEWOBJ": start + _text("os") + _text("_wrap_close") + b"\x93)\x81.",
        "NEWOBJ of a name that is known": (
            start + _text("numpy") + _text("ndarray") + b"\x93K\x02\x85\x81."
        ),
        "NEWOBJ_EX": start + _text("numpy") + _text("ndarray") + b"\x93)}\x92.",
        "calls ndarray": start + _text("numpy") + _text("ndarray") + b"\x93K\x02\x85R.",
        "calls a dict": start + b"}K\x02\x85R.",
        "BUILD of a dict": start + b"}}" + _text("x") + _text("y") + b"sb.",
        "BUILD of a name": (
            start
            + _text("numpy")
            + _text("dtype")
            + b"\x93"
            + b"N}"
            + _text("__call__")
            + _text("y")
            + b"s\x86b."
        ),
        "BUILD of a finished array": start
        + array
        + b"(K\x01K\x01\x85"
        + dtype
        + b"\x89C\x04\x00\x00\x00\x00tb.",
        "__setstate__ with a dict": start
        + _text("numpy._core.multiarray")
        + _text("_reconstruct")
        + b"\x93)R}"
        + _text("__class__")
        + b"NNsb.",
        "items put into an array": start + array + _text("x") + _text("y") + b"s.",
        "object array": pickle.dumps(holder),
        "object array of plain things": pickle.dumps(np.array(["a", None], object)),
        "structured dtype": pickle.dumps(np.zeros(1, [("a", "f4")])),
        "void dtype": pickle.dumps(np.zeros(1, "V8")),
        "dates": pickle.dumps(np.zeros(1, "M8[s]")),
        "dtype by comma string": start
        + _text("numpy")
        + _text("dtype")
        + b"\x93"
        + _text("f4,O")
        + b"\x85R.",
        "dtype of a class": start
        + _text("numpy")
        + _text("dtype")
        + b"\x93"
        + _text("numpy")
        + _text("ndarray")
        + b"\x93\x85R.",
        "out-of-band buffer": start + b"\x97.",
        "OrderedDict of pairs": pickle.dumps(
            Reduce(collections.OrderedDict, ([["a", 1]],)), 4
        ),
        "defaultdict with a call": pickle.dumps(
            Reduce(collections.defaultdict, (os.system,))
        ),
        "key that is no text": pickle.dumps({1: 2}),
        "key that is deep": start + b"})" + b"\x85" * 200_000 + b"K\x01s.",
        "a set": pickle.dumps({1, 2}, 4),
        "a class": pickle.dumps(pathlib.PurePosixPath("a")),
        "two pickles": pickle.dumps(1) + inner,
        "text line": b"cos\nsystem\n(S'" + line.strip() + b"'\ntR.",
    }


def _b2(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


@pytest.mark.parametrize("name", list(_gadgets(pathlib.Path("x"))))
def test_what_is_no_plain_data_is_refused_and_not_run(tmp_path, name, monkeypatch):
    mark = tmp_path / "mark"
    path = _write(tmp_path / "a.pkl", _gadgets(mark)[name])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(schema.InputError, match=r"a\.pkl is (not|no) "):
        unpickle.read(path)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name", ["reduce os.system", "eval", "INST", "OBJ", "STACK_GLOBAL",
             "numpy.memmap makes the file",
             "pickle.loads of bytes", "object array", "text line"],
)  # fmt: skip
def test_the_gadgets_are_real(tmp_path, name):
    mark = tmp_path / "mark"
    pickle.loads(_gadgets(mark)[name])
    assert mark.exists()


def test_registered_extensions_are_refused(tmp_path):
    mark = tmp_path / "mark"
    copyreg.add_extension("os", "system", 240)
    try:
        data = b"\x80\x02\x82\xf0(" + _b2(f"touch {mark}") + b"tR."
        with pytest.raises(schema.InputError, match="asks for the extension 240"):
            unpickle.read(_write(tmp_path / "a.pkl", data))
        assert not mark.exists()
        pickle.loads(data)
        assert mark.exists()
    finally:
        copyreg.remove_extension("os", "system", 240)


def _array(shape: bytes, data: bytes = b"C\x04\x00\x00\x00\x00") -> bytes:
    dtype = pickle.dumps(np.dtype("f4"), 4)[11:-1]
    new = _text("numpy._core.multiarray") + _text("_reconstruct") + b"\x93)R"
    return b"\x80\x04" + new + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb."


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "cannot be read"),
        (b"\x80\x04", "damaged near byte 2"),
        (b"\x80\x04K\x01", "damaged"),
        (b"PK\x03\x04 a zip of torch", "damaged|opcode"),
        (b"\x80\x04K\x01r\xff\xff\xff\xff.", None),  # LONG_BINPUT, index 4e9
        (b"\x80\x04K\x01p99999999999999\n.", None),
        (b"\x80\x04j\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x04B\xff\xff\xff\x7fab.", "damaged"),  # BINBYTES of 2 GiB
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fab.", "damaged"),
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7fab.", "damaged"),
        (b"\x80\x04\x8b\xff\xff\xff\x7f\x01.", "damaged"),  # LONG4
        (b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fK\x01.", None),  # FRAME
        (b"I" + b"9" * 5000 + b"\n.", "damaged"),
        (_array(b"J\x00\x00\x00\x40\x85"), "4 bytes do not fit its shape"),
        (_array(b"J\xff\xff\xff\xff\x85"), "impossible shape"),
        (_array(b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85"), "impossible shape"),
        (_array(b"(" + b"K\x01" * 40 + b"t"), "impossible shape"),
        (_array(b"K\x01\x85", b"]"), "not of numbers"),
        (b"\x80\x040.", "damaged"),
        (b"\x80\x04t.", "damaged"),
        (b"\x80\x04e.", "damaged"),
        (b"\x80\x04K\x01(e.", "damaged"),
        (b"\x80\x04}(K\x01e.", "damaged"),
        (b"\x80\x04}(K\x01K\x02u.", "keys are not all text"),
    ],
)
def test_damage_and_bombs_end_in_one_line(tmp_path, data, message):
    path = _write(tmp_path / "a.pkl", data)
    if message is None:  # harmless here: an index is only a key
        assert unpickle.read(path) == 1
        return
    with pytest.raises(schema.InputError, match=message) as caught:
        unpickle.read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_text_is_not_turned_into_bytes_again_and_again(tmp_path):
    text = _b2("a" * 10_000)
    again = b"0h\x00(h\x01" + _b2("latin1") + b"tR"
    data = b"\x80\x02c_codecs\nencode\nq\x000" + text + b"q\x01" + again * 50 + b"."
    with pytest.raises(schema.InputError, match="more bytes than it has"):
        unpickle.read(_write(tmp_path / "a.pkl", data))


def test_lists_of_lists_cost_nothing_until_they_are_walked(tmp_path):
    data = b"\x80\x04]\x940"
    for level in range(60):  # each holds the one before twice
        data += b"](h" + bytes([level]) + b"h" + bytes([level]) + b"e\x940"
    path = _write(tmp_path / "a.pkl", data + b"h\x3c.")
    assert len(unpickle.read(path)) == 2
    with pytest.raises(schema.InputError, match="sample 0 is a list, no dict"):
        layouts.read(path)


def test_every_cut_of_a_file_is_refused(tmp_path):
    data = pickle.dumps({"a": np.arange(3.0), "b": [1, "x", None]}, 4)
    for end in range(1, len(data)):
        with pytest.raises(schema.InputError):
            unpickle.read(_write(tmp_path / "a.pkl", data[:end]))


def test_changed_bytes_end_in_data_or_in_one_line(tmp_path):
    data = bytearray(pickle.dumps({"a": np.arange(3.0), "b": [1, "x", None]}, 4))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        changed = bytearray(data)
        for place in rng.integers(len(data), size=3):
            changed[place] = rng.integers(256)
        try:
            unpickle.read(_write(tmp_path / "a.pkl", bytes(changed)))
        except schema.InputError:
            refused += 1
    assert 100 < refused < 400
