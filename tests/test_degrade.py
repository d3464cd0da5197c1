import csv
import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time

import av
import cv2
import numpy as np
import pytest

from extract import decode, degrade, demo, encode, jobs, labels, landmarks, sound
from extract.backends import correlation as sync
from extract.build import Item
from extract.degrading import (
    Scene,
    damping,
    degrade_plan,
    flaws,
    picture_flaws,
    planting,
    sound_flaws,
)
from extract.rendering import demo_plan
from tests import media
from tqa_jax import schema


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """Two clips of 3.2 s of rendered people who speak, with lively faces."""
    folder = tmp_path_factory.mktemp("talking")
    for index in range(2):
        item = demo_plan.plan(24)[index]
        item = dataclasses.replace(item, strengths={}, covered=None, arousal=0.9)
        encode.write(folder / f"clip{index}.mp4", *demo.make_clip(item))
    return folder


@pytest.fixture(scope="module")
def original(talking):
    return Item(talking / "clip0.mp4", "clip0", "a", "train", {})


@pytest.fixture(scope="module")
def heard(talking):
    for name in ("clip0", "clip1"):
        planting.keep_sound(talking / f"{name}.mp4", 10, talking / f"{name}.npy")
    return talking / "clip0.npy"


@pytest.fixture(scope="module")
def faces(original):
    return planting.find_faces(original.path, landmarks.find_model(), 10)


def _plant(original, heard, path, *, seed=3, **strengths):
    """Plants flaws and returns what was measured of the first."""
    copy = degrade_plan.Copy(original, 1, seed, strengths)
    result = path.with_suffix(".json")
    other = heard.with_name("clip1.npy") if "swap" in strengths else None
    planting.plant(copy, heard, other, 10, landmarks.find_model(), result)
    rows = json.loads(result.read_text())
    assert [row["flaw"] for row in rows] == list(strengths)
    return rows[0] if rows else None


def _greys(path):
    shown = planting.pictures(path, decode.Media(), 10)
    return np.stack([cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in shown])


_MEASURED = {*sound_flaws.FLAWS, *picture_flaws.FLAWS} - {"damping", "codec", "vocoder"}


@pytest.mark.parametrize("flaw", sorted(_MEASURED))
@pytest.mark.parametrize("strength", (0.25, 1.0))
def test_flaws_are_measured_as_planted(original, heard, tmp_path, flaw, strength):
    row = _plant(original, heard, tmp_path / "a.mp4", **{flaw: strength})
    meant = {
        "offset": sound_flaws.offset_frames(strength, 3),
        "noise": 40 - 40 * strength,
        "band_limit": 7000 * 0.1**strength,
        "clipping": 0.4 * strength,
        "swap": strength,
        "blur": 2.56 * strength,  # of 256 pixels
        "compression": 20 + 20 * strength,
        "freeze": round(0.8 * strength * 79) / 79,
        "jitter": np.mean(picture_flaws.jitter_picks(80, strength, 3) != np.arange(80)),
    }
    assert row["planted"] == pytest.approx(meant[flaw])
    assert row["agrees"] or flaw == "compression", row
    if flaw == "offset":
        assert row["measured"] == pytest.approx(row["planted"], abs=1 / 40)  # 1 ms
    elif flaws.FLAWS[flaw].kind == "sound":
        assert row["measured"] == pytest.approx(row["planted"], rel=0.03, abs=0.3)


@pytest.mark.parametrize("flaw", ["mumble", "mouth_jitter", "identity"])
def test_a_bent_face_shows_in_the_mesh_and_more_so_with_strength(
    original, heard, tmp_path, flaw
):
    rows = [
        _plant(original, heard, tmp_path / "a.mp4", **{flaw: strength})
        for strength in (0.3, 1.0)
    ]
    assert all(row["agrees"] for row in rows), [row["measured"] for row in rows]
    assert (
        np.diff([row["planted"] for row in rows])
        * np.diff([row["measured"] for row in rows])
        > 0
    )


def test_only_the_mouth_is_blurred(original, heard, faces, tmp_path):
    pictures = []
    for strengths in ({}, {"mouth_blur": 1.0}):
        _plant(original, heard, tmp_path / "a.mp4", **strengths)
        pictures.append(_greys(tmp_path / "a.mp4").astype(float))
    tall, wide = pictures[0].shape[1:]
    mouth = np.nanmean(faces.points[:, 13, :2], axis=0) * (wide, tall)
    change = np.abs(pictures[1] - pictures[0]).mean(axis=0)
    away = np.hypot(*(np.indices(change.shape)[::-1] - mouth[:, None, None]))
    height = np.nanmean(faces.points[:, 152, 1] - faces.points[:, 10, 1]) * tall
    near, far = change[away < 0.15 * height], change[away > 0.6 * height]
    assert near.mean() > 3 * far.mean(), (near.mean(), far.mean())


@pytest.mark.parametrize(
    ("flaw", "planted"), [("codec", (16_971, 6000)), ("vocoder", (59, 24))]
)
def test_coded_speech_stays_in_place_and_loses_more_with_strength(
    original, heard, tmp_path, flaw, planted
):
    before = np.load(heard)
    rows = []
    for strength in (0.25, 1.0):
        rows.append(_plant(original, heard, tmp_path / "a.mp4", **{flaw: strength}))
        after = planting.hear(tmp_path / "a.mp4", 10)
        level = [np.convolve(x**2, np.ones(160), "same") for x in (before, after)]
        lags = np.arange(-400, 401, 20)
        fits = [np.corrcoef(level[0], np.roll(level[1], -lag))[0, 1] for lag in lags]
        assert abs(lags[np.argmax(fits)]) <= 80  # 5 ms
    assert [row["planted"] for row in rows] == pytest.approx(planted, rel=0.01)
    assert rows[0]["measured"] < rows[1]["measured"]


def test_a_planted_offset_is_where_the_sync_backend_finds_it(
    original, heard, faces, tmp_path
):
    found = []
    for strengths in ({}, {"offset": 0.5}):
        _plant(original, heard, tmp_path / "a.mp4", **strengths)
        samples, present = sound.track(*_sound(tmp_path / "a.mp4"))
        # The pictures are the original's, and so are the landmarks.
        rows, mask = sync.features(faces.points, faces.aspect, samples, present)
        found.append(np.median(rows[mask & (rows[:, 3] == 1), 2]))
    assert abs(found[0]) <= 1
    planted = sound_flaws.offset_frames(0.5, 3)
    assert found[1] - found[0] == pytest.approx(planted, abs=1)


@pytest.mark.parametrize(
    "flaw", ["offset", "noise", "band_limit", "clipping", "swap", "blur", "freeze"]
)
def test_a_flaw_that_is_not_there_does_not_agree(original, heard, tmp_path, flaw):
    clean = tmp_path / "clean.mp4"
    _plant(original, heard, clean)
    paths = original.path, clean
    if flaws.FLAWS[flaw].kind == "sound":
        both = [planting.hear(path, 10) for path in paths]
    else:
        both = [planting.pictures(path, decode.Media(), 10) for path in paths]
    assert flaws.FLAWS[flaw].measure(*both, 0.5, Scene(3))[2] is False


@pytest.mark.parametrize(
    "strengths", [(1.0,), pytest.param((0.25, 0.5, 1.0), marks=pytest.mark.slow)]
)
def test_damping_takes_expression_and_leaves_the_lips(
    original, heard, faces, tmp_path, monkeypatch, strengths
):
    before = sync.openings(faces.points, faces.aspect)[0]
    find, left, seen = planting.find_faces, [], []
    monkeypatch.setattr(
        planting, "find_faces", lambda *given: seen.append(find(*given)) or seen[-1]
    )
    for strength in strengths:
        row = _plant(original, heard, tmp_path / "a.mp4", damping=strength)
        opening = sync.openings(seen[-1].points, seen[-1].aspect)[0]
        assert np.corrcoef(before, opening)[0, 1] > 0.97
        assert opening.std() == pytest.approx(before.std(), rel=0.1)
        assert row["planted"] == 1 - strength and row["agrees"] is True
        left.append(row["measured"])
    assert left == sorted(left, reverse=True)
    assert left[0] < 0.95 and left[-1] < 0.8


def test_damping_bends_the_inside_of_the_face_only(original, faces):
    shifts = damping.shifts(faces.points, faces.seen, faces.aspect, 1.0)
    none = damping.shifts(faces.points, faces.seen, faces.aspect, 0.0)
    assert not none.any()
    # The movement of chin, lids and the middle of the lips is not expression.
    still = [152, 159, 145, 386, 374, 13, 14]
    assert np.abs(shifts[:, still]).max() < 0.1 * np.abs(shifts).max()
    at = int(np.abs(shifts).mean(axis=(1, 2)).argmax())
    shown = planting.pictures(original.path, decode.Media(), 10)
    picture = next(itertools.islice(shown, at, None))
    bent = damping.bend(picture, faces.points[at], shifts[at])
    assert np.abs(bent.astype(int) - picture).max() > 20
    points = faces.points[at, :468, :2] * picture.shape[0]
    low, high = points.min(axis=0) - 3, points.max(axis=0) + 3
    y, x = np.mgrid[:256, :256]
    inside = (x > low[0]) & (x < high[0]) & (y > low[1]) & (y < high[1])
    np.testing.assert_array_equal(bent[~inside], picture[~inside])


def test_damping_undoes_a_movement_of_the_brows_under_any_pose():
    """A head that turns, shrinks and moves, with brows that rise by a known amount."""
    rng = np.random.default_rng(0)
    head = np.zeros((478, 3))
    head[:468] = rng.uniform([-0.4, -0.6, -0.3], [0.4, 0.6, 0.3], (468, 3))
    ring = np.linspace(0, 2 * np.pi, len(damping._OVAL), endpoint=False)
    edge = np.stack([0.5 * np.sin(ring), -0.7 * np.cos(ring), 0 * ring], axis=-1)
    head[list(damping._OVAL)] = edge
    lips = np.linspace(0, 2 * np.pi, len(damping.LIPS), endpoint=False)
    head[list(damping.LIPS)] = np.stack(
        [-0.2 * np.cos(lips), 0.4 + 0.05 * np.sin(lips), 0 * lips], axis=-1
    )
    brow = 105
    head[brow] = (-0.2, -0.35, 0.0)
    head[list(damping._EYES)] = (0.3, 0.0, 0.0)
    raised = 0.05 * np.sin(np.arange(100) / 15)
    points = np.repeat(head[None], 100, axis=0)
    points[:, brow, 1] += raised
    angle = 0.3 * np.sin(np.arange(100) / 20)
    turn = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], -1)
    turn = turn.reshape(100, 2, 2)
    scale = 0.2 + 0.05 * np.cos(np.arange(100) / 9)
    points[..., :2] = np.einsum("tpd,tde->tpe", points[..., :2], turn)
    points = points * scale[:, None, None] + np.array([0.5, 0.4, 0.0])
    seen = np.ones(100, bool)
    shifts = damping.shifts(points, seen, 1.0, 0.5)[:, brow]
    expected = -0.5 * (raised - raised.mean())[:, None] * turn[:, 1] * scale[:, None]
    # The filter against the tracker's noise takes a little of it.
    np.testing.assert_allclose(shifts, expected, atol=0.03 * np.abs(expected).max())


def test_all_copies_have_the_same_codecs_and_length(original, heard, tmp_path):
    formats = set()
    path = tmp_path / "a.mp4"
    for strengths in ({"noise": 0.5}, {"freeze": 0.5}, {}):
        _plant(original, heard, path, **strengths)
        with av.open(str(path)) as file:
            video, audio = file.streams.video[0], file.streams.audio[0]
            formats.add(
                (video.codec.name, video.average_rate, video.frames, video.pix_fmt)
                + (audio.codec.name, audio.rate, audio.layout.name, video.width)
            )
    assert len(formats) == 1
    samples, present = sound.track(*_sound(path))
    assert present.all()
    np.testing.assert_allclose(samples, np.load(heard), atol=1e-4)  # 16 bits
    greys = _greys(path).astype(float)
    assert np.abs(greys - _greys(original.path)).mean() < 2


def _sound(path):
    clip = decode.Media()
    for _ in decode.frames(path, clip):
        pass
    return clip.chunks, clip.rows


def test_clips_of_odd_size_and_other_rates_are_planted(tmp_path):
    path = media.write(
        tmp_path / "odd.mkv",
        times=np.arange(45) / 30,
        fps=30,
        picture=lambda time: media.talking(20)(time)[:251, :253],
        sound=media.speech(1.5),
        codec="mjpeg",
    )
    original = Item(path, "odd", "odd", "train", {})
    planting.keep_sound(path, 10, tmp_path / "odd.npy")
    heard = tmp_path / "odd.npy"
    assert _plant(original, heard, tmp_path / "a.mp4", freeze=0.5, offset=0.5)["agrees"]
    greys = _greys(tmp_path / "a.mp4")
    assert greys.shape[1:] == (250, 252)
    assert len(greys) == len(np.load(heard)) / 640 == 37


# What is drawn.


def _draw(count=9, *, per_clip=5, seed=0):
    splits = ("train",) * 6 + ("validation",) * 2 + ("test",)
    items = [
        Item(pathlib.Path(f"{at}.mp4"), f"c{at}", f"s{at}", split, {})
        for at, split in enumerate(splits[:count])
    ]
    contents = {item.clip: item.clip for item in items}
    return degrade_plan.draw(items, contents, per_clip, degrade_plan.FLAWS, seed)


def test_copies_are_drawn_by_seed_and_clip_alone():
    drawn = _draw()
    assert drawn == _draw() != _draw(seed=1)
    assert [c.strengths for c in _draw(4)] == [c.strengths for c in drawn[:20]]
    assert len({copy.key for copy in drawn}) == len(drawn) == 45


def test_a_copy_has_one_flaw_of_sound_and_one_of_picture_at_most():
    drawn = _draw(per_clip=60)
    kinds = set()
    for copy in drawn:
        of = tuple(
            sum(flaw in kind for flaw in copy.strengths)
            for kind in (flaws.SOUND, flaws.PICTURE)
        )
        kinds.add(of)
        assert (of == (0, 0)) == (copy.number == 0)
        assert all(0.15 <= at <= 1 for at in copy.strengths.values())
        if "offset" in copy.strengths:
            assert (12 * copy.strengths["offset"]) % 1 == pytest.approx(0, abs=1e-9)
        assert (copy.other is not None) == ("swap" in copy.strengths)
        if copy.other:
            assert copy.other.split == copy.original.split != "test"
            assert copy.other.clip != copy.original.clip
    assert kinds == {(0, 0), (1, 0), (0, 1), (1, 1)}
    assert {flaw for c in drawn for flaw in c.strengths} == set(degrade_plan.FLAWS)


def test_file_names_are_safe_and_different():
    clips = ["a/b", "a b", "a\nb", "ümläut", "..", "x" * 300]
    copies = [
        degrade_plan.Copy(Item(pathlib.Path(clip), clip, "s", "train", {}), 0, seed, {})
        for seed, clip in enumerate(clips)
    ]
    names = list(degrade._named(copies))
    assert names[:4] == ["a_b__00", "a_b-2__00", "a_b-3__00", "ümläut__00"]
    assert len(names) == len(copies) and max(map(len, names)) < 120


# The command.


@pytest.fixture(scope="module")
def command(talking, tmp_path_factory):
    """Runs the command over good and bad clips once; returns status and folder."""
    base = tmp_path_factory.mktemp("command")
    clips = base / "clips"
    (clips / "more").mkdir(parents=True)
    (clips / "one.mp4").write_bytes((talking / "clip0.mp4").read_bytes())
    (clips / "more" / "two'.mp4").write_bytes((talking / "clip1.mp4").read_bytes())
    media.face(clips / "silent.mp4", 1.2, sound=np.zeros(57_600, np.float32))
    media.face(clips / "short.mp4", 0.4)
    (clips / "text.mp4").write_text("no video")
    rated = base / "rated.csv"
    rated.write_text(
        "clip,source,split,overall\none,ann,train,3\nmore/two',ann,train,\n"
        "silent,bob,test,-7\nshort,cy,val,2\ntext,cy,val,2\n"
    )
    arguments = [
        f"--clips={clips}",
        f"--out={base / 'out'}",
        f"--labels={rated}",
        "--per_clip=3",
        "--flaws=swap,freeze,noise",
        "--num_workers=2",
    ]
    return degrade.main(arguments), base / "out", arguments


def _table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_what_a_data_set_is_built_from(command):
    status, out, _ = command
    assert status == 3
    table = labels.read(out / "labels.csv", out)
    assert table.tasks == schema.TASKS and not table.drawn and not table.left_out
    assert [item.clip for item in table.items] == [
        *(f"one__0{i}" for i in range(3)),
        *(f"more_two__0{i}" for i in range(3)),
    ]
    planted_in = {item.clip: {} for item in table.items}
    for row in _table(out / "flaws.csv"):
        name = row["clip"].removesuffix(".mp4")
        planted_in[name][row["flaw"]] = float(row["strength"])
        assert row["agrees"] == "yes"
        assert (row["other"] != "") == (row["flaw"] == "swap")
    assert sum(not strengths for strengths in planted_in.values()) == 2
    for item in table.items:
        assert (item.source, item.split) == ("ann", "train")
        scores = flaws.labels(planted_in[item.clip])
        for task, score in item.labels.items():
            assert score == pytest.approx(scores[task], abs=1e-3)
    reasons = {row["clip"]: row["reason"] for row in _table(out / "rejected.csv")}
    assert set(reasons) == {"silent", "short", "text"}
    assert "silent" in reasons["silent"] and "0.40 s" in reasons["short"]
    assert "not a readable video" in reasons["text"]
    assert not out.with_name("out.partial").exists()


def test_the_folder_says_that_its_labels_are_no_ratings(command, tmp_path):
    _, out, _ = command
    about = degrade_plan.provenance(out / "labels.csv")
    assert about["kind"] == "degradation" and about["seed"] == 0
    assert "not opinions of people" in about["description"]
    assert set(about["flaws"]) == set(about["penalties"]) == {"swap", "freeze", "noise"}
    assert about["video_codec"]["crf"] == "15"
    for name in ("labels.csv", "provenance.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("one__00,ann,train,1,1,1,1,1\n")
    with pytest.raises(schema.InputError, match="not the file that"):
        degrade_plan.provenance(tmp_path / "labels.csv")
    (tmp_path / "provenance.json").write_text(json.dumps({"kind": "other"}))
    assert degrade_plan.provenance(tmp_path / "labels.csv") is None
    assert degrade_plan.provenance(tmp_path / "none" / "labels.csv") is None


def test_equal_seeds_give_equal_bytes(command, tmp_path):
    _, out, arguments = command
    clips, _, rated = (pathlib.Path(text.partition("=")[2]) for text in arguments[:3])
    items = [item for item in degrade._items(clips, rated) if item.source == "ann"]
    # The order of --flaws does not matter, the command's processes neither.
    contents = {item.clip: item.clip for item in items}
    copies = degrade_plan.draw(items, contents, 3, ("swap", "noise", "freeze"), 0)
    sounds = {item.clip: tmp_path / f"{at}.npy" for at, item in enumerate(items)}
    for item in items:
        planting.keep_sound(item.path, 10, sounds[item.clip])
    for copy in copies[:3]:
        other = copy.other and sounds[copy.other.clip]
        result = tmp_path / "again.json"
        planting.plant(copy, sounds["one"], other, 10, landmarks.find_model(), result)
        made = out / f"one__0{copy.number}.mp4"
        assert result.with_suffix(".mp4").read_bytes() == made.read_bytes()


def test_bytes_do_not_depend_on_what_is_in_memory(tmp_path):
    """224 pixels are 14 macroblocks, less than x264 reads at a time."""
    code = """
import pathlib, sys
import numpy as np
import skimage.data
from extract import encode
from extract.degrading import Scene, flaws
still = skimage.data.astronaut()
shown = [still[at:at + 224, 60 + at:284 + at] for at in range(60)]
path = pathlib.Path(sys.argv[1])
scene = Scene(0, x264=encode.SAME_BYTES)
shown = flaws.plant("picture", shown, {"compression": 0.5}, scene)
sound = 0.1 * np.random.default_rng(0).standard_normal(38_400)
encode.write(path, shown, sound, codec="flac", x264=encode.SAME_BYTES)
"""
    files = []
    for name in ("0", "165"):
        files.append(tmp_path / f"{name}.mp4")
        subprocess.run(
            [sys.executable, "-c", code, str(files[-1])],
            env=os.environ | {"MALLOC_PERTURB_": name},
            check=True,
        )
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_same_command_finds_the_folder_and_another_is_refused(command, capsys):
    _, out, arguments = command
    stamp = (out / "labels.csv").stat().st_mtime_ns
    assert degrade.main(arguments) == 3
    assert (out / "labels.csv").stat().st_mtime_ns == stamp
    assert "6 clips, 3 rejected" in capsys.readouterr().out
    assert degrade.main([*arguments, "--seed=1"]) == 2
    assert "was not made from these clips" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--flaws=fog"], "unknown flaw 'fog'; available: offset, swap"),
        (["--flaws=blur,blur"], "twice"),
        (["--per_clip=1"], "at least 2"),
        (["--max_seconds=0"], "positive"),
        (["--out={clips}/inside"], "in the folder of the clips"),
        (["--clips={clips}/none"], "no folder"),
        (["--clips={base}/empty"], "no clip in"),
    ],
)
def test_unusable_arguments_are_one_line_and_status_2(
    talking, tmp_path, capsys, more, message
):
    (tmp_path / "empty").mkdir()
    given = [f"--clips={talking}", f"--out={tmp_path / 'out'}", *more]
    given = [text.format(clips=talking, base=tmp_path) for text in given]
    assert degrade.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()


# Worker processes.


def _work(kind, result):
    if kind == "useless":
        raise decode.ClipError("no\nface")
    if kind == "dies":
        media.Fatal().__fspath__()
    if kind == "hangs":
        time.sleep(60)
    if kind == "defect":
        raise KeyError("a defect")
    result.write_text(kind)


def _make(results, kinds):
    options = {"num_workers": 2, "timeout_seconds": 10, "what": "testing"}
    return jobs.make_files({k: (k,) for k in kinds}, _work, results, **options)


@pytest.mark.parametrize(
    "bad", [("defect",), pytest.param(("dies", "hangs"), marks=pytest.mark.slow)]
)
def test_jobs_end_one_by_one_and_finished_ones_are_kept(tmp_path, bad):
    kinds = ("good", "useless", "done", *bad)
    results = {kind: tmp_path / f"{kind}.json" for kind in kinds}
    results["done"].write_text("before")
    reasons = _make(results, kinds)
    parts = {"useless": "no face", "dies": "died", "hangs": "given up", "defect": "Key"}
    assert set(reasons) == {"useless", *bad}
    assert all(parts[kind] in reason for kind, reason in reasons.items())
    assert results["good"].read_text() == "good"
    assert results["done"].read_text() == "before"
    # What was useless stays so; nothing is run again for it.
    known = {kind: results[kind] for kind in ("good", "useless", "done")}
    assert _make(known, known) == {"useless": "no face"}
