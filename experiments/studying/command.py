"""The command line of a study: `python -m experiments.NAME --data=... --out=...`.

The one thing to know: a study that was stopped continues when the same command is given
again, since its runs are kept under `--out`.
"""

import argparse
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Sequence

import ml_collections

from tqa_jax import cli, config_files, fleet, schema, trial
from tqa_jax import main as main_command

_QUICK_CLIPS = 24


@dataclasses.dataclass(frozen=True)
class Options:
    """What a study was asked for.

    Attributes:
        data: data set folder.
        out: folder for the results, which exists.
        seeds: seeds of the runs that are compared.
        draws: settings that are tried for each case before; 1 takes it as it is.
        quick: a tiny version, to see that it works.
        base: configuration of the runs, with the data set in it.
        more: of the study's own options.
    """

    data: pathlib.Path
    out: pathlib.Path
    seeds: tuple[int, ...]
    draws: int
    quick: bool
    base: ml_collections.ConfigDict
    more: argparse.Namespace

    @property
    def info(self) -> schema.DatasetInfo:
        """What the data set says about itself."""
        return schema.load(self.data)


def run(
    name: str,
    does: Callable[[Options], None],
    *,
    doc: str,
    arguments: Sequence[str] | None = None,
    more: Callable[[argparse.ArgumentParser], None] | None = None,
    draws: int = 4,
) -> int:
    """Runs a study as a command.

    Args:
        name: of the study's module.
        does: the study; writes its results into `Options.out`.
        doc: docstring of the module: what `--help` says.
        arguments: of the command line; default those of the process.
        more: adds options of the study's own.
        draws: default of `--draws`; 0 for a study that tunes nothing, which has no
            such option.

    Returns:
        The exit status: 0, 2 for bad input, 1 when training failed, 130 when stopped.
    """
    given = _parse(name, doc, arguments, more, draws)

    def work() -> None:
        cli.need("matplotlib")
        cli.prepare_jax()
        fleet.device_for_each_core()
        logging.getLogger(trial.__name__).setLevel(logging.WARNING)
        does(_options(given))

    return cli.run(work, stopped="stopped; the same command continues")


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


def _parse(
    name: str,
    doc: str,
    arguments: Sequence[str] | None,
    more: Callable[[argparse.ArgumentParser], None] | None,
    draws: int,
) -> argparse.Namespace:
    parser = cli.parser(
        prog=f"python -m experiments.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=cli.path, help="data set folder (default: demo)")
    parser.add_argument("--seeds", type=int, help="runs a case (default: 5; quick: 2)")
    parser.add_argument("--out", required=True, type=cli.path, help="results")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny version, to see that it works"
    )
    parser.add_argument(
        "--config",
        default="study",
        help="base configuration: a .py file, or a name in configs/ (default: study)",
    )
    if draws:
        parser.add_argument(
            "--draws",
            type=int,
            help=f"settings tried for each case, by validation with two seeds, before "
            f"others are compared; 1 tunes nothing (default: {draws}; quick: 2)",
        )
    parser.set_defaults(usual_draws=draws)
    if more:
        more(parser)
    return parser.parse_args(arguments)


def _options(given: argparse.Namespace) -> Options:
    seeds = given.seeds if given.seeds is not None else (2 if given.quick else 5)
    draws = 1
    if given.usual_draws:
        draws = given.draws
        if draws is None:
            draws = 2 if given.quick else given.usual_draws
    cli.at_least_one(seeds=seeds, draws=draws)
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
