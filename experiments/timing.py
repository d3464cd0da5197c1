"""Side-by-side timing: ratios of interleaved runs, not absolute seconds.

The one thing to know: machines are noisy and drift, so every round runs every case
once, in an order that rotates, and a case is compared with the baseline of its own
round. The median over rounds and its interquartile range are what is reported.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np
import tqdm


def interleave(
    cases: Mapping[str, Callable[[], None]], rounds: int
) -> dict[str, np.ndarray]:
    """Times every case once a round, after one round of warm-up.

    Args:
        cases: functions that return when their work is done.
        rounds: number of rounds.

    Returns:
        Seconds of each round, by case.
    """
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in tqdm.trange(rounds + 1, unit="round", desc="timing"):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            cases[name]()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(values: np.ndarray, baseline: np.ndarray) -> tuple[float, float, float]:
    """Median and quartiles of the per-round ratio to a baseline."""
    low, middle, high = np.quantile(values / baseline, [0.25, 0.5, 0.75])
    return float(middle), float(low), float(high)


def table(seconds: Mapping[str, np.ndarray], baseline: str) -> str:
    """A Markdown table of ratios to a case, with the median time of each."""
    lines = [
        f"| case | ratio to {baseline} | quartiles | median ms |",
        "|---|---|---|---|",
    ]
    for name, values in seconds.items():
        middle, low, high = ratio(values, seconds[baseline])
        lines.append(
            f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} | "
            f"{1000 * float(np.median(values)):.1f} |"
        )
    return "\n".join(lines)
