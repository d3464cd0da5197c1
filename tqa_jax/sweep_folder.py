"""The folder of a sweep: whose it is, and how its runs ended.

The one thing to know: several processes may share it without meeting, so what more than
one of them may write is the same in all, and is moved into place when it is whole.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import ml_collections

from tqa_jax import hyperparameters, schema

# May change: a data set may move, its checksum is compared; and how many runs go side
# by side changes no result.
_FREE = ("base.data.path", "at_once")


def describe(
    sweep: ml_collections.ConfigDict, checksums: Mapping[str, str]
) -> dict[str, Any]:
    """Says what a sweep is: the content of its `sweep.json`.

    Args:
        sweep: the configuration.
        checksums: of the data sets, by what chooses them.
    """
    return json.loads(json.dumps(sweep.to_dict() | {"data": dict(checksums)}))


def check(workdir: pathlib.Path, mine: Mapping[str, Any]) -> bool:
    """Whether the folder is new; if not, it belongs to this sweep.

    Args:
        workdir: the folder, which need not exist.
        mine: see `describe`.

    Raises:
        InputError: when it holds something else.
    """
    file = workdir / "sweep.json"
    # The list first: whoever makes the folder now writes sweep.json before the rest.
    listed = list(workdir.iterdir()) if workdir.exists() else []
    if not file.exists():
        if any(one.suffix != ".part" for one in listed):
            raise schema.InputError(
                f"{workdir} is not empty and holds no sweep; choose another --workdir"
            )
        return True
    try:
        theirs = json.loads(file.read_text(encoding="utf-8"))
        before, now = (dict(hyperparameters.flatten(one)) for one in (theirs, mine))
    except (json.JSONDecodeError, AttributeError) as error:
        raise schema.InputError(
            f"{file} is damaged; choose another --workdir"
        ) from error
    for key in {**before, **now}:
        if before.get(key) != now.get(key) and key not in _FREE:
            what = "a data set whose sha256 " if key.startswith("data.") else ""
            raise schema.InputError(
                f"{workdir} holds a sweep with {what}{key} = {before.get(key)}, not "
                f"{now.get(key)}; choose another --workdir"
            )
    return False


def claim(workdir: pathlib.Path, mine: Mapping[str, Any], index: int) -> None:
    """Makes the folder, unless it is there.

    Args:
        workdir: the folder.
        mine: see `describe`.
        index: number of this process; another may be making the folder, too.

    Raises:
        InputError: when it holds something else.
    """
    if check(workdir, mine):
        workdir.mkdir(parents=True, exist_ok=True)
        write(workdir / "sweep.json", json.dumps(mine, indent=1) + "\n", index)


def status(folder: pathlib.Path) -> dict[str, Any] | None:
    """How a run ended: None if it has not.

    Returns:
        `reason` of a failure, or None; `seconds_of_last_start`, this run's share of
        the process that ended it.
    """
    file = folder / "status.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    if (folder / "results.json").exists():
        return {"reason": None, "seconds_of_last_start": None}
    return None


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a file, whole or not at all."""
    part = target.with_name(target.name + ".part")
    shutil.copyfile(source, part)
    os.replace(part, target)


def write(path: pathlib.Path, text: str, index: int) -> None:
    """Writes a file that other processes may be writing, too, with equal content."""
    part = path.with_name(f"{path.name}.{index}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
