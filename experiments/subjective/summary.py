"""What an analysis found, as a Markdown page and a figure.

The one thing to know: a test that finds nothing is said to have found nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.subjective import screening

Row = Mapping[str, Any]
_LEVEL = 0.05
_NAMES = {"preference": "preference (1 for all, -1 for none)"}


def page(found: Mapping[str, Any]) -> str:
    """Writes the page.

    Args:
        found: from `findings.analyse`.
    """
    study = found["study"]
    parts = [
        "# Answers of raters",
        f"{study['raters']} raters gave {study['trials']} answers about "
        f"{study['pairs']} pairs of {study['clips']} clips.",
        "\n".join(f"- {note}" for note in study["notes"]),
        "## Preferences",
        *_preferences(found["preferences"]),
        "## Clips",
        _clips(found),
        "In brackets 95 % intervals: over raters for Bradley-Terry scores (log odds, "
        "clustered) and mean opinion scores. `clips.csv` has quality by the model of "
        "ITU-T P.910 as well.",
        "## Agreement of raters",
        _agreement(found["tasks"]),
        "Krippendorff's alpha (interval data; bootstrap of clips) and intraclass "
        "correlations (absolute agreement, both effects random) of a full block.",
        "## Left against right",
        _contrast(found["sides"], "left", "right"),
        "## A against B",
        _contrast(found["conditions"], "A", "B"),
        "This says something only if A and B are the same two conditions in all pairs.",
        "## Raters who stand out",
        _screening(found),
        "Results above are with all raters. The columns say how far they move without "
        "those named.",
    ]
    if found["models"]:
        parts += ["## Model scores", *_models(found["models"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def figure(found: Mapping[str, Any]) -> Any:
    """Draws scores and mean opinions of clips, and bias and inconsistency of raters."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    clips, tasks = _ordered(found), found["study"]["tasks"]
    task = "overall" if "overall" in tasks else tasks[0] if tasks else None
    drawn, (scores, means, raters) = pyplot.subplots(
        1, 3, figsize=(13, 2 + 0.22 * len(clips)), layout="constrained"
    )
    _bars(scores, clips, "score")
    scores.set_yticks(range(len(clips)), [row["clip"] for row in clips], fontsize=7)
    scores.set_xlabel("Bradley-Terry score, log odds")
    scores.axvline(0, color="grey", lw=0.8)
    if task:
        _bars(means, clips, f"{task}_mos")
        means.set_yticks([])
        means.set_xlabel(f"mean opinion score, {task}")
    means.invert_yaxis()
    scores.invert_yaxis()
    for row in found["raters"]:
        if row["bias"] is None:
            continue
        colour = "C3" if row["named_by"] else "C0"
        raters.plot(row["bias"], row["inconsistency"], "o", color=colour, ms=4)
        if row["named_by"]:
            at = row["bias"], row["inconsistency"]
            raters.annotate(f" {row['rater']}", at, fontsize=7)
    raters.set_xlabel("bias of a rater, points")
    raters.set_ylabel("inconsistency of a rater, points")
    raters.set_title("red: named by a screening rule", fontsize=9)
    return drawn


def _bars(axes: Any, clips: Sequence[Row], name: str) -> None:
    for place, row in enumerate(clips):
        if row[name] is None:
            continue
        axes.plot(row[name], place, "o", color="C0", ms=4)
        if row[f"{name}_low"] is not None:
            axes.plot(
                [row[f"{name}_low"], row[f"{name}_high"]], [place] * 2, color="C0"
            )


def _ordered(found: Mapping[str, Any]) -> list[Row]:
    def best_first(row: Row) -> tuple[float, float, str]:
        group = row["group"] if row["group"] is not None and row["group"] >= 0 else 1e9
        return (group, -(row["score"] if row["score"] is not None else 0), row["clip"])

    return sorted(found["clips"], key=best_first)


def _preferences(said: Row) -> list[str]:
    if "reason" in said:
        return [f"None: {said['reason']}."]
    lines = [
        f"{said['answers']} preferences: {said['left']} left, {said['equal']} equal, "
        f"{said['right']} right. Bias to the left: {cell(said['bias'])} log odds"
        + (f" (p = {said['bias_p']:.3f})." if said["bias_p"] is not None else ".")
    ]
    fits = said["goodness"]
    if fits.get("p") is None:
        lines[0] += f" Fit not tested: {fits['reason']}."
    else:
        verdict = "do not fit" if fits["p"] < _LEVEL else "fit"
        lines[0] += (
            f" Bradley-Terry scores {verdict}: deviance {fits['deviance']:.0f} on "
            f"{fits['freedom']} degrees of freedom, p = {fits['p']:.3f}."
        )
    triads = said["triads"]
    if triads["judged"]:
        lines.append(
            f"{triads['circular']} of {triads['judged']} triads that a rater decided "
            f"are circular ({triads['share']:.0%}; 25 % by chance); of triads by "
            f"majority {triads['majority_circular']} of {triads['majority_judged']}."
        )
    else:
        lines.append("No rater decided all pairs of three clips: no circular triads.")
    return lines + [f"{note[:1].upper()}{note[1:]}." for note in said["notes"]]


def _clips(found: Mapping[str, Any]) -> str:
    tasks = found["study"]["tasks"]
    head = ["clip", "preferred", "equal", "other", "Bradley-Terry", *tasks]
    lines = []
    for row in _ordered(found):
        cells = [row["clip"], *(str(row[n]) for n in ("preferred", "equal", "other"))]
        cells.append(_bracket(row, "score"))
        lines.append(cells + [_bracket(row, f"{task}_mos") for task in tasks])
    return table(head, lines)


def _agreement(tasks: Mapping[str, Row]) -> str:
    lines = []
    for task, row in tasks.items():
        block = f"{row['icc_raters']} x {row['icc_clips']}"
        values = [cell(row[n]) for n in ("alpha", "icc_single", "icc_mean")]
        lines.append([task, str(row["ratings"]), *values, block])
    return table(["task", "n", "alpha", "ICC(2,1)", "ICC(2,k)", "block"], lines)


def _contrast(rows: Sequence[Row], one: str, other: str) -> str:
    lines = []
    for row in rows:
        name = _NAMES.get(row["measure"], row["measure"])
        if row["p"] is None:
            verdict = row["reason"]
        elif row["p_holm"] >= _LEVEL:
            verdict = "no difference shown"
        else:
            verdict = f"{one if row['value'] > 0 else other} higher"
        tests = [_number(row[n], 3) for n in ("p_holm", "p_wilcoxon")]
        values = [_bracket(row, ""), _number(row["effect"])]
        lines.append([name, str(row["raters"]), *values, *tests, verdict])
    head = [f"{one} minus {other}", "raters", "mean", "d", "p (Holm)", "p (Wilcoxon)"]
    return table([*head, "verdict"], lines)


def _screening(found: Mapping[str, Any]) -> str:
    lines = []
    for row in found["without"]:
        names = ", ".join(row["named"]) or "nobody"
        moved = [
            _number(row[n])
            for n in ("mos_moved_most", "score_moved_most", "alpha_mean")
        ]
        lines.append([screening.RULES[row["rule"]], names, str(row["raters"]), *moved])
    head = ["rule", "named", "raters left", "largest move of a MOS"]
    return table([*head, "of a score", "mean alpha"], lines)


def _models(rows: Sequence[Row]) -> list[str]:
    names = {
        "plcc": "PLCC",
        "srcc": "SRCC",
        "rmse": "RMSE",
        "pairs": "preferences right",
        "pairs_half": "with ties as half",
        "different": "AUC different",
        "better": "AUC better",
    }
    lines = []
    for key in dict.fromkeys((row["model"], row["task"]) for row in rows):
        mine = {r["metric"]: r for r in rows if (r["model"], r["task"]) == key}
        values = [cell(mine[metric]) for metric in names]
        lines.append([*key, str(mine["plcc"]["clips"]), *values])
    parts = [
        table(["model", "task", "clips", *names.values()], lines),
        "Intervals are over resamples of raters and clips. Scores are taken as they "
        "are, without a fitted mapping.",
    ]
    compared = [row for row in rows if row.get("p") is not None]
    if compared:
        lines = [
            [
                row["model"],
                row["task"],
                names[row["metric"]],
                _bracket(row, "difference"),
                _number(row["p_holm"], 3),
                "different" if row["p_holm"] < _LEVEL else "no difference shown",
            ]
            for row in compared
        ]
        head = [
            "model",
            "task",
            "metric",
            "minus the first model",
            "p (Holm)",
            "verdict",
        ]
        parts.append(table(head, lines))
    return parts


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars in names are escaped."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(
        "| " + " | ".join(text.replace("|", "\\|") for text in row) + " |"
        for row in rows
    )


def cell(entry: Row) -> str:
    """A value with its interval, or a dash and the reason."""
    if entry["value"] is None:
        return f"- ({entry['reason']})"
    return _bracket(entry, "")


def _bracket(row: Row, name: str) -> str:
    """`1.23 [1.00, 1.46]` of NAME, NAME_low, NAME_high; or of value, low, high."""
    keys = (name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high")
    value, low, high = (row[key] for key in keys)
    if value is None:
        return "-"
    if low is None:
        return f"{value:.2f}"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
