"""Every config builds its parts and takes a step on a small data set."""

import importlib
import inspect
import pathlib

import jax
import numpy as np
import pytest
from ml_collections import config_flags

from configs import default
from configs.sweeps import weighting as sweep_weighting
from tests import small
from tqa_jax import (
    assemble,
    grid,
    models,
    prepare,
    schema,
    surgery,
    train_step,
    weighting,
)
from tqa_jax.models import presets

FOLDER = pathlib.Path(default.__file__).parent
CONFIGS = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__")
SWEEPS = sorted(p.stem for p in (FOLDER / "sweeps").glob("[!_]*.py"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    small.write(folder / "data")
    return prepare.open_dataset(
        folder / "data",
        modalities=(),
        pca={},
        winsorise=0.0,
        max_frames=8,
        memory_bytes=1e9,
        fitted=folder / "fit.npz",
    )


def load(name):
    module = __import__(f"configs.{name}", fromlist=["get_config"])
    return module, module.get_config()


@pytest.mark.parametrize("name", CONFIGS)
def test_config_builds_and_its_step_lowers(name, data):
    module, config = load(name)
    assert f"--config=configs/{name}.py" in module.__doc__
    config.train.epochs = 150  # The small set has few steps an epoch.
    config.train.batch_size = 8
    split = data.split("train")
    parts = assemble.build(config, data, labels=split.clips.labels, steps_per_epoch=4)
    state = jax.eval_shape(lambda: parts.init(0))
    order = np.zeros((2, 8), np.int32)
    _, metrics = jax.eval_shape(
        train_step.scan(parts.step), state, split.windows, order
    )
    assert metrics["loss"].shape == (2, 3)
    widths = {name: data.transforms[name].width for name in data.modalities}
    model = models.from_config(config, widths, data.info.schema.tasks)
    assert model.options["preset"] == config.model.preset


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_config_has_groups_of_seeds_whose_runs_build(name, data):
    module = importlib.import_module(f"configs.sweeps.{name}")
    assert f"--config=configs/sweeps/{name}.py" in module.__doc__
    labels = data.split("train").clips.labels
    facts = assemble.look_up(data, labels=labels, steps_per_epoch=4)
    groups = grid.groups(grid.plan(module.get_config()))
    assert len(groups) > 1
    for runs, numbers in groups:
        assert len(runs) == 5 and set(numbers) == {"seed"}
        assemble.check_fit(runs[0].config, facts)


def test_weighting_sweep_leaves_no_weighting_out_but_copies():
    names = sweep_weighting.get_config().grid.weighting.name
    # The same method by another name, and an older system's variant.
    assert set(names) == set(weighting.available()) - {"imtl_l", "gradnorm_simple"}


def test_default_config_names_every_model_option():
    config = default.get_config()
    options = set(config.model) - {"preset", "dtype", "remat", "modalities"}
    # Widths of embedders are a table by modality, which no flag can give.
    assert options == set(presets.PRESETS["synced"]) - {"embedder_hidden"}


def test_values_can_be_overridden_as_flags_do():
    config = default.get_config()
    paths = config_flags.config_path
    paths.set_value("model.width", config, 32)
    paths.set_value("data.path", config, "x")
    assert (config.model.width, config.data.path) == (32, "x")


@pytest.mark.parametrize(
    ("section", "name"),
    [("weighting", name) for name in weighting.available()]
    + [("surgery", name) for name in surgery.available()],
)
def test_options_of_weightings_and_surgeries_have_their_defaults(section, name):
    factory = importlib.import_module(f"tqa_jax.{section}.{name}").make
    options = {
        key: option.default
        for key, option in inspect.signature(factory).parameters.items()
        if key not in ("tasks", "label_variances", "steps_per_epoch")
    }
    if name == "fixed":
        options["values"] = {}  # None in the file: flags can fill a dict, not None.
    assert default.get_config().to_dict()[section].get(name, {}) == options


def test_weighting_and_surgery_of_a_config_reach_the_step(data):
    config = default.get_config()
    config.weighting.name = "famo"
    config.surgery.name = "upgrad"
    config.train.batch_size = 8
    config.model.width = 8
    split = data.split("train")
    parts = assemble.build(config, data, labels=split.clips.labels, steps_per_epoch=4)
    state = jax.eval_shape(lambda: parts.init(0))
    assert hasattr(state.weighting, "log_loss")
    order = np.zeros((2, 8), np.int32)
    _, metrics = jax.eval_shape(
        train_step.scan(parts.step), state, split.windows, order
    )
    assert metrics["coefficient"].shape == (2, 3)
    config.surgery.name = "upgrade"
    with pytest.raises(schema.InputError, match="unknown surgery 'upgrade'.*upgrad"):
        assemble.build(config, data, labels=split.clips.labels, steps_per_epoch=4)


def test_a_shared_parameter_is_named_by_its_path(data):
    config = default.get_config()
    config.train.batch_size = 8
    config.model.width = 8
    labels = data.split("train").clips.labels
    for path, said in (
        ("path_gate/kernel", None),
        ("head/stack/out/kernel", "not in the last shared layer"),
        ("path_a/kernel", "no parameter"),
    ):
        config.weighting.shared = path
        if said is None:
            assemble.build(config, data, labels=labels, steps_per_epoch=4)
            continue
        with pytest.raises(schema.InputError, match=f"{said}.*path_a_contract/kernel"):
            assemble.build(config, data, labels=labels, steps_per_epoch=4)
