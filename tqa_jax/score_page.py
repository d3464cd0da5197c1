"""A page about scored clips: scores, and a timeline over thumbnails.

The one thing to know: it is one file that asks for nothing from outside, and every
text in it that came from a user is escaped.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

_THUMBNAILS = 8
_SIZE = 96  # pixels, of the longer side
_COLOURS = ("#0b6e99", "#b3541e", "#3f7d20", "#8e44ad", "#444444", "#a0522d")


def load_template() -> Any:
    """Reads the page's template, before any work that would be lost without it."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
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


def _row(
    result: Mapping[str, Any], task: Mapping[str, Any], colour: str
) -> dict[str, Any]:
    """One task of one clip, with its line in a drawing of 100 x 30 units."""
    name, low, high = task["name"], task["low"], task["high"]

    def across(seconds: float) -> float:
        return 100 * seconds / max(result["seconds"], 1e-9)

    def up(value: float) -> float:
        return 30 - 30 * (min(max(value, low), high) - low) / (high - low)

    points = [
        (across((one["start"] + one["end"]) / 2), up(one["scores"][name]))
        for one in result["timeline"]
    ]
    found = result["scores"][name]
    return {
        "name": name,
        "colour": colour,
        **found,
        "range": (low, high),
        "line": " ".join(f"{x:.2f},{y:.2f}" for x, y in points),
        "points": points,
        "level": up(found["value"]),
        "band": None
        if found["low"] is None
        else (up(found["high"]), up(found["low"]) - up(found["high"])),
    }
