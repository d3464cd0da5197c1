"""What is fitted sees training clips only; splits in memory equal splits on disk."""

import dataclasses

import numpy as np
import pytest

from tests import small
from tqa_jax import pipeline, prepare, preprocess, records, schema

MAX_FRAMES = 4


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    found = tmp_path_factory.mktemp("prepare") / "set"
    small.write(found, clips=15)
    return found


def open_dataset(path, fitted, **changes):
    options = {
        "modalities": (),
        "pca": {"visual": 3},
        "winsorise": 0.0,
        "max_frames": MAX_FRAMES,
        "memory_bytes": 1e9,
        "fitted": fitted,
    }
    return prepare.open_dataset(path, **options | changes)


def assert_transforms_equal(one, two):
    assert list(one) == list(two)
    for name in one:
        for field in dataclasses.fields(preprocess.Transform):
            np.testing.assert_array_equal(
                getattr(one[name], field.name), getattr(two[name], field.name)
            )


def test_preprocessing_is_fitted_on_training_rows_alone(path, tmp_path):
    found = open_dataset(path, tmp_path / "fit.npz")
    clips = list(records.read_split(path, found.info, "train"))
    wanted = preprocess.fit(
        lambda: map(pipeline.measured_rows, clips),
        small.SCHEMA.widths,
        pca={"visual": 3},
    )
    assert_transforms_equal(found.transforms, wanted)
    rows = np.concatenate([pipeline.measured_rows(clip)["audio"] for clip in clips])
    np.testing.assert_allclose(
        found.transforms["audio"].mean, rows.mean(axis=0), rtol=1e-4, atol=1e-5
    )


def test_test_clips_are_not_read_before_their_split_is_asked_for(
    path, tmp_path, monkeypatch
):
    read = []
    original = records.read_split

    def watched(path, info, split):
        read.append(split)
        return original(path, info, split)

    monkeypatch.setattr(records, "read_split", watched)
    found = open_dataset(path, tmp_path / "fit.npz")
    assert set(read) == {"train"}
    found.split("train")
    found.split("validation")
    assert set(read) == {"train", "validation"}


def test_a_fit_is_kept_and_read_again(path, tmp_path, monkeypatch):
    first = open_dataset(path, tmp_path / "fit.npz")

    def refuse(*args, **options):
        raise AssertionError("fitted twice")

    monkeypatch.setattr(preprocess, "fit", refuse)
    again = open_dataset(path, tmp_path / "fit.npz")
    assert_transforms_equal(first.transforms, again.transforms)


def test_a_kept_fit_of_other_modalities_is_refused(path, tmp_path):
    open_dataset(path, tmp_path / "fit.npz")
    with pytest.raises(schema.InputError, match=r"fit\.npz"):
        open_dataset(path, tmp_path / "fit.npz", modalities=("audio",))


def test_modalities_can_be_chosen(path, tmp_path):
    found = open_dataset(path, tmp_path / "fit.npz", modalities=("sync", "visual"))
    assert found.modalities == ("sync", "visual")
    batch = next(found.split("train").batches(np.array([[0, 1]])))
    assert set(batch.features) == set(batch.frame_mask) == {"sync", "visual"}
    assert batch.features["visual"].shape == (2, MAX_FRAMES, 3)
    assert batch.features["sync"].shape == (2, MAX_FRAMES, 2)


def test_unknown_modality_is_refused_with_the_choices(path, tmp_path):
    with pytest.raises(schema.InputError, match="'video'.*visual, audio, sync"):
        open_dataset(path, tmp_path / "fit.npz", modalities=("video",))


def test_clips_in_which_nothing_was_measured_are_named_and_left_out(tmp_path, caplog):
    rng = np.random.default_rng(0)
    pairs = [(s, small.make_clip(n, s, rng)) for s in schema.SPLITS for n in range(3)]
    pairs = [(s, dataclasses.replace(c, clip=f"{s}{c.clip}")) for s, c in pairs]
    for split, clip in pairs:
        if split == "test" or clip.clip == "trainclip1":
            clip.frame_mask["sync"][:] = False
    records.write_dataset(
        tmp_path / "set",
        pairs,
        name="small",
        schema=small.SCHEMA,
        provenance={"kind": "ratings"},
    )
    found = open_dataset(tmp_path / "set", tmp_path / "fit.npz", modalities=("sync",))
    train = found.split("train")
    assert train.clips.names == ("trainclip0", "trainclip2")
    assert "1 train clip(s) without a measured frame" in caplog.text
    assert "trainclip1" in caplog.text
    with pytest.raises(
        schema.InputError, match="no test clip .* measured frame of sync"
    ):
        found.split("test")
    whole = open_dataset(tmp_path / "set", tmp_path / "all.npz")
    assert len(whole.split("train").clips.names) == 3


def test_an_absent_split_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    clips = [("train", small.make_clip(n, f"s{n}", rng)) for n in range(4)]
    records.write_dataset(
        tmp_path / "set",
        clips,
        name="small",
        schema=small.SCHEMA,
        provenance={"kind": "ratings"},
    )
    found = open_dataset(tmp_path / "set", tmp_path / "fit.npz")
    with pytest.raises(schema.InputError, match="has no validation clips"):
        found.split("validation")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_streamed_batches_equal_batches_from_memory(path, tmp_path, split):
    held = open_dataset(path, tmp_path / "fit.npz").split(split)
    streamed = open_dataset(path, tmp_path / "fit.npz", memory_bytes=0).split(split)
    assert held.windows is not None and streamed.windows is None
    assert held.size == streamed.size == len(held.clips.window_clip)
    order = pipeline.in_order(held.size, 4)
    pairs = zip(held.batches(order), streamed.batches(order), strict=True)
    for number, (one, two) in enumerate(pairs):
        for name, mask in one.frame_mask.items():
            assert isinstance(one.features[name], np.ndarray)
            np.testing.assert_array_equal(mask, two.frame_mask[name])
            np.testing.assert_array_equal(one.features[name], two.features[name])
        np.testing.assert_array_equal(one.label_mask, two.label_mask)
        np.testing.assert_array_equal(one.labels, two.labels)
        filled = order[number] >= 0
        np.testing.assert_array_equal(one.clip_mask, filled)
    assert number == len(order) - 1


def test_the_time_axis_is_no_longer_than_the_longest_clip(path, tmp_path):
    found = open_dataset(path, tmp_path / "fit.npz", max_frames=150).split("train")
    assert found.frames == max(found.clips.frames)
    assert found.windows.frame_mask["audio"].shape == (found.size, found.frames)
    assert found.size == len(found.clips.names)


def test_label_statistics_equal_a_loop():
    rng = np.random.default_rng(1)
    labels = rng.normal(size=(40, 4)).astype(np.float32)
    labels[rng.uniform(size=labels.shape) < 0.3] = np.nan
    labels[:, 3] = np.where(np.isnan(labels[:, 3]), np.nan, 2.5)
    means, correlation = prepare.label_statistics(labels)
    for i in range(4):
        known = labels[:, i][~np.isnan(labels[:, i])].astype(np.float64)
        np.testing.assert_allclose(means[i], known.mean(), rtol=1e-5)
        for j in range(4):
            both = labels[~np.isnan(labels[:, [i, j]]).any(axis=1)][:, [i, j]]
            if 3 in (i, j):
                assert np.isnan(correlation[i, j])
                continue
            x, y = both.astype(np.float64).T
            x, y = x - x.mean(), y - y.mean()
            wanted = (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())
            np.testing.assert_allclose(correlation[i, j], wanted, rtol=1e-5)


def test_label_statistics_of_no_label_warn_of_nothing():
    means, correlation = prepare.label_statistics(np.full((5, 2), np.nan, np.float32))
    np.testing.assert_array_equal(means, 0)
    assert np.isnan(correlation).all()
