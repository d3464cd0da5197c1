import numpy as np
import pytest

from extract.degrading import flaws
from extract.rendering import demo_plan
from tqa_jax import schema


def test_the_plan_is_deterministic_and_follows_the_seed():
    assert demo_plan.plan(24) == demo_plan.plan(24)
    assert demo_plan.plan(24, seed=1) != demo_plan.plan(24)
    # Nothing before the flaws depends on the number of workers or on order.
    assert len({item.seed for item in demo_plan.plan(240)}) == 240


@pytest.mark.parametrize("clips", [3, 8, 24, 240])
def test_splits_share_no_identity_and_none_is_empty(clips):
    plans = demo_plan.plan(clips)
    people = {
        split: {item.source for item in plans if item.split == split}
        for split in schema.SPLITS
    }
    assert len(plans) == clips
    assert sum(map(len, people.values())) == len(set.union(*people.values()))
    assert min(map(len, people.values())) >= (3 if clips >= 9 else 1)
    seeds = {item.source: item.identity_seed for item in plans}
    assert len(set(seeds.values())) == len(seeds)


def test_the_full_set_has_the_sizes_it_promises():
    plans = demo_plan.plan(240)
    people = [
        len({item.source for item in plans if item.split == split})
        for split in schema.SPLITS
    ]
    assert people == [26, 6, 8]
    missing = 1 - sum(len(item.labels) for item in plans) / (5 * 240)
    assert missing == pytest.approx(0.08, abs=0.001)
    assert sum(bool(item.absent) for item in plans) == 10
    assert sum(item.covered is not None for item in plans) == 15
    assert {len(item.strengths) for item in plans} == {0, 1, 2, 3}


def test_tasks_of_the_full_set_spread_and_are_not_the_same():
    plans = demo_plan.plan(240)
    scores = np.array([list(flaws.labels(item.strengths).values()) for item in plans])
    assert scores.std(axis=0).min() > 0.6
    related = np.abs(np.corrcoef(scores.T) - np.eye(5))
    assert related.max() < 0.9


def test_too_few_clips_are_refused():
    with pytest.raises(schema.InputError, match="at least 3"):
        demo_plan.plan(2)
