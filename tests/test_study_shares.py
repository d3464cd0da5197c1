"""Shares of the labels are nested, by source, and train for as many steps."""

import dataclasses

import numpy as np
import pytest

from experiments.studying import by_seed, derived, shares
from tests import small
from tqa_jax import comparison, evaluate, schema


def test_shares_are_nested_and_as_small_as_can_be():
    sources = {f"s{n}": 1 + n % 4 for n in range(23)}
    total = sum(sources.values())
    drawn = set()
    for seed in range(20):
        found = shares.draw(sources, (10, 25, 50, 100), seed=seed)
        assert found[10] <= found[25] <= found[50] <= found[100] == set(sources)
        for share, names in found.items():
            clips = sum(sources[name] for name in names)
            assert clips >= share / 100 * total
            # One source less would not do: none has more than 4 clips.
            assert clips - 4 < share / 100 * total
        assert found[25] == shares.draw(sources, (25,), seed=seed)[25]
        drawn.add(found[10])
    assert len(drawn) > 10


@pytest.mark.parametrize("text", ["", "0,10", "10,5", "10,10", "10,x", "110"])
def test_other_shares_are_refused(text):
    with pytest.raises(schema.InputError, match="--shares="):
        shares.parse(text)


def test_few_labelled_clips_are_repeated_and_other_splits_stay(tmp_path):
    small.write(tmp_path / "data", clips=30)
    before = list(derived.pairs(tmp_path / "data"))
    kept = frozenset({"s0", "s5"})
    out = shares.only(tmp_path / "data", tmp_path / "out", kept)
    after = list(derived.pairs(out))
    train = [clip for split, clip in after if split == "train"]
    assert len(train) == sum(split == "train" for split, _ in before) == 18
    # Six clips three times over.
    assert {clip.source for clip in train} == kept
    turns = [clip.clip.split(" (")[0] for clip in train]
    assert sorted(turns) == sorted([f"clip{n}" for n in (0, 1, 2, 15, 16, 17)] * 3)
    by_name = {clip.clip: clip for _, clip in before}
    for clip, name in zip(train, turns, strict=True):
        np.testing.assert_array_equal(clip.labels, by_name[name].labels)
    for split in ("validation", "test"):
        names = [[c.clip for s, c in pairs if s == split] for pairs in (before, after)]
        assert names[0] == names[1]
    everyone = frozenset(shares.count(tmp_path / "data"))
    assert shares.only(tmp_path / "data", tmp_path / "all", everyone) == (
        tmp_path / "data"
    )


def test_clips_without_labels_are_no_labels(tmp_path):
    small.write(tmp_path / "data", clips=30)

    def hide(split, clip):
        if clip.source == "s0" or clip.clip == "clip3":
            clip = dataclasses.replace(clip, labels=np.full(3, np.nan, np.float32))
        return split, clip

    data = derived.make(tmp_path / "data", tmp_path / "a", hide, description="hidden")
    counts = shares.count(data)
    assert counts == {"s1": 2, "s2": 3, "s5": 3, "s6": 3, "s7": 3}
    out = shares.only(data, tmp_path / "b", frozenset(counts))
    clips = [clip for split, clip in derived.pairs(out) if split == "train"]
    assert len(clips) == 18 and all(np.isfinite(clip.labels).any() for clip in clips)


def test_every_case_is_compared_with_its_own_reference():
    rng = np.random.default_rng(0)
    labels = np.arange(24) / 6 + 1
    sources = tuple(f"s{n // 3}" for n in range(24))

    def outcomes(noise, name):
        found = []
        for seed in range(5):
            scores = labels + rng.normal(size=24) * noise
            ranks = [np.argsort(np.argsort(v)) for v in (scores, labels)]
            value = float(np.corrcoef(*ranks)[0, 1])
            metric = {"value": value}
            names = (np.array(each, object) for each in (range(24), sources, sources))
            columns = scores[:, None], labels[:, None], scores[:, None]
            said = evaluate.Predictions(("t",), *names, *columns)
            results = {
                "average": dict.fromkeys(("srcc", "plcc", "rmse"), metric),
                "tasks": {"t": {"srcc": metric}},
            }
            found.append(comparison.Outcome({"case": name}, seed, results, said))
        return found

    given = {"a": 2.0, "b": 0.2, "c": 2.0, "d": 0.2}
    all_of_them = {name: outcomes(noise, name) for name, noise in given.items()}
    rows = by_seed.compare(all_of_them, {"b": "a", "d": "c"})
    assert [row["reference"] for row in rows] == ["", "a", "", "c"]
    assert [row["verdict"] for row in rows] == ["", "better", "", "better"]
    mean = {row["case"]: row["srcc"] for row in rows}
    assert rows[1]["difference"] == pytest.approx(mean["b"] - mean["a"])
    assert rows[3]["difference"] == pytest.approx(mean["d"] - mean["c"])
    # Two comparisons: the smaller p is doubled, the larger at least as large.
    plain = [
        comparison.compare([*all_of_them[a], *all_of_them[b]])[1]["p_seeds"]
        for a, b in (("a", "b"), ("c", "d"))
    ]
    found = [rows[1]["p_seeds"], rows[3]["p_seeds"]]
    assert min(found) == pytest.approx(2 * min(plain))
    assert max(found) == pytest.approx(max(2 * min(plain), max(plain)))
