"""The folder of a run: its configuration, environment and metrics log.

The one thing to know: a folder belongs to one configuration and one data set. The
same command continues or shows the run; another one is refused, naming the
difference.
"""

import contextlib
import copy
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tqa_jax import hyperparameters, output, schema

try:
    import fcntl
except ModuleNotFoundError:  # Windows.
    fcntl = None

_PACKAGES = ("tqa_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON atomically; refuses NaN and infinity."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    output.write(path, text + "\n")


def describe(config: Mapping[str, Any], data_path: pathlib.Path) -> dict[str, Any]:
    """Says what a run is: the content of its `config.json`.

    Args:
        config: resolved configuration.
        data_path: the data set.

    Raises:
        InputError: when a setting is not finite or there is no data set.
    """
    for key, value in hyperparameters.flatten(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise schema.InputError(
                f"config.{key} is {value}; expected a finite number"
            )
    described = schema.load(data_path).schema.to_json()
    description = (data_path / "dataset.json").read_bytes()
    return json.loads(
        json.dumps(
            {
                "config": config,
                "data": {
                    "path": str(data_path),
                    "sha256": hashlib.sha256(description).hexdigest(),
                    "schema": described,
                },
            }
        )
    )


def claim(
    folder: pathlib.Path, config: Mapping[str, Any], data_path: pathlib.Path
) -> bool:
    """Makes the folder, or checks that it belongs to this run.

    Args:
        folder: of the run.
        config: resolved configuration.
        data_path: the data set.

    Returns:
        True when the folder is new, False when a run in it goes on.

    Raises:
        InputError: when it holds a run with another configuration or other data.
    """
    mine = describe(config, data_path)
    file = folder / "config.json"
    if not file.exists():
        # A claim that was killed leaves its own files only.
        own = {"environment.json", "environment.json.part", "config.json.part"}
        if folder.exists() and any(f.name not in own for f in folder.iterdir()):
            raise schema.InputError(
                f"{folder} is not empty and holds no run; choose another --workdir"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "environment.json", environment())
        write_json(file, mine)
        return True
    try:
        theirs = json.loads(file.read_text(encoding="utf-8"))
        found = difference(theirs, mine)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise schema.InputError(
            f"{file} is not the configuration of a run; choose another --workdir"
        ) from error
    if found:
        raise schema.InputError(
            f"{folder} holds a run with {found}; choose another --workdir"
        )
    return False


@contextlib.contextmanager
def lock(path: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from what this one works on, as a context.

    Nothing is written, and a process that dies lets go. Where the system has no such
    locks (Windows), it does nothing.

    Args:
        path: an existing folder or file.

    Raises:
        InputError: when another process holds it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise schema.InputError(
            f"another process works in {path}; wait for it, or choose another folder"
        ) from error
    finally:
        os.close(handle)


def difference(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str | None:
    """Names the first difference between two runs, as "KEY = THEIRS, not MINE".

    Args:
        theirs: a run, from `describe`.
        mine: another one.
    """
    theirs, mine = copy.deepcopy(theirs), copy.deepcopy(mine)
    # A data set may move; what it holds may not change.
    for one in (theirs, mine):
        del one["data"]["path"], one["config"]["data"]["path"]
    for key, found, wanted in _differences(theirs, mine):
        return f"{key} = {found}, not {wanted}"
    return None


def _differences(one: Any, two: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(two, dict):
        # The schema first: it says more than the checksum does.
        for name in sorted({*one, *two}, key=lambda name: (name == "sha256", name)):
            yield from _differences(
                one.get(name), two.get(name), f"{key}.{name}".lstrip(".")
            )
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            yield from _differences(a, b, f"{key}[{number}]")
    elif one != two:
        yield key, one, two


def environment() -> dict[str, Any]:
    """Describes the machine and the versions that a run was made with."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "processes": jax.process_count(),
        "devices": [str(device) for device in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree, None outside of one."""
    here, name = os.path.split(pathlib.Path(__file__).resolve())
    try:
        found = subprocess.run(
            # Fails where this file is no part of the repository around it.
            ["git", "rev-parse", "HEAD", f"HEAD:./{name}"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.split()[0]


class MetricsLog:
    """Appends to `metrics.jsonl`, and to TensorBoard files when asked to.

    Fields of a line: `step`, `epoch` and `split` always. Of `train`: `loss/total`,
    `loss/consistency`, `loss/<task>` (as on a 1-5 scale), `weight/<task>`,
    `coefficient/<task>` (of gradient surgery, 1 without), `grad_norm/total`,
    `grad_norm/<task>` (of the unweighted loss at the last shared layer),
    `labels/<task>` (in the batch), `lr`, `lr/<task>` (of the head), `loss_scale`,
    `skipped` (steps in a row). Of `validation`: `loss/<task>`, `srcc/<task>`,
    `plcc/<task>`, `ccc/<task>`, `selection`, `best`, `correlation` (matrices of
    predictions and labels), `clips_per_second`, `memory/temp_bytes` (of the compiled
    program), `memory/peak_bytes` (of the device, null where it does not say).
    A value that is undefined or not finite is null.
    """

    def __init__(
        self, folder: pathlib.Path, *, from_step: int, tensorboard: bool
    ) -> None:
        """Opens the log and drops what a lost process wrote after a step.

        Args:
            folder: of the run.
            from_step: step that the run continues from; later lines are dropped.
            tensorboard: also write TensorBoard event files, under `tensorboard/`.

        Raises:
            InputError: when `tensorboard` is asked for and tensorboardX is missing.
        """
        self._board = _board(folder, from_step) if tensorboard else None
        path = folder / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                # A killed process may leave half a line, always after `from_step`.
                if line.endswith("\n") and json.loads(line)["step"] <= from_step:
                    kept.append(line)
        output.write(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, *, step: int, epoch: int, split: str, **values: Any) -> None:
        """Appends one line."""
        line = {"step": step, "epoch": epoch, "split": split, **_finite(values)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Closes all files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def step_line(
    metrics: Mapping[str, np.ndarray], tasks: Sequence[str], factors: Sequence[float]
) -> dict[str, float]:
    """Names the metrics of one training step.

    Args:
        metrics: of `train_step.make`, of one step.
        tasks: names, in the order of the metrics' last axis.
        factors: of each head's learning rate on the common one.

    Returns:
        Fields of a `train` line; see `MetricsLog`.
    """
    line = {
        "loss/total": float(metrics["total"]),
        "loss/consistency": float(metrics["consistency"]),
        "grad_norm/total": float(metrics["grad_norm"]),
        "lr": float(metrics["lr"]),
        "loss_scale": float(metrics["loss_scale"]),
        "skipped": float(metrics["skipped"]),
    }
    for k, task in enumerate(tasks):
        line |= {
            f"loss/{task}": float(metrics["loss"][k]),
            f"weight/{task}": float(metrics["weight"][k]),
            f"coefficient/{task}": float(metrics["coefficient"][k]),
            f"grad_norm/{task}": float(metrics["task_grad_norm"][k]),
            f"labels/{task}": float(metrics["labels"][k]),
            f"lr/{task}": float(metrics["lr"] * factors[k]),
        }
    return line


def _board(folder: pathlib.Path, from_step: int) -> Any:
    try:
        import tensorboardX
    except ImportError as error:
        raise schema.InputError(
            "log.tensorboard needs tensorboardX: pip install 'tqa_jax[logs]'"
        ) from error
    return tensorboardX.SummaryWriter(
        str(folder / "tensorboard"), purge_step=from_step + 1
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
