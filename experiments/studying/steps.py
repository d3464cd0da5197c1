"""A training step of a finished run, compiled alone: its arithmetic, memory and time.

The one thing to know: XLA counts the body of a scan once, however often it runs, so
arithmetic is counted of a step whose batch is in one piece, and of the program before
the compiler changes it.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from tqa_jax import assemble, batch, memory, pipeline, prepare
from tqa_jax import run as run_lib


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a run on the first batch of its training split.

    Attributes:
        config: of the run.
        data: its data set, preprocessed as in the run.
        train: its training split.
        steps_per_epoch: steps of an epoch.
    """

    config: ml_collections.ConfigDict
    data: prepare.Dataset
    train: prepare.Split
    steps_per_epoch: int

    @functools.cached_property
    def batch(self) -> batch.Batch:
        """The first batch of the first epoch."""
        return jax.tree.map(jax.numpy.asarray, next(self.train.batches(self._order)))

    @property
    def _order(self) -> np.ndarray:
        return _order(self.config, self.train)[:1]

    def parts(self, **changes: Any) -> assemble.Parts:
        """The functions of the run.

        Args:
            changes: of the section `train` of its configuration.
        """
        config = self.config.copy_and_resolve_references()
        config.train.update(changes)
        return assemble.build(
            config,
            self.data,
            labels=self.train.clips.labels,
            steps_per_epoch=self.steps_per_epoch,
        )

    @functools.cached_property
    def params(self) -> int:
        """Numbers that the network has."""
        state = jax.eval_shape(self.parts().init, 0)
        return sum(leaf.size for leaf in jax.tree.leaves(state.params))

    @functools.cached_property
    def flops(self) -> float:
        """Floating-point operations of a step."""
        parts = self.parts(accumulation=1)
        state = jax.eval_shape(parts.init, 0)
        return jax.jit(parts.step).lower(state, self.batch).cost_analysis()["flops"]

    @functools.cached_property
    def score_flops(self) -> float:
        """Floating-point operations of scoring the windows of a batch."""
        parts = self.parts()
        state = jax.eval_shape(parts.init, 0)
        lowered = parts.score.lower(state.params, self.batch)
        return lowered.cost_analysis()["flops"]

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        """The step's program; the state is donated."""
        parts = self.parts()
        state = jax.eval_shape(parts.init, 0)
        step = jax.jit(parts.step, donate_argnums=0)
        return step.lower(state, self.batch).compile()

    @property
    def needed(self) -> memory.Needed:
        """Bytes of the program on its device."""
        return memory.needed(self.compiled)

    def runner(self) -> Callable[[], None]:
        """Returns what takes one step, from where the last one ended, and waits."""
        kept = [self.parts().init(0)]

        def once() -> None:
            kept[0], metrics = self.compiled(kept[0], self.batch)
            jax.block_until_ready((kept[0], metrics))

        return once


def load(folder: pathlib.Path, data: pathlib.Path | None = None) -> Step:
    """Reads a finished run and its data set.

    Args:
        folder: of the run.
        data: folder of the data set; None for where the run had it.

    Raises:
        InputError: when the data set cannot be read, or is another one.
    """
    run = run_lib.Run.load(folder)
    opened = run.open_dataset(data)
    split = opened.split("train")
    return Step(run.config, opened, split, len(_order(run.config, split)))


def _order(config: ml_collections.ConfigDict, split: prepare.Split) -> np.ndarray:
    return pipeline.order(
        split.size, config.train.batch_size, seed=config.seed, epoch=0
    )
