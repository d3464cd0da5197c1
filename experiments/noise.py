"""Adds noise to the features of test clips: what it does to correlation and error.

    python -m experiments.noise --data=data/mine --seeds=5 --out=studies/noise

The one thing to know: nothing is trained on noise. Models with fixed, tuned weights are
trained once; then Gaussian noise is added to the raw features of one modality, or of
all, before preprocessing. Its deviation is that of the feature over the training frames
times 0.25 to 4. What was not measured stays so. A clip and a seed have one draw, which
is scaled, so that levels differ in the level only.

With --dropout the same is done to models that were trained otherwise: without modality
dropout if the base configuration has it, else with 0.2.
"""

import dataclasses
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.studying import (
    command,
    contrasts,
    figures,
    results,
    trials,
)
from tqa_jax import (
    batch,
    intervals,
    preprocess,
    records,
    schema,
    statistics,
)
from tqa_jax import run as run_lib
from tqa_jax.models import presets

LEVELS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
ALL = "all"
_QUICK_LEVELS = (0.0, 1.0, 4.0)
_OTHER_DROPOUT = 0.2
_ARMS = ("without modality dropout", "with modality dropout")
_METRICS = ("srcc", "rmse")
# By arm, input, level and metric: figures (S, 1 + R).
_Found = dict[tuple[str, str, float, str], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(command.Given):
    """The command line."""

    dropout: bool = False
    """Also compare with models of another modality dropout."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(_run, Given, arguments)


def noisy(
    clip: records.Clip,
    transforms: Mapping[str, preprocess.Transform],
    *,
    level: float,
    seed: int,
) -> records.Clip:
    """Adds noise to the features of a clip.

    Args:
        clip: the clip; NaN stays NaN.
        transforms: preprocessing, which knows the deviations; a constant feature has 0.
        level: deviation of the noise in deviations of the feature.
        seed: of the draw, with the names of modality and clip.
    """
    features = dict(clip.features)
    for name, transform in transforms.items():
        key = [seed, zlib.crc32(name.encode()), zlib.crc32(clip.clip.encode())]
        rows = clip.features[name]
        drawn = np.random.default_rng(key).standard_normal(rows.shape, np.float32)
        features[name] = rows + np.float32(level) * deviations(transform) * drawn
    return dataclasses.replace(clip, features=features)


def deviations(transform: preprocess.Transform) -> Float[np.ndarray, " D"]:
    """Standard deviation of each raw feature over the training frames."""
    constant = transform.scale == 0
    return np.where(constant, 0, 1 / np.where(constant, 1, transform.scale))


def _run(options: command.Options) -> None:
    levels = _QUICK_LEVELS if options.quick else LEVELS
    cases = _arms(options)
    chosen = trials.tune(
        options.base, cases, draws=options.draws, folder=options.out / "tuning"
    )
    trained = trials.run(
        options.base, chosen, seeds=options.seeds, folder=options.out / "runs"
    )
    clips = list(records.read_split(options.data, options.info, "test"))
    if not clips:
        raise schema.InputError(f"{options.data} has no test clips to add noise to")
    found: _Found = {}
    for arm, runs in trained.items():
        found |= _measure(arm, runs, clips, options.info.schema.tasks, levels)
    rows = table_rows(found)
    compared = _compare_arms(found, list(cases), levels)
    tables = [results.markdown([_shown(row) for row in rows])]
    if compared:
        tables.append(results.markdown([_shown(row) for row in compared]))
    results.write(
        options,
        "noise",
        rows,
        table="\n\n".join(tables),
        said=_said(options, rows, compared),
        more={"chosen": chosen, "arms": compared},
        figure=_figure(rows),
    )


def _arms(options: command.Options) -> dict[str, trials.Case]:
    fixed = trials.tuned_fixed(options)
    model = options.base.model
    usual = model.modality_dropout
    if usual is None:
        usual = presets.PRESETS[model.preset]["modality_dropout"]
    found = {_ARMS[bool(usual)]: fixed}
    if options.given.dropout:
        other = 0.0 if usual else _OTHER_DROPOUT
        changes = {**fixed.changes, "model.modality_dropout": other}
        found[_ARMS[bool(other)]] = trials.Case(changes, fixed.ranges)
    return found


def _measure(
    arm: str,
    runs: Sequence[trials.Trained],
    clips: Sequence[records.Clip],
    tasks: Sequence[schema.Task],
    levels: Sequence[float],
) -> _Found:
    """Figures of an arm by input, level and metric."""
    scores: dict[tuple[str, float], list[np.ndarray]] = {}
    for one in runs:
        run = run_lib.Run.load(one.folder)
        described, clean = run.windows(clips)
        plain = run.score(described, clean)
        run.check_scores(described, plain)
        for level in levels:
            _, changed = run.windows(
                [
                    noisy(clip, run.transforms, level=level, seed=one.seed)
                    for clip in clips
                ]
            )
            for name in (*run.transforms, ALL):
                mixed = changed if name == ALL else _mix(clean, changed, name)
                scored = run.score(described, mixed) if level else plain
                scores.setdefault((name, level), []).append(scored)
    counts = statistics.resample_sources(described.sources)
    labels = described.labels
    return {
        (arm, name, level, metric): statistics.mean_over_tasks(
            [
                intervals.figures(metric, np.array(some)[..., k], labels[:, k], counts)
                for k in range(len(tasks))
            ]
        )
        for (name, level), some in scores.items()
        for metric in _METRICS
    }


def _mix(clean: batch.Batch, changed: batch.Batch, name: str) -> batch.Batch:
    """The clean windows with the features of one modality changed."""
    return clean.replace(features=clean.features | {name: changed.features[name]})


def table_rows(found: _Found) -> list[dict[str, Any]]:
    """Turns figures into rows.

    Args:
        found: by arm, input, level and metric.

    Returns:
        A row for each arm, input and level: the figures with their intervals and, but
        for level 0, what they lost: `srcc_drop` and `rmse_rise`, p-values of the drop
        corrected over all rows of an arm, and a verdict.
    """
    rows = []
    for arm, name, level in dict.fromkeys(key[:3] for key in found):
        row: dict[str, Any] = {"arm": arm, "input": name, "level": level}
        row["seeds"] = len(found[arm, name, level, "srcc"])
        for metric in _METRICS:
            one = contrasts.estimate(found[arm, name, level, metric])
            row[metric] = one["value"]
            row |= {f"{metric}_{key}": one[key] for key in ("sd", "low", "high")}
        for metric, word, sign in (("srcc", "drop", -1), ("rmse", "rise", 1)):
            change = found[arm, name, level, metric] - found[arm, name, 0.0, metric]
            one = contrasts.estimate(sign * change)
            row[f"{metric}_{word}"] = one["value"] if level else None
            for key in ("low", "high"):
                row[f"{metric}_{word}_{key}"] = one[key] if level else None
            if metric == "srcc":
                row |= {k: one[k] if level else None for k in ("p_seeds", "p_clips")}
        rows.append(row)
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        statistics.correct(mine, ("p_seeds", "p_clips"))
    for row in rows:
        drop = row["srcc_drop"]
        better = {**row, "difference": None if drop is None else -drop}
        row["verdict"] = results.verdict(better) if row["level"] else ""
    return rows


def _compare_arms(
    found: _Found, arms: Sequence[str], levels: Sequence[float]
) -> list[dict[str, Any]]:
    """Whether the second arm loses less: mean drop over levels, second minus first."""
    if len(arms) < 2:
        return []
    rows = []
    for name in dict.fromkeys(key[1] for key in found):
        drops = [
            np.mean(
                [
                    found[arm, name, 0.0, "srcc"] - found[arm, name, level, "srcc"]
                    for level in levels
                    if level
                ],
                axis=0,
            )
            for arm in arms
        ]
        row: dict[str, Any] = {"input": name}
        for arm, drop in zip(arms, drops, strict=True):
            row[f"mean srcc_drop, {arm}"] = contrasts.estimate(drop)["value"]
        one = contrasts.estimate(drops[1] - drops[0])
        row |= {"difference": one.pop("value")} | one
        rows.append(row)
    statistics.correct(rows, ("p_seeds", "p_clips"))
    for row in rows:
        more = row["difference"]
        row["verdict"] = results.verdict(
            {**row, "difference": None if more is None else -more}
        )
    return rows


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for people: a figure and its interval in one cell."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if key.endswith(("_low", "_high", "_sd")) or key in ("low", "high", "sd"):
            continue
        ends = [f"{key}_low", f"{key}_high"]
        if key == "difference":
            ends = ["low", "high"]
        if ends[0] in row:
            low, high = (row[end] for end in ends)
            value = contrasts.interval({"value": value, "low": low, "high": high})
        if key == "level":
            value = f"{value:g}"
        found[key] = value
    return found


def _said(
    options: command.Options,
    rows: Sequence[Mapping[str, Any]],
    compared: Sequence[Mapping[str, Any]],
) -> list[str]:
    tries = f"{options.draws} settings" if options.draws > 1 else "no other settings"
    said = [
        f"Noise at test time only; {len(options.seeds)} seeds of fixed weights, after "
        f"{tries} tried by validation. Figures are means over tasks and seeds, with "
        "95 % intervals over sources. Drops are to the same runs without noise, paired "
        "over seeds and clips; p-values are corrected by Holm over the rows of an arm."
    ]
    first = rows[0]["arm"]
    for name in dict.fromkeys(row["input"] for row in rows):
        mine = [row for row in rows if (row["arm"], row["input"]) == (first, name)]
        hurt = [row["level"] for row in mine if row["verdict"] == "worse"]
        few = [row for row in mine if row["verdict"] == "too few"]
        unclear = [row["level"] for row in mine if row["verdict"] == "unclear"]
        if hurt:
            said.append(f"Noise on {name} lowers SRCC from level {min(hurt):g} on.")
        elif few:
            said.append(f"Too few seeds or sources to tell what noise on {name} does.")
        elif unclear:
            said.append(f"Noise on {name}: unclear, one of two tests says it matters.")
        else:
            said.append(f"No difference by noise on {name} that these runs show.")
    for row in compared:
        words = {
            "better": "loses less than the first",
            "worse": "loses more than the first",
            "unclear": "may lose otherwise than the first, one of two tests says",
            "no difference": "shows no difference to the first",
            "too few": "has too few seeds or sources to be told from the first",
        }
        said.append(
            f"By noise on {row['input']}, the second arm {words[row['verdict']]}."
        )
    return said


def _figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    pyplot = figures.start()
    inputs = list(dict.fromkeys(row["input"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    figure, axes = pyplot.subplots(
        2, len(inputs), sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    figure.set_size_inches(2.2 * len(inputs), 5)
    for metric, line in zip(_METRICS, axes, strict=True):
        for name, ax in zip(inputs, line, strict=True):
            for arm in arms:
                mine = [r for r in rows if (r["arm"], r["input"]) == (arm, name)]
                mine = [row for row in mine if row[metric] is not None]
                levels = [row["level"] for row in mine]
                ax.plot(levels, [row[metric] for row in mine], "o-", ms=3, label=arm)
                known = [row for row in mine if row[f"{metric}_low"] is not None]
                ax.fill_between(
                    [row["level"] for row in known],
                    [row[f"{metric}_low"] for row in known],
                    [row[f"{metric}_high"] for row in known],
                    alpha=0.2,
                )
            if metric == _METRICS[0]:
                ax.set_title(name, fontsize="small")
            else:
                ax.set_xlabel("noise, in deviations", fontsize="small")
        line[0].set_ylabel(f"test {metric.upper()}, mean over tasks", fontsize="small")
    if len(arms) > 1:
        axes[0, 0].legend(fontsize="x-small")
    figure.suptitle("Noise on the features of test clips; bands: 95 % over sources")
    return figure


if __name__ == "__main__":
    sys.exit(main())
