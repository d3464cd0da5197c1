import os
import pathlib
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from extract import decode, picture, sound
from tests import media

ODD = pathlib.Path(os.environ.get("TQA_SHARED", "../shared")) / "data" / "odd"
needs_odd = pytest.mark.skipif(not ODD.is_dir(), reason=f"no {ODD}: set TQA_SHARED")
FLAGS = av.stream.Disposition


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


def _bright(folder: pathlib.Path, **more) -> pathlib.Path:
    """Writes a bright clip with sound from the middle on: the one to be chosen."""
    return media.simple(folder / "bright.mkv", picture=media.flash(0), **more)


def _decoy(folder: pathlib.Path, seconds: float = 1.0, **more) -> pathlib.Path:
    """Writes a dark and silent clip."""
    silence = np.zeros(round(seconds * media.RATE), np.float32)
    dark = {"picture": media.flash(99), "sound": silence, **more}
    return media.simple(folder / "decoy.mkv", seconds, **dark)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_the_streams_with_the_default_flag_are_taken(tmp_path, suffix):
    decoy, bright = _decoy(tmp_path), _bright(tmp_path)
    path = media.mux(
        tmp_path / f"a{suffix}",
        (decoy, "video", 0),
        (decoy, "audio", 0),
        (bright, "video", FLAGS.default),
        (bright, "audio", FLAGS.default),
    )
    frames, samples, _, info = _read(path)
    assert len(frames) == 25 and frames[0].mean() > 128 and np.abs(samples).max() > 0.2
    assert info.notes == [
        "2 video streams: number 2 is taken",
        "2 audio streams: number 2 is taken",
    ]


def test_without_a_default_the_first_that_is_no_comment_is_taken(tmp_path):
    decoy, bright = _decoy(tmp_path), _bright(tmp_path)
    path = media.mux(
        tmp_path / "a.mkv",
        (bright, "video", 0),
        (decoy, "audio", FLAGS.visual_impaired),
        (decoy, "audio", FLAGS.comment),
        (bright, "audio", 0),
        (decoy, "audio", 0),
    )
    _, samples, _, info = _read(path)
    assert np.abs(samples).max() > 0.2
    assert info.notes == ["4 audio streams: number 3 is taken"]


@pytest.mark.parametrize("flags", [0, FLAGS.default, FLAGS.attached_pic])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_a_still_picture_is_not_the_video(tmp_path, suffix, flags):
    cover = media.write(
        tmp_path / "cover.mkv",
        times=[0],
        picture=media.flash(99, (96, 96)),
        sound=None,
        codec="mjpeg",
    )
    bright = _bright(tmp_path)
    path = media.mux(
        tmp_path / f"a{suffix}",
        (cover, "video", flags),
        (bright, "video", 0),
        (bright, "audio", 0),
    )
    frames, _, _, info = _read(path)
    assert len(frames) == 25 and frames[0].mean() > 128
    assert info.notes in ([], ["2 video streams: number 2 is taken"])


@pytest.mark.parametrize(
    "codec, b_frames", [("libx264", None), ("mpeg4", 1), ("mpeg4", 3)]
)
def test_avi_keeps_the_order_and_the_time_of_b_frames(tmp_path, codec, b_frames):
    levels = np.random.default_rng(0).permutation(50) * 4.0 + 20

    def picture(time):
        return np.full((64, 64, 3), levels[round(25 * time)], np.uint8)

    more = {"codec": codec, "b_frames": b_frames, "ticks": 25}
    path = media.simple(
        tmp_path / "a.avi", 2.0, picture=picture, sound_codec="pcm_s16le", **more
    )
    frames, samples, _, info = _read(path)
    assert info.notes == []
    np.testing.assert_allclose([f.mean() for f in frames], levels, atol=4)
    assert np.flatnonzero(np.abs(samples) > 0.2)[0] == pytest.approx(16000, abs=32)


def test_b_frames_with_times_of_their_packets_lose_one_picture_and_no_time(tmp_path):
    made = media.simple(tmp_path / "a.mp4", 2.0, b_frames=2)

    def in_order(packet):
        if packet.stream.type == "video":
            packet.pts = packet.dts = packet.dts + media.TICKS // 25
        return True

    parts = ((made, "video", 0), (made, "audio", 0))
    path = media.mux(tmp_path / "b.mp4", *parts, change=in_order)
    frames, samples, _, info = _read(path)
    flash, click = _flash_and_click(frames, samples)
    assert len(frames) == 50 and abs(flash - click) < 0.006
    assert info.notes == ["1 of 50 pictures are lost (time stamps that go back: 1)"]


def _parts(folder: pathlib.Path, suffix: str, starts, seconds: float = 2.0):
    """Writes clips with a flash and a click half-way and joins their bytes."""
    more = {"codec": "libx264"}
    if suffix == ".mpg":
        more = {"codec": "mpeg1video", "sound_codec": "mp2", "ticks": 25}
    parts = [
        media.simple(folder / f"{number}{suffix}", seconds, start=start, **more)
        for number, start in enumerate(starts)
    ]
    return media.join(folder / f"joined{suffix}", *parts)


@pytest.mark.parametrize(
    "suffix, starts",
    [
        (".ts", (0, 0)),
        (".ts", (0, 0.7, 0)),
        (".ts", (0, 500)),
        (".ts", (500, 0)),  # FFmpeg takes this for stamps of 33 bits that wrap
        (".mpg", (0, 0, 0)),
    ],
)
def test_joined_recordings_keep_pictures_and_sound_together(tmp_path, suffix, starts):
    path = _parts(tmp_path, suffix, starts)
    frames, samples, present, info = _read(path)
    levels = np.array([frame.mean() > 128 for frame in frames])
    flashes = np.flatnonzero(np.diff(levels.astype(int)) == 1) + 1
    loud = np.flatnonzero(np.abs(samples) > 0.2)
    clicks = loud[np.diff(loud, prepend=-16000) > 8000]
    assert len(flashes) == len(clicks) == len(starts)
    np.testing.assert_allclose(clicks / 16000, flashes / 25, atol=0.03)
    assert len(info.frame_seconds) == 50 * len(starts)
    assert 50 * len(starts) <= len(frames) <= 52 * len(starts)
    assert present.mean() > 0.95
    assert info.notes == [f"{len(starts)} recordings joined: time stamps start again"]


def test_a_recording_without_sound_may_be_joined(tmp_path):
    whole = media.simple(tmp_path / "a.ts", 1.0)
    deaf = media.simple(tmp_path / "b.ts", 1.0, sound=None)
    frames, _, present, _ = _read(media.join(tmp_path / "c.ts", whole, deaf, whole))
    assert 75 <= len(frames) <= 78
    silent = np.flatnonzero(~present) / 16000
    assert 0.9 < silent[0] < 1.1 and 1.9 < silent[-1] < 2.1


def test_what_is_lost_is_counted_and_much_of_it_refused(tmp_path):
    # Stamps that go back by less than a tenth of a second are no new recording.
    def joined(seconds):
        parts = [
            media.simple(tmp_path / f"{start}.ts", seconds, start=start, b_frames=0)
            for start in (0.2, 0.2 + seconds - 0.06)
        ]
        return media.join(tmp_path / f"{seconds}.ts", *parts)

    frames, _, _, info = _read(joined(2.0))
    pictures, heard = info.notes
    assert pictures == "1 of 100 pictures are lost (time stamps that go back: 1)"
    assert heard.endswith("s of sound are overwritten by later sound")
    assert 0.04 < float(heard.split()[0]) < 0.1
    assert 98 <= len(frames) <= 99
    with pytest.raises(decode.ClipError, match="1 of 16 pictures are lost"):
        _read(joined(0.32))


def test_overlapping_sound_is_counted():
    samples = np.ones(100, np.float32)
    chunks = [(0, samples), (90, samples), (20, samples[:10]), (200, samples)]
    assert sound.overlapping(chunks) == 10 + 10
    assert sound.overlapping(chunks[:1]) == 0


@pytest.mark.parametrize("kind", ["video", "audio"])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_another_stream_may_be_longer_than_the_clip(tmp_path, suffix, kind):
    bright, longer = _bright(tmp_path), _decoy(tmp_path, 9.0)
    path = media.mux(
        tmp_path / f"a{suffix}",
        (bright, "video", FLAGS.default),
        (bright, "audio", FLAGS.default),
        (longer, kind, 0),
    )
    frames, _, _, info = _read(path, max_seconds=5.0)
    assert len(frames) == 25 and frames[0].mean() > 128
    assert info.notes == [f"2 {kind} streams: number 1 is taken"]


def test_a_clip_that_is_cut_off_is_truncated_whatever_else_is_in_it(tmp_path):
    noisy = media.simple(tmp_path / "noisy.mkv", 4.0, picture=_noisy)
    longer = _decoy(tmp_path, 9.0)
    path = media.mux(
        tmp_path / "a.mkv",
        (noisy, "video", FLAGS.default),
        (noisy, "audio", FLAGS.default),
        (longer, "audio", 0),
    )
    with pytest.raises(decode.ClipError, match="truncated: .* of 4.0 s of pictures"):
        _read(_cut(path, 0.5))
    # FFmpeg shortens the length of an AVI without its index, not the number of frames.
    path = media.simple(tmp_path / "a.avi", 4.0, picture=_noisy, codec="mpeg4")
    with pytest.raises(decode.ClipError, match="truncated: .* of 4.0 s of pictures"):
        _read(_cut(path, 0.5))


def test_one_picture_beside_sound_is_no_video(tmp_path):
    clip = media.simple(tmp_path / "a.mkv", 2.0)
    cover = media.simple(tmp_path / "cover.mkv", 0.04)
    path = media.mux(tmp_path / "b.mkv", (cover, "video", 0), (clip, "audio", 0))
    with pytest.raises(decode.ClipError, match="one still picture beside 2"):
        _read(path)


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
def test_pictures_that_a_broadcast_lacks_are_lost(tmp_path, suffix):
    more = {"codec": "libx264", "options": {"g": "1"}}  # each can be decoded alone
    whole = media.simple(tmp_path / f"a{suffix}", 4.0, **more)

    def outside(packet):
        at = float(packet.pts * packet.time_base) % 10
        return packet.stream.type == "audio" or not 1.5 < (at - first) < 3.0

    with av.open(str(whole)) as file:
        first = min(float(p.pts * p.time_base) for p in file.demux(video=0) if p.size)
    parts = [(whole, kind, FLAGS.default) for kind in ("video", "audio")]
    path = media.mux(tmp_path / f"b{suffix}", *parts, change=outside)
    if suffix == ".ts":
        with pytest.raises(decode.ClipError, match=r"3\d of 100 pictures are lost"):
            _read(path)
    else:  # A recording of a screen has a picture where something moves.
        frames, _, _, info = _read(path)
        assert len(frames) == 100
        assert info.notes == ["no new picture from 1.48 to 3.00 s"]


def _boxes(content: bytes) -> list[tuple[bytes, bytes]]:
    boxes = []
    while content:
        size, name = struct.unpack_from(">I4s", content)
        boxes.append((name, content[:size]))
        content = content[size:]
    return boxes


@pytest.mark.parametrize("seconds, limit", [(8.0, 120.0), (8.0, 5.0)])
def test_fragments_from_the_middle_are_a_clip(tmp_path, seconds, limit):
    flags = "empty_moov+default_base_moof+frag_every_frame"
    options = {"movflags": flags}
    whole = media.simple(tmp_path / "a.mp4", seconds, options=options)
    boxes = _boxes(whole.read_bytes())
    head = [box for name, box in boxes if name in (b"ftyp", b"moov")]
    body = [box for name, box in boxes if name in (b"moof", b"mdat")]
    path = tmp_path / "b.mp4"
    path.write_bytes(b"".join(head + body[len(body) // 4 * 3 :]))
    frames, _, _, info = _read(path, max_seconds=limit)
    assert len(frames) == pytest.approx(50, abs=13) and info.start_seconds > 4


@pytest.mark.parametrize(
    "layout, gains",
    [
        ("stereo", (1, -1)),
        ("stereo", (-0.8, 1)),
        ("5.1", (1, -1, 0, 0, 0, 0)),
    ],
)
def test_channels_that_cancel_out_are_heard(tmp_path, layout, gains):
    click = media.click(1.0, 0.5)
    channels = np.array(gains, np.float32)[:, None] * click
    more = {"sound": channels, "layout": layout, "sound_codec": "pcm_s16le"}
    _, samples, _, info = _read(media.simple(tmp_path / "a.mkv", **more))
    (tmp_path / "b").mkdir()
    more = {"sound": click, "sound_codec": "pcm_s16le"}
    _, mono, _, _ = _read(media.simple(tmp_path / "b" / "a.mkv", **more))
    loudest = int(np.argmax(np.abs(gains)))
    np.testing.assert_allclose(samples, gains[loudest] * mono, atol=1e-3)
    note = f"the channels cancel out: number {loudest + 1} is taken alone"
    assert info.notes == [note]


def test_channels_that_cancel_out_for_a_second_are_heard(tmp_path):
    click = media.click(4.0, 0.5) + media.click(4.0, 3.5)
    channels = np.stack([click, click])
    channels[1, len(click) // 2 :] *= -1
    more = {"sound": channels, "layout": "stereo", "sound_codec": "pcm_s16le"}
    _, samples, _, info = _read(media.simple(tmp_path / "a.mkv", 4.0, **more))
    assert np.abs(samples[-16000:]).max() > 0.5
    assert info.notes == ["the channels cancel out: number 1 is taken alone"]


@pytest.mark.parametrize("gains", [(1, 0), (1, -0.3), (0, 0)])
def test_channels_that_do_not_cancel_out_are_averaged(tmp_path, gains):
    channels = np.array(gains, np.float32)[:, None] * media.click(1.0, 0.5)
    more = {"sound": channels, "layout": "stereo", "sound_codec": "pcm_s16le"}
    _, samples, _, info = _read(media.simple(tmp_path / "a.mkv", **more))
    peak = 0.8 * sum(gains) / 2
    assert np.abs(samples).max() == pytest.approx(peak, rel=0.2, abs=1e-4)
    assert info.notes == []


def test_a_clip_without_a_keyframe_says_so(tmp_path):
    made = media.simple(tmp_path / "a.mp4", codec="libx264")
    parts = ((made, "video", 0), (made, "audio", 0))

    def dependent(packet):
        return packet.stream.type == "audio" or not packet.is_keyframe

    path = media.mux(tmp_path / "b.mkv", *parts, change=dependent)
    with pytest.raises(decode.ClipError, match="none of 24 pictures.*no keyframe"):
        _read(path)


@needs_odd
@pytest.mark.parametrize(
    "name, rows, notes",
    [
        ("02_two_ts_concatenated.ts", 82, ["2 recordings joined"]),
        ("03_dub_first_default_second.mkv", 80, ["2 audio streams: number 2"]),
        ("04_subtitles_longer_than_clip.mkv", 80, []),
        ("05_fragments_from_the_middle.mp4", 85, []),
        ("06_cover_unflagged_default_second.mkv", 80, ["2 video streams: number 2"]),
        ("14_antiphase_stereo.mkv", 80, ["the channels cancel out"]),
    ],
)
def test_odd_files_are_read_as_players_do(name, rows, notes):
    frames, samples, present, info = _read(ODD / name)
    assert len(frames) == rows and frames[0].shape == (256, 256, 3)
    assert len(info.frame_seconds) == (80 if rows == 82 else rows)
    assert present.mean() > 0.99 and np.sqrt(np.mean(samples**2)) > 0.05
    assert len(info.notes) == len(notes)
    for note, start in zip(info.notes, notes, strict=True):
        assert note.startswith(start)


@needs_odd
def test_packed_b_frames_are_the_same_clip():
    packed, *heard = _read(ODD / "01_packed_bframes.avi")[:3]
    plain, *expected = _read(ODD / "01_same_unpacked_ok.avi")[:3]
    np.testing.assert_array_equal(packed, plain)
    np.testing.assert_array_equal(heard, expected)


@needs_odd
def test_a_transport_stream_without_a_keyframe_says_so():
    with pytest.raises(decode.ClipError, match="none of 103 pictures.*no keyframe"):
        _read(ODD / "16_ts_without_keyframe.ts")
