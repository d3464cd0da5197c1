"""Which clips are compared: pairs from the user's table, or made from a list of clips.

The one thing to know: a clip is named by its path inside the folder of clips, and that
name is what the plan, the page and the answers call it. All problems of a table are
reported together.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from experiments.subjective import design, playable
from extract import csv_file, files
from tqa_jax import schema

KINDS = ("training", "practice", "trial", "control")
_ITEM_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
_MAX_PROBLEMS = 20


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two clips to compare.

    Attributes:
        item_id: its name.
        kind: one of `KINDS`. Training and practice come first and are not counted; a
            control is one clip twice.
        video_a: path of a clip inside the folder.
        video_b: path of the other one.
        condition_a: what made the first clip, for example a generator.
        condition_b: what made the second one.
        source: what both show, for example the speaker; empty when not known.
        feedback: what raters read after they have answered, in training.
    """

    item_id: str
    kind: str
    video_a: str
    video_b: str
    condition_a: str
    condition_b: str
    source: str = ""
    feedback: str = ""


def pairs(path: pathlib.Path, folder: pathlib.Path) -> list[Pair]:
    """Reads a table of pairs.

    Args:
        path: a CSV `item_id,video_a,video_b`, and if wanted `kind`, `condition_a`,
            `condition_b`, `source` and `feedback`.
        folder: of the clips.

    Returns:
        Pairs as listed. Without conditions these are `A` and `B`.

    Raises:
        InputError: when the table or a clip cannot be used.
    """
    clips = _Clips(path, folder)
    found, seen_ids, seen_pairs = [], set(), {}
    for number, row in csv_file.read(path, "item_id", "video_a", "video_b").rows:
        item_id, kind = row["item_id"], row.get("kind") or "trial"
        a, b = clips.find(row["video_a"], number), clips.find(row["video_b"], number)
        condition_a = row.get("condition_a") or "A"
        condition_b = row.get("condition_b") or "B"
        if not _ITEM_ID.fullmatch(item_id):
            clips.problem(
                number, f"item_id {item_id!r}; expected letters, digits and _ . : -"
            )
        if item_id in seen_ids:
            clips.problem(number, f"item_id {item_id!r} is there twice")
        if kind not in KINDS:
            clips.problem(number, f"kind {kind!r}; expected one of {', '.join(KINDS)}")
        if kind == "control":
            condition_b = condition_a
            if a != b:
                clips.problem(number, "a control is one clip twice, and these are two")
        elif a is not None and a == b:
            clips.problem(number, f"{a} is compared with itself; only a control may be")
        elif condition_a == condition_b:
            clips.problem(number, f"both clips are of the condition {condition_a!r}")
        key = frozenset((a, b))
        if a and b and key in seen_pairs:
            clips.problem(number, f"the same pair as {seen_pairs[key]!r}")
        seen_ids.add(item_id)
        seen_pairs[key] = item_id
        found.append(
            Pair(
                item_id,
                kind,
                a or "",
                b or "",
                condition_a,
                condition_b,
                row.get("source") or "",
                row.get("feedback") or "",
            )
        )
    clips.raise_problems()
    if any(row.condition_a != "A" or row.condition_b != "B" for row in found):
        _check_connected(path, found)
    return found


def pairs_of_clips(
    path: pathlib.Path, folder: pathlib.Path, *, partners: int, seed: int
) -> list[Pair]:
    """Reads a list of clips and pairs those of one source.

    Args:
        path: a CSV `clip`, and if wanted `source`, `condition` and `kind`. Other
            columns are left alone, so the labels of a data set will do.
        folder: of the clips.
        partners: with how many others each clip is compared, an even number; with all
            where a source has few.
        seed: of the order in which clips are paired.

    Returns:
        Pairs. Clips of one source and one condition are not compared; without a
        condition each clip is one of its own. `A` is the clip whose condition the list
        names first, so of two conditions it is the same one in all pairs.

    Raises:
        InputError: when the list or a clip cannot be used, or pairs fall into groups
            that nothing connects.
    """
    if partners < 2 or partners % 2:
        raise schema.InputError(
            f"--partners is {partners}; expected an even number, at least 2"
        )
    clips = _Clips(path, folder)
    lines = csv_file.read(path, "clip").rows
    by_source: dict[tuple[str, str], list[tuple[str, str]]] = {}
    seen: set[str] = set()
    rank: dict[str, int] = {}
    for number, row in lines:
        clip = clips.find(row["clip"], number)
        kind = row.get("kind") or "trial"
        if kind not in ("training", "practice", "trial"):
            clips.problem(
                number, f"kind {kind!r}; expected training, practice or trial"
            )
        if clip is None:
            continue
        if clip in seen:
            clips.problem(number, f"{clip} is there twice")
        seen.add(clip)
        condition = row.get("condition") or clip
        rank.setdefault(condition, len(rank))
        group = by_source.setdefault((kind, row.get("source") or ""), [])
        group.append((clip, condition))
    clips.raise_problems()
    rng = np.random.default_rng(seed)
    found = []
    for (kind, source), group in by_source.items():
        order = rng.permutation(len(group))
        for i, j in design.cycle(len(group), partners):
            both = [group[order[k]] for k in (i, j)]
            a, b = sorted(both, key=lambda one: rank[one[1]])
            if a[1] != b[1]:
                number = f"{len(found) + 1:04d}"
                found.append(
                    Pair(f"pair_{number}", kind, a[0], b[0], a[1], b[1], source)
                )
    _check_connected(path, found)
    return found


def _check_connected(path: pathlib.Path, found: Sequence[Pair]) -> None:
    """Refuses comparisons that cannot order all conditions."""
    edges = [
        (pair.condition_a, pair.condition_b) for pair in found if pair.kind == "trial"
    ]
    groups = design.groups(edges)
    if len(groups) > 1:
        raise schema.InputError(
            f"{path}: the pairs fall into {len(groups)} groups that no pair connects, "
            f"one with {min(groups[0])!r} and one with {min(groups[1])!r}, so their "
            "scores could not be compared; expected pairs between the groups, or "
            "conditions that several sources share"
        )


class _Clips:
    """Finds clips in a folder and collects what is wrong."""

    def __init__(self, path: pathlib.Path, folder: pathlib.Path) -> None:
        if not folder.is_dir():
            raise schema.InputError(f"no folder of clips at {folder}")
        self._path, self._folder, self._problems = path, folder, []
        self._refused: dict[str, str] = {}
        self._by_stem: dict[str, list[str]] = {}
        for file in files.videos(folder):
            if file.suffix.lower() in playable.SUFFIXES:
                inside = file.relative_to(folder)
                stem = inside.with_suffix("").as_posix()
                self._by_stem.setdefault(stem, []).append(inside.as_posix())

    def problem(self, line: int, text: str) -> None:
        self._problems.append(f"line {line}: {text}")

    def find(self, text: str, line: int) -> str | None:
        """Returns a clip's path inside the folder, None after a problem.

        It may be given without extension where that is unique.
        """
        inside = pathlib.PurePosixPath(text.replace("\\", "/"))
        if not text or inside.is_absolute() or ".." in inside.parts:
            self.problem(line, f"{text!r} is no path inside {self._folder}")
            return None
        name = inside.as_posix()
        if not (self._folder / inside).is_file():
            same = self._by_stem.get(name, [])
            if len(same) != 1:
                self.problem(
                    line,
                    f"{text!r} may be {' or '.join(same)}"
                    if same
                    else f"no clip {text!r} in {self._folder}",
                )
                return None
            name = same[0]
        if name not in self._refused:
            try:
                self._refused[name] = playable.problem(self._folder / name)
            except OSError as error:
                self._refused[name] = f"cannot be read ({error.strerror})"
        if self._refused[name]:
            self.problem(line, f"browsers do not play {name}: it {self._refused[name]}")
            return None
        return name

    def raise_problems(self) -> None:
        if self._problems:
            shown = "; ".join(self._problems[:_MAX_PROBLEMS])
            more = len(self._problems) - _MAX_PROBLEMS
            rest = f"; and {more} more" if more > 0 else ""
            hint = (
                "; `ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p -c:a aac OUT.mp4` makes "
                "clips that browsers play"
                if any(self._refused.values())
                else ""
            )
            raise schema.InputError(f"{self._path}: {shown}{rest}{hint}")
