"""A finished run, read back: what export, report and further evaluation start from.

The one thing to know: everything comes out of the run's folder; the data set is not
needed.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from tqa_jax import assemble, checkpoint, models, preprocess, run_folder, schema


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        config: resolved configuration.
        schema: of the data set, with the modalities that the model reads.
        transforms: fitted preprocessing of each of them, in the order of tokens.
        model: the network.
        members: parameters of the best epoch; one tree, or one of each member.
        results: content of `results.json`.
    """

    config: ml_collections.ConfigDict
    schema: schema.Schema
    transforms: Mapping[str, preprocess.Transform]
    model: models.Model
    members: Sequence[Any]
    results: Mapping[str, Any]


def load(workdir: str | pathlib.Path) -> Trained:
    """Reads a finished run.

    Args:
        workdir: its folder.

    Raises:
        InputError: when there is no run, or it is not finished.
    """
    workdir = pathlib.Path(workdir)
    run = _read(workdir, "config.json", "make one with `python -m tqa_jax.main`")
    results = _read(workdir, "results.json", "the command that started it finishes it")
    config = ml_collections.ConfigDict(run["config"])
    if "members" not in config.train:
        raise schema.InputError(
            f"{workdir} is a run of an earlier version of tqa_jax; train it again"
        )
    transforms = preprocess.load(workdir / "preprocess.npz")
    whole = schema.Schema.from_json(run["data"]["schema"])
    by_name = {modality.name: modality for modality in whole.modalities}
    used = dataclasses.replace(
        whole, modalities=tuple(by_name[name] for name in transforms)
    )
    widths = {name: transform.width for name, transform in transforms.items()}
    with contextlib.closing(checkpoint.Checkpoints(workdir / "checkpoints")) as found:
        params = found.best(results["selected"]["epoch"])
    members = [params]
    if config.train.members > 1:
        members = [
            jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), params)
            for i in range(config.train.members)
        ]
    model = assemble.make_model(config, widths, whole.tasks)
    return Trained(config, used, transforms, model, members, results)


def _read(workdir: pathlib.Path, name: str, remedy: str) -> dict[str, Any]:
    if not (workdir / name).exists():
        what = "no run" if name == "config.json" else "a run that is not finished"
        raise schema.InputError(f"{workdir} holds {what}; {remedy}")
    return run_folder.read_json(workdir / name, remedy)
