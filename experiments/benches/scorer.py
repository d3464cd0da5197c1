"""The NumPy scorer against PyTorch and ONNX Runtime, on the same weights.

The `advanced` network at standard size: width 256, 150 frames, features of 100, 200, 50
and 17 after preprocessing, float32. Every side runs in a process of its own with the
same number of threads; a round asks each of them once, in an order that rotates, after
a pause in which the threads of the last one come to rest. That all give the same scores
is asserted before anything is timed. PyTorch is eager, in inference mode, with its
fused attention; ONNX Runtime gets what `torch.onnx` makes of the same module. The
number of threads is that of `OMP_NUM_THREADS`, else all cores; threads that spin make
the times of several threads useless on a machine that others load.
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
from collections.abc import Callable, Iterator

import numpy as np
import tqdm

from experiments import timing

_WIDTHS = {"visual": 100, "audio": 200, "keypoints": 50, "action_units": 17}
_PAUSE_SECONDS = 0.1
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


def run(rounds: int, *, quick: bool) -> str:
    """Measures all rows and returns the tables."""
    width, frames, clips = (32, 10, 4) if quick else (256, 150, 32)
    missing = {
        name
        for names in _NEEDS.values()
        for name in names
        if importlib.util.find_spec(name) is None
    }
    sides = [_OURS, _PRODUCTS]
    sides += [side for side, names in _NEEDS.items() if not missing & set(names)]
    baseline = _TORCH if _TORCH in sides else _OURS
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    text = []
    if missing:
        text.append(f"without {', '.join(sorted(missing))}: pip install -e '.[bench]'")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        text.append(_write_files(folder, width, frames, clips))
        for row, number in (("S1", 1), ("S4", clips)):
            seconds = _interleave(sides, folder, number, threads, rounds)
            text.append(
                f"\n{row}: clips {number}, threads {threads}\n\n"
                + timing.table(seconds, baseline)
            )
            ratio = timing.ratio(seconds[_OURS], seconds[_PRODUCTS])
            text.append(
                "\nscorer / its matrix products: "
                + "{:.3f} ({:.3f} to {:.3f})".format(*ratio)
            )
        fresh = {
            label: code for label, code in _FRESH.items() if code[7:] not in missing
        }
        text.append("\nS2: fresh processes\n\n" + _fresh(fresh, folder, rounds))
    return "\n".join(text)


def _write_files(folder: pathlib.Path, width: int, frames: int, clips: int) -> str:
    """Writes scorer files and clips; says what float16 costs."""
    # Here, since the processes that are timed import this module too.
    import jax
    import ml_collections

    from tqa_jax import export, models, preprocess, schema, scorer, trained

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
    run = trained.Trained(
        ml_collections.ConfigDict({"data": {"max_frames": frames}}),
        schema.Schema(modalities, schema.TASKS),
        transforms,
        model,
        [params],
        {},
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
    lines = ["\nS3: file\n", "| weights | MB | largest change of a score | load ms |"]
    lines.append("|---|---|---|---|")
    for dtype in export.DTYPES:
        path = folder / f"{dtype}.npz"
        start = time.perf_counter()
        scorer.load(path)
        taken = 1000 * (time.perf_counter() - start)
        error = np.abs(scores[dtype] - scores["float32"]).max()
        size = path.stat().st_size / 1e6
        lines.append(f"| {dtype} | {size:.2f} | {error:.2g} | {taken:.0f} |")
    return "\n".join(lines)


def _interleave(
    sides: list[str], folder: pathlib.Path, clips: int, threads: int, rounds: int
) -> dict[str, np.ndarray]:
    """Seconds of every side in every round; asserts first that all agree."""
    with contextlib.ExitStack() as stack:
        ask = {
            side: stack.enter_context(_worker(side, folder, clips, threads))
            for side in sides
        }
        scores = {side: np.array(ask[side]()) for side in sides}
        for side in set(sides) - {_OURS, _PRODUCTS}:
            np.testing.assert_allclose(scores[side], scores[_OURS], atol=1e-4)
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in tqdm.trange(rounds, unit="round", desc=f"{clips} clips"):
            turn = number % len(sides)
            for side in sides[turn:] + sides[:turn]:
                time.sleep(_PAUSE_SECONDS)
                seconds[side].append(ask[side]())
    return {side: np.array(values) for side, values in seconds.items()}


@contextlib.contextmanager
def _worker(
    side: str, folder: pathlib.Path, clips: int, threads: int
) -> Iterator[Callable[[], object]]:
    """Starts a side; the function asks it: for scores at first, then for seconds."""
    limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, side, str(folder), str(clips), str(threads)],
        env=os.environ | dict.fromkeys(limits, str(threads)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask() -> object:
        process.stdin.write("go\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{side} ended with status {process.wait()}")
        return json.loads(answer)

    with process:
        yield ask
        process.stdin.close()


def _fresh(cases: dict[str, str], folder: pathlib.Path, rounds: int) -> str:
    def case(code: str) -> Callable[[], None]:
        command = [sys.executable, "-c", code]
        return lambda: subprocess.run(command, cwd=folder, check=True)

    seconds = timing.interleave(
        {label: case(code) for label, code in cases.items()}, min(rounds, 7)
    )
    return timing.table(seconds, next(iter(cases)))


def _serve(side: str, folder: pathlib.Path, clips: int, threads: int) -> None:
    """Answers its standard input: scores at first, then seconds of one turn."""
    with np.load(folder / "clips.npz") as file:
        drawn = {name: file[name][:clips] for name in file.files}
    make = {_OURS: _ours, _PRODUCTS: _products, _TORCH: _torch, _ONNX: _onnx}[side]
    work = make(folder, drawn, threads)
    times = 5 if clips == 1 else 1
    for number, _ in enumerate(sys.stdin):
        scores = work()
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
        answer = float(np.median(taken)) if number else np.asarray(scores).tolist()
        print(json.dumps(answer), flush=True)


_Work = Callable[[], object]
_Drawn = dict[str, np.ndarray]


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
    import torch
    from torch.nn import functional as F

    def tensor(array: np.ndarray) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.tensor(array), requires_grad=False)

    params = _params(folder)
    width = params["pool_dense/bias"].shape[0]

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.names = {}
            for key, array in params.items():
                parts = key.split("/")
                if "attention" in parts:
                    continue
                if parts[-1] == "kernel":
                    array = np.ascontiguousarray(np.swapaxes(array, -1, -2))
                self.keep(key, array)
            for key in {key.split("/")[0] for key in params if "attention" in key}:
                for part, columns in (("kernel", width), ("bias", 1)):
                    three = [
                        params[f"{key}/attention/{name}/{part}"]
                        for name in ("query", "key", "value")
                    ]
                    three = [one.reshape(columns, width).T for one in three]
                    array = np.ascontiguousarray(np.concatenate(three).squeeze())
                    self.keep(f"{key}/in/{part}", array)
                out = params[f"{key}/attention/out/kernel"].reshape(width, width)
                self.keep(f"{key}/out/kernel", np.ascontiguousarray(out.T))
                self.keep(f"{key}/out/bias", params[f"{key}/attention/out/bias"])

        def keep(self, key: str, array: np.ndarray) -> None:
            name = key.replace("/", "__")
            self.register_parameter(name, tensor(array))

        def get(self, key: str):
            return getattr(self, key.replace("/", "__"))

        def dense(self, key: str, x):
            return F.linear(x, self.get(f"{key}/kernel"), self.get(f"{key}/bias"))

        def norm(self, key: str, x):
            scale, bias = self.get(f"{key}/scale"), self.get(f"{key}/bias")
            return F.layer_norm(x, scale.shape, scale, bias, 1e-5)

        def block(self, key: str, x):
            size, tokens, _ = x.shape
            split = self.dense(f"{key}/in", x).view(size, tokens, 3, 8, width // 8)
            q, k, v = split.permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v)
            attended = attended.transpose(1, 2).reshape(size, tokens, width)
            x = self.norm(f"{key}/norm_0", x + self.dense(f"{key}/out", attended))
            hidden = F.relu(self.dense(f"{key}/expand", x))
            return self.norm(f"{key}/norm_1", x + self.dense(f"{key}/contract", hidden))

        def encode(self, key: str, x):
            residual = self.dense(f"{key}/residual", x)
            for layer in range(3):
                x = self.norm(
                    f"{key}/norm_{layer}", self.dense(f"{key}/dense_{layer}", x)
                )
                x = F.gelu(x)
            return x + residual

        def forward(self, *features):
            x = torch.cat(
                [
                    self.encode(f"encoders_{name}", rows)
                    for name, rows in zip(_WIDTHS, features, strict=True)
                ]
            )
            x = self.block("time_0", x)
            x = torch.cat([x.mean(dim=1), x.amax(dim=1)], dim=-1)
            tokens = self.dense("pool_dense", x).view(len(_WIDTHS), -1, width)
            tokens = tokens.transpose(0, 1)
            flat = tokens.reshape(-1, len(_WIDTHS) * width)
            one = self.dense(
                "path_a_contract", F.gelu(self.dense("path_a_expand", flat))
            )
            for layer in range(3):
                tokens = self.block(f"path_b_{layer}", tokens)
            shared = (one + tokens.mean(dim=1)) / 2
            scores = []
            for task in range(5):

                def get(key: str, task: int = task):
                    return self.get(f"head/stack/{key}")[task]

                x = shared * get("scale")
                for layer in range(2):
                    dense = [
                        get(f"dense_{layer}/{part}") for part in ("kernel", "bias")
                    ]
                    norm = [get(f"norm_{layer}/{part}") for part in ("scale", "bias")]
                    x = F.linear(x, *dense)
                    x = F.gelu(F.layer_norm(x, x.shape[-1:], *norm, 1e-5))
                scores.append(F.linear(x, get("out/kernel"), get("out/bias")))
            return 1 + 4 * torch.sigmoid(torch.cat(scores, dim=-1))

    return Network().eval()


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
    with contextlib.redirect_stdout(sys.stderr):
        torch.onnx.export(
            _module(folder), features, path, input_names=list(_WIDTHS), dynamo=True
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options)
    given = {name: drawn[name] for name in _WIDTHS}
    return lambda: session.run(None, given)[0]


if __name__ == "__main__":
    _serve(sys.argv[1], pathlib.Path(sys.argv[2]), *map(int, sys.argv[3:]))
