"""The folder of a sweep: whose it is, and how its runs ended.

The one thing to know: several processes may share it without meeting, so what more than
one of them may write is the same in all, and is moved into place when it is whole.
"""

import json
import os
import pathlib
import shutil
from typing import Any

import ml_collections

from tqa_jax import hyperparameters, schema


def claim(workdir: pathlib.Path, sweep: ml_collections.ConfigDict, index: int) -> bool:
    """Makes the folder, or checks that it belongs to this sweep.

    Args:
        workdir: the folder.
        sweep: the configuration.
        index: number of this process; another may be making the folder, too.

    Returns:
        Whether it is new.

    Raises:
        InputError: when it holds something else.
    """
    file = workdir / "sweep.json"
    mine = json.loads(json.dumps(sweep.to_dict()))
    if not file.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        if any(one.suffix != ".part" for one in workdir.iterdir()):
            raise schema.InputError(
                f"{workdir} is not empty and holds no sweep; choose another --workdir"
            )
        write(file, json.dumps(mine, indent=1) + "\n", index)
        return True
    try:
        theirs = json.loads(file.read_text(encoding="utf-8"))
        before, now = (dict(hyperparameters.flatten(one)) for one in (theirs, mine))
    except (json.JSONDecodeError, AttributeError) as error:
        raise schema.InputError(
            f"{file} is damaged; choose another --workdir"
        ) from error
    for key in {**before, **now}:
        # A data set may move; its content is checked run by run.
        if before.get(key) != now.get(key) and key != "base.data.path":
            raise schema.InputError(
                f"{workdir} holds a sweep with {key} = {before.get(key)}, not "
                f"{now.get(key)}; choose another --workdir"
            )
    return False


def status(folder: pathlib.Path) -> dict[str, Any] | None:
    """How a run ended: `reason` of a failure or None, `seconds`; None if it has not."""
    file = folder / "status.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    if (folder / "results.json").exists():
        return {"reason": None, "seconds": None}
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
