"""What the runs of a sweep are worth, setting by setting: the table at its end.

The one thing to know: two things vary that nobody chose, the seed and the clips that
happened to be rated, and each has its test: `p_seeds` asks whether the difference would
be there with other seeds, `p_clips` whether on other clips. Both compare with the first
setting, and both are corrected for the number of settings that are (Holm 1979).

A task whose predictions are constant counts as a correlation of 0 (see
`metrics.comparable`), and runs are compared on the tasks that all of them have: a
setting gains nothing by a task that drops out of its mean.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from tqa_jax import (
    evaluate,
    grid,
    intervals,
    metrics,
    output,
    statistics,
    sweep_folder,
)
from tqa_jax import run as run_lib

Row = dict[str, Any]


class Found(NamedTuple):
    """What a sweep found.

    Attributes:
        table: see `compare`; None while runs of other processes train.
        failed: why runs ended before their time, by name.
        missing: runs of other processes that have not ended.
    """

    table: list[Row] | None
    failed: dict[str, str]
    missing: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        setting: what the run has changed beside the seed, by key.
        seed: of the run.
        results: content of its `results.json`, None if it failed.
        predictions: on its test clips, None if it failed.
    """

    setting: Mapping[str, Any]
    seed: int
    results: Mapping[str, Any] | None
    predictions: evaluate.Predictions | None


def conclude(runs: Sequence[grid.Run], workdir: pathlib.Path) -> Found:
    """Writes the tables `sweep.csv` and `runs.csv` if all runs have ended.

    Args:
        runs: of the sweep.
        workdir: its folder.
    """
    folders = {run.name: workdir / "runs" / run.name for run in runs}
    statuses = {name: sweep_folder.status(one) for name, one in folders.items()}
    failed = {name: s["reason"] for name, s in statuses.items() if s and s["reason"]}
    missing = sum(status is None for status in statuses.values())
    if missing:
        return Found(None, failed, missing)
    outcomes = read(runs, workdir)
    rows = [
        _run_row(run, outcome, statuses[run.name])
        for run, outcome in zip(runs, outcomes, strict=True)
    ]
    table = compare(outcomes)
    output.write(workdir / "runs.csv", output.table_of(rows))
    output.write(workdir / "sweep.csv", output.table_of(table))
    return Found(table, failed, 0)


def read(runs: Sequence[grid.Run], workdir: pathlib.Path) -> list[Outcome]:
    """Reads what became of the runs of a sweep, all of which have ended."""
    return [_outcome(run, workdir / "runs" / run.name) for run in runs]


def _outcome(run: grid.Run, folder: pathlib.Path) -> Outcome:
    status = sweep_folder.status(folder)
    if status is None or status["reason"]:
        return Outcome(run.setting, run.config.seed, None, None)
    found = run_lib.Run.load(folder)
    predictions = found.predictions().of("test")
    return Outcome(run.setting, run.config.seed, found.results, predictions)


def _run_row(run: grid.Run, outcome: Outcome, status: Mapping[str, Any]) -> Row:
    results = outcome.results
    row: Row = {"run": run.name} | dict(run.settings)
    row["status"] = "finished" if results else "failed"
    row["best_epoch"] = results and results["selected"]["epoch"]
    for metric in ("srcc", "plcc", "rmse"):
        row[metric] = results and average(results, metric)
    for key in ("seconds_of_last_start", "reason"):
        row[key] = status[key]
    return row


def compare(outcomes: Sequence[Outcome]) -> list[Row]:
    """Makes the table.

    Args:
        outcomes: of all runs, the settings in the order of the table.

    Returns:
        A row a setting: its keys; `seeds` (finished) and `failed`; `srcc`, `plcc` and
        `rmse` (mean over seeds of the mean over tasks) with `..._sd` over seeds;
        `srcc/<task>` likewise; `rank`, the mean over seeds of the place that the
        setting takes by SRCC; and, beside the first, `difference` of the SRCC to the
        first setting's, its 95 % interval over clips `low` and `high`, `p_clips` and
        `p_seeds`. None where it is undefined: failed runs, p with fewer than 3 common
        seeds, fewer than 3 sources of clips, or other test clips or tasks.
    """
    settings = list({_key(one): one.setting for one in outcomes}.values())
    members = [[o for o in outcomes if o.setting == one] for one in settings]
    finished = [[o for o in some if o.results is not None] for some in members]
    tasks = list(
        dict.fromkeys(t for f in finished for o in f for t in o.results["tasks"])
    )
    ranks = _ranks(finished)
    rows = []
    for setting, all_of_it, done in zip(settings, members, finished, strict=True):
        row: Row = dict(setting)
        row |= {"seeds": len(done), "failed": len(all_of_it) - len(done)}
        for metric in ("srcc", "plcc", "rmse"):
            row |= _spread(metric, [average(o.results, metric) for o in done])
        for task in tasks:
            found = [_value(o.results, task, "srcc") for o in done]
            row |= _spread(f"srcc/{task}", found)
        row["rank"] = ranks[len(rows)]
        row |= dict.fromkeys(("difference", "low", "high", "p_clips", "p_seeds"))
        if rows:
            row |= _over_clips(done, finished[0]) | _over_seeds(done, finished[0])
        rows.append(row)
    statistics.correct(rows, ("p_clips", "p_seeds"))
    return rows


def to_markdown(rows: Sequence[Row]) -> str:
    """The table for people: means with standard deviations, two or three digits."""
    keys = list(rows[0])
    settings = keys[: keys.index("seeds")]
    tasks = [k for k in keys if k.startswith("srcc/") and not k.endswith("_sd")]
    lines = []
    for row in rows:
        count = f"{row['seeds']}" + (
            f" ({row['failed']} failed)" if row["failed"] else ""
        )
        cells = [str(row[key]) for key in settings] + [count]
        cells += [_plus_minus(row, metric) for metric in ("srcc", "plcc", "rmse")]
        cells += [_plus_minus(row, task) for task in tasks]
        cells.append("-" if row["rank"] is None else f"{row['rank']:.1f}")
        difference = "-" if row["difference"] is None else f"{row['difference']:+.3f}"
        if row["low"] is not None:
            difference += f" [{row['low']:+.3f}, {row['high']:+.3f}]"
        cells.append(difference)
        cells += [
            "-" if row[name] is None else f"{row[name]:.3f}"
            for name in ("p_seeds", "p_clips")
        ]
        lines.append(cells)
    head = [*settings, "seeds", "SRCC", "PLCC", "RMSE"]
    head += [task.removeprefix("srcc/") for task in tasks]
    head += ["rank", "to the first", "p (seeds)", "p (clips)"]
    lines = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _key(outcome: Outcome) -> str:
    return repr(sorted(outcome.setting.items()))


def average(
    results: Mapping[str, Any], metric: str, tasks: Sequence[str] | None = None
) -> float | None:
    """Mean of a metric over tasks, to be compared with that of other runs.

    Args:
        results: content of a run's `results.json`.
        metric: a name in `metrics.METRICS`.
        tasks: to average, all of which have a value; None for those that have.

    Returns:
        None when no task has a value.
    """
    names = results["tasks"] if tasks is None else tasks
    values = [_value(results, task, metric) for task in names]
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None


def _value(results: Mapping[str, Any], task: str, metric: str) -> float | None:
    row = results["tasks"].get(task, {})
    value, ccc = (row.get(name, {}).get("value") for name in (metric, "ccc"))
    return metrics.counted(value, ccc)


def _spread(name: str, values: Sequence[float | None]) -> Row:
    """Mean and sample standard deviation over the seeds with a value."""
    values = [value for value in values if value is not None]
    return {
        name: float(np.mean(values)) if values else None,
        f"{name}_sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
    }


def _by_seed(settings: Sequence[Sequence[Outcome]]) -> list[dict[int, float]]:
    """Mean SRCC by seed of each setting, over the tasks that all runs have."""
    defined = [
        [o for o in done if average(o.results, "srcc") is not None] for done in settings
    ]
    everything = [o.results for done in defined for o in done]
    tasks = [
        task
        for task in (everything[0]["tasks"] if everything else ())
        if all(_value(results, task, "srcc") is not None for results in everything)
    ]
    if not tasks:
        return [{} for _ in settings]
    return [{o.seed: average(o.results, "srcc", tasks) for o in d} for d in defined]


def _ranks(finished: Sequence[Sequence[Outcome]]) -> list[float | None]:
    """Mean over seeds of each setting's place among those that have the seed."""
    places: list[list[float]] = [[] for _ in finished]
    values = _by_seed(finished)
    for seed in sorted({seed for one in values for seed in one}):
        there = [number for number, one in enumerate(values) if seed in one]
        ranks = stats.rankdata([-values[number][seed] for number in there])
        for number, rank in zip(there, ranks, strict=True):
            places[number].append(rank)
    return [float(np.mean(one)) if one else None for one in places]


def _over_seeds(done: Sequence[Outcome], first: Sequence[Outcome]) -> Row:
    """Difference of mean SRCC and its paired t-test over the seeds of both."""
    mine, theirs = _by_seed([done, first])
    differences = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    if not differences:
        return {"difference": None, "p_seeds": None}
    p = statistics.paired_t(differences)
    return {"difference": float(np.mean(differences)), "p_seeds": p}


def _over_clips(done: Sequence[Outcome], first: Sequence[Outcome]) -> Row:
    """Interval and test of the difference by a paired bootstrap of sources."""
    seeds = {o.seed for o in done} & {o.seed for o in first}
    runs = [o.predictions for side in (done, first) for o in side if o.seed in seeds]
    asked = {(tuple(p.clips), tuple(p.sources), p.tasks) for p in runs}
    if len(asked) != 1:
        return {"low": None, "high": None, "p_clips": None}
    counts = statistics.resample_sources(runs[0].sources)[1:]
    by_task = [
        np.concatenate(
            [
                intervals.figures("srcc", p.scores[:, k][None], p.labels[:, k], counts)
                for p in runs
            ]
        )
        for k in range(len(runs[0].tasks))
    ]
    values = statistics.mean_over_tasks(by_task)
    one, other = np.split(values, [len(runs) // 2])
    low, high, p = statistics.paired(one.mean(axis=0) - other.mean(axis=0))
    # Of so few seeds, others could differ as much.
    enough = len(seeds) >= statistics.MIN_SEEDS
    return {"low": low, "high": high, "p_clips": p if enough else None}


def _plus_minus(row: Row, name: str) -> str:
    if row[name] is None:
        return "-"
    spread = row[f"{name}_sd"]
    text = metrics.text(row[name], 3)
    return text if spread is None else f"{text} ± {metrics.text(spread, 3)}"
