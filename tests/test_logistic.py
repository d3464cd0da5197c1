"""The logistic mapping against SciPy's curve_fit and known truths."""

import numpy as np
import pytest
from scipy import optimize

from tqa_jax import logistic, metrics


def ratings(seed: int = 0, clips: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=clips)
    labels = np.clip(3 + 1.2 * latent, 1, 5)
    return 3 + 0.6 * latent + 0.3 * rng.normal(size=clips), labels


def curve(x: np.ndarray, b1: float, b2: float, b3: float, b4: float) -> np.ndarray:
    return b2 + (b1 - b2) / (1 + np.exp(-(x - b3) / abs(b4)))


def test_logistic_fit_finds_the_mapping_that_made_the_labels():
    scores = np.linspace(-2, 3, 50)
    truth = (4.6, 1.3, 0.4, 0.7)
    found = logistic.fit(scores, curve(scores, *truth))
    params = found.params
    np.testing.assert_allclose(params, truth, rtol=1e-6)
    mapped = logistic.apply(scores, found.params)
    np.testing.assert_allclose(mapped, curve(scores, *truth), rtol=1e-6)


def bounded(scores, labels, rng, starts=12):
    """Least sum of squares of fits from several starts, ends within 1..5."""
    free = (scores.min() - 10 * np.ptp(scores), scores.max() + 10 * np.ptp(scores))
    bounds = [(1, 1, free[0], 1e-6), (5, 5, free[1], 100 * np.ptp(scores))]
    found = [
        optimize.least_squares(
            lambda params: curve(scores, *params) - labels,
            [
                *rng.uniform(1, 5, 2),
                rng.choice(scores),
                scores.std() * np.exp(rng.uniform(-3, 1)),
            ],
            bounds=bounds,
            x_scale=[1, 1, scores.std(), scores.std()],
        )
        for _ in range(starts)
    ]
    return min(2 * one.cost for one in found)


def problem(seed):
    """Predictions of a random shape, noise and number for labels on 1..5."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=rng.choice([12, 20, 40, 100]))
    labels = np.clip(rng.uniform(2, 4) + rng.uniform(0.2, 1.5) * latent, 1, 5)
    scores = latent + rng.uniform(0.1, 1) * rng.normal(size=len(latent))
    scores = (scores, np.exp(scores), scores**3, 100 + scores / 50)[seed % 4]
    return scores, labels, rng


@pytest.mark.filterwarnings("ignore:overflow")  # In the fits that it is compared to.
def test_no_fit_from_twelve_starts_is_better():
    identified = 0
    for seed in range(60):
        scores, labels, rng = problem(seed)
        params = logistic.fit(scores, labels).params
        if params is not None:
            squares = ((logistic.apply(scores, params) - labels) ** 2).sum()
            assert squares <= 1.0001 * bounded(scores, labels, rng)
            identified += 1
    assert identified >= 45


def test_no_prediction_however_far_is_mapped_out_of_the_score_range():
    for seed in range(40):
        scores, labels, _ = problem(seed)
        params = logistic.fit(scores, labels).params
        if params is not None:
            far = np.array([-1e30, scores.min() - 1, scores.max() + 1, 1e30])
            mapped = logistic.apply(far, params)
            assert (np.diff(mapped) >= 0).all()
            assert 1 <= mapped.min() and mapped.max() <= 5


def test_fit_follows_the_score_range():
    scores, labels = ratings(5, 60)
    mapped = logistic.apply(scores, logistic.fit(scores, labels).params)
    for low, high in ((0.0, 0.01), (0.0, 100.0), (1000.0, 1001.0)):

        def moved(values, low=low, high=high):
            return low + (high - low) * (values - 1) / 4

        params = logistic.fit(moved(scores), moved(labels), low=low, high=high).params
        np.testing.assert_allclose(
            logistic.apply(moved(scores), params),
            moved(mapped),
            atol=1e-5 * (high - low),
        )


def test_step_between_two_predictions_is_not_identified():
    scores = np.array([1.0, 1.5, 2.0, 3.0, 3.5, 4.0])
    fit = logistic.fit(scores, np.where(scores > 2.5, 4.0, 2.0))
    assert fit.params is None and "not identified" in fit.reason


def test_logistic_mapping_is_applied_to_other_clips():
    scores, labels = ratings(6, 100)
    steep = np.exp(2 * scores)  # bent on purpose: plain PLCC suffers
    fit = logistic.fit(steep[:50], labels[:50])
    mapped = logistic.apply(steep[50:], fit.params)
    for metric in ("plcc", "rmse"):
        expected = metrics.measure(metric, mapped, labels[50:])
        found = metrics.measure(
            metric + "_fit", steep[50:], labels[50:], low=1, high=5, logistic=fit
        )
        assert found == expected
    raw = metrics.measure("plcc", steep[50:], labels[50:]).value
    fitted = metrics.measure("plcc_fit", steep[50:], labels[50:], logistic=fit).value
    assert fitted > raw + 0.1


def test_logistic_fit_that_fails_says_why():
    scores, labels = ratings()
    reasons = {
        "4 validation labels; 5 needed": (scores[:4], labels[:4]),
        "labels are constant": (scores, np.full(40, 3.0)),
        "predictions are constant": (np.full(40, 3.0), labels),
        "not finite": (np.full(40, np.nan), labels),
        "labels fall as": (-scores, labels),
    }
    for reason, data in reasons.items():
        fit = logistic.fit(*data)
        assert fit.params is None
        assert reason in fit.reason
        value = metrics.measure("plcc_fit", scores, labels, logistic=fit)
        assert value == metrics.Value(None, fit.reason)
    value = metrics.measure("rmse_fit", scores, labels)
    assert value == metrics.Value(None, "no logistic mapping was fitted")


def test_straight_line_is_fitted_within_what_the_range_allows():
    for low, tolerance in ((2.5, 5e-3), (1.0, 0.31)):
        scores = np.linspace(low, 6 - low, 60)
        mapped = logistic.apply(scores, logistic.fit(scores, scores).params)
        np.testing.assert_allclose(mapped, scores, atol=tolerance)
