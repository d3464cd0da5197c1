"""The folder of a run: its configuration, environment and metrics log.

The one thing to know: a folder belongs to one configuration and one data set. The
same command continues or shows the run; another one is refused, naming the
difference.
"""

import copy
import csv
import hashlib
import importlib.metadata
import itertools
import json
import logging
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

from tqa_jax import machine, output, schema

_logger = logging.getLogger(__name__)
_PACKAGES = ("tqa_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON atomically; refuses NaN and infinity."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    output.write(path, text + "\n")


def read_json(path: pathlib.Path, remedy: str) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Args:
        path: of the file.
        remedy: what to do where it is damaged, for the error.

    Raises:
        InputError: when it is missing or holds none.
    """
    try:
        value = json.loads(path.read_bytes(), parse_constant=_refuse)
        if isinstance(value, dict):
            return value
        error: Any = f"expected an object, found {value!r:.40}"
    except (OSError, ValueError, RecursionError) as caught:
        error = caught
    raise schema.InputError(f"{path} is damaged: {error}; {remedy}")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def finished(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the results of a run, None if it has not ended.

    A run has not if a file of its results is damaged: what it has learned is in its
    checkpoint, and the files are made again.
    """
    if not (folder / "results.json").exists():
        return None
    try:
        results = read_json(folder / "results.json", "")
        read_json(folder / "audit.json", "")
        for name in ("preprocess.npz", "representation.npz", "reference.npz"):
            output.read_arrays(folder / name)
        path = folder / "predictions.csv"
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            rows = list(csv.reader(file))
        clips = results["clips"]["validation"] + results["clips"]["test"]
        if len(rows) != 1 + clips or len({len(row) for row in rows}) > 1:
            raise schema.InputError(f"{path} is damaged: it is not of {clips} clips")
        return results
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        _logger.warning("%s; evaluating the run again", str(error).rstrip("; "))
        return None


def checksum(data_path: pathlib.Path) -> str:
    """SHA-256 of the `dataset.json` of a data set."""
    return hashlib.sha256((data_path / "dataset.json").read_bytes()).hexdigest()


def describe(config: Mapping[str, Any], data_path: pathlib.Path) -> dict[str, Any]:
    """Says what a run is: the content of its `config.json`.

    Args:
        config: resolved configuration.
        data_path: the data set.

    Raises:
        InputError: when there is no data set.
    """
    described = schema.load(data_path).schema.to_json()
    return json.loads(
        json.dumps(
            {
                "config": config,
                "data": {
                    "path": str(data_path),
                    "sha256": checksum(data_path),
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
        own = ("environment.json", "config.json")
        if folder.exists() and not all(
            f.name.startswith(own) for f in folder.iterdir()
        ):
            raise schema.InputError(
                f"{folder} is not empty and holds no run; choose another --workdir"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "environment.json", environment())
        write_json(file, mine)
        return True
    remedy = "restore it, or choose another --workdir"
    theirs = read_json(file, remedy)
    try:
        found = difference(theirs, mine)
    except (KeyError, TypeError) as error:
        raise schema.InputError(
            f"{file} is not the configuration of a run; {remedy}"
        ) from error
    if found:
        raise schema.InputError(
            f"{folder} holds a run with {found}; choose another --workdir"
        )
    return False


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
        "cpus": machine.cores(),
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
    `log_variance/<task>` (of weightings that learn it), `coefficient/<task>` (of
    gradient surgery, 1 without), `grad_norm/total`, `grad_norm/<task>` (of the
    unweighted loss at the last shared layer), `labels/<task>` (in the batch), `lr`,
    `lr/<task>` (of the head), `loss_scale`, `skipped` (steps in a row),
    `skipped/<task>` (1 where the step was skipped and this task's loss or gradient was
    not finite). Of `validation`: `loss/<task>`, `srcc/<task>`, `plcc/<task>`,
    `ccc/<task>`, `selection` (the metric that chooses the epoch), `best`, `correlation`
    (matrices of predictions and labels), `clips_per_second`, `memory/temp_bytes` (of
    the compiled program), `memory/peak_bytes` (of the device, null where it does not
    say). A value that is undefined or not finite is null.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        from_step: int,
        tensorboard: bool,
        tasks: Sequence[str] = (),
    ) -> None:
        """Opens the log and drops what a lost process wrote after a step.

        Args:
            folder: of the run.
            from_step: step that the run continues from; later lines are dropped.
            tensorboard: also write TensorBoard event files, under `tensorboard/`.
            tasks: names of the rows of correlation matrices, for TensorBoard.
        """
        self._board = _board(folder, from_step) if tensorboard else None
        self._tasks = tasks
        path = folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        steps = [_step_of(line) for line in lines]
        # A killed process may leave half a line at the end.
        if None in steps[:-1]:
            count = steps[:-1].count(None)
            _logger.warning("%s: %d damaged lines left out", path, count)
        earlier = [
            line
            for line, step in zip(lines, steps, strict=True)
            if step is not None and step <= from_step
        ]
        output.write(path, b"".join(earlier))
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def write(self, *, step: int, epoch: int, split: str, **values: Any) -> None:
        """Appends one line."""
        line = {"step": step, "epoch": epoch, "split": split, **_finite(values)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for kind, matrix in line.pop("correlation", {}).items():
                for (i, one), (j, other) in itertools.combinations(
                    enumerate(self._tasks), 2
                ):
                    line[f"correlation/{kind}/{one}/{other}"] = matrix[i][j]
            for name, value in line.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(f"{split}/{name}", value, step)

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        output.sync(self._path)

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
    causes = not_finite(metrics)
    for k, task in enumerate(tasks):
        if "log_variance" in metrics:
            line[f"log_variance/{task}"] = float(metrics["log_variance"][k])
        line |= {
            f"skipped/{task}": float(metrics["skipped"] > 0 and causes[k]),
            f"loss/{task}": float(metrics["loss"][k]),
            f"weight/{task}": float(metrics["weight"][k]),
            f"coefficient/{task}": float(metrics["coefficient"][k]),
            f"grad_norm/{task}": float(metrics["task_grad_norm"][k]),
            f"labels/{task}": float(metrics["labels"][k]),
            f"lr/{task}": float(metrics["lr"] * factors[k]),
        }
    return line


def not_finite(metrics: Mapping[str, np.ndarray]) -> np.ndarray:
    """Tasks whose loss or gradient in a step, of which these are metrics, is not."""
    return ~(np.isfinite(metrics["loss"]) & np.isfinite(metrics["task_grad_norm"]))


def _step_of(line: bytes) -> int | None:
    """The step of a line of the log; None if it is damaged."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _board(folder: pathlib.Path, from_step: int) -> Any:
    import tensorboardX

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
