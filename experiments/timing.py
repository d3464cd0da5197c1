"""Side-by-side timing: ratios of interleaved runs, not absolute seconds.

The one thing to know: machines are noisy and drift, so every round runs every case
once, in an order that rotates, and a case is compared with the baseline of its own
round. The median over rounds and its interquartile range are what is reported.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tqdm

Value = str | float | int | None


@dataclasses.dataclass(frozen=True)
class Table:
    """What a benchmark found.

    Attributes:
        title: what was measured, at which size.
        rows: the same keys in each, which become the columns; None is an empty cell.
        note: what a reader of the numbers must know.
    """

    title: str
    rows: Sequence[Mapping[str, Value]]
    note: str = ""


def interleave(
    cases: Mapping[str, Callable[[], float | None]],
    rounds: int,
    *,
    pause_seconds: float = 0.0,
) -> dict[str, np.ndarray]:
    """Times every case once a round, after one round of warm-up.

    Args:
        cases: functions that return when their work is done: the seconds that it took,
            or None to have the call timed.
        rounds: number of rounds.
        pause_seconds: before each call, for threads of the last one to come to rest.

    Returns:
        Seconds of each round, by case.
    """
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in tqdm.trange(rounds + 1, unit="round", desc="timing"):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            time.sleep(pause_seconds)
            start = time.perf_counter()
            said = cases[name]()
            taken = time.perf_counter() - start if said is None else said
            if number:
                seconds[name].append(taken)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(values: np.ndarray, baseline: np.ndarray) -> tuple[float, float, float]:
    """Median and quartiles of the per-round ratio to a baseline."""
    low, middle, high = np.quantile(values / baseline, [0.25, 0.5, 0.75])
    return float(middle), float(low), float(high)


def compare(
    title: str, seconds: Mapping[str, np.ndarray], baseline: str, note: str = ""
) -> Table:
    """A table of ratios to a case.

    Args:
        title: of the table.
        seconds: of each round, by case; see `interleave`.
        baseline: the case that the others are divided by.
        note: for the reader, after what the ratios are to.

    Returns:
        Columns `case`, `ratio` (median of the ratios of each round), `low` and `high`
        (their quartiles) and `median_ms`.
    """
    rows = []
    for name, values in seconds.items():
        middle, low, high = ratio(values, seconds[baseline])
        rows.append(
            {
                "case": name,
                "ratio": middle,
                "low": low,
                "high": high,
                "median_ms": 1000 * float(np.median(values)),
            }
        )
    return Table(title, rows, f"Ratios are to {baseline}. {note}".strip())


def markdown(table: Table) -> str:
    """A table as Markdown, with four significant digits."""
    columns = list(table.rows[0])
    lines = [f"### {table.title}", ""]
    lines.append("| " + " | ".join(columns) + " |")
    lines.append("|" + "---|" * len(columns))
    for row in table.rows:
        if list(row) != columns:
            raise ValueError(f"row {list(row)} of {table.title!r}; expected {columns}")
        lines.append("| " + " | ".join(_cell(value) for value in row.values()) + " |")
    if table.note:
        lines += ["", table.note]
    return "\n".join(lines)


def _cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
