"""The logistic mapping against SciPy's curve_fit and known truths."""

import numpy as np
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


def test_logistic_fit_equals_curve_fit():
    scores, labels = ratings(5, 120)
    start = [labels.max(), labels.min(), scores.mean(), scores.std() / 4]
    expected, _ = optimize.curve_fit(curve, scores, labels, p0=start, maxfev=20000)
    found = logistic.fit(scores, np.append(labels[:-1], labels[-1]))
    np.testing.assert_allclose(
        logistic.apply(scores, found.params),
        curve(scores, *expected),
        rtol=1e-5,
    )


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


def test_logistic_fit_of_a_straight_line_is_found_or_explained():
    scores = np.linspace(1, 5, 60)
    fit = logistic.fit(scores, scores)
    mapped = logistic.apply(scores, fit.params)
    np.testing.assert_allclose(mapped, scores, atol=0.02)
