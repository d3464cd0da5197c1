import dataclasses
import os
import pathlib
import re

import numpy as np
import pytest

from extract import backends, decode, jobs, sync_fit, train_sync
from extract.backends import _sync, correlation
from extract.backends import head as sync_head
from extract.rendering import speech
from tests import media
from tqa_jax import output, schema

CLIPS = pathlib.Path(os.environ.get("TQA_SHARED", "../shared")) / "data" / "clips"
LIPS = sync_head._PAIRS[:18]


def _spoken(seed: int, seconds: float) -> speech.Speech:
    return speech.synthesize(speech.draw_voice(seed), seconds=seconds, seed=seed)


def _points(spoken: speech.Speech, seed: int = 0, *, moving: bool = True) -> np.ndarray:
    """Returns landmarks of a nodding head that speaks; the face is drawn by seed."""
    rng = np.random.default_rng([seed, 3])
    face = 0.1 * np.random.default_rng(5).normal(size=(478, 3))
    face[10], face[152] = (0, -0.25, 0), (0, 0.25, 0)
    for left, right in sync_head._PAIRS:
        face[right] = face[left] * (-1, 1, 1)
    face *= rng.uniform(0.9, 1.1, 3)
    rows = len(spoken.opening)
    points = np.repeat(face[None], rows, axis=0)
    if moving:
        lower = [point for pair in LIPS[2:5] for point in pair] + [14, 17, 87, 317, 152]
        points[:, lower, 1] += 0.05 * spoken.opening[:, None]
        points[:, [13, 82, 312, 0], 1] -= 0.01 * spoken.opening[:, None]
        points[:, [61, 78], 0] -= 0.02 * spoken.spread[:, None]
        points[:, [291, 308], 0] += 0.02 * spoken.spread[:, None]
    points += 1e-4 * rng.normal(size=points.shape)
    angle = 0.1 * np.sin(np.arange(rows) / 9)
    turned = points.copy()
    turned[..., 0] = np.cos(angle)[:, None] * points[..., 0]
    turned[..., 0] -= np.sin(angle)[:, None] * points[..., 1]
    turned[..., 1] = np.sin(angle)[:, None] * points[..., 0]
    turned[..., 1] += np.cos(angle)[:, None] * points[..., 1]
    return turned + 0.5


def _late(sound: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sound so many rows later, and where it is."""
    moved, present = np.zeros_like(sound), np.zeros(len(sound), bool)
    shift = 640 * rows
    to = slice(max(0, shift), len(sound) + min(0, shift))
    moved[to] = sound[max(0, -shift) : len(sound) - max(0, shift)]
    present[to] = True
    return moved, present


def _clip(seed: int, late: int = 0, seconds: float = 6.0) -> backends.Clip:
    spoken = _spoken(seed, seconds)
    sound, present = _late(spoken.audio, late)
    points = _points(spoken, seed)
    return backends.Clip(
        path=None,
        rows=len(points),
        frame_seconds=(),
        points=points,
        blendshapes=np.zeros((len(points), 52)),
        seen=np.ones(len(points), bool),
        aspect=1.0,
        samples=sound,
        present=present,
        notes=[],
    )


@pytest.fixture(scope="module")
def described():
    """Eight speakers, two of them out of step by themselves."""
    late = (0, 3, 0, 0, -2, 0, 0, 0)
    return [sync_fit.described(_clip(20 + at, n)) for at, n in enumerate(late)]


@pytest.fixture(scope="module")
def head(described):
    return sync_fit.fit(described)


def _features(head, clip, **changes):
    clip = dataclasses.replace(clip, **changes)
    return sync_head.features(
        clip.points, clip.aspect, clip.samples, clip.present, head
    )


@pytest.fixture(params=["head", "correlation"])
def features(request, head):
    """Measures a clip by either backend, changed as asked for."""

    def measured(clip, **changes):
        if request.param == "head":
            return _features(head, clip, **changes)
        clip = dataclasses.replace(clip, **changes)
        return correlation.features(
            clip.points, clip.aspect, clip.samples, clip.present
        )

    return measured


@pytest.mark.parametrize("late", [-12, -5, -1, 0, 4, 13])
def test_a_planted_shift_of_a_new_speaker_is_found_positive_when_late(head, late):
    values, mask = _features(head, _clip(7, late, seconds=8.0))
    assert mask.all() and values[:, 3].all()
    assert np.mean(values[:, 2] == late) > 0.9
    assert np.median(values[:, 0]) > 0.4 and np.median(values[:, 1]) > 0.3


def test_clips_that_are_out_of_step_are_moved_in_training(described, head):
    found = [sync_fit.own_offset(head, *item, 15) for item in described]
    assert found == [0, 3, 0, 0, -2, 0, 0, 0]
    unmoved = sync_fit._correlate(described, [0] * 8)

    def strength(one, item):
        return np.nanmax(sync_fit._score(one, *item))

    assert strength(head, described[1]) > strength(unmoved, described[1])


def test_sound_of_another_clip_stands_out_less(head):
    clip, other = _clip(7), _clip(8)
    matched, _ = _features(head, clip)
    unmatched, _ = _features(head, clip, samples=other.samples)
    assert np.median(unmatched[:, 1]) < 0.5 * np.median(matched[:, 1])


def test_scores_equal_a_plain_loop():
    rng = np.random.default_rng(3)
    seen, heard = rng.normal(size=(2, 90, 4))
    seen[20:24], heard[70] = np.nan, np.nan
    starts = np.array([0, 20, 39])
    found = _sync.correlate(seen, heard, starts, 51)
    for at, lag in ((0, 3), (1, 0), (0, -15), (2, 15), (2, -7)):
        rows = np.arange(starts[at], starts[at] + 51)
        rows = rows[(rows + lag >= 0) & (rows + lag < 90)]
        a, b = seen[rows], heard[rows + lag]
        known = np.isfinite(a[:, 0] + b[:, 0])
        a, b = a[known], b[known]
        expected = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
        expected *= np.sqrt(known.sum() / 51)
        assert found[at, lag + 15] == pytest.approx(expected, abs=1e-9)


def test_size_place_and_mirror_change_nothing():
    points = _points(_spoken(1, 3.0))
    plain = sync_head.mouth(points, 1.0)
    moved = 0.4 * (points - 0.5) + (0.1, -0.2, 0.3)
    np.testing.assert_allclose(sync_head.mouth(moved, 1.0), plain, atol=1e-3)
    wide = points / np.array([16 / 9, 1, 16 / 9])  # widths of a wide picture
    np.testing.assert_allclose(sync_head.mouth(wide, 16 / 9), plain, atol=1e-6)
    swapped = points * (-1, 1, 1)
    for left, right in sync_head._PAIRS:
        swapped[:, [left, right]] = swapped[:, [right, left]]
    np.testing.assert_allclose(
        np.abs(sync_head.mouth(swapped, 1.0)), np.abs(plain), atol=1e-3
    )


def test_gain_and_the_colour_of_a_microphone_change_little():
    spoken = _spoken(1, 4.0)
    present = np.ones(len(spoken.audio), bool)
    plain = sync_head.speech(spoken.audio, present, 100)
    assert plain.std() == pytest.approx(1.0, abs=0.05)
    quiet = sync_head.speech(0.3 * spoken.audio, present, 100)
    assert np.corrcoef(quiet.ravel(), plain.ravel())[0, 1] > 0.98
    coloured = spoken.audio.copy()
    coloured[1:] -= 0.9 * spoken.audio[:-1]
    other = sync_head.speech(coloured, present, 100)
    assert np.corrcoef(other.ravel(), plain.ravel())[0, 1] > 0.98


def test_a_click_is_heard_in_its_row_and_its_neighbours():
    samples = 1e-4 * np.random.default_rng(0).normal(size=100 * 640)
    samples[50 * 640 : 50 * 640 + 80] += 0.5
    heard = sync_head.speech(samples, np.ones(len(samples), bool), 100)
    by_step = heard.reshape(100, 7, 40).mean(axis=-1)  # (T, steps)
    assert by_step[:, 3].argmax() == 50
    assert by_step[:, 0].argmax() == 53 and by_step[:, 6].argmax() == 47


def test_rows_without_a_face_are_masked(features, head):
    clip = _clip(7)
    points = clip.points.copy()
    points[40:44], points[130:] = np.nan, np.nan
    values, mask = features(clip, points=points)
    gone = np.isin(np.arange(150), [*range(40, 44), *range(130, 150)])
    np.testing.assert_array_equal(mask, ~gone)
    assert np.isnan(values[~mask]).all() and np.isfinite(values[mask]).all()
    values, _ = _features(head, clip, points=points)
    assert np.mean(values[mask, 2] == 0) > 0.9


def test_rows_without_sound_are_masked(head):
    clip = _clip(7, seconds=8.0)
    present = np.arange(len(clip.samples)) < len(clip.samples) // 5
    values, mask = _features(
        head, clip, samples=clip.samples * present, present=present
    )
    assert not mask.any()  # no window of 4 s has 2 s of it
    present = np.arange(len(clip.samples)) < len(clip.samples) // 2
    values, mask = _features(
        head, clip, samples=clip.samples * present, present=present
    )
    assert mask[:95].all() and not mask[105:].any()
    assert np.isnan(values[~mask]).all() and np.isfinite(values[mask]).all()


def _first(clip, rows):
    """The fields of a clip's first rows."""
    samples, present = clip.samples[: rows * 640], clip.present[: rows * 640]
    return {"points": clip.points[:rows], "samples": samples, "present": present}


def test_no_face_or_no_sound_at_all_is_masked(features):
    clip = _clip(7)
    for changes in (
        {"points": np.full_like(clip.points, np.nan)},
        {"present": np.zeros_like(clip.present)},
    ):
        values, mask = features(clip, **changes)
        assert not mask.any() and np.isnan(values).all()


def test_nothing_to_compare_is_present_and_not_valid(features):
    clip = _clip(7)
    for changes in (
        {"samples": np.zeros_like(clip.samples)},
        {"samples": np.full_like(clip.samples, 0.5)},
        {"points": _points(_spoken(7, 6.0), 7, moving=False)},
        _first(clip, 15),
    ):
        values, mask = features(clip, **changes)
        assert mask.all()
        np.testing.assert_array_equal(values, 0)


@pytest.mark.parametrize("rows", [1, 2, 19, 20, 30, 100, 102])
def test_short_clips_work(features, rows):
    clip = _clip(7)
    values, mask = features(clip, **_first(clip, rows))
    assert values.shape == (rows, 4) and values.dtype == np.float32
    assert mask.all() and np.isfinite(values).all()


def test_a_saved_head_measures_the_same_and_equal_heads_are_equal_files(head, tmp_path):
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    sync_head.save(first, head)
    loaded = sync_head.load(first)
    for name, value in dataclasses.asdict(head).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    assert loaded.num_clips == 8 and loaded.seconds == pytest.approx(48, abs=0.5)
    clip = _clip(7)
    np.testing.assert_array_equal(_features(loaded, clip)[0], _features(head, clip)[0])
    sync_head.save(second, loaded)
    assert first.read_bytes() == second.read_bytes()


def test_training_again_gives_the_same_head(head, described):
    again = sync_fit.fit(described)
    for name, value in dataclasses.asdict(head).items():
        # Threads of the linear algebra library may add in another order.
        np.testing.assert_allclose(getattr(again, name), value, atol=1e-8, rtol=1e-6)


def test_files_that_are_no_head_are_refused(head, tmp_path):
    path = tmp_path / "head.npz"
    with pytest.raises(schema.InputError, match="no sync head at .*train_sync"):
        sync_head.load(path)
    sync_head.save(path, head)
    whole = path.read_bytes()
    for content in (b"", b"nothing", whole[:-200], whole[:3000] + whole[3100:]):
        path.write_bytes(content)
        with pytest.raises(schema.InputError, match="not a sync head or is damaged"):
            sync_head.load(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    for wrong in (tmp_path / "one.npy", tmp_path):
        with pytest.raises(schema.InputError, match="not a sync head or is damaged"):
            sync_head.load(wrong)
    for changes, message in (
        ({"kind": "another"}, "is 'another' of version"),
        ({"version": "0"}, "of version '0'; expected .* of version '1'"),
        ({"mouth_map": head.mouth_map[:-1]}, r"has shape \(369, 8\) .* \(370, 8\)"),
        ({"sound_mean": np.full_like(head.sound_mean, np.nan)}, "sound_mean is not fi"),
        ({"seconds": "long"}, "seconds has shape .* type <U4"),
        ({"mouth_mean": np.array([{}], object)}, "not a sync head or is damaged"),
        ({"sound_map": None}, "lacks the tensor sound_map"),
    ):
        fields = {"kind": "tqa_jax sync head", "version": sync_head.VERSION}
        fields |= dataclasses.asdict(head) | changes
        fields = {name: value for name, value in fields.items() if value is not None}
        output.write_arrays(path, **fields)
        with pytest.raises(schema.InputError, match=message):
            sync_head.load(path)


def test_too_little_to_learn_from_is_said(described):
    with pytest.raises(schema.InputError, match=r"12\.0 s of faces .* at least 20 s"):
        sync_fit.fit([described[0], described[2]])
    with pytest.raises(schema.InputError, match="one clip"):
        sync_fit.evaluate({"a": _clip(1)})


@pytest.mark.parametrize(
    ("seconds", "more", "message"),
    [
        ((8, 11), [], r"clips last 19\.0 s together; a sync head needs at least 20 s"),
        ((15, 8), ["--evaluate"], r"23\.0 s together, 8\.0 s without the longest"),
        ((25,), ["--evaluate"], "one clip: --evaluate needs others"),
        ((12, 40), ["--max_seconds=30"], r"last 12\.0 s together"),
    ],
)
def test_too_little_to_learn_from_is_said_before_the_work(
    tmp_path, capsys, monkeypatch, seconds, more, message
):
    for number in range(len(seconds)):
        (tmp_path / f"{number}.mp4").touch()
    monkeypatch.setattr(
        decode, "stated_seconds", lambda path: float(seconds[int(path.stem)])
    )
    monkeypatch.setattr(jobs, "Workers", None)  # Nothing is measured.
    out = tmp_path / "head.npz"
    arguments = [f"--clips={tmp_path}", f"--out={out}", *more]
    assert train_sync.main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_header_says_how_long_a_clip_is(tmp_path):
    path = media.face(tmp_path / "a.mp4", 1.2)
    assert decode.stated_seconds(path) == pytest.approx(1.2, abs=0.1)
    (tmp_path / "b.mp4").write_bytes(b"nothing")
    with pytest.raises(decode.ClipError, match="not a readable video"):
        decode.stated_seconds(tmp_path / "b.mp4")


def test_evaluation_plants_shifts_and_takes_out_the_clips_own(head):
    clip = _clip(9, late=2, seconds=4.4)
    errors = sync_fit.planted_errors(clip, head, 2)
    assert errors.shape == (2, 31)
    assert np.mean(errors <= 1) > 0.95
    as_is = sync_fit.planted_errors(clip, head, 0)
    assert np.mean(as_is == 2) > 0.8
    other = dataclasses.replace(clip, samples=_clip(8, seconds=4.4).samples)
    assert np.mean(sync_fit.planted_errors(other, head, 0) <= 1) < 0.3


def test_evaluation_hears_nothing_outside_the_stretch():
    clip = _clip(9, seconds=6.0)
    for row in (-150, -30, 0, 20, 90, 149, 200):
        samples, present = sync_fit._cut(clip, row)
        assert len(samples) == len(present) == 100 * 640
        rows = row + np.arange(100)
        inside = np.repeat((rows >= 0) & (rows < 150), 640)
        np.testing.assert_array_equal(present, inside)
        assert not samples[~inside].any()
        if inside.any():
            at = row * 640 + np.flatnonzero(inside)
            np.testing.assert_array_equal(samples[inside], clip.samples[at])


def test_each_clip_is_tested_by_a_head_that_was_trained_without_it(monkeypatch):
    clips = {str(at): _clip(20 + at, seconds=7.0) for at in range(4)}

    names, heads, tests = iter(clips), [], {}
    monkeypatch.setattr(sync_fit, "described", lambda clip: next(names))
    monkeypatch.setattr(sync_fit, "fit", lambda items: heads.append(items) or items)
    monkeypatch.setattr(sync_fit, "own_offset", lambda head, *clip: 0)

    def watched_errors(clip, head, own):
        tests[next(name for name in clips if clips[name] is clip)] = head
        return np.zeros((1, 31))

    monkeypatch.setattr(sync_fit, "planted_errors", watched_errors)
    table = sync_fit.evaluate(clips)
    assert len(heads) == 4
    assert tests == {name: [k for k in clips if k != name] for name in clips}
    assert [line.split()[0] for line in table.splitlines()[1:5]] == list(clips)


def test_the_table_counts_what_was_tested(monkeypatch):
    """Two clips: the first right in both stretches, the second in one of four."""
    clips = {"a": _clip(1), "b": _clip(2)}
    right = {"a": (2, 2), "b": (1, 4)}
    monkeypatch.setattr(sync_fit, "fit", lambda items: None)
    monkeypatch.setattr(sync_fit, "own_offset", lambda head, mouth, speech, limit: 3)

    def errors(clip, head, own):
        name = next(name for name in clips if clips[name] is clip)
        found = np.full((right[name][1], 31), 5.0 if own else 0.0)
        found[: right[name][0]] = 1.0 if own else 0.0
        return found

    monkeypatch.setattr(sync_fit, "planted_errors", errors)
    text = sync_fit.evaluate(clips)
    assert "mean of 2 clips (6 stretches of 4 s, 31 shifts each)" in text
    assert "within 1 frame         0.62 (0.25 to 1.00)" in text
    assert "exact                  0.00 (0.00 to 0.00)" in text
    assert "within 1 frame, as is  1.00" in text
    right |= {"a": (0, 0), "b": (0, 0)}
    text = sync_fit.evaluate(clips)
    assert "no clip has 4 s" in text and "too short to be tested" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clips": "absent"}, "no folder of clips at"),
        ({}, "no videos in"),
        ({"out": "absent/head.npz"}, "cannot be written: no folder"),
        ({"out": "labels.csv"}, "expected a file that ends in .npz"),
        ({"out": "clips"}, "expected a file that ends in .npz"),
        ({"num_workers": "0"}, "--num_workers is 0; expected at least 1"),
        ({"max_seconds": "nan"}, "--max_seconds is nan; expected a positive"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, options, message):
    (tmp_path / "clips").mkdir()
    given = {"clips": "clips", "out": "head.npz"} | options
    for name in ("clips", "out"):
        given[name] = str(tmp_path / given[name])
    status = train_sync.main([f"--{name}={value}" for name, value in given.items()])
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


def test_a_file_that_is_no_head_is_not_replaced(tmp_path, capsys):
    (tmp_path / "mine.npz").write_bytes(b"mine")
    given = [f"--clips={tmp_path}", f"--out={tmp_path / 'mine.npz'}"]
    assert train_sync.main(given) == 2
    assert "is not a sync head" in capsys.readouterr().err
    assert (tmp_path / "mine.npz").read_bytes() == b"mine"


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"no real clips at {CLIPS}")
def test_shifts_of_real_clips_are_found_by_heads_that_never_saw_them(tmp_path, capsys):
    folder = tmp_path / "clips"
    folder.mkdir()
    for path in CLIPS.iterdir():
        if path.suffix in (".mp4", ".mpg"):
            (folder / path.name).symlink_to(path.absolute())
    (folder / "broken.mp4").write_bytes(b"nothing")
    out = tmp_path / "head.npz"
    status = train_sync.main([f"--clips={folder}", f"--out={out}", "--evaluate"])
    text = capsys.readouterr().out
    assert status == 3 and "left out broken.mp4: not a readable video" in text
    assert "mean of 11 clips (107 stretches of 4 s, 31 shifts each)" in text

    def share(name):
        return float(text.split(f"  {name:22} ")[1].split()[0])

    # Measured: 0.99, and 0.61 with the offsets that the clips have themselves.
    assert share("within 1 frame") >= 0.9
    assert share("within 1 frame, as is") >= 0.5
    assert sync_head.load(out).num_clips == 16
