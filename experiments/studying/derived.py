"""Data sets made of another one, with labels, features, splits or tasks changed.

The one thing to know: a derived set is made once. It says in its provenance what it was
made of and how, and the same call takes the set that is there; so what a change does
must be told in full by its description and `content`.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqa_jax import records, schema

Pair = tuple[str, records.Clip]
Change = Callable[[str, records.Clip], Pair | None]


def make(
    source: pathlib.Path,
    out: pathlib.Path,
    change: Change,
    *,
    description: str,
    content: bytes = b"",
    schema: schema.Schema | None = None,
) -> pathlib.Path:
    """Changes the clips of a data set one by one.

    Args:
        source: folder of the data set.
        out: folder to make; one that the same call has made is taken as it is.
        change: `(split, clip)` to those of the new set, or None to leave it out. It
            must not write into the clip; what it passes on is kept bit for bit.
        description: what the change does, for people.
        content: what else the change depends on, as the bytes of an array.
        schema: of the new clips, if it is another.

    Returns:
        `out`.

    Raises:
        InputError: when `out` holds something else, or a clip does not fit.
    """

    def changed(pairs: Iterator[Pair]) -> Iterator[Pair]:
        for pair in pairs:
            found = change(*pair)
            if found is not None:
                yield found

    return rewrite(
        source, out, changed, description=description, content=content, schema=schema
    )


def rewrite(
    source: pathlib.Path,
    out: pathlib.Path,
    change: Callable[[Iterator[Pair]], Iterable[Pair]],
    *,
    description: str,
    content: bytes = b"",
    schema: schema.Schema | None = None,
) -> pathlib.Path:
    """As `make`, but `change` gets all pairs at once: it may repeat or reorder them."""
    info = _load(source)
    derived = {
        "description": description,
        "content": hashlib.sha256(content).hexdigest(),
        "of": info.name,
        "sha256": hashlib.sha256((source / "dataset.json").read_bytes()).hexdigest(),
        "schema": (schema or info.schema).to_json(),
    }
    if (out / "dataset.json").is_file():
        _check(out, derived)
        return out
    records.write_dataset(
        out,
        change(pairs(source)),
        name=info.name,
        schema=schema or info.schema,
        provenance={
            **info.provenance,
            "derived": [*info.provenance.get("derived", ()), derived],
        },
        dtype=info.dtype,
    )
    return out


def pairs(source: pathlib.Path) -> Iterator[Pair]:
    """Yields the clips of a data set with their splits, in stored order."""
    info = _load(source)
    for split in info.splits:
        for clip in records.read_split(source, info, split):
            yield split, clip


def _load(path: pathlib.Path) -> schema.DatasetInfo:
    # `schema` is a keyword of the functions above.
    return schema.load(path)


def _check(out: pathlib.Path, derived: dict[str, Any]) -> None:
    """Checks that a folder is what would be made now."""
    there = _load(out).provenance.get("derived") or [{}]
    # As JSON has it: tuples are lists.
    expected = json.loads(json.dumps(derived))
    if there[-1] == expected:
        return
    key = next(key for key in expected if there[-1].get(key) != expected[key])
    raise schema.InputError(
        f"{out} exists and was made otherwise ({key} differs); delete it or choose "
        "another --out"
    )
