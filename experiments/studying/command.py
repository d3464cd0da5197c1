"""The command line of a study: `python -m experiments.NAME --data=... --out=...`.

A study that was stopped continues when the same command is given again, since its runs
are kept under `--out`.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import ml_collections

from tqa_jax import cli, config_files, fleet, schema, trial
from tqa_jax import main as main_command

_QUICK_CLIPS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """The command line of a study; one with more options extends it."""

    usual_draws: ClassVar[int] = 4

    data: pathlib.Path | None = None
    """Data set folder (default: the demo set)."""
    seeds: cli.Count | None = None
    """Runs of each case (default: 5; quick: 2)."""
    out: pathlib.Path
    """Folder for the results."""
    quick: bool = False
    """A tiny version, to see that it works."""
    config: str = "study"
    """Base configuration: a .py file, or a name in configs/."""
    draws: cli.Count | None = None
    """Settings tried for each case, by validation with two seeds, before others are
    compared; 1 tunes nothing (default: 4; quick: 2)."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a study works with.

    Attributes:
        data: data set folder.
        out: folder for the results, which exists.
        seeds: seeds of the runs that are compared.
        draws: settings that are tried for each case before; 1 takes it as it is.
        quick: a tiny version, to see that it works.
        base: configuration of the runs, with the data set in it.
        given: the command line.
    """

    data: pathlib.Path
    out: pathlib.Path
    seeds: tuple[int, ...]
    draws: int
    quick: bool
    base: ml_collections.ConfigDict
    given: Any

    @property
    def info(self) -> schema.DatasetInfo:
        """What the data set says about itself."""
        return schema.load(self.data)


def run(
    does: Callable[[Options], None],
    given: type[Given] = Given,
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs a study as a command.

    Args:
        does: the study; writes its results into `Options.out`.
        given: its options.
        arguments: of the command line; default those of the process.

    Returns:
        The exit status: 0, 2 for bad input, 1 when training failed, 130 when stopped.
    """

    @functools.wraps(does)
    def work(given: Given) -> None:
        cli.need("matplotlib")
        cli.prepare_jax()
        fleet.device_for_each_core()
        logging.getLogger(trial.__name__).setLevel(logging.WARNING)
        does(_options(given))

    stopped = "stopped; the same command continues"
    return cli.main(work, given, arguments, stopped=stopped)


def quick(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a copy of a configuration at a size that trains in seconds."""
    config = config.copy_and_resolve_references()
    config.model.width = 16
    config.model.temporal_heads = 2
    config.model.fusion_heads = 2
    config.model.fusion_ffn = 32
    config.model.head_hidden = (16,)
    config.train.epochs = 2
    config.train.batch_size = 8
    config.optim.warmup_steps = 1
    return config


def _options(given: Given) -> Options:
    seeds = given.seeds or (2 if given.quick else 5)
    draws = given.draws or (2 if given.quick else given.usual_draws)
    base = config_files.load(given.config)
    if given.quick:
        base = quick(base)
        base.data.demo_clips = _QUICK_CLIPS
    if given.data:
        base.data.path = str(given.data)
    main_command.check(base)
    data = main_command.find_data(base)
    base.data.path = str(data)
    given.out.mkdir(parents=True, exist_ok=True)
    return Options(
        data, given.out, tuple(range(seeds)), draws, given.quick, base, given
    )
