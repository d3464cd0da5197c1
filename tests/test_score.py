"""Scoring videos: from a clip to JSON, CSV and a page, and what is refused."""

import csv
import dataclasses
import functools
import io
import json
import os
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

from configs import smoke
from extract import backends, clip, jobs
from extract import measure as measuring
from tests import media
from tqa_jax import (
    batch,
    export,
    models,
    preprocess,
    reference,
    schema,
    score,
    score_page,
)
from tqa_jax import run as run_lib
from tqa_jax import scorer as scorers

SHARED = pathlib.Path(os.environ.get("TQA_SHARED", "../shared"))
SHARED = pathlib.Path(__file__).resolve().parent.parent / SHARED


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    media.face(folder / "a.mp4", 3.0)
    (folder / "b.mp4").write_bytes(b"no video at all")
    return folder


@functools.cache
def measure(path):
    return clip.observe(path, backends.options())


@functools.cache
def _untrained(clip_file):
    """A run of an untrained network, and the reference of its one clip."""
    measured = measure(clip_file)
    whole = schema.Schema(backends.describe(backends.options()), schema.TASKS)
    masks = measured.frame_mask
    rows = {name: x[masks[name]] for name, x in measured.features.items()}
    transforms = preprocess.fit(lambda: [rows], whole.widths, pca={"keypoints": 5})
    config = smoke.get_config()
    model = models.from_config(
        config, {n: t.width for n, t in transforms.items()}, whole.tasks
    )
    windows = batch.Batch(
        {n: preprocess.apply(transforms[n], v)[None] for n, v in rows.items()},
        {n: np.ones((1, len(v)), bool) for n, v in rows.items()},
        None,
        None,
    )
    members = [
        jax.tree.map(np.asarray, model.init(jax.random.key(seed))) for seed in range(2)
    ]
    found = run_lib.Run().but(
        config=config,
        schema=whole,
        transforms=transforms,
        model=model,
        members=members,
    )
    return found, reference.fit(lambda: [windows])


def make_scorer(path, clip_file, *, half_width=0.5, members=1):
    """A scorer of an untrained network whose reference is one clip."""
    found, fitted = _untrained(clip_file)
    confidence = {"level": 0.95, "tasks": {"overall": {"half_width": half_width}}}
    found = found.but(
        members=found.members[:members],
        results={"confidence": confidence},
    )
    statistics = {
        f"{name}/{field}": value
        for name, one in fitted.items()
        for field, value in one.items()
    }
    described = export.describe(found, reference=list(fitted))
    path.write_bytes(export.pack(described, export.collect(found, statistics)))
    return path


@pytest.fixture(scope="module")
def scorer(tmp_path_factory, clips):
    folder = tmp_path_factory.mktemp("scorer")
    return make_scorer(folder / "scorer.npz", clips / "a.mp4", members=2)


def run(capsys, *arguments):
    status = score.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def scored(clips, scorer, tmp_path_factory):
    """One clip by the command."""
    folder = tmp_path_factory.mktemp("out")
    out, page = folder / "a.json", folder / "a.html"
    arguments = [clips / "a.mp4", f"--scorer={scorer}", f"--out={out}"]
    assert score.main([*map(str, arguments), f"--html={page}"]) == 0
    assert sorted(file.name for file in folder.iterdir()) == ["a.html", "a.json"]
    return json.loads(out.read_text()), page.read_text()


def test_a_clips_scores_are_those_of_its_features(clips, scorer, scored):
    found, _ = scored
    measured = measure(clips / "a.mp4")
    judge = scorers.load(scorer)
    wanted = judge.score(measured.features, measured.frame_mask)
    assert found["clip"] == str(clips / "a.mp4") and found["seconds"] == 3.0
    assert list(found["scores"]) == [task.name for task in schema.TASKS]
    for task, one in found["scores"].items():
        assert one["value"] == pytest.approx(wanted[task], abs=1e-5)
        assert one["spread"] > 0
    _, members = judge.windows(measured.features, measured.frame_mask)
    assert found["scores"]["overall"]["spread"] == pytest.approx(
        members.mean(axis=1)[:, 4].std(ddof=1), rel=1e-4
    )


def test_intervals_are_the_calibrated_ones_within_the_range(scored):
    found, _ = scored
    overall = found["scores"]["overall"]
    assert overall["low"] == pytest.approx(max(1, overall["value"] - 0.5))
    assert overall["high"] == pytest.approx(min(5, overall["value"] + 0.5))
    assert found["scores"]["lip_sync"]["low"] is None  # It was not calibrated.


def test_timeline_scores_stretches_of_two_seconds(clips, scorer, scored):
    found, _ = scored
    assert [(one["start"], one["end"]) for one in found["timeline"]] == [
        (0.0, 2.0),
        (0.48, 2.48),
        (0.96, 2.96),
    ]
    measured = measure(clips / "a.mp4")
    part = slice(12, 62)
    wanted = scorers.load(scorer).score(
        {name: values[part] for name, values in measured.features.items()},
        {name: mask[part] for name, mask in measured.frame_mask.items()},
    )
    for task, value in wanted.items():
        assert found["timeline"][1]["scores"][task] == pytest.approx(value, abs=1e-5)


def test_a_terminal_gets_a_short_table(clips, scorer, scored, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    status, out, err = run(capsys, clips / "a.mp4", f"--scorer={scorer}")
    assert status == 0 and err == "" and out.count("\n") <= 12
    for task, one in scored[0]["scores"].items():
        (line,) = re.findall(rf"^{task} .*$", out, re.MULTILINE)
        assert f" {one['value']:.2f} " in line
        worst = min(scored[0]["timeline"], key=lambda part: part["scores"][task])
        value, start = worst["scores"][task], worst["start"]
        assert line.endswith(f"{value:.2f} from {start:.1f} s")
    (overall,) = re.findall(r"^overall .*$", out, re.MULTILINE)
    ends = [scored[0]["scores"]["overall"][end] for end in ("low", "high")]
    assert f"{ends[0]:.2f} to {ends[1]:.2f}" in overall


def test_a_stretch_in_which_nothing_was_measured_is_said_and_not_scored(clips, scorer):
    judge, measured = scorers.load(scorer), measure(clips / "a.mp4")
    features = {n: np.tile(x, (3, 1)) for n, x in measured.features.items()}
    masks = {n: np.tile(x, 3) for n, x in measured.frame_mask.items()}
    for mask in masks.values():
        mask[75:150] = False
    found = score.score_features(judge, features, masks)
    assert "nothing was measured from 3.0 to 6.0 s: not scored" in found["warnings"]
    starts = [round(25 * part["start"]) for part in found["timeline"]]
    assert starts == [start for start in range(0, 176, 12) if not 75 <= start <= 100]
    task = judge.schema["tasks"][4]
    lines = score_page._row(found, task, "red")["lines"]
    assert len(lines) == 2  # The drawing has a gap, too.
    plain = score.score_features(judge, measured.features, measured.frame_mask)
    assert not any("nothing was measured" in text for text in plain["warnings"])
    for mask in masks.values():
        mask[:] = False
    with pytest.raises(scorers.ScorerError, match="nothing to score"):
        score.score_features(judge, features, masks)


def test_rows_are_written_as_they_come_and_survive_a_stop(
    clips, scorer, tmp_path, capsys, monkeypatch
):
    measured = measure(clips / "a.mp4")
    silent = {name: np.zeros_like(mask) for name, mask in measured.masks.items()}
    of = {"0": measured, "1": dataclasses.replace(measured, masks=silent)}
    out = tmp_path / "scores.csv"

    def rows():
        return list(csv.DictReader(io.StringIO(out.read_text())))

    def measured_in_turn(work, options, tally, **how):
        yield "1", of["1"]
        assert not rows()  # In the order of the paths.
        yield "0", of["0"]
        assert [row["error"][:10] for row in rows()] == ["", "nothing to"]
        yield "3", jobs.Failure("a reason", lasting=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "measured", measured_in_turn)
    paths = [tmp_path / f"{letter}.mp4" for letter in "abcd"]
    for path in paths:
        path.touch()
    page = tmp_path / "page.html"
    status, _, err = run(
        capsys, *paths, f"--scorer={scorer}", f"--out={out}", f"--html={page}"
    )
    assert status == 130 and "3 of 4 clips are done" in err
    assert [pathlib.Path(row["clip"]).name for row in rows()] == [
        "a.mp4",
        "b.mp4",
        "d.mp4",
    ]
    assert rows()[2]["error"] == "a reason" and float(rows()[0]["overall"]) >= 1
    assert "a reason" in page.read_text()


def test_page_shows_the_scores_and_asks_for_nothing(scored):
    found, page = scored
    for task, one in found["scores"].items():
        assert task in page and f"<b>{one['value']:.2f}</b>" in page
    assert page.count("data:image/jpeg;base64,") == 8
    assert page.count("<polyline") == 5
    # Nothing outside the page: no address but the pictures' data.
    for kind in ("src", "href", "url"):
        for address in re.findall(rf"{kind}\s*[=(]\s*[\"']?([^\"')\s>]+)", page):
            assert address.startswith("data:image/"), address


def test_a_folder_gives_a_row_a_clip_and_tells_of_failures(clips, scorer, capsys):
    status, out, err = run(capsys, clips, f"--scorer={scorer}")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert status == 3
    assert [pathlib.Path(row["clip"]).name for row in rows] == ["a.mp4", "b.mp4"]
    assert float(rows[0]["overall_low"]) < float(rows[0]["overall"])
    assert rows[0]["lip_sync_low"] == "" and rows[0]["error"] == ""
    assert rows[1]["overall"] == "" and "not a readable video" in rows[1]["error"]
    assert "b.mp4: not scored: not a readable video" in err


def test_names_with_markup_are_escaped(clips, scorer, tmp_path, capsys):
    name = tmp_path / "<img src=x onerror=alert(1)>&'\".mp4"
    name.write_bytes((clips / "a.mp4").read_bytes())
    page = tmp_path / "page.html"
    status, _, _ = run(capsys, name, f"--scorer={scorer}", f"--html={page}")
    assert status == 0
    assert "<img src=x" not in page.read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;&#39;&#34;" in page.read_text()


def test_what_a_person_should_know_of_a_clip_is_said(clips, scorer, tmp_path, capsys):
    talking = media.talking()

    def picture(time):
        empty = np.full((256, 256, 3), 90, np.uint8)
        return empty if time >= 0.4 else talking(time)

    path = media.face(tmp_path / "short.mp4", 0.8, picture=picture)
    status, out, _ = run(capsys, path, f"--scorer={scorer}")
    said = " | ".join(json.loads(out)["warnings"])
    assert status == 0
    assert "only 0.80 s long" in said
    assert "no face in 1" in said
    assert re.search(r"visual is missing in [45]\d % of the rows", said)
    # The reference is one clip, so that any other is far from it.
    assert "as far from the training windows" in said


@pytest.mark.parametrize(
    ("part", "changed", "said"),
    [
        ("modalities", {"version": "0"}, "visual of backend nss with version '0'.*has"),
        ("modalities", {"backend": "cnn"}, "visual of backend 'cnn', .* has nss"),
        ("modalities", {"checksum": "0" * 64}, "with checksum"),
        ("modalities", {"name": "thermal"}, "thermal of backend 'nss', which this ins"),
        (
            "modalities",
            {"backend": "resnet101", "description": "; weights: local file net.bin"},
            r"give them by --visual_weights \(checksum ",
        ),
        ("tasks", {"name": "seconds"}, "task name 'seconds' is taken"),
    ],
)
def test_scorers_that_do_not_fit_are_refused(
    clips, scorer, capsys, monkeypatch, part, changed, said
):
    judge = scorers.load(scorer)
    judge.schema[part][0].update(changed)
    monkeypatch.setattr(score.scorer, "load", lambda path: judge)
    status, out, err = run(capsys, clips / "a.mp4", f"--scorer={scorer}")
    assert status == 2 and out == ""
    assert re.search(f"^error: .*{said}", err) and err.count("\n") == 1


def test_a_clip_whose_sound_is_longer_has_its_page(scorer, tmp_path, capsys):
    sound = np.random.default_rng(0).normal(0, 0.1, 4 * media.RATE).astype("f4")
    path = media.write(
        tmp_path / "a.mkv",
        times=np.arange(40) / 25,
        picture=media.talking(),
        sound=sound,
    )
    page = tmp_path / "page.html"
    status, out, _ = run(capsys, path, f"--scorer={scorer}", f"--html={page}")
    assert status == 0 and json.loads(out)["seconds"] == 1.6
    assert page.read_text().count("data:image/jpeg;base64,") == 8


@pytest.mark.parametrize("width", ["abc", [1], -1, True])
def test_a_half_width_that_is_none_is_refused(clips, tmp_path, capsys, width):
    path = make_scorer(tmp_path / "s.npz", clips / "a.mp4", half_width=width)
    status, _, err = run(capsys, clips / "a.mp4", f"--scorer={path}")
    assert status == 2 and "half_width in its confidence is no width" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out={empty}", "{a}"], "is a folder"),
        (["nowhere.mp4"], "no file or folder nowhere.mp4"),
        (["--num_workers=0", "{a}"], "--num_workers is 0"),
        (["--out=no/such/folder.json", "{a}"], "no folder no/such"),
        (["--scorer={a}", "{a}"], "a.mp4"),
        (["--scorer=missing.npz", "{a}"], "missing.npz"),
        (["{empty}"], "no video in"),
    ],
)
def test_unusable_arguments_are_one_line(
    clips, scorer, tmp_path, capsys, arguments, said
):
    where = {"a": clips / "a.mp4", "empty": tmp_path}
    given = [argument.format(**where) for argument in arguments]
    status, out, err = run(capsys, f"--scorer={scorer}", *given)
    assert status == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data (TQA_SHARED)")
def test_a_real_clip_goes_from_video_to_scores_and_page(scorer, tmp_path, capsys):
    real = sorted((SHARED / "data" / "clips").rglob("*.mp4"))[0]
    page = tmp_path / "real.html"
    status, out, _ = run(capsys, real, f"--scorer={scorer}", f"--html={page}")
    assert status == 0
    found = json.loads(out)
    assert all(1 <= one["value"] <= 5 for one in found["scores"].values())
    assert page.stat().st_size < 200_000
