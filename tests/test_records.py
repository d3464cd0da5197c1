"""Shards: what is written is read, damage is found, nothing is left half-written."""

import dataclasses
import json
import struct

import numpy as np
import pytest

from tqa_jax import records, schema, tfrecord

SCHEMA = schema.Schema(
    modalities=(schema.Modality("visual", 3), schema.Modality("audio", 2)),
    tasks=(schema.Task("lip_sync"), schema.Task("overall")),
)


def make_clip(name, source, frames=4, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.ones(frames, bool)
    mask[1:2] = False
    return records.Clip(
        clip=name,
        source=source,
        features={
            m: rng.normal(size=(frames, w)).astype(np.float32)
            for m, w in SCHEMA.widths.items()
        },
        frame_mask={"visual": mask, "audio": np.ones(frames, bool)},
        labels=np.array([3.5, np.nan], np.float32),
    )


def write(path, clips=None, **options):
    clips = clips or [
        ("train", make_clip("a", "s0", 4, 0)),
        ("train", make_clip("b", "s0", 7, 1)),
        ("test", make_clip("c", "s1", 5, 2)),
    ]
    options = {"name": "set", "schema": SCHEMA, "provenance": {"kind": "ratings"}} | (
        options
    )
    return records.write_dataset(path, clips, **options)


def test_clips_come_back_equal_in_float32(tmp_path):
    write(tmp_path / "d", dtype="float32")
    info = schema.load(tmp_path / "d")
    found = list(records.read_split(tmp_path / "d", info, "train"))
    assert [clip.clip for clip in found] == ["a", "b"]
    want = make_clip("b", "s0", 7, 1)
    np.testing.assert_array_equal(found[1].features["audio"], want.features["audio"])
    np.testing.assert_array_equal(found[1].labels, want.labels)
    assert found[1].frame_mask["visual"].tolist() == [True, False] + [True] * 5


def test_masked_rows_are_stored_as_nan(tmp_path):
    info = write(tmp_path / "d")
    clip = next(records.read_split(tmp_path / "d", info, "train"))
    assert np.isnan(clip.features["visual"][1]).all()
    assert np.isfinite(clip.features["visual"][[0, 2, 3]]).all()


def test_storage_error_is_the_largest_rounding_error_over_the_spread(tmp_path):
    clips = [("train", make_clip("a", "s", 50, 3))]
    info = write(tmp_path / "d", clips)
    clip = clips[0][1]
    rows = clip.features["visual"][clip.frame_mask["visual"]].astype(np.float64)
    error = np.abs(rows.astype(np.float16).astype(np.float64) - rows).max(axis=0)
    want = (error / rows.std(axis=0)).max()
    assert info.storage_error["visual"] == pytest.approx(want, rel=1e-6)
    assert 0 < want < 1e-3
    assert write(tmp_path / "e", clips, dtype="float32").storage_error["visual"] == 0


def test_value_beyond_float16_is_refused_and_leaves_nothing(tmp_path):
    clip = make_clip("a", "s")
    clip.features["audio"][0, 1] = 1e6
    with pytest.raises(schema.InputError, match="audio feature 1 reaches 1e.06"):
        write(tmp_path / "d", [("train", clip)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([9, 1], np.float32)}, "lip_sync is 9; expected 1..5"),
        ({"labels": np.ones(3, np.float32)}, "3 labels; expected 2"),
        ({"features": {}}, r"modalities \[\]"),
        ({"frame_mask": {m: np.ones(0, bool) for m in SCHEMA.widths}}, "no frames"),
    ],
)
def test_clip_that_does_not_fit_is_refused(tmp_path, change, message):
    clip = dataclasses.replace(make_clip("a", "s"), **change)
    with pytest.raises(schema.InputError, match=message):
        write(tmp_path / "d", [("train", clip)])
    assert not (tmp_path / "d").exists()


def test_repeated_clip_and_shared_source_are_refused(tmp_path):
    twice = [("train", make_clip("a", "s")), ("test", make_clip("a", "t"))]
    with pytest.raises(schema.InputError, match="'a' comes twice"):
        write(tmp_path / "d", twice)
    shared = [("train", make_clip("a", "s")), ("test", make_clip("b", "s"))]
    with pytest.raises(schema.InputError, match="source 's' is in both"):
        write(tmp_path / "d", shared)
    write(tmp_path / "d")
    with pytest.raises(schema.InputError, match="exists already"):
        write(tmp_path / "d")


def test_shards_close_when_full_and_keep_the_order(tmp_path):
    clips = [("train", make_clip(f"c{i}", "s", 4, i)) for i in range(5)]
    info = write(tmp_path / "d", clips, shard_bytes=1)
    names = [shard.file for shard in info.splits["train"].shards]
    assert names == [f"train-{i:05d}-of-00005.tfrecord" for i in range(5)]
    found = [c.clip for c in records.read_split(tmp_path / "d", info, "train")]
    assert found == [f"c{i}" for i in range(5)]


def test_same_clips_give_the_same_bytes(tmp_path):
    write(tmp_path / "d")
    write(tmp_path / "e")
    for file in sorted((tmp_path / "d").iterdir()):
        assert file.read_bytes() == (tmp_path / "e" / file.name).read_bytes()


def test_every_flipped_byte_and_every_truncation_is_found(tmp_path):
    info = write(tmp_path / "d", [("train", make_clip("a", "s"))])
    file = tmp_path / "d" / info.splits["train"].shards[0].file
    good = file.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 0x10
        file.write_bytes(bytes(bad))
        with pytest.raises(schema.InputError):
            list(records.read_split(tmp_path / "d", info, "train"))
        file.write_bytes(good[:position])
        with pytest.raises(schema.InputError):
            list(records.read_split(tmp_path / "d", info, "train"))


def test_huge_length_is_refused_before_it_is_allocated(tmp_path):
    length = struct.pack("<Q", 1 << 60)
    crc = struct.pack("<I", tfrecord._masked_crc(length))
    (tmp_path / "x").write_bytes(length + crc + b"payload")
    with pytest.raises(schema.InputError, match="truncated"):
        tfrecord.index(tmp_path / "x")


def test_description_survives_json():
    info = schema.DatasetInfo(
        name="x",
        schema=SCHEMA,
        splits={"train": schema.Split((schema.Shard("f", 1, 2, "c"),), ("s",))},
        dtype="float16",
        storage_error={"visual": 0.1, "audio": 0.0},
        provenance={"kind": "ratings"},
    )
    again = schema.DatasetInfo.from_json(json.loads(json.dumps(info.to_json())))
    assert again == info


def test_unreadable_description_says_what_is_wrong(tmp_path):
    with pytest.raises(schema.InputError, match="has no dataset.json"):
        schema.load(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": "other/9"}')
    with pytest.raises(schema.InputError, match="expected 'tqa_jax.dataset/1'"):
        schema.load(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(schema.InputError, match="cannot be read"):
        schema.load(tmp_path)


@pytest.mark.parametrize(
    ("modality", "task", "message"),
    [
        (schema.Modality("a b", 2), schema.Task("t"), "letters, digits"),
        (schema.Modality("a", 0), schema.Task("t"), "width 0"),
        (schema.Modality("a", 2), schema.Task("t", 5, 1), "low < high"),
        (schema.Modality("a", 2), schema.Task("t", 1, float("inf")), "not finite"),
    ],
)
def test_impossible_schema_is_refused(modality, task, message):
    with pytest.raises(schema.InputError, match=message):
        schema.Schema((modality,), (task,))
