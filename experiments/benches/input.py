"""How fast clips come: from shards, streamed with preprocessing, from the device.

The one thing to know: every side has a process and one thread of its own, and all read
the same data set (float16, 150 frames), which is warm in the system's cache. The goals
are for the widths after PCA (100, 200, 50 and 17, 367 in all); the usual widths before
it (2048, 768, 1404 and 17) are eleven times the bytes. `tf.data` parses the same files
to the same float32 arrays. What is read is the same on all sides, asserted first.
"""

import contextlib
import importlib.util
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments import sides, timing
from experiments.benches import _ours, _sizes
from tqa_jax import batch, machine, pipeline, preprocess, records, schema

_RAW = {"visual": 2048, "audio": 768, "keypoints": 1404, "action_units": 17}
_BATCH = 32
_SHARDS, _STREAM = "our shards", "streamed batches, preprocessed"
_DEVICE, _TENSORFLOW = "from the device's memory", "tf.data"


def run(rounds: int, *, quick: bool) -> list[timing.Table]:
    """Measures both widths, and the share of a training step."""
    frames, few, many = (10, 64, 64) if quick else (150, 64, 288)
    tables = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for kind, widths, clips in (
            ("after PCA", _sizes.WIDTHS, many),
            ("before PCA", _RAW, few),
        ):
            path = folder / str(sum(widths.values()))
            _write(path, widths, clips, frames)
            title = f"P6: {kind}, {sum(widths.values())} features, {frames} frames"
            tables.append(_rates(title, path, clips, rounds))
        size = "tiny" if quick else "standard"
        tables.append(_share(folder, size, rounds))
    return tables


def _write(
    path: pathlib.Path, widths: Mapping[str, int], clips: int, frames: int
) -> None:
    rng = np.random.default_rng(0)
    of = schema.Schema(
        tuple(schema.Modality(name, width) for name, width in widths.items()),
        schema.TASKS,
    )

    def draw() -> Iterator[tuple[str, records.Clip]]:
        for number in range(clips):
            features = {
                name: rng.normal(size=(frames, width)).astype(np.float32)
                for name, width in widths.items()
            }
            mask = {name: np.ones(frames, bool) for name in widths}
            labels = rng.uniform(1, 5, len(schema.TASKS)).astype(np.float32)
            name = f"clip{number}"
            yield "train", records.Clip(name, name, features, mask, labels)

    about = {"kind": "degradation", "description": "random numbers"}
    records.write_dataset(path, draw(), name="bench", schema=of, provenance=about)


def _rates(title: str, path: pathlib.Path, clips: int, rounds: int) -> timing.Table:
    """Clips a second of every side that there is."""
    note = f"{clips} clips, one thread each."
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, function in (
            (_SHARDS, "shards"),
            (_STREAM, "stream"),
            (_DEVICE, "device"),
            (_TENSORFLOW, "tensorflow"),
        ):
            if name == _TENSORFLOW and not importlib.util.find_spec("tensorflow"):
                note += " Without tf.data: no TensorFlow here."
                continue
            side = sides.Side(f"{__name__}:{function}", {"path": str(path)}, 1)
            workers[name] = stack.enter_context(sides.start(side))
        sums = {name: worker.check() for name, worker in workers.items()}
        for one, other in ((_SHARDS, _TENSORFLOW), (_STREAM, _DEVICE)):
            if other in sums:
                np.testing.assert_allclose(sums[one], sums[other], rtol=1e-5)
        seconds = sides.interleave(workers, rounds)
    rows = []
    for name, values in seconds.items():
        low, middle, high = np.quantile(clips / values, [0.25, 0.5, 0.75])
        rows.append(
            {"case": name, "clips_per_second": middle, "low": low, "high": high}
        )
    return timing.Table(title, rows, note)


def _share(folder: pathlib.Path, size: str, rounds: int) -> timing.Table:
    """A batch from the device's memory beside a training step on it."""
    _ours.write(folder, _sizes.SIZES[size], 0.1)
    threads = int(os.environ.get("OMP_NUM_THREADS", machine.cores()))
    step = {"folder": str(folder), "size": size, "dropout": 0.1}
    take = {"path": str(folder / str(sum(_sizes.WIDTHS.values()))), "batches": 1}
    with (
        sides.start(sides.Side(f"{_ours.__name__}:side", step, threads)) as one,
        sides.start(sides.Side(f"{__name__}:device", take, threads, 9)) as other,
    ):
        one.check(), other.check()
        workers = {f"training step, {size}": one, "taking its batch": other}
        seconds = sides.interleave(workers, rounds)
    clips = _sizes.SIZES[size].clips
    title = f"P6: share of a training step, {clips} clips, {threads} threads"
    return timing.compare(title, seconds, f"training step, {size}")


def shards(path: str) -> sides.Work:
    """Reads and decodes all clips, every checksum verified."""
    info = schema.load(path)

    def clips() -> Iterator[records.Clip]:
        return records.read_split(path, info, "train")

    def check() -> list[float]:
        return _total(clip.features for clip in clips())

    return sides.Work(lambda: sum(1 for _ in clips()), check)


def tensorflow(path: str) -> sides.Work:
    """Reads the same files to the same arrays with `tf.data`, on one thread."""
    import tensorflow as tf

    info = schema.load(path)
    text = tf.io.FixedLenFeature([], tf.string)
    number = tf.io.FixedLenFeature([], tf.float32)
    wanted = {f"labels/{name}": number for name in info.schema.task_names}
    for name in info.schema.widths:
        wanted |= {f"features/{name}": text, f"frame_mask/{name}": text}

    def parse(data: Any) -> dict[str, Any]:
        found = tf.io.parse_single_example(data, wanted)
        for name, width in info.schema.widths.items():
            rows = tf.io.decode_raw(found[f"features/{name}"], tf.float16)
            rows = tf.cast(tf.reshape(rows, [-1, width]), tf.float32)
            found[f"features/{name}"] = rows
            mask = tf.io.decode_raw(found[f"frame_mask/{name}"], tf.uint8)
            found[f"frame_mask/{name}"] = tf.cast(mask, tf.bool)
        return found

    files = [str(pathlib.Path(path) / s.file) for s in info.splits["train"].shards]
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    found = tf.data.TFRecordDataset(files).map(parse).with_options(options)

    def check() -> list[float]:
        return _total(
            {name: clip[f"features/{name}"].numpy() for name in info.schema.widths}
            for clip in found
        )

    return sides.Work(lambda: sum(1 for _ in found), check)


def _transforms(info: schema.DatasetInfo) -> dict[str, preprocess.Transform]:
    """Preprocessing of the usual sizes; what is in it does not matter for time."""
    rng = np.random.default_rng(0)
    found = {}
    for name, width in info.schema.widths.items():
        target = _sizes.WIDTHS.get(name, width)
        found[name] = preprocess.Transform(
            *(np.full(width, value, "f4") for value in (0, -np.inf, np.inf, 0.1, 2)),
            rng.normal(size=(width, target if target < width else 0)).astype("f4"),
            1.0,
        )
    return found


def _split(path: str) -> tuple[pipeline.Stream, np.ndarray]:
    """A stream, and the batches of an epoch."""
    info = schema.load(path)
    clips = pipeline.describe(
        records.read_split(path, info, "train"), 10_000, info.schema.widths
    )
    stream = pipeline.Stream(
        path, info, "train", _transforms(info), clips=clips, frames=max(clips.frames)
    )
    return stream, pipeline.order(len(clips.names), _BATCH, seed=0, epoch=0)


def stream(path: str) -> sides.Work:
    """Reads shuffled batches from the shards and preprocesses them."""
    found, order = _split(path)
    return sides.Work(
        lambda: sum(len(one.labels) for one in found.batches(order)),
        lambda: _total(one.features for one in found.batches(order)),
    )


def device(path: str, batches: int | None = None) -> sides.Work:
    """Takes shuffled batches from a split that lies on the device.

    Args:
        path: the data set.
        batches: how many; default all of an epoch.
    """
    found, order = _split(path)
    windows = jax.device_put(found.rows(np.arange(order.size)))
    take = jax.jit(batch.take)
    rows = [jax.device_put(one) for one in order[:batches]]

    def once() -> None:
        for one in rows:
            jax.block_until_ready(take(windows, one))

    return sides.Work(once, lambda: _total(take(windows, one).features for one in rows))


def _total(found: Any) -> list[float]:
    """Sum of the squares of each modality: something by which readings are equal."""
    totals: dict[str, float] = {}
    for features in found:
        for name, rows in features.items():
            square = np.square(np.asarray(rows, np.float64)).sum()
            totals[name] = totals.get(name, 0.0) + float(square)
    return [totals[name] for name in sorted(totals)]
