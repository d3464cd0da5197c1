"""Compares two finished runs clip by clip: `python -m tqa_jax.compare RUN_A RUN_B`.

For each task, and for the mean over tasks, every metric's difference (A minus B) on the
test clips that both runs have, with its 95 % interval over sources and the p-value of a
paired bootstrap (`intervals.paired_differences`). The fitted metrics map the scores of
each run by the logistic that is fitted on the run's own validation clips.

The family of Holm's correction (`p_holm`) is one metric: its tasks and its mean. Other
metrics ask the same question of the same clips in other words. Who looks for any
difference at all in any metric must decide on one metric before.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tqa_jax import cli, evaluate, intervals, metrics, output, schema, statistics
from tqa_jax import run as run_lib

MEAN = "mean"
"""Name of the rows of the mean over tasks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    run_a: cli.Positional[pathlib.Path]
    """Folder of a finished run."""
    run_b: cli.Positional[pathlib.Path]
    """Folder of another one."""
    out: pathlib.Path | None = None
    """CSV to write, with all digits."""
    resamples: cli.Count = statistics.RESAMPLES
    """Of sources; p cannot be below 2 / (this + 1)."""
    seed: int = 0
    """Of the draws, 0 or more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.main(_run, Options, arguments)


def _run(options: Options) -> None:
    if options.seed < 0:
        raise schema.InputError(f"--seed is {options.seed}; expected 0 or more")
    folders = (options.run_a, options.run_b)
    said, rows = compare(*folders, resamples=options.resamples, seed=options.seed)
    print(said, table(rows), sep="\n\n")
    if options.out:
        output.write(options.out, output.table_of(rows))


def compare(
    folder_a: pathlib.Path,
    folder_b: pathlib.Path,
    *,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> tuple[str, list[dict[str, Any]]]:
    """Compares two finished runs.

    Args:
        folder_a: of a run.
        folder_b: of another one.
        resamples: of sources.
        seed: of the draws.

    Returns:
        What was compared, in a line or two; and a row a metric and task, the last task
        being `MEAN`: `metric`, `task`, `clips` (common and labelled), `a`, `b`,
        `difference` (A - B), `low`, `high`, `p`, `p_holm` and, where one of these is
        None, `reason`. Errors are in units of the task, correlations -1 to 1.

    Raises:
        InputError: when one is no finished run, they have other tasks or ranges, no
            test clip in common, or other labels or sources of a common one.
    """
    folders = (folder_a, folder_b)
    runs = [run_lib.Run.load(folder) for folder in folders]
    tasks = runs[0].data_schema.tasks
    ranges = [
        {task.name: (task.low, task.high) for task in run.data_schema.tasks}
        for run in runs
    ]
    if ranges[0] != ranges[1]:
        raise schema.InputError(
            f"{folder_b} has other tasks or ranges than {folder_a}: {ranges[1]}, not "
            f"{ranges[0]}"
        )
    found = [run.predictions() for run in runs]
    tests = [each.of("test") for each in found]
    numbers = [{clip: n for n, clip in enumerate(each.clips)} for each in tests]
    common = [clip for clip in numbers[0] if clip in numbers[1]]
    sizes = f"{len(numbers[0])} and {len(numbers[1])}"
    if not common:
        raise schema.InputError(
            f"{folder_a} and {folder_b} have no test clip in common, of {sizes}"
        )
    a, b = (
        each.at(np.array([number[clip] for clip in common]), tuple(ranges[0]))
        for each, number in zip(tests, numbers, strict=True)
    )
    same = (a.labels == b.labels) | (np.isnan(a.labels) & np.isnan(b.labels))
    same = same.all(axis=1) & (a.sources == b.sources)
    if not same.all():
        at = int(np.argmin(same))
        raise schema.InputError(
            f"{(~same).sum()} of {len(common)} common clips have another label or "
            f"source in {folder_b} than in {folder_a}; the first is {common[at]}: "
            f"{_says(b, at)}, not {_says(a, at)}"
        )
    fits = []
    for each in found:
        seen = each.of("validation").at(slice(None), a.tasks)
        fits.append(evaluate.fit(seen.scores, seen.labels, tasks))
    labelled = (~np.isnan(a.labels)).sum(axis=0)
    rows: list[dict[str, Any]] = []
    for metric in metrics.METRICS:
        differences = intervals.paired_differences(
            *(metric, a.scores, b.scores, a.labels, a.sources, tasks),
            logistic=tuple(fits),
            resamples=resamples,
            seed=seed,
        )
        family: list[dict[str, Any]] = [
            {
                **{"metric": metric, "task": task, "clips": int(clips)},
                **{"a": one.first, "b": one.second, "difference": one.value},
                **{"low": one.low, "high": one.high, "p": one.p, "p_holm": None},
                "reason": one.reason,
            }
            for task, clips, one in zip(
                (*a.tasks, MEAN), (*labelled, len(common)), differences, strict=True
            )
        ]
        statistics.correct(family, ("p",), "_holm")
        rows += family
    sources = len(set(a.sources))
    few = "; too narrow for so few" if sources < intervals.FEW_SOURCES else ""
    said = (
        f"A: {folder_a}\nB: {folder_b}\n"
        f"test clips: {sizes}, of which {len(common)} are common\n"
        f"95 % intervals from {resamples} resamples of {sources} sources{few}\n"
        "p_holm: corrected over the rows of a metric"
    )
    return said, rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the rows of `compare` for a terminal, with three digits.

    Args:
        rows: from `compare`.

    Returns:
        A line a metric and task, then one for each reason why something is missing.
    """
    width = max(len(row["task"]) for row in rows)
    head = f"{'metric':<9} {'task':<{width}} {'clips':>5} {'A':>8} {'B':>8} "
    lines = [f"{head}{'A - B':>8} {'95 % interval':^18} {'p':>7} {'p_holm':>7}"]
    notes: dict[str, dict[str, list[str]]] = {}  # reason -> task -> metrics
    for row, before in zip(rows, (rows[0], *rows), strict=False):
        if row["metric"] != before["metric"]:
            lines.append("")
        cells = [f"{_text(row[key]):>8}" for key in ("a", "b", "difference")]
        ends = "[{}, {}]".format(*(_text(row[key]) for key in ("low", "high")))
        cells.append(f"{'' if row['low'] is None else ends:^18}")
        cells += [f"{_text(row[key], 4):>7}" for key in ("p", "p_holm")]
        line = f"{row['metric']:<9} {row['task']:<{width}} {row['clips']:>5} "
        lines.append((line + " ".join(cells)).rstrip())
        if row["reason"]:
            by_task = notes.setdefault(row["reason"], {})
            by_task.setdefault(row["task"], []).append(row["metric"])
    lines += [""] * bool(notes)
    for reason, by_task in notes.items():
        for task, names in by_task.items():
            lines.append(f"{task}: {reason} ({', '.join(names)})")
    return "\n".join(lines)


def _text(value: float | None, places: int = 3) -> str:
    return "-" if value is None else metrics.text(value, places)


def _says(found: evaluate.Predictions, at: int) -> str:
    labels = zip(found.tasks, found.labels[at], strict=True)
    return f"{found.sources[at]}, " + ", ".join(f"{task} {v:g}" for task, v in labels)


if __name__ == "__main__":
    sys.exit(main())
