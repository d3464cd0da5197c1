"""What becomes of each kind of bad input, mostly by one run over one folder.

Kinds that need no whole run are in test_decode (cut-off and damaged files, rotation,
variable frame rate, no sound or picture), test_extract_clip (silence, faces that come
and go) and test_extract_build (files that vanish, crashes, folders in the way).
"""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import unicodedata
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from extract import decode, files, labels, run, sound
from extract.backends import logmel
from tests import media, test_score
from tqa_jax import records, schema, score

HOURS = 3 * 3600.0
SECONDS = 0.4  # of most clips here: 10 rows
NAMES = (
    "plain.mp4",
    "with spaces.mp4",
    " before.mp4",
    'it\'s "quoted", so.mp4',
    "two\nlines.mp4",
    "carriage\rreturn.mp4",
    "名前 Žluťoučký 🎬.mp4",
    unicodedata.normalize("NFD", "décomposé.mp4"),
    "-dash.mp4",
    "--out=x.mp4",
    "12:30.mp4",
    "http:x.mp4",
    "back\\slash.mp4",
    "%d;$(x)|`y`.mp4",
)


def _free(path: pathlib.Path, count: int) -> bytes:
    """Returns the file with boxes at its end that MP4 readers pass over."""
    return path.read_bytes() + count * b"\x00\x00\x00\x08free"


def _two_faces(time: float) -> np.ndarray:
    picture = np.full((256, 448, 3), 120, np.uint8)
    picture[:, :256] = media.portrait()
    picture[:192, 256:] = cv2.resize(media.portrait(), (192, 192))
    return picture


def _8k(time: float) -> np.ndarray:
    picture = np.full((270, 480, 3), 120, np.uint8)
    picture[:256, :256] = media.portrait()
    return picture.repeat(16, axis=0).repeat(16, axis=1)


@functools.cache
def _jpeg(width: int, height: int) -> bytes:
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    frame = av.VideoFrame(width, height, "yuvj420p")
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    return b"".join(bytes(one) for one in encoder.encode(frame) + encoder.encode())


def _jpegs(path: pathlib.Path, sizes: list[tuple[int, int]]) -> pathlib.Path:
    """Writes a clip at 25 fps with black pictures of any sizes."""
    with av.open(str(path), "w") as file:
        video = file.add_stream("mjpeg", rate=25)
        video.width, video.height = sizes[0]
        video.pix_fmt = "yuvj420p"
        audio = file.add_stream("pcm_s16le", rate=media.RATE, layout="mono")
        silence = np.zeros((1, media.RATE * len(sizes) // 25), np.int16)
        frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
        frame.sample_rate, frame.pts = media.RATE, 0
        for packet in audio.encode(frame) + audio.encode():
            file.mux(packet)
        for index, size in enumerate(sizes):
            packet = av.Packet(_jpeg(*size))
            packet.stream, packet.time_base = video, Fraction(1, 25)
            packet.pts = packet.dts = index
            file.mux(packet)
    return path


def _avi(path: pathlib.Path, seconds: float, scale: int, rate: int) -> pathlib.Path:
    """Writes an AVI whose frames come at 25 fps and whose header states another."""
    made = media.face(path.with_suffix(".mkv"), seconds, sound_codec="pcm_s16le")
    with av.open(str(made)) as source, av.open(str(path), "w") as target:
        copies = {}
        for stream in source.streams:
            copies[stream.index] = target.add_stream_from_template(stream)
        video = copies[source.streams.video[0].index]
        video.time_base = Fraction(1, 25)
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video":
                at = round(packet.pts * packet.time_base * 25)
                packet.time_base, packet.duration = Fraction(1, 25), 1
                packet.pts = packet.dts = at
            packet.stream = copies[packet.stream.index]
            target.mux(packet)
    made.unlink()
    content = bytearray(path.read_bytes())
    header = content.index(b"vids") + 20  # dwScale and dwRate of the video's header
    assert struct.unpack_from("<II", content, header) == (1, 25)
    struct.pack_into("<II", content, header, scale, rate)
    struct.pack_into("<I", content, 32, 10**6 * scale // rate if rate else 0)
    path.write_bytes(content)
    return path


def _far_apart(path: pathlib.Path, **more) -> pathlib.Path:
    given = {"times": [0.0, HOURS], "sound": media.speech(SECONDS)}
    return media.face(path, SECONDS, **{**given, **more})


def _make(folder: pathlib.Path) -> None:
    """Fills a folder with one clip of each kind."""
    media.face(folder / NAMES[0], SECONDS)
    for number, name in enumerate(NAMES[1:], 1):
        (folder / name).write_bytes(_free(folder / NAMES[0], number))
    (folder / b"bytes\xff.mp4".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    random = np.random.default_rng(0).bytes(20_000)
    (folder / "random\nbytes.mp4").write_bytes(random)
    (folder / "random\rbytes.mp4").write_bytes(random[::-1])
    media.simple(folder / "no face.mp4", SECONDS)
    tiny = {"picture": media.flash(0.2, (1, 1)), "codec": "ffv1"}
    media.simple(folder / "1x1.mkv", SECONDS, **tiny)
    _jpegs(folder / "71 Mpixel.mkv", [(8704, 8192)])
    _far_apart(folder / "3 h.mp4")
    live = {"options": {"live": "1"}, "sound_codec": "pcm_s16le"}
    _far_apart(folder / "3 h hidden.mkv", **live)
    with av.open(str(folder / "3 h hidden.mkv")) as file:
        assert (file.duration or 0) < 1e6 * HOURS / 100
    media.face(folder / "several faces.mp4", SECONDS, picture=_two_faces)
    times = np.arange(2) / 25
    media.face(folder / "8K.mp4", 0.08, picture=_8k, times=times)
    times = np.arange(round(SECONDS * 1000)) / 1000
    media.face(folder / "1000 fps.mp4", SECONDS, times=times, fps=1000)
    _avi(folder / "0 fps stated.avi", SECONDS, 0, 0)
    _avi(folder / "1000 fps stated.avi", 1.0, 1, 1000)
    pcm = {"sound_codec": "pcm_s16le"}
    gains = np.arange(8, dtype=np.float32)[:, None] / 7  # 0.5 on average
    eight = gains * media.speech(SECONDS)
    media.face(folder / "8 channels.mkv", SECONDS, sound=eight, layout="7.1", **pcm)
    media.face(folder / "1 channel.mkv", SECONDS, sound=eight.mean(axis=0), **pcm)
    twice = np.repeat(eight.mean(axis=0), 2)
    more = {"sound": twice, "sound_rate": 96_000, **pcm}
    media.face(folder / "96 kHz.mkv", SECONDS, **more)
    silence = np.zeros(round(SECONDS * media.RATE), np.float32)
    media.face(folder / "silent.mkv", SECONDS, sound=silence, **pcm)


REJECTED = {
    "random\nbytes": "not a readable video: Invalid data found when processing input",
    "random\rbytes": "not a readable video: Invalid data found when processing input",
    "no face": "no face found in 10 frames",
    "1x1": "pictures of 1x1 pixels are smaller than 16x16",
    "71 Mpixel": "pictures of 8704x8192 pixels are larger than 67 million pixels",
    "3 h": "lasts 10800 s, longer than 120 s",
    "3 h hidden": "longer than 120 s",
}
NOTES = {
    "several faces": "several faces in 10 of 10 rows; the largest taken",
    "8K": "stored as 7680x4320, shown as 1920x1080",
    "1000 fps stated": "the pictures end after 0.04 s: the 0.96 s of sound after them "
    "are left out",
    "silent": "the sound is silent",
}
ROWS = {"8K": 2, "1000 fps stated": 1}
"""Rows of the clips in the set that have not 10."""


def _write_labels(path: pathlib.Path, names) -> pathlib.Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["clip", "split", "overall"])
        for number, name in enumerate(names):
            split = {1: "validation", 2: "test"}.get(number, "train")
            writer.writerow([name, split, 1 + number % 5])
    return path


def _pairs(path: pathlib.Path) -> list[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


@dataclasses.dataclass(frozen=True)
class Ran:
    """What one run over all kinds came to."""

    status: int
    arguments: list[str]
    lines: list[str]
    out: pathlib.Path
    clips: dict[str, records.Clip]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    base = tmp_path_factory.mktemp("bad")
    folder = base / "clips"
    folder.mkdir()
    _make(folder)
    readable = [file for file in files.videos(folder) if "\udcff" not in file.name]
    names = sorted({file.name for file in readable}, key=lambda name: name not in NAMES)
    table = _write_labels(base / "labels.csv", names)
    arguments = [f"--clips={folder}", f"--labels={table}", f"--out={base / 'set'}"]
    arguments += ["--num_workers=2", "--dtype=float32"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = run.main(arguments)
    info = schema.load(base / "set")
    stored = {
        one.clip: one
        for split in schema.SPLITS
        for one in records.read_split(base / "set", info, split)
    }
    lines = said.getvalue().split("\n")
    return Ran(status, arguments, lines, base / "set", stored)


def test_useless_clips_are_rejected_each_with_its_reason(ran):
    assert ran.status == 3
    assert dict(_pairs(ran.out / "rejected.csv")) == REJECTED
    assert len(_pairs(ran.out / "rejected.csv")) == len(REJECTED)


def test_what_is_unusual_is_noted(ran):
    assert sorted(_pairs(ran.out / "notes.csv")) == sorted(NOTES.items())


def test_clips_of_every_other_kind_and_name_are_in_the_set(ran):
    usable = {pathlib.PurePath(name).stem for name in NAMES}
    usable |= {"several faces", "8K", "1000 fps", "0 fps stated", "1000 fps stated"}
    usable |= {"8 channels", "1 channel", "96 kHz", "silent"}
    assert set(ran.clips) == usable
    for name, one in ran.clips.items():
        assert one.frames == ROWS.get(name, 10), name
        for modality, mask in one.frame_mask.items():
            assert mask.all(), (name, modality)
            assert np.isfinite(one.features[modality]).all()


def test_a_name_changes_nothing_but_the_name(ran):
    plain = ran.clips["plain"]
    for name in NAMES[1:]:
        same = ran.clips[pathlib.PurePath(name).stem]
        for modality, values in plain.features.items():
            np.testing.assert_array_equal(same.features[modality], values)


def test_each_clip_has_one_printed_line(ran):
    assert ran.lines.pop() == ""
    said = ran.lines[: len(REJECTED) + len(NOTES)]
    expected = [
        f"rejected {name if name.isprintable() else repr(name)}: {reason}"
        for name, reason in REJECTED.items()
    ]
    expected += [f"note on {name}: {note}" for name, note in NOTES.items()]
    assert sorted(said) == sorted(expected)
    assert ran.lines[len(said)].startswith("1 clips have no row in")
    assert len(ran.lines) == len(said) + 3
    assert not any("\r" in line for line in ran.lines)


def _audio(one: records.Clip, name: str) -> np.ndarray:
    return one.features["audio"][:, logmel.FEATURES.index(name)]


def _level(one: records.Clip) -> np.ndarray:
    return _audio(one, "rms_db")


def test_eight_channels_are_averaged_and_96_khz_keeps_its_time(ran):
    mono = ran.clips["1 channel"]
    # Samples of 16 bits are rounded in each channel before they are averaged.
    np.testing.assert_allclose(_level(ran.clips["8 channels"]), _level(mono), atol=0.02)
    # Repeated samples lose 0.4 dB at 8 kHz; a shift of 5 ms would change a row by 1 dB.
    np.testing.assert_allclose(_level(ran.clips["96 kHz"]), _level(mono), atol=0.3)


@pytest.mark.parametrize(
    "name, width, height",
    [("several faces", 448, 256), ("8K", 480, 270), ("1000 fps", 256, 256)],
)
def test_the_largest_face_is_measured_at_its_place(ran, name, width, height):
    points, alone = (ran.clips[one].features["keypoints"] for one in (name, "silent"))
    for axis, size in ((0, width), (1, height)):
        place, wanted = (x[:, axis::3].mean() for x in (points, alone))
        np.testing.assert_allclose(place, wanted * 256 / size, atol=0.01)


def _read(path) -> tuple[int, np.ndarray, decode.Media]:
    info = decode.Media()
    rows = sum(1 for _ in decode.frames(path, info))
    return rows, sound.track(info.chunks, info.rows)[0], info


@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000, 192_000])
def test_sound_of_any_rate_keeps_its_time(tmp_path, rate):
    click = np.zeros(rate, np.float32)
    click[rate // 2 : rate // 2 + rate // 50] = 0.8
    more = {"sound": click, "sound_rate": rate, "sound_codec": "pcm_s16le"}
    _, samples, _ = _read(media.simple(tmp_path / "a.mkv", 1.0, **more))
    assert abs(np.flatnonzero(samples > 0.4)[0] / 16_000 - 0.5) < 1.5e-4


@pytest.mark.parametrize(
    "name",
    ["-dash.mp4", "12:30.mp4", "http:x.mp4", "concat:a.mp4", "data:,a.mp4"]
    + [b"bytes\xff.mp4".decode("utf-8", "surrogateescape")],
)
def test_a_name_is_never_an_address(tmp_path, monkeypatch, name):
    media.simple(tmp_path / "a.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert _read(pathlib.Path(name))[0] == 25


@pytest.mark.parametrize("start", [b"", b"\0\0\0\x18ftypisom", b"RIFF\0\0\1\0AVI "])
@pytest.mark.parametrize("seed", range(2))
def test_random_bytes_are_no_video(tmp_path, start, seed):
    path = tmp_path / "a.mp4"
    path.write_bytes(start + np.random.default_rng(seed).bytes(20_000))
    with pytest.raises(decode.ClipError, match="not a readable video|no video stream"):
        _read(path)


def test_a_picture_that_grows_beyond_the_limit_is_not_decoded(tmp_path):
    sizes = [(64, 64)] * 40 + [(8704, 8192)]
    rows, _, info = _read(_jpegs(tmp_path / "a.mkv", sizes))
    assert rows == 40
    assert info.notes == ["1 of 41 pictures are lost (damaged: 1)"]
    with pytest.raises(decode.ClipError, match=r"3 of 43 .*lost \(damaged: 3\)"):
        _read(_jpegs(tmp_path / "b.mkv", sizes + [(8704, 8192)] * 2))


def test_a_length_that_ffmpeg_guesses_is_no_promise(tmp_path):
    # Without a length in the header it divides the file's size by the sound's rate.
    def noise(time):
        rng = np.random.default_rng(round(time * 1000))
        return rng.integers(0, 255, (256, 256, 3)).astype(np.uint8)

    more = {"picture": noise, "sound_codec": "pcm_s16le", "options": {"live": "1"}}
    path = media.simple(tmp_path / "a.mkv", 1.0, **more)
    with av.open(str(path)) as file:
        assert file.duration / 1e6 > 10
    assert _read(path)[0] == 25


def _table(tmp_path, cell: str):
    folder = tmp_path / "clips"
    path = _write_labels(tmp_path / "labels.csv", [cell, "b.mp4", "c.mp4"])
    return labels.read(path, folder).items[0]


@pytest.mark.parametrize(
    "name, cell",
    [
        ("decompose\u0301.mp4", "decompos\u00e9.mp4"),
        ("compos\u00e9.mp4", "compose\u0301"),
        (" before.mp4", "before.mp4"),
        ("back\\slash.mp4", "back\\slash"),
        ("sub/a.mp4", "sub\\a.mp4"),
        ("two\r\nlines.mp4", "two\r\nlines.mp4"),
    ],
)
def test_a_row_finds_its_file_as_people_write_it(tmp_path, name, cell):
    for one in (name, "b.mp4", "c.mp4"):
        (tmp_path / "clips" / one).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / one).write_bytes(b"x")
    item = _table(tmp_path, cell)
    assert item.path == tmp_path / "clips" / name
    assert item.clip == name.removesuffix(".mp4")


def test_two_forms_of_one_name_are_told_apart_by_their_bytes(tmp_path):
    (tmp_path / "clips").mkdir()
    for one in ("e\u0301.mp4", "\u00e9.mp4", "b.mp4", "c.mp4"):
        (tmp_path / "clips" / one).write_bytes(b"x")
    for cell in ("e\u0301.mp4", "\u00e9.mp4"):
        assert _table(tmp_path, cell).path.name == cell


def test_a_clip_whose_id_cannot_be_stored_is_one_clear_line(tmp_path):
    inside = tmp_path / "clips" / b"bytes\xff".decode("utf-8", "surrogateescape")
    inside.mkdir(parents=True)
    for one in (inside / "a.mp4", inside.parent / "b.mp4", inside.parent / "c.mp4"):
        one.write_bytes(b"x")
    with pytest.raises(schema.InputError, match="line 2: the name .* is not UTF-8"):
        _table(tmp_path, "a.mp4")


@pytest.mark.slow
def test_scores_of_odd_names_and_useless_clips_are_a_row_each(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    plain = media.face(folder / "plain.mp4", 1.0)
    scorer = test_score.make_scorer(tmp_path / "scorer.npz", plain)
    undecodable = b"bytes\xff.mp4".decode("utf-8", "surrogateescape")
    for name in ("two\nlines.mp4", "-dash.mp4", "12:30.mp4", undecodable):
        shutil.copy(plain, folder / name)
    (folder / "random\nbytes.mp4").write_bytes(np.random.default_rng(0).bytes(9999))
    _far_apart(folder / "3 h.mp4")
    more = {"sound": np.ones((8, media.RATE), np.float32) / 2, "layout": "7.1"}
    media.face(folder / "8 channels.mkv", 1.0, sound_codec="pcm_s16le", **more)
    out = tmp_path / "scores.csv"
    arguments = [folder, f"--scorer={scorer}", f"--out={out}", "--num_workers=2"]
    assert score.main([str(argument) for argument in arguments]) == 3
    with out.open(newline="", encoding="utf-8") as file:
        rows = {pathlib.PurePath(row["clip"]).name: row for row in csv.DictReader(file)}
    assert rows["random\nbytes.mp4"]["error"] == REJECTED["random\nbytes"]
    assert rows["3 h.mp4"]["error"] == REJECTED["3 h"]
    assert float(rows["8 channels.mkv"]["overall"]) >= 1
    same = {rows[name]["overall"] for name in ("plain.mp4", "-dash.mp4", "bytes?.mp4")}
    same |= {rows[name]["overall"] for name in ("two\nlines.mp4", "12:30.mp4")}
    assert len(same) == 1 and len(rows) == 8


# Mounts file systems of its own, which neither users nor this machine's others see.
_MOUNTS = ("unshare", "--map-root-user", "--mount")
_IN_MOUNTS = """
import json, os, subprocess, sys
from extract import run
place, options, *arguments = sys.argv[1:]
for step, option in enumerate(json.loads(options)):
    option = option if step == 0 else "remount," + option
    subprocess.run(["mount", "-t", "tmpfs", "-o", option, "none", place], check=True)
    status = run.main(arguments)
    kept = {folder: sorted(os.listdir(folder)) for folder in (
        place, place + "/set.features", place + "/set") if os.path.isdir(folder)}
    print("STEP", json.dumps([status, kept]), flush=True)
"""


def _can_mount() -> bool:
    if shutil.which(_MOUNTS[0]) is None or shutil.which("mount") is None:
        return False
    command = [*_MOUNTS, "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _can_mount(), reason="file systems cannot be mounted here")
def test_a_full_disk_keeps_what_is_measured_and_the_command_goes_on(tmp_path):
    folder, place = tmp_path / "clips", tmp_path / "disk"
    folder.mkdir()
    place.mkdir()
    media.face(folder / "a.mp4", SECONDS)
    for number, name in enumerate(("b.mp4", "c.mp4", "d.mp4"), 1):
        (folder / name).write_bytes(_free(folder / "a.mp4", number))
    names = [file.name for file in files.videos(folder)]
    table = _write_labels(tmp_path / "labels.csv", names)
    # The five features of a clip of 10 rows take 80 kB, 40 kB more in the set.
    options = json.dumps(["size=144k", "size=380k", "size=4m"])
    command = [*_MOUNTS, sys.executable, "-c", _IN_MOUNTS, place, options]
    command += [f"--clips={folder}", f"--labels={table}", f"--out={place / 'set'}"]
    command = [*map(str, command), "--num_workers=1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    marks = [one for one in ended.stdout.splitlines() if one.startswith("STEP ")]
    steps = [json.loads(one.removeprefix("STEP ")) for one in marks]
    assert [status for status, _ in steps] == [2, 2, 0], ended.stderr
    features, made = str(place / "set.features"), str(place / "set")
    kept = [sorted({*found[features]} - {".lock"}) for _, found in steps]
    assert 5 <= len(kept[0]) < 10 and len(kept[1]) == len(kept[2]) == 20
    assert all(name.endswith(".npz") for names in kept for name in names)
    assert [made in found for _, found in steps] == [False, False, True]
    errors = [line for line in ended.stderr.splitlines() if "error" in line.lower()]
    for line, what in zip(errors, (features, made), strict=True):
        message = f"error: {what} cannot be written: No space left on device; the same "
        assert line.startswith(message + "command goes on with ")
    assert "nothing had to be measured" in ended.stdout
    assert "4 clips in the set, 0 rejected" in ended.stdout
