"""Where things are kept that can be made again."""

import os
import pathlib


def folder() -> pathlib.Path:
    """Returns `~/.cache/tqa_jax`, or what the variable `TQA_CACHE` says."""
    default = pathlib.Path.home() / ".cache" / "tqa_jax"
    return pathlib.Path(os.environ.get("TQA_CACHE") or default)


def keep_programs() -> None:
    """Keeps compiled programs in the cache, small ones too: a command calls it first.

    A run starts some fifty programs that take a moment each, and JAX would keep only
    those that took more than a second.
    """
    import jax  # Here: who only asks for the folder need not load it.

    jax.config.update("jax_compilation_cache_dir", str(folder() / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
