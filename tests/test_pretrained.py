"""The packaged scorer: found without being named, small, right about known flaws."""

import json
import os
import pathlib

import numpy as np
import pytest

from configs import pretrained
from experiments import pretrained as made
from extract import decode, encode
from extract.degrading import planting
from tests import media
from tqa_jax import batch, evaluate, models, run, score, scorer

SHARED = pathlib.Path(os.environ.get("TQA_SHARED", "../shared"))
SHARED = pathlib.Path(__file__).resolve().parent.parent / SHARED
TASKS = {"lip_sync", "expression", "audio_quality", "cross_modal", "overall"}


@pytest.fixture(scope="module")
def judge():
    return scorer.load(scorer.DEFAULT)


def test_it_is_small_and_knows_real_clips(judge):
    assert pathlib.Path(scorer.DEFAULT).stat().st_size <= 2e6
    assert {task["name"] for task in judge.schema["tasks"]} == TASKS
    for task in TASKS:
        known = judge.confidence["tasks"][task]
        assert len(known["real"]) >= 60 and np.all(np.diff(known["real"]) >= 0)
        assert 0 < known["half_width"] < 4


def test_one_command_scores_a_clip(tmp_path, capsys):
    path = media.face(tmp_path / "a.mp4", 2.0)
    assert score.main([str(path), "--num_workers=1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["scores"]) == TASKS
    for one in result["scores"].values():
        assert 1 <= one["low"] <= one["value"] <= one["high"] <= 5
        assert 0 <= one["place"] <= 100 and one["spread"] >= 0


def test_training_can_start_from_it(judge):
    """The same configuration gives the same network, and its parameters fit."""
    found = run.Run.of_scorer(scorer.DEFAULT)
    config = pretrained.get_config()
    widths = {name: one.width for name, one in found.transforms.items()}
    model = models.from_config(config, widths, found.data_schema.tasks)
    rows = {
        name: np.zeros((1, 150, width), np.float32) for name, width in widths.items()
    }
    masks = {name: np.ones((1, 150), bool) for name in widths}
    windows = batch.Batch(rows, masks, None, None)
    mean = np.mean([model.apply(one, windows)[0] for one in found.members], axis=0)
    raw = {
        name: np.repeat(one.mean[None], 150, axis=0)
        for name, one in found.transforms.items()
    }
    expected = judge.score(raw)
    np.testing.assert_allclose(
        mean, [expected[t.name] for t in found.data_schema.tasks], atol=1e-4
    )


def test_a_pair_counts_when_the_flaw_is_planted():
    names = np.array(["a__00", "a__01", "a__02", "b__00", "b__01", "b__51"])
    values = [[4.0], [3.0], [4.5], [3.0], [3.5], [1.0]]
    some = evaluate.Predictions(
        ("lip_sync",),
        names,
        np.array(["p"] * 3 + ["q"] * 3),
        np.array(["test"] * 6),
        np.array(values),
        np.array(values),
        np.zeros((6, 1)),
    )
    flaws = {
        "a__01": {"offset": 0.5},
        "a__02": {"offset": 1 / 12},  # one frame is no flaw yet
        "b__01": {"swap": 0.9, "blur": 1.0},
        "b__51": {"gain": 1.0},
    }
    rows = {row["flaw"]: row for row in made.pairs([some], flaws, ["lip_sync"])}
    assert set(rows) == {"offset", "swap", "all"}
    assert rows["offset"]["lower"] == 1 and rows["swap"]["lower"] == 0
    assert rows["all"]["pairs"] == 2 and rows["all"]["change"] == pytest.approx(-0.25)


@pytest.mark.skipif(not (SHARED / "data/clips").is_dir(), reason="no shared clips")
def test_late_and_foreign_sound_lower_lip_sync_of_a_real_clip(tmp_path):
    clips = SHARED / "data" / "clips"
    path, other = clips / "PCAVS__00015.mp4", clips / "SadTalker__RD_Radio2_000.mp4"
    samples = planting.hear(path, 60)
    foreign = np.resize(planting.hear(other, 60), len(samples))
    sounds = {"own": samples, "late": np.roll(samples, 8 * 640), "foreign": foreign}
    for name, heard in sounds.items():
        shown = planting.pictures(path, decode.Media(), 60)
        encode.write(tmp_path / f"{name}.mp4", shown, heard, codec="flac")
    out = tmp_path / "scores.json"
    assert score.main([str(tmp_path), f"--out={out}", "--num_workers=1"]) == 0
    found = {
        pathlib.Path(one["clip"]).stem: one["scores"]["lip_sync"]
        for one in json.loads(out.read_text())
    }
    assert found["own"]["value"] > found["late"]["value"] + 0.3
    assert found["own"]["value"] > found["foreign"]["value"] + 0.3
    assert found["foreign"]["place"] < 50
