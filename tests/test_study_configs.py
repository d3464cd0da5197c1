"""Standard and optimized: what is counted, and what is changed to run them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import optimized, standard
from experiments import configs
from experiments.studying import steps, trials
from tests import small
from tqa_jax import grid, pipeline
from tqa_jax import run as run_lib


def test_difference_turns_one_configuration_into_the_other():
    base, other = standard.get_config(), optimized.get_config()
    changes = configs.difference(base, other)
    assert changes["model.width"] == 512 and "model.preset" not in changes
    assert grid.apply(base, changes).to_dict() == other.to_dict()


def test_changes_to_a_configuration_are_said():
    config = optimized.get_config()
    said = configs.adapt(config, "optimized", data="d", clips=144)
    assert config.train.epochs == 150 and config.optim.warmup_steps == 30
    assert said == [
        "optimized: 30 steps of warm-up in place of 500, which are too many for a run "
        "of 300."
    ]
    config = optimized.get_config()
    assert configs.adapt(config, "optimized", data="d", clips=6400) == []
    assert config.optim.warmup_steps == 500
    said = configs.adapt(config, "optimized", data="d", clips=6400, epochs=3)
    assert config.train.epochs == 3 and "3 epochs in place of 150" in said[0]
    assert config.optim.warmup_steps == 30


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    small.write(folder / "data")
    base = small.config(
        data__path=str(folder / "data"), train__epochs=2, evaluate__dropout_draws=0
    )
    base.weighting.name = "fixed"
    runs = trials.run(base, {"fixed": {}}, seeds=(0, 1, 2), folder=folder / "runs")
    return steps.load(runs["fixed"][0].folder), runs["fixed"][0].folder


@pytest.mark.slow
def test_counts_are_of_the_run(step):
    found, folder = step
    params = run_lib.Run.load(folder).members[0]
    assert found.params == sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    order = pipeline.order(found.train.size, 8, seed=0, epoch=0)
    assert found.steps_per_epoch == len(order)
    width = found.train.windows.features["visual"].shape[-1]
    assert found.batch.features["visual"].shape == (8, 8, width)


@pytest.mark.slow
def test_arithmetic_does_not_hide_in_micro_batches(step):
    found, _ = step
    state = jax.eval_shape(found.parts().init, 0)
    parts = found.parts(accumulation=2)
    lowered = jax.jit(parts.step).lower(state, found.batch)
    assert lowered.cost_analysis()["flops"] < 0.9 * found.flops
    # A step is a forward pass and about twice that backward.
    assert 2 < found.flops / found.score_flops < 5


def test_arithmetic_of_a_matrix_product_is_known():
    lowered = jax.jit(lambda a, b: a @ b).lower(jnp.ones((64, 32)), jnp.ones((32, 16)))
    assert lowered.cost_analysis()["flops"] == 2 * 64 * 32 * 16


@pytest.mark.slow
def test_costs_are_measured_side_by_side(step):
    found, _ = step
    costs = configs.measure({"a": found, "b": found}, rounds=3)
    assert costs["a"]["parameters"] == costs["b"]["parameters"] == found.params
    assert costs["a"]["temp_bytes"] == found.needed.temp > 0
    assert costs["a"]["clip_ratio"] == 1.0
    assert costs["b"]["step_gflops"] == found.flops / 1e9
    assert costs["b"]["clip_seconds"] == pytest.approx(costs["b"]["step_seconds"] / 8)
