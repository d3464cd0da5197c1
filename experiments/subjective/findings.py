"""Everything that the answers of a study say, as numbers with intervals.

The one thing to know: results are of all raters. What they would be without those whom
a screening rule names is computed beside them, and is never put in their place.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from experiments.subjective import (
    agreement,
    bradley_terry,
    contrast,
    model_agreement,
    opinions,
    screening,
    transitivity,
)
from experiments.subjective import ratings as ratings_lib
from tqa_jax import metrics

Row = dict[str, Any]


def analyse(
    answers: ratings_lib.Ratings,
    models: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    *,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Analyses the answers of a study.

    Args:
        answers: of all kinds.
        models: by name and task, scores of the clips; see `model_agreement`.
        resamples: of the bootstrap of model agreement.

    Returns:
        What `analysis.json` holds, other than the run's circumstances: `study`,
        `preferences`, `tasks`, `sides`, `conditions`, `screening`, `without`, `models`,
        and the rows of `clips.csv` and `raters.csv`.
    """
    trials = answers.trials()
    screened = screening.screen(answers)
    fit, preferences = _preferences(trials)
    tables = _tables(trials)
    without = []
    named = {rule: list(names) for rule, names in screened.named.items()}
    for rule, names in named.items():
        without.append({"rule": rule, "named": names})
        without[-1] |= _without(trials, names, fit, tables)
    return {
        "study": {
            "raters": len(np.unique(trials.rater)),
            "clips": len(np.unique(np.append(trials.left, trials.right))),
            "pairs": len(np.unique(trials.item)),
            "trials": len(trials.rater),
            "tasks": list(answers.tasks),
            "preferences_derived": answers.derived,
            "notes": list(answers.notes),
        },
        "preferences": preferences,
        "tasks": {
            task: _reliability(table) for task, table in zip(
                answers.tasks, tables, strict=True
            )
        },
        "sides": contrast.sides(trials),
        "conditions": contrast.conditions(trials),
        "screening": {"rules": screening.RULES, "named": named},
        "without": without,
        "models": model_agreement.compare(trials, models, resamples=resamples)
        if models
        else [],
        "clips": _clips(trials, fit, tables, screened),
        "raters": _raters(answers, screened, named),
    }  # fmt: skip


def fit_preferences(trials: ratings_lib.Ratings) -> bradley_terry.Fit | None:
    """Fits Bradley-Terry scores, None without a preference between two clips."""
    used = _decided(trials)
    if not len(used.rater):
        return None
    return bradley_terry.fit(
        used.left, used.right, used.preference, used.rater, clips=len(trials.clips)
    )


def _decided(trials: ratings_lib.Ratings) -> ratings_lib.Ratings:
    return trials.take(~np.isnan(trials.preference) & (trials.left != trials.right))


def _tables(trials: ratings_lib.Ratings) -> list[np.ndarray]:
    size = len(trials.raters), len(trials.clips)
    return [opinions.votes(trials, k).table(*size) for k in range(len(trials.tasks))]


def _preferences(
    trials: ratings_lib.Ratings,
) -> tuple[bradley_terry.Fit | None, Row]:
    used = _decided(trials)
    fit = fit_preferences(trials)
    if fit is None:
        return None, {"reason": "no answer prefers one of two clips"}
    size = {"raters": len(trials.raters), "clips": len(trials.clips)}
    columns = (used.left, used.right, used.preference)
    found = transitivity.triads(*columns, used.rater, **size)
    half, alone = fit.half_width(), fit.half_width(clustered=False)
    groups = [np.flatnonzero(fit.groups == g) for g in range(fit.groups.max() + 1)]
    notes = []
    if len(groups) > 1:
        notes.append(
            f"comparisons connect the clips in {len(groups)} groups only; scores of "
            "clips in different groups cannot be compared"
        )
    if fit.separated:
        notes.append(
            "the likelihood has no maximum, as when a clip is preferred always: a "
            f"normal prior with standard deviation {bradley_terry.PRIOR_SD:g} log odds "
            "keeps scores finite, and those of such clips depend on it"
        )
    if np.isnan(fit.bias):
        notes.append("clips were on one side always: no bias to a side can be told")
    judged = found.judged.sum()
    zeta = found.zeta[~np.isnan(found.zeta)]
    return fit, {
        "answers": len(used.rater),
        "left": int((used.preference == 1).sum()),
        "equal": int((used.preference == 0).sum()),
        "right": int((used.preference == -1).sum()),
        "groups": [[trials.clips[clip] for clip in group] for group in groups],
        "separated": fit.separated,
        "bias": _value(fit.bias, half[-2], "clips were on one side always"),
        "bias_if_independent": _value(fit.bias, alone[-2], "see bias"),
        "bias_p": _p(fit),
        "tie": _value(fit.tie, half[-1], "nobody chose equal"),
        "tie_share_of_equal_clips": float(np.exp(fit.tie) / (2 + np.exp(fit.tie))),
        "goodness": transitivity.goodness(fit, *columns),
        "triads": {
            "circular": int(found.circular.sum()),
            "judged": int(judged),
            "share": float(found.circular.sum() / judged) if judged else None,
            "by_chance": 0.25,
            "zeta": float(zeta.mean()) if len(zeta) else None,
            "zeta_raters": len(zeta),
            "majority_circular": found.majority_circular,
            "majority_judged": found.majority_judged,
        },
        "notes": notes,
    }


def _p(fit: bradley_terry.Fit) -> float | None:
    spread = np.sqrt(fit.covariance[-2, -2])
    if not spread > 0 or np.isnan(fit.half_width()[-2]):
        return None
    return float(2 * stats.t.sf(abs(fit.bias) / spread, fit.raters - 1))


def _reliability(table: np.ndarray) -> Row:
    correlation = agreement.correlation(table)
    return {
        "ratings": int((~np.isnan(table)).sum()),
        "alpha": agreement.alpha(table).to_json(),
        "icc_single": correlation.single.to_json(),
        "icc_mean": correlation.mean.to_json(),
        "icc_raters": correlation.raters,
        "icc_clips": correlation.clips,
    }


def _without(
    trials: ratings_lib.Ratings,
    names: Any,
    fit: bradley_terry.Fit | None,
    tables: list[np.ndarray],
) -> Row:
    """How far results move when some raters are left out."""
    rest = trials.without(names)
    row: Row = {"raters": len(np.unique(rest.rater))}
    moved, alphas = [], []
    for before, after in zip(tables, _tables(rest), strict=True):
        gaps = opinions.mean_opinions(after)[0] - opinions.mean_opinions(before)[0]
        moved += gaps[np.isfinite(gaps)].tolist()
        alphas.append(agreement.alpha(after, resamples=0).value)
    row["mos_moved_most"] = float(np.abs(moved).max()) if moved else None
    known = [value for value in alphas if value is not None]
    row["alpha_mean"] = float(np.mean(known)) if known else None
    again = fit_preferences(rest)
    row["score_moved_most"] = row["score_srcc"] = row["bias"] = None
    if fit is None or again is None:
        return row
    row["bias"] = float(again.bias) if np.isfinite(again.bias) else None
    both = np.isfinite(fit.scores) & np.isfinite(again.scores)
    # Scores are relative to a group's mean, so only equal groups compare.
    if both.any() and (fit.groups[both] == again.groups[both]).all():
        row["score_moved_most"] = float(np.abs(fit.scores - again.scores)[both].max())
        row["score_srcc"] = metrics.measure(
            "srcc", again.scores[both], fit.scores[both]
        ).value
    return row


def _clips(
    trials: ratings_lib.Ratings,
    fit: bradley_terry.Fit | None,
    tables: list[np.ndarray],
    screened: screening.Screening,
) -> list[Row]:
    rows: list[Row] = [{"clip": clip} for clip in trials.clips]
    shown = np.append(trials.left, trials.right)
    seen = np.bincount(shown, minlength=len(rows))
    signs = np.append(trials.preference, -trials.preference)
    for number, row in enumerate(rows):
        said = signs[shown == number]
        row |= {"shown": int(seen[number]), "preferred": int((said == 1).sum())}
        row |= {"equal": int((said == 0).sum()), "other": int((said == -1).sum())}
        half = np.nan if fit is None else fit.half_width()[number]
        score = np.nan if fit is None else fit.scores[number]
        row["group"] = None if fit is None else int(fit.groups[number])
        row |= _interval("score", score, half)
    for task, table in zip(trials.tasks, tables, strict=True):
        means, half, counts = opinions.mean_opinions(table)
        model = screened.models[task]
        for n, row in enumerate(rows):
            row |= {f"{task}_raters": int(counts[n])}
            row |= _interval(f"{task}_mos", means[n], half[n])
            quality, wide = model.quality[n], model.quality_half[n]
            row |= _interval(f"{task}_p910", quality, wide)
    return [row for row, count in zip(rows, seen, strict=True) if count]


def _raters(
    answers: ratings_lib.Ratings,
    screened: screening.Screening,
    named: Mapping[str, list[str]],
) -> list[Row]:
    rows = []
    for number, name in enumerate(answers.raters):
        row: Row = {"rater": name}
        rules = [rule for rule in screening.RULES if name in named[rule]]
        row["named_by"] = " ".join(rules)
        row |= {
            column: _plain(values[number])
            for column, values in screened.columns.items()
        }
        for task, model in screened.models.items():
            row |= _interval(
                f"{task}_bias", model.bias[number], model.bias_half[number]
            )
            row[f"{task}_inconsistency"] = _plain(model.inconsistency[number])
            row[f"{task}_inconsistency_low"] = _plain(model.inconsistency_low[number])
            row[f"{task}_inconsistency_high"] = _plain(model.inconsistency_high[number])
        rows.append(row)
    return rows


def _value(value: float, half: float, reason: str) -> Row:
    if not np.isfinite(value):
        return metrics.Value(None, reason).to_json()
    if not np.isfinite(half):
        return metrics.Value(float(value), "no interval: too few raters").to_json()
    ends = float(value - half), float(value + half)
    return metrics.Value(float(value), "", *ends).to_json()


def _interval(name: str, value: float, half: float) -> Row:
    return {
        name: _plain(value),
        f"{name}_low": _plain(value - half),
        f"{name}_high": _plain(value + half),
    }


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
