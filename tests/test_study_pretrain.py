"""Pre-training sees no test speaker, and labels on the rated set's scale."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import pretrain
from experiments.studying import derived
from tests import small
from tqa_jax import schema


@pytest.fixture
def rated(tmp_path):
    small.write(tmp_path / "rated", clips=30)
    return tmp_path / "rated"


def planted(rated, change=lambda split, clip: (split, clip), of=None):
    out = rated.parent / "planted"
    return derived.make(rated, out, change, description="planted", schema=of)


def test_labels_are_mapped_and_sources_of_other_splits_left_out(rated):
    # Percent instead of 1 to 5, tasks in another order, one of them unknown.
    tasks = (
        schema.Task("overall", 0, 100),
        schema.Task("lip_sync", 0, 100),
        schema.Task("more", 0, 1),
    )
    of = dataclasses.replace(
        small.SCHEMA, tasks=tasks, modalities=small.SCHEMA.modalities[::-1]
    )

    def change(split, clip):
        labels = (clip.labels[[2, 0]] - 1) * 25
        # What the rated set tests on is trained on here.
        split = {"test": "train"}.get(split, split)
        return split, dataclasses.replace(
            clip, labels=np.append(labels, 0.5).astype(np.float32)
        )

    source = planted(rated, change, of)
    out, left_out = pretrain.fitting(source, rated, rated.parent / "out")
    before = {clip.clip: (split, clip) for split, clip in derived.pairs(rated)}
    after = {clip.clip: (split, clip) for split, clip in derived.pairs(out)}
    test = {name for name, (split, _) in before.items() if split == "test"}
    assert left_out == len(test) == 6 and set(after) == set(before) - test
    assert schema.load(out).schema == schema.load(rated).schema
    for name, (split, clip) in after.items():
        was = before[name]
        assert split == was[0]
        np.testing.assert_allclose(
            clip.labels[[0, 2]], was[1].labels[[0, 2]], rtol=1e-5
        )
        assert np.isnan(clip.labels[1])
        for key, rows in clip.features.items():
            np.testing.assert_array_equal(rows, was[1].features[key])


def test_sets_that_do_not_fit_are_refused(rated):
    def other(name, **changes):
        modalities = tuple(
            dataclasses.replace(one, **changes) if one.name == name else one
            for one in small.SCHEMA.modalities
        )
        return dataclasses.replace(small.SCHEMA, modalities=modalities)

    source = planted(rated, of=other("audio", version="2"))
    with pytest.raises(schema.InputError, match="audio of none 2.*measure both"):
        pretrain.fitting(source, rated, rated.parent / "out")
    tasks = tuple(schema.Task(name) for name in "abc")
    of = dataclasses.replace(small.SCHEMA, tasks=tasks)
    source = derived.make(
        rated, rated.parent / "b", lambda *p: p, description="x", schema=of
    )
    with pytest.raises(schema.InputError, match="tasks a, b, c; expected one of lip"):
        pretrain.fitting(source, rated, rated.parent / "out")


def test_a_set_to_pretrain_on_must_be_named(rated, capsys):
    given = [f"--data={rated}", f"--out={rated.parent / 'out'}", "--quick"]
    assert pretrain.main(given) == 2
    assert "--pretrain=FOLDER is missing" in capsys.readouterr().err


@pytest.mark.slow
def test_the_study_runs_and_goes_on(rated, capsys, monkeypatch):
    out = rated.parent / "out"
    small.write(rated.parent / "other", clips=30, seed=1)
    given = [f"--data={rated}", f"--pretrain={rated.parent / 'other'}", "--quick"]
    given += [f"--out={out}", "--seeds=1", "--draws=1"]
    assert pretrain.main(given) == 0
    found = json.loads((out / "pretrain.json").read_text())
    assert [row["case"] for row in found["rows"]] == [
        "labels alone, 25 %",
        "pre-trained, 25 %",
    ]
    # 18 training clips in sources of 3: two sources have a quarter.
    assert [row["clips"] for row in found["rows"]] == [6, 6]
    config, fitted = {}, {}
    for case in ("labels_alone", "pre-trained"):
        (folder,) = (out / "runs" / "0" / "runs").glob(f"*{case}*")
        config[case] = json.loads((folder / "config.json").read_text())["config"]
        fitted[case] = (folder / "preprocess.npz").read_bytes()
    start = config["pre-trained"]["train"]["start_from"]
    assert config["labels_alone"]["train"]["start_from"] == ""
    assert config["labels_alone"]["data"] == config["pre-trained"]["data"]
    (first,) = (out / "pretraining" / "runs").iterdir()
    assert str(first) == start
    assert fitted["pre-trained"] == (first / "preprocess.npz").read_bytes()
    assert fitted["labels_alone"] != fitted["pre-trained"]

    def never(*given, **more):
        raise AssertionError("trained again")

    monkeypatch.setattr("tqa_jax.lockstep.train", never)
    assert pretrain.main(given) == 0
    assert "upper bound" in capsys.readouterr().out
