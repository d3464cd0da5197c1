"""The main job: trains and evaluates what a config describes.

    python -m tqa_jax.main --config=configs/gradnorm.py --workdir=/tmp/tqa

Any key of the config can be overridden: --config.train.epochs=5. Without
--config.data.path the demo data set is built first, once, under ~/.cache/tqa_jax
(TQA_CACHE overrides). The same command continues an interrupted run.

One process uses all accelerators of its machine. Several train one model together:
start the same command in each with --distributed under Slurm, Open MPI, on TPU pods or
GKE, else with --coordinator, --num_processes and --process_id.
"""

import logging
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

import absl.logging
import ml_collections
from absl import app, flags
from ml_collections import config_flags
from tqdm import contrib

from tqa_jax import cache, display, heap, intervals, processes, schema, train, trial

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, configs/*.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if missing.")
_PROCESSES = processes.flags()
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: Sequence[str]) -> None:
    """Runs the job; exits with 2 for bad input and 1 if training stopped."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    config, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
    # Else absl would show each step of Orbax.
    absl.logging.set_verbosity(absl.logging.WARNING)
    cache.keep_programs()
    heap.keep()
    given = {name: flag.value for name, flag in _PROCESSES._asdict().items()}
    show_progress(logging.WARNING if any(given.values()) else logging.INFO)
    try:
        with display.stage("starting"):
            processes.start(**given)
            group = processes.group()
        if group.writes:
            logging.getLogger("tqa_jax").setLevel(logging.INFO)
            logging.getLogger("extract").setLevel(logging.INFO)
        data_path = pathlib.Path(config.data.path or _demo(config.data, group))
        results = train.run(config, data_path=data_path, workdir=workdir)
    except processes.Elsewhere:
        sys.exit(2)
    except schema.InputError as error:
        refuse(str(error))
    except trial.Stopped as error:
        if group.writes:
            print(f"stopped: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    if not group.writes:
        return
    print(intervals.table(results))
    for name in ("results.json", "predictions.csv", "metrics.jsonl", "checkpoints"):
        print(workdir / name)


def show_progress(level: int) -> None:
    """Sends our own log lines to stderr, above the progress bars."""
    handler = logging.StreamHandler(contrib.DummyTqdmFile(sys.stderr))
    for name in ("tqa_jax", "extract"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


def _demo(data: ml_collections.ConfigDict, group: processes.Group) -> pathlib.Path:
    """Builds the demo data set, or finds it in the cache.

    Of several processes the first does; the others then find it, or build their own
    where they do not share the cache.
    """
    group.from_writer(lambda: str(build_demo(data.demo_clips)).encode())
    return group.together(lambda: build_demo(data.demo_clips))


def build_demo(clips: int) -> pathlib.Path:
    """Builds the demo data set of that many clips, or finds it in the cache."""
    try:
        with display.stage("loading the extractor"):
            from extract import demo
    except ModuleNotFoundError as error:
        raise schema.InputError(
            f"the demo data set needs the extract extra ({error}): "
            "pip install -e '.[extract]', or give --config.data.path"
        ) from error
    except ImportError as error:
        raise schema.InputError(
            f"a system library is missing ({error}): "
            "apt-get install libegl1 libgles2 libgl1 libglib2.0-0"
        ) from error
    return demo.build(cache.folder(), clips=clips)


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the command line; a wrong flag or config key is one line and exit 2."""
    try:
        rest = flags.FLAGS(list(argv))
        _CONFIG.value.to_dict()
    except AttributeError as error:
        # Of ml_collections: an AttributeError around a KeyError around the message.
        inner = error.args[0]
        message = str(inner.args[0] if isinstance(inner, KeyError) else inner)
        refuse(f"unknown config key {' '.join(message.split())}")
    except (flags.Error, TypeError, ValueError) as error:
        refuse(" ".join(str(error).split()))
    except OSError:
        given = re.findall(r"--?config[= ](\S+)", " ".join(argv))
        refuse(f"{given[-1]} cannot be loaded from here; expected a file of configs/")
    return rest


def refuse(message: str) -> NoReturn:
    """Ends the process with one line for the user and status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
