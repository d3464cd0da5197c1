"""Benchmarks: `python -m experiments.bench NAME` prints ratios measured in one run."""

import argparse
import importlib
import os
import platform
import sys
from collections.abc import Sequence

import jax

from experiments import benches
from tqa_jax import cache, plugins


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Args:
        arguments: of the command line, without the program's name; default those of
            the process.
    """
    names = plugins.names(benches.__name__)
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench",
        description="Measures alternatives side by side and prints their ratios.",
    )
    parser.add_argument("name", choices=names, help="what to measure")
    parser.add_argument(
        "--rounds", type=int, default=15, help="timed rounds (default: 15)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small size, to see that it works"
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; expected at least 1")
    jax.config.update("jax_compilation_cache_dir", str(cache.folder() / "jax"))
    device = jax.devices()[0]
    print(
        f"{options.name}: {len(jax.devices())} x {device.device_kind} "
        f"({device.platform}), {os.cpu_count()} CPU cores, {platform.machine()}, "
        f"jax {jax.__version__}, {options.rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    bench = importlib.import_module(f"{benches.__name__}.{options.name}")
    print(bench.run(options.rounds, quick=options.quick))
    return 0


if __name__ == "__main__":
    sys.exit(main())
