"""The page of a study: one HTML file out of a plan.

The one thing to know: the page may load videos beside it and nothing else; its policy
names its own script and style by their hashes.
"""

import base64
import hashlib
import html
import importlib.resources
import json
import string
from collections.abc import Mapping
from typing import Any


def render(plan: Mapping[str, Any]) -> str:
    """Returns the page: one HTML file that may load videos and nothing else.

    Everything that came from a user goes into the plan, which the script reads as data
    and shows as text.
    """
    style, script = _file("page.css"), _file("page.js")
    policy = "; ".join(
        [
            "default-src 'none'",
            "media-src 'self' file:",
            "img-src data:",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return string.Template(_file("page.html")).substitute(
        policy=policy,
        title=html.escape(plan["title"]),
        style=style,
        script=script,
        # A `<` could end the element that the data are in.
        plan=compact(plan).replace("<", "\\u003c"),
    )


def compact(value: Any) -> str:
    """Returns JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _file(name: str) -> str:
    files = importlib.resources.files("experiments.subjective")
    return files.joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
