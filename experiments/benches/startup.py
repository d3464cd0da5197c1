"""Seconds from the start of the main command to its first finished training step.

The one thing to know: `python -m tqa_jax.main --config=configs/gradnorm.py` runs as it
is, in a fresh process, on a small data set of the usual widths, and is stopped when its
first step is done. `cold` finds an empty folder for compiled programs and `warm` the
one that the cold start of its round has filled.
"""

import importlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from experiments import timing
from experiments.benches import _sizes

_MOST_ROUNDS = 5
_ROOT = pathlib.Path(__file__).resolve().parents[2]
_EVENTS = {
    "trace_s": "/jax/core/compile/jaxpr_trace_duration",
    "lower_s": "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "compile_or_load_s": "/jax/core/compile/backend_compile_duration",
}
_HITS = "/jax/compilation_cache/cache_hits"
_MISSES = "/jax/compilation_cache/cache_misses"


def run(rounds: int, *, quick: bool) -> list[timing.Table]:
    """Starts the command cold and warm in turn."""
    config = "smoke" if quick else "gradnorm"
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        _write(folder / "data", frames=20 if quick else 80)
        for number in range(min(rounds, _MOST_ROUNDS)):
            for case, steps in found.items():
                steps.append(_start(folder, config, number, case))
    seconds = {
        case: np.array([one["total_s"] for one in steps])
        for case, steps in found.items()
    }
    rows = [
        {"case": case}
        | {key: float(np.median([one[key] for one in steps])) for key in steps[0]}
        for case, steps in found.items()
    ]
    title = f"P5: start of configs/{config}.py to its first step"
    return [
        timing.compare(title, seconds, "cold"),
        timing.Table(
            "P5: where the time goes, medians",
            rows,
            "import_s, prepare_s (data, model, parameters, compiling the steps) and "
            "step_s add up to total_s; trace_s, lower_s and compile_or_load_s are of "
            "all programs; hits and misses are programs found in the cache or not.",
        ),
    ]


def _write(path: pathlib.Path, frames: int) -> None:
    """Sixty clips of the usual widths."""
    from tqa_jax import records, schema

    rng = np.random.default_rng(0)
    modalities = [schema.Modality(*pair) for pair in _sizes.WIDTHS.items()]

    def draw() -> Any:
        for number in range(60):
            split = schema.SPLITS[max(0, number % 5 - 2)]
            features = {
                name: rng.normal(size=(frames, width)).astype(np.float32)
                for name, width in _sizes.WIDTHS.items()
            }
            mask = {name: np.ones(frames, bool) for name in features}
            labels = rng.uniform(1, 5, len(schema.TASKS)).astype(np.float32)
            name = f"clip{number}"
            yield split, records.Clip(name, name, features, mask, labels)

    records.write_dataset(
        path,
        draw(),
        name="bench",
        schema=schema.Schema(tuple(modalities), schema.TASKS),
        provenance={"kind": "degradation", "description": "random numbers"},
    )


def _start(
    folder: pathlib.Path, config: str, number: int, case: str
) -> dict[str, float]:
    """Starts the command and returns the seconds of its parts."""
    report = folder / f"{case}-{number}.txt"
    command = [sys.executable, "-m", __name__, str(report)]
    command += [f"--config={_ROOT}/configs/{config}.py"]
    command += [f"--workdir={folder / f'run-{case}-{number}'}"]
    command += [f"--config.data.path={folder / 'data'}"]
    environment = {"TQA_CACHE": str(folder / f"cache-{number}")}
    environment |= {"TQA_BENCH_START": repr(time.time())}
    done = subprocess.run(
        command, cwd=_ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{config} did not start: {done.stderr[-2000:]}")
    lines = report.read_text(encoding="utf-8").splitlines()
    return {key: float(value) for key, value in (line.split() for line in lines)}


def _until_first_step(report: pathlib.Path) -> NoReturn:
    """Runs the main command up to its first step and writes the seconds."""
    started = float(os.environ["TQA_BENCH_START"])
    spent = dict.fromkeys(_EVENTS, 0.0)
    counts = {_HITS: 0, _MISSES: 0}
    main = importlib.import_module("tqa_jax.main")
    imported = time.time()
    import jax

    from tqa_jax import runner

    def add(event: str, duration: float, **_: Any) -> None:
        for key, name in _EVENTS.items():
            if event == name:
                spent[key] += duration

    def count(event: str, **_: Any) -> None:
        if event in counts:
            counts[event] += 1

    jax.monitoring.register_event_duration_secs_listener(add)
    jax.monitoring.register_event_listener(count)
    whole = runner.Runner.run

    def once(self: runner.Runner, state: Any, order: np.ndarray) -> NoReturn:
        began = time.time()
        jax.block_until_ready(whole(self, state, order))
        ended = time.time()
        parts: Mapping[str, float] = {
            "total_s": ended - started,
            "import_s": imported - started,
            "prepare_s": began - imported,
            "step_s": ended - began,
            **spent,
            "hits": counts[_HITS],
            "misses": counts[_MISSES],
        }
        text = "".join(f"{key} {value}\n" for key, value in parts.items())
        report.write_text(text, encoding="utf-8")
        os._exit(0)

    runner.Runner.run = once
    del sys.argv[1]
    main.main()
    raise AssertionError("the command ended before its first step")


if __name__ == "__main__":
    _until_first_step(pathlib.Path(sys.argv[1]))
