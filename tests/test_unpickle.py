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


def _ops(*parts: bytes | str) -> bytes:
    """Puts opcodes together; text is what its opcode pushes."""
    sized = (
        b"X" + struct.pack("<I", len(part)) + part.encode()
        if type(part) is str
        else part
        for part in parts
    )
    return b"\x80\x04" + b"".join(sized)


DTYPE = pickle.dumps(np.dtype("f4"), 4)[11:-1]
ARRAY = pickle.dumps(np.zeros(2, np.float32), 4)[11:-1]
NEW = _ops("numpy._core.multiarray", "_reconstruct", b"\x93)R")[2:]


def _gadgets(mark: pathlib.Path) -> dict[str, bytes]:
    """Pickles that would make the file `mark`, or bring something near it."""
    touch = f"touch {mark}"
    python = f"open({str(mark)!r}, 'w').close()"
    inner = pickle.dumps(Reduce(os.system, (touch,)))
    holder = np.empty(2, object)
    holder[:] = [Reduce(os.system, (touch,)), 1.0]
    call = _ops(b"(", touch, b"tR.")[2:]
    ndarray = _ops("numpy", "ndarray", b"\x93")[2:]
    dtype = _ops("numpy", "dtype", b"\x93")[2:]
    quoted = b"S'" + touch.encode() + b"'\n"
    dumped = {
        "reduce os.system": Reduce(os.system, (touch,)),
        "eval": Reduce(eval, (python,)),
        "exec in a sample": [{"features": Reduce(exec, (python,))}],
        "after plain data": [*DATA.values(), Reduce(eval, (python,))],
        "open": Reduce(open, (str(mark), "w")),
        "numpy.load": Reduce(np.load, (str(mark),)),
        "numpy.fromfile": Reduce(np.fromfile, (str(mark),)),
        "pickle.loads of bytes": Reduce(pickle.loads, (inner,)),
        "object array": holder,
        "object array of plain things": np.array(["a", None], object),
        "structured dtype": np.zeros(1, [("a", "f4")]),
        "void dtype": np.zeros(1, "V8"),
        "dates": np.zeros(1, "M8[s]"),
        "OrderedDict of pairs": Reduce(collections.OrderedDict, ([["a", 1]],)),
        "defaultdict with a call": Reduce(collections.defaultdict, (os.system,)),
        "key that is no text": {1: 2},
        "a set": {1, 2},
        "a frozen set": frozenset((1, 2)),
        "a class": pathlib.PurePosixPath("a"),
    }
    return {name: pickle.dumps(value, 4) for name, value in dumped.items()} | {
        "reduce at protocol 0": pickle.dumps(Reduce(os.system, (touch,)), 0),
        "INST": b"(" + quoted + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + quoted + b"o.",
        "GLOBAL alone": b"cos\nsystem\n.",
        "STACK_GLOBAL": _ops("os", "system", b"\x93", call),
        "dotted name": _ops("numpy", "os.system", b"\x93", call),
        "dotted ndarray": _ops("numpy", "ndarray.__class__", b"\x93."),
        "dotted module": _ops("os.path.os", "system", b"\x93", call),
        "name that is no text": _ops(b"K\x01K\x02\x93."),
        "attribute walk": _ops(b"cnumpy._core.multiarray\nscalar.__globals__\n."),
        "numpy.memmap makes the file": _ops(
            "numpy", "memmap", b"\x93(", str(mark), "f4", "w+", b"K\x00K\x08tR."
        ),
        "getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'__subclasses__'\ntR(tR.",
        "__import__": b"c__builtin__\n__import__\n(S'os'\ntR.",
        "operator.attrgetter": b"coperator\nattrgetter\n(S'system'\ntR.",
        "functools.partial": b"cfunctools\npartial\n(cos\nsystem\nS'x'\ntR.",
        "codecs other than latin1": _ops(b"c_codecs\nencode\n(", "ab", "zlib", b"tR."),
        "codecs.decode": _ops(b"c_codecs\ndecode\n(", "ab", "hex", b"tR."),
        "copyreg": b"ccopyreg\n_reconstructor\n(cos\n_wrap_close\n"
        b"c__builtin__\nobject\nNtR.",
        "copyreg.add_extension": b"ccopyreg\nadd_extension\n(S'os'\nS'system'\nI240\n"
        b"tR.",
        "persistent id": b"Pname\n.",
        "binary persistent id": _ops("x", b"Q."),
        "NEWOBJ": _ops("os", "_wrap_close", b"\x93)\x81."),
        "NEWOBJ of a name that is known": _ops(ndarray, b"K\x02\x85\x81."),
        "NEWOBJ_EX": _ops(ndarray, b")}\x92."),
        "calls ndarray": _ops(ndarray, b"K\x02\x85R."),
        "calls a dict": _ops(b"}K\x02\x85R."),
        "BUILD of a dict": _ops(b"}}", "x", "y", b"sb."),
        "BUILD of a name": _ops(dtype, b"N}", "__call__", "y", b"s\x86b."),
        "BUILD of a finished array": _ops(
            ARRAY, b"(K\x01K\x01\x85", DTYPE, b"\x89C\x04\x00\x00\x00\x00tb."
        ),
        "__setstate__ with a dict": _ops(NEW, b"}", "__class__", b"NNsb."),
        "items put into an array": _ops(ARRAY, "x", "y", b"s."),
        "dtype by comma string": _ops(dtype, "f4,O", b"\x85R."),
        "dtype of a class": _ops(dtype, ndarray, b"\x85R."),
        "out-of-band buffer": _ops(b"\x97."),
        "key that is deep": _ops(b"})" + b"\x85" * 200_000 + b"K\x01s."),
        "deep key of an old dict": b"()" + b"\x85" * 200_000 + b"K\x01d.",
        "deep item of a set": _ops(b"\x8f()" + b"\x85" * 200_000 + b"\x90."),
        "two pickles": pickle.dumps(1) + inner,
        "text line": b"cos\nsystem\n(" + quoted + b"tR.",
    }


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
        data = _ops(b"\x82\xf0(", f"touch {mark}", b"tR.")
        with pytest.raises(schema.InputError, match="asks for the extension 240"):
            unpickle.read(_write(tmp_path / "a.pkl", data))
        assert not mark.exists()
        pickle.loads(data)
        assert mark.exists()
    finally:
        copyreg.remove_extension("os", "system", 240)


def _array(shape: bytes, data: bytes = b"C\x04\x00\x00\x00\x00") -> bytes:
    return _ops(NEW, b"(K\x01", shape, DTYPE, b"\x89", data, b"tb.")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "cannot be read"),
        (b"\x80\x04", "damaged near byte 2"),
        (b"\x80\x04K\x01", "damaged"),
        (b"PK\x03\x04 a zip of torch", "damaged"),
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
    again = _ops(b"0h\x00(h\x01", "latin1", b"tR")[2:]
    data = _ops(b"c_codecs\nencode\nq\x000", "a" * 10_000, b"q\x01", again * 50, b".")
    with pytest.raises(schema.InputError, match="more bytes than it has"):
        unpickle.read(_write(tmp_path / "a.pkl", data))


@pytest.mark.parametrize(
    "column, message", [(NEW, "overall_score is no array"), (ARRAY, "no list of text")]
)
def test_an_array_that_the_file_does_not_fill_is_no_array(tmp_path, column, message):
    rows = pickle.dumps(np.zeros((2, 2, 3)), 4)[11:-1]
    data = _ops(b"}", "train", b"}(", "features", b"}", "au", rows, b"s", "labels")
    data += _ops(b"}", "overall_score", column, b"s", "video_ids", NEW, b"us.")[2:]
    with pytest.raises(schema.InputError, match=message):
        layouts.read(_write(tmp_path / "a.pkl", data))


def test_lists_of_lists_cost_nothing_until_they_are_walked(tmp_path):
    data = b"\x80\x04]\x940"
    for level in range(60):  # each holds the one before twice
        data += b"](h" + bytes([level]) + b"h" + bytes([level]) + b"e\x940"
    path = _write(tmp_path / "a.pkl", data + b"h\x3c.")
    assert len(unpickle.read(path)) == 2
    with pytest.raises(schema.InputError, match="sample 0 is a list, no dict"):
        layouts.read(path)


def test_cut_and_changed_files_end_in_data_or_in_one_line(tmp_path):
    data = pickle.dumps({"a": np.arange(3.0), "b": [1, "x", None]}, 4)
    for end in range(1, len(data)):
        with pytest.raises(schema.InputError):
            unpickle.read(_write(tmp_path / "a.pkl", data[:end]))
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
