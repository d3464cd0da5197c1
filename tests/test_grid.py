"""Which runs a sweep has, what they are called, and which share a program."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs.sweeps import weighting
from tests import small
from tqa_jax import grid, hyperparameters, schema
from tqa_jax import weighting as weightings


def sweep(of_grid, *, random=None, **changes):
    config = weighting.get_config()
    config.base = small.config(**changes)
    config.grid = ml_collections.ConfigDict(of_grid)
    if random:
        config.random = ml_collections.ConfigDict(random)
    return config


def test_runs_are_all_combinations_with_the_seed_changing_fastest():
    found = grid.plan(sweep({"seed": (4, 5), "weighting": {"name": ("fixed", "dwa")}}))
    assert [run.name for run in found] == [
        "weighting.name=fixed,seed=4",
        "weighting.name=fixed,seed=5",
        "weighting.name=dwa,seed=4",
        "weighting.name=dwa,seed=5",
    ]
    last = found[-1]
    assert (last.config.weighting.name, last.config.seed) == ("dwa", 5)
    assert last.setting == {"weighting.name": "dwa"}
    expected = small.config(weighting__name="dwa", seed=5)
    assert last.config.to_dict() == expected.to_dict()


def test_numbers_share_a_program_and_everything_else_does_not():
    found = grid.plan(
        sweep(
            {
                "model": {"dropout": (0.0, 0.1, 0.2), "fusion_ffn": (16, 32)},
                "optim": {"learning_rate": (1e-3, 1e-2)},
                "seed": (0, 1),
            }
        )
    )
    groups = grid.groups(found)
    # Dropout of 0 is left out of the program; two widths.
    assert sorted(len(runs) for runs, _ in groups) == [4, 4, 8, 8]
    for runs, numbers in groups:
        differs = {"optim.learning_rate", "seed"}
        differs |= {"model.dropout"} if len(runs) == 8 else set()
        assert set(numbers) == differs
        for i, run in enumerate(runs):
            assert numbers["seed"][i] == run.config.seed
            np.testing.assert_array_equal(
                numbers["optim.learning_rate"][i],
                np.float32(run.config.optim.learning_rate),
            )


@pytest.mark.parametrize(
    ("sizes", "count"),
    [([5] * 9, 8), ([3, 3], 2), ([1], 4), ([64], 7), ([2, 7, 1], 3), ([4, 5], 1)],
)
def test_every_run_has_one_process_and_shares_are_even(sizes, count):
    shares = [grid.share(sizes, index, count) for index in range(count)]
    for group, size in enumerate(sizes):
        runs = [run for one in shares for run in one[group]]
        assert runs == list(range(size))
    numbers = [sum(map(len, one)) for one in shares]
    assert max(numbers) - min(numbers) <= 1 and sum(numbers) == sum(sizes)


def test_random_draws_are_in_their_range_combined_with_the_grid_and_repeatable():
    ranges = {"optim": {"learning_rate": ("log", 1e-4, 1e-2)}}
    random = {"number": 50, "seed": 1, "ranges": ranges}
    found = grid.plan(sweep({"seed": (0, 1)}, random=random))
    rates = np.array([run.config.optim.learning_rate for run in found])
    assert len(rates) == 100 and len(set(rates)) == 50
    assert (rates[::2] == rates[1::2]).all()
    assert 1e-4 <= rates.min() < 3e-4 and 3e-3 < rates.max() <= 1e-2
    # Uniform in the logarithm: as many below the middle as above, within 3 deviations.
    assert abs((rates[::2] < 1e-3).sum() - 25) < 11
    again = grid.plan(sweep({"seed": (0, 1)}, random=random))
    assert [run.name for run in again] == [run.name for run in found]


def test_names_that_would_be_too_long_or_equal_are_numbers():
    found = grid.plan(sweep({"data": {"path": ("a" * 200, "b")}}))
    assert [run.name for run in found] == ["run0000", "run0001"]
    found = grid.plan(sweep({"data": {"path": ("a/b", "a?b")}}))
    assert [run.name for run in found] == ["run0000", "run0001"]


def test_weights_of_tasks_can_be_swept_though_the_base_has_none():
    values = {"weighting": {"name": ("fixed",), "fixed": {"values": {"x": (1.0, 9.0)}}}}
    (group,) = grid.groups(grid.plan(sweep(values)))
    np.testing.assert_array_equal(group[1]["weighting.fixed.values.x"], [1, 9])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optim": {"learning_rat": (1.0,)}}, "did you mean optim.learning_rate?"),
        ({"optim": {"beta1": {"x": (1.0,)}}}, "key optim.beta1.x; optim.beta1 has no"),
        ({"seed": 3}, "grid.seed is 3; expected one value or more"),
        ({"seed": ()}, r"grid.seed is \(\); expected one value or more"),
        ({}, "the sweep has no runs; give the grid a key"),
        ({"seed": (1, 1)}, "runs run0000 and run0001 are the same"),
        ({"train": {"epochs": ("many",)}}, "train.epochs is 'many'; expected int"),
    ],
)
def test_impossible_grid_is_one_clear_line(given, message):
    with pytest.raises(schema.InputError, match=message):
        grid.plan(sweep(given))


@pytest.mark.parametrize(
    ("random", "message"),
    [
        ({"number": 2, "seed": 0, "ranges": {}}, "random.number is 2 with 0 random.r"),
        (
            {"number": 1, "seed": 0, "ranges": {"seed": ("log", 0, 1)}},
            r"random.ranges.seed is \('log', 0, 1\); expected",
        ),
    ],
)
def test_impossible_random_search_is_one_clear_line(random, message):
    with pytest.raises(schema.InputError, match=message):
        grid.plan(sweep({"seed": (0,)}, random=random))


def test_numbers_are_found_and_put_back():
    config = small.config(model__dropout=0.25, consistency__weight=0.0)
    found = hyperparameters.find(config)
    assert found["model.dropout"] == 0.25 and found["optim.beta2"] == 0.999
    assert found["weighting.gradnorm.alpha"] == 1.5 and found["seed"] == 0
    # Switched off, an integer, a choice, or what decides a program's structure.
    for key in (
        *("consistency.weight", "model.head_dropout", "optim.warmup_steps"),
        *("weighting.name", "weighting.gradnorm.initial_steps", "train.epochs"),
        *("model.modality_dropout", "model.attention_dropout"),
    ):
        assert key not in found
    changed = hyperparameters.put(config, {"optim.learning_rate": 7.0, "seed": 3})
    assert (changed.optim.learning_rate, changed.seed) == (7.0, 3)
    assert (config.optim.learning_rate, config.seed) == (1e-2, 0)


@pytest.mark.parametrize("name", weightings.available())
def test_weights_are_the_same_with_numbers_that_are_traced(name):
    config = small.config(weighting__name=name)
    config.weighting.fixed.values = {"b": 3.0}
    tasks, losses = ("a", "b", "c"), jnp.array([0.5, 2.0, 1.0])

    def weights(numbers):
        options = hyperparameters.put(config, numbers).weighting.get(name, {})
        facts = {"label_variances": np.array([1.0, 2.0, 0.5]), "steps_per_epoch": 2}
        made = weightings.make(name, tasks=tasks, facts=facts, **options)
        state = made.init()
        for step in range(5):
            signals = weightings.Signals(
                losses * 0.9**step,
                jnp.ones(3, bool),
                losses + step,
                jnp.float32(1),
                jax.random.key(step),
            )
            state = made.update(state, signals)
        return made.weights(state, signals)

    traced = jax.jit(weights)(hyperparameters.find(config))
    np.testing.assert_allclose(traced, jax.jit(lambda: weights({}))(), rtol=1e-5)


def test_cases_change_many_keys_and_are_named():
    config = sweep({"seed": (0, 1)})
    config.cases = ml_collections.ConfigDict(
        {
            "plain": {},
            "path a": {"model": {"paths": "a"}, "optim": {"learning_rate": 1}},
        }
    )
    found = grid.plan(config)
    assert [run.settings for run in found] == [
        {"case": case, "seed": seed} for case in ("path a", "plain") for seed in (0, 1)
    ]
    assert found[2].config.to_dict() == config.base.to_dict() | {"seed": 0}
    one = found[1].config
    assert (one.model.paths, one.optim.learning_rate, one.seed) == ("a", 1.0, 1)
    assert found[1].setting == {"case": "path a"}
    assert found[1].name == "case=path_a,seed=1"


def test_a_case_may_choose_its_data():
    config = sweep({"seed": (0,)})
    config.cases = ml_collections.ConfigDict(
        {"here": {}, "there": {"data": {"path": "b"}}}
    )
    assert [run.data_choice for run in grid.plan(config)] == ["base", "data.path=b"]


def test_a_traced_number_is_one_even_where_all_runs_agree():
    config = sweep({"seed": (0, 1)})
    config.traced = ("optim.learning_rate",)
    ((runs, numbers),) = grid.groups(grid.plan(config))
    assert set(numbers) == {"seed", "optim.learning_rate"}
    rates = [np.float32(run.config.optim.learning_rate) for run in runs]
    np.testing.assert_array_equal(numbers["optim.learning_rate"], rates)


def test_a_case_that_is_no_mapping_is_refused():
    config = sweep({"seed": (0,)})
    config.cases = ml_collections.ConfigDict({"wrong": 3})
    with pytest.raises(schema.InputError, match="cases.wrong is 3"):
        grid.plan(config)
