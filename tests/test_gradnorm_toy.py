"""The toy problem against a second implementation, and the command that studies it."""

import csv
import functools
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import gradnorm_toy, toy_problem
from tqa_jax import weighting

SIGMAS = (1.0, 10.0, 3.0)
SIZES = toy_problem.Sizes(inputs=8, outputs=6, width=8, batch=5, test=7)
FILES = ["gradnorm_toy.csv", "gradnorm_toy.json", "gradnorm_toy.png"]


def methods(*names):
    names = names or gradnorm_toy.METHODS
    return {name: gradnorm_toy.make(name, len(SIGMAS)) for name in names}


def run(made, seeds=(0, 1), steps=6, every=3):
    return toy_problem.run(
        made, sigmas=SIGMAS, seeds=seeds, steps=steps, sizes=SIZES, every=every
    )


@functools.cache
def found():
    """All methods, and GradNorm whose weights stand still; computed once."""
    still = weighting.make("gradnorm", tasks=["a", "b", "c"], learning_rate=0.0)
    return run(methods() | {"still": still})


def seed_of(number):
    return toy_problem.init(jnp.int32(number), jnp.array(SIGMAS), SIZES)


def loss_of(params, task, samples):
    """Mean squared error of one task, written out again."""
    hidden = samples.inputs
    for layer in range(4):
        part = params[f"shared{layer}"]
        hidden = jnp.maximum(hidden @ part["kernel"] + part["bias"], 0)
    heads = params["heads"]
    outputs = hidden @ heads["kernel"][task] + heads["bias"][task]
    return jnp.mean((outputs - samples.targets[task]) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_seeds_in_one_program_equal_separate_runs(seed):
    for name, alone in run(methods("gradnorm", "uncertainty"), seeds=[seed]).items():
        for one, other in zip(alone[1:], found()[name][1:], strict=True):
            np.testing.assert_allclose(one[:, 0], other[:, seed], rtol=1e-5, atol=1e-6)


def test_ratios_and_weights_start_at_one():
    for history in found().values():
        np.testing.assert_array_equal(history.steps, [0, 3, 6])
        np.testing.assert_array_equal(history.ratios[0].sum(axis=-1), [3, 3])
        np.testing.assert_array_equal(history.weights[0], np.ones((2, 3)))
        assert (history.ratios[-1] != 1).all()


def test_every_method_sees_the_same_data_from_the_same_start():
    equal = found()["equal"]
    np.testing.assert_allclose(found()["still"].ratios, equal.ratios, rtol=1e-5)
    for history in found().values():
        np.testing.assert_array_equal(history.grad_norms[0], equal.grad_norms[0])


def test_results_do_not_depend_on_how_often_they_are_recorded():
    seldom = run(methods("gradnorm"), every=4)["gradnorm"]
    np.testing.assert_array_equal(seldom.steps, [0, 4, 6])
    often = found()["gradnorm"]
    np.testing.assert_allclose(often.ratios[-1], seldom.ratios[-1], rtol=1e-5)
    np.testing.assert_allclose(often.weights[-1], seldom.weights[-1], rtol=1e-5)


def test_norms_are_those_of_the_weighted_losses_at_the_last_shared_kernel():
    values = {"a": 3.0, "b": 0.5, "c": 1.0}
    made = {"fixed": weighting.make("fixed", tasks=list(values), values=values)}
    history = run(made, seeds=[4], steps=1)["fixed"]
    seed = seed_of(4)
    for task, weight in enumerate(values.values()):
        gradient = jax.grad(lambda p, t=task, w=weight: w * loss_of(p, t, seed.test))(
            seed.params
        )
        wanted = jnp.linalg.norm(gradient["shared3"]["kernel"])
        np.testing.assert_allclose(history.grad_norms[0, 0, task], wanted, rtol=1e-5)


def test_a_step_is_adam_on_the_weighted_sum_with_the_old_weights():
    seed, optimizer = seed_of(2), optax.adam(1e-3)
    samples = toy_problem.batches(seed, jnp.arange(2), jnp.array(SIGMAS), SIZES.batch)
    made = gradnorm_toy.make("gradnorm_linear", 3)
    train = toy_problem.make_train(made, optimizer)
    state = toy_problem.start(seed, made, optimizer)
    params, opt_state = seed.params, optimizer.init(seed.params)
    for step in range(2):
        one = jax.tree.map(lambda leaf, s=step: leaf[s : s + 1], samples)
        weights = np.asarray(state.weighting.learned.values)
        assert (weights == 1).all() == (step == 0)

        def total(params, weights=weights, one=one):
            batch = jax.tree.map(lambda leaf: leaf[0], one)
            return sum(w * loss_of(params, i, batch) for i, w in enumerate(weights))

        updates, opt_state = optimizer.update(jax.grad(total)(params), opt_state)
        params = optax.apply_updates(params, updates)
        state = train(state, one)
        for ours, wanted in zip(
            jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True
        ):
            np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-6)


def test_targets_are_as_in_the_paper():
    sizes = toy_problem.Sizes(test=50)
    seed = toy_problem.init(jnp.int32(0), jnp.array(SIGMAS), sizes)
    inputs, matrices = np.asarray(seed.test.inputs), np.asarray(seed.matrices)
    np.testing.assert_allclose(np.linalg.norm(inputs, axis=1), 1, rtol=1e-5)
    for sigma, matrix, targets in zip(SIGMAS, matrices, seed.test.targets, strict=True):
        wanted = sigma * np.tanh(inputs.astype(np.float64) @ matrix.T)
        np.testing.assert_allclose(targets, wanted, atol=1e-4 * sigma)
    # Variances of B + eps_i and of eps_0 - eps_1; 25,000 draws: sd of each is 0.9 %.
    np.testing.assert_allclose(matrices[0].var(), 10**2 + 3.5**2, rtol=0.04)
    np.testing.assert_allclose((matrices[0] - matrices[1]).var(), 2 * 3.5**2, rtol=0.04)


def test_a_step_has_the_same_samples_in_any_company():
    seed = seed_of(0)
    several, alone = (
        toy_problem.batches(seed, jnp.array(steps), jnp.array(SIGMAS), SIZES.batch)
        for steps in ([0, 1, 2], [2])
    )
    np.testing.assert_array_equal(several.inputs[2], alone.inputs[0])
    assert not np.allclose(several.inputs[1], several.inputs[2])
    assert not np.allclose(several.inputs[0], seed.test.inputs[: SIZES.batch])


def history_of(ratios, weights):
    """Two records of two seeds and three tasks; all seeds alike."""
    shape = (2, 2, 3)
    return toy_problem.History(
        np.array([0, 9]),
        np.broadcast_to(np.array(weights, np.float32), shape),
        np.broadcast_to(np.array(ratios, np.float32), shape),
        np.broadcast_to(np.array([1, 4, 2], np.float32), shape),
    )


def test_the_verdict_is_computed():
    falling, flat = [2.0, 0.2, 0.8], [1.0, 1.0, 1.0]

    def said(**ratios):
        weights = {"gradnorm": ratios.pop("weights", falling)}
        return gradnorm_toy.verdict(
            {
                name: gradnorm_toy.summarise(
                    history_of([ratio] * 3, weights.get(name, flat)), SIGMAS
                )
                for name, ratio in ratios.items()
            }
        )

    good = said(gradnorm=0.5, equal=0.6, uncertainty=0.7)
    assert "uncertainty: held (1.500, 1.800, 2.100" in good
    assert "every seed: held (highest -1.000)" in good
    bad = said(gradnorm=0.5, equal=0.6, uncertainty=0.4, weights=[1.0, 1.1, 0.9])
    assert "uncertainty: DID NOT HOLD (1.500, 1.800, 1.200" in bad
    assert "every seed: DID NOT HOLD (highest 0.500)" in bad
    lost = said(gradnorm=math.nan, equal=0.6, uncertainty=0.7, weights=[math.nan] * 3)
    assert lost.count("DID NOT HOLD") == 2
    assert "not judged without uncertainty" in said(gradnorm=0.5, equal=0.6)


def test_the_table_counts_seeds_that_are_not_finite():
    history = history_of([0.5, 0.5, 0.5], [2.0, 0.2, 0.8])
    ratios = history.ratios.copy()
    ratios[-1, 1, 0] = math.inf
    summary = gradnorm_toy.summarise(history._replace(ratios=ratios), SIGMAS)
    text = gradnorm_toy.table({"one": summary})
    assert "not finite in 1 of 2" in text
    assert "0.2 ... 2 (sum 3)" in text
    assert "4.00 +- 0.00" in text  # Largest over smallest norm.


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--methods=equal,gradnrom", "unknown 'gradnrom'; available: equal, gradnorm,"),
        ("--steps=0", "--steps is 0; expected at least 1"),
        (
            "--tasks=3",
            "invalid choice '3' for argument '--tasks'. Expected one of ('2',",
        ),
        ("--seeds=-1", "--seeds is -1; expected at least 1"),
        ("--learning_rate=nan", "--learning_rate is nan; expected a number above 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(argument, message, tmp_path, capsys):
    assert gradnorm_toy.main([argument, f"--out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_is_reported_and_exits_0(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs the studies extra")
    (tmp_path / FILES[0]).write_text("of an earlier run")
    status = gradnorm_toy.main(
        ["--tasks=2", "--steps=3", "--seeds=1", "--methods=equal,gradnorm"]
        + ["--learning_rate=1e25", f"--out={tmp_path}"]
    )
    assert status == 0
    said = capsys.readouterr().out
    assert said.count("not finite in 1 of 1") >= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    report = json.loads((tmp_path / FILES[1]).read_text())
    assert report["methods"]["equal"]["ratio_sums"] == {"3": [None]}
    with (tmp_path / FILES[0]).open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 2


@pytest.mark.slow
def test_the_command_tells_the_methods_apart_in_1000_steps(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the studies extra")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.gradnorm_toy", "--tasks=2"]
        + ["--steps=1000", f"--out={tmp_path}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "GradNorm < equal < uncertainty: " in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    report = json.loads((tmp_path / FILES[1]).read_text())
    results = report["methods"]
    assert list(results) == list(gradnorm_toy.METHODS)
    ends = {
        name: np.mean(results[name]["ratio_sums"]["1000"])
        for name in ("equal", "gradnorm")
    }
    assert ends["gradnorm"] <= 0.9 * ends["equal"]
    for weights in results["gradnorm"]["weights"]:
        assert weights[0] > 1.7
        assert sum(weights) == pytest.approx(2, abs=1e-4)
    assert max(results["gradnorm"]["norm_spread"]) <= 3
    with (tmp_path / FILES[0]).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 3 * 21 * 2
    last = [row for row in rows if row["method"] == "equal" and row["step"] == "1000"]
    by_seed = np.array([float(row["test_ratio"]) for row in last]).reshape(3, 2)
    np.testing.assert_allclose(
        by_seed.sum(axis=1), results["equal"]["ratio_sums"]["1000"], rtol=1e-5
    )
    assert (tmp_path / FILES[2]).read_bytes().startswith(b"\x89PNG")
