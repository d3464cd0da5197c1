import itertools

import numpy as np
import pytest
from scipy import stats

from experiments.subjective import contrast, model_agreement, opinions, truth
from tqa_jax import schema, statistics


def simulated(seed=0, **settings):
    settings = {"raters": 12, "clips": 8, "trials": 20, "careless": 0} | settings
    known, answers = truth.simulate(
        truth.Settings(**settings), np.random.default_rng(seed)
    )
    return known, answers.trials()


def values(rows, name="m", task="overall"):
    return {
        row["metric"]: row
        for row in rows
        if row["model"] == name and row["task"] == task
    }


def test_metrics_are_those_of_loops():
    known, trials = simulated()
    scores = known.quality[:, 1] + np.random.default_rng(1).normal(size=8)
    scores[3] = scores[2]
    rows = model_agreement.compare(trials, {"m": {"overall": scores}}, resamples=0)
    found = {name: row["value"] for name, row in values(rows).items()}
    table = opinions.votes(trials, 1).table(12, 8)
    mos = np.nanmean(table, axis=0)
    assert found["plcc"] == pytest.approx(stats.pearsonr(scores, mos)[0])
    assert found["srcc"] == pytest.approx(stats.spearmanr(scores, mos)[0])
    assert found["rmse"] == pytest.approx(np.sqrt(((scores - mos) ** 2).mean()))
    right, decided, ties = 0.0, 0, 0
    for one, other, said in zip(
        trials.left, trials.right, trials.preference, strict=True
    ):
        gap = scores[one] - scores[other]
        ties += said == 0
        decided += said != 0
        right += 0 if said == 0 else 0.5 if gap == 0 else float(said * gap > 0)
    assert ties > 0
    assert found["pairs"] == pytest.approx(right / decided)
    assert found["pairs_half"] == pytest.approx((right + ties / 2) / (decided + ties))
    different, similar, better = [], [], []
    for one, other in itertools.combinations(range(8), 2):
        sizes = [(~np.isnan(table[:, n])).sum() for n in (one, other)]
        error = sum(
            np.nanvar(table[:, n], ddof=1) / size
            for n, size in zip((one, other), sizes, strict=True)
        )
        gap = mos[one] - mos[other]
        limit = stats.t.ppf(0.975, min(sizes) - 1) * error**0.5
        ahead = scores[one] - scores[other]
        (different if abs(gap) > limit else similar).append(abs(ahead))
        if abs(gap) > limit:
            better.append(ahead if gap > 0 else -ahead)
    wins = [(a > b) + (a == b) / 2 for a in different for b in similar]
    assert found["different"] == pytest.approx(np.mean(wins))
    wins = [(a > -b) + (a == -b) / 2 for a in better for b in better]
    assert found["better"] == pytest.approx(np.mean(wins))


def test_better_model_is_better_and_a_copy_is_no_different():
    known, trials = simulated(raters=25, clips=15)
    noise = np.random.default_rng(2).normal(size=15)
    good, bad = known.quality[:, 1] + 0.05 * noise, known.quality[:, 1] + 1.5 * noise
    models = {n: {"overall": s} for n, s in (("m", good), ("copy", good), ("bad", bad))}
    rows = model_agreement.compare(trials, models, resamples=200)
    mine, copy, other = (values(rows, name) for name in models)
    assert mine["plcc"]["low"] < mine["plcc"]["value"] < mine["plcc"]["high"] + 0.02
    assert "p" not in mine["plcc"]
    assert copy["plcc"]["difference"] == 0 and copy["plcc"]["p"] == 1
    assert other["plcc"]["difference_high"] < 0
    assert other["plcc"]["p_holm"] == pytest.approx(2 * other["plcc"]["p"])
    assert other["plcc"]["p_holm"] < 0.05


def test_missing_scores_and_constant_scores_have_reasons():
    known, trials = simulated()
    some = np.where(np.arange(8) < 3, known.quality[:, 1], np.nan)
    row = values(model_agreement.compare(trials, {"m": {"overall": some}}))["srcc"]
    assert row["clips"] == 3 and "fewer than 5" in row["reason"]
    flat = values(
        model_agreement.compare(trials, {"m": {"overall": np.ones(8)}}, resamples=10)
    )
    assert flat["srcc"]["value"] is None and "no spread" in flat["srcc"]["reason"]
    assert flat["pairs"]["value"] == 0.5


def test_scores_are_found_by_path_name_or_stem(tmp_path):
    path = tmp_path / "scores.csv"
    clips = ("in/a.mp4", "b.mp4", "c.mp4")
    path.write_text(
        'clip,seconds,overall,overall_low\nin/a.mp4,1,2.5,1\n"out/b.mp4",1,,1\nc,1,4,1\n'
    )
    found = model_agreement.read_scores(path, clips, ("overall", "lip_sync"))
    np.testing.assert_array_equal(found["overall"], [2.5, np.nan, 4])
    path.write_text("clip,source,split,overall_score,overall_label\na,s,test,3.5,2\n")
    found = model_agreement.read_scores(path, clips, ("overall",))
    np.testing.assert_array_equal(found["overall"], [3.5, np.nan, np.nan])
    for text, message in (
        ("clip,other\na,1\n", "must have the columns clip and one of overall"),
        ("clip,overall\nz,1\n", "none of the rated clips"),
        ("clip,overall\na,1\na,2\n", "a clip twice"),
        ("clip,overall\na,high\n", "'high' of 'in/a.mp4' is no number"),
    ):
        path.write_text(text)
        with pytest.raises(schema.InputError, match=message):
            model_agreement.read_scores(path, clips, ("overall",))


def test_contrast_is_a_paired_test_over_raters():
    rng = np.random.default_rng(3)
    rater = np.repeat(np.arange(10), 7)
    values = rng.normal(0.4, 1, 70)
    values[5] = np.nan
    found = contrast.over_raters(values, rater)
    means = np.array([np.nanmean(values[rater == n]) for n in range(10)])
    test = stats.ttest_1samp(means, 0)
    ends = test.confidence_interval()
    assert (found["raters"], found["answers"]) == (10, 69)
    assert found["p"] == pytest.approx(test.pvalue)
    assert (found["low"], found["high"]) == pytest.approx((ends.low, ends.high))
    assert found["p_wilcoxon"] == pytest.approx(stats.wilcoxon(means).pvalue)
    assert found["effect"] == pytest.approx(means.mean() / means.std(ddof=1))


def test_contrast_without_a_test_has_a_reason():
    none = contrast.over_raters(np.full(3, np.nan), np.arange(3))
    assert none["value"] is None and none["reason"] == "no answers"
    few = contrast.over_raters(np.array([1.0, 2]), np.arange(2))
    assert few["value"] == 1.5 and "fewer than 3" in few["reason"]
    same = contrast.over_raters(np.array([0.1 + 0.2, 0.3, 0.3]), np.arange(3))
    assert same["p"] is None and "same mean" in same["reason"]


def test_sides_and_conditions_have_their_signs():
    _, trials = simulated(side_bias=2.0, raters=20)
    first = contrast.sides(trials)[0]
    assert first["measure"] == "preference" and first["low"] > 0.3
    swapped = np.where(trials.a_left, 1, -1) * trials.preference
    assert contrast.conditions(trials)[0]["value"] == pytest.approx(
        np.mean([swapped[trials.rater == n].mean() for n in range(20)])
    )


def test_holm_is_the_textbook_rule():
    rows = [{"p": p} for p in (0.01, 0.04, None, 0.03, 0.005)]
    statistics.correct(rows, ("p",), "_holm")
    expected = [0.03, 0.06, None, 0.06, 0.02]
    assert [row["p_holm"] for row in rows] == pytest.approx(expected)
