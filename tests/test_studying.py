"""Studies: every case gets the same tries; a difference needs both tests."""

import json
import math

import numpy as np
import pytest

from experiments.studying import cases, command, contrasts, results, trials
from tests import small
from tqa_jax import schema, statistics


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studying")
    small.write(folder / "data")
    return folder


@pytest.fixture
def options(data):
    base = small.config(
        data__path=str(data / "data"), train__epochs=2, evaluate__dropout_draws=0
    )
    base.weighting.name = "fixed"
    (data / "out").mkdir(exist_ok=True)
    return command.Options(
        data=data / "data",
        out=data / "out",
        seeds=(0, 1, 2),
        draws=3,
        quick=False,
        base=base,
        given=None,
    )


def test_draws_start_with_the_case_itself_and_stay_in_range():
    ranges = {"a": ("log", 0.1, 10.0), "b": ("uniform", 2.0, 3.0)}
    assert trials.draw(ranges, 0, seed=7) == {}
    found = [trials.draw(ranges, number, seed=7) for number in range(1, 300)]
    logs = np.log10([one["a"] for one in found])
    assert logs.min() >= -1 and logs.max() <= 1 and abs(logs.mean()) < 0.1
    assert all(2 <= one["b"] <= 3 for one in found)
    assert len({one["a"] for one in found}) > 290
    assert found[4] == trials.draw(ranges, 5, seed=7) != trials.draw(ranges, 5, seed=8)


def test_fixed_weights_are_tuned_unless_there_is_one_task(options):
    ranges = trials.tuned_fixed(options).ranges
    assert set(ranges) == {"optim.learning_rate"} | {
        f"weighting.fixed.values.{name}"
        for name in ("lip_sync", "audio_quality", "overall")
    }
    one = schema.Schema(small.SCHEMA.modalities, small.SCHEMA.tasks[:1])
    assert trials.weight_ranges(one) == {}


@pytest.mark.slow
def test_study_tunes_trains_compares_and_goes_on(options, capsys, monkeypatch):
    reference = trials.tuned_fixed(options)
    same = trials.Case(reference.changes)
    other = reference.but({"loss.l1_weight": 0.5})
    compared = {"fixed": reference, "same": same, "other": other}
    rows = cases.study(options, "three", "Three cases", compared)
    assert [row["case"] for row in rows] == list(compared)
    assert [row["seeds"] for row in rows] == [3, 3, 3]
    tried = sorted(p.name for p in (options.out / "tuning" / "runs").iterdir())
    # `same` has nothing to draw: its one setting is the first draw of `fixed`.
    assert len(tried) == 12 and sum("other" in name for name in tried) == 6
    found = json.loads((options.out / "three.json").read_text())
    best = {}
    for name in ("fixed", "other"):
        values = []
        for number in range(3):
            results_of = []
            for seed in (1_000_000, 1_000_001):
                folder = options.out / "tuning" / "runs"
                folder /= f"case={name}_{number},seed={seed}"
                result = json.loads((folder / "results.json").read_text())
                results_of.append(result["selected"]["value"])
            config = json.loads((folder / "config.json").read_text())["config"]
            values.append((np.mean(results_of), config["optim"]["learning_rate"]))
        best[name] = max(values)[1]
    for name, rate in best.items():
        chosen = found["chosen"][name].get("optim.learning_rate")
        assert chosen == (None if rate == options.base.optim.learning_rate else rate)
    page = (options.out / "three.md").read_text()
    assert page.count("\n| ") == 4 and "3 seeds a case" in page
    assert (options.out / "three.png").read_bytes().startswith(b"\x89PNG")

    def never(*given, **more):
        raise AssertionError("trained again")

    monkeypatch.setattr("tqa_jax.lockstep.train", never)
    assert cases.study(options, "three", "Three cases", compared) == rows
    assert "three.csv" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("difference", "p_seeds", "p_clips", "expected"),
    [
        (0.1, 0.01, 0.04, "better"),
        (-0.1, 0.01, 0.04, "worse"),
        (0.1, 0.05, 0.06, "no difference"),
        (0.1, 0.01, 0.06, "unclear"),
        (-0.1, 0.2, 0.01, "unclear"),
        (0.1, None, 0.01, "too few"),
        (None, None, None, "too few"),
    ],
)
def test_verdict_needs_both_tests(difference, p_seeds, p_clips, expected):
    row = {"difference": difference, "p_seeds": p_seeds, "p_clips": p_clips}
    assert results.verdict(row) == expected


def test_a_collapsed_task_stays_in_the_mean_and_two_seeds_bear_no_p():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(2, 40))
    counts = statistics.resample_sources([f"s{i}" for i in range(40)], 200)
    easy = np.stack([labels[0] + 0.2 * rng.normal(size=40) for _ in range(3)])
    flat = np.full((3, 40), 3.0)
    parts = [
        contrasts.figures("srcc", scores, task, counts)
        for scores, task in zip((easy, flat), labels, strict=True)
    ]
    found = contrasts.estimate(statistics.mean_over_tasks(parts))
    assert found["value"] == pytest.approx(parts[0][:, 0].mean() / 2)
    assert found["p_clips"] == pytest.approx(2 / 201)
    two = contrasts.estimate(statistics.mean_over_tasks(parts)[:2])
    assert two["p_clips"] is None and two["low"] > 0.4


def test_markdown_has_a_line_a_row_and_a_dash_for_nothing():
    rows = [{"a": 1.0, "b": None}, {"a": 12345.6, "b": "x"}]
    assert results.markdown(rows).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 1.000 | - |",
        "| 12,346 | x |",
    ]


def test_json_holds_nothing_that_is_not_finite(options):
    rows = [{"case": "a", "value": math.nan}]
    results.write(options, "odd", rows, table="", said=[])
    text = (options.out / "odd.json").read_text()
    assert json.loads(text)["rows"] == [{"case": "a", "value": None}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds=0"], "--seeds is 0; expected at least 1"),
        (["--draws=0"], "--draws is 0; expected at least 1"),
        (["--data=nowhere"], "nowhere"),
        (["--config=nowhere.py"], "no configuration nowhere.py"),
    ],
)
def test_bad_options_are_one_line_and_exit_status_2(arguments, said, tmp_path, capsys):
    given = [f"--out={tmp_path / 'out'}", "--quick", *arguments]
    if not arguments[0].startswith("--data"):
        small.write(tmp_path / "data")
        given.append(f"--data={tmp_path / 'data'}")
    assert command.run(lambda options: None, arguments=given) == 2
    found = capsys.readouterr().err.splitlines()
    assert len(found) == 1 and found[0].startswith("error: ") and said in found[0]
    assert not (tmp_path / "out").exists()
