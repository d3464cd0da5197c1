"""The main job: trains and evaluates what a config describes.

    python -m tqa_jax.main --config=configs/gradnorm.py --workdir=/tmp/tqa

Any key of the config can be overridden: --config.train.epochs=5. Without
--config.data.path the demo data set is built first, once, under ~/.cache/tqa_jax
(TQA_CACHE overrides). The same command continues an interrupted run.
"""

import logging
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

import absl.logging
import jax
from absl import app, flags
from ml_collections import config_flags

from tqa_jax import cache, intervals, schema, train, trial

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, configs/*.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if missing.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: Sequence[str]) -> None:
    """Runs the job; exits with 2 for bad input and 1 if training stopped."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    _show_progress()
    config, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
    jax.config.update("jax_compilation_cache_dir", str(cache.folder() / "jax"))
    try:
        data_path = pathlib.Path(config.data.path or _demo(config.data.demo_clips))
        results = train.run(config, data_path=data_path, workdir=workdir)
    except schema.InputError as error:
        _refuse(str(error))
    except trial.Stopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    print(intervals.table(results))
    for name in ("results.json", "predictions.csv", "metrics.jsonl", "checkpoints"):
        print(workdir / name)


def _show_progress() -> None:
    """Sends our own log lines to stderr; absl would also show each step of Orbax."""
    absl.logging.set_verbosity(absl.logging.WARNING)
    handler = logging.StreamHandler()
    for name in ("tqa_jax", "extract"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _demo(clips: int) -> pathlib.Path:
    """Builds the demo data set, or finds it in the cache."""
    try:
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
        _refuse(f"unknown config key {' '.join(message.split())}")
    except (flags.Error, TypeError, ValueError) as error:
        _refuse(" ".join(str(error).split()))
    except OSError:
        given = re.findall(r"--?config[= ](\S+)", " ".join(argv))
        _refuse(f"{given[-1]} cannot be loaded; expected a file of configs/")
    return rest


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
