"""Members of an ensemble train as they would alone."""

import json

import jax
import numpy as np
import pytest

from tests import small
from tests import test_train_step as steps
from tqa_jax import ensemble, schema, train, train_step
from tqa_jax import run as run_lib


@pytest.mark.slow
def test_members_equal_runs_of_their_seeds():
    model = steps.make_model(dropout=0.2)
    step, init = steps.make_parts(model)
    found = steps.make_batch()
    start = jax.jit(ensemble.init(init, 3))(np.uint32(2))
    assert start.step.shape == start.skipped.shape == ()
    np.testing.assert_array_equal(start.seed, [6, 7, 8])
    order = np.tile(np.arange(16), (3, 1))
    state, metrics = train_step.scan(ensemble.step(step))(start, found, order)
    losses = []
    for number, seed in enumerate((6, 7, 8)):
        alone, one = train_step.scan(step)(init(seed), found, order)
        member = jax.tree.map(lambda leaf, n=number: leaf[n], state.params)
        # Adam magnifies the rounding of tiny gradients: one entry was 5.9e-5 away.
        steps.assert_close(member, alone.params, atol=1e-4)
        weights = jax.tree.map(lambda leaf, n=number: leaf[n], state.weighting)
        steps.assert_close(weights, alone.weighting, atol=2e-5)
        losses.append(one["loss"])
    np.testing.assert_allclose(metrics["loss"], np.mean(losses, axis=0), rtol=1e-4)
    scores = jax.jit(ensemble.members(model.apply, 3))(state.params, found)
    member = jax.tree.map(lambda leaf: leaf[1], state.params)
    np.testing.assert_allclose(scores[1], model.apply(member, found), rtol=1e-5)


@pytest.mark.slow
def test_a_member_that_is_not_finite_is_counted():
    step, init = steps.make_parts(steps.make_model())
    state = jax.jit(ensemble.init(init, 2))(np.uint32(0))
    broken = jax.tree.map(lambda leaf: leaf.at[1].mul(np.nan), state.params)
    after, metrics = jax.jit(ensemble.step(step))(
        state.replace(params=broken), steps.make_batch()
    )
    assert int(after.skipped) == 1 and float(metrics["skipped"]) == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    small.write(folder / "data", clips=150)
    config = small.config(train__members=3, train__epochs=6)
    train.run(config, data_path=folder / "data", workdir=folder / "run")
    return folder / "run"


@pytest.mark.slow
def test_a_run_of_members_is_calibrated_and_learns(run):
    results = json.loads((run / "results.json").read_text())
    confidence = results["confidence"]
    assert confidence["spread_over"] == "3 members"
    for task, one in confidence["tasks"].items():
        assert 0 < one["half_width"] < 4
        # 30 test clips and an expected coverage of 0.95 to 0.97.
        assert one["coverage"]["value"] > 0.8, task
        assert one["mean_spread"] > 0
        assert len(one["risk_coverage"]) == 10
    assert results["tasks"]["overall"]["srcc"]["value"] > 0.5


@pytest.mark.slow
def test_a_finished_run_is_read_back_without_its_data(run):
    found = run_lib.Run.load(run)
    assert [m.name for m in found.schema.modalities] == ["visual", "audio", "sync"]
    assert len(found.members) == 3
    assert found.results["confidence"]["spread_over"] == "3 members"
    kernels = [member["path_a_contract"]["kernel"] for member in found.members]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
    with np.load(run / "representation.npz", allow_pickle=False) as arrays:
        assert arrays["features"].shape == (len(arrays["clip"]), kernels[0].shape[-1])
        assert set(arrays["split"]) == {"validation", "test"}


@pytest.mark.slow
def test_what_is_no_finished_run_is_refused(tmp_path, run):
    with pytest.raises(schema.InputError, match="holds no run"):
        run_lib.Run.load(tmp_path)
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    with pytest.raises(schema.InputError, match="not finished"):
        run_lib.Run.load(tmp_path)
    old = json.loads((tmp_path / "config.json").read_text())
    del old["config"]["train"]["members"]
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(schema.InputError, match="of an earlier version"):
        _ = run_lib.Run.load(tmp_path).members
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(schema.InputError, match="results.json is damaged"):
        run_lib.Run.load(tmp_path)
