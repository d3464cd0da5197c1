import csv
import json

import numpy as np
import pytest
from scipy import stats

from experiments.subjective import __main__ as command
from experiments.subjective import findings, ratings, recovery, summary, truth
from extract import labels
from tests import subjective


def simulate(tmp_path, *arguments):
    out = tmp_path / "simulated"
    given = ["--raters=12", "--clips=8", "--trials=14", "--careless=2", *arguments]
    assert command.main(["simulate", f"--out={out}", "--repeats=2", *given]) == 0
    return out


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_simulated_answers_are_analysed(tmp_path, capsys):
    out = simulate(tmp_path)
    known = json.loads((out / "truth.json").read_text())
    for name, noise in (("good", 0.1), ("bad", 2.0)):
        rng = np.random.default_rng(0)
        text = "".join(
            f"{clip},{quality[1] + noise * rng.normal()}\n"
            for clip, quality in zip(known["clips"], known["quality"], strict=True)
        )
        (tmp_path / f"{name}.csv").write_text("clip,overall\n" + text)
    scores = [str(tmp_path / f"{name}.csv") for name in ("good", "bad")]
    found_in = tmp_path / "found"
    arguments = [f"--ratings={out / 'ratings'}", f"--out={found_in}", "--scores"]
    assert command.main(["analyse", *arguments, *scores]) == 0
    said = capsys.readouterr().out
    for part in ("## Clips", "## Raters who stand out", "## Model scores", "PLCC"):
        assert part in said
    found = json.loads((found_in / "analysis.json").read_text())
    assert found["study"]["raters"] == 12 and found["study"]["trials"] == 12 * 14
    clips = rows(found_in / "clips.csv")
    assert [row["clip"] for row in clips] == known["clips"]
    score = [float(row["score"]) for row in clips]
    assert stats.pearsonr(score, known["scores"])[0] > 0.7
    mos = [float(row["overall_mos"]) for row in clips]
    assert stats.pearsonr(mos, np.array(known["quality"])[:, 1])[0] > 0.9
    assert {row["rater"] for row in rows(found_in / "raters.csv")} == set(
        known["raters"]
    )
    assert (found_in / "analysis.png").read_bytes().startswith(b"\x89PNG")
    assert (found_in / "summary.md").read_text() in said
    first = {m["metric"]: m for m in found["models"] if m["model"] == scores[0]}
    assert first["plcc"]["value"] > 0.9


def test_the_folder_of_a_simulation_is_one_that_is_analysed(tmp_path, capsys):
    out, found = simulate(tmp_path), tmp_path / "found"
    simulate(tmp_path, "--raters=10")  # Answers of earlier raters do not stay.
    assert command.main(["analyse", f"--ratings={out}", f"--out={found}"]) == 0
    assert len(rows(found / "raters.csv")) == 10
    clips, given = rows(found / "clips.csv"), rows(found / "labels.csv")
    assert list(given[0]) == ["clip", "source", "lip_sync", "overall"]
    assert [row["clip"] for row in given] == [row["clip"] for row in clips]
    for task in ("lip_sync", "overall"):
        wanted = [float(row[f"{task}_mos"]) for row in clips]
        np.testing.assert_allclose(
            [float(row[task]) for row in given], wanted, rtol=1e-5
        )
    assert "8 have no source" in capsys.readouterr().out


def test_mean_ratings_become_labels_that_an_extraction_reads(tmp_path, capsys):
    folder = subjective.write_clips(tmp_path / "clips")
    a, b, c, d = subjective.NAMES
    lines = [
        ("ann", "p1", 0, "trial", "s1", "A", a, a, 4, "", "", "left"),
        ("bob", "p1", 0, "trial", "s1", "B", a, a, 5, "", "", "right"),
        ("ann", "p2", 1, "trial", "s2", "A", b, b, 2, 1, "", ""),
        ("ann", "p3", 2, "trial", "s3", "A", c, c, 3, "", 2.5, ""),
        ("ann", "p4", 3, "repeat", "s4", "B", d, d, 1, 1, 1, ""),  # Not counted.
    ]
    header = "rater_id,item_id,trial_index,kind,source,left_label,left_path,right_path,"
    header += "left_overall,right_overall,left_lip_sync,preference,right_lip_sync"
    table = [(*line, "") for line in lines]
    subjective.table(tmp_path / "answers.csv", header.split(","), table)
    out = tmp_path / "found"
    arguments = ["analyse", f"--ratings={tmp_path / 'answers.csv'}", f"--out={out}"]
    assert command.main(arguments) == 0
    read = labels.read(out / "labels.csv", folder)
    found = {item.path: (item.source, item.labels) for item in read.items}
    assert found == {
        folder / a: ("s1", {"overall": 4.5}),
        folder / b: ("s2", {"overall": 1.5}),
        folder / c: ("s3", {"overall": 3.0, "lip_sync": 2.5}),
    }


def test_preferences_alone_make_no_labels(tmp_path, capsys):
    line = ("ann", "p1", 0, "trial", "A", "x", "y", "left")
    header = "rater_id,item_id,trial_index,kind,left_label,left_path,right_path"
    path = tmp_path / "a.csv"
    subjective.table(path, [*header.split(","), "preference"], [line])
    out = tmp_path / "found"
    out.mkdir()
    (out / "labels.csv").write_text("of an earlier analysis")
    assert command.main(["analyse", f"--ratings={path}", f"--out={out}"]) == 0
    assert not (out / "labels.csv").exists()
    assert "preferences make no labels" in capsys.readouterr().out


def test_a_line_for_each_rater_and_clip_is_averaged(tmp_path):
    lines = [("x", "s", "ann", 4, -1), ("x", "s", "bob", 3, 2), ("y", "", "ann", 1, "")]
    header = ("clip", "source", "rater", "overall", "lip_sync")
    path = subjective.table(tmp_path / "ratings.csv", header, lines)
    out = tmp_path / "found"
    assert command.main(["analyse", f"--ratings={path}", f"--out={out}"]) == 0
    assert [tuple(row.values()) for row in rows(out / "labels.csv")] == [
        ("x", "s", "3.5", "2"),
        ("y", "", "1", ""),
    ]


def test_same_seed_same_files(tmp_path, capsys):
    one, other = simulate(tmp_path / "a"), simulate(tmp_path / "b")
    for path in sorted(one.rglob("*.*")):
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--clips=4", "--trials is 14; expected 2 to 6"),
        ("--careless=12", "--careless is 12; expected 0 to 11"),
        ("--bias=nan", "--bias is nan"),
        ("--repeats=0", "--repeats is 0"),
        ("--seed=-1", "--seed is -1"),
    ],
)
def test_impossible_studies_are_refused(tmp_path, capsys, given, message):
    arguments = ["--raters=12", "--clips=8", "--trials=14", f"--out={tmp_path / 'o'}"]
    assert command.main(["simulate", *arguments, given]) == 2
    assert message in capsys.readouterr().err


def test_missing_ratings_are_one_line(tmp_path, capsys):
    arguments = [f"--ratings={tmp_path / 'none'}", f"--out={tmp_path / 'out'}"]
    assert command.main(["analyse", *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_little_data_gives_reasons_and_no_crash(tmp_path):
    header = "rater_id,item_id,left_path,right_path,left_overall,right_overall"
    path = tmp_path / "ab_eval_results.csv"
    path.write_text(f"{header}\nann,p,x|1,y,3,3\n")
    found = findings.analyse(ratings.read([path]))
    json.dumps(found, allow_nan=False)
    page = summary.page(found)
    assert "fewer than 3 raters" in page and "x\\|1" in page
    assert found["tasks"]["overall"]["alpha"]["reason"]
    path.write_text(f"{header}\nann,p,x,y,,\nbob,p,x,y,,\n")
    found = findings.analyse(ratings.read([path]))
    assert "no answer prefers" in found["preferences"]["reason"]
    assert "no answer prefers" in summary.page(found)


def test_results_without_named_raters_stand_beside_those_with_all(tmp_path):
    settings = truth.Settings(careless=5)
    _, answers = truth.simulate(settings, np.random.default_rng(1))
    found = findings.analyse(answers)
    row = next(one for one in found["without"] if one["rule"] == "attention")
    assert row["raters"] == 30 - len(row["named"]) and len(row["named"]) >= 3
    rest = findings.analyse(answers.without(row["named"]))
    tables = ([clip["overall_mos"] for clip in one["clips"]] for one in (found, rest))
    moved = np.abs(np.subtract(*tables)).max()
    assert 0 < moved <= row["mos_moved_most"] + 1e-12
    assert row["alpha_mean"] == pytest.approx(
        np.mean([one["alpha"]["value"] for one in rest["tasks"].values()])
    )


def coverage(repeats, **settings):
    held = {name: [] for name in recovery.QUANTITIES}
    for seed in range(repeats):
        known, answers = truth.simulate(
            truth.Settings(careless=0, **settings), np.random.default_rng([5, seed])
        )
        for name, some in recovery.covered(known, answers).items():
            held[name].append(some)
    return held


def near_nominal(held):
    """Shares of 95 % intervals within binomial limits, studies taken for one draw.

    Intervals of one study depend on each other, so the limits are those of as many
    intervals as there would be if their spread over studies were binomial.
    """
    for name, some in held.items():
        rates = np.array([one.mean() for one in some if len(one)])
        sizes = np.array([len(one) for one in some if len(one)])
        share = np.average(rates, weights=sizes)
        alone = 0.95 * 0.05 / sizes.sum()
        spread = rates.var(ddof=1) / len(rates)
        independent = round(sizes.sum() * min(1.0, alone / max(spread, 1e-9)))
        low, high = stats.binom.interval(0.998, independent, 0.95)
        assert low <= share * independent <= high, (name, share, independent)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    near_nominal(coverage(40))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"raters": 12, "clips": 8, "trials": 28},
        {"raters": 50, "clips": 30, "trials": 30, "side_bias": 1.0, "tie": 0.5},
    ],
)
def test_intervals_hold_the_truth_in_larger_simulations(settings):
    held = coverage(200, **settings)
    for name, some in held.items():
        assert (
            0.93 <= np.concatenate(some).mean() <= 0.975
            or len(np.concatenate(some)) <= 200
        ), name


def test_rates_and_verdicts():
    found = recovery.measure(
        truth.Settings(raters=10, clips=6, trials=10, careless=2), seed=0, repeats=3
    )
    mos = found["coverage"]["careful"]["mos"]
    assert mos["intervals"] == 3 * 6 * 2 and 0.8 < mos["rate"] <= 1
    assert set(found["screening"]) == {
        "bt500", "p913", "p910", "preferences", "attention"
    }  # fmt: skip
    assert "as nominal" in recovery.page(found)
    rate = {"rate": 0.8, "se": 0.01, "intervals": 1000}
    assert recovery.verdict(rate) == "too narrow"
    assert recovery.verdict(rate | {"rate": 1.0}) == "too wide"
    assert recovery.verdict(rate | {"rate": None}) == "too few"
