"""Files that would do something when Python's own reader opened them do nothing."""

import collections
import copyreg
import os
import pathlib
import pickle
import struct

import numpy as np
import pytest

from extract import pickles


def _refused(folder: pathlib.Path, capsys, data: bytes) -> str:
    """Asserts that the command refuses a file in one line and leaves nothing."""
    path = folder / "a.pkl"
    path.write_bytes(data)
    assert pickles.main([f"--pickle={path}", f"--out={folder / 'set'}"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and len(text) < 600
    assert sorted(folder.iterdir()) == [path]
    return text


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
        "after plain data": [1, "a", np.zeros(3), Reduce(eval, (python,))],
        "numpy.load": Reduce(np.load, (str(mark),)),
        "pickle.loads of bytes": Reduce(pickle.loads, (inner,)),
        "object array": holder,
        "structured dtype": np.zeros(1, [("a", "f4")]),
        "defaultdict with a call": Reduce(collections.defaultdict, (os.system,)),
        "key that is no text": {1: 2},
        "a set": {1, 2},
    }
    return {name: pickle.dumps(value, 4) for name, value in dumped.items()} | {
        "reduce at protocol 0": pickle.dumps(Reduce(os.system, (touch,)), 0),
        "INST": b"(" + quoted + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + quoted + b"o.",
        "GLOBAL alone": b"cos\nsystem\n.",
        "STACK_GLOBAL": _ops("os", "system", b"\x93", call),
        "dotted name": _ops("numpy", "os.system", b"\x93", call),
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
        "copyreg": b"ccopyreg\n_reconstructor\n(cos\n_wrap_close\n"
        b"c__builtin__\nobject\nNtR.",
        "copyreg.add_extension": b"ccopyreg\nadd_extension\n(S'os'\nS'system'\nI240\n"
        b"tR.",
        "persistent id": b"Pname\n.",
        "NEWOBJ": _ops("os", "_wrap_close", b"\x93)\x81."),
        "NEWOBJ_EX": _ops(ndarray, b")}\x92."),
        "calls ndarray": _ops(ndarray, b"K\x02\x85R."),
        "BUILD of a name": _ops(dtype, b"N}", "__call__", "y", b"s\x86b."),
        "BUILD of a finished array": _ops(
            ARRAY, b"(K\x01K\x01\x85", DTYPE, b"\x89C\x04\x00\x00\x00\x00tb."
        ),
        "__setstate__ with a dict": _ops(NEW, b"}", "__class__", b"NNsb."),
        "items put into an array": _ops(ARRAY, "x", "y", b"s."),
        "out-of-band buffer": _ops(b"\x97."),
        "key that is deep": _ops(b"})" + b"\x85" * 200_000 + b"K\x01s."),
        "two pickles": pickle.dumps(1) + inner,
    }


@pytest.mark.parametrize("name", list(_gadgets(pathlib.Path("x"))))
def test_what_is_no_plain_data_is_refused_and_not_run(
    tmp_path, capsys, name, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _refused(tmp_path, capsys, _gadgets(tmp_path / "mark")[name])


@pytest.mark.parametrize(
    "name", ["reduce os.system", "eval", "INST", "OBJ", "STACK_GLOBAL",
             "numpy.memmap makes the file",
             "pickle.loads of bytes", "object array"],
)  # fmt: skip
def test_the_gadgets_are_real(tmp_path, name):
    mark = tmp_path / "mark"
    pickle.loads(_gadgets(mark)[name])
    assert mark.exists()


def test_registered_extensions_are_refused(tmp_path, capsys):
    mark = tmp_path / "mark"
    data = _ops(b"\x82\xf0(", f"touch {mark}", b"tR.")
    copyreg.add_extension("os", "system", 240)
    try:
        pickle.loads(data)  # Python now keeps the function and asks for no name.
        mark.unlink()
        _refused(tmp_path, capsys, data)
    finally:
        copyreg.remove_extension("os", "system", 240)


def _array(shape: bytes, data: bytes = b"C\x04\x00\x00\x00\x00") -> bytes:
    return _ops(NEW, b"(K\x01", shape, DTYPE, b"\x89", data, b"tb.")


def _doubled(levels: int) -> bytes:
    """Lists that each hold the one before twice."""
    data = b"\x80\x04]\x940"
    for level in range(levels):
        data += b"](h" + bytes([level]) + b"h" + bytes([level]) + b"e\x940"
    return data + b"h" + bytes([levels]) + b"."


ENCODE = _ops(b"0h\x00(h\x01", "latin1", b"tR")[2:]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04K\x01",
        b"PK\x03\x04 a zip of torch",
        b"\x80\x04K\x01p99999999999999\n.",
        b"\x80\x04j\xff\xff\xff\x7f.",
        b"\x80\x04B\xff\xff\xff\x7fab.",  # BINBYTES of 2 GiB
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fab.",
        b"\x80\x05\x96" + b"\xff" * 7 + b"\x7fab.",
        b"\x80\x04\x8b\xff\xff\xff\x7f\x01.",  # LONG4
        b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fK\x01.",  # FRAME
        b"I" + b"9" * 5000 + b"\n.",
        _array(b"J\x00\x00\x00\x40\x85"),  # of more numbers than its bytes
        _array(b"J\xff\xff\xff\xff\x85"),
        _array(b"(" + b"K\x01" * 40 + b"t"),
        _array(b"K\x01\x85", b"]"),
        b"\x80\x040.",
        b"\x80\x04t.",
        b"\x80\x04K\x01(e.",
        b"\x80\x04}(K\x01K\x02u.",
        _ops(b"c_codecs\nencode\nq\x000", "a" * 10_000, b"q\x01", ENCODE * 50, b"."),
        _doubled(60),
    ],
)
def test_damage_and_bombs_end_in_one_line(tmp_path, capsys, data):
    _refused(tmp_path, capsys, data)


def test_an_array_that_the_file_does_not_fill_is_no_array(tmp_path, capsys):
    rows = pickle.dumps(np.zeros((2, 2, 3)), 4)[11:-1]
    data = _ops(b"}", "train", b"}(", "features", b"}", "au", rows, b"s", "labels")
    data += _ops(b"}", "overall_score", NEW, b"s", "video_ids", NEW, b"us.")[2:]
    assert "overall_score is no array" in _refused(tmp_path, capsys, data)


def test_cut_and_changed_files_end_in_one_line(tmp_path, capsys):
    data = pickle.dumps({"a": np.arange(3.0), "b": [1, "x", None]}, 4)
    for end in range(1, len(data), 3):
        _refused(tmp_path, capsys, data[:end])
    rng = np.random.default_rng(0)
    for _ in range(150):
        changed = bytearray(data)
        for place in rng.integers(len(data), size=3):
            changed[place] = rng.integers(256)
        _refused(tmp_path, capsys, bytes(changed))
