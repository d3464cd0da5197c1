"""A run that starts from another goes on where that one was best."""

import dataclasses

import numpy as np
import pytest

from tests import small
from tqa_jax import schema, start, train


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A data set and a finished run on it."""
    folder = tmp_path_factory.mktemp("start")
    small.write(folder / "data")
    config = small.config(evaluate__dropout_draws=0)
    train.run(config, data_path=folder / "data", workdir=folder / "run")
    return folder


def go_on(before, name, data="data", **changes):
    config = small.config(
        evaluate__dropout_draws=0,
        train__start_from=str(before / "run"),
        train__epochs=1,
        **changes,
    )
    train.run(config, data_path=before / data, workdir=before / name)
    return before / name


def test_a_run_that_learns_nothing_scores_as_the_one_it_started_from(before):
    still = go_on(
        before, "still", optim__learning_rate=1e-12, optim__end_learning_rate=0.0
    )
    same = [
        (folder / "predictions.csv").read_text() for folder in (before / "run", still)
    ]
    assert same[0] == same[1]


def test_preprocessing_is_taken_over_and_not_fitted_anew(before):
    small.write(before / "other", seed=5)
    there = go_on(before, "there", "other")
    fits = [
        dict(np.load(folder / "preprocess.npz")) for folder in (before / "run", there)
    ]
    assert fits[0].keys() == fits[1].keys()
    for name, values in fits[0].items():
        np.testing.assert_array_equal(values, fits[1][name])


def test_another_network_is_refused_naming_a_parameter(before):
    with pytest.raises(schema.InputError, match=r"parameter \S+ has the shape .*8"):
        go_on(before, "wide", model__width=16)
    assert not (before / "wide").exists()


def test_a_folder_without_a_finished_run_is_refused(before):
    with pytest.raises(schema.InputError, match="holds no finished run"):
        start.params(str(before / "data"))


def test_features_of_another_backend_are_refused(before, tmp_path):
    info = schema.load(before / "data")
    first, second, *rest = info.schema.modalities
    second = dataclasses.replace(second, backend="other")
    other = dataclasses.replace(info.schema, modalities=(first, second, *rest))
    with pytest.raises(schema.InputError, match="audio features with backend 'none'"):
        start.take_over(
            str(before / "run"),
            dataclasses.replace(info, schema=other),
            tmp_path / "preprocess.npz",
        )
    assert not any(tmp_path.iterdir())
