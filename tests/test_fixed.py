"""Fixed weights, given or from the labels' variances."""

import numpy as np
import pytest

from tests.signals import TASKS, K, weights_of
from tqa_jax import schema, weighting


def test_fixed_weights_are_what_was_given():
    made = weighting.make("fixed", tasks=TASKS, values={"lip_sync": 1000, "overall": 0})
    np.testing.assert_array_equal(weights_of(made, made.init()), [1000, 1, 1, 0])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lips": 1.0}, "unknown task 'lips'; available: lip_sync"),
        ({"overall": -1.0}, "overall is -1.0; expected 0 or more"),
        ({"overall": float("nan")}, "overall is nan"),
    ],
)
def test_fixed_refuses_unusable_weights(values, said):
    with pytest.raises(schema.InputError, match=said):
        weighting.make("fixed", tasks=TASKS, values=values)


def test_variance_weights_are_one_over_the_labels_variances():
    made = weighting.make(
        "variance", tasks=TASKS, facts={"label_variances": [4.0, 1.0, 0.25, 1.0]}
    )
    found = np.asarray(weights_of(made, made.init()))
    np.testing.assert_allclose(found, K * np.array([0.25, 1, 4, 1]) / 6.25, rtol=1e-6)


def test_variance_weights_are_a_regression_on_standardised_labels():
    # The weighted loss is the loss of z-scored labels and scores, up to one factor.
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(50, K)) * [3.0, 1.0, 0.2, 0.7] + 2
    scores = labels + rng.normal(size=labels.shape)
    variances = labels.var(axis=0)
    made = weighting.make("variance", tasks=TASKS, facts={"label_variances": variances})
    losses = ((scores - labels) ** 2).mean(axis=0)
    weighted = np.asarray(weights_of(made, made.init())) * losses
    deviation = labels.std(axis=0)
    standard = ((scores / deviation - labels / deviation) ** 2).mean(axis=0)
    np.testing.assert_allclose(weighted / standard, (weighted / standard)[0], rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_variance_refuses_a_task_whose_labels_do_not_vary(value):
    facts = {"label_variances": [1.0, 1.0, value, 1.0]}
    with pytest.raises(schema.InputError, match="'expression' have variance .*fixed"):
        weighting.make("variance", tasks=TASKS, facts=facts)
