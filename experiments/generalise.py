r"""Asks how well scores carry over to sources, generators and data sets not seen.

    python -m experiments.generalise --data=data/mine --seeds=5 --out=studies/general \
        --pattern='(?P<face>\d+)_voice_(?P<language>\w+)_\d+_(?P<generator>\w+)'
    python -m experiments.generalise --data=data/a --others=data/b,data/c --out=...

Every clip is scored once by models that did not train on it, in three ways: folds drawn
over clips (`random`), over sources (`by source`), and leaving each group out (`by
group`). Beside the network with fixed weights, tuned in each fold as often, stand a
ridge regression on the clips' mean features and the mean training label of the clip's
group, which knows nothing but the name. With --others models of --data are tested on
all clips of other data sets instead.

The one thing to know: a model that recognises the generator gets a high correlation on
a random split without looking at a clip. `within` is the mean of the correlations
inside each group, where the name says nothing (0 by construction).

Groups are a column of --groups or --pattern, by name with --by: by default generator,
method or model; for the demo set its strongest planted flaw, so that "by group" asks
about flaws never seen; else the source, and then there is no third way. A source may
have clips in training and a left-out group. More than 20 groups are left out several
at a time.
"""

import collections
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.studying import (
    command,
    contrasts,
    derived,
    figures,
    groups,
    results,
    trials,
)
from extract import folds
from tqa_jax import cli, intervals, pipeline, records, schema, statistics
from tqa_jax import run as run_lib

RANDOM, BY_SOURCE, BY_GROUP = "random", "by source", "by group"
NETWORK, RIDGE, NAME = "network", "ridge", "group's name"
_FOLDS, _QUICK_FOLDS = 5, 3
_MOST_LEFT_OUT = 20
_LEAST = 10  # Labelled clips of a group below which its correlation is left out.
_PENALTIES = np.logspace(-1, 5, 13)
_METRICS = ("srcc", "plcc", "rmse")

Splits = Mapping[str, str]  # From clip to split.


@dataclasses.dataclass(frozen=True)
class Table:
    """All clips of a data set.

    Attributes:
        clips: their ids.
        sources: of each.
        labels: (N, K), NaN for missing.
        means: mean of each raw feature over measured frames (N, D), NaN for none.
    """

    clips: tuple[str, ...]
    sources: tuple[str, ...]
    labels: np.ndarray
    means: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(groups.Given):
    """The command line."""

    by: str | None = None
    """Name of the grouping that stands for generators."""
    folds: cli.Count | None = None
    """Folds of random and by source (default: 5; quick: 3)."""
    others: str = ""
    """Other data sets to test on, with commas between."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(_run, Given, arguments)


def _run(options: command.Options) -> None:
    if options.given.others:
        _run_others(options)
    else:
        _run_groups(options)


def _run_groups(options: command.Options) -> None:
    clips = table(clip for _, clip in derived.pairs(options.data))
    columns, said = groups.read(
        options.given, options.info, dict(zip(clips.clips, clips.sources, strict=True))
    )
    name = groups.generator(columns, options.given.by)
    column = columns[name]
    number = options.given.folds or (_QUICK_FOLDS if options.quick else _FOLDS)
    most = _QUICK_FOLDS if options.quick else _MOST_LEFT_OUT
    ways = arrange(
        clips, column, by_group=name != groups.SOURCE, folds_=number, most=most
    )
    if options.quick:
        ways = {way: found[:1] for way, found in ways.items()}
        said.append("The first fold of each way alone, to see that it works.")
    scores, chosen = _scores(options, ways, clips, column)
    rows, tests = judge(scores, clips, column, options.info.schema.task_names)
    for row in rows:
        sizes = [list(one.values()).count("train") for one in ways[row["split"]]]
        row["training clips"] = round(float(np.mean(sizes)))
    counts = collections.Counter(column[c] for c in clips.clips if c in column)
    small = [group for group, n in counts.items() if n < _LEAST]
    said += [
        f"{len(options.seeds)} seeds of fixed weights, {options.draws} settings tried "
        f"in each fold by validation; {len(clips.clips)} clips, {number} folds. Groups "
        f"are {len(counts)} of {name}; within: mean SRCC of those with at least "
        f"{_LEAST} labelled clips. Intervals are 95 % over sources, figures means "
        "over tasks and seeds. p-values are corrected by Holm over the comparisons.",
        *_words(tests),
    ]
    if name == groups.SOURCE:
        said.append(f"No grouping but the source is known, so nothing is {BY_GROUP}.")
    if small:
        said.append(
            f"Too small for a correlation within: {len(small)} of {len(counts)} groups."
        )
    results.write(
        options,
        "generalise",
        rows,
        table="\n\n".join(
            [
                results.markdown([_shown(row) for row in rows]),
                results.markdown([_shown_test(row) for row in tests]),
            ]
        ),
        said=said,
        more={"chosen": chosen, "comparisons": tests, "grouping": name},
        figure=_figure(rows),
    )


def table(found: Iterable[records.Clip]) -> Table:
    """Reads labels and mean features of clips."""
    names, sources, labels, means = [], [], [], []
    for clip in found:
        names.append(clip.clip)
        sources.append(clip.source)
        labels.append(clip.labels.astype(float))
        means.append(np.concatenate([_mean(rows) for rows in _measured(clip)]))
    if not names:
        raise schema.InputError("the data set has no clips")
    return Table(tuple(names), tuple(sources), np.array(labels), np.array(means))


def _measured(clip: records.Clip) -> list[np.ndarray]:
    rows = pipeline.measured_rows(clip)
    return [rows[name] for name in sorted(rows)]


def _mean(rows: Float[np.ndarray, "T D"]) -> Float[np.ndarray, " D"]:
    """Mean of what is finite in each column; NaN for none."""
    there = np.isfinite(rows)
    total = np.where(there, rows, 0).sum(axis=0, dtype=float)
    number = there.sum(axis=0)
    return np.where(number, total / np.maximum(number, 1), np.nan)


def arrange(
    clips: Table,
    column: groups.Column,
    *,
    by_group: bool,
    folds_: int,
    most: int = _MOST_LEFT_OUT,
) -> dict[str, list[Splits]]:
    """Says who trains, validates and is tested, in each way and fold.

    Args:
        clips: all clips.
        column: group of each clip that has one.
        by_group: whether groups are left out.
        folds_: number of folds of the other two ways.
        most: number of times that groups are left out; more groups share them.
    """
    of = dict(zip(clips.clips, clips.sources, strict=True))
    each = dict.fromkeys(of, 1)
    ways: dict[str, list[Splits]] = {RANDOM: [], BY_SOURCE: []}
    for fold in range(folds_):
        ways[RANDOM].append(folds.draw(each, folds=folds_, fold=fold))
        drawn = folds.draw(collections.Counter(of.values()), folds=folds_, fold=fold)
        ways[BY_SOURCE].append({clip: drawn[source] for clip, source in of.items()})
    if not by_group:
        return ways
    left = sorted({column[clip] for clip in of if clip in column})
    ways[BY_GROUP] = []
    for start in range(min(most, len(left))):
        out = set(left[start::most])
        rest = {c: s for c, s in of.items() if c in column and column[c] not in out}
        kept = folds.draw(collections.Counter(rest.values()), folds=folds_, fold=0)
        words = {"test": "validation", "validation": "train", "train": "train"}
        ways[BY_GROUP].append(
            {c: words[kept[s]] for c, s in rest.items()}
            | {c: "test" for c in of if column.get(c) in out}
        )
    return ways


def _scores(
    options: command.Options,
    ways: Mapping[str, Sequence[Splits]],
    clips: Table,
    column: groups.Column,
) -> tuple[dict[tuple[str, str], np.ndarray], Mapping[str, Any]]:
    """Scores of every clip by way and method (S, N, K), NaN where none was made."""
    fixed = trials.tuned_fixed(options)
    cases = {}
    for way, found in ways.items():
        for number, splits in enumerate(found):
            path = _derive(options, way, number, splits)
            cases[f"{way} {number}"] = fixed.but({"data.path": str(path)})
    chosen = trials.tune(
        options.base, cases, draws=options.draws, folder=options.out / "tuning"
    )
    trained = trials.run(
        options.base, chosen, seeds=options.seeds, folder=options.out / "runs"
    )
    place = {clip: at for at, clip in enumerate(clips.clips)}
    shape = clips.labels.shape
    scores: dict[tuple[str, str], np.ndarray] = {}
    for way, found in ways.items():
        network = np.full((len(options.seeds), *shape), np.nan)
        ridged, named = np.full((2, 1, *shape), np.nan)
        for number, splits in enumerate(found):
            for run, one in enumerate(trained[f"{way} {number}"]):
                predictions = one.outcome.predictions
                at = [place[clip] for clip in predictions.clips]
                tasks = map(predictions.tasks.index, options.info.schema.task_names)
                network[run, at] = predictions.scores[:, list(tasks)]
            rows = {
                split: np.array([place[c] for c, s in splits.items() if s == split])
                for split in schema.SPLITS
            }
            ridged[0, rows["test"]] = ridge(clips, rows)
            named[0, rows["test"]] = by_name(clips, rows, column)
        scores[way, NETWORK], scores[way, RIDGE] = network, ridged
        if way != BY_GROUP:  # A name that was never seen says nothing.
            scores[way, NAME] = named
    return scores, chosen


def _derive(
    options: command.Options, way: str, number: int, splits: Splits
) -> pathlib.Path:
    """Makes the data set of a fold.

    A source may be in one split only, so where clips of one are in several, the split
    is made part of the source's name.
    """

    def change(_: str, clip: records.Clip) -> derived.Pair | None:
        split = splits.get(clip.clip)
        if split is None:
            return None
        source = clip.source if way == BY_SOURCE else f"{split}: {clip.source}"
        return split, dataclasses.replace(clip, source=source)

    return derived.make(
        options.data,
        options.out / "data" / f"{way.replace(' ', '_')}_{number}",
        change,
        description=f"{way}, fold {number}",
        content=json.dumps(sorted(splits.items())).encode(),
    )


def ridge(clips: Table, rows: Mapping[str, np.ndarray]) -> Float[np.ndarray, "n K"]:
    """Predicts test labels from mean features; the penalty is chosen by validation.

    Args:
        clips: all clips.
        rows: numbers of the clips of each split.

    Returns:
        Predictions of the test clips, NaN for a task without training labels. Without
        validation labels the largest penalty is taken.
    """
    found = np.full((len(rows["test"]), clips.labels.shape[1]), np.nan)
    for k, labels in enumerate(clips.labels.T):
        train, validation = (
            rows[s][~np.isnan(labels[rows[s]])] for s in ("train", "validation")
        )
        if not len(train):
            continue
        known = np.isfinite(clips.means[train])
        number = np.maximum(known.sum(axis=0), 1)
        centre = np.where(known, clips.means[train], 0).sum(axis=0) / number
        gaps = np.where(known, clips.means[train] - centre, 0)
        spread = np.sqrt((gaps**2).sum(axis=0) / number)
        scale = np.where(spread > 1e-9, 1 / np.where(spread > 1e-9, spread, 1), 0)

        def ready(at, centre=centre, scale=scale):
            values = (clips.means[at] - centre) * scale
            return np.where(np.isfinite(values), values, 0)

        middle = labels[train].mean()
        left, size, right = np.linalg.svd(ready(train), full_matrices=False)
        inner = left.T @ (labels[train] - middle)
        slopes = [
            right.T @ (size / (size**2 + penalty) * inner) for penalty in _PENALTIES
        ]
        errors = [0.0] * (len(slopes) - 1) + [-1.0]
        if len(validation):
            gap = labels[validation] - middle
            errors = [
                float(((gap - ready(validation) @ slope) ** 2).mean())
                for slope in slopes
            ]
        found[:, k] = middle + ready(rows["test"]) @ slopes[int(np.argmin(errors))]
    return found


def by_name(
    clips: Table, rows: Mapping[str, np.ndarray], column: groups.Column
) -> Float[np.ndarray, "n K"]:
    """Predicts the mean training label of a test clip's group, else that of all."""
    found = np.full((len(rows["test"]), clips.labels.shape[1]), np.nan)
    of = np.array([column.get(clip, "") for clip in clips.clips])
    for k, labels in enumerate(clips.labels.T):
        train = rows["train"][~np.isnan(labels[rows["train"]])]
        if not len(train):
            continue
        found[:, k] = labels[train].mean()
        for group in set(of[train]) - {""}:
            mean = labels[train[of[train] == group]].mean()
            found[of[rows["test"]] == group, k] = mean
    return found


def judge(
    scores: Mapping[tuple[str, str], np.ndarray],
    clips: Table,
    column: groups.Column,
    tasks: Sequence[str],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Turns scores into figures and comparisons.

    Args:
        scores: by way and method (S, N, K), NaN where none was made.
        clips: all clips.
        column: group of each clip that has one.
        tasks: names of the tasks.

    Returns:
        A row for each way and method, and a row for each comparison: of ways on the
        clips that both scored, and of the network with each baseline.
    """
    rows = []
    for (way, method), found in scores.items():
        there = ~np.isnan(found).any(axis=(0, 2))
        row: dict[str, Any] = {"split": way, "method": method}
        row |= {"clips": int(there.sum()), "runs": len(found)}
        figures_ = _figures(found, there, clips, column, within=method != NAME)
        for metric, values in figures_.items():
            one = contrasts.estimate(values)
            row[metric] = one["value"]
            row |= {f"{metric}_{key}": one[key] for key in ("sd", "low", "high")}
        if method == NAME:
            row |= {"within": 0.0}
            row |= dict.fromkeys(("within_sd", "within_low", "within_high"))
        rows.append(row)
    pairs = [
        (f"{one} to {other}", (other, NETWORK), (one, NETWORK))
        for one, other in ((RANDOM, BY_SOURCE), (BY_SOURCE, BY_GROUP))
    ]
    pairs += [
        (f"{NETWORK} to {method}, {way}", (way, NETWORK), (way, method))
        for way, method in scores
        if method != NETWORK
    ]
    tests = []
    for name, one, other in pairs:
        if one not in scores or other not in scores:
            continue
        there = ~np.isnan(scores[one]).any(axis=(0, 2))
        there &= ~np.isnan(scores[other]).any(axis=(0, 2))
        both = [
            _figures(scores[key], there, clips, column, within=key[1] != NAME)
            for key in (one, other)
        ]
        for metric in ("srcc", "within"):
            if any(metric not in found for found in both):
                continue
            # A baseline has one run, which stands beside each of the network's.
            found = contrasts.estimate(both[0][metric] - both[1][metric])
            row = {"comparison": name, "figure": metric, "clips": int(there.sum())}
            tests.append(row | {"difference": found.pop("value")} | found)
    statistics.correct(tests, ("p_seeds", "p_clips"))
    for row in tests:
        row["verdict"] = results.verdict(row)
    return rows, tests


def _figures(
    scores: np.ndarray,
    there: np.ndarray,
    clips: Table,
    column: groups.Column,
    *,
    within: bool,
) -> dict[str, np.ndarray]:
    """Figures on some of the clips, by metric (S, 1 + R)."""
    labels, scores = clips.labels[there], scores[:, there]
    names = [clip for clip, one in zip(clips.clips, there, strict=True) if one]
    sources = [s for s, one in zip(clips.sources, there, strict=True) if one]
    counts = statistics.resample_sources(sources)
    of = np.array([column.get(clip, "") for clip in names])
    tasks = range(labels.shape[1])
    found = {
        metric: statistics.mean_over_tasks(
            [
                intervals.figures(metric, scores[..., k], labels[:, k], counts)
                for k in tasks
            ]
        )
        for metric in _METRICS
    }
    if within:
        found["within"] = statistics.mean_over_tasks(
            [_within(scores[..., k], labels[:, k], of, counts) for k in tasks]
        )
    return found


def _within(
    scores: Float[np.ndarray, "S N"],
    labels: Float[np.ndarray, " N"],
    of: np.ndarray,
    counts: Float[np.ndarray, "R N"],
) -> Float[np.ndarray, "S R"]:
    """Mean SRCC inside the groups that are large enough."""
    known = ~np.isnan(labels)
    parts = [np.full((len(scores), len(counts)), np.nan)]
    for group in sorted(set(of) - {""}):
        mine = (of == group) & known
        if mine.sum() >= _LEAST:
            parts.append(
                intervals.figures(
                    "srcc", scores[:, mine], labels[mine], counts[:, mine]
                )
            )
    return statistics.mean_over_tasks(parts)


def _run_others(options: command.Options) -> None:
    """Tests models of one data set on others."""
    chosen = trials.tune(
        options.base,
        {"fixed, tuned": trials.tuned_fixed(options)},
        draws=options.draws,
        folder=options.out / "tuning",
    )
    (trained,) = trials.run(
        options.base, chosen, seeds=options.seeds, folder=options.out / "runs"
    ).values()
    runs = [run_lib.Run.load(one.folder) for one in trained]
    own = {
        split: list(records.read_split(options.data, options.info, split))
        for split in schema.SPLITS
    }
    asked = {f"{options.info.name} (own test)": (options.info, own["test"])}
    for text in options.given.others.split(","):
        path = cli.path(text)
        info = schema.load(path)
        _check(runs[0], info, path)
        found = [clip for _, clip in derived.pairs(path)]
        asked[f"{info.name} ({path.name})"] = (info, found)
    rows = [
        row
        for name, (info, found) in asked.items()
        for row in _row_others(name, info, found, own, runs, options.info)
    ]
    results.write(
        options,
        "generalise",
        rows,
        table=results.markdown([_shown(row) for row in rows]),
        said=[
            f"{len(runs)} seeds of fixed weights, {options.draws} settings tried by "
            f"validation, trained on {options.info.name} alone, and ridge regression "
            "on the same clips. Figures are means over the tasks that both sets have, "
            "intervals 95 % over sources. Sets have other clips, so rows of different "
            "sets are not compared by a test; RMSE supposes that raters used the scale "
            "alike."
        ],
        more={"chosen": chosen},
        figure=_figure(rows),
    )


def _check(run: run_lib.Run, info: schema.DatasetInfo, path: pathlib.Path) -> None:
    """Checks that a run can score a data set and be judged by its labels.

    Raises:
        InputError: naming a modality that is missing or was measured otherwise, or a
            task that is missing or has another range.
    """
    theirs = {one.name: one for one in info.schema.modalities}
    for one in run.schema.modalities:
        other = theirs.get(one.name)
        if other is None or dataclasses.replace(other, description="") != (
            dataclasses.replace(one, description="")
        ):
            said = "no such modality" if other is None else f"{other}"
            raise schema.InputError(
                f"{path} does not fit: trained on {one}, there {said}; measure both "
                "data sets in the same way"
            )
    ranges = {task.name: (task.low, task.high) for task in info.schema.tasks}
    for task in run.schema.tasks:
        if ranges.get(task.name, (task.low, task.high)) != (task.low, task.high):
            raise schema.InputError(
                f"{path} does not fit: {task.name} is {task.low:g} to {task.high:g} in "
                f"training and {ranges[task.name]} there"
            )
    if not any(task.name in ranges for task in run.schema.tasks):
        raise schema.InputError(
            f"{path} has none of the tasks {', '.join(run.schema.task_names)}"
        )


def _row_others(
    name: str,
    info: schema.DatasetInfo,
    found: Sequence[records.Clip],
    own: Mapping[str, Sequence[records.Clip]],
    runs: Sequence[run_lib.Run],
    mine: schema.DatasetInfo,
) -> list[dict[str, Any]]:
    """The rows of one data set."""
    common = [t for t in mine.schema.task_names if t in info.schema.task_names]
    here = [mine.schema.task_names.index(task) for task in common]
    there = [info.schema.task_names.index(task) for task in common]
    # Labels are not read when scoring, and may be of other tasks.
    blank = np.full(len(mine.schema.tasks), np.nan, np.float32)
    plain = [
        dataclasses.replace(
            clip,
            labels=blank,
            features={m: clip.features[m] for m in mine.schema.widths},
            frame_mask={m: clip.frame_mask[m] for m in mine.schema.widths},
        )
        for clip in found
    ]
    described = pipeline.describe(
        plain, runs[0].config.data.max_frames, runs[0].transforms
    )
    if not described.names:
        raise schema.InputError(f"{name} has no clip with a measured frame to test on")
    found, plain = ([part[n] for n in described.record] for part in (found, plain))
    scored = np.array([run.score(*run.windows(plain)) for run in runs])
    labels = np.array([clip.labels.astype(float)[there] for clip in found])
    train, test = ([*own["train"], *own["validation"]], plain)
    everything = table([*train, *test])
    sizes = np.cumsum([0, len(own["train"]), len(own["validation"]), len(test)])
    rows = dict(
        zip(
            schema.SPLITS,
            (np.arange(*sizes[at : at + 2]) for at in range(3)),
            strict=True,
        )
    )
    counts = statistics.resample_sources(described.sources)
    result = []
    for method, scores in (
        (NETWORK, scored),
        (RIDGE, ridge(everything, rows)[None]),
    ):
        row: dict[str, Any] = {"split": name, "method": method}
        row |= {"clips": len(found), "runs": len(scores), "tasks": len(common)}
        for metric in _METRICS:
            one = contrasts.estimate(
                statistics.mean_over_tasks(
                    [
                        intervals.figures(metric, scores[..., k], labels[:, j], counts)
                        for j, k in enumerate(here)
                    ]
                )
            )
            row[metric] = one["value"]
            row |= {f"{metric}_{key}": one[key] for key in ("sd", "low", "high")}
        result.append(row)
    return result


def _words(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    words = {
        "better": "higher",
        "worse": "lower",
        "no difference": "no difference that these runs show",
        "unclear": "unclear, one of two tests says so",
        "too few": "too few seeds or sources to tell",
    }
    return [
        f"{row['comparison']}, {row['figure']}: {words[row['verdict']]}."
        for row in tests
    ]


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in row.items():
        if key.endswith(("_low", "_high", "_sd")):
            continue
        if f"{key}_low" in row:
            ends = {end: row[f"{key}_{end}"] for end in ("low", "high")}
            value = contrasts.interval({"value": value, **ends})
        found[key] = value
    return found


def _shown_test(row: Mapping[str, Any]) -> dict[str, Any]:
    ends = {key: row[key] for key in ("low", "high")}
    return {
        "comparison": row["comparison"],
        "figure": row["figure"],
        "clips": row["clips"],
        "difference": contrasts.interval({"value": row["difference"], **ends}, "+"),
        "p (seeds)": row["p_seeds"],
        "p (clips)": row["p_clips"],
        "verdict": row["verdict"],
    }


def _figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    pyplot = figures.start()
    ways = list(dict.fromkeys(row["split"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    shown = [m for m in ("srcc", "within") if m in rows[0]]
    figure, axes = pyplot.subplots(
        1, len(shown), sharey=True, squeeze=False, layout="constrained"
    )
    figure.set_size_inches(4 * len(shown), 3.6)
    for metric, ax in zip(shown, axes[0], strict=True):
        for row in rows:
            if row.get(metric) is None:
                continue
            at = methods.index(row["method"])
            place = ways.index(row["split"]) + 0.2 * at - 0.2
            ax.plot(place, row[metric], "o", color=f"C{at}")
            if row[f"{metric}_low"] is not None:
                ends = [row[f"{metric}_low"], row[f"{metric}_high"]]
                ax.plot([place] * 2, ends, color=f"C{at}")
        ax.axhline(0, color="grey", lw=0.8)
        ax.set_xticks(range(len(ways)), ways, fontsize="small")
        ax.set_title("all clips" if metric == "srcc" else "within groups")
    for at, method in enumerate(methods):
        axes[0, 0].plot([], [], "o", color=f"C{at}", label=method)
    axes[0, 0].legend(fontsize="x-small")
    axes[0, 0].set_ylabel("SRCC, mean over tasks; 95 % over sources")
    figure.suptitle("What carries over")
    return figure


if __name__ == "__main__":
    sys.exit(main())
