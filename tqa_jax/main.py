"""The main job: trains and evaluates what a config describes.

    python -m tqa_jax.main --config=configs/gradnorm.py

Any key of the config can be overridden: --config.train.epochs=5. Without
--config.data.path the demo data set is built first, once, under ~/.cache/tqa_jax
(TQA_CACHE overrides). The same command continues an interrupted run.

One process uses all accelerators of its machine. Several train one model together:
start the same command in each with --distributed under Slurm, Open MPI, on TPU pods or
GKE, else with --coordinator, --num_processes and --process_id.
"""

import dataclasses
import functools
import logging
import pathlib
import sys
import textwrap
import types
from collections.abc import Callable, Sequence
from typing import Any

from tqa_jax import cli

with cli.imports():
    import ml_collections

    from tqa_jax import (
        assemble,
        config_files,
        display,
        intervals,
        processes,
        schema,
        train,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(processes.Job):
    """The command line beside the settings of the config."""

    config: str | None = None
    """Config: a .py file, or the name of one in configs/."""
    workdir: pathlib.Path | None = None
    """Folder of the run; made if missing (default: runs/CONFIG)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job; returns its exit status, see `cli.run`."""
    return command(_run, arguments)


def command(
    work: Callable[[ml_collections.ConfigDict, pathlib.Path, processes.Job], Any],
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs a command that takes a config and a folder.

    Args:
        work: given the config, overrides in it, the folder and who else works on it;
            returns a status.
        arguments: of the command line; default those of the process.
    """
    overrides, others = config_files.split(
        sys.argv[1:] if arguments is None else arguments
    )

    @functools.wraps(work)
    def start(options: Options) -> int | None:
        config, workdir = read(options, overrides)
        cli.prepare_jax()
        return work(config, workdir, options)

    doc = (
        f"{sys.modules[work.__module__].__doc__}\n"
        "--config.KEY=VALUE gives a key of the config another value; keys, their\n"
        f"defaults and what they mean: {config_files.FOLDER / 'default.py'}\n"
        + textwrap.fill(f"Configs: {', '.join(config_files.available())}", 88)
    )
    stopped = "stopped; the same command continues"
    return cli.main(start, Options, others, doc=doc, stopped=stopped)


def read(
    options: Options, overrides: Sequence[str]
) -> tuple[ml_collections.ConfigDict, pathlib.Path]:
    """Returns the config, with overrides in it, and the folder of the run.

    Raises:
        InputError: for a wrong config or override.
    """
    if options.config is None:
        raise schema.InputError(
            "--config is missing; expected a .py file, or one of "
            f"{', '.join(config_files.available())}"
        )
    config = config_files.load(options.config, overrides)
    name = config_files.find(options.config).stem
    return config, options.workdir or pathlib.Path("runs", name)


def _run(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, job: processes.Job
) -> int | None:
    if "base" in config:
        raise schema.InputError("this config is of a sweep: python -m tqa_jax.sweep")
    given = job.given()
    cli.log(logging.WARNING if any(given.values()) else logging.INFO)
    try:
        with display.stage("starting"):
            processes.start(**given)
            group = processes.group()
        if group.writes:
            cli.log(logging.INFO)
        results = train.run(config, data_path=_data(config, group), workdir=workdir)
    except processes.Elsewhere:
        return 2
    except cli.Stopped:
        if group.writes:
            raise
        return 1
    if group.writes:
        print(intervals.table(results))
        for name in ("results.json", "predictions.csv", "metrics.jsonl", "checkpoints"):
            print(workdir / name)
    return 0


def _data(config: ml_collections.ConfigDict, group: processes.Group) -> pathlib.Path:
    """Finds the data set.

    Of several processes the first builds the demo set; the others then find it, or
    build their own where they do not share the cache.
    """
    group.together(lambda: check(config))
    group.from_writer(lambda: str(find_data(config)).encode())
    return group.together(lambda: find_data(config))


def check(config: ml_collections.ConfigDict) -> None:
    """Checks a config before its data are read or, which takes minutes, made.

    Raises:
        InputError: for what does not fit the data set, or no data set.
    """
    if config.data.path:
        described = schema.load(cli.path(config.data.path)).schema
    else:
        described = _demo().described()
    assemble.check(config, described)


def find_data(config: ml_collections.ConfigDict) -> pathlib.Path:
    """Returns the data set of a config; builds the demo set if it names none."""
    if config.data.path:
        return cli.path(config.data.path)
    return _demo().build(cli.cache_folder(), clips=config.data.demo_clips)


def _demo() -> types.ModuleType:
    cli.need("cv2", "av", instead=", or give --config.data.path")
    with display.stage("loading the extractor", after=0.2):
        from extract import demo

    return demo


if __name__ == "__main__":
    sys.exit(main())
