"""Scores of clips, what selects an epoch, and the final results."""

import csv
import types

import numpy as np
import pytest
from scipy import stats

from tests import small
from tqa_jax import evaluate, logistic, metrics, pipeline, schema

TASKS = small.SCHEMA.tasks
K = len(TASKS)
NAMES = [task.name for task in TASKS]


def make_clips(windows_of=(1, 3, 2, 1)):
    number = len(windows_of)
    return pipeline.Clips(
        names=tuple(f"clip{n}" for n in range(number)),
        sources=tuple(f"s{n // 2}" for n in range(number)),
        labels=np.array(
            [
                [1.5, np.nan, 3.0],
                [2.0, 4.123456, 5.0],
                [3.5, 1.0, 1.0],
                [5.0, 2.0, 2.0],
            ],
            np.float32,
        ),
        window_clip=np.repeat(np.arange(number), windows_of),
        window_start=np.concatenate([np.arange(n) * 4 for n in windows_of]),
        frames=tuple(4 * n for n in windows_of),
        record=np.arange(number),
        unmeasured=(),
    )


def make_scores(clips=30, seed=0, noise=0.5):
    rng = np.random.default_rng(seed)
    labels = rng.uniform(1, 5, (clips, K)).astype(np.float32)
    scores = np.clip(labels + noise * rng.normal(size=labels.shape), 1, 5)
    labels[rng.uniform(size=labels.shape) < 0.2] = np.nan
    return scores, labels


def test_a_clips_score_is_the_mean_over_its_windows():
    clips = make_clips()
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(7, K)).astype(np.float32)
    wanted = [rows[:1].mean(0), rows[1:4].mean(0), rows[4:6].mean(0), rows[6:].mean(0)]
    found = evaluate.pooled(np.stack([rows, -rows]), clips)
    np.testing.assert_allclose(found, [wanted, np.negative(wanted)], rtol=1e-6)


def test_predict_leaves_out_rows_that_fill_the_last_batch():
    clips = make_clips()
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(7, K)).astype(np.float32)
    order = pipeline.in_order(7, 4)
    found = [
        types.SimpleNamespace(scores=np.where(o[:, None] >= 0, rows[o], 99))
        for o in order
    ]
    scores = evaluate.predict(lambda p, one: p * one.scores[None], 2.0, found, clips)
    wanted = 2 * evaluate.pooled(rows[None], clips)
    np.testing.assert_allclose(scores, wanted, rtol=1e-6)


def test_validation_equals_scipy_on_the_labelled_clips():
    scores, labels = make_scores()
    found = evaluate.validate(scores, labels, TASKS)
    assert set(found) == {"loss", *evaluate.SELECT_METRICS}
    for k, name in enumerate(NAMES):
        known = ~np.isnan(labels[:, k])
        x, y = scores[known, k], labels[known, k].astype(float)
        wanted = {
            "loss": np.mean((x - y) ** 2 + 0.1 * np.abs(x - y)),
            "srcc": stats.spearmanr(x, y).statistic,
            "plcc": stats.pearsonr(x, y).statistic,
            "ccc": 2
            * np.cov(x, y, bias=True)[0, 1]
            / (x.var() + y.var() + (x.mean() - y.mean()) ** 2),
        }
        for metric, value in wanted.items():
            np.testing.assert_allclose(found[metric][name], value, rtol=1e-5)


def test_validation_loss_follows_the_configured_l1_weight():
    scores, labels = make_scores()
    found = evaluate.validate(scores, labels, TASKS, l1_weight=2.0)
    error = scores - labels
    wanted = np.nanmean(error**2 + 2.0 * np.abs(error), axis=0)
    np.testing.assert_allclose(list(found["loss"].values()), wanted, rtol=1e-5)


def test_a_task_without_labels_is_undefined_everywhere():
    scores, labels = make_scores()
    labels[:, 1] = np.nan
    found = evaluate.validate(scores, labels, TASKS)
    for by_task in found.values():
        assert by_task[NAMES[1]] is None
        assert by_task[NAMES[0]] is not None


def test_constant_predictions_have_no_correlation():
    scores, labels = make_scores()
    scores[:, 0] = 3.0
    found = evaluate.validate(scores, labels, TASKS)
    assert found["srcc"][NAMES[0]] is None and found["plcc"][NAMES[0]] is None
    assert found["loss"][NAMES[0]] > 0


def figures(metric, *values):
    by_task = dict(zip(NAMES, values, strict=True))
    return {metric: by_task, "ccc": by_task}


def test_selection_is_the_mean_over_tasks():
    found = evaluate.selection(
        figures("srcc", 0.2, 0.4, 0.9), metric="srcc", weights={}
    )
    np.testing.assert_allclose(found, [0.5, 0.2, 0.4, 0.9])


def test_selection_weighs_tasks():
    found = evaluate.selection(
        figures("srcc", 0.2, 0.4, 0.9),
        metric="srcc",
        weights={"lip_sync": 1.0, "overall": 3.0},
    )
    np.testing.assert_allclose(found, [(0.2 + 3 * 0.9) / 4, 0.2, 0.4, 0.9])


def test_a_smaller_loss_is_larger():
    found = evaluate.selection(
        figures("loss", 1.0, 2.0, 3.0), metric="loss", weights={}
    )
    np.testing.assert_allclose(found, [-2.0, -1.0, -2.0, -3.0])


def test_nothing_defined_selects_nothing():
    found = evaluate.selection(
        figures("srcc", None, None, None), metric="srcc", weights={}
    )
    assert found == [None] * 4
    found = evaluate.selection(
        figures("srcc", None, 0.3, 0.4), metric="srcc", weights={"lip_sync": 1.0}
    )
    assert found == [None, None, 0.3, 0.4]


def test_a_collapsed_task_does_not_make_an_epoch_better():
    # Constant predictions leave a correlation undefined. Leaving that task out of the
    # mean would prefer an epoch in which the hardest task has collapsed.
    scores, labels = make_scores(clips=60, noise=0.3)
    scores[:, 0] = make_scores(clips=60, noise=3.0)[0][:, 0]
    collapsed = scores.copy()
    collapsed[:, 0] = 3.0
    weak = evaluate.validate(scores, labels, TASKS)["srcc"][NAMES[0]]
    assert 0.1 < weak < 0.8

    def select(scores):
        found = evaluate.validate(scores, labels, TASKS)
        return evaluate.selection(found, metric="srcc", weights={})[0]

    assert select(collapsed) is None or select(collapsed) <= select(scores)


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        ([1.0, 2.0, 3.0, np.nan], True),
        ([1.0, 1.0, 2.0, 2.0], False),
        ([np.nan] * 4, False),
    ],
)
def test_a_correlation_needs_three_different_labels(column, wanted):
    labels = np.full((4, K), np.nan)
    labels[:, 2] = column
    metric = "srcc" if wanted else "loss"
    if np.isfinite(labels).any():
        assert evaluate.choose_metric("srcc", labels, TASKS, {}) == metric
        found = evaluate.choose_metric("srcc", labels, TASKS, {"overall": 1.0})
        assert found == metric
    with pytest.raises(schema.InputError, match="no label of a selected task"):
        evaluate.choose_metric("srcc", labels, TASKS, {"lip_sync": 1.0})


def test_the_logistic_mapping_comes_from_validation_and_is_applied_to_test():
    validation, test = make_scores(60, seed=1), make_scores(50, seed=2)
    found = evaluate.final(
        validation=validation,
        test=test,
        sources=[f"s{n // 5}" for n in range(50)],
        tasks=TASKS,
        resamples=20,
        seed=0,
    )
    for k, task in enumerate(TASKS):
        results = found["tasks"][task.name]
        mapping = logistic.fit(validation[0][:, k], validation[1][:, k])
        known = ~np.isnan(test[1][:, k])
        x, y = test[0][known, k], test[1][known, k].astype(float)
        assert results["n"] == known.sum()
        error = logistic.apply(x, mapping.params) - y
        np.testing.assert_allclose(
            results["rmse_fit"]["value"], np.sqrt(np.mean(error**2)), rtol=1e-6
        )
        np.testing.assert_allclose(
            results["srcc"]["value"], stats.spearmanr(x, y).statistic, rtol=1e-6
        )
        for name in metrics.METRICS:
            value = results[name]
            assert value["low"] <= value["value"] <= value["high"] or name == "rmse_fit"


def test_predictions_are_written_as_they_are(tmp_path):
    clips = make_clips()
    scores = np.arange(12).reshape(4, 3) / 7000
    path = tmp_path / "predictions.csv"
    splits = {"test": (clips, scores, scores / 9), "validation": (clips, scores, None)}
    evaluate.write_predictions(path, splits, TASKS)
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.csv"]
    with path.open(encoding="utf-8", newline="") as file:
        everything = list(csv.DictReader(file))
    rows, others = everything[:4], everything[4:]
    assert {row["split"] for row in others} == {"validation"}
    assert {row[f"{name}_spread"] for row in others for name in NAMES} == {""}
    assert [row["clip"] for row in rows] == list(clips.names)
    assert [row["source"] for row in rows] == list(clips.sources)
    assert {row["split"] for row in rows} == {"test"}
    for n, row in enumerate(rows):
        for k, name in enumerate(NAMES):
            assert float(row[f"{name}_score"]) == scores[n, k]
            assert float(row[f"{name}_spread"]) == scores[n, k] / 9
            label = row[f"{name}_label"]
            if np.isnan(clips.labels[n, k]):
                assert label == ""
            else:
                assert np.float32(label) == clips.labels[n, k]


def test_awkward_clip_names_survive_the_csv(tmp_path):
    clips = make_clips()
    names = ('a,"b"', "ü\nx", "=1+1", "a\rb")
    clips = pipeline.Clips(**{**vars(clips), "names": names})
    path = tmp_path / "predictions.csv"
    evaluate.write_predictions(path, {"test": (clips, np.zeros((4, 3)), None)}, TASKS)
    with path.open(encoding="utf-8", newline="") as file:
        assert [row["clip"] for row in csv.DictReader(file)] == list(names)


def test_ranges_of_tasks_reach_the_class_metrics():
    tasks = [schema.Task("mos", low=0.0, high=100.0)]
    rng = np.random.default_rng(0)
    labels = rng.uniform(0, 100, (40, 1))
    scores = np.clip(labels + rng.normal(size=labels.shape), 0, 100)
    found = evaluate.final(
        validation=(scores, labels),
        test=(scores, labels),
        sources=[f"s{n}" for n in range(40)],
        tasks=tasks,
        resamples=10,
        seed=0,
    )
    thirds = np.floor(np.clip(np.stack([scores, labels]) / 100 * 3, 0, 2))
    np.testing.assert_allclose(
        found["tasks"]["mos"]["accuracy3"]["value"], np.mean(thirds[0] == thirds[1])
    )


def test_predictions_are_read_back(tmp_path):
    file = tmp_path / "predictions.csv"
    file.write_text(
        "clip,source,split,a_score,a_label,a_spread\n"
        "k,s,validation,1,1,\nl,s,test,2.5,,0.1\nm,t,test,3,4,0.1\n"
    )
    whole = evaluate.read_predictions(file)
    found = whole.of("test")
    assert whole.tasks == ("a",) and len(whole.clips) == 3
    assert (list(found.clips), list(found.sources)) == (["l", "m"], ["s", "t"])
    np.testing.assert_array_equal(found.labels[:, 0], [np.nan, 4])
    np.testing.assert_array_equal(found.scores[:, 0], [2.5, 3])
    with pytest.raises(schema.InputError, match="damaged: no 'b_score'"):
        evaluate.read_predictions(file, ["b"])
