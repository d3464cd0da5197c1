"""How far a score may be off: split-conformal intervals and what spread is worth.

The one thing to know: the half-width of an interval is a quantile of errors on clips
that were not trained on. Its coverage is exact for clips that are exchangeable with
those and took no part in any choice. Validation clips chose the best epoch and come
from few people, so 95 % is the aim and `coverage` on test clips what came of it.
Nothing is said of other material.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tqa_jax import intervals, metrics, schema, statistics

LEVEL = 0.95
"""Share of clips whose label lies within the interval."""


def half_width(errors: Float[np.ndarray, " N"], level: float = LEVEL) -> float | None:
    """Split-conformal half-width (Lei et al., JASA 2018, algorithm 2).

    Args:
        errors: absolute errors on calibration clips.
        level: coverage in 0..1.

    Returns:
        The ceil((N + 1) level)-th smallest error; None when N is too small for any
        finite interval to have that coverage (N < 19 for 0.95).
    """
    place = math.ceil((len(errors) + 1) * level - 1e-9)
    if place > len(errors):
        return None
    return float(np.sort(errors)[place - 1])


def risk_coverage(
    errors: Float[np.ndarray, " N"], spread: Float[np.ndarray, " N"], points: int = 10
) -> list[dict[str, float]]:
    """Error of the clips that remain when the least certain are left out.

    Args:
        errors: of test clips.
        spread: of the same clips' scores; the larger, the less certain.
        points: of the curve.

    Returns:
        `coverage` (share kept) and `rmse` of each point, from few clips to all. A
        spread that means something gives a rising curve.
    """
    order = np.argsort(spread, kind="stable")
    squares = np.cumsum(np.square(errors[order])) / np.arange(1, len(errors) + 1)
    found = []
    for share in np.linspace(1 / points, 1, points):
        kept = max(1, round(share * len(errors)))
        found.append(
            {"coverage": kept / len(errors), "rmse": math.sqrt(squares[kept - 1])}
        )
    return found


def report(
    *,
    validation: tuple[Float[np.ndarray, "V K"], Float[np.ndarray, "V K"]],
    test: tuple[Float[np.ndarray, "N K"], Float[np.ndarray, "N K"]],
    spread: Float[np.ndarray, "N K"] | None,
    sources: Sequence[str],
    tasks: Sequence[schema.Task],
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> dict[str, Any]:
    """Calibrates on validation clips and says what held on test clips.

    Args:
        validation: scores and labels, NaN for missing.
        test: likewise.
        spread: standard deviation of each test score over members or dropout draws.
        sources: of the test clips, which the coverage's interval is clustered by.
        tasks: of the data set.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        level: coverage in 0..1.

    Returns:
        `level`, and by task: `half_width` (None beside a `reason` where there are too
        few clips), `calibration_clips`; where there are test labels, `coverage` with
        `value`, `low`, `high`; and with a spread `mean_spread` and `risk_coverage`.
    """
    found: dict[str, Any] = {"level": level, "tasks": {}}
    for k, task in enumerate(tasks):
        errors, have = _errors(*validation, k)
        width = half_width(errors, level)
        one: dict[str, Any] = {"half_width": width, "calibration_clips": len(errors)}
        test_errors, there = _errors(*test, k)
        if width is None:
            one["reason"] = (
                f"{len(errors)} labelled validation clips; "
                f"{math.ceil(level / (1 - level) - 1e-9)} are needed"
            )
        elif len(test_errors):
            names = np.asarray(sources)[there]
            covered = (test_errors <= width).astype(float)
            counts = statistics.resample_sources(names, resamples, seed)
            # The share of clips inside is an accuracy.
            inside = metrics.Prepared(covered, np.ones_like(covered), "")
            one["coverage"] = intervals.interval(
                "accuracy3", inside, counts, names
            ).to_json()
        if spread is not None and len(test_errors):
            column = spread[there, k]
            one["mean_spread"] = float(column.mean())
            one["risk_coverage"] = risk_coverage(test_errors, column)
        found["tasks"][task.name] = one
    return found


def _errors(
    scores: Float[np.ndarray, "N K"], labels: Float[np.ndarray, "N K"], k: int
) -> tuple[np.ndarray, np.ndarray]:
    there = np.isfinite(labels[:, k])
    return np.abs(scores[there, k] - labels[there, k]), there
