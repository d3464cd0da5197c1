"""Groups of clips: by source, by parts of their names, by a table, by what was planted.

The one thing to know: a column says the group of each clip that has one; a clip without
is in none. What cannot be a grouping (one group, a group for each clip, or the sources
under another name) is said and left out, but for the source, which is always there.
"""

import collections
import csv
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

from experiments.studying import command
from tqa_jax import schema

SOURCE = "source"
FLAW = "planted flaw"
# Columns of a labels CSV that group nothing.
_OTHER = ("clip", "split", SOURCE)
# Other names of the column that a table of THQA's kind may have, best first.
_GENERATOR = ("generator", "method", "model", FLAW)

Column = Mapping[str, str]  # From clip to group.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(command.Given):
    """The command line of a study of groups."""

    groups: pathlib.Path | None = None
    """CSV with the columns clip and one for each grouping, as fps or language."""
    pattern: str | None = None
    r"""Regular expression for the whole clip id, with a named group for each grouping,
    as '(?P<face>\d+)_voice_(?P<language>\w+)_\d+_(?P<generator>\w+)'."""


def read(
    given: Given,
    info: schema.DatasetInfo,
    sources: Column,
) -> tuple[dict[str, Column], list[str]]:
    """Finds the groupings of clips.

    Args:
        given: the options.
        info: of the data set; the demo set knows what was planted.
        sources: source of each clip.

    Returns:
        The groupings by name, that by source first, and a sentence for each that is
        none.

    Raises:
        InputError: for a pattern or a table that cannot be used.
    """
    columns: dict[str, Column] = {}
    if given.pattern:
        columns |= by_pattern(given.pattern, list(sources))
    if given.groups:
        twice = set(columns) & set(table := by_table(given.groups, sources))
        if twice:
            raise schema.InputError(
                f"--groups and --pattern both name {min(twice)!r}; rename one"
            )
        columns |= table
    columns |= planted(info, sources)
    found: dict[str, Column] = {SOURCE: sources}
    said = []
    for name, column in columns.items():
        values = set(column.values())
        if len(values) < 2:
            what = f"has one group, {min(values)!r}" if values else "is empty"
            said.append(f"Left out {name}: it {what}.")
        elif len(values) == len(column):
            said.append(f"Left out {name}: each clip is a group of its own.")
        elif _same(column, sources):
            said.append(f"Left out {name}: its groups are the sources.")
        else:
            found[name] = column
    return found, said


def _same(one: Column, other: Column) -> bool:
    """Whether two groupings of the same clips differ in names only."""
    pairs = {(group, other[clip]) for clip, group in one.items()}
    return one.keys() == other.keys() and len(pairs) == len(set(one.values())) == len(
        set(other.values())
    )


def by_pattern(pattern: str, clips: Sequence[str]) -> dict[str, Column]:
    """Groups by the named groups of a regular expression on the clip id.

    Raises:
        InputError: for an expression that is none, names nothing or fits no clip.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise schema.InputError(
            f"--pattern={pattern} is no regular expression: {error}"
        ) from error
    if not compiled.groupindex:
        raise schema.InputError(
            f"--pattern={pattern} has no named group; expected one for each grouping, "
            "as (?P<generator>...)"
        )
    if SOURCE in compiled.groupindex:
        raise schema.InputError(f"--pattern: the name {SOURCE!r} is taken; rename it")
    matches = {clip: compiled.fullmatch(clip) for clip in clips}
    if not any(matches.values()):
        raise schema.InputError(
            f"--pattern={pattern} fits no clip id; the first is {min(clips)!r}"
        )
    return {
        name: {c: m[name] for c, m in matches.items() if m is not None and m[name]}
        for name in compiled.groupindex
    }


def by_table(path: pathlib.Path, clips: Column) -> dict[str, Column]:
    """Groups by the columns of a CSV; an empty cell is no group.

    Raises:
        InputError: for a file that cannot be read, has no column `clip` or none
            beside, lists a clip twice, or knows none of the clips.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise schema.InputError(f"--groups={path} cannot be read: {error}") from error
    names = [name for name in header if name not in _OTHER]
    if "clip" not in header or not names:
        raise schema.InputError(
            f"--groups={path} has the columns {', '.join(header) or 'of nothing'}; "
            "expected clip and one or more others"
        )
    counts = collections.Counter(row["clip"] for row in rows)
    clip, most = counts.most_common(1)[0] if counts else ("", 0)
    if most > 1:
        raise schema.InputError(f"--groups={path} lists the clip {clip!r} twice")
    if not set(counts) & set(clips):
        raise schema.InputError(
            f"--groups={path} has none of the data set's clips; the first of those is "
            f"{min(clips)!r}"
        )
    return {
        name: {
            row["clip"]: row[name].strip()
            for row in rows
            if row["clip"] in clips and (row[name] or "").strip()
        }
        for name in names
    }


def planted(info: schema.DatasetInfo, clips: Column) -> dict[str, Column]:
    """What was planted in the clips of the demo set; nothing for other sets.

    A clip's group is its strongest flaw, or `none`.
    """
    made = info.provenance
    if made.get("tool") != "extract.demo":
        return {}
    try:
        # The plan names the measures of a clip, which needs what measures them.
        from extract.rendering import demo_plan
    except ModuleNotFoundError as error:
        raise schema.InputError(
            f"what was planted in the demo set is known to extract, which needs "
            f"{error.name}: pip install -e '.[extract]'"
        ) from error
    if made.get("demo_version") != demo_plan.VERSION:
        return {}
    plans = demo_plan.plan(made["clips"], made["seed"])
    kinds = {
        one.clip: max(one.strengths, key=one.strengths.__getitem__, default="none")
        for one in plans
    }
    return {FLAW: {clip: kinds[clip] for clip in clips if clip in kinds}}


def generator(columns: Mapping[str, Column], asked: str | None = None) -> str:
    """Chooses the grouping that stands for how clips were made.

    Args:
        columns: the groupings.
        asked: name of one, or None for that called generator, method or model, then
            the demo's planted flaw, then any, then the source.

    Raises:
        InputError: when there is none of that name.
    """
    if asked is not None:
        if asked not in columns:
            raise schema.InputError(
                f"--by={asked} is no grouping here; available: {', '.join(columns)}"
            )
        return asked
    lower = {name.lower(): name for name in columns}
    for name in _GENERATOR:
        if name in lower:
            return lower[name]
    return next((name for name in columns if name != SOURCE), SOURCE)
