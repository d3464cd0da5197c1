"""Which flaws are planted into which copies of a clip, how strongly, and the labels.

The one thing to know: a clip gets one flawless copy and others with at most one flaw of
the sound and one of the picture, so that each can be measured on the finished file.
What a copy gets depends on the seed, the clip's id and the flaws that are asked for,
not on the other clips, but for whose sound is swapped in.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import tqa_jax
from extract import encode
from extract.degrading import flaws
from extract.rendering import demo_plan
from tqa_jax import schema

VERSION = 1  # of copies and labels; counts up with any change to them
SOUND = ("offset", "swap", "noise", "band_limit", "clipping")
PICTURE = ("blur", "compression", "freeze", "jitter", "damping")
FLAWS = SOUND + PICTURE
LEAST = 0.15  # strength of a planted flaw
MEANINGS: Mapping[str, str] = {
    **{flaw: demo_plan.MEANINGS[flaw] for flaw in FLAWS},
    "swap": "share of the clip whose sound is replaced by another clip's, as loud",
    "damping": "movement of brows, forehead, cheeks and nose, and slow movement of the "
    "mouth's corners, x (1 - strength)",
}
_CODEC = [encode.VIDEO, encode.SAME_BYTES]
FILE = "provenance.json"  # beside `labels.csv`
LABELS = "labels.csv"


@dataclasses.dataclass(frozen=True)
class Original:
    """A clip that flaws are planted into.

    Attributes:
        path: the video file.
        clip: its id.
        source: the speaker or source video.
        split: of `schema.SPLITS`.
        content: digest of the file.
    """

    path: pathlib.Path
    clip: str
    source: str
    split: str
    content: str


@dataclasses.dataclass(frozen=True)
class Copy:
    """A degraded copy of a clip.

    Attributes:
        original: what it is made from.
        number: 0 for the flawless copy.
        seed: of all that is drawn when the flaws are planted.
        strengths: planted flaws, of `FLAWS`, in 0..1.
        other: whose sound is swapped in.
    """

    original: Original
    number: int
    seed: int
    strengths: Mapping[str, float]
    other: Original | None = None

    @property
    def key(self) -> str:
        """Digest of everything that the copy's file depends on."""
        return _digest(
            [VERSION, _CODEC, self.original.content, self.seed]
            + [dict(self.strengths), self.other and self.other.content]
        )


def draw(
    originals: Sequence[Original], per_clip: int, chosen: Sequence[str], seed: int
) -> tuple[Copy, ...]:
    """Draws the copies of each clip; equal arguments give equal copies.

    Args:
        originals: usable clips.
        per_clip: copies of each, the flawless one among them.
        chosen: flaws to plant, of `FLAWS`.
        seed: another seed gives other flaws.
    """
    copies = []
    for original in originals:
        # Sound from another split would carry what training must not know.
        others = [
            item
            for item in originals
            if item.split == original.split and item.content != original.content
        ]
        for number in range(per_clip):
            text = f"{VERSION}:{seed}:{original.clip}:{number}"
            own = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
            rng = np.random.default_rng(own)
            strengths, other = {}, None
            if number:
                possible = [flaw for flaw in chosen if flaw != "swap" or others]
                strengths = _strengths(possible, rng)
            if "swap" in strengths:
                other = others[int(rng.integers(len(others)))]
            copies.append(Copy(original, number, own, strengths, other))
    return tuple(copies)


def _strengths(possible: Sequence[str], rng: np.random.Generator) -> dict[str, float]:
    """Draws a flaw of the sound, one of the picture, or both, and how strong."""
    groups = [[flaw for flaw in kind if flaw in possible] for kind in (SOUND, PICTURE)]
    used = int(rng.integers(3))  # 0: sound, 1: picture, 2: both
    drawn = [g for at, g in enumerate(groups) if g and used in (at, 2)]
    drawn = drawn or [g for g in groups if g]
    strengths = {}
    for group in drawn:
        flaw = group[int(rng.integers(len(group)))]
        strength = float(rng.uniform(LEAST, 1.0))
        if flaw == "offset":  # whole frames
            strength = round(strength * flaws.MAX_OFFSET) / flaws.MAX_OFFSET
        strengths[flaw] = strength
    return strengths


def check(per_clip: int, chosen: Sequence[str], seed: int) -> None:
    """Checks what the copies are drawn by.

    Raises:
        schema.InputError: for an unknown or repeated flaw, or a useless number.
    """
    unknown = [flaw for flaw in chosen if flaw not in FLAWS]
    if unknown or not chosen:
        raise schema.InputError(
            f"unknown flaw {''.join(unknown[:1])!r}; available: {', '.join(FLAWS)}"
        )
    if len(set(chosen)) < len(chosen):
        raise schema.InputError(f"a flaw is asked for twice: {','.join(chosen)}")
    if per_clip < 2:
        raise schema.InputError(
            f"{per_clip} copies of a clip; expected at least 2, the first is flawless"
        )
    if seed < 0:
        raise schema.InputError(f"seed is {seed}; expected 0 or more")


def provenance(labels: pathlib.Path) -> dict[str, Any] | None:
    """Reads what a labels file is made of, where it was made by planting flaws.

    Args:
        labels: a labels CSV.

    Returns:
        The content of the `provenance.json` beside it, None where there is none.

    Raises:
        schema.InputError: it belongs to another version of the labels file.
    """
    path = pathlib.Path(labels).with_name(FILE)
    if not path.is_file() or not pathlib.Path(labels).is_file():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise schema.InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(about, dict) or about.get("tool") != "extract.degrade":
        return None
    found = hashlib.sha256(pathlib.Path(labels).read_bytes()).hexdigest()
    if about.get("labels_sha256") != found:
        raise schema.InputError(
            f"{labels} is not the file that {path} describes; restore it, or remove "
            f"{FILE} if the labels are ratings"
        )
    return about


def describe(
    request: str, labels: str, *, per_clip: int, chosen: Sequence[str], seed: int
) -> dict[str, Any]:
    """Says what the copies are, what each flaw means and how labels follow.

    Args:
        request: digest of all that the copies depend on.
        labels: content of the labels file.
        per_clip: copies of each clip.
        chosen: flaws that were planted.
        seed: of the draw.
    """
    return {
        "kind": "degradation",
        "description": "clips with planted flaws; the labels are functions of the "
        "flaws' strengths, not opinions of people",
        "tool": "extract.degrade",
        "tool_version": tqa_jax.__version__,
        "degrade_version": VERSION,
        "per_clip": per_clip,
        "seed": seed,
        "label": "1 + 4 * product over flaws of (1 - penalty * strength)",
        "penalties": {flaw: dict(demo_plan.PENALTIES[flaw]) for flaw in chosen},
        "flaws": {flaw: MEANINGS[flaw] for flaw in chosen},
        "video_codec": {"name": "libx264", "pixels": "yuv420p", "fps": flaws.FPS}
        | encode.VIDEO
        | {"x264-params": encode.SAME_BYTES},
        "audio_codec": {"name": "flac", "rate": flaws.RATE, "channels": 1, "bits": 16},
        "request": request,
        "labels_sha256": hashlib.sha256(labels.encode()).hexdigest(),
    }


def request(
    originals: Sequence[Original], per_clip: int, chosen: Sequence[str], seed: int
) -> str:
    """Returns a digest of everything that a folder of copies depends on."""
    listed = [(o.clip, o.source, o.split, o.content) for o in originals]
    return _digest([VERSION, _CODEC, listed, per_clip, sorted(chosen), seed])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
