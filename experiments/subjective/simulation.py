"""Simulates raters with a known truth, and says whether the analysis finds it.

    python -m experiments.subjective simulate --raters=30 --clips=20 --out=simulated/

The answers of the first repetition go into --out, which `analyse --ratings=simulated/`
reads, with `truth.json` beside them; all repetitions, each with other clips and raters,
go through the analysis, and `recovery.md` says how often its 95 % intervals held the
truth and which careless raters its rules named.
"""

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.subjective import ratings, recovery, truth
from tqa_jax import cli, output, schema

_COLUMNS = ("timestamp", "study", "rater_id", "item_id", "trial_index", "kind")
_SIDES = ("left", "right")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(truth.Settings):
    """The command line."""

    seed: int = 0
    """Seed of all draws."""
    repeats: cli.Count = 20
    """Repetitions, each with other clips and raters."""
    out: pathlib.Path
    """Folder for the results."""


def run(options: Options) -> None:
    """Runs the command.

    Raises:
        schema.InputError: a number makes no study, or --out cannot be written.
    """
    names = [field.name for field in dataclasses.fields(truth.Settings)]
    settings = truth.Settings(**{name: getattr(options, name) for name in names})
    settings.check()
    if options.seed < 0:
        raise schema.InputError(f"--seed is {options.seed}; expected 0 or more")
    write(options.out, settings, options.seed)
    found = recovery.measure(settings, seed=options.seed, repeats=options.repeats)
    page = recovery.page(found)
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    output.write(options.out / "recovery.json", text)
    output.write(options.out / "recovery.md", page)
    print(page)
    print(f"written to {options.out}")


def write(out: pathlib.Path, settings: truth.Settings, seed: int) -> None:
    """Writes one simulated study: `ratings/answers.csv` and `truth.json`.

    Raises:
        schema.InputError: it cannot be written.
    """
    known, answers = truth.simulate(settings, np.random.default_rng([seed, 0]))
    (out / "ratings").mkdir(parents=True, exist_ok=True)
    output.write(out / "ratings" / "answers.csv", "\ufeff" + to_csv(answers))
    facts = {
        field.name: _plain(getattr(known, field.name))
        for field in dataclasses.fields(known)
    }
    facts |= {"clips": answers.clips, "raters": answers.raters, "seed": seed}
    facts["settings"] = dataclasses.asdict(settings)
    output.write(out / "truth.json", json.dumps(facts, indent=1) + "\n")


def to_csv(answers: ratings.Ratings) -> str:
    """Answers in the layout of the page."""
    rated = [f"{side}_{task}" for task in answers.tasks for side in _SIDES]
    header = [*_COLUMNS, "left_label", "right_label", "left_path", "right_path", *rated]
    header += ["preference", "seconds", "plays_left", "plays_right", "comments"]
    words = {1.0: "left", 0.0: "equal", -1.0: "right"}
    rows = []
    for n, (rater, left, right) in enumerate(
        zip(answers.rater, answers.left, answers.right, strict=True)
    ):
        labels = ["A", "B"] if answers.a_left[n] else ["B", "A"]
        row = ["2000-01-01T00:00:00Z", "simulated", answers.raters[rater]]
        row += [answers.item[n], str(n), answers.kind[n], *labels]
        row += [answers.clips[left], answers.clips[right]]
        row += [
            _text(answers.opinions[n, side, task])
            for task, side in itertools.product(range(len(answers.tasks)), range(2))
        ]
        chosen = answers.preference[n]
        row.append("" if np.isnan(chosen) else words[float(chosen)])
        plays = _text(answers.plays[n])
        rows.append([*row, _text(answers.seconds[n]), plays, plays, ""])
    return output.table(header, rows)


def _text(value: Float[np.ndarray, ""]) -> str:
    return "" if np.isnan(value) else f"{value:.10g}"


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
