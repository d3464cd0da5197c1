"""What a study writes: `NAME.csv`, `.json`, `.md` and `.png` in its folder.

The one thing to know: a difference counts as one when both tests say so after Holm's
correction, over seeds and over clips. If neither does, the table says "no difference",
which means none that these runs could show, not that there is none; if one of them
does, it says "unclear".
"""

import datetime
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studying import command
from tqa_jax import comparison, output, run_folder

Row = dict[str, Any]
_LEVEL = 0.05


def compare(cases: Mapping[str, Sequence[comparison.Outcome]]) -> list[Row]:
    """Compares every case with the first.

    Args:
        cases: what became of the runs of each.

    Returns:
        The rows of `comparison.compare`, each with a `verdict`: `better`, `worse`, `no
        difference`, `unclear` where the two tests disagree, or `too few` where one is
        undefined; empty for the first.
    """
    rows = comparison.compare([one for some in cases.values() for one in some])
    for number, row in enumerate(rows):
        row["verdict"] = verdict(row) if number else ""
    return rows


def verdict(row: Row) -> str:
    """Says what both tests of a difference say together."""
    tests = [row["p_seeds"], row["p_clips"]]
    if row["difference"] is None or None in tests:
        return "too few"
    if min(tests) >= _LEVEL:
        return "no difference"
    if max(tests) >= _LEVEL:
        return "unclear"
    return "better" if row["difference"] > 0 else "worse"


def compared(rows: Sequence[Row]) -> str:
    """The rows of `compare` as a Markdown table."""
    table = comparison.to_markdown(rows).splitlines()
    added = ["verdict", "---", *(row["verdict"] or "-" for row in rows)]
    return "\n".join(f"{a} {b} |" for a, b in zip(table, added, strict=True))


def markdown(rows: Sequence[Row]) -> str:
    """Any rows as a Markdown table: the keys of the first are the columns."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head)]
    lines += [[_text(row[key]) for key in head] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(
    options: command.Options,
    name: str,
    rows: Sequence[Row],
    *,
    table: str,
    said: Sequence[str],
    more: Mapping[str, Any] | None = None,
    figure: Any = None,
) -> None:
    """Writes and prints the results.

    Args:
        options: what the study was asked for.
        name: of the study.
        rows: of the CSV; all have the keys of the first.
        table: of the Markdown file.
        said: sentences under the table: what was compared, and what came out.
        more: goes into the JSON beside the rows.
        figure: of matplotlib, closed afterwards.
    """
    base = options.out / name
    output.write(_with(base, ".csv"), output.table_of(rows))
    found = {
        "study": name,
        "rows": list(rows),
        "said": list(said),
        "seeds": list(options.seeds),
        "draws": options.draws,
        "quick": options.quick,
        "data": {"name": options.info.name, "path": str(options.data)},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": run_folder.environment(),
        **(more or {}),
    }
    text = json.dumps(_finite(found), indent=1, allow_nan=False)
    output.write(_with(base, ".json"), text + "\n")
    page = "\n\n".join([table, *said])
    output.write(_with(base, ".md"), page + "\n")
    if figure is not None:
        from matplotlib import pyplot

        with output.atomic(_with(base, ".png")) as part:
            figure.savefig(part, dpi=150, format="png", bbox_inches="tight")
        pyplot.close(figure)
    print(page)
    print(*(_with(base, end) for end in (".csv", ".json", ".md", ".png")), sep="\n")


def summary(options: command.Options, rows: Sequence[Row]) -> list[str]:
    """Says how cases were compared, and names those that differ."""
    tries = f"{options.draws} settings" if options.draws > 1 else "no other settings"
    said = [
        f"{len(options.seeds)} seeds a case, each after {tries} tried by validation. "
        "Differences of the mean SRCC over tasks are to the first row, paired over "
        "seeds (p of a t-test) and over test clips (95 % interval and p of a bootstrap "
        "of sources), corrected by Holm over the rows."
    ]
    by_verdict: dict[str, list[str]] = {}
    for row in rows[1:]:
        by_verdict.setdefault(row["verdict"], []).append(row["case"])
    meanings = {
        "better": "Better than {}",
        "worse": "Worse than {}",
        "unclear": "Unclear, one of two tests tells from {}",
        "no difference": "No difference to {} that these runs show",
        "too few": "Too few seeds or sources to tell from {}",
    }
    for kind, meaning in meanings.items():
        if kind in by_verdict:
            names = ", ".join(by_verdict[kind])
            said.append(f"{meaning.format(rows[0]['case'])}: {names}.")
    return said


def _with(base: pathlib.Path, end: str) -> pathlib.Path:
    return base.with_name(base.name + end)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def _finite(value: Any) -> Any:
    """Replaces what JSON cannot hold by None."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
