"""Whether the analysis finds what simulated answers were made from.

The one thing to know: intervals of one simulated study are not independent, so a rate
is judged by its spread over repetitions. Rates are of careful raters alone and of all,
to show what careless ones do to results that keep them.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool

from experiments.subjective import findings, opinions, screening, summary, truth
from experiments.subjective import ratings as ratings_lib

QUANTITIES = {
    "mos": "mean opinion score of a clip",
    "p910": "quality of a clip, model of P.910",
    "bias": "bias of a rater",
    "inconsistency": "inconsistency of a rater",
    "score": "Bradley-Terry score of a clip",
    "score_independent": "the same, if answers were independent",
    "side_bias": "bias to the left",
    "tie": "weight of a tie",
}
_NOMINAL = 0.95


def measure(settings: truth.Settings, *, seed: int, repeats: int) -> dict[str, Any]:
    """Repeats a study with other clips and raters, and its analysis.

    Args:
        settings: of the study.
        seed: of all repetitions.
        repeats: how many.

    Returns:
        `settings`, `seed`, `repeats`; `coverage`, by `careful` and `all` raters and by
        quantity: `rate`, its standard error `se` over repetitions, and `intervals`; and
        `screening`, by rule: shares of careless (`found`) and of careful raters
        (`false_alarms`) that it names, None without such raters.
    """
    hits: dict[tuple[str, str], list[tuple[int, int]]] = {}
    rules = list(screening.RULES)
    named = {rule: np.zeros(2) for rule in rules}  # careless, careful
    for number in range(repeats):
        known, answers = truth.simulate(settings, np.random.default_rng([seed, number]))
        careful = answers.take(~known.careless[answers.rater])
        for group, some in (("careful", careful), ("all", answers)):
            for quantity, held in covered(known, some).items():
                found = int(held.sum()), held.size
                hits.setdefault((group, quantity), []).append(found)
        for rule, names in screening.screen(answers).named.items():
            at = np.isin(answers.raters, names)
            named[rule] += (at & known.careless).sum(), (at & ~known.careless).sum()
    careless = settings.careless * repeats
    rest = (settings.raters - settings.careless) * repeats
    return {
        "settings": dataclasses.asdict(settings),
        "seed": seed,
        "repeats": repeats,
        "coverage": {
            group: {quantity: _rate(hits[group, quantity]) for quantity in QUANTITIES}
            for group in ("careful", "all")
        },
        "screening": {
            rule: {
                "found": named[rule][0] / careless if careless else None,
                "false_alarms": named[rule][1] / rest,
            }
            for rule in rules
        },
    }


def covered(
    known: truth.Truth, answers: ratings_lib.Ratings
) -> dict[str, Bool[np.ndarray, " N"]]:
    """Says of every interval of a study whether it holds the truth.

    Args:
        known: the truth.
        answers: of some or all of its raters.

    Returns:
        By quantity, one entry an interval. Clips and raters without one do not count.
    """
    trials = answers.trials()
    raters, clips = len(answers.raters), len(answers.clips)
    there = np.bincount(trials.rater, minlength=raters) > 0
    found: dict[str, list[np.ndarray]] = {name: [] for name in QUANTITIES}

    def add(name: str, true: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        defined = np.isfinite(low) & np.isfinite(high)
        found[name].append(((low <= true) & (true <= high))[defined])

    for task in range(len(answers.tasks)):
        given = opinions.votes(trials, task)
        mean, half, _ = opinions.mean_opinions(given.table(raters, clips))
        add("mos", known.quality[:, task], mean - half, mean + half)
        model = opinions.rater_model(given, raters=raters, clips=clips)
        # The model's biases have mean 0: what the raters share is part of quality.
        bias = known.bias[:, task]
        shared = bias[there].mean()
        quality, wide = model.quality, model.quality_half
        add("p910", known.quality[:, task] + shared, quality - wide, quality + wide)
        low, high = model.bias - model.bias_half, model.bias + model.bias_half
        add("bias", bias - shared, low, high)
        low, high = model.inconsistency_low, model.inconsistency_high
        add("inconsistency", known.inconsistency, low, high)
    fit = findings.fit_preferences(trials)
    if fit is not None:
        true = np.append(known.scores, [known.side_bias, known.tie])
        estimate = np.append(fit.scores, [fit.bias, fit.tie])
        half = fit.half_width()
        low, high = estimate - half, estimate + half
        # Scores of clips that are not all connected have other means.
        if fit.groups.max() == 0 and fit.groups.min() == 0:
            add("score", true[:-2], low[:-2], high[:-2])
            alone = fit.half_width(clustered=False)
            low_alone, high_alone = estimate - alone, estimate + alone
            add("score_independent", true[:-2], low_alone[:-2], high_alone[:-2])
        add("side_bias", true[-2:-1], low[-2:-1], high[-2:-1])
        add("tie", true[-1:], low[-1:], high[-1:])
    nothing = np.empty(0, bool)
    return {name: np.concatenate([nothing, *some]) for name, some in found.items()}


def page(found: dict[str, Any]) -> str:
    """Writes what `measure` found as Markdown."""
    lines = []
    for quantity, text in QUANTITIES.items():
        careful, everybody = (
            found["coverage"][g][quantity] for g in ("careful", "all")
        )
        cells = [text, str(careful["intervals"]), _share(careful), _share(everybody)]
        lines.append([*cells, verdict(careful)])
    head = [
        "95 % interval of",
        "intervals",
        "hold the truth",
        "careless kept",
        "verdict",
    ]
    rows = []
    for rule, text in screening.RULES.items():
        row = found["screening"][rule]
        hit = "-" if row["found"] is None else f"{row['found']:.0%}"
        rows.append([text, hit, f"{row['false_alarms']:.1%}"])
    settings = found["settings"]
    said = (
        f"{found['repeats']} simulated studies: {settings['raters']} raters, "
        f"{settings['careless']} of them careless, {settings['trials']} trials each, "
        f"{settings['clips']} clips."
    )
    parts = ["# Recovery of a known truth", said, summary.table(head, lines)]
    parts.append(
        "Shares are of intervals, plus or minus a standard error over studies; the "
        "first and the verdict are of careful raters alone. A share is far from 95 % "
        "when it is more than 3 standard errors away."
    )
    parts.append(summary.table(["rule", "careless named", "careful named"], rows))
    return "\n\n".join(parts) + "\n"


def verdict(rate: dict[str, Any]) -> str:
    """Says whether a rate is far from 95 %."""
    if rate["rate"] is None or rate["se"] is None:
        return "too few"
    gap = rate["rate"] - _NOMINAL
    # Rates that never vary, such as 20 of 20, have no standard error of their own.
    least = np.sqrt(_NOMINAL * (1 - _NOMINAL) / rate["intervals"])
    if abs(gap) <= 3 * max(rate["se"], least):
        return "as nominal"
    return "too narrow" if gap < 0 else "too wide"


def _rate(hits: list[tuple[int, int]]) -> dict[str, Any]:
    held, sizes = np.array(hits, float).T
    if not sizes.sum():
        return {"rate": None, "se": None, "intervals": 0}
    rate = held.sum() / sizes.sum()
    spread = None
    if len(sizes) > 1:
        gaps = held - rate * sizes
        inflate = len(sizes) / (len(sizes) - 1)
        spread = float(np.sqrt(inflate * (gaps**2).sum()) / sizes.sum())
    return {"rate": float(rate), "se": spread, "intervals": int(sizes.sum())}


def _share(rate: dict[str, Any]) -> str:
    if rate["rate"] is None:
        return "-"
    spread = "" if rate["se"] is None else f" ± {100 * rate['se']:.1f}"
    return f"{100 * rate['rate']:.1f}{spread} %"
