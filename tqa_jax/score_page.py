"""A page about scored clips: scores, and a timeline over thumbnails.

The one thing to know: it is one file that asks for nothing from outside, and every
text in it that came from a user is escaped.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

HOP_SECONDS = 0.5
"""From one stretch of a timeline to the next."""

_THUMBNAILS = 8
_SIZE = 96  # pixels, of the longer side
_COLOURS = ("#0b6e99", "#b3541e", "#3f7d20", "#8e44ad", "#444444", "#a0522d")


def load_template() -> Any:
    """Reads the page's template, before any work that would be lost without it."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["place"] = place
    file = pathlib.Path(__file__).with_name("score_page.html.j2")
    return environment.from_string(file.read_text(encoding="utf-8"))


def page(
    template: Any,
    results: Sequence[Mapping[str, Any]],
    tasks: Sequence[Mapping[str, Any]],
    *,
    max_seconds: float,
) -> str:
    """Makes the page.

    Args:
        template: from `load_template`.
        results: of `score.score_files`.
        tasks: of the scorer's schema.
        max_seconds: that clips may last; as they were measured with.
    """
    from extract import decode, thumbnail

    clips = []
    for result in results:
        one = dict(result)
        if "error" not in result:
            try:
                one["thumbnails"] = thumbnail.strip(
                    pathlib.Path(result["clip"]),
                    _THUMBNAILS,
                    size=_SIZE,
                    max_seconds=max_seconds,
                )
            except decode.ClipError:  # The file went away since it was measured.
                one["thumbnails"] = []
            one["rows"] = [
                _row(result, task, _COLOURS[k % len(_COLOURS)])
                for k, task in enumerate(tasks)
            ]
        clips.append(one)
    return template.render(clips=clips)


def place(percentage: float) -> str:
    """Says which share of others is worse or better."""
    if percentage < 50:
        return f"lower than {100 - percentage:.0f} %"
    return f"higher than {percentage:.0f} %"


def decimals(task: Mapping[str, Any]) -> int:
    """Decimals that show a hundredth of a score on 1 to 5, and as much of others."""
    return max(0, 3 - math.ceil(math.log10(task["high"] - task["low"])))


def _row(
    result: Mapping[str, Any], task: Mapping[str, Any], colour: str
) -> dict[str, Any]:
    """One task of one clip, with its line in a drawing of 100 x 30 units."""
    name, low, high = task["name"], task["low"], task["high"]

    def across(seconds: float) -> float:
        return 100 * seconds / max(result["seconds"], 1e-9)

    def up(value: float) -> float:
        return 30 - 30 * (min(max(value, low), high) - low) / (high - low)

    # A line for each part of the clip that was measured.
    lines: list[list[Mapping[str, Any]]] = []
    for stretch in result["timeline"]:
        start = stretch["start"]
        if not lines or start > lines[-1][-1]["start"] + 1.5 * HOP_SECONDS:
            lines.append([])
        lines[-1].append(stretch)

    def drawn(line: Sequence[Mapping[str, Any]]) -> str:
        times = [(stretch["start"] + stretch["end"]) / 2 for stretch in line]
        levels = [up(stretch["scores"][name]) for stretch in line]
        if len(line) == 1:
            times, levels = [line[0]["start"], line[0]["end"]], levels * 2
        return " ".join(
            f"{across(time):.2f},{level:.2f}"
            for time, level in zip(times, levels, strict=True)
        )

    found = result["scores"][name]
    return {
        "name": name,
        "colour": colour,
        **found,
        "range": (low, high),
        "digits": decimals(task),
        "lines": [drawn(line) for line in lines],
        "level": up(found["value"]),
        "band": None
        if found["low"] is None
        else (up(found["high"]), up(found["low"]) - up(found["high"])),
    }
