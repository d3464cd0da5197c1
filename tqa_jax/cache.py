"""Where things are kept that can be made again."""

import os
import pathlib


def folder() -> pathlib.Path:
    """Returns `~/.cache/tqa_jax`, or what the variable `TQA_CACHE` says."""
    default = pathlib.Path.home() / ".cache" / "tqa_jax"
    return pathlib.Path(os.environ.get("TQA_CACHE") or default)
