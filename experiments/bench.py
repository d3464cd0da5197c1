"""Measures alternatives side by side: `python -m experiments.bench NAME` prints ratios.

A file in `experiments/benches/` is a benchmark by its name, and its tables are printed
and, with `--json`, written with the machine, date and commit that they are worth
nothing without.
"""

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
from tqa_jax import cli, machine, output, plugins, run_folder, schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    name: cli.Positional[str] = dataclasses.field(metadata={"metavar": "NAME"})
    """What to measure."""
    rounds: cli.Count = 15
    """Timed rounds."""
    quick: bool = False
    """A small size, to see that it works."""
    json: pathlib.Path | None = None
    """File to write the tables to, too."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    doc = f"{__doc__}\nNames: {', '.join(plugins.names(benches.__name__))}\n"
    return cli.main(_run, Options, arguments, doc=doc)


def _run(options: Options) -> None:
    names = plugins.names(benches.__name__)
    if options.name not in names:
        raise schema.InputError(
            f"unknown benchmark {options.name!r}; available: {', '.join(names)}"
        )
    if options.json and not options.json.parent.is_dir():
        raise schema.InputError(
            f"--json: {options.json.parent} is no folder; make it first"
        )
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
