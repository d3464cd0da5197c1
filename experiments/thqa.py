"""Human opinions of 800 generated talking heads (THQA), predicted from public features.

    python -m experiments.thqa --data=data/thqa --out=studies/thqa [--seeds=N] [--quick]

--data is a folder with `vvmf_results_a01.csv` and `lib_c.csv`. The network of this
library and six other methods are compared on the same folds: by face, leaving one
generator out, and random ones, which the literature reports. Writes `thqa.csv` (a row a
method and protocol), `thqa_compared.csv` (paired differences), `thqa.json`, `thqa.md`,
`thqa.png` and `predictions.csv`. A command that was stopped continues. Exit status: 0,
or 2 for bad input.

Random folds reward recognising the generator; so do those by face. Look at the other
figures, too.
"""

import dataclasses
import hashlib
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tqa_jax import cli, fleet, output, run_folder, schema, statistics

with cli.imports():
    from experiments.talking_heads import (
        agreement,
        nested,
        network,
        protocols,
        written,
    )
    from experiments.talking_heads import clips as clips_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    data: pathlib.Path
    """Folder with the two tables."""
    out: pathlib.Path
    """Folder for the results."""
    seeds: cli.Count | None = None
    """Networks of the ensemble (default: 10; quick: 2)."""
    resamples: cli.Count = 2000
    """Draws of the bootstrap."""
    quick: bool = False
    """A tiny version, to see that it works."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    stopped = "stopped; the same command continues"
    return cli.main(_run, Options, arguments, stopped=stopped)


def _run(given: Options) -> None:
    cli.need("sklearn", "matplotlib")
    seeds = given.seeds or (2 if given.quick else 10)
    cli.prepare_jax()
    fleet.device_for_each_core()
    out = given.out
    out.mkdir(parents=True, exist_ok=True)
    _claim(given, seeds)
    started = time.monotonic()
    clips = clips_lib.load(given.data, out / "data")
    study = {
        protocol: nested.run(
            clips,
            protocol,
            out / "done" / protocol,
            seeds=seeds,
            quick=given.quick,
            said=lambda text: print(text, flush=True),
        )
        for protocol in protocols.PROTOCOLS
    }
    rows, compared, scores, members = [], [], {}, {}
    for protocol, outcomes in study.items():
        folds = protocols.outer(protocol, clips)
        pairs = {name: nested.pooled(o, clips, folds) for name, o in outcomes.items()}
        scores[protocol] = {name: plain for name, (plain, _) in pairs.items()}
        mapped = {name: fitted for name, (_, fitted) in pairs.items()}
        members[protocol] = _single(outcomes[nested.NETWORK], clips, folds)
        tests = [fold.test for fold in folds]
        units = {"face": clips.faces}
        if protocol == "generator":
            units["generator"] = clips.generators
        for unit, groups in units.items():
            counts = statistics.resample_sources(groups, given.resamples)
            described = agreement.describe(
                scores[protocol], mapped, clips, tests, counts
            )
            label = {"protocol": protocol, "resampled": unit}
            rows += [label | row for row in described]
            for ours in (nested.NETWORK, nested.COMBINATION):
                others = [name for name in outcomes if name != ours]
                found = agreement.compare(scores[protocol], ours, others, clips, counts)
                compared += [label | row for row in found]
    by_face = [row for row in rows if row["resampled"] == "face"]
    said = written.sentences(
        [row for row in compared if row["resampled"] == "face"],
        members,
        clips=len(clips),
        faces=len(set(clips.faces.tolist())),
        generators=len(set(clips.generators.tolist())),
        resamples=given.resamples,
    )
    page = "\n\n".join([written.table(by_face), *said])
    output.write(out / "thqa.csv", output.table_of(rows))
    output.write(out / "thqa_compared.csv", output.table_of(compared))
    written.predictions(
        out / "predictions.csv",
        clips,
        scores,
        {name: _places(name, clips) for name in study},
    )
    run_folder.write_json(
        out / "thqa.json",
        {
            "rows": rows,
            "compared": compared,
            "single_networks_plcc": members,
            "chosen": {
                protocol: {
                    name: [dict(one.chosen) for one in some]
                    for name, some in outcomes.items()
                }
                for protocol, outcomes in study.items()
            },
            "settings": _settings(given, seeds),
            "environment": run_folder.environment(),
            "seconds_of_last_start": round(time.monotonic() - started, 1),
        },
    )
    written.draw(by_face, out / "thqa.png")
    output.write(out / "thqa.md", page + "\n")
    print(page)
    print(f"{time.monotonic() - started:.0f} s; files: {out}")


def _single(
    outcomes: Sequence[nested.Outcome],
    clips: clips_lib.Clips,
    folds: Sequence[protocols.Fold],
) -> list[float | None]:
    """PLCC over all clips of the networks of each seed."""
    found = []
    for seed in range(len(outcomes[0].members)):
        scores = np.empty(len(clips))
        for outcome, fold in zip(outcomes, folds, strict=True):
            scores[fold.test] = outcome.members[seed]
        found.append(agreement.plain("plcc", scores, clips, np.arange(len(clips))))
    return found


def _places(protocol: str, clips: clips_lib.Clips) -> np.ndarray:
    places = np.zeros(len(clips), int)
    for number, fold in enumerate(protocols.outer(protocol, clips)):
        places[fold.test] = number
    return places


def _settings(given: Options, seeds: int) -> dict[str, Any]:
    """What decides the predictions."""
    try:
        tables = {
            name: hashlib.sha256((given.data / name).read_bytes()).hexdigest()
            for name in (clips_lib.SCORES, clips_lib.FRAMES)
        }
    except OSError as error:
        raise schema.InputError(
            f"--data={given.data}: {error.filename} cannot be read: {error.strerror}; "
            f"expected a folder with {clips_lib.SCORES} and {clips_lib.FRAMES}"
        ) from error
    return {
        "tables": tables,
        "seeds": seeds,
        "quick": given.quick,
        "network": [dict(one) for one in network.settings(quick=given.quick)],
    }


def _claim(given: Options, seeds: int) -> None:
    """Refuses a folder of a study with other settings."""
    mine, file = _settings(given, seeds), given.out / "settings.json"
    if not file.exists():
        run_folder.write_json(file, mine)
        return
    theirs = run_folder.read_json(file, "give another --out")
    for key, value in mine.items():
        if theirs.get(key) != value:
            raise schema.InputError(
                f"--out={given.out} holds a study with {key} {theirs.get(key)}, not "
                f"{value}; give another --out"
            )


if __name__ == "__main__":
    sys.exit(main())
