"""Convergence: areas, epochs to a share of a value, and which runs never get there."""

import csv
import json
import math

import numpy as np
import pytest
from scipy import stats

from experiments import convergence
from experiments.studying import trials
from tests import small
from tqa_jax import config_files, schema


def curve(seed, values, epochs=6):
    values = np.array(values, float)
    return convergence.Curve(seed, epochs, values, 1 - values)


def test_a_curve_keeps_its_best_and_goes_on_after_an_early_stop():
    one = curve(0, [math.nan, 0.2, 0.1, 0.4])
    np.testing.assert_array_equal(one.best[1:], [0.2, 0.2, 0.4, 0.4, 0.4])
    assert one.area == pytest.approx((0 + 0.2 + 0.2 + 0.4 + 0.4 + 0.4) / 6)
    assert one.reaches(0.95 * 0.2) == 2 and one.reaches(0.38) == 4
    assert one.reaches(0.41) is None


def test_an_epoch_with_a_collapsed_task_is_no_better(tmp_path):
    config = {"config": config_files.load("smoke").to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "results.json").write_text("{}")
    line = {"split": "validation", "loss/a": 1.0, "loss/b": 2.0}
    line |= {"srcc/a": 0.8, "ccc/a": 0.7, "srcc/b": None, "ccc/b": 0.0}
    line |= {"srcc/c": None, "ccc/c": None}  # Without labels.
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    curve = convergence.read(tmp_path)
    assert curve.srcc == pytest.approx([0.4]) and curve.loss == pytest.approx([1.5])


def test_medians_count_censored_runs_as_late():
    curves = {
        "first": [curve(seed, [0.1, 0.4, 0.8]) for seed in range(3)],
        "fast": [curve(seed, [0.8, 0.7 + seed / 100]) for seed in range(3)],
        "some": [curve(0, [0.2, 0.9]), curve(1, [0.5]), curve(2, [0.9])],
        "never": [curve(seed, [0.5, 0.4]) for seed in range(3)],
        "below": [curve(seed, [-0.5, -0.4]) for seed in range(3)],
    }
    seconds = dict.fromkeys(curves, 2.0) | {"fast": 3.0}
    rows = {row["case"]: row for row in convergence.summarise(curves, seconds)}
    assert rows["first"]["epochs_own"] == rows["first"]["epochs_first"] == 3
    assert rows["fast"]["epochs_first"] == 1 and rows["fast"]["seconds_first"] == 3
    assert rows["some"]["epochs_first"] == 2 and rows["some"]["censored_first"] == 1
    assert rows["never"]["epochs_first"] is None
    assert rows["never"]["censored_first"] == 3 and rows["never"]["epochs_own"] == 1
    assert rows["below"]["undefined_own"] == 3 and rows["below"]["epochs_own"] is None


def test_areas_are_compared_seed_by_seed():
    rng = np.random.default_rng(0)
    curves = {
        name: [curve(s, np.sort(rng.uniform(0, 1, 6)) + more) for s in range(5)]
        for name, more in (("first", 0.0), ("much", 5.0), ("same", 0.0))
    }
    rows = {
        r["case"]: r for r in convergence.summarise(curves, dict.fromkeys(curves, 1.0))
    }
    p = {}
    for name in ("much", "same"):
        gaps = [
            a.best.mean() - b.best.mean()
            for a, b in zip(curves[name], curves["first"], strict=True)
        ]
        assert rows[name]["difference"] == pytest.approx(np.mean(gaps))
        p[name] = stats.ttest_rel(
            [o.area for o in curves[name]], [o.area for o in curves["first"]]
        ).pvalue
    assert rows["much"]["p_seeds"] == pytest.approx(2 * p["much"])
    assert rows["much"]["verdict"] == "better"
    assert rows["same"]["p_seeds"] == pytest.approx(max(p["same"], 2 * p["much"]))
    assert rows["same"]["verdict"] == "no difference"


@pytest.mark.slow
def test_finished_runs_are_read_and_not_trained(tmp_path, capsys):
    data, study, out = (tmp_path / name for name in ("data", "study", "out"))
    small.write(data)
    base = small.config(
        data__path=str(data), train__epochs=2, evaluate__dropout_draws=0
    )
    base.weighting.name = "fixed"
    cases = {"fixed, tuned": {}, "faster": {"optim.learning_rate": 3e-2}}
    trained = trials.run(base, cases, seeds=(0, 1, 2), folder=study / "runs")
    assert convergence.finished(study) == {
        name: [one.folder for one in runs] for name, runs in trained.items()
    }
    arguments = [f"--data={data}", f"--out={out}", f"--runs={study}", "--rounds=2"]
    assert convergence.main(arguments) == 0
    assert "fixed, tuned" in capsys.readouterr().out
    found = json.loads((out / "convergence.json").read_text())
    log = (trained["faster"][1].folder / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in log]
    last = [line for line in lines if line["split"] == "validation"][-1]
    srcc = [last[f"srcc/{task}"] for task in small.SCHEMA.task_names]
    with (out / "convergence_curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    (row,) = (
        row
        for row in rows
        if (row["case"], row["seed"], row["epoch"]) == ("faster", "1", "2")
    )
    assert float(row["srcc"]) == pytest.approx(np.mean(srcc))
    assert [row["case"] for row in found["rows"]] == list(cases)
    assert all(row["seconds_an_epoch"] > 0 for row in found["rows"])
    with pytest.raises(schema.InputError, match="holds no study"):
        convergence.finished(tmp_path / "nothing")
