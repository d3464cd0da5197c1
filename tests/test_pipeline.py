"""Windows, orders, and streamed rows against rows from memory."""

import numpy as np
import pytest

from tests import small
from tqa_jax import batch as batches
from tqa_jax import pipeline, preprocess, records, schema

MAX_FRAMES = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set of 5 to 10 frames a clip, so that windows of 4 cut every clip."""
    path = tmp_path_factory.mktemp("pipeline") / "set"
    info = small.write(path, clips=15)
    clips = list(records.read_split(path, info, "train"))
    transforms = preprocess.fit(
        lambda: map(pipeline.measured_rows, clips),
        small.SCHEMA.widths,
        pca={"visual": 3},
    )
    return path, info, clips, transforms


def make_clip(measured, **others):
    """A clip whose mask of each modality is given; there are no features to read."""
    masks = {"visual": np.array(measured, bool)} | others
    return records.Clip("c", "s", {}, masks, np.full(3, 2.0, np.float32))


def test_windows_cover_every_frame_evenly():
    for frames in range(1, 120):
        for longest in (1, 2, 3, 7, 25, 150):
            clip = make_clip(np.ones(frames))
            starts = pipeline.window_starts(clip, longest, ["visual"])
            covered = {t for s in starts for t in range(s, min(s + longest, frames))}
            assert covered == set(range(frames))
            assert len(starts) == max(1, -(-frames // longest))
            assert starts == sorted(set(starts)) and starts[0] == 0
            assert starts[-1] == max(0, frames - longest)
            gaps = np.diff(starts)
            assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_windows_lie_where_something_was_measured():
    def starts(clip, *names):
        return pipeline.window_starts(clip, 4, names or ["visual"])

    for frames in (3, 4, 7, 11, 20):
        plain = starts(make_clip(np.ones(frames)))
        for front, behind in ((0, 9), (1, 0), (5, 0), (3, 180)):
            padded = make_clip(np.pad(np.ones(frames), (front, behind)))
            assert starts(padded) == [start + front for start in plain]
    gap = np.repeat([1, 0, 1], 4)
    assert starts(make_clip(gap)) == [0, 8]
    assert starts(make_clip(np.zeros(9))) == []
    # A modality that is read counts, one that is not does not.
    heard = make_clip(gap, audio=np.ones(12, bool))
    assert starts(heard, "visual", "audio") == [0, 4, 8] and starts(heard) == [0, 8]


def test_a_clip_without_a_measured_frame_is_no_clip(tmp_path):
    rng = np.random.default_rng(0)
    clips = [small.make_clip(number, f"s{number}", rng) for number in range(4)]
    for mask in clips[1].frame_mask.values():
        mask[:] = False
    info = records.write_dataset(
        tmp_path / "set",
        [("train", clip) for clip in clips],
        name="small",
        schema=small.SCHEMA,
        provenance={"kind": "ratings"},
        dtype="float32",
    )
    found = pipeline.describe(clips, MAX_FRAMES, small.SCHEMA.widths)
    assert found.names == ("clip0", "clip2", "clip3")
    assert found.unmeasured == ("clip1",)
    assert found.labels.shape == (3, 3) and set(found.window_clip) == {0, 1, 2}
    transforms = preprocess.fit(
        lambda: map(pipeline.measured_rows, clips), small.SCHEMA.widths, pca={}
    )
    whole = pipeline.load_windows(
        clips, transforms, max_frames=MAX_FRAMES, frames=MAX_FRAMES
    )
    assert np.asarray(whole.clip_mask).all()
    stream = pipeline.Stream(
        tmp_path / "set", info, "train", transforms, clips=found, frames=MAX_FRAMES
    )
    rows = np.arange(len(found.window_clip))
    assert_same(stream.rows(rows), whole)


def test_describe_lists_clips_and_windows_in_stored_order(data):
    _, _, clips, _ = data
    found = pipeline.describe(clips, MAX_FRAMES, small.SCHEMA.widths)
    assert found.names == tuple(clip.clip for clip in clips)
    assert found.sources == tuple(clip.source for clip in clips)
    assert found.frames == tuple(clip.frames for clip in clips)
    np.testing.assert_array_equal(found.labels, [clip.labels for clip in clips])
    wanted = [
        (number, start)
        for number, clip in enumerate(clips)
        for start in pipeline.window_starts(clip, MAX_FRAMES, clip.frame_mask)
    ]
    np.testing.assert_array_equal(
        np.stack([found.window_clip, found.window_start], axis=-1), wanted
    )
    assert len(wanted) > len(clips)


def test_a_window_holds_the_preprocessed_measured_frames(data):
    _, _, clips, transforms = data
    clip = next(clip for clip in clips if not clip.frame_mask["visual"][0])
    for start in (0, 1, clip.frames - 2):
        found = pipeline.cut(clip, start, MAX_FRAMES, transforms)
        for name, transform in transforms.items():
            for t in range(MAX_FRAMES):
                row = start + t
                there = row < clip.frames and bool(clip.frame_mask[name][row])
                assert bool(found.frame_mask[name][t]) == there
                wanted = np.zeros(transform.width)
                if there:
                    wanted = preprocess.apply(
                        transform, clip.features[name][row : row + 1]
                    )[0]
                np.testing.assert_allclose(
                    found.features[name][t], wanted, rtol=1e-5, atol=1e-6
                )


def test_missing_labels_are_masked_and_zero(data):
    _, _, clips, transforms = data
    clip = next(clip for clip in clips if np.isnan(clip.labels[1]))
    found = pipeline.cut(clip, 0, MAX_FRAMES, transforms)
    np.testing.assert_array_equal(found.label_mask, [True, False, True])
    np.testing.assert_array_equal(found.labels[::2], clip.labels[::2])
    assert found.labels[1] == 0


def test_measured_rows_are_those_under_the_mask(data):
    _, _, clips, _ = data
    for clip in clips:
        for name, rows in pipeline.measured_rows(clip).items():
            wanted = [
                row
                for row, there in zip(
                    clip.features[name], clip.frame_mask[name], strict=True
                )
                if there
            ]
            np.testing.assert_array_equal(rows, np.reshape(wanted, rows.shape))


@pytest.mark.parametrize(
    ("windows", "batch_size"), [(64, 8), (67, 8), (8, 8), (9, 8), (5, 8), (1, 1)]
)
def test_every_window_is_drawn_at_most_once(windows, batch_size):
    rows = pipeline.order(windows, batch_size, seed=3, epoch=2)
    assert rows.shape == (max(1, windows // batch_size), batch_size)
    drawn = rows[rows >= 0]
    assert len(set(drawn.tolist())) == len(drawn)
    assert set(drawn.tolist()) <= set(range(windows))
    if windows >= batch_size:
        assert (rows >= 0).all()
    else:
        assert len(drawn) == windows


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return pipeline.order(100, 8, seed=seed, epoch=epoch).tolist()

    assert order(0, 1) == order(0, 1)
    found = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(found.count(one) == 1 for one in found)


def test_another_remainder_is_left_out_each_epoch():
    left = [
        frozenset(range(10)) - set(pipeline.order(10, 8, seed=0, epoch=e).ravel())
        for e in range(20)
    ]
    assert all(len(one) == 2 for one in left) and len(set(left)) > 5
    assert frozenset.union(*left) == frozenset(range(10))


def test_in_order_lists_every_window_once():
    found = pipeline.in_order(10, 4)
    np.testing.assert_array_equal(found, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]])
    np.testing.assert_array_equal(pipeline.in_order(4, 4), [[0, 1, 2, 3]])


def both_ways(data, split="train", max_frames=MAX_FRAMES):
    path, info, _, transforms = data
    clips = list(records.read_split(path, info, split))
    described = pipeline.describe(clips, max_frames, transforms)
    frames = min(max_frames, max(described.frames))
    stream = pipeline.Stream(
        path, info, split, transforms, clips=described, frames=frames
    )
    whole = pipeline.load_windows(
        clips, transforms, max_frames=max_frames, frames=frames
    )
    return described, stream, whole


def assert_same(one, two):
    """Equal bit for bit where a mask is True, masks equal everywhere."""
    np.testing.assert_array_equal(one.label_mask, two.label_mask)
    mask = np.asarray(one.label_mask)
    np.testing.assert_array_equal(one.labels[mask], two.labels[mask])
    for name, there in one.frame_mask.items():
        np.testing.assert_array_equal(there, two.frame_mask[name])
        a, b = np.asarray(one.features[name]), np.asarray(two.features[name])
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32))


@pytest.mark.parametrize("max_frames", [MAX_FRAMES, 8, 150])
def test_streamed_rows_equal_rows_from_memory_bit_for_bit(data, max_frames):
    described, stream, whole = both_ways(data, max_frames=max_frames)
    windows = len(described.window_clip)
    order = pipeline.order(windows, 4, seed=1, epoch=0)
    order = np.concatenate([order, [[0, -1, windows - 1, -1]]])
    streamed = list(stream.batches(order))
    assert len(streamed) == len(order)
    for rows, found in zip(order, streamed, strict=True):
        assert_same(found, batches.take(whole, rows))
        for row, one in zip(rows, range(len(rows)), strict=True):
            if row >= 0:
                number = described.window_clip[row]
                known = np.isfinite(described.labels[number])
                np.testing.assert_array_equal(found.label_mask[one], known)
                np.testing.assert_array_equal(
                    found.labels[one][known], described.labels[number][known]
                )


def test_rows_of_minus_one_are_fully_masked(data):
    _, stream, whole = both_ways(data)
    rows = np.array([2, -1, -1])
    for found in (stream.rows(rows), batches.take(whole, rows)):
        np.testing.assert_array_equal(found.clip_mask, [True, False, False])
        assert not np.any(found.label_mask[1:])
        assert not any(np.any(mask[1:]) for mask in found.frame_mask.values())


@pytest.mark.parametrize("way", ["streamed", "from_memory"])
def test_what_stands_under_a_mask_is_zero(data, way):
    # The promise of `batch.Batch`.
    _, stream, whole = both_ways(data)
    rows = np.array([2, -1, 0, -1])
    found = stream.rows(rows) if way == "streamed" else batches.take(whole, rows)
    assert not np.any(np.asarray(found.labels)[~np.asarray(found.label_mask)])
    for name, mask in found.frame_mask.items():
        assert not np.any(np.asarray(found.features[name])[~np.asarray(mask)])


def test_the_time_axis_is_as_long_as_asked_for(data):
    _, _, clips, transforms = data
    found = pipeline.load_windows(clips, transforms, max_frames=12, frames=12)
    assert found.frame_mask["audio"].shape[1] == 12
    for row, clip in enumerate(clips):
        assert found.frame_mask["audio"][row].sum() == clip.frames


def test_a_damaged_shard_stops_the_stream(data, tmp_path):
    _, info, _, transforms = data
    path = tmp_path / "set"
    info = small.write(path, clips=15)
    clips = pipeline.describe(
        records.read_split(path, info, "train"), MAX_FRAMES, transforms
    )
    stream = pipeline.Stream(
        path, info, "train", transforms, clips=clips, frames=MAX_FRAMES
    )
    file = path / info.splits["train"].shards[0].file
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    order = pipeline.in_order(len(clips.window_clip), 4)
    with pytest.raises(schema.InputError):
        list(stream.batches(order))
