"""Metrics against SciPy, scikit-learn and plain loops."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from tqa_jax import metrics


def ratings(seed: int = 0, clips: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and correlated labels on 1..5, labels with many ties."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=clips)
    labels = np.clip(np.round((3 + latent) * 2) / 2, 1, 5)
    scores = 3 + 0.6 * latent + 0.5 * rng.normal(size=clips)
    scores[:6] = np.round(scores[:6])
    return scores, labels


def concordance(scores: np.ndarray, labels: np.ndarray) -> float:
    gap = scores.mean() - labels.mean()
    covariance = np.mean((scores - scores.mean()) * (labels - labels.mean()))
    return 2 * covariance / (scores.var() + labels.var() + gap**2)


def classes(values: np.ndarray, thresholds: list[float]) -> list[int]:
    return [sum(value >= edge for edge in thresholds) for value in values]


REFERENCES = {
    "mse": lambda s, y: reference.mean_squared_error(y, s),
    "rmse": lambda s, y: reference.root_mean_squared_error(y, s),
    "mae": lambda s, y: reference.mean_absolute_error(y, s),
    "medae": lambda s, y: reference.median_absolute_error(y, s),
    "r2": lambda s, y: reference.r2_score(y, s),
    "plcc": lambda s, y: stats.pearsonr(s, y).statistic,
    "srcc": lambda s, y: stats.spearmanr(s, y).statistic,
    "krcc": lambda s, y: stats.kendalltau(s, y).statistic,
    "ccc": concordance,
    "accuracy3": lambda s, y: reference.accuracy_score(
        classes(y, [7 / 3, 11 / 3]), classes(s, [7 / 3, 11 / 3])
    ),
    "qwk": lambda s, y: reference.cohen_kappa_score(
        classes(y, [1.8, 2.6, 3.4, 4.2]),
        classes(s, [1.8, 2.6, 3.4, 4.2]),
        labels=range(5),
        weights="quadratic",
    ),
}


@pytest.mark.parametrize("metric", REFERENCES)
@pytest.mark.parametrize("clips", [5, 40, 601])
def test_metric_equals_its_reference(metric, clips):
    scores, labels = ratings(clips, clips)
    expected = REFERENCES[metric](scores, labels)
    found = metrics.measure(metric, scores, labels)
    assert found.reason == ""
    assert found.value == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("metric", REFERENCES)
def test_counting_clips_equals_repeating_them(metric):
    scores, labels = ratings(3, 30)
    counts = np.random.default_rng(1).integers(0, 4, size=(20, 30))
    needs = metrics.METRICS[metric]
    ready = metrics.prepare(metric, scores, labels, low=1, high=5)
    found = needs.function(ready.scores, ready.labels, counts.astype(float))
    for value, row in zip(found, counts, strict=True):
        repeated = np.repeat(scores, row), np.repeat(labels, row)
        expected = REFERENCES[metric](*repeated)
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("metric", REFERENCES)
def test_a_clip_without_label_changes_nothing(metric):
    scores, labels = ratings()
    expected = metrics.measure(metric, scores, labels)
    found = metrics.measure(
        metric, np.append(scores, [9.0, np.nan]), np.append(labels, [np.nan, np.nan])
    )
    assert found == expected


@pytest.mark.parametrize("metric", REFERENCES)
def test_order_of_clips_does_not_matter(metric):
    scores, labels = ratings()
    order = np.random.default_rng(0).permutation(len(scores))
    expected = metrics.measure(metric, scores, labels).value
    found = metrics.measure(metric, scores[order], labels[order]).value
    assert found == pytest.approx(expected, rel=1e-13)


def test_correlation_survives_a_large_offset():
    scores, labels = ratings()
    expected = metrics.measure("plcc", scores, labels).value
    found = metrics.measure("plcc", scores + 1e3, labels - 1e3).value
    assert found == pytest.approx(expected, rel=1e-10)


def test_a_value_on_a_threshold_belongs_to_the_class_above():
    # Float32 on purpose: 7/3 and 1.8 stored as float32 lie just below the real number.
    thirds = np.array([1, 7 / 3, 11 / 3, 5], np.float32)
    fifths = np.array([0, 1, 1.8, 2.6, 3.4, 4.2, 5, 9], np.float32)
    assert metrics.to_classes(thirds, low=1, high=5, classes=3).tolist() == [0, 1, 2, 2]
    assert metrics.to_classes(fifths, low=1, high=5, classes=5).tolist() == [
        *(0, 0, 1, 2, 3, 4, 4, 4)
    ]
    below = np.array([7 / 3 - 1e-4, 11 / 3 - 1e-4])
    assert metrics.to_classes(below, low=1, high=5, classes=3).tolist() == [0, 1]


def test_kappa_tells_the_two_best_classes_apart():
    labels = np.array([3.9, 4.5, 3.9, 4.9, 4.0, 4.3])
    right = np.array([4.0, 4.3, 3.5, 5.0, 3.6, 4.9])
    wrong = np.array([4.3, 3.6, 4.5, 4.1, 5.0, 3.5])
    assert metrics.measure("qwk", right, labels).value == 1.0
    assert metrics.measure("qwk", wrong, labels).value == -1.0


def test_classes_follow_the_score_range():
    scores, labels = ratings()
    for metric in ("accuracy3", "qwk"):
        expected = metrics.measure(metric, scores, labels)
        found = metrics.measure(metric, scores * 25, labels * 25, low=25, high=125)
        assert found == expected


@pytest.mark.parametrize("low", [0.0, 1.0, 99.0, -1000.0])
def test_a_value_on_a_threshold_is_found_on_every_range(low):
    thresholds = low + np.arange(5) / 5
    found = metrics.to_classes(
        thresholds.astype(np.float32).astype(float), low=low, high=low + 1, classes=5
    )
    np.testing.assert_array_equal(found, np.arange(5))


@pytest.mark.parametrize("metric", ["plcc", "srcc", "krcc", "ccc", "qwk"])
def test_rounding_takes_no_agreement_beyond_one(metric):
    rng = np.random.default_rng(0)
    for clips in range(3, 60):
        labels = np.round(rng.normal(size=clips) * 7)
        for scores in (labels, -labels, labels * (1 + 1e-15)):
            every = np.ones((1, clips))
            value = metrics.METRICS[metric].function(scores, labels, every)[0]
            assert -1 <= value <= 1


def test_constant_predictions_count_as_no_correlation_among_others():
    labels = np.array([1.0, 2.0, 4.0, 4.0])
    counts = np.array([[1.0, 1, 1, 1], [0, 0, 2, 1], [2, 0, 1, 0]])
    for metric in ("plcc", "srcc", "krcc"):
        flat = metrics.comparable(metric, np.full(4, 3.0), labels, counts)
        np.testing.assert_array_equal(flat, [0, np.nan, 0])
        rising = metrics.comparable(metric, labels, labels, counts)
        np.testing.assert_allclose(rising, [1, np.nan, 1])
        same = metrics.measure(metric, np.full(4, 3.0), labels).value
        assert metrics.counted(same, metrics.measure("ccc", labels, labels).value) == 0
    assert metrics.counted(None, None) is None and metrics.counted(0.3, 0.2) == 0.3


@pytest.mark.parametrize("metric", ["plcc", "srcc", "krcc", "r2", "ccc", "qwk"])
def test_constant_labels_leave_agreement_undefined(metric):
    scores = np.linspace(1, 5, 9)
    found = metrics.measure(metric, scores, np.full(9, 4.762870634))
    assert found.value is None
    expected = "all fall in one of 5 classes" if metric == "qwk" else "are constant"
    assert found.reason == "labels " + expected


@pytest.mark.parametrize("metric", ["rmse", "mae", "medae", "mse", "accuracy3"])
def test_constant_labels_leave_errors_defined(metric):
    assert metrics.measure(metric, np.full(4, 2.0), np.full(4, 4.0)).value is not None


@pytest.mark.parametrize("metric", ["plcc", "srcc", "krcc"])
def test_predictions_that_differ_by_rounding_have_no_correlation(metric):
    _, labels = ratings()
    scores = np.full(len(labels), 3.3, np.float32)
    scores[::2] = np.nextafter(np.float32(3.3), np.float32(4))
    found = metrics.measure(metric, scores, labels)
    assert found == metrics.Value(None, "predictions are constant")


@pytest.mark.parametrize("metric", ["ccc", "qwk"])
def test_constant_predictions_agree_no_better_than_chance(metric):
    _, labels = ratings()
    value = metrics.measure(metric, np.full(len(labels), 3.0), labels).value
    assert value == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_no_label_gives_no_value(metric):
    found = metrics.measure(metric, np.ones(3), np.full(3, np.nan))
    assert found.value is None
    assert "0 labelled clips" in found.reason


@pytest.mark.parametrize("metric", ["plcc", "srcc", "krcc", "r2", "ccc", "qwk"])
def test_two_clips_are_too_few(metric):
    found = metrics.measure(metric, np.array([1.0, 4.0]), np.array([2.0, 5.0]))
    assert found == metrics.Value(None, "2 labelled clips; at least 3 needed")


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_a_prediction_that_is_not_finite_is_reported(metric):
    scores, labels = ratings()
    scores[3], scores[5] = np.nan, np.inf
    found = metrics.measure(metric, scores, labels)
    assert found == metrics.Value(None, "2 of 40 predictions are not finite")


def test_an_overflow_is_no_value():
    found = metrics.measure("mse", np.array([1e300, 1.0]), np.array([1.0, 1.0]))
    assert found.value is None and "too large" in found.reason


def test_unusable_arguments_are_refused():
    with pytest.raises(ValueError, match="unknown metric 'pearson'; available: acc"):
        metrics.measure("pearson", np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="same length"):
        metrics.measure("mae", np.ones((3, 1)), np.ones(3))
    with pytest.raises(ValueError, match="infinite"):
        metrics.measure("mae", np.ones(3), np.array([1, np.inf, 2]))


def test_json_of_a_value_has_either_number_or_reason():
    assert metrics.Value(0.5, low=0.1, high=0.7).to_json() == {
        "value": 0.5,
        "low": 0.1,
        "high": 0.7,
    }
    assert metrics.Value(None, "why").to_json() == {"value": None, "reason": "why"}
