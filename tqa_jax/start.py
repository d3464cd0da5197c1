"""What a run starts from: fresh parameters, those of a finished run, or a scorer's.

The one thing to know: parameters mean something only with the preprocessing that they
were trained on, so a run that starts from another takes over its fit as well, and its
modalities must have been measured by the same backends.
"""

import pathlib
from typing import Any

import jax
import numpy as np

from tqa_jax import cli, prepare, preprocess, schema, scorer
from tqa_jax import run as run_lib

_SAME = ("backend", "version", "checksum", "width")  # of a modality's features


def params(folder: str) -> Any:
    """Reads the best parameters of a finished run; None for no run.

    Args:
        folder: of the run, or empty; or a scorer, see `read`, of whose members the
            first is taken.

    Raises:
        InputError: when there is no finished run of one network.
    """
    if not folder:
        return None
    found = read(folder)
    if len(found.members) != 1 and found.folder is not None:
        raise schema.InputError(
            f"train.start_from: {folder} is an ensemble of {len(found.members)} "
            "networks; expected a run with train.members=1"
        )
    return found.members[0]


def take_over(folder: str, info: schema.DatasetInfo, fitted: pathlib.Path) -> None:
    """Copies the preprocessing of a finished run, unless a fit is there.

    Args:
        folder: of the run, or empty for none.
        info: of the data set that is trained on now.
        fitted: file that keeps the fit.

    Raises:
        InputError: when the run's features were measured otherwise.
    """
    if not folder or prepare.is_fitted(fitted):
        return
    before = read(folder)
    known = {one.name: one for one in info.schema.modalities}
    for one in before.data_schema.modalities:
        for key in _SAME if one.name in known else ():
            was, now = getattr(one, key), getattr(known[one.name], key)
            if was != now:
                raise schema.InputError(
                    f"train.start_from: {folder} was trained on {one.name} features "
                    f"with {key} {was!r}; this data set has {now!r}; measure both in "
                    "the same way"
                )
    preprocess.save(fitted, before.transforms)


def check(given: Any, fresh: Any) -> None:
    """Checks that parameters are those of a network.

    Args:
        given: from `params`; None is always right.
        fresh: parameters of the network, or their shapes.

    Raises:
        InputError: naming an entry that differs.
    """
    if given is None:
        return
    theirs, mine = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (given, fresh)
    )
    for name in sorted({**theirs, **mine}):
        if theirs.get(name) != mine.get(name):
            raise schema.InputError(
                f"train.start_from: parameter {name} has the shape "
                f"{theirs.get(name, 'of nothing')} there and "
                f"{mine.get(name, 'of nothing')} here; give this run the same model "
                "settings, modalities and tasks"
            )


def read(folder: str) -> run_lib.Run:
    """Reads the run.

    Args:
        folder: of the run; or a scorer's file, `default` for the packaged one.

    Raises:
        InputError: when there is none, or it is not finished.
    """
    if folder == "default":
        return run_lib.Run.of_scorer(scorer.DEFAULT)
    path = cli.path(folder)
    if path.suffix == ".npz":
        return run_lib.Run.of_scorer(path)
    if not (path / "results.json").is_file():
        raise schema.InputError(
            f"train.start_from: {folder} holds no finished run; expected the --workdir "
            "of one, a scorer's .npz, or `default`"
        )
    return run_lib.Run.load(path)
