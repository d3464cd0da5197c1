r"""Asks whether a model errs alike in all groups of test clips.

    python -m experiments.subgroups --data=data/mine --seeds=5 --out=studies/subgroups \
        --pattern='(?P<face>\d+)_voice_(?P<language>\w+)_\d+_(?P<generator>\w+)'

Groups are of the source (speaker), of named groups in the clip's id (--pattern) and of
the columns of a CSV (--groups). It trains fixed, tuned weights over seeds, or looks at
a finished run (--workdir). For each group: the mean of score - label (bias), RMSE and
SRCC, with 95 % intervals over the group's sources.

The one thing to know: groups differ by chance, too. Whether they differ by more is
asked by permuting groups: among the clips of each source where those are in several
groups, else among whole sources; for the source itself, among clips. p-values are
corrected by Holm over groupings, tasks and both questions (bias and size of errors).
"""

import collections
import dataclasses
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from experiments.studying import (
    command,
    contrasts,
    figures,
    groups,
    results,
    trials,
)
from tqa_jax import evaluate, run, schema, statistics

_PERMUTATIONS = 2000
_LEVEL = 0.05
_METRICS = (contrasts.BIAS, "rmse", "srcc")
_LEAST = 10  # Clips below which a group's SRCC says nothing.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(groups.Given):
    """The command line."""

    workdir: pathlib.Path | None = None
    """A finished run to look at, in place of training."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(_run, Given, arguments)


@dataclasses.dataclass(frozen=True)
class Task:
    """What runs said of the labelled test clips of a task.

    Attributes:
        name: of the task.
        clips: their ids.
        sources: of each.
        scores: of each run.
        labels: opinion scores.
    """

    name: str
    clips: tuple[str, ...]
    sources: tuple[str, ...]
    scores: Float[np.ndarray, "S N"]
    labels: Float[np.ndarray, " N"]

    def of(self, column: groups.Column) -> tuple["Task", list[str]]:
        """The clips that are in a group, and the group of each."""
        there = [at for at, clip in enumerate(self.clips) if clip in column]
        some = Task(
            self.name,
            tuple(self.clips[at] for at in there),
            tuple(self.sources[at] for at in there),
            self.scores[:, there],
            self.labels[there],
        )
        return some, [column[clip] for clip in some.clips]


def _run(options: command.Options) -> None:
    runs, chosen = _runs(options)
    first = runs[0]
    columns, said = groups.read(
        options.given, options.info, dict(zip(first.clips, first.sources, strict=True))
    )
    tasks = _tasks(runs)
    if not tasks:
        raise schema.InputError("no test clip has a label; errors need some")
    tests = [
        row
        for name, column in columns.items()
        for task in tasks
        for row in heterogeneity(name, column, task)
    ]
    statistics.correct(tests, ("p",))
    for row in tests:
        row["verdict"] = _verdict(row)
    rows = [
        row
        for name, column in columns.items()
        for task in tasks
        for row in group_rows(name, column, task)
    ]
    for row in rows:
        row["runs"] = len(runs)
    results.write(
        options,
        "subgroups",
        rows,
        table="\n\n".join(
            [results.markdown(tests), results.markdown([_shown(row) for row in rows])]
        ),
        said=[_how(options, len(runs)), *said, *_words(tests)],
        more={"chosen": chosen, "heterogeneity": tests},
        figure=_figure(rows, list(columns)),
    )


def _runs(
    options: command.Options,
) -> tuple[list[evaluate.Predictions], dict[str, Any]]:
    """Test predictions of the runs to look at, and the settings that were chosen."""
    folder = options.given.workdir
    if folder is not None:
        return [run.Run.load(folder).predictions().of("test")], {}
    case = trials.tuned_fixed(options)
    chosen = trials.tune(
        options.base,
        {"fixed, tuned": case},
        draws=options.draws,
        folder=options.out / "tuning",
    )
    found = trials.run(
        options.base, chosen, seeds=options.seeds, folder=options.out / "runs"
    )
    return [one.outcome.predictions for one in found["fixed, tuned"]], chosen


def _tasks(runs: Sequence[evaluate.Predictions]) -> list[Task]:
    first = runs[0]
    found = []
    for k, name in enumerate(first.tasks):
        known = ~np.isnan(first.labels[:, k])
        if known.any():
            found.append(
                Task(
                    name,
                    tuple(first.clips[known]),
                    tuple(first.sources[known]),
                    np.array([each.scores[known, k] for each in runs]),
                    first.labels[known, k],
                )
            )
    return found


def group_rows(name: str, column: groups.Column, task: Task) -> list[dict[str, Any]]:
    """Figures of each group of a grouping.

    Returns:
        A row a group, the largest first: `n`, `sources`, `bias`, `rmse` and `srcc`
        with intervals, and in `reason` why something is missing.
    """
    task, of = task.of(column)
    rows = []
    for group, number in collections.Counter(of).most_common():
        mine = np.array([one == group for one in of])
        sources = [s for s, there in zip(task.sources, mine, strict=True) if there]
        counts = statistics.resample_sources(sources)
        row: dict[str, Any] = {"grouping": name, "group": group, "task": task.name}
        row |= {"n": number, "sources": len(set(sources))}
        reasons = []
        if len(counts) == 1:
            reasons.append(f"no interval: {row['sources']} of the 3 sources it needs")
        for metric in _METRICS:
            if metric == "srcc" and number < _LEAST:
                row |= dict.fromkeys(("srcc", "srcc_low", "srcc_high"))
                reasons.append(f"no srcc: {number} of the {_LEAST} clips it needs")
                continue
            one = contrasts.estimate(
                contrasts.figures(
                    metric, task.scores[:, mine], task.labels[mine], counts
                )
            )
            row[metric] = one["value"]
            row |= {f"{metric}_{key}": one[key] for key in ("low", "high")}
            if metric == "srcc" and one["value"] is None:
                reasons.append("no srcc: labels are constant")
        rows.append(row | {"reason": "; ".join(reasons)})
    return rows


def heterogeneity(name: str, column: groups.Column, task: Task) -> list[dict[str, Any]]:
    """Tests whether groups differ by more than chance, in bias and in size of errors.

    Returns:
        A row for each of both: `spread`, the standard deviation between groups of the
        mean error or the mean squared error, weighted by clips; what was permuted; `p`,
        or None with a `reason`.
    """
    task, of = task.of(column)
    numbers = np.unique(of, return_inverse=True)[1]
    sources = np.unique(task.sources, return_inverse=True)[1]
    what, draws, reason = permutations(
        numbers, None if name == groups.SOURCE else sources
    )
    errors = task.scores - task.labels
    rows = []
    for question, values in (
        ("bias", errors.mean(axis=0)),
        ("size", (errors**2).mean(axis=0)),
    ):
        row: dict[str, Any] = {"grouping": name, "task": task.name, "differ": question}
        row |= {"groups": int(len(set(of))), "n": len(of), "permuted": what}
        row |= {"spread": None, "by chance": None, "p": None, "reason": reason}
        if len(of):
            row["spread"] = math.sqrt(_between(values, numbers[None])[0])
        if not reason:
            drawn = _between(values, draws)
            there = row["spread"] ** 2
            above = int((drawn >= there * (1 - 1e-9)).sum())
            row["by chance"] = math.sqrt(float(np.median(drawn)))
            row["p"] = (1 + above) / (1 + len(drawn))
        rows.append(row)
    return rows


def permutations(
    numbers: Int[np.ndarray, " N"],
    sources: Int[np.ndarray, " N"] | None,
    *,
    number: int = _PERMUTATIONS,
    seed: int = 0,
) -> tuple[str, Int[np.ndarray, "P N"], str]:
    """Draws groups as they could be if they did not matter.

    Args:
        numbers: group of each clip.
        sources: of each clip; None permutes clips freely.
        number: of draws.
        seed: of the draws.

    Returns:
        What was permuted, the draws, and why there are none.
    """
    rng = np.random.default_rng(seed)
    none = np.empty((0, len(numbers)), int)
    if len(set(numbers.tolist())) < 2:
        return "", none, "fewer than two groups among the labelled test clips"
    if sources is None:
        ways = _arrangements([numbers])
        what = "clips"
        draws = rng.permuted(np.tile(numbers, (number, 1)), axis=1)
    else:
        members = [np.flatnonzero(sources == one) for one in np.unique(sources)]
        if any(len(set(numbers[some].tolist())) > 1 for some in members):
            what = "clips within their source"
            ways = _arrangements([numbers[some] for some in members])
            draws = np.tile(numbers, (number, 1))
            for some in members:
                draws[:, some] = rng.permuted(draws[:, some], axis=1)
        else:
            what = "whole sources"
            each = np.array([numbers[some[0]] for some in members])
            ways = _arrangements([each])
            shuffled = rng.permuted(np.tile(each, (number, 1)), axis=1)
            draws = shuffled[:, np.unique(sources, return_inverse=True)[1]]
    if ways * _LEVEL < 1:
        return what, none, f"too few: {ways:.0f} ways to permute {what}"
    if what == "whole sources" and len(set(each.tolist())) == len(each):
        return what, none, "each group is one source, so neither can be blamed"
    return what, draws, ""


def _arrangements(parts: Sequence[np.ndarray]) -> float:
    """In how many ways the groups of each part can be ordered."""
    total = 0.0
    for part in parts:
        total += math.lgamma(len(part) + 1)
        total -= sum(math.lgamma(n + 1) for n in np.unique_counts(part).counts)
    return math.exp(min(total, 50.0))


def _between(
    values: Float[np.ndarray, " N"], draws: Int[np.ndarray, "P N"]
) -> Float[np.ndarray, " P"]:
    """Variance between groups of their means, weighted by clips, for each draw."""
    found = np.zeros(len(draws))
    for group in np.unique(draws):
        there = draws == group
        size = there.sum(axis=1)
        gap = (there @ values) / size - values.mean()
        found += size * gap**2
    return found / len(values)


def _verdict(row: Mapping[str, Any]) -> str:
    if row["p"] is None:
        return "too few"
    return "differ" if row["p"] < _LEVEL else "no difference"


def _how(options: command.Options, runs: int) -> str:
    if options.given.workdir is not None:
        what = "One finished run"
    else:
        what = f"{runs} seeds of fixed weights, {options.draws} settings tried"
    return (
        f"{what}; test clips only. bias is score - label. Figures are means over "
        "runs, intervals 95 % over the group's sources. `spread` is the deviation "
        "between groups of the mean error (bias) or mean squared error (size), by "
        "chance its median over permutations; p is corrected by Holm over all rows."
    )


def _words(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    for name in dict.fromkeys(row["grouping"] for row in tests):
        mine = [row for row in tests if row["grouping"] == name]
        differ = [f"{r['task']} ({r['differ']})" for r in mine if r["p"] is not None]
        found = [
            f"{r['task']} ({r['differ']})" for r in mine if r["verdict"] == "differ"
        ]
        if found:
            said.append(f"Groups by {name} differ in {', '.join(found)}.")
        elif differ:
            said.append(f"No difference between groups by {name} that this shows.")
        else:
            said.append(f"Too few to tell whether groups by {name} differ.")
    return said


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: row[key] for key in ("grouping", "group", "task", "n", "sources")}
    for metric in _METRICS:
        ends = {key: row[f"{metric}_{key}"] for key in ("low", "high")}
        found[metric] = contrasts.interval(
            {"value": row[metric], **ends}, "+" if metric == contrasts.BIAS else ""
        )
    return found | {"reason": row["reason"]}


def _figure(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Any:
    """Bias of each group, a panel a grouping, a colour a task."""
    pyplot = figures.start()
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    counts = {
        name: len({row["group"] for row in rows if row["grouping"] == name})
        for name in columns
    }
    figure, axes = pyplot.subplots(
        len(columns),
        1,
        squeeze=False,
        layout="constrained",
        figsize=(7, 1.5 + sum(0.8 + 0.25 * n for n in counts.values())),
        height_ratios=[0.8 + 0.25 * max(1, n) for n in counts.values()],
    )
    for name, ax in zip(columns, axes[:, 0], strict=True):
        names = sorted({row["group"] for row in rows if row["grouping"] == name})
        for row in (row for row in rows if row["grouping"] == name):
            at = tasks.index(row["task"])
            place = names.index(row["group"]) + 0.6 * (at + 0.5) / len(tasks) - 0.3
            ax.plot(row["bias"], place, "o", ms=3, color=f"C{at}")
            if row["bias_low"] is not None:
                ends = [row["bias_low"], row["bias_high"]]
                ax.plot(ends, [place] * 2, color=f"C{at}", lw=1)
        ax.axvline(0, color="grey", lw=0.8)
        ax.set_yticks(range(len(names)), names, fontsize="x-small")
        ax.set_title(name, fontsize="small")
    for at, task in enumerate(tasks):
        axes[0, 0].plot([], [], "o", ms=3, color=f"C{at}", label=task)
    axes[0, 0].legend(fontsize="x-small")
    axes[-1, 0].set_xlabel("mean of score - label; 95 % over sources")
    figure.suptitle("Error by group")
    return figure


if __name__ == "__main__":
    sys.exit(main())
