"""Checkpoints of a run: the training state and a copy of the best parameters.

The one thing to know: both are one Orbax checkpoint, written in the background and
renamed when complete. A run killed at any moment resumes from the latest complete
one, and best parameters never come from a future that was lost.
"""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from tqa_jax import schema


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
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
                create=False,
                # Else it would wait for processes that write nothing.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    active_processes={0} if jax.process_count() > 1 else None
                ),
            ),
        )

    def latest_step(self) -> int | None:
        """Step of the latest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, saved: Saved) -> None:
        """Starts writing a checkpoint; waits for the one before.

        The state is copied first, since the next step reuses its memory.
        """
        host = jax.tree.map(lambda leaf: np.array(leaf), saved)
        self._manager.save(step, args=ocp.args.StandardSave(host))

    def restore(self, like: Saved) -> Saved:
        """Reads the latest checkpoint.

        Args:
            like: a tree of the same structure, whose leaves give shapes and types.

        Raises:
            InputError: when the checkpoint is of another model or data set.
        """
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like
        )
        step = self._manager.latest_step()
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.StandardRestore(jax.tree.map(_zeros, abstract)),
            )
        except (ValueError, KeyError) as error:
            raise schema.InputError(
                f"the checkpoint of step {step} in {self._manager.directory} is "
                "damaged or of another model; choose another --workdir"
            ) from error
        for (path, leaf), wanted in zip(
            jax.tree_util.tree_leaves_with_path(found),
            jax.tree.leaves(abstract),
            strict=True,
        ):
            if (leaf.shape, leaf.dtype) != (wanted.shape, wanted.dtype):
                raise schema.InputError(
                    f"{self._manager.directory} holds a checkpoint of another model: "
                    f"{jax.tree_util.keystr(path)} is {leaf.dtype}{leaf.shape}, "
                    f"expected {wanted.dtype}{wanted.shape}; choose another --workdir"
                )
        return found

    def best(self) -> Any:
        """Reads the best parameters of the latest checkpoint, as nested dicts.

        Raises:
            InputError: when there is none or it is damaged.
        """
        step = self._manager.latest_step()
        if step is None:
            raise schema.InputError(f"{self._manager.directory} holds no checkpoint")
        try:
            found = self._manager.restore(step, args=ocp.args.StandardRestore())
        except (ValueError, KeyError) as error:
            raise schema.InputError(
                f"the checkpoint of step {step} in {self._manager.directory} is damaged"
            ) from error
        return jax.tree.map(np.asarray, found["best"])

    def wait(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written, and lets go of the folder."""
        self.wait()
        self._manager.close()


def _zeros(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    return np.zeros(leaf.shape, leaf.dtype)
