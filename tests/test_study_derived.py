"""Derived data sets keep what they do not change, bit for bit, and are made once."""

import dataclasses

import numpy as np
import pytest

from experiments.studying import derived
from tests import small
from tqa_jax import records, schema


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("derived")
    small.write(folder / "plain", clips=15)
    # float16, as the extractor writes it.
    info = schema.load(folder / "plain")
    records.write_dataset(
        folder / "data",
        derived.pairs(folder / "plain"),
        name="half",
        schema=info.schema,
        provenance=info.provenance,
    )
    return folder / "data"


def by_name(path):
    return {clip.clip: (split, clip) for split, clip in derived.pairs(path)}


def test_what_is_not_changed_is_kept_bit_for_bit(source, tmp_path):
    def change(split, clip):
        if clip.clip == "clip4":
            return None
        labels = clip.labels.copy()
        labels[1] = np.nan
        return split, dataclasses.replace(clip, labels=labels)

    out = derived.make(source, tmp_path / "a", change, description="no audio labels")
    before, after = by_name(source), by_name(out)
    assert set(before) - set(after) == {"clip4"} and set(after) < set(before)
    for name, (split, clip) in after.items():
        assert split == before[name][0] and clip.source == before[name][1].source
        for key, rows in clip.features.items():
            assert rows.tobytes() == before[name][1].features[key].tobytes()
            mask = before[name][1].frame_mask[key]
            np.testing.assert_array_equal(clip.frame_mask[key], mask)
        np.testing.assert_array_equal(
            clip.labels[[0, 2]], before[name][1].labels[[0, 2]]
        )
        assert np.isnan(clip.labels[1])
    info = schema.load(out)
    assert info.dtype == "float16" and info.provenance["kind"] == "degradation"
    (said,) = info.provenance["derived"]
    assert said["description"] == "no audio labels" and said["of"] == "half"


def test_same_call_takes_what_is_there_and_another_is_refused(source, tmp_path):
    calls = []

    def change(split, clip):
        calls.append(clip.clip)
        return split, clip

    for _ in range(2):
        derived.make(source, tmp_path / "a", change, description="x", content=b"1")
    assert len(calls) == 15
    for description, content in (("y", b"1"), ("x", b"2")):
        with pytest.raises(schema.InputError, match="made otherwise"):
            derived.make(
                source, tmp_path / "a", change, description=description, content=content
            )
    with pytest.raises(schema.InputError, match="made otherwise"):
        derived.make(tmp_path / "a", tmp_path / "a", change, description="x")


def test_tasks_can_be_added_and_derivations_add_up(source, tmp_path):
    before = schema.load(source).schema
    wider = dataclasses.replace(
        before, tasks=(*before.tasks, schema.Task("more", 0, 1))
    )

    def change(split, clip):
        labels = np.append(clip.labels, np.float32(0.25))
        return split, dataclasses.replace(clip, labels=labels)

    one = derived.make(
        source, tmp_path / "a", change, description="one more", schema=wider
    )
    two = derived.make(one, tmp_path / "b", lambda *pair: pair, description="same")
    info = schema.load(two)
    assert info.schema.task_names[-1] == "more"
    assert all(clip.labels[-1] == 0.25 for _, clip in by_name(two).values())
    said = [step["description"] for step in info.provenance["derived"]]
    assert said == ["one more", "same"]


def test_rewriting_may_repeat_clips(source, tmp_path):
    def twice(pairs):
        for split, clip in pairs:
            yield split, clip
            if split == "train":
                yield split, dataclasses.replace(clip, clip=f"{clip.clip} again")

    out = derived.rewrite(source, tmp_path / "a", twice, description="training twice")
    before, after = (schema.load(path).splits for path in (source, out))
    assert after["train"].clips == 2 * before["train"].clips
    assert after["train"].sources == before["train"].sources
    assert after["test"].clips == before["test"].clips
