"""Checkpoints of a run: the training state and a copy of the best parameters.

Both are one Orbax checkpoint, written in the background and renamed when complete, with
a list of its files and their checksums. A run killed at any moment resumes from the
latest whole one, and best parameters never come from a future that was lost.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import pathlib
import shutil
from collections.abc import Iterator
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from tqa_jax import output, schema

_logger = logging.getLogger(__name__)
_SEAL = "files.json"  # In each checkpoint, written last: its files' checksums.


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: `train_step.State`.
        best: parameters of the best validation so far.
        best_epoch: epoch after which they were taken, from 1; 0 before the first.
    """

    state: Any
    best: Any
    best_epoch: Any


class Checkpoints:
    """Checkpoints in a folder; keeps the latest two."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Opens or makes the folder; of several processes, only in the first."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder.absolute()
        with _quiet():
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=2,
                    enable_async_checkpointing=False,  # See `save`.
                    cleanup_tmp_directories=True,
                    create=False,
                    # Else it would wait for processes that write nothing.
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        active_processes={0} if jax.process_count() > 1 else None
                    ),
                ),
                item_names=("default",),
            )
        self._thread = futures.ThreadPoolExecutor(1)
        self._writing: futures.Future | None = None

    def save(self, step: int, saved: Saved) -> None:
        """Starts writing a checkpoint; waits for the one before.

        The state is copied first, since the next step reuses its memory.
        """
        host = jax.tree.map(lambda leaf: np.array(leaf), saved)
        self.wait()
        # A thread of ours, not Orbax's, which does not say when it is done.
        self._writing = self._thread.submit(self._write, step, host)

    def _write(self, step: int, host: Saved) -> None:
        items = ocp.args.Composite(default=ocp.args.StandardSave(host))
        self._manager.save(step, args=items)
        folder = self._folder / str(step)
        for path in folder.rglob("*"):
            output.sync(path)
        output.write(folder / _SEAL, json.dumps(_checksums(folder), indent=1))
        output.sync(self._folder)

    def restore(self, like: Saved) -> Saved | None:
        """Reads the latest whole checkpoint; removes later ones, which are damaged.

        Args:
            like: a tree of the same structure, whose leaves give shapes and types.

        Returns:
            What it holds; None without a whole one.

        Raises:
            InputError: when the checkpoint is of another model or data set.
        """
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like
        )
        other = schema.InputError(
            f"{self._folder} holds a checkpoint of another model or of another "
            "version of tqa_jax; choose another --workdir"
        )
        for step in self._latest_first():
            found = self._read(step, jax.tree.map(_zeros, wanted))
            if found is None:
                if self._read(step) is not None:
                    raise other
                shutil.rmtree(self._folder / str(step))
                with _quiet():
                    self._manager.reload()
                continue
            types = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (found, wanted))
            if types[0] != types[1]:
                raise other
            return found
        return None

    def best(self, epoch: int) -> Any:
        """Reads the best parameters, as nested dicts.

        Args:
            epoch: of which they are.

        Raises:
            InputError: when no whole checkpoint has them.
        """
        for step in self._latest_first():
            found = self._read(step)
            if found is not None:
                if found["best_epoch"] == epoch:
                    return jax.tree.map(np.asarray, found["best"])
                break
        raise schema.InputError(
            f"{self._folder} holds no whole checkpoint with the parameters of epoch "
            f"{epoch}, the best one; without results.json there, the command that made "
            "the run trains them again"
        )

    def _latest_first(self) -> Iterator[int]:
        """Steps of checkpoints, the latest first; for whom asks on, it is damaged."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step, before in itertools.zip_longest(steps, steps[1:]):
            yield step
            _logger.warning(
                "the checkpoint of step %d in %s is damaged: %s",
                step,
                self._folder,
                "no other is left" if before is None else f"taking that of {before}",
            )

    def _read(self, step: int, like: Saved | None = None) -> Any:
        """Reads a checkpoint; None if it is damaged or does not fit `like`."""
        folder = self._folder / str(step)
        try:
            # One that was killed before it was sealed, or of an earlier version, has
            # no seal.
            if (folder / _SEAL).exists():
                sealed = json.loads((folder / _SEAL).read_bytes())
                if sealed != _checksums(folder):
                    return None
            items = ocp.args.Composite(default=ocp.args.StandardRestore(like))
            with _quiet():
                return self._manager.restore(step, args=items)["default"]
        except (ValueError, KeyError, FileNotFoundError):
            return None
        except OSError as error:
            raise schema.InputError(f"{folder} cannot be read: {error}") from error

    def wait(self) -> None:
        """Waits until everything is written."""
        if self._writing is not None:
            self._writing.result()

    def close(self) -> None:
        """Waits until everything is written, and lets go of the folder."""
        self.wait()
        self._thread.shutdown()
        self._manager.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out Orbax's lines about what is damaged; ours say it."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _checksums(folder: pathlib.Path) -> dict[str, str]:
    """Checksums of the files in a folder, but for the seal, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _SEAL:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "blake2b").hexdigest()
            found[path.relative_to(folder).as_posix()] = digest
    return found


def _zeros(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    return np.zeros(leaf.shape, leaf.dtype)
