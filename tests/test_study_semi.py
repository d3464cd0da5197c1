"""Pseudo-labels come from a teacher that saw neither those clips nor test clips."""

import json

import numpy as np
import pytest

from experiments import semi
from experiments.studying import derived, pseudo
from tests import small


@pytest.fixture
def data(tmp_path):
    small.write(tmp_path / "data", clips=30)
    return tmp_path / "data"


def drawn(number=9, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.uniform(1, 5, (number, 3))
    labels[2, 1] = np.nan
    names = tuple(f"c{n}" for n in range(number))
    scores = np.clip(labels + rng.normal(size=labels.shape), 1, 5)
    scores[2, 1] = 3.0
    return pseudo.Pseudo(names, scores, labels, rng.uniform(0, 1, labels.shape))


def test_teacher_is_trained_on_labelled_sources_and_scores_the_others(data):
    kept = frozenset({"s0", "s5"})
    out = pseudo.teaching(data, data.parent / "out", kept)
    before, after = list(derived.pairs(data)), list(derived.pairs(out))
    sources = {s: {c.source for split, c in after if split == s} for s in
               ("train", "validation", "test")}  # fmt: skip
    assert sources["train"] == kept
    assert sources["test"] == {"s1", "s2", "s6", "s7"}
    assert sources["validation"] == {"s3", "s8"}
    tested = {clip.source for split, clip in before if split == "test"}
    assert tested == {"s4", "s9"} and not tested & set().union(*sources.values())
    assert sum(split == "train" for split, _ in after) == 18


def test_sure_pseudo_labels_are_the_half_with_least_spread():
    given = drawn()
    found = pseudo.choose(given, "sure")
    for k in range(3):
        sure = sorted(range(9), key=lambda n: given.spread[n, k])[:5]
        for n in range(9):
            if n in sure:
                assert found[n, k] == given.scores[n, k]
            else:
                assert np.isnan(found[n, k])


def test_shuffled_pseudo_labels_are_those_of_other_clips():
    given = drawn(40)
    found = pseudo.choose(given, "shuffled")
    assert sorted(map(tuple, found)) == sorted(map(tuple, given.scores))
    assert (found == given.scores).all(axis=1).mean() < 0.2
    np.testing.assert_array_equal(pseudo.choose(given, "all"), given.scores)


def test_labels_are_given_to_the_other_training_clips_only(data):
    kept = frozenset({"s0", "s5"})
    before = {clip.clip: (split, clip) for split, clip in derived.pairs(data)}
    others = [
        name
        for name, (split, clip) in before.items()
        if split == "train" and clip.source not in kept
    ]
    labels = {name: np.full(3, 1 + n / 4) for n, name in enumerate(others)}
    out = pseudo.give(data, data.parent / "out", kept, labels, description="x")
    assert len(others) == 12
    for split, clip in derived.pairs(out):
        expected = labels.get(clip.clip, before[clip.clip][1].labels)
        np.testing.assert_array_equal(clip.labels, expected.astype(np.float32))
        assert split == before[clip.clip][0]


def test_errors_are_those_against_the_hidden_labels():
    teachers = {0: {25: drawn(9, 0)}, 1: {25: drawn(9, 1)}}
    rows = pseudo.errors(teachers, (25,), (0, 1), small.SCHEMA.tasks)
    assert [row["pseudo-labels"] for row in rows] == list(pseudo.KINDS)
    for row in rows[:2]:
        values, cells = [], 0
        for seed in (0, 1):
            given = teachers[seed][25]
            chosen = pseudo.choose(given, row["pseudo-labels"])
            for k in range(3):
                squares = [
                    (chosen[n, k] - given.labels[n, k]) ** 2
                    for n in range(9)
                    if not np.isnan(chosen[n, k] + given.labels[n, k])
                ]
                cells += len(squares)
                values.append(np.sqrt(np.mean(squares)))
        assert row["rmse"] == pytest.approx(np.mean(values))
        assert row["cells"] == cells / 2
    assert rows[2]["rmse"] > rows[0]["rmse"] and rows[2]["srcc"] < rows[0]["srcc"]


def test_shares_that_leave_nothing_to_label_are_refused(data, capsys):
    given = [f"--data={data}", f"--out={data.parent / 'out'}", "--shares=50,100"]
    assert semi.main([*given, "--quick"]) == 2
    assert "100 % of the labels leaves none" in capsys.readouterr().err


@pytest.mark.slow
def test_the_study_runs(data, capsys):
    out = data.parent / "out"
    given = [f"--data={data}", f"--out={out}", "--quick", "--seeds=1", "--draws=1"]
    assert semi.main(given) == 0
    found = json.loads((out / "semi.json").read_text())
    kinds = ("labels alone", "consistency", "all", "sure", "shuffled", "all labels")
    for row, kind in zip(found["rows"], kinds, strict=True):
        assert row["case"].startswith(kind) and row["srcc"] is not None
    assert [row["cells"] for row in found["pseudo_labels"]][0] > 20
    page = (out / "semi.md").read_text()
    assert "too few" in page and "hidden" in page
    (folder,) = (out / "teachers" / "0" / "runs").iterdir()
    said = pseudo.read(folder, small.SCHEMA.tasks)
    labels = {
        clip.clip: clip.labels
        for split, clip in derived.pairs(next((out / "data").glob("25-0-all")))
        if split == "train"
    }
    for name, scores in zip(said.clips, said.scores, strict=True):
        np.testing.assert_allclose(labels[name], scores, rtol=1e-6)
