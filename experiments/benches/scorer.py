"""The NumPy scorer against PyTorch and ONNX Runtime, on the same weights.

The `advanced` network at standard size: width 256, 150 frames, features of 100, 200, 50
and 17 after preprocessing, float32. Every side runs in a process of its own with the
same number of threads, see `sides`. That all give the same scores is asserted before
anything is timed. PyTorch is eager, in inference mode, with its fused attention; ONNX
Runtime gets what `torch.onnx` makes of the same module. The number of threads is that
of `OMP_NUM_THREADS`, else all cores; threads that spin make the times of several
threads useless on a machine that others load.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from experiments import sides, timing
from experiments.benches import _sizes
from tqa_jax import machine

_WIDTHS = _sizes.WIDTHS
_OURS, _PRODUCTS, _TORCH = "NumPy scorer", "its matrix products alone", "PyTorch eager"
_ONNX = "ONNX Runtime"
_NEEDS = {_TORCH: ("torch",), _ONNX: ("torch", "onnx", "onnxscript", "onnxruntime")}
_FRESH = {
    "scorer: import, load, first score": (
        "import numpy, sys; sys.path.insert(0, '.'); import scorer;"
        "found = scorer.load('float32.npz'); clips = numpy.load('clips.npz');"
        "found.score({name: clips[name][0] for name in clips})"
    ),
    "import numpy": "import numpy",
    "import jax": "import jax",
    "import torch": "import torch",
}


def run(rounds: int, *, quick: bool) -> list[timing.Table]:
    """Measures all rows."""
    width, frames, clips = (32, 10, 4) if quick else (256, 150, 32)
    missing = {
        name
        for names in _NEEDS.values()
        for name in names
        if importlib.util.find_spec(name) is None
    }
    kinds = [_OURS, _PRODUCTS]
    kinds += [side for side, names in _NEEDS.items() if not missing & set(names)]
    baseline = _TORCH if _TORCH in kinds else _OURS
    threads = int(os.environ.get("OMP_NUM_THREADS", machine.cores()))
    without = ""
    if missing:
        without = f"Without {', '.join(sorted(missing))}: pip install -e '.[bench]'."
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tables = [_write_files(folder, width, frames, clips)]
        for row, number in (("S1", 1), ("S4", clips)):
            seconds = _interleave(kinds, folder, number, threads, rounds)
            ratio = timing.ratio(seconds[_OURS], seconds[_PRODUCTS])
            tables.append(
                timing.compare(
                    f"{row}: clips {number}, threads {threads}",
                    seconds,
                    baseline,
                    "The scorer over its matrix products: "
                    "{:.3f} ({:.3f} to {:.3f}). ".format(*ratio)
                    + without,
                )
            )
        fresh = {
            label: code for label, code in _FRESH.items() if code[7:] not in missing
        }
        tables.append(_fresh(fresh, folder, rounds))
    return tables


def _write_files(
    folder: pathlib.Path, width: int, frames: int, clips: int
) -> timing.Table:
    """Writes scorer files and clips; says what float16 costs."""
    # Here, since the processes that are timed import this module too.
    import jax
    import ml_collections

    from tqa_jax import export, models, preprocess, schema, scorer
    from tqa_jax import run as run_lib

    model = models.make(
        widths=_WIDTHS,
        tasks=schema.TASKS,
        max_frames=frames,
        preset="advanced",
        width=width,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.05 * rng.normal(size=leaf.shape),
        model.init(jax.random.key(0)),
    )
    transforms = {
        name: preprocess.Transform(
            *(np.full(n, value, "f4") for value in (0, -np.inf, np.inf, 0, 1)),
            np.zeros((n, 0), "f4"),
            1.0,
        )
        for name, n in _WIDTHS.items()
    }
    modalities = tuple(schema.Modality(*pair) for pair in _WIDTHS.items())
    run = run_lib.Run().but(
        config=ml_collections.ConfigDict({"data": {"max_frames": frames}}),
        schema=schema.Schema(modalities, schema.TASKS),
        transforms=transforms,
        model=model,
        members=[params],
    )
    arrays = export.collect(run)
    for dtype in export.DTYPES:
        path = folder / f"{dtype}.npz"
        path.write_bytes(export.pack(export.describe(run, dtype=dtype), arrays))
    drawn = {
        name: rng.normal(size=(clips, frames, n)).astype(np.float32)
        for name, n in _WIDTHS.items()
    }
    np.savez(folder / "clips.npz", **drawn)
    (folder / "options.json").write_text(json.dumps(model.options), encoding="utf-8")
    shutil.copy(scorer.__file__, folder)
    tried = export.random_clips(run, clips)
    scores = {
        dtype: np.array(
            [
                list(one.values())
                for one in scorer.load(folder / f"{dtype}.npz").score_batch(tried)
            ]
        )
        for dtype in export.DTYPES
    }
    rows = []
    for dtype in export.DTYPES:
        path = folder / f"{dtype}.npz"
        start = time.perf_counter()
        scorer.load(path)
        taken = 1000 * (time.perf_counter() - start)
        rows.append(
            {
                "weights": dtype,
                "megabytes": path.stat().st_size / 1e6,
                "score_change": float(np.abs(scores[dtype] - scores["float32"]).max()),
                "load_ms": taken,
            }
        )
    return timing.Table("S3: file", rows, "The change of a score is the largest.")


def _interleave(
    kinds: list[str], folder: pathlib.Path, clips: int, threads: int, rounds: int
) -> dict[str, np.ndarray]:
    """Seconds of every side in every round; asserts first that all agree."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for kind in kinds:
            arguments = {"kind": kind, "folder": str(folder), "clips": clips}
            side = sides.Side(
                f"{__name__}:side",
                arguments | {"threads": threads},
                threads,
                times=5 if clips == 1 else 1,
            )
            workers[kind] = stack.enter_context(sides.start(side))
        scores = {kind: np.array(worker.check()) for kind, worker in workers.items()}
        for kind in set(kinds) - {_OURS, _PRODUCTS}:
            np.testing.assert_allclose(scores[kind], scores[_OURS], atol=1e-4)
        return sides.interleave(workers, rounds)


def _fresh(cases: dict[str, str], folder: pathlib.Path, rounds: int) -> timing.Table:
    def case(code: str) -> Callable[[], None]:
        def once() -> None:
            subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)

        return once

    seconds = timing.interleave(
        {label: case(code) for label, code in cases.items()}, min(rounds, 7)
    )
    return timing.compare("S2: fresh processes", seconds, next(iter(cases)))


_Work = Callable[[], object]
_Drawn = dict[str, np.ndarray]


def side(kind: str, folder: str, clips: int, threads: int) -> sides.Work:
    """Scores clips; `check` returns the scores.

    Args:
        kind: who does.
        folder: with all files.
        clips: how many at once.
        threads: for libraries that don't look at the environment.
    """
    place = pathlib.Path(folder)
    with np.load(place / "clips.npz") as file:
        drawn = {name: file[name][:clips] for name in file.files}
    make = {_OURS: _ours, _PRODUCTS: _products, _TORCH: _torch, _ONNX: _onnx}[kind]
    work = make(place, drawn, threads)
    return sides.Work(work, lambda: np.asarray(work()).tolist())


def _ours(folder: pathlib.Path, drawn: _Drawn, threads: int) -> _Work:
    sys.path.insert(0, str(folder))
    import scorer

    found = scorer.load(folder / "float32.npz")
    clips = [
        dict(zip(drawn, rows, strict=True))
        for rows in zip(*drawn.values(), strict=True)
    ]
    return lambda: [list(one.values()) for one in found.score_batch(clips)]


def _products(folder: pathlib.Path, drawn: _Drawn, threads: int) -> _Work:
    """Just the matrix products of the scorer, in its shapes, clip by clip."""
    params = _params(folder)
    width = params["pool_dense/bias"].shape[0]
    clips, frames, _ = drawn["visual"].shape
    rng = np.random.default_rng(0)
    pairs = []

    def add(*shape: int, times: int = 1, heads: int = 0) -> None:
        lead = (heads,) if heads else ()
        left, right = (
            rng.normal(size=(*lead, *size)).astype(np.float32)
            for size in (shape[:2], shape[1:])
        )
        pairs.extend(
            [(left, right, np.empty((*lead, shape[0], shape[2]), "f4"))] * times
        )

    def block(rows: int, ffn: int) -> None:
        add(rows, width, 3 * width)
        add(rows, width, width)
        add(rows, width, ffn)
        add(rows, ffn, width)

    for modality in _WIDTHS.values():
        add(frames, modality, width, times=2)
        add(frames, width, width, times=2)
    rows, head = len(_WIDTHS) * frames, width // 8
    block(rows, 4 * width)
    part = frames // 3
    add(part, head, frames, times=3 * len(_WIDTHS), heads=8)
    add(part, frames, head, times=3 * len(_WIDTHS), heads=8)
    add(len(_WIDTHS), 2 * width, width)
    for _ in range(3):
        block(len(_WIDTHS), params["path_b_0/expand/bias"].shape[0])
    add(1, 4 * width, 2 * width)
    add(1, 2 * width, width)
    for shape in ((1, width, 128), (1, 128, 64), (1, 64, 1)):
        add(*shape, heads=5)

    def work() -> float:
        for _ in range(clips):
            for left, right, out in pairs:
                np.matmul(left, right, out=out)
        return 0.0

    return work


def _params(folder: pathlib.Path) -> _Drawn:
    with np.load(folder / "float32.npz") as file:
        return {
            name.removeprefix("params/"): file[name][0]
            for name in file.files
            if name.startswith("params/")
        }


def _module(folder: pathlib.Path):
    """The network in plain PyTorch, from the same arrays."""
    from experiments.benches import _torch_network

    params = _params(folder)
    options = json.loads((folder / "options.json").read_text("utf-8"))
    tasks = len(params["head/stack/out/bias"])
    network = _torch_network.Network(options, widths=_WIDTHS, num_tasks=tasks)
    network.load_state_dict(_torch_network.arrange(params))
    return network.eval().requires_grad_(False)


def _torch(folder: pathlib.Path, drawn: _Drawn, threads: int) -> _Work:
    import torch

    torch.set_num_threads(threads)
    module = _module(folder)
    features = [torch.tensor(drawn[name]) for name in _WIDTHS]

    def work() -> np.ndarray:
        with torch.inference_mode():
            return module(*features).numpy()

    return work


def _onnx(folder: pathlib.Path, drawn: _Drawn, threads: int) -> _Work:
    import onnxruntime
    import torch

    path = folder / f"{len(drawn['visual'])}.onnx"
    features = tuple(torch.tensor(drawn[name]) for name in _WIDTHS)
    torch.onnx.export(
        _module(folder), features, path, input_names=list(_WIDTHS), dynamo=True
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options)
    given = {name: drawn[name] for name in _WIDTHS}
    return lambda: session.run(None, given)[0]
