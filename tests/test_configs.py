"""Every config builds its parts and takes a step on a small data set."""

import pathlib

import jax
import numpy as np
import pytest
from ml_collections import config_flags

from configs import default
from tests import small
from tqa_jax import assemble, prepare, train_step
from tqa_jax.models import presets

FOLDER = pathlib.Path(default.__file__).parent
CONFIGS = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__")


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
    model = assemble.make_model(config, widths, data.info.schema.tasks)
    assert model.options["preset"] == config.model.preset


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
