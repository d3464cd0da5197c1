import collections

import pytest

from extract import folds
from tqa_jax import schema


def _splits(counts, seed=0):
    return folds.draw_splits(counts, seed=seed, path="labels.csv")


def _folds(counts, seed=0, fold=0):
    return folds.draw(counts, folds=3, fold=fold, seed=seed)


@pytest.mark.parametrize("sources", [3, 4, 5, 16, 100])
@pytest.mark.parametrize("draw", [_splits, _folds])
def test_drawn_splits_are_full_and_do_not_depend_on_the_order(draw, sources):
    for seed in range(5):
        counts = {f"s{i}": 1 + i % 3 for i in range(sources)}
        drawn = draw(counts, seed)
        clips = collections.Counter()
        for source, split in drawn.items():
            clips[split] += counts[source]
        assert set(drawn) == set(counts) and set(clips) == set(schema.SPLITS)
        total = sum(counts.values())
        for split, share in folds.SPLIT_SHARES.items() if draw is _splits else ():
            if sources >= 16:  # within one source of its share
                assert abs(clips[split] - share * total) <= 3
        assert drawn == draw(dict(reversed(counts.items())), seed)
    names = dict.fromkeys("abcdefghij", 1)
    assert any(draw(names, seed) != draw(names, 0) for seed in range(1, 4))


def test_folds_have_about_as_many_clips_each():
    clips = {f"s{i}": int(n) for i, n in enumerate([30, 1, 1, 9, 9, 9, 2, 5, 4, 20])}
    sizes = []
    for fold in range(3):
        split = _folds(clips, fold=fold)
        sizes.append(sum(n for s, n in clips.items() if split[s] == "test"))
    assert sum(sizes) == 90 and max(sizes) - min(sizes) <= 2


def test_draws_of_a_seed_stay_what_they_are():
    clips = {name: 1 + number % 3 for number, name in enumerate("abcdefgh")}
    drawn = [
        " ".join(draw(clips, 7)[name][:2] for name in clips)
        for draw in (_splits, _folds)
    ]
    assert drawn == ["tr va tr va tr tr tr te", "va te te va tr va tr tr"]
