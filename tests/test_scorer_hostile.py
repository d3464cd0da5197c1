"""Scorer files from anywhere: one clear error or the same scores, nothing else."""

import copy
import functools
import hashlib
import io
import json
import math
import resource
import struct
import tempfile
import time
import zipfile

import numpy as np
import pytest

from tests import test_scorer
from tqa_jax import scorer

HEADER = 10  # Bytes before NumPy's header text.


@functools.cache
def good():
    return test_scorer.packed(preset="advanced", fusion_layers=1, depth=1)


@functools.cache
def features():
    return test_scorer.make_clips()[2].features


@functools.cache
def good_scores():
    with tempfile.NamedTemporaryFile() as file:
        file.write(good())
        file.flush()
        return scorer.load(file.name).score(features())


def members():
    with zipfile.ZipFile(io.BytesIO(good())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def forge(parts, *, sign=True, compress=zipfile.ZIP_STORED):
    """Zips members, with a checksum that fits them."""
    parts = dict(parts)
    if sign:
        digest = hashlib.sha256(parts["description.npy"])
        for name in sorted(parts.keys() - {"description.npy", "sha256.npy"}):
            digest.update(parts[name])
        parts["sha256.npy"] = npy(np.frombuffer(digest.digest(), np.uint8))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compress) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return packed.getvalue()


def npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), **options)
    return file.getvalue()


def description():
    data = members()["description.npy"]
    return json.loads(data[HEADER + int.from_bytes(data[8:HEADER], "little") :])


def described(value):
    text = value if isinstance(value, str) else json.dumps(value)
    return npy(np.frombuffer(text.encode(), np.uint8))


def attempt(path, data):
    """Loads and scores; returns scores or the one line of the error."""
    path.write_bytes(data)
    start = time.process_time()
    try:
        found = scorer.load(path).score(features())
    except scorer.ScorerError as error:
        found = str(error)
        assert "\n" not in found and len(found) < 1000, found
    assert time.process_time() - start < 1
    return found


@pytest.fixture(autouse=True)
def memory_is_bounded():
    good_scores()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < 200e6


def mutate(data, rng):
    data = bytearray(data)
    kind = rng.integers(6)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    if kind == 1:
        for _ in range(rng.integers(1, 9)):
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif kind == 2:  # In the directory, which no checksum covers.
        start = struct.unpack("<L", data[-6:-2])[0]
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(start, len(data))] ^= 1 << rng.integers(8)
    elif kind == 3:
        place = rng.integers(len(data))
        data[place:place] = rng.bytes(rng.integers(1, 100))
    elif kind == 4:
        place = rng.integers(len(data))
        del data[place : place + rng.integers(1, 100)]
    else:
        place, length = rng.integers(len(data)), rng.integers(1, 1000)
        data[place : place + length] = rng.bytes(length)
    return bytes(data)


def test_damaged_files_are_refused_or_score_the_same(tmp_path):
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(300):
        found = attempt(tmp_path / "scorer.npz", mutate(good(), rng))
        if isinstance(found, str):
            refused += 1
        else:
            assert found == good_scores(), number
    assert 200 < refused < 300  # Names and dates in a directory may change.


def test_swapped_members_are_refused_or_fit(tmp_path):
    rng = np.random.default_rng(1)
    parts = members()
    names = sorted(parts)
    for number in range(60):
        one, other = rng.choice(names, 2, replace=False)
        swapped = {**parts, one: parts[other], other: parts[one]}
        found = attempt(tmp_path / "s.npz", forge(swapped, sign=False))
        assert isinstance(found, str) or parts[one] == parts[other]
        if "description.npy" in (one, other):
            continue
        signed = attempt(tmp_path / "s.npz", forge(swapped))  # Two arrays of one shape.
        assert isinstance(signed, str) or finite(signed), number


def finite(scores):
    return all(math.isfinite(value) for value in scores.values())


ABSURD = (
    *(-1, 0, 1, 3, 65535, 1 << 16, 10**9, 1 << 63, 10**400, 1.5, 1e308, True, False),
    *(None, "", "both", "x" * 10_000, "a\nb", [], {}, [[]], {"visual": 1}, [10**9]),
    *(["visual"] * 5, [{}], {"a": {"a": 1}}),
)


def paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value[:2]) if isinstance(value, list) else items
    for key, inner in items:
        yield from paths(inner, (*path, key))


def changed(value, path, new):
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = changed(value[path[0]], path[1:], new)
    return value


def test_absurd_descriptions_are_refused_or_score_in_numbers(tmp_path):
    rng = np.random.default_rng(2)
    parts, whole = members(), description()
    places = list(paths(whole))
    taken = 0
    for number in range(400):
        place = places[number % len(places)]
        new = changed(whole, place, ABSURD[rng.integers(len(ABSURD))])
        forged = forge({**parts, "description.npy": described(new)})
        found = attempt(tmp_path / "scorer.npz", forged)
        if not isinstance(found, str):
            taken += 1
            assert finite(found), place
    assert taken < 200


def test_missing_and_added_keys_are_refused_or_change_nothing(tmp_path):
    parts, whole = members(), description()
    for place in paths(whole):
        if not place or isinstance(place[-1], int):
            continue
        inner = functools.reduce(lambda v, key: v[key], place[:-1], whole)
        less = {key: value for key, value in inner.items() if key != place[-1]}
        new = changed(whole, place[:-1], less)
        forged = forge({**parts, "description.npy": described(new)})
        found = attempt(tmp_path / "scorer.npz", forged)
        assert isinstance(found, str) or found == good_scores(), place


def with_json(text):
    return forge({**members(), "description.npy": described(text)})


def with_array(name, data):
    return forge({**members(), f"{name}.npy": data})


def filled(name, value):
    array = np.load(io.BytesIO(members()[f"{name}.npy"]))
    array.flat[0] = value
    return npy(array)


BIAS = "params/pool_dense/bias"


class Pickled:
    """Leaves a mark when it is unpickled."""

    mark = []

    def __reduce__(self):
        return self.mark.append, (1,)


def bomb():
    """A few kilobytes that would be 300 MB."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members().items():
            if name == f"{BIAS}.npy":
                with archive.open(name, "w") as file:
                    for _ in range(300):
                        file.write(bytes(1 << 20))
            else:
                archive.writestr(name, data)
    return packed.getvalue()


def edited_directory(name, offset, value):
    """Changes four bytes of a member's directory entry."""
    data = bytearray(good())
    start = struct.unpack("<L", data[-6:-2])[0]
    place = data.index(f"{name}.npy".encode(), start) - 46
    data[place + offset : place + offset + len(value)] = value
    return bytes(data)


def overlapping():
    """Every entry of the directory points at one and the same array."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a", bytes(100_000))
        first = archive.infolist()[0]
        for number in range(1000):
            again = copy.copy(first)
            again.filename = again.orig_filename = f"a{number}"
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
    return packed.getvalue()


def many_entries():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(50_000):
            archive.writestr(zipfile.ZipInfo("x" * 50 + str(number)), b"")
    return packed.getvalue()


CASES = {
    "empty": (lambda: b"", "cut short"),
    "no zip": (lambda: b"hello " * 100, "no .npz file"),
    "array alone": (lambda: npy(np.ones(3)), "no .npz file"),
    "later version": (
        lambda: with_json(description() | {"version": 2}),
        "version 2, this program reads version 1",
    ),
    "other format": (lambda: with_json({"format": "x"}), "not that of a tqa_jax"),
    "no json": (lambda: with_json("{"), "not JSON"),
    "deep json": (lambda: with_json("[" * 500_000), "not JSON"),
    "huge number": (lambda: with_json("1" * 500_000), "not JSON"),
    "nan in json": (lambda: with_json('{"a": NaN}'), "number NaN"),
    "no text": (
        lambda: forge(members() | {"description.npy": npy(np.full(9, 255, np.uint8))}),
        "not JSON",
    ),
    "huge json": (lambda: with_json('"' + "x" * (1 << 21) + '"'), "too large"),
    "nan": (lambda: with_array(BIAS, filled(BIAS, np.nan)), "pool_dense/bias .*finite"),
    "infinity": (
        lambda: with_array(BIAS, filled(BIAS, np.inf)),
        "pool_dense/bias .*finite",
    ),
    "too large": (
        lambda: with_array(BIAS, filled(BIAS, 3e38)),
        "features or weights are too large",
    ),
    "infinite mean": (
        lambda: with_array(
            "transforms/visual/mean", filled("transforms/visual/mean", np.inf)
        ),
        "visual/mean .*finite",
    ),
    "wrong shape": (
        lambda: with_array(BIAS, npy(np.zeros((1, 17), "f4"))),
        "wrong size|begins with",
    ),
    "transposed shape": (
        lambda: with_array(BIAS, npy(np.zeros((16, 1), "f4"))),
        r"'shape': \(16, 1\).*expected.*\(1, 16\)",
    ),
    "big endian": (lambda: with_array(BIAS, npy(np.zeros((1, 16), ">f4"))), "'>f4'"),
    "integers": (lambda: with_array(BIAS, npy(np.zeros((1, 16), "i4"))), "'<i4'"),
    "doubles": (lambda: with_array(BIAS, npy(np.zeros((1, 16)))), "wrong size|<f8"),
    "objects": (
        lambda: with_array(
            BIAS, npy(np.array([[Pickled()] * 16], object), allow_pickle=True)
        ),
        "begins with|wrong size",
    ),
    "newer NumPy format": (
        lambda: with_array(BIAS, npy(np.zeros((1, 16), "f4"), version=(2, 0))),
        "begins with",
    ),
    "wrong checksum": (
        lambda: forge(
            members() | {f"{BIAS}.npy": npy(np.zeros((1, 16), "f4"))}, sign=False
        ),
        "does not match its checksum",
    ),
    "no checksum": (
        lambda: forge(
            {n: d for n, d in members().items() if n != "sha256.npy"}, sign=False
        ),
        "has no sha256",
    ),
    "missing array": (
        lambda: forge({n: d for n, d in members().items() if BIAS not in n}),
        "lacks the array 'params/pool_dense/bias",
    ),
    "unknown array": (
        lambda: with_array("../../../etc/x", npy(np.zeros(1))),
        "unknown array '../../../etc/x.npy'",
    ),
    "bomb": (bomb, "compressed or overlap"),
    "compressed": (
        lambda: forge(members(), compress=zipfile.ZIP_DEFLATED),
        "compressed or overlap",
    ),
    "overlap": (overlapping, "compressed or overlap"),
    "many entries": (many_entries, "directory is damaged"),
    "lying sizes": (
        lambda: edited_directory(BIAS, 20, struct.pack("<LL", 1 << 31, 1 << 31)),
        "compressed or overlap",
    ),
    "encrypted": (lambda: edited_directory(BIAS, 8, b"\1\0"), "compressed or overlap"),
    "unknown compression": (
        lambda: edited_directory(BIAS, 10, b"\x63\0"),
        "compressed or overlap",
    ),
    "offset elsewhere": (
        lambda: edited_directory(BIAS, 42, struct.pack("<L", 5)),
        "damaged",
    ),
    "absurd width": (
        lambda: with_json(changed(description(), ("options", "width"), 65_528)),
        "lacks|wrong size",
    ),
    "absurd frames": (
        lambda: with_json(changed(description(), ("max_frames",), 1 << 20)),
        "whole number",
    ),
    "absurd members": (
        lambda: with_json(changed(description(), ("members",), 1000)),
        "wrong size",
    ),
    "absurd layers": (
        lambda: with_json(changed(description(), ("options", "fusion_layers"), 10**9)),
        "whole number from 1 to 64",
    ),
    "early without time": (
        lambda: with_json(
            changed(
                changed(description(), ("options", "temporal_layers"), 0),
                ("options", "topology"),
                "early",
            )
        ),
        "fuses early and has no time attention",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_hostile_file_is_one_clear_error(name, tmp_path):
    make, message = CASES[name]
    data = make()
    path = tmp_path / "scorer.npz"
    if name == "too large":
        path.write_bytes(data)
        with pytest.raises(scorer.ScorerError, match=message):
            scorer.load(path).score(features())
        return
    found = attempt(path, data)
    assert isinstance(found, str)
    with pytest.raises(scorer.ScorerError, match=message):
        scorer.load(path)
    assert str(path) in found
    assert not Pickled.mark


def test_what_is_no_file_is_one_clear_error(tmp_path):
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(scorer.ScorerError, match="cannot be read"):
            scorer.load(path)


def test_good_file_is_what_the_forger_makes_of_its_parts(tmp_path):
    found = attempt(tmp_path / "scorer.npz", forge(members()))
    assert found == good_scores()
    with np.load(tmp_path / "scorer.npz", allow_pickle=False) as file:
        assert file[BIAS].shape == (1, 16)
