"""Compares how fast weightings converge: validation SRCC and loss by epoch and by time.

    python -m experiments.convergence --data=data/mine --seeds=5 --out=studies/speed
    python -m experiments.convergence --runs=studies/weighting --out=studies/speed

Trains fixed weights, GradNorm, uncertainty weighting and FAMO, each tuned as in
`experiments.weighting`, or reads the runs that `experiments.weighting` left in its
--out (--runs). A curve is the best validation SRCC so far, which is what a run stopped
there would keep; a run that stopped early keeps its last value.

The one thing to know: epochs are counted to 95 % of a run's own final value, which
flatters cases that end low, and of the final value of the first case with the same
seed, which some never reach: those are censored, and a median that falls among them is
unknown. Time is the number of steps times the seconds of a step, measured side by side
here, since the runs themselves were trained many at once. Comparisons are over seeds
alone; the log has no predictions to resample.
"""

import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from experiments import timing
from experiments.studying import (
    command,
    figures,
    results,
    steps,
    trials,
)
from tqa_jax import cli, grid, metrics, output, run, schema, statistics

SHARE = 0.95
_REFERENCE = "fixed, tuned"
_ROUNDS, _QUICK_ROUNDS = 20, 3


@dataclasses.dataclass(frozen=True)
class Curve:
    """What the log of a run says of its validations.

    Attributes:
        seed: of the run.
        epochs: that the run may have.
        srcc: mean over the tasks whose labels define it, of each epoch; NaN for none.
        loss: mean over tasks, of each epoch.
    """

    seed: int
    epochs: int
    srcc: np.ndarray
    loss: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """Best SRCC so far, of all epochs it may have; NaN before the first."""
        found = np.fmax.accumulate(self.srcc)
        return np.pad(found, (0, self.epochs - len(found)), mode="edge")

    @property
    def area(self) -> float:
        """Mean over epochs of the best so far; an epoch without one counts 0."""
        return float(np.nan_to_num(self.best).mean())

    def reaches(self, value: float) -> float | None:
        """First epoch whose SRCC is at least a value; None if there is none."""
        there = np.flatnonzero(self.best >= value)
        return float(there[0] + 1) if len(there) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(command.Given):
    """The command line."""

    runs: pathlib.Path | None = None
    """--out of a finished experiments.weighting, whose runs are read (default: trains
    its own)."""
    rounds: cli.Count | None = None
    """Rounds of timing (default: 20; quick: 3)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(_run, Given, arguments)


def _run(options: command.Options) -> None:
    chosen: Mapping[str, Any] = {}
    if options.given.runs is not None:
        folders = finished(options.given.runs)
    else:
        chosen = trials.tune(
            options.base,
            _cases(options),
            draws=options.draws,
            folder=options.out / "tuning",
        )
        trained = trials.run(
            options.base, chosen, seeds=options.seeds, folder=options.out / "runs"
        )
        folders = {case: [r.folder for r in runs] for case, runs in trained.items()}
    curves = {case: [read(one) for one in some] for case, some in folders.items()}
    rounds = options.given.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)
    seconds = _seconds({case: some[0] for case, some in folders.items()}, rounds)
    rows = summarise(curves, seconds)
    output.write(
        options.out / "convergence_curves.csv",
        output.table_of(_points(curves, seconds)),
    )
    results.write(
        options,
        "convergence",
        rows,
        table=results.markdown([_shown(row) for row in rows]),
        said=_said(rows, curves, options),
        more={"chosen": chosen, "runs": str(options.given.runs or options.out)},
        figure=_figure(curves, seconds),
    )


def _cases(options: command.Options) -> dict[str, trials.Case]:
    """Some of the cases of `experiments.weighting`, with the same ranges."""
    rate = trials.rate_range(options.base)

    def weighting(name: str, **ranges: trials.Range) -> trials.Case:
        own = {f"weighting.{name}.{key}": value for key, value in ranges.items()}
        return trials.Case({"weighting.name": name}, rate | own)

    return {
        _REFERENCE: trials.tuned_fixed(options),
        "gradnorm": weighting(
            "gradnorm", alpha=("uniform", 0.1, 2.0), learning_rate=("log", 3e-3, 1e-1)
        ),
        "uncertainty": weighting("uncertainty", learning_rate=("log", 1e-4, 1e-2)),
        "famo": weighting("famo", learning_rate=("log", 3e-3, 1e-1)),
    }


def finished(study: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Finds the runs of a finished study of weightings.

    Args:
        study: its --out.

    Returns:
        The folders of each case's runs, in the order of the seeds; tuned fixed weights
        first.

    Raises:
        InputError: when there is no study or a run has not ended.
    """
    place = study / "runs"
    try:
        kept = json.loads((place / "sweep.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise schema.InputError(
            f"--runs={study} holds no study: {error}; expected the --out of "
            "experiments.weighting"
        ) from error
    kept.pop("data", None)
    found: dict[str, list[pathlib.Path]] = {}
    for one in grid.plan(ml_collections.ConfigDict(kept)):
        folder = place / "runs" / one.name
        if not (folder / "results.json").is_file():
            raise schema.InputError(
                f"{folder} has not finished; the command of that study continues it"
            )
        found.setdefault(one.settings.get("case", "all"), []).append(folder)
    # A sweep lists its cases by name.
    return dict(sorted(found.items(), key=lambda item: item[0] != _REFERENCE))


def read(folder: pathlib.Path) -> Curve:
    """Reads the validations of a finished run."""
    config = run.Run.load(folder).config
    srcc, loss = [], []
    for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["split"] == "validation":
            srcc.append(_mean(line, "srcc"))
            loss.append(_mean(line, "loss"))
    return Curve(config.seed, config.train.epochs, np.array(srcc), np.array(loss))


def _mean(line: Mapping[str, Any], metric: str) -> float:
    tasks = [key.partition("/")[2] for key in line if key.startswith(f"{metric}/")]
    values = [
        metrics.counted(line[f"{metric}/{task}"], line.get(f"ccc/{task}"))
        for task in tasks
    ]
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else math.nan


def _seconds(folders: Mapping[str, pathlib.Path], rounds: int) -> dict[str, float]:
    """Seconds of an epoch of each case, from steps that take turns."""
    found = {case: steps.load(folder) for case, folder in folders.items()}
    taken = timing.interleave(
        {case: step.runner() for case, step in found.items()}, rounds
    )
    return {
        case: float(np.median(taken[case])) * step.steps_per_epoch
        for case, step in found.items()
    }


def summarise(
    curves: Mapping[str, Sequence[Curve]], seconds: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Says how fast each case converges, compared with the first.

    Args:
        curves: of the runs of each case, in the same order of seeds.
        seconds: of an epoch of each case.

    Returns:
        A row a case: `final` and `area` (means over seeds with `_sd`); the median
        `epochs_own` and `epochs_first` to 95 % of its own and of the first case's final
        value, the seeds for which either does not exist or was not reached, and their
        seconds; the `difference` of areas to the first case with the p-value of a
        paired t-test over seeds, corrected by Holm, and a `verdict`.
    """
    rows = []
    first = {one.seed: one for one in next(iter(curves.values()))}
    for case, some in curves.items():
        row: dict[str, Any] = {"case": case, "seeds": len(some)}
        for name, values in (
            ("final", [one.best[-1] for one in some]),
            ("area", [one.area for one in some]),
        ):
            row |= _spread(name, values)
        for name, goals in (
            ("own", [one.best[-1] for one in some]),
            (
                "first",
                [first[o.seed].best[-1] if o.seed in first else math.nan for o in some],
            ),
        ):
            row |= _reached(name, some, goals, seconds[case])
        row |= dict.fromkeys(("difference", "p_seeds"))
        if rows:
            pairs = [
                one.area - first[one.seed].area for one in some if one.seed in first
            ]
            if pairs:
                row["difference"] = float(np.mean(pairs))
            row["p_seeds"] = statistics.paired_t(pairs)
        row["seconds_an_epoch"] = seconds[case]
        rows.append(row)
    statistics.correct(rows, ("p_seeds",))
    for number, row in enumerate(rows):
        # One test in place of two: there are no clips to resample.
        both = {**row, "p_clips": row["p_seeds"]}
        row["verdict"] = results.verdict(both) if number else ""
    return rows


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    known = [float(value) for value in values if math.isfinite(value)]
    return {
        name: float(np.mean(known)) if known else None,
        f"{name}_sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }


def _reached(
    name: str, some: Sequence[Curve], goals: Sequence[float], seconds: float
) -> dict[str, Any]:
    """Median epochs to 95 % of goals; censored runs count as later than all others."""
    asked = [
        (one, goal) for one, goal in zip(some, goals, strict=True) if goal > 0
    ]  # Of a value that is not positive, 95 % is more than all of it.
    taken = [one.reaches(SHARE * goal) for one, goal in asked]
    middle = None
    if taken:
        found = float(np.median([math.inf if t is None else t for t in taken]))
        middle = found if math.isfinite(found) else None
    return {
        f"epochs_{name}": middle,
        f"seconds_{name}": None if middle is None else middle * seconds,
        f"censored_{name}": sum(t is None for t in taken),
        f"undefined_{name}": len(some) - len(asked),
    }


def _points(
    curves: Mapping[str, Sequence[Curve]], seconds: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The curves as rows, an epoch each."""
    return [
        {
            "case": case,
            "seed": one.seed,
            "epoch": epoch + 1,
            "seconds": (epoch + 1) * seconds[case],
            "srcc": _finite(one.srcc[epoch]),
            "best_srcc": _finite(one.best[epoch]),
            "loss": _finite(one.loss[epoch]),
        }
        for case, some in curves.items()
        for one in some
        for epoch in range(len(one.srcc))
    ]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    def spread(name: str) -> str | None:
        if row[name] is None:
            return None
        sd = row[f"{name}_sd"]
        return f"{row[name]:.3f}" + ("" if sd is None else f" ± {sd:.3f}")

    def reached(name: str) -> str:
        asked = row["seeds"] - row[f"undefined_{name}"]
        if not asked:
            return "undefined"
        epochs, censored = row[f"epochs_{name}"], row[f"censored_{name}"]
        text = "not reached by most"
        if epochs is not None:
            text = f"{epochs:g} ({row[f'seconds_{name}']:.3g} s)"
        return text + (f", {censored} of {asked} censored" if censored else "")

    return {
        "case": row["case"],
        "seeds": row["seeds"],
        "final SRCC": spread("final"),
        "area": spread("area"),
        "epochs to 95 % of its own": reached("own"),
        "of the first case's": reached("first"),
        "area to the first": row["difference"],
        "p (seeds)": row["p_seeds"],
        "verdict": row["verdict"] or None,
    }


def _said(
    rows: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Sequence[Curve]],
    options: command.Options,
) -> list[str]:
    tried = (
        f"of {options.given.runs}"
        if options.given.runs is not None
        else f"each after {options.draws} settings tried by validation"
        if options.draws > 1
        else "not tuned"
    )
    early = sum(len(one.srcc) < one.epochs for some in curves.values() for one in some)
    said = [
        f"Runs {tried}. Validation SRCC, mean over tasks, best so far; area is its "
        "mean over epochs. Epochs are medians over seeds, a censored run counting as "
        "later than all others; seconds are steps alone, without validation. Areas are "
        "compared over seeds (paired t-test, Holm over the rows), not over clips.",
        f"{early} of {sum(map(len, curves.values()))} runs stopped early; their last "
        "value is carried on.",
    ]
    first = rows[0]["case"]
    words = {
        "better": "converges faster or higher than",
        "worse": "converges slower or lower than",
        "no difference": "shows no difference to",
        "too few": "has too few seeds to be told from",
    }
    return said + [f"{r['case']} {words[r['verdict']]} {first}." for r in rows[1:]]


def _figure(curves: Mapping[str, Sequence[Curve]], seconds: Mapping[str, float]) -> Any:
    pyplot = figures.start()
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for number, (case, some) in enumerate(curves.items()):
        colour = f"C{number % 10}"
        style = ("-", "--")[number // 10 % 2]
        most = max(one.epochs for one in some)
        epochs = np.arange(1, most + 1)
        best = np.array(
            [np.pad(o.best, (0, most - o.epochs), mode="edge") for o in some]
        )
        middle, spread = best.mean(axis=0), best.std(axis=0)
        for ax, x in ((axes[0], epochs), (axes[1], epochs * seconds[case])):
            ax.plot(x, middle, style, color=colour, label=case)
            ax.fill_between(
                x, middle - spread, middle + spread, color=colour, alpha=0.12, lw=0
            )
        shortest = min(len(one.loss) for one in some)
        loss = np.array([one.loss[:shortest] for one in some])
        axes[2].plot(epochs[:shortest], loss.mean(axis=0), style, color=colour)
    for ax, label in zip(
        axes, ("epoch", "seconds of training steps", "epoch"), strict=True
    ):
        ax.set_xlabel(label)
    axes[0].set_ylabel("best validation SRCC so far")
    axes[2].set_ylabel("validation loss, mean over tasks")
    axes[0].legend(fontsize="x-small")
    figure.suptitle("Convergence: mean over seeds, bands of one deviation")
    return figure


if __name__ == "__main__":
    sys.exit(main())
