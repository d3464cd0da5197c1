"""Benchmarks: `python -m experiments.bench NAME` prints ratios measured in one run.

The one thing to know: a file in `experiments/benches/` is a benchmark by its name, and
its tables are printed and, with `--json`, written with the machine, date and commit
that they are worth nothing without.
"""

import argparse
import dataclasses
import datetime
import importlib
import json
import os
import pathlib
import platform
import sys
from collections.abc import Sequence
from typing import Any

import jax

from experiments import benches, timing
from tqa_jax import cli, machine, output, plugins, run_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Args:
        arguments: of the command line, without the program's name; default those of
            the process.
    """
    names = plugins.names(benches.__name__)
    parser = cli.parser(
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
    parser.add_argument(
        "--json", type=cli.path, metavar="FILE", help="also write the tables here"
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; expected at least 1")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json: {options.json.parent} is no folder; make it first")
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    cli.prepare_jax()
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = {
        "bench": options.name,
        "rounds": options.rounds,
        "quick": options.quick,
        "date": date,
        "commit": run_folder.environment()["commit"],
        "machine": describe_machine(),
    }
    print("; ".join(_said(found)), flush=True)
    bench = importlib.import_module(f"{benches.__name__}.{options.name}")
    tables = bench.run(options.rounds, quick=options.quick)
    found["machine"]["load_after"] = os.getloadavg()[0]
    print(f"load at the end {found['machine']['load_after']:.2f}")
    for table in tables:
        print(f"\n{timing.markdown(table)}")
    if options.json:
        found["tables"] = [dataclasses.asdict(table) for table in tables]
        text = json.dumps(found, indent=1, allow_nan=False) + "\n"
        output.write(options.json, text)


def describe_machine() -> dict[str, Any]:
    """Describes what a benchmark runs on.

    Returns:
        `device`, `platform`, `devices` (how many), `cpu` (model, None where the system
        does not say), `cores`, `threads` (what `OMP_NUM_THREADS` says, None without),
        `jax` (version) and `load` (runnable processes in the last minute).
    """
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": len(jax.devices()),
        "cpu": _cpu(),
        "cores": machine.cores(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "jax": jax.__version__,
        "load": os.getloadavg()[0],
    }


def _cpu() -> str | None:
    """Model of the processor."""
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or None


def _said(found: dict[str, Any]) -> list[str]:
    on = found["machine"]
    return [
        f"{found['bench']}: {on['devices']} x {on['device']} ({on['platform']})",
        f"CPU {on['cpu'] or 'unknown'}, {on['cores']} cores",
        f"OMP_NUM_THREADS {on['threads'] or 'not set'}",
        f"jax {on['jax']}",
        f"commit {(found['commit'] or 'unknown')[:7]}",
        found["date"],
        f"load {on['load']:.2f}",
        f"{found['rounds']} rounds" + (", quick" if found["quick"] else ""),
    ]


if __name__ == "__main__":
    sys.exit(main())
