"""The main job: trains and evaluates what a config describes.

    python -m tqa_jax.main --config=configs/gradnorm.py

Any key of the config can be overridden: --config.train.epochs=5. Without
--config.data.path the demo data set is built first, once, under ~/.cache/tqa_jax
(TQA_CACHE overrides). The same command continues an interrupted run.

One process uses all accelerators of its machine. Several train one model together:
start the same command in each with --distributed under Slurm, Open MPI, on TPU pods or
GKE, else with --coordinator, --num_processes and --process_id.
"""

import logging
import pathlib
import sys
import textwrap
import types
from collections.abc import Callable, Sequence

from tqa_jax import cli

with cli.imports():
    import ml_collections
    from absl import flags

    from tqa_jax import (
        assemble,
        config_files,
        display,
        intervals,
        processes,
        schema,
        train,
    )


_CONFIG = flags.DEFINE_string(
    "config", None, "Config: a .py file, or the name of one in configs/."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; made if missing. (default: runs/CONFIG)"
)
_PROCESSES = processes.flags()
_FLAGS = (_CONFIG, _WORKDIR, *_PROCESSES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job; returns its exit status, see `cli.run`."""
    return command(_run, __doc__, arguments)


def command(
    work: Callable[[ml_collections.ConfigDict, pathlib.Path], int | None],
    doc: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs a command that takes a config and a folder.

    Args:
        work: given the config, overrides in it, and the folder; returns a status.
        doc: what `--help` says.
        arguments: of the command line; default those of the process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if {"--help", "-help", "-h", "--helpfull"} & set(given):
        print(doc, _options(), sep="\n")
        return 0

    def start() -> int | None:
        config, workdir = parse(given)
        cli.prepare_jax()
        return work(config, workdir)

    return cli.run(start, stopped="stopped; the same command continues")


def parse(arguments: Sequence[str]) -> tuple[ml_collections.ConfigDict, pathlib.Path]:
    """Reads a command line: the config, overrides in it, and the folder of the run.

    Raises:
        InputError: for a wrong option, config or override.
    """
    overrides, others = config_files.split(arguments)
    for flag in _FLAGS:
        flags.FLAGS[flag.name].unparse()  # Of an earlier call.
    try:
        rest = flags.FLAGS(["", *others])[1:]
    except flags.Error as error:
        raise schema.InputError(f"{error}; see --help") from error
    if rest:
        raise schema.InputError(f"unexpected argument {rest[0]!r}; see --help")
    if _CONFIG.value is None:
        raise schema.InputError(
            "--config is missing; expected a .py file, or one of "
            f"{', '.join(config_files.available())}"
        )
    config = config_files.load(_CONFIG.value, overrides)
    workdir = _WORKDIR.value
    if workdir is None:
        workdir = f"runs/{config_files.find(_CONFIG.value).stem}"
    return config, cli.path(workdir)


def _options() -> str:
    """What `--help` says of the options."""
    helps = {flag.name: flags.FLAGS[flag.name].help for flag in _FLAGS}
    helps["config.KEY=VALUE"] = (
        "Another value for a key of the config; keys, their defaults and what they "
        f"mean: {config_files.FOLDER / 'default.py'}"
    )
    lines = [f"--{name}: {text}" for name, text in helps.items()]
    lines.append(f"Configs: {', '.join(config_files.available())}")
    return "\n".join(
        textwrap.fill(
            line,
            88,
            initial_indent="  ",
            subsequent_indent=6 * " ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines
    )


def _run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> int | None:
    if "base" in config:
        raise schema.InputError("this config is of a sweep: python -m tqa_jax.sweep")
    given = {name: flag.value for name, flag in _PROCESSES._asdict().items()}
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
