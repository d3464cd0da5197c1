"""The table of a sweep: means, ranks and tests, against SciPy and by hand."""

import csv
import dataclasses
import io

import numpy as np
import pytest
from scipy import stats

from tqa_jax import comparison, evaluate, intervals, output, schema


def outcome(setting, seed, value, predictions=None, task=None):
    one = {"value": value} if value is not None else {"value": None, "reason": "none"}
    return comparison.Outcome(
        {"name": setting},
        seed,
        {
            "tasks": {"a": {"srcc": one if task is None else {"value": task}}},
            "average": {"srcc": one, "plcc": one, "rmse": {"value": 1.0}},
        },
        predictions or predicted(np.zeros(4)),
    )


def predicted(scores, labels=None, sources=None):
    clips = [f"c{i}" for i in range(len(scores))]
    labels = np.arange(float(len(scores))) if labels is None else labels
    return predictions(("a",), clips, sources, scores[:, None], labels[:, None])


def predictions(tasks, clips, sources, scores, labels):
    names = (np.array(each, object) for each in (clips, sources or clips))
    splits = np.full(len(clips), "test", object)
    return evaluate.Predictions(tasks, *names, splits, scores, labels, scores * np.nan)


def evaluated(setting, seed, scores, labels, sources=None):
    """What a run's own evaluation says of tasks (N, K), and its predictions."""
    clips = tuple(f"c{i}" for i in range(len(labels)))
    sources = sources or clips
    tasks = [schema.Task(name) for name in "abcde"[: labels.shape[1]]]
    results = intervals.report(scores, labels, sources, tasks, resamples=0)
    names = tuple(task.name for task in tasks)
    found = predictions(names, clips, sources, scores, labels)
    return comparison.Outcome({"name": setting}, seed, results, found)


def test_a_setting_whose_hard_task_collapsed_is_not_better():
    rng = np.random.default_rng(0)
    labels = 3 + 0.7 * rng.normal(size=(60, 2))
    runs = []
    for seed in range(4):
        easy = labels[:, :1] + 0.2 * rng.normal(size=(60, 1))
        hard = labels[:, 1:] + 2 * rng.normal(size=(60, 1))
        runs.append(evaluated("works", seed, np.hstack([easy, hard]), labels))
        flat = np.hstack([easy, np.full((60, 1), 3.0)])
        runs.append(evaluated("collapsed", seed, flat, labels))
    works, collapsed = comparison.compare(runs)
    hard = works["srcc/b"]
    assert 0.1 < hard < 0.6 and collapsed["srcc/b"] == 0
    assert (works["rank"], collapsed["rank"]) == (1, 2)
    assert collapsed["difference"] == pytest.approx(-hard / 2)
    assert collapsed["low"] < -hard / 2 < collapsed["high"] < 0
    assert collapsed["plcc"] < works["plcc"]
    means = [comparison.average(run.results, "srcc") for run in runs[1::2]]
    assert collapsed["srcc"] == pytest.approx(np.mean(means))


def test_a_task_that_one_setting_has_no_labels_for_is_left_out_of_both():
    rng = np.random.default_rng(1)
    labels = 3 + 0.7 * rng.normal(size=(60, 2))
    runs = []
    for seed in range(3):
        scores = labels + np.array([0.2, 2.0]) * rng.normal(size=(60, 2))
        runs.append(evaluated("both", seed, scores, labels))
        runs.append(evaluated("one", seed, scores, labels * [1, np.nan]))
        runs.append(evaluated("constant", seed, scores, labels * [1, 0] + [0, 3]))
    both, *others = comparison.compare(runs)
    for row in others:
        assert row["srcc"] > both["srcc"] + 0.1  # Of the easy task alone.
        assert row["difference"] == 0 and row["rank"] == both["rank"] == 2


def test_two_seeds_bear_no_p_value():
    rng = np.random.default_rng(2)
    labels = 3 + 0.7 * rng.normal(size=(60, 1))
    runs = [
        evaluated(name, seed, labels + noise * rng.normal(size=(60, 1)), labels)
        for name, noise in (("bad", 3.0), ("good", 0.1))
        for seed in range(2)
    ]
    row = comparison.compare(runs)[1]
    assert row["difference"] > 0.3 and row["low"] > 0
    assert row["p_clips"] is row["p_seeds"] is None


FIRST, SECOND, THIRD = (0.5, 0.6, 0.4, 0.55), (0.6, 0.75, 0.45, 0.6), (0.1, 0.7, 0, 0.2)


def test_means_ranks_and_paired_test_over_seeds():
    rows = comparison.compare(
        [
            outcome(name, seed, value)
            for name, values in zip("xyz", (FIRST, SECOND, THIRD), strict=True)
            for seed, value in enumerate(values)
        ]
    )
    assert [row["name"] for row in rows] == ["x", "y", "z"]
    for row, values in zip(rows, (FIRST, SECOND, THIRD), strict=True):
        assert (row["seeds"], row["failed"]) == (4, 0)
        assert row["srcc"] == pytest.approx(np.mean(values))
        assert row["srcc/a_sd"] == pytest.approx(np.std(values, ddof=1))
    # By seed: 0 y x z, 1 y z x, 2 y x z, 3 y x z.
    assert [row["rank"] for row in rows] == [2.25, 1.0, 2.75]
    assert rows[0]["difference"] is rows[0]["p_seeds"] is None
    assert rows[1]["difference"] == pytest.approx(np.subtract(SECOND, FIRST).mean())
    p = [stats.ttest_rel(values, FIRST).pvalue for values in (SECOND, THIRD)]
    # Holm: the smaller one counts twice, the larger at least as much.
    assert rows[1]["p_seeds"] == pytest.approx(2 * p[0])
    assert rows[2]["p_seeds"] == pytest.approx(max(p[1], 2 * p[0]))


def test_too_few_seeds_and_undefined_values_are_null():
    rows = comparison.compare(
        [outcome("x", seed, 0.5 + seed / 10) for seed in (0, 1)]
        + [outcome("y", 0, 0.7), outcome("y", 1, None)]
        + [comparison.Outcome({"name": "z"}, 0, None, None)]
    )
    assert rows[1]["difference"] == pytest.approx(0.2) and rows[1]["p_seeds"] is None
    assert rows[1]["srcc_sd"] is None and rows[1]["seeds"] == 2
    assert (rows[2]["seeds"], rows[2]["failed"], rows[2]["srcc"]) == (0, 1, None)
    assert rows[2]["difference"] is rows[2]["rank"] is rows[2]["p_clips"] is None
    assert "| z | 0 (1 failed) | - |" in comparison.to_markdown(rows)


def test_test_over_clips_sees_a_better_setting_and_no_difference_where_none_is():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=120)
    sources = [f"s{i // 3}" for i in range(120)]

    def of(noise, seed):
        draws = np.random.default_rng((7, seed)).normal(size=120)
        return predicted(labels + noise * draws, labels, sources)

    def rows(noise):
        return comparison.compare(
            [outcome("x", seed, 0.5, of(2.0, seed)) for seed in range(3)]
            + [outcome("y", seed, 0.6, of(noise, 10 + seed)) for seed in range(3)]
        )

    better = rows(0.5)[1]
    assert better["p_clips"] == pytest.approx(2 / 4001) and 0.1 < better["low"]
    same = rows(2.0)[1]
    assert same["low"] < 0 < same["high"] and same["p_clips"] > 0.1
    # The interval is about the mean over seeds of what SciPy finds on all clips.
    values = [
        np.mean(
            [
                stats.spearmanr(of(noise, start + seed).scores[:, 0], labels)[0]
                for seed in range(3)
            ]
        )
        for noise, start in ((0.5, 10), (2.0, 0))
    ]
    assert better["low"] < values[0] - values[1] < better["high"]


def test_runs_on_other_clips_are_not_compared_clip_by_clip():
    rows = comparison.compare(
        [
            outcome("x", 0, 0.5, predicted(np.arange(5.0))),
            outcome("y", 0, 0.6, predicted(np.arange(6.0))),
        ]
    )
    assert rows[1]["p_clips"] is None and rows[1]["difference"] == pytest.approx(0.1)


def test_runs_with_other_tasks_are_not_compared_clip_by_clip():
    one = predicted(np.arange(6.0))
    twice = np.zeros(2, int)
    both = dataclasses.replace(
        one, tasks=("b", "a"), scores=one.scores[:, twice], labels=one.labels[:, twice]
    )
    rows = comparison.compare([outcome("x", 0, 0.5, one), outcome("y", 0, 0.6, both)])
    assert rows[1]["p_clips"] is None and rows[1]["difference"] == pytest.approx(0.1)


def test_csv_has_all_columns():
    rows = comparison.compare([outcome("x", 0, 0.25), outcome("y", 0, 0.5)])
    (first, second) = csv.DictReader(io.StringIO(output.table_of(rows)))
    assert first["srcc"] == "0.25" and first["p_seeds"] == ""
    assert float(second["difference"]) == 0.25
