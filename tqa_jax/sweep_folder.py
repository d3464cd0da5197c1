"""The folder of a sweep: whose it is, and how its runs ended.

The one thing to know: several processes may share it without meeting, so what more than
one of them may write is the same in all, and is moved into place when it is whole.
"""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from tqa_jax import hyperparameters, run_folder, schema

_logger = logging.getLogger(__name__)

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
    theirs = run_folder.read_json(file, "restore it, or choose another --workdir")
    before, now = (dict(hyperparameters.flatten(one)) for one in (theirs, mine))
    for key in {**before, **now}:
        if before.get(key) != now.get(key) and key not in _FREE:
            what = "a data set whose sha256 " if key.startswith("data.") else ""
            raise schema.InputError(
                f"{workdir} holds a sweep with {what}{key} = {before.get(key)}, not "
                f"{now.get(key)}; choose another --workdir"
            )
    return False


def claim(workdir: pathlib.Path, mine: Mapping[str, Any]) -> None:
    """Makes the folder, unless it is there.

    Args:
        workdir: the folder.
        mine: see `describe`.

    Raises:
        InputError: when it holds something else.
    """
    if check(workdir, mine):
        workdir.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(workdir / "sweep.json", mine)


def status(folder: pathlib.Path) -> dict[str, Any] | None:
    """How a run ended: None if it has not.

    Returns:
        `reason` of a failure, or None; `seconds_of_last_start`, this run's share of
        the process that ended it.
    """
    file = folder / "status.json"
    ended: dict[str, Any] = {"reason": None, "seconds_of_last_start": None}
    if file.exists():
        try:
            ended |= run_folder.read_json(file, "")
        except schema.InputError as error:
            _logger.warning("%s; looking at the run itself", str(error).rstrip("; "))
    return ended if ended["reason"] or run_folder.finished(folder) else None
