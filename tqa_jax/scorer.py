"""Scores clips from their features; needs this file, NumPy and a `scorer.npz`.

    python scorer.py scorer.npz features.npz

The one thing to know: this file may be copied and used alone, so it imports nothing of
the package. Features go in as they were extracted; `scorer.npz` (written by
`python -m tqa_jax.export`) brings preprocessing, weights and the names of everything.

A scorer file may come from anywhere: it is data only, everything in it is checked
against what its own description implies before it is read, and whatever is wrong with
it is a `ScorerError`.
"""

import hashlib
import json
import math
import os
import struct
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

DEFAULT = os.path.join(os.path.dirname(__file__), "pretrained", "default.npz")
"""The packaged scorer; not there where this file is used alone."""
FORMAT = "tqa_jax.scorer"
VERSION = 1

# What each field of the network may be: a size, a choice, or a type. Those that are
# `float` or `str` matter in training only.
OPTIONS: dict[str, range | tuple[str, ...] | type] = {
    "preset": str,
    "dtype": str,
    "remat": str,
    "width": range(1, 1 << 16),
    "encoder": ("residual", "embedder"),
    "depth": range(1, 65),
    "embedder_hidden": dict,
    "dropout": float,
    "topology": ("late", "early"),
    "positions": bool,
    "modality_embeddings": bool,
    "temporal_layers": range(65),
    "temporal_heads": range(1, 1 << 16),
    "temporal_ffn": range(1, 1 << 18),
    "temporal_dropout": float,
    "temporal_window": range(1 << 20),
    "cross_layers": range(65),
    "attention_dropout": float,
    "pooling": ("mean", "max", "mean_max"),
    "paths": ("a", "b", "both"),
    "gate": bool,
    "fusion_layers": range(1, 65),
    "fusion_heads": range(1, 1 << 16),
    "fusion_ffn": range(1, 1 << 18),
    "fusion_dropout": float,
    "modality_dropout": float,
    "head_hidden": list,
    "head_dropout": float,
    "head_style": ("normed", "plain"),
    "head_activation": ("sigmoid", "tanh", "none"),
}

_FEATURES = range(1, 1 << 20)
_FRAMES = range(1, 1 << 20)
_MEMBERS = range(1, 1 << 10)
_STORED = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
_DESCRIPTION_BYTES = 1 << 20
_DIRECTORY_BYTES = 1 << 22
_MOST_ITEMS = 64
_EPSILON = np.float32(1e-5)

# GELU(x) = h + h tanh(h P(h h)) with h = x / 2; P is the minimax fit on |x| <= 6 of
# the exact (erf) form, off by less than 7e-8 before rounding. Highest power first.
_GELU = [
    np.float32(value)
    for value in (
        1.4791931e-05,
        -2.7330294e-04,
        2.0322596e-03,
        -7.0707683e-03,
        -1.0601392e-03,
        2.9067426e-01,
        1.59576843,
    )
]
_BLOCK = 1 << 15  # Numbers in a block of rows: three such blocks fit in a core's cache.
_GROUP = 1 << 17  # Numbers in the token matrix of windows that are scored together.
# Multiplications in an attention product. OpenBLAS, which NumPy mostly comes with, is
# slower with threads on products of this size, and uses none up to about here.
_PRODUCTS = 1 << 18
_FEW = 32  # Rows in a block of windowed attention at least.

TRANSFORM = ("median", "low", "high", "mean", "scale", "components")

Features = Mapping[str, Any]
"""Rows of each modality, (T, D) of its width; one not there is left out."""


class ScorerError(ValueError):
    """A scorer file, or features given to it, cannot be used; one line says why."""


class Scorer:
    """A trained network with its preprocessing; made by `load`.

    Attributes:
        schema: `modalities` (name, width, backend, version, checksum), `tasks` (name,
            low, high, description) and `fps`, as dicts.
        confidence: what the training run says about its certainty; may be empty. By
            task, `half_width` of an interval; `real`, scores of untouched clips; and
            `map`, scores and what becomes of them (see `tqa_jax.calibrate`).
        max_frames: length of a window.
        description: everything else that the file says about itself.
        arrays: preprocessing, parameters and statistics of training, by name.
    """

    def __init__(
        self, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> None:
        """Prepares the networks; `load` checks what comes in."""
        self.description = description
        self.schema = description["schema"]
        self.confidence = description["confidence"]
        self.max_frames = description["max_frames"]
        self._widths = {one["name"]: one["width"] for one in self.schema["modalities"]}
        self.arrays = arrays
        params = {
            name.removeprefix("params/"): array
            for name, array in arrays.items()
            if name.startswith("params/")
        }
        room = _Room()
        self._networks = [
            _network(
                description["options"],
                list(self._widths),
                self.schema["tasks"],
                {name: array[member] for name, array in params.items()},
                room,
            )
            for member in range(description["members"])
        ]

    def score(
        self, features: Features, masks: Mapping[str, Any] | None = None
    ) -> dict[str, float]:
        """Scores one clip.

        Args:
            features: rows of each modality as extracted, (T, D), all of one T at the
                schema's frame rate. NaN and infinity are imputed. A modality may be
                left out.
            masks: by modality, bool (T,), False where nothing was measured; one that
                is left out is True throughout.

        Returns:
            The score of each task: the mean over members and over the windows in which
            something was measured.

        Raises:
            ScorerError: for an unknown modality, a wrong width, unequal lengths, or a
                clip in which nothing was measured.
        """
        return self.score_batch([features], [masks])[0]

    def score_batch(
        self,
        clips: Sequence[Features],
        masks: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[dict[str, float]]:
        """Scores clips of any lengths; see `score`."""
        if masks is None:
            masks = [None] * len(clips)
        if len(masks) != len(clips):
            raise ScorerError(f"got {len(clips)} clips but masks of {len(masks)}")
        found = [self._cut(*pair) for pair in zip(clips, masks, strict=True)]
        scores = self._run([window for _, windows in found for window in windows])
        means, start = [], 0
        for starts, _ in found:
            stop = start + len(starts)
            mean = scores[:, start:stop].mean(axis=(0, 1), dtype=np.float64)
            means.append(
                {
                    task["name"]: float(value)
                    for task, value in zip(self.schema["tasks"], mean, strict=True)
                }
            )
            start = stop
        return means

    def windows(
        self, features: Features, masks: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores every window of a clip with every member; see `score`.

        Returns:
            The first frame of each window, int (W,), and scores, float32 (members, W,
            tasks). If all between the first measured frame and the last fits in one
            window there is one, else evenly spaced ones of `max_frames`, less those in
            which nothing was measured.
        """
        starts, windows = self._cut(features, masks)
        return np.array(starts), self._run(windows)

    def distance(
        self, features: Features, masks: Mapping[str, Any] | None = None
    ) -> dict[str, float]:
        """Tells how far each modality of a clip lies from the training windows.

        Returns:
            By modality that is there: the root mean square of a window mean's z-scores
            among training windows, over its limit there, of the farthest window; above
            1 is out of range. Empty when the file holds no statistics of training.

        Raises:
            ScorerError: when a distance is not finite, and as `score`.
        """
        found: dict[str, float] = {}
        for window in self._cut(features, masks)[1]:
            for name, (rows, _) in window.items():
                if name in self.description["reference"]:
                    mean, scale, limit = (
                        self.arrays[f"reference/{name}/{field}"]
                        for field in ("mean", "scale", "limit")
                    )
                    with np.errstate(all="ignore"):
                        z = rows.mean(axis=0) - mean
                        np.divide(z, scale, out=z, where=scale > 0)
                        far = float(np.sqrt(np.mean(z**2)) / limit)
                    if not np.isfinite(far):
                        raise ScorerError(
                            f"{name} is too far from the training features to tell"
                        )
                    found[name] = max(far, found.get(name, 0.0))
        return found

    def _measured(
        self, features: Features, masks: Mapping[str, Any] | None
    ) -> tuple[np.ndarray, dict[str, "_Rows"]]:
        """Checks a clip; returns its measured frames and their preprocessed rows."""
        masks = masks or {}
        for kind, given in (("modality", features), ("mask", masks)):
            for name in given:
                if name not in self._widths:
                    raise ScorerError(
                        f"unknown {kind} {name!r}; this scorer reads "
                        f"{', '.join(self._widths)}"
                    )
        found, lengths = {}, {}
        for name in features:
            try:
                rows = np.asarray(features[name])
            except ValueError as error:
                raise ScorerError(f"{name} is no array: {error}") from error
            if rows.dtype.kind not in "fiu":
                raise ScorerError(f"{name} holds {rows.dtype}; expected numbers")
            if rows.ndim != 2 or rows.shape[1] != self._widths[name]:
                raise ScorerError(
                    f"{name} has shape {rows.shape}; "
                    f"expected (frames, {self._widths[name]})"
                )
            lengths[name] = len(rows)
            frames = np.arange(len(rows))
            if name in masks:
                mask = np.asarray(masks[name])
                if mask.dtype != bool or mask.shape != rows.shape[:1]:
                    raise ScorerError(
                        f"the mask of {name} is {mask.dtype} {mask.shape}; "
                        f"expected bool ({len(rows)},)"
                    )
                rows, frames = rows[mask], np.flatnonzero(mask)
            if len(rows):
                found[name] = self._preprocess(name, rows), frames
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ScorerError(f"modalities differ in frames: {told}")
        if not found:
            raise ScorerError(
                "nothing to score: no modality has a measured frame; "
                f"this scorer reads {', '.join(self._widths)}"
            )
        return np.unique(
            np.concatenate([frames for _, frames in found.values()])
        ), found

    def _preprocess(self, name: str, rows: np.ndarray) -> np.ndarray:
        median, low, high, mean, scale, components = (
            self.arrays[f"transforms/{name}/{field}"] for field in TRANSFORM
        )
        with np.errstate(all="ignore"):
            rows = rows.astype(np.float32)
            finite = np.isfinite(rows)
            if not finite.all():
                rows = np.where(finite, rows, median)
            rows = np.clip(rows, low, high, out=rows)
            rows -= mean
            rows *= scale
            return rows @ components if components.shape[1] else rows

    def _cut(
        self, features: Features, masks: Mapping[str, Any] | None
    ) -> tuple[list[int], list[dict[str, "_Rows"]]]:
        """Returns the starts of a clip's windows, and the windows."""
        measured, found = self._measured(features, masks)
        first, length = measured[0], measured[-1] - measured[0] + 1
        number = -(-length // self.max_frames)
        last = max(0, length - self.max_frames)
        starts, windows = [], []
        # Rounded before `first` is added, so that frames in front move no window.
        for start in (
            (np.linspace(0, last, number).round() + first).astype(int).tolist()
        ):
            window = {}
            for name, (rows, frames) in found.items():
                ends = np.searchsorted(frames, (start, start + self.max_frames))
                part = slice(*ends.tolist())
                if part.start < part.stop:
                    window[name] = rows[part], frames[part] - start
            if window:
                starts.append(start)
                windows.append(window)
        return starts, windows

    def _run(self, windows: Sequence[dict[str, "_Rows"]]) -> np.ndarray:
        """Scores windows with every member: (members, W, K)."""
        room = max(1, _GROUP // self.description["options"]["width"])
        scores = np.empty(
            (len(self._networks), len(windows), len(self.schema["tasks"])), np.float32
        )
        start, rows = 0, 0
        with np.errstate(all="ignore"):
            for stop, window in enumerate(windows, 1):
                rows += sum(len(part) for part, _ in window.values())
                if rows >= room or stop == len(windows):
                    for member, network in enumerate(self._networks):
                        scores[member, start:stop] = network(windows[start:stop])
                    start, rows = stop, 0
        if not np.isfinite(scores).all():
            raise ScorerError(
                "scores are not finite: features or weights are too large"
            )
        known = self.confidence.get("tasks", {})
        for k, task in enumerate(self.schema["tasks"]):
            if "map" in known.get(task["name"], {}):
                start, end = known[task["name"]]["map"]
                scores[..., k] = np.interp(scores[..., k], start, end)
        return scores


def load(path: str | os.PathLike[str]) -> Scorer:
    """Reads a scorer file.

    Args:
        path: written by `python -m tqa_jax.export`.

    Raises:
        ScorerError: when it cannot be read, is damaged, or is of a later version.
    """
    try:
        with open(path, "rb") as file:
            return Scorer(*_read(file))
    except OSError as error:
        raise ScorerError(f"{path} cannot be read: {error}") from error
    except ScorerError as error:
        raise ScorerError(f"{path} is no usable scorer: {error}") from error


# Reading: nothing is believed that was not checked, and no array is read before its
# shape is known to be the one that the description implies.


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ScorerError(message)


def _read(file: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - 22))
    tail = file.read(22)
    _need(tail[:4] == b"PK\5\6" and len(tail) == 22, "it is cut short or no .npz file")
    entries, directory, offset, comment = struct.unpack("<H2LH", tail[10:])
    _need(
        directory <= _DIRECTORY_BYTES
        and offset + directory + 22 == size
        and comment == 0,
        "its directory is damaged",
    )
    try:
        with zipfile.ZipFile(file) as archive:
            members = {one.filename: one for one in archive.infolist()}
            _need(len(members) == entries, "its directory is damaged")
            stored = all(
                one.compress_type == zipfile.ZIP_STORED
                and one.file_size == one.compress_size
                and not one.flag_bits & ~0x800
                for one in members.values()
            )
            total = sum(one.file_size for one in members.values())
            _need(stored and total <= size, "its arrays are compressed or overlap")
            return _content(archive, members)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        EOFError,
        UnicodeError,
        struct.error,
    ) as error:
        raise ScorerError(f"it is damaged: {str(error)[:80]}") from error


def _content(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    for name in ("description.npy", "sha256.npy"):
        _need(name in members, f"it has no {name}")
        _need(members[name].file_size <= _DESCRIPTION_BYTES, f"its {name} is too large")
    text = archive.read("description.npy")
    length = len(text) - 10 - int.from_bytes(text[8:10], "little")
    description = _description(_parse(text, "description", "|u1", (length,)).tobytes())
    wanted = {
        f"{name}.npy": (dtype, shape)
        for name, (dtype, shape) in contents(description).items()
    }
    found = members.keys() - {"description.npy", "sha256.npy"}
    for name in sorted(wanted.keys() ^ found)[:1]:
        verb = "lacks the" if name in wanted else "has an unknown"
        raise ScorerError(f"it {verb} array {name[:80]!r}")
    for name, (dtype, shape) in wanted.items():
        excess = members[name].file_size - math.prod(shape) * np.dtype(dtype).itemsize
        _need(0 < excess < 1 << 16, f"{name} has the wrong size; expected {shape}")
    digest = hashlib.sha256(text)
    arrays = {}
    for name in sorted(wanted):
        data = archive.read(name)
        digest.update(data)
        dtype, shape = wanted[name]
        name = name.removesuffix(".npy")
        array = _parse(data, name, dtype, shape)
        if dtype == "<u2":
            array = (array.astype("<u4") << 16).view("<f4")
        array = array.astype(np.float32, copy=False)
        unbounded = name.endswith(("/low", "/high"))
        good = not np.isnan(array).any() if unbounded else np.isfinite(array).all()
        _need(bool(good), f"{name} holds numbers that are not finite")
        if name.endswith("/limit"):
            _need(array > 0, f"{name} is {array}; expected more than 0")
        arrays[name] = array
    checksum = _parse(archive.read("sha256.npy"), "sha256", "|u1", (32,)).tobytes()
    _need(digest.digest() == checksum, "its content does not match its checksum")
    return description, arrays


def _parse(data: bytes, name: str, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """Reads an array in NumPy's format if it is exactly the one expected."""
    start = 10 + int.from_bytes(data[8:10], "little")
    header = data[10:start].rstrip()
    wanted = (
        f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    )
    _need(
        data[:8] == b"\x93NUMPY\1\0" and header == wanted.encode(),
        f"{name} begins with {header[:80]!r}; expected {wanted}",
    )
    bytes_wanted = math.prod(shape) * np.dtype(dtype).itemsize
    _need(len(data) - start == bytes_wanted, f"{name} is cut short")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def _description(data: bytes) -> dict[str, Any]:
    """Reads and checks the JSON part of the file."""

    def refuse(text: str) -> None:
        raise ScorerError(f"its description holds the number {text}")

    try:
        found = json.loads(data.decode(), parse_constant=refuse)
    except ScorerError:
        raise
    except (ValueError, RecursionError) as error:
        raise ScorerError(f"its description is not JSON: {error}") from error
    _need(
        isinstance(found, dict) and found.get("format") == FORMAT,
        f"its description is not that of a {FORMAT}",
    )
    version = found.get("version")
    _need(
        version == VERSION and type(version) is int,
        f"it has version {repr(version)[:20]}, this program reads version {VERSION}; "
        "use the scorer.py that belongs to it",
    )
    _dict(found, "schema", "options", "components", "confidence")
    _member(found, "max_frames", _FRAMES)
    _member(found, "members", _MEMBERS)
    _member(found, "storage", tuple(_STORED))
    schema, options, components = (
        found[name] for name in ("schema", "options", "components")
    )
    _need(_number(schema.get("fps")) and schema["fps"] > 0, "its fps is no number")
    for kind, fields in (
        ("modalities", ("name", "backend", "version", "checksum")),
        ("tasks", ("name", "description")),
    ):
        items = schema.get(kind)
        _need(
            isinstance(items, list) and 0 < len(items) <= _MOST_ITEMS,
            f"its {kind} are no list of 1 to {_MOST_ITEMS}",
        )
        for one in items:
            _need(isinstance(one, dict), f"its {kind} are not described")
            for field in fields:
                _member(one, field, str)
            _need(one["name"].isidentifier(), f"a name in its {kind} is no word")
        names = [one["name"] for one in items]
        _need(len(set(names)) == len(names), f"its {kind} have a name twice")
    for task in schema["tasks"]:
        low, high = task.get("low"), task.get("high")
        _need(
            _number(low) and _number(high) and low < high,
            f"the range of task {task['name'][:80]!r} is no range",
        )
    names = [one["name"] for one in schema["modalities"]]
    for one in schema["modalities"]:
        _member(one, "width", _FEATURES)
        _member(components, one["name"], range(one["width"]))
    _need(set(components) == set(names), "its components are not its modalities")
    reference = found.get("reference")
    _need(
        isinstance(reference, list)
        and all(name in names for name in reference)
        and len(set(map(str, reference))) == len(reference),
        "its reference is no list of modalities",
    )
    known = found["confidence"].get("tasks", {})
    _need(
        isinstance(known, dict)
        and all(isinstance(one, dict) for one in known.values()),
        "its confidence does not describe tasks",
    )
    for one in known.values():
        width = one.get("half_width")
        _need(
            width is None or (_number(width) and width >= 0),
            "a half_width in its confidence is no width",
        )
        real = one.get("real", [])
        _need(
            isinstance(real, list) and all(_number(score) for score in real),
            "its confidence does not list scores of real clips",
        )
        maps = one.get("map", [[0, 1], [0, 1]])
        _need(
            isinstance(maps, list)
            and len(maps) == 2
            and all(isinstance(end, list) for end in maps)
            and 2 <= len(maps[0]) == len(maps[1]) <= 1000
            and all(_number(value) for end in maps for value in end)
            and all(a < b for a, b in zip(maps[0][:-1], maps[0][1:], strict=True)),
            "a map in its confidence is none",
        )
    for name in sorted({*OPTIONS} ^ {*options})[:1]:
        raise ScorerError(f"its options lack or have an unknown {name[:80]!r}")
    for name, allowed in OPTIONS.items():
        _member(options, name, allowed)
    hidden = options["embedder_hidden"]
    for name in hidden:
        _member(hidden, name, OPTIONS["width"])
    _need(len(options["head_hidden"]) <= _MOST_ITEMS, "its heads have too many layers")
    for width in options["head_hidden"]:
        _member({"head_hidden": width}, "head_hidden", OPTIONS["width"])
    _need(
        options["topology"] == "late" or options["temporal_layers"] > 0,
        "it fuses early and has no time attention",
    )
    for name in ("temporal_heads", "fusion_heads"):
        _need(
            options["width"] % options[name] == 0, f"{name} does not divide its width"
        )
    return found


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30


def _dict(found: Mapping[str, Any], *names: str) -> None:
    for name in names:
        _member(found, name, dict)


def _member(
    found: Mapping[str, Any], name: str, allowed: range | tuple[str, ...] | type
) -> None:
    """Checks one entry of a dict against what it may be."""
    value = found.get(name)
    if isinstance(allowed, range):
        good = type(value) is int and value in allowed
        wanted = f"a whole number from {allowed.start} to {allowed.stop - 1}"
    elif isinstance(allowed, tuple):
        good = isinstance(value, str) and value in allowed
        wanted = f"one of {', '.join(allowed)}"
    else:
        good = _number(value) if allowed is float else isinstance(value, allowed)
        wanted = f"of type {allowed.__name__}"
    _need(good, f"its {name[:80]} is {repr(value)[:80]}; expected {wanted}")


def contents(
    description: Mapping[str, Any],
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Lists type and shape of every array that a description implies.

    Args:
        description: content of `description.npy`, checked.

    Returns:
        NumPy type code and shape by name; parameters have a leading axis of members.
    """
    stored = _STORED[description["storage"]]
    found = {}
    widths = {}
    for one in description["schema"]["modalities"]:
        name, width = one["name"], one["width"]
        kept = description["components"][name]
        widths[name] = kept or width
        for field in TRANSFORM[:-1]:
            found[f"transforms/{name}/{field}"] = "<f4", (width,)
        found[f"transforms/{name}/components"] = stored, (width, kept)
        if name in description["reference"]:
            found[f"reference/{name}/mean"] = "<f4", (widths[name],)
            found[f"reference/{name}/scale"] = "<f4", (widths[name],)
            found[f"reference/{name}/limit"] = "<f4", ()
    shapes = _shapes(
        description["options"],
        widths,
        len(description["schema"]["tasks"]),
        description["max_frames"],
    )
    for name, shape in shapes.items():
        found[f"params/{name}"] = stored, (description["members"], *shape)
    return found


def _shapes(
    options: Mapping[str, Any],
    widths: Mapping[str, int],
    num_tasks: int,
    max_frames: int,
) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of one network, by path."""
    shapes: dict[str, tuple[int, ...]] = {}
    width = options["width"]

    def dense(key: str, *shape: int) -> None:
        shapes[f"{key}/kernel"] = shape
        shapes[f"{key}/bias"] = (*shape[:-2], shape[-1])

    def norm(key: str, *shape: int) -> None:
        shapes[f"{key}/scale"] = shapes[f"{key}/bias"] = shape

    def block(key: str, heads: int, ffn: int) -> None:
        for part in ("query", "key", "value"):
            shapes[f"{key}/attention/{part}/kernel"] = (width, heads, width // heads)
            shapes[f"{key}/attention/{part}/bias"] = (heads, width // heads)
        shapes[f"{key}/attention/out/kernel"] = (heads, width // heads, width)
        shapes[f"{key}/attention/out/bias"] = (width,)
        norm(f"{key}/norm_0", width)
        dense(f"{key}/expand", width, ffn)
        dense(f"{key}/contract", ffn, width)
        norm(f"{key}/norm_1", width)

    for name, features in widths.items():
        key = f"encoders_{name}"
        if options["encoder"] == "embedder":
            hidden = options["embedder_hidden"].get(name, width)
            dense(f"{key}/dense_0", features, hidden)
            dense(f"{key}/dense_1", hidden, width)
            continue
        if features != width:
            dense(f"{key}/residual", features, width)
        for layer in range(options["depth"]):
            dense(f"{key}/dense_{layer}", width if layer else features, width)
            norm(f"{key}/norm_{layer}", width)
    for key, number, kind in _blocks(options):
        for layer in range(number):
            block(f"{key}_{layer}", options[f"{kind}_heads"], options[f"{kind}_ffn"])
    tokens = (len(widths), width)
    if options["positions"]:
        shapes["position"] = (max_frames, width)
    if options["modality_embeddings"]:
        shapes["modality"] = tokens
    pooled = width * (2 if options["pooling"] == "mean_max" else 1)
    if options["topology"] == "late":
        shapes["absent"] = tokens
        dense("pool_dense", pooled, width)
        if options["paths"] != "b":
            dense("path_a_expand", len(widths) * width, 2 * width)
            dense("path_a_contract", 2 * width, width)
        if options["paths"] == "both" and options["gate"]:
            dense("path_gate", 2 * width, width)
        pooled = width
    if options["head_style"] == "normed":
        shapes["head/stack/scale"] = (num_tasks, 1)
    for layer, hidden in enumerate(options["head_hidden"]):
        dense(f"head/stack/dense_{layer}", num_tasks, pooled, hidden)
        if options["head_style"] == "normed":
            norm(f"head/stack/norm_{layer}", num_tasks, hidden)
        pooled = hidden
    dense("head/stack/out", num_tasks, pooled, 1)
    return shapes


def _blocks(options: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Name, number and kind of the transformer blocks that a network has."""
    found = [("time", options["temporal_layers"], "temporal")]
    if options["topology"] == "late":
        found.append(("cross", options["cross_layers"], "temporal"))
        if options["paths"] != "a":
            found.append(("path_b", options["fusion_layers"], "fusion"))
    return found


# The network. Each factory folds parameters so that few passes over memory are left:
# the bias of keys (a softmax does not see it), that of values (through the output
# projection), that before ReLU, since relu(x + b) = max(x, -b) + b; the scale of
# queries; and the mean that a LayerNorm subtracts after a dense layer (its kernel is
# centred). Only frames that were measured are ever rows of a matrix.

_Rows = tuple[np.ndarray, np.ndarray]  # Features (n, P) and their frames (n,).
_Attend = Callable[[np.ndarray, np.ndarray, int], None]


class _Room(threading.local):
    """Arrays that each thread uses again; fresh memory costs more than what it holds.

    An array is used up when the next one of its name is taken.
    """

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def take(self, name: str, *shape: int) -> np.ndarray:
        size = math.prod(shape)
        if name not in self._kept or self._kept[name].size < size:
            self._kept[name] = np.empty(size, np.float32)
        return self._kept[name][:size].reshape(shape)


def _network(
    options: Mapping[str, Any],
    names: Sequence[str],
    tasks: Sequence[Mapping[str, Any]],
    params: Mapping[str, np.ndarray],
    room: _Room,
) -> Callable[[Sequence[Mapping[str, _Rows]]], np.ndarray]:
    """Makes a function from windows to scores (W, K), one row of each modality a frame.

    Args:
        options: fields of the network.
        names: of modalities, in the order of tokens.
        tasks: with their ranges.
        params: of one member.
        room: for intermediate results.
    """
    width = options["width"]
    encoders = [
        _encoder(options, params, m, name, room) for m, name in enumerate(names)
    ]
    blocks = {
        key: [
            _block(params, f"{key}_{layer}", options[f"{kind}_heads"], room)
            for layer in range(number)
        ]
        for key, number, kind in _blocks(options)
    }
    heads = _heads(options, params, tasks, room)

    def encode(windows: Sequence[Mapping[str, _Rows]]) -> tuple[np.ndarray, ...]:
        none = np.empty((0, 1), np.float32), np.empty(0, np.intp)
        parts = [[window.get(name, none) for window in windows] for name in names]
        counts = np.array([[len(rows) for rows, _ in one] for one in parts])  # (M, W)
        ends = np.cumsum(counts).reshape(counts.shape)
        x = room.take("x", int(ends[-1, -1]), width)
        for encoder, one, end in zip(encoders, parts, ends, strict=True):
            rows = [rows for rows, _ in one if len(rows)]
            if rows:
                rows = rows[0] if len(rows) == 1 else np.concatenate(rows)
                encoder(rows, x[end[-1] - len(rows) : end[-1]])
        frames = np.concatenate([frames for one in parts for _, frames in one])
        return x, frames, counts, ends

    def early(windows: Sequence[Mapping[str, _Rows]]) -> np.ndarray:
        encoded, frames, counts, ends = encode(windows)
        means, there = [], []
        for w in range(len(windows)):
            parts = [
                slice(end - count, end)
                for end, count in zip(ends[:, w], counts[:, w], strict=True)
            ]
            length = max(
                (frames[p].max() + 1 for p in parts if p.start < p.stop), default=0
            )
            total = np.zeros((length, width), np.float32)
            count = np.zeros((length, 1), np.float32)
            for part in parts:
                total[frames[part]] += encoded[part]
                count[frames[part]] += 1
            there.append(np.flatnonzero(count))
            means.append(total[there[-1]] / count[there[-1]])
        x = np.concatenate(means)
        if options["positions"]:
            x += params["position"][np.concatenate(there)]
        lengths = [len(one) for one in there]
        window = options["temporal_window"]
        attend = _within(lengths, np.concatenate(there), window, room)
        for block in blocks["time"]:
            block(x, attend)
        return _pool(x, lengths, options["pooling"])

    def late(windows: Sequence[Mapping[str, _Rows]]) -> np.ndarray:
        x, frames, counts, _ = encode(windows)
        if options["positions"]:
            x += params["position"][frames]
        lengths = counts.ravel().tolist()
        attend = _within(lengths, frames, options["temporal_window"], room)
        for block in blocks["time"]:
            block(x, attend)
        if blocks["cross"]:
            attend = _across(frames, counts, room)
            for block in blocks["cross"]:
                block(x, attend)
        tokens = _dense(params, "pool_dense", _pool(x, lengths, options["pooling"]))
        tokens = tokens.reshape(len(names), len(windows), width).swapaxes(0, 1)
        there = (counts > 0).T[..., None]
        tokens = np.where(there, tokens, params["absent"])  # (W, M, D)
        if options["paths"] != "b":
            flat = tokens.reshape(len(windows), -1)
            hidden = _dense(params, "path_a_expand", flat)
            hidden *= np.float32(0.5)
            _gelu(hidden, room)
            one = _dense(params, "path_a_contract", hidden)
            if options["paths"] == "a":
                return one
        flat = tokens.reshape(-1, width)
        attend = _each(len(names), room)
        for block in blocks["path_b"]:
            block(flat, attend)
        other = flat.reshape(tokens.shape).mean(axis=1)
        if options["paths"] == "b":
            return other
        if not options["gate"]:
            return (one + other) / 2
        share = _sigmoid(
            _dense(params, "path_gate", np.concatenate([one, other], axis=1))
        )
        return share * one + (1 - share) * other

    shared = early if options["topology"] == "early" else late
    return lambda windows: heads(shared(windows))


def _dense(params: Mapping[str, np.ndarray], key: str, x: np.ndarray) -> np.ndarray:
    return x @ params[f"{key}/kernel"] + params[f"{key}/bias"]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _row_blocks(x: np.ndarray) -> Iterator[slice]:
    step = max(1, _BLOCK // x.shape[1])
    for start in range(0, len(x), step):
        yield slice(start, start + step)


def _gelu(half: np.ndarray, room: _Room) -> None:
    """Turns x / 2 into GELU(x) in place."""
    y, p = room.take("gelu_y", *half.shape), room.take("gelu_p", *half.shape)
    np.multiply(half, half, out=y)
    np.multiply(y, _GELU[0], out=p)
    for coefficient in _GELU[1:-1]:
        p += coefficient
        p *= y
    p += _GELU[-1]
    p *= half
    np.tanh(p, out=p)
    p *= half
    half += p


def _norm_gelu(
    x: np.ndarray,
    bias: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    room: _Room,
) -> None:
    """GELU(LayerNorm(x + bias)) in place; x has mean 0, scale and shift are halved."""
    for part in _row_blocks(x):
        rows = x[part]
        rows += bias
        variance = np.einsum("ij,ij->i", rows, rows) / np.float32(rows.shape[1])
        rows *= (1 / np.sqrt(variance + _EPSILON))[:, None]
        rows *= scale
        rows += shift
        _gelu(rows, room)


def _add_norm(
    x: np.ndarray, y: np.ndarray, bias: np.ndarray, scale: np.ndarray, shift: np.ndarray
) -> None:
    """LayerNorm(x + y + bias) into `x`; `y` is overwritten."""
    share = np.full(x.shape[1], 1 / x.shape[1], np.float32)
    for part in _row_blocks(x):
        rows = y[part]
        rows += x[part]
        rows += bias
        rows -= (rows @ share)[:, None]
        variance = np.einsum("ij,ij->i", rows, rows) / np.float32(rows.shape[1])
        rows *= (1 / np.sqrt(variance + _EPSILON))[:, None]
        np.multiply(rows, scale, out=x[part])
        x[part] += shift


def _encoder(
    options: Mapping[str, Any],
    params: Mapping[str, np.ndarray],
    m: int,
    name: str,
    room: _Room,
) -> Callable[[np.ndarray, np.ndarray], None]:
    """Makes a function that encodes rows of one modality into its second argument."""
    key = f"encoders_{name}"
    shift = np.zeros(options["width"], np.float32)
    if options["modality_embeddings"]:
        shift += params["modality"][m]
    if options["encoder"] == "embedder":
        first, second = params[f"{key}/dense_0/kernel"], params[f"{key}/dense_1/kernel"]
        bias = params[f"{key}/dense_0/bias"]
        shift += params[f"{key}/dense_1/bias"] + bias @ second

        def embed(rows: np.ndarray, out: np.ndarray) -> None:
            hidden = room.take("hidden", len(rows), first.shape[1])
            np.matmul(rows, first, out=hidden)
            np.maximum(hidden, -bias, out=hidden)
            np.matmul(hidden, second, out=out)
            out += shift

        return embed

    residual = params.get(f"{key}/residual/kernel")
    if residual is not None:
        shift += params[f"{key}/residual/bias"]
    half = np.float32(0.5)
    layers = []
    for layer in range(options["depth"]):
        kernel, bias = (
            params[f"{key}/dense_{layer}/{part}"] for part in ("kernel", "bias")
        )
        norm = (
            half * params[f"{key}/norm_{layer}/{part}"] for part in ("scale", "bias")
        )
        centred = kernel - kernel.mean(axis=1, keepdims=True)
        layers.append((centred, bias - bias.mean(), *norm))

    def encode(rows: np.ndarray, out: np.ndarray) -> None:
        x = rows
        for layer, (kernel, *rest) in enumerate(layers):
            y = room.take("odd" if layer % 2 else "even", *out.shape)
            x = np.matmul(x, kernel, out=y)
            _norm_gelu(x, *rest, room)
        if residual is None:
            out[...] = rows
        else:
            np.matmul(rows, residual, out=out)
        out += shift
        out += x

    return encode


def _block(
    params: Mapping[str, np.ndarray], key: str, heads: int, room: _Room
) -> Callable[[np.ndarray, _Attend], None]:
    """Makes a function that runs a post-norm transformer block on rows, in place."""
    query, bias = (params[f"{key}/attention/query/{p}"] for p in ("kernel", "bias"))
    width = len(query)
    scale = np.float32((width // heads) ** -0.5)
    kernels = (
        query * scale,
        *(params[f"{key}/attention/{p}/kernel"] for p in ("key", "value")),
    )
    project = np.concatenate([one.reshape(width, width) for one in kernels], axis=1)
    query_bias = bias.ravel() * scale
    out = params[f"{key}/attention/out/kernel"].reshape(width, width)
    out_bias = params[f"{key}/attention/value/bias"].ravel() @ out
    out_bias += params[f"{key}/attention/out/bias"]
    first, second = params[f"{key}/expand/kernel"], params[f"{key}/contract/kernel"]
    floor = -params[f"{key}/expand/bias"]
    last_bias = params[f"{key}/contract/bias"] - floor @ second
    norms = [
        [params[f"{key}/norm_{n}/{part}"] for part in ("scale", "bias")] for n in (0, 1)
    ]

    def block(x: np.ndarray, attend: _Attend) -> None:
        projected = room.take("projected", len(x), 3 * width)
        np.matmul(x, project, out=projected)
        projected[:, :width] += query_bias
        attended = room.take("attended", *x.shape)
        attend(projected, attended, heads)
        y = np.matmul(attended, out, out=room.take("y", *x.shape))
        _add_norm(x, y, out_bias, *norms[0])
        hidden = room.take("hidden", len(x), first.shape[1])
        np.matmul(x, first, out=hidden)
        np.maximum(hidden, floor, out=hidden)
        np.matmul(hidden, second, out=y)
        _add_norm(x, y, last_bias, *norms[1])

    return block


def _within(
    lengths: Sequence[int], frames: np.ndarray, window: int, room: _Room
) -> _Attend:
    """Attention among the rows of each segment.

    Args:
        lengths: rows of each segment.
        frames: of every row, ascending in a segment.
        window: how many frames away a row is seen; 0 for any.
        room: for intermediate results.
    """

    def attend(projected: np.ndarray, attended: np.ndarray, heads: int) -> None:
        start = 0
        for length in lengths:
            rows = slice(start, start + length)
            start += length
            if not length:
                continue
            query, key, value = _by_head(projected[rows], heads)
            out = attended[rows].reshape(length, heads, -1).swapaxes(0, 1)
            when = frames[rows]
            if 0 < window < when[-1] - when[0]:
                for part, near, there in _bands(when, window):
                    parts = query[:, part], key[:, near], value[:, near], out[:, part]
                    _attention(*parts, room, there)
                continue
            step = max(1, _PRODUCTS // (length * query.shape[-1]))
            step = -(-length // -(-length // step))
            for part in range(0, length, step):
                part = slice(part, part + step)
                _attention(query[:, part], key, value, out[:, part], room)

    return attend


def _bands(
    frames: np.ndarray, window: int
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Cuts rows in blocks, each with the rows that it sees and which of them by row."""
    step = max(window, _FEW)
    for start in range(0, len(frames), step):
        part = slice(start, start + step)
        when = frames[part]
        ends = np.searchsorted(frames, (when[0] - window, when[-1] + window + 1))
        near = slice(*ends.tolist())
        yield part, near, np.abs(when[:, None] - frames[near]) <= window


def _each(size: int, room: _Room) -> _Attend:
    """Attention among every `size` rows."""

    def attend(projected: np.ndarray, attended: np.ndarray, heads: int) -> None:
        groups = projected.reshape(-1, size, projected.shape[1])
        out = attended.reshape(len(groups), size, heads, -1).swapaxes(1, 2)
        _attention(*_by_head(groups, heads), out, room)

    return attend


def _across(frames: np.ndarray, counts: np.ndarray, room: _Room) -> _Attend:
    """Attention among the modalities of each frame of each window.

    Args:
        frames: of every row; rows are ordered by modality, then window.
        counts: rows of each modality and window, (M, W).
        room: for intermediate results.
    """
    window = np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel())
    modality = np.repeat(np.arange(len(counts)), counts.sum(axis=1))
    length = frames.max() + 1 if len(frames) else 1
    _, place = np.unique(window * length + frames, return_inverse=True)
    table = np.full((place.max() + 1 if len(place) else 0, len(counts)), -1)
    table[place, modality] = np.arange(len(frames))
    there = table >= 0

    def attend(projected: np.ndarray, attended: np.ndarray, heads: int) -> None:
        out = room.take("across", *table.shape, attended.shape[1])
        by_head = out.reshape(*table.shape, heads, -1).swapaxes(1, 2)
        gathered = projected[table]
        _attention(*_by_head(gathered, heads), by_head, room, there[:, None, None])
        attended[table[there]] = out[there]

    return attend


def _by_head(projected: np.ndarray, heads: int) -> np.ndarray:
    """Views (..., n, 3D) as queries, keys and values, each (..., H, n, D / H)."""
    split = projected.reshape(*projected.shape[:-1], 3, heads, -1)
    return np.moveaxis(split, -3, 0).swapaxes(-3, -2)


def _attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    out: np.ndarray,
    room: _Room,
    there: np.ndarray | None = None,
) -> None:
    """softmax(q k) v of (..., H, n, d) into `out`, over the keys that are there."""
    weights = room.take("weights", *query.shape[:-1], key.shape[-2])
    np.matmul(query, key.swapaxes(-1, -2), out=weights)
    if there is not None:
        np.copyto(weights, -np.inf, where=~there)
    # A softmax needs its maximum subtracted only where `exp` could leave its range.
    if there is not None or weights.max() > 60 or weights.min() < -60:
        weights -= weights.max(axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    total = weights @ np.ones(weights.shape[-1], np.float32)
    np.matmul(weights, value, out=out)
    out /= total[..., None]


def _pool(x: np.ndarray, lengths: Sequence[int], kind: str) -> np.ndarray:
    """Pools the rows of each segment; zeros for an empty one."""
    sizes = {"mean": 1, "max": 1, "mean_max": 2}
    found = np.zeros((len(lengths), sizes[kind], x.shape[1]), np.float32)
    start = 0
    for place, length in enumerate(lengths):
        rows = x[start : start + length]
        start += length
        if length and kind != "max":
            found[place, 0] = rows.mean(axis=0)
        if length and kind != "mean":
            found[place, -1] = rows.max(axis=0)
    return found.reshape(len(lengths), -1)


def _heads(
    options: Mapping[str, Any],
    params: Mapping[str, np.ndarray],
    tasks: Sequence[Mapping[str, Any]],
    room: _Room,
) -> Callable[[np.ndarray], np.ndarray]:
    """Makes a function from shared features (W, F) to scores (W, K)."""
    low = np.array([task["low"] for task in tasks], np.float32)
    high = np.array([task["high"] for task in tasks], np.float32)
    normed = options["head_style"] == "normed"

    def dense(key: str, x: np.ndarray) -> np.ndarray:
        kernel, bias = (params[f"head/stack/{key}/{p}"] for p in ("kernel", "bias"))
        return x @ kernel + bias[:, None]

    def score(x: np.ndarray) -> np.ndarray:
        x = np.broadcast_to(x, (len(tasks), *x.shape))  # (K, W, F)
        if normed:
            x = x * params["head/stack/scale"][..., None]
        for layer in range(len(options["head_hidden"])):
            x = dense(f"dense_{layer}", x)
            if normed:
                x = x - x.mean(axis=-1, keepdims=True)
                variance = np.square(x).mean(axis=-1, keepdims=True)
                scale, shift = (
                    params[f"head/stack/norm_{layer}/{part}"][:, None]
                    for part in ("scale", "bias")
                )
                x = (x / np.sqrt(variance + _EPSILON) * scale + shift) / 2
                _gelu(x, room)
            else:
                x = np.maximum(x, 0)
        raw = dense("out", x)[..., 0].T
        if options["head_activation"] == "sigmoid":
            return low + (high - low) * _sigmoid(raw)
        if options["head_activation"] == "tanh":
            return low + (high - low) * ((np.tanh(raw) + 1) / 2)
        return raw

    return score


def main(arguments: Sequence[str]) -> int:
    """Runs `scorer.py SCORER FEATURES` and returns the exit status.

    Args:
        arguments: path of the scorer file; path of an `.npz` file with an array (T, D)
            named as each modality and, where frames are missing, a bool array (T,)
            named `<modality>/mask`.
    """
    if len(arguments) != 2 or arguments[0].startswith("-"):
        print("usage: scorer.py SCORER.npz FEATURES.npz", file=sys.stderr)
        return 2
    try:
        found = load(arguments[0])
        try:
            opened = np.load(arguments[1], allow_pickle=False)
            if not isinstance(opened, np.lib.npyio.NpzFile):
                raise ValueError("it is no .npz file")
            with opened as file:
                arrays = {name: file[name] for name in file.files}
        except (
            OSError,
            ValueError,
            EOFError,
            NotImplementedError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise ScorerError(f"{arguments[1]} cannot be read: {error}") from error
        suffix = "/mask"
        masks = {
            name.removesuffix(suffix): array
            for name, array in arrays.items()
            if name.endswith(suffix)
        }
        features = {
            name: array for name, array in arrays.items() if not name.endswith(suffix)
        }
        print(json.dumps(found.score(features, masks)))
    except ScorerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
