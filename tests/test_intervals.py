"""Bootstrap intervals, comparisons of runs and result tables."""

import json
import time

import numpy as np
import pytest
from scipy import stats

from tqa_jax import intervals, logistic, metrics, schema, statistics


def names(count: int, copies: int = 1) -> np.ndarray:
    return np.repeat([f"speaker{index:03d}" for index in range(count)], copies)


def gaussian(
    rng: np.random.Generator, clips: int, correlation: float
) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.normal(size=clips)
    noise = rng.normal(size=clips)
    return correlation * labels + np.sqrt(1 - correlation**2) * noise, labels


def value_of(
    metric: str,
    scores: np.ndarray,
    labels: np.ndarray,
    sources: np.ndarray,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> metrics.Value:
    tasks = (schema.Task("quality", -10, 10),)
    result = intervals.report(
        scores[:, None],
        labels[:, None],
        sources,
        tasks,
        resamples=resamples,
        seed=seed,
    )
    return metrics.Value(**result["tasks"]["quality"][metric])


def test_resamples_take_whole_sources():
    sources = names(5, 3)
    rng = np.random.default_rng(0)
    counts = statistics.resample_sources(sources, 50, rng)[1:]
    blocks = counts.reshape(50, 5, 3)
    assert (blocks == blocks[..., :1]).all()
    assert (blocks[..., 0].sum(axis=-1) == 5).all()
    assert counts.max() > 1


def test_interval_equals_a_plain_loop_over_resamples():
    scores, labels = gaussian(np.random.default_rng(1), 30, 0.6)
    sources = names(10, 3)
    found = value_of("srcc", scores, labels, sources, seed=7)
    rng = np.random.default_rng(7)
    counts = statistics.resample_sources(sources, 200, rng)[1:].astype(int)
    loop = [
        stats.spearmanr(np.repeat(scores, row), np.repeat(labels, row)).statistic
        for row in counts
    ]
    low, high = np.percentile(loop, [2.5, 97.5])
    assert found.value == pytest.approx(stats.spearmanr(scores, labels).statistic)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    trials, inside = 300, 0
    for trial in range(trials):
        scores, labels = gaussian(rng, 60, 0.7)
        counts = statistics.resample_sources(names(60), 200, rng)
        ready = metrics.prepare("plcc", scores, labels, low=-9, high=9)
        found = intervals.interval("plcc", ready, counts, names(60))
        inside += found.low <= 0.7 <= found.high
        assert found.low < found.value < found.high, trial
    # Percentile intervals of 60 clips and 200 resamples fall a little short of 95 %.
    assert 0.90 <= inside / trials <= 0.985


def test_copies_of_a_clip_do_not_narrow_the_interval():
    scores, labels = gaussian(np.random.default_rng(3), 40, 0.6)
    alone = value_of("plcc", scores, labels, names(40))
    copied = np.repeat(scores, 10), np.repeat(labels, 10)
    clustered = value_of("plcc", *copied, names(40, 10))
    by_clip = value_of("plcc", *copied, names(400))
    for metric in ("plcc", "srcc", "krcc", "rmse", "medae"):
        alone = value_of(metric, scores, labels, names(40))
        clustered = value_of(metric, *copied, names(40, 10))
        assert clustered.low == pytest.approx(alone.low, rel=1e-12)
        assert clustered.high == pytest.approx(alone.high, rel=1e-12)
    width = by_clip.high - by_clip.low
    assert clustered.high - clustered.low > 2 * width


def test_clips_of_a_source_that_err_together_need_resampled_sources():
    rng = np.random.default_rng(11)
    trials, sources = 200, names(20, 6)
    inside = {"sources": 0, "clips": 0}
    for _ in range(trials):
        labels = rng.normal(size=120)
        shared = np.repeat(rng.normal(size=20), 6)
        scores = labels + np.sqrt(0.8) * shared + np.sqrt(0.2) * rng.normal(size=120)
        ready = metrics.prepare("rmse", scores, labels, low=-9, high=9)
        for kind, units in (("sources", sources), ("clips", np.arange(120))):
            counts = statistics.resample_sources(units, 200, rng)
            found = intervals.interval("rmse", ready, counts, units)
            inside[kind] += found.low <= 1.0 <= found.high
    assert inside["sources"] / trials > 0.80
    assert inside["clips"] / trials < 0.70


def test_order_of_clips_does_not_change_the_interval():
    scores, labels = gaussian(np.random.default_rng(4), 40, 0.6)
    sources = names(20, 2)
    order = np.random.default_rng(0).permutation(40)
    first = value_of("krcc", scores, labels, sources)
    second = value_of("krcc", scores[order], labels[order], sources[order])
    assert second[2:] == pytest.approx(first[2:], rel=1e-12)


def test_two_sources_give_a_value_without_interval():
    scores, labels = gaussian(np.random.default_rng(5), 40, 0.6)
    found = value_of("plcc", scores, labels, names(2, 20))
    assert found.value == pytest.approx(stats.pearsonr(scores, labels).statistic)
    assert (found.low, found.high) == (None, None)
    assert found.reason == "no interval: 2 sources; at least 3 needed"


def test_many_undefined_resamples_give_a_value_without_interval():
    # Only one of four sources has another label: 32 % of resamples lack it.
    labels = np.repeat([3.0, 3.0, 3.0, 4.0], 5)
    scores = np.random.default_rng(6).normal(size=20)
    found = value_of("plcc", scores, labels, names(4, 5))
    assert found.value is not None and found.low is None
    share = int(found.reason.split()[4].removesuffix("%"))
    assert found.reason.startswith("no interval: undefined on") and 25 < share < 39


def runs() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(8)
    labels = rng.normal(size=90)
    good = labels + 0.5 * rng.normal(size=90)
    poor = labels + 2.0 * rng.normal(size=90)
    return good, poor, labels, names(30, 3)


def difference(metric, first, second, labels, sources, **options):
    """The difference of two runs on one task."""
    columns = (values[:, None] for values in (first, second, labels))
    tasks = (schema.Task("quality", 1, 5),)
    found, mean = intervals.paired_differences(
        metric, *columns, sources, tasks, **options
    )
    assert mean == found or found.reason  # The mean over one task is that task.
    return found


def test_paired_difference_tells_a_better_run_from_a_worse_one():
    good, poor, labels, sources = runs()
    found = difference("srcc", good, poor, labels, sources)
    expected = (
        stats.spearmanr(good, labels).statistic
        - stats.spearmanr(poor, labels).statistic
    )
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert 0 < found.low < found.value < found.high
    assert found.p == pytest.approx(2 / 4001)
    back = difference("srcc", poor, good, labels, sources)
    ends = (back.value, back.low, back.high, back.p)
    assert ends == pytest.approx((-found.value, -found.high, -found.low, found.p))


def test_paired_difference_of_a_run_with_itself_is_nothing():
    good, _, labels, sources = runs()
    found = difference("rmse", good, good, labels, sources)
    assert found[:5] == (0.0, "", 0.0, 0.0, 1.0)
    assert found.first == found.second


def test_paired_p_is_small_as_rarely_as_it_should_be():
    rng = np.random.default_rng(9)
    trials = 200
    small = 0
    for _ in range(trials):
        labels = rng.normal(size=50)
        first, second = labels + rng.normal(size=(2, 50))
        found = difference("mse", first, second, labels, names(50), resamples=200)
        small += found.p < 0.05
    assert small / trials < 0.11


def test_paired_difference_drops_unlabelled_clips_and_explains_undefined():
    good, poor, labels, sources = runs()
    fewer = labels.copy()
    fewer[::4] = np.nan
    kept = ~np.isnan(fewer)
    found = difference("mae", good, poor, fewer, sources)
    expected = difference("mae", good[kept], poor[kept], labels[kept], sources[kept])
    assert found == expected
    constant = np.full(90, 2.0)
    found = difference("plcc", good, constant, labels, sources)
    assert found == intervals.Difference(None, "second run: predictions are constant")
    found = difference("plcc_fit", good, poor, labels, sources)
    assert found.reason == "first run: no logistic mapping was fitted"
    with pytest.raises(ValueError, match="one each"):
        difference("plcc", good, poor, labels, sources[:-1])


def five_tasks() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(10)
    labels = rng.uniform(1, 5, size=(200, 5))
    scores = labels + rng.normal(size=(200, 5))
    return scores, labels, names(50, 4)


def test_report_is_json_with_every_metric_of_every_task():
    scores, labels, sources = five_tasks()
    labels[:, 0] = 4.762870634
    labels[:, 1] = np.nan
    labels[5:, 2] = np.nan
    scores[3, 3] = np.inf
    fits = {"overall": logistic.fit(scores[:, 4], labels[:, 4])}
    result = intervals.report(scores, labels, sources, schema.TASKS, logistic=fits)
    again = json.loads(json.dumps(result, allow_nan=False))
    assert again == result
    assert [row["n"] for row in result["tasks"].values()] == [200, 0, 5, 200, 200]
    for row in result["tasks"].values():
        assert list(row) == ["n", *metrics.METRICS]
        for name in metrics.METRICS:
            assert row[name]["value"] is not None or row[name]["reason"]
    overall = result["tasks"]["overall"]
    for name in metrics.METRICS:
        assert set(overall[name]) == {"value", "low", "high"}
        assert overall[name]["low"] <= overall[name]["value"] <= overall[name]["high"]
    assert result["tasks"]["lip_sync"]["plcc"] == {
        "value": None,
        "reason": "labels are constant",
    }


def test_table_shows_errors_on_a_short_score_range():
    scores, labels, sources = five_tasks()
    tasks = [schema.Task(task.name, 0.0, 0.01) for task in schema.TASKS]
    short = [(values - 1) / 400 for values in (scores, labels)]
    result = intervals.report(*short, sources, tasks, resamples=0)
    rmse = result["tasks"]["overall"]["rmse"]["value"]
    assert f"{rmse:.2g}" in intervals.table(result)
    wide = intervals.report(scores, labels, sources, schema.TASKS, resamples=0)
    for task in schema.TASKS:
        for name in ("plcc", "srcc", "ccc", "r2", "qwk", "accuracy3"):
            one, other = (r["tasks"][task.name][name]["value"] for r in (result, wide))
            assert one == pytest.approx(other, abs=1e-9)


def test_average_is_over_the_defined_tasks_only():
    scores, labels, sources = five_tasks()
    labels[:, 0] = 4.762870634
    result = intervals.report(scores, labels, sources, schema.TASKS, resamples=0)
    values = [
        stats.pearsonr(scores[:, index], labels[:, index]).statistic
        for index in range(1, 5)
    ]
    assert result["tasks"]["overall"]["mae"] == {
        "value": pytest.approx(np.abs(scores[:, 4] - labels[:, 4]).mean()),
        "low": None,
        "high": None,
    }
    assert "intervals" not in intervals.table(result)
    assert result["average"]["plcc"]["tasks"] == 4
    assert result["average"]["plcc"]["value"] == pytest.approx(np.mean(values))
    assert result["average"]["rmse"]["tasks"] == 5
    assert result["average"]["plcc_fit"] == {
        "value": None,
        "reason": "defined for no task",
        "tasks": 0,
    }


def test_a_task_does_not_depend_on_the_other_tasks():
    scores, labels, sources = five_tasks()
    whole = intervals.report(scores, labels, sources, schema.TASKS)
    alone = intervals.report(scores[:, 2:3], labels[:, 2:3], sources, schema.TASKS[2:3])
    assert alone["tasks"]["audio_quality"] == whole["tasks"]["audio_quality"]


def test_report_of_200_clips_takes_seconds():
    scores, labels, sources = five_tasks()
    start = time.perf_counter()
    intervals.report(scores, labels, sources, schema.TASKS)
    assert time.perf_counter() - start < 4


def test_report_refuses_shapes_that_do_not_fit():
    scores, labels, sources = five_tasks()
    with pytest.raises(ValueError, match="5 tasks"):
        intervals.report(scores[:, :4], labels, sources, schema.TASKS)
    with pytest.raises(ValueError, match="199 sources for 200 clips"):
        intervals.report(scores, labels, sources[1:], schema.TASKS)


def test_table_shows_intervals_and_explains_what_is_missing():
    scores, labels, sources = five_tasks()
    labels[:, 0] = 4.762870634
    text = intervals.table(intervals.report(scores, labels, sources, schema.TASKS))
    lines = text.splitlines()
    assert all(len(line) <= 110 for line in lines)
    assert lines[0].split() == [
        *("task", "n", "PLCC", "SRCC", "RMSE", "KRCC", "MAE", "CCC", "QWK")
    ]
    result = intervals.report(scores, labels, sources, schema.TASKS)
    plcc = result["tasks"]["overall"]["plcc"]
    assert lines[5].startswith("overall")
    assert f"{plcc['value']:.2f} [ {plcc['low']:.2f}, {plcc['high']:.2f}]" in lines[5]
    assert lines[6].startswith("average")
    assert "lip_sync: labels are constant (plcc, srcc, krcc, r2, ccc)" in lines
    assert lines[-1] == "95 % intervals from 200 resamples of 50 sources"
    few = intervals.report(scores[:40], labels[:40], sources[:40], schema.TASKS)
    last = intervals.table(few).splitlines()[-1]
    assert last.endswith("of 10 sources; too narrow for so few")
