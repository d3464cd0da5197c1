import pathlib
from fractions import Fraction

import numpy as np
import pytest

from extract import decode, picture, sound
from tests import media


def _read(path, **more):
    info = decode.Media()
    frames = list(decode.frames(path, info, **more))
    return frames, *sound.track(info.chunks, info.rows), info


def _flash_and_click(frames, samples) -> tuple[float, float]:
    bright = [frame.mean() > 128 for frame in frames]
    return bright.index(True) / 25, np.flatnonzero(np.abs(samples) > 0.2)[0] / 16000


@pytest.mark.parametrize(
    "fps", [25, 30, Fraction(30000, 1001), Fraction(135000, 6100), 50]
)
@pytest.mark.parametrize("start", [0.0, 1.5])
@pytest.mark.parametrize(
    "suffix, sound_codec", [(".mkv", "pcm_s16le"), (".mp4", "aac")]
)
def test_flash_and_click_keep_their_time(tmp_path, fps, start, suffix, sound_codec):
    times = np.arange(round(2 * fps)) / float(fps)
    event = times[len(times) // 2]
    path = media.write(
        tmp_path / f"a{suffix}",
        times=times,
        picture=media.flash(event),
        sound=media.click(2, event),
        fps=fps,
        start=start,
        sound_codec=sound_codec,
    )
    frames, samples, present, info = _read(path)
    assert len(frames) == 50 == info.rows
    assert samples.shape == present.shape == (32000,)
    flash, click = _flash_and_click(frames, samples)
    assert abs(flash - event) <= 0.5 / 25 + 1e-3  # to the nearest row
    assert abs(click - event) <= (0.001 if suffix == ".mkv" else 0.006)


def test_variable_frame_rate_follows_the_time_stamps(tmp_path):
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.choice([0.01, 0.04, 0.13], 60))
    times -= times[0]
    event = times[30]
    path = media.write(
        tmp_path / "a.mkv",
        times=times,
        picture=media.flash(event),
        sound=media.click(times[-1] + 0.1, event),
        sound_codec="pcm_s16le",
    )
    frames, samples, _, info = _read(path)
    rows = np.arange(len(frames)) / 25
    nearest = np.abs(times - rows[:, None]).argmin(axis=-1)
    assert [f.mean() > 128 for f in frames] == [times[i] >= event for i in nearest]
    assert abs(_flash_and_click(frames, samples)[1] - event) < 0.002
    np.testing.assert_allclose(info.frame_seconds, times, atol=1.1e-3)


@pytest.mark.parametrize("late, expected", [(0.2, 3200), (-0.2, 0)])
def test_sound_is_placed_by_its_time_stamps(tmp_path, late, expected):
    path = media.simple(
        tmp_path / "a.mkv",
        2.0,
        start=0.5,
        sound_start=late,
        sound_codec="pcm_s16le",
    )
    frames, samples, present, _ = _read(path)
    flash, click = _flash_and_click(frames, samples)
    assert abs(click - flash - late) < 0.002
    assert np.flatnonzero(present)[0] == pytest.approx(expected, abs=20)
    missing_at_end = 0 if late > 0 else round(-late * 16000)
    assert (~present[16000:]).sum() == pytest.approx(missing_at_end, abs=200)
    assert not samples[~present].any()


def test_a_gap_in_the_sound_is_missing_not_closed():
    samples = np.full(8000, 0.25, np.float32)
    pieces = [
        (Fraction(5), samples[:4000]),
        (None, samples[4000:]),
        (Fraction(13, 2), samples),  # a second later than the piece before ends
    ]
    chunks = sound.place(pieces, Fraction(5))
    assert [(at, len(piece)) for at, piece in chunks] == [(0, 8000), (24000, 8000)]
    samples, present = sound.track(chunks, 50)
    np.testing.assert_array_equal(np.flatnonzero(np.diff(present)), [7999, 23999])
    np.testing.assert_array_equal(samples, 0.25 * present)


def test_stereo_is_averaged(tmp_path):
    sound = np.full(48000, 0.5, np.float32)
    path = media.simple(tmp_path / "a.mkv", 1.0, sound=sound, sound_codec="pcm_s16le")
    _, samples, _, _ = _read(path)
    assert samples[2000:14000].mean() == pytest.approx(0.5, abs=1e-3)


def _corner(time: float) -> np.ndarray:
    picture = np.full((64, 96, 3), 40, np.uint8)
    picture[:24, :24] = (230, 60, 60)  # red, top left
    return picture


@pytest.mark.parametrize("rotation, corner", [(90, 2), (-90, 1), (180, 3)])
def test_the_display_matrix_is_applied(tmp_path, rotation, corner):
    path = media.simple(
        tmp_path / "a.mp4", picture=_corner, rotation=rotation, codec="mpeg4"
    )
    frames, _, _, info = _read(path)
    shape = (64, 96) if rotation == 180 else (96, 64)
    assert frames[5].shape == (*shape, 3)
    red = frames[5][:, :, 0].astype(int) - frames[5][:, :, 2]
    corners = [red[4, 4], red[4, -4], red[-4, 4], red[-4, -4]]
    assert int(np.argmax(corners)) == corner  # counterclockwise from the top left
    assert info.notes == ["rotated or mirrored as the file asks"]


def test_pixels_become_square(tmp_path):
    path = media.simple(
        tmp_path / "a.mkv", picture=_corner, pixel_aspect=Fraction(3, 2)
    )
    frames, _, _, info = _read(path)
    assert frames[0].shape == (64, 144, 3)
    assert info.notes == ["stored as 96x64, shown as 144x64"]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_turns_and_mirrorings_equal_the_matrix(turned, signs):
    matrix = np.diag(signs)[::-1] if turned else np.diag(signs)
    stored = np.arange(2 * 3 * 3).reshape(2, 3, 3).astype(np.uint8)
    shown = picture.upright(stored, 65536 * matrix)
    points = np.array([(x, y) for y in range(2) for x in range(3)]) @ matrix
    points -= points.min(axis=0)
    for (x, y), pixel in zip(points, stored.reshape(6, 3), strict=True):
        np.testing.assert_array_equal(shown[y, x], pixel)


def _cut(path: pathlib.Path, share: float) -> pathlib.Path:
    data = path.read_bytes()
    path.write_bytes(data[: round(share * len(data))])
    return path


def _noisy(time: float) -> np.ndarray:
    rng = np.random.default_rng(round(time * 1000))
    return rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)


def _no_sound(folder):
    return media.simple(folder / "a.mp4", sound=None)


def _no_video(folder):
    return media.simple(folder / "a.mp4", picture=None)


def _empty(folder):
    (folder / "a.mp4").write_bytes(b"")
    return folder / "a.mp4"


def _text(folder):
    (folder / "a.mp4").write_text("clip,overall\nthis is no video\n" * 50)
    return folder / "a.mp4"


def _playlist(folder):
    target = media.simple(folder / "b.mkv")
    text = f"ffconcat version 1.0\nfile {target.name}\n"
    (folder / "a.mp4").write_text(text)
    return folder / "a.mp4"


def _header_cut_off(folder):
    return _cut(media.simple(folder / "a.mp4", 4.0, picture=_noisy), 0.6)


def _data_cut_off(folder):
    more = {"options": {"movflags": "faststart"}}
    return _cut(media.simple(folder / "a.mp4", 4.0, picture=_noisy, **more), 0.6)


def _matroska_cut_off(folder):
    return _cut(media.simple(folder / "a.mkv", 4.0, picture=_noisy), 0.6)


def _tiny(folder):
    picture = media.flash(0.5, (1, 1))
    return media.simple(folder / "a.mkv", picture=picture, codec="ffv1")


def _long(folder):
    return media.simple(folder / "a.mp4", 4.0)


def _nothing(folder):
    return folder / "none.mp4"


@pytest.mark.parametrize(
    "make, reason",
    [
        (_no_sound, "no audio stream"),
        (_no_video, "no video stream"),
        (_empty, "0 bytes"),
        (_text, "not a readable video"),
        (_playlist, "not a readable video"),
        (_header_cut_off, "not a readable video"),
        (_data_cut_off, "truncated"),
        (_matroska_cut_off, "truncated"),
        (_tiny, "1x1 pixels"),
        (_long, "lasts 4 s, longer than 3 s"),
        (_nothing, "no such file"),
    ],
)
def test_a_useless_clip_has_a_reason(tmp_path, make, reason):
    with pytest.raises(decode.ClipError, match=reason) as caught:
        _read(make(tmp_path), max_seconds=3.0 if make is _long else 120.0)
    assert "\n" not in str(caught.value)


def test_gigantic_pictures_are_refused_before_they_take_memory(tmp_path, monkeypatch):
    path = media.simple(tmp_path / "a.mp4")
    monkeypatch.setattr(decode, "_MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(decode.ClipError, match="64x64 pixels are larger than"):
        _read(path)


def test_a_length_that_the_header_hides_is_found_by_counting(tmp_path):
    # MPEG program streams of one burst state no length; matroska written to a pipe
    # likewise. Here the limit is just below what the header says.
    path = media.simple(tmp_path / "a.mkv", 4.0, options={"live": "1"})
    with pytest.raises(decode.ClipError, match="longer than 2 s"):
        _read(path, max_seconds=2.0)


def test_frames_are_not_all_held_in_memory(tmp_path):
    path = media.simple(tmp_path / "a.mp4", 2.0)
    frames = decode.frames(path, decode.Media())
    assert next(frames).shape == (64, 64, 3)
    frames.close()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_damaged_files_give_frames_or_a_reason_and_nothing_else(tmp_path, suffix):
    sound_codec = "pcm_s16le" if suffix == ".avi" else "aac"
    whole = media.simple(
        tmp_path / f"a{suffix}", 1.0, picture=_noisy, sound_codec=sound_codec
    ).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f"b{suffix}"
    for trial in range(45):
        data = bytearray(whole)
        place = int(rng.integers(len(data)))
        if trial % 3 == 0:
            del data[place:]
        elif trial % 3 == 1:
            for at in rng.integers(len(data), size=(1, 20, 400)[trial % 9 // 3]):
                data[at] = rng.integers(256)
        else:
            del data[place : place + int(rng.choice([10, 1000, 20000]))]
        path.write_bytes(bytes(data))
        try:
            frames, samples, present, _ = _read(path, max_seconds=20)
        except decode.ClipError:
            continue
        assert len(samples) == len(present) == 640 * len(frames) > 0
        assert np.isfinite(samples).all()


def test_a_stream_that_appears_midway_is_passed_over(tmp_path):
    whole = media.simple(tmp_path / "a.ts", 1.0, picture=_noisy).read_bytes()
    path = tmp_path / "b.ts"
    tried = 0
    for start in range(len(whole) * 4 // 5 // 188 * 188, len(whole), 188):
        begins = whole[start + 1] & 0x40
        if begins and whole[start + 1] & 0x1F == 1:  # of a stream, not of a table
            data = bytearray(whole)
            data[start + 2] ^= 0x55  # another stream's number
            path.write_bytes(bytes(data))
            frames, _, _, _ = _read(path)
            assert 24 <= len(frames) <= 25
            tried += 1
    assert tried > 5
