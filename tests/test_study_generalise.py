"""What carries over: who is trained on what, baselines, and figures inside groups."""

import json

import numpy as np
import pytest

from experiments import generalise
from tests import small
from tqa_jax import schema


def make(number=120, seed=0):
    """Clips of 4 generators and 10 faces; labels follow generator and feature."""
    rng = np.random.default_rng(seed)
    clips = tuple(f"c{at}" for at in range(number))
    sources = tuple(f"face{at % 10}" for at in range(number))
    kind = np.arange(number) // 10 % 4
    means = rng.normal(size=(number, 3))
    means[:, 2] = kind
    labels = (kind + 0.2 * means[:, 0] + 0.05 * rng.normal(size=number))[:, None]
    column = {clip: "abcd"[k] for clip, k in zip(clips, kind, strict=True)}
    return generalise.Table(clips, sources, labels, means), column


def test_every_clip_is_tested_once_in_each_way():
    clips, column = make()
    del column["c7"]
    ways = generalise.arrange(clips, column, by_group=True, folds_=5)
    assert list(map(len, ways.values())) == [5, 5, 4]
    source = dict(zip(clips.clips, clips.sources, strict=True))
    for way, found in ways.items():
        tested = [c for one in found for c, split in one.items() if split == "test"]
        expected = set(clips.clips) - ({"c7"} if way == "by group" else set())
        assert len(tested) == len(set(tested)) and set(tested) == expected
        for one in found:
            by_split = {
                split: {c for c, s in one.items() if s == split}
                for split in schema.SPLITS
            }
            assert all(by_split.values())
            faces = {s: {source[c] for c in some} for s, some in by_split.items()}
            if way != "random":
                assert not faces["train"] & faces["validation"]
            if way == "by source":
                assert not faces["test"] & (faces["train"] | faces["validation"])
            if way == "by group":
                kinds = {s: {column[c] for c in some} for s, some in by_split.items()}
                assert len(kinds["test"]) == 1
                assert not kinds["test"] & (kinds["train"] | kinds["validation"])
    few = generalise.arrange(clips, column, by_group=True, folds_=5, most=2)
    assert len(few["by group"]) == 2


def test_ridge_is_that_of_the_normal_equations():
    clips, _ = make()
    means = clips.means.copy()
    means[5, 1] = np.nan
    clips = generalise.Table(clips.clips, clips.sources, clips.labels, means)
    rows = {
        "train": np.arange(0, 70),
        "validation": np.arange(70, 90),
        "test": np.arange(90, 120),
    }
    found = generalise.ridge(clips, rows)[:, 0]
    train = means[:70]
    z = (means - np.nanmean(train, axis=0)) / np.nanstd(train, axis=0)
    z = np.where(np.isnan(z), 0, z)
    y = clips.labels[:, 0] - clips.labels[:70, 0].mean()
    best = None
    for penalty in np.logspace(-1, 5, 13):
        w = np.linalg.solve(z[:70].T @ z[:70] + penalty * np.eye(3), z[:70].T @ y[:70])
        error = ((z[70:90] @ w - y[70:90]) ** 2).mean()
        if best is None or error < best[0]:
            best = error, w
    expected = z[90:] @ best[1] + clips.labels[:70, 0].mean()
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_name_predicts_its_mean_and_an_unknown_one_that_of_all():
    clips, column = make(40)
    rows = {"train": np.arange(0, 30), "test": np.arange(28, 40)}
    found = generalise.by_name(clips, rows, column)[:, 0]
    labels = clips.labels[:, 0]
    np.testing.assert_allclose(found[:2], labels[20:30].mean())
    np.testing.assert_allclose(found[2:], labels[:30].mean())


def test_inside_groups_a_name_is_worth_nothing_and_a_feature_something():
    clips, column = make()
    good = clips.labels[None] + 0.0
    kind = np.array(["abcd".index(column[c]) for c in clips.clips], float)
    rng = np.random.default_rng(3)
    vague = kind[None, :, None] + 0.01 * rng.normal(size=(3, 120, 1))
    scores = {
        ("random", "network"): vague,
        ("random", "ridge"): good,
        ("random", "group's name"): kind[None, :, None],
    }
    rows, tests = generalise.judge(scores, clips, column, ("overall",))
    by_method = {row["method"]: row for row in rows}
    assert by_method["network"]["srcc"] > 0.9
    assert abs(by_method["network"]["within"]) < 0.2
    assert by_method["ridge"]["within"] == pytest.approx(1)
    assert by_method["group's name"]["within"] == 0
    found = {(row["comparison"], row["figure"]): row for row in tests}
    row = found["network to ridge, random", "within"]
    assert row["verdict"] == "worse"
    gap = by_method["network"]["within"] - by_method["ridge"]["within"]
    assert row["difference"] == pytest.approx(gap)
    # Inside groups, with a loop.
    values = []
    for run in vague:
        inside = []
        for group in "abcd":
            mine = [at for at, c in enumerate(clips.clips) if column[c] == group]
            ranks = [np.argsort(np.argsort(x[mine, 0])) for x in (run, clips.labels)]
            inside.append(np.corrcoef(*ranks)[0, 1])
        values.append(np.mean(inside))
    assert by_method["network"]["within"] == pytest.approx(np.mean(values))


@pytest.mark.slow
def test_other_data_sets_are_scored_by_models_of_the_first(tmp_path, capsys):
    data, other = tmp_path / "a", tmp_path / "b"
    small.write(data)
    small.write(other, clips=30, seed=1)
    arguments = [f"--data={data}", f"--out={tmp_path / 'out'}", "--quick"]
    arguments += ["--draws=1", "--seeds=3", f"--others={other}"]
    assert generalise.main(arguments) == 0
    found = json.loads((tmp_path / "out/generalise.json").read_text())
    rows = {(row["split"], row["method"]): row for row in found["rows"]}
    own, theirs = (rows[name, "network"] for name in ("small (own test)", "small (b)"))
    assert own["clips"] == 12 and theirs["clips"] == 30
    values = []
    for seed in range(3):
        run = tmp_path / f"out/runs/runs/case=fixed,_tuned,seed={seed}/results.json"
        values.append(json.loads(run.read_text())["average"]["srcc"]["value"])
    assert own["srcc"] == pytest.approx(np.mean(values), abs=1e-6)
    assert rows["small (b)", "ridge"]["srcc"] > 0.8
    assert generalise.main([*arguments[:-1], f"--others={tmp_path / 'none'}"]) == 2
    assert "is no data set" in capsys.readouterr().err


@pytest.mark.slow
def test_study_by_group(tmp_path, capsys):
    small.write(tmp_path / "a")
    table = tmp_path / "g.csv"
    lines = [f"clip{number},{'xyz'[number % 3]}" for number in range(60)]
    table.write_text("\n".join(["clip,generator", *lines]))
    arguments = [f"--data={tmp_path / 'a'}", f"--out={tmp_path / 'out'}", "--quick"]
    arguments += ["--draws=1", "--seeds=2", f"--groups={table}"]
    assert generalise.main(arguments) == 0
    found = json.loads((tmp_path / "out/generalise.json").read_text())
    assert found["grouping"] == "generator"
    assert [(row["split"], row["method"]) for row in found["rows"]] == [
        (way, method)
        for way in ("random", "by source", "by group")
        for method in ("network", "ridge", "group's name")
        if (way, method) != ("by group", "group's name")
    ]
    assert "no difference" in (said := capsys.readouterr().out) or "too few" in said
