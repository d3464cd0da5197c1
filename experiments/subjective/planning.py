r"""Says how many raters a paired comparison of two conditions needs.

    python -m experiments.subjective plan --effect=0.3 --comparisons=5
    python -m experiments.subjective plan --preference=0.6 --ties=0.2

With several comparisons the level of each is divided by their
number (Bonferroni), since 15 or 24 raters are rarely enough then (Brunnstrom and
Barkowsky 2018); Holm's correction, which the analysis uses, never needs more. Raters
are the sample: numbers are for the clips of the study, and more trials of a rater
cannot make up for raters who differ.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

from scipy import stats

from experiments.subjective import summary
from tqa_jax import schema

_MOST = 100_000  # raters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    effect: float | None = None
    """Difference of mean opinion scores to find, points."""
    preference: float | None = None
    """Share of decided answers that prefer A to find, such as 0.6."""
    sd_between: float = 0.3
    """Standard deviation over raters of their own A minus B, points."""
    sd_within: float = 0.8
    """Standard deviation of a rater's ratings of one clip, points."""
    correlation: float = 0.0
    """Correlation of a rater's noise in the two ratings of a pair."""
    ties: float = 0.2
    """Share of answers that prefer neither."""
    alike: float = 0.05
    """Correlation of a rater's preferences for A over trials."""
    power: float = 0.8
    """Chance of finding it."""
    alpha: float = 0.05
    """Chance of finding something where nothing is."""
    comparisons: int = 1
    """Tests that are corrected for, such as tasks."""
    trials: tuple[int, ...] = (5, 10, 20, 40)
    """Pairs that a rater compares."""
    json: bool = False
    """Print JSON, not a table."""


def run(options: Options) -> None:
    """Runs the command.

    Raises:
        schema.InputError: a number makes no sense.
    """
    _check(options)
    level = options.alpha / options.comparisons
    rows = []
    for trials in options.trials:
        row: dict[str, Any] = {"trials": trials}
        if options.effect is not None:
            sd = rating_sd(
                trials,
                between=options.sd_between,
                within=options.sd_within,
                correlation=options.correlation,
            )
            row |= _needed("ratings", abs(options.effect), sd, level, options.power)
        if options.preference is not None:
            mean, sd = preference_moments(
                trials, options.preference, ties=options.ties, alike=options.alike
            )
            row |= _needed("preferences", abs(mean), sd, level, options.power)
        rows.append(row)
    found: dict[str, Any] = {"level": level, "rows": rows}
    if options.preference is not None:
        found["independent_answers"] = sign_test_answers(
            options.preference, ties=options.ties, level=level, power=options.power
        )
    if options.json:
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        print(_page(options, found))


def rating_sd(
    trials: int, *, between: float, within: float, correlation: float
) -> float:
    """Computes the standard deviation over raters of their mean A minus B.

    Args:
        trials: pairs that a rater compares.
        between: standard deviation over raters of their own difference.
        within: standard deviation of a rater's ratings of one clip.
        correlation: of the noise of the two ratings of a pair.
    """
    return math.sqrt(between**2 + 2 * within**2 * (1 - correlation) / trials)


def preference_moments(
    trials: int, share: float, *, ties: float, alike: float
) -> tuple[float, float]:
    """Computes mean and standard deviation over raters of their mean preference.

    Args:
        trials: pairs that a rater compares.
        share: of decided answers that prefer A; an answer is 1 for A, -1 for B and 0
            for neither.
        ties: share of answers that prefer neither.
        alike: correlation of a rater's answers over trials.
    """
    mean = (1 - ties) * (2 * share - 1)
    variance = (1 - ties) - mean**2
    return mean, math.sqrt(variance * (1 + (trials - 1) * alike) / trials)


def t_test_power(effect: float, sd: float, raters: int, level: float) -> float:
    """Computes the power of a two-sided paired t-test.

    Args:
        effect: mean difference.
        sd: standard deviation over raters of their differences.
        raters: how many.
        level: of the test.
    """
    freedom, shift = raters - 1, effect / sd * math.sqrt(raters)
    limit = stats.t.ppf(1 - level / 2, freedom)
    upper = stats.nct.sf(limit, freedom, shift)
    lower = stats.nct.cdf(-limit, freedom, shift)
    # Far in its tail the distribution is not a number where it is 0.
    return float(upper + (lower if math.isfinite(lower) else 0.0))


def t_test_raters(
    effect: float, sd: float, *, level: float, power: float
) -> int | None:
    """Computes the smallest number of raters with a power; None beyond 100,000."""
    return _smallest(lambda n: t_test_power(effect, sd, n, level) >= power)


def sign_test_power(share: float, answers: int, *, ties: float, level: float) -> float:
    """Computes the power of an exact two-sided sign test, ties left out.

    Args:
        share: of decided answers that prefer A.
        answers: decided ones and ties, all independent.
        ties: share of answers that are ties.
        level: of the test.
    """
    total = 0.0
    spread = 6 * math.sqrt(answers * ties * (1 - ties)) + 1
    middle = answers * (1 - ties)
    first, last = max(0, int(middle - spread)), min(answers, int(middle + spread) + 1)
    for decided in range(first, last + 1):
        weight = stats.binom.pmf(decided, answers, 1 - ties)
        # The largest count whose tail is at most half the level.
        reject = stats.binom.ppf(level / 2, decided, 0.5) - 1
        if reject < 0:
            continue
        low = stats.binom.cdf(reject, decided, share)
        high = stats.binom.sf(decided - reject - 1, decided, share)
        total += weight * (low + high)
    return float(total)


def sign_test_answers(
    share: float, *, ties: float, level: float, power: float
) -> int | None:
    """Computes how many independent answers a sign test needs; None beyond 100,000.

    Its power falls now and then as answers are added, by a little; the number is the
    first from which on the next ten have the power too.
    """

    def enough(answers: int) -> bool:
        return all(
            sign_test_power(share, n, ties=ties, level=level) >= power
            for n in range(answers, answers + 10)
        )

    return _smallest(enough)


def _smallest(enough: Callable[[int], bool]) -> int | None:
    """The smallest number from 2 on that is enough, by bisection."""
    high = 2
    while not enough(high):
        if high >= _MOST:
            return None
        high = min(2 * high, _MOST)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _needed(
    name: str, effect: float, sd: float, level: float, power: float
) -> dict[str, Any]:
    raters = t_test_raters(effect, sd, level=level, power=power)
    reached = None if raters is None else t_test_power(effect, sd, raters, level)
    return {f"{name}_raters": raters, f"{name}_power": reached}


def _check(options: Options) -> None:
    if options.effect is None and options.preference is None:
        raise schema.InputError("give --effect, --preference or both")
    if options.effect == 0 or options.preference == 0.5:
        raise schema.InputError(
            "an --effect of 0, or a --preference of 0.5, is no difference to find"
        )
    for name, low, high in (
        ("preference", 0.0, 1.0),
        ("ties", 0.0, 0.99),
        ("alike", 0.0, 1.0),
        ("correlation", -1.0, 0.999),
        ("sd_between", 0.0, 100.0),
        ("sd_within", 0.001, 100.0),
        ("power", 0.05, 0.9999),
        ("alpha", 1e-6, 0.5),
        ("comparisons", 1, 10_000),
        ("effect", -100.0, 100.0),
    ):
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise schema.InputError(f"--{name} is {value}; expected {low} to {high}")
    if options.preference is not None and not 0 < options.preference < 1:
        raise schema.InputError("--preference must be between 0 and 1")
    for trials in options.trials:
        if not 1 <= trials <= 10_000:
            raise schema.InputError(f"--trials is {trials}; expected 1 to 10000")


def _page(options: Options, found: dict[str, Any]) -> str:
    head, names = ["pairs a rater"], []
    for name, given in (
        ("ratings", options.effect),
        ("preferences", options.preference),
    ):
        if given is not None:
            head += [f"raters, by {name}", "answers"]
            names.append(name)
    lines = []
    for row in found["rows"]:
        line = [str(row["trials"])]
        for name in names:
            raters = row[f"{name}_raters"]
            line += (
                [f"over {_MOST}", "-"]
                if raters is None
                else [str(raters), str(raters * row["trials"])]
            )
        lines.append(line)
    said = (
        f"Power {options.power:g} at level {found['level']:.4g}, two-sided: "
        f"{options.alpha:g} over {options.comparisons} comparisons."
    )
    parts = [said, summary.table(head, lines)]
    if "independent_answers" in found:
        count = found["independent_answers"]
        parts.append(
            "If all answers were independent, a sign test would need "
            f"{f'over {_MOST}' if count is None else count} of them, ties included."
        )
    return "\n\n".join(parts)
