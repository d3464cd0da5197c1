"""Split-conformal intervals: the promised coverage, and what is said without it."""

import numpy as np
import pytest

from tqa_jax import conformal, schema

TASKS = (schema.Task("lip_sync"), schema.Task("overall"))


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_coverage_is_what_was_asked_for(level):
    # Over many draws of 39 calibration clips and one new clip each.
    rng = np.random.default_rng(0)
    errors = np.abs(rng.standard_t(3, size=(20_000, 40)))
    widths = np.array([conformal.half_width(one[:-1], level) for one in errors])
    covered = (errors[:, -1] <= widths).mean()
    # Exactly level .. level + 1 / 40, within three standard errors.
    assert level - 0.005 < covered < level + 1 / 40 + 0.005


def test_half_width_is_the_order_statistic_of_the_paper():
    errors = np.arange(1.0, 40.0)[::-1]  # 39 errors: ceil(40 * 0.95) = 38.
    assert conformal.half_width(errors, 0.95) == 38
    assert conformal.half_width(np.arange(19.0), 0.95) == 18
    assert conformal.half_width(np.arange(18.0), 0.95) is None


def test_risk_falls_with_coverage_when_the_spread_is_informed():
    rng = np.random.default_rng(1)
    spread = rng.uniform(0.1, 2, 400)
    errors = np.abs(rng.normal(size=400)) * spread
    found = conformal.risk_coverage(errors, spread)
    assert len(found) == 10 and found[-1]["coverage"] == 1
    assert found[-1]["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)))
    kept = errors[np.argsort(spread)[:80]]
    assert found[1]["rmse"] == pytest.approx(np.sqrt(np.mean(kept**2)))
    assert found[0]["rmse"] < 0.5 * found[-1]["rmse"]


def make(clips, seed):
    rng = np.random.default_rng(seed)
    labels = rng.uniform(1, 5, (clips, 2))
    scores = labels + rng.normal(size=labels.shape) * [0.2, 1.0]
    labels[rng.uniform(size=labels.shape) < 0.2] = np.nan
    return scores, labels


def report(validation, test, spread=None):
    return conformal.report(
        validation=validation,
        test=test,
        spread=spread,
        sources=[f"s{n % 12}" for n in range(len(test[0]))],
        tasks=TASKS,
        resamples=200,
        seed=0,
    )


def test_report_calibrates_on_validation_and_counts_on_test():
    validation, test = make(100, 0), make(120, 1)
    found = report(validation, test, np.ones((120, 2)))
    assert found["level"] == 0.95
    for k, task in enumerate(TASKS):
        one = found["tasks"][task.name]
        errors = np.abs(validation[0] - validation[1])[:, k]
        errors = np.sort(errors[np.isfinite(errors)])
        place = int(np.ceil((len(errors) + 1) * 0.95))
        assert one["half_width"] == pytest.approx(errors[place - 1])
        assert one["calibration_clips"] == len(errors)
        off = np.abs(test[0] - test[1])[:, k]
        off = off[np.isfinite(off)]
        coverage = one["coverage"]
        assert coverage["value"] == pytest.approx((off <= one["half_width"]).mean())
        assert coverage["low"] <= coverage["value"] <= coverage["high"]
        assert one["mean_spread"] == 1
    widths = [found["tasks"][task.name]["half_width"] for task in TASKS]
    assert widths[1] > 3 * widths[0]


def test_coverage_on_few_sources_has_no_interval():
    validation, test = make(100, 0), make(120, 1)
    for sources, low in ((["a"] * 120, None), (["a", "b"] * 60, None)):
        found = conformal.report(
            validation=validation,
            test=test,
            spread=None,
            sources=sources,
            tasks=TASKS,
            resamples=50,
            seed=0,
        )
        coverage = found["tasks"]["overall"]["coverage"]
        assert coverage["value"] > 0.8 and coverage["low"] is low
        assert "no interval" in coverage["reason"]


def test_too_few_calibration_clips_are_a_reason_not_a_number():
    found = report(make(20, 2), make(30, 3))
    one = found["tasks"]["overall"]
    assert one["half_width"] is None and "coverage" not in one
    assert one[
        "reason"
    ] == f"{one['calibration_clips']} labelled validation clips; " + ("19 are needed")
    assert "risk_coverage" not in one


def test_a_task_without_test_labels_has_no_coverage():
    scores, labels = make(30, 4)
    labels[:, 0] = np.nan
    found = report(make(100, 5), (scores, labels))
    assert "coverage" not in found["tasks"]["lip_sync"]
    assert "coverage" in found["tasks"]["overall"]
