import csv
import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest
from scipy import stats

from experiments import thqa
from experiments.talking_heads import agreement, classic, nested, network, protocols
from experiments.talking_heads import clips as clips_lib
from tqa_jax import schema, statistics

SHARED = pathlib.Path(os.environ.get("TQA_SHARED", "../shared"))
GENERATORS = ("ahead", "dinet", "sad", "wavlip")
QUALITY = (
    "brisque,nrqm,pi,nima,paq2piq,cnniqa,dbcnn,musiq-ava,musiq-koniq,musiq-spaq,"
    "clipiqa,clipiqa+,tre-koniq,topiq_nr,qalign,topiq_iaa,topiq_iaa_res50,laion_aes,"
    "antelopev2,arcface,buffalo"
).split(",")


def write_tables(folder, *, faces=10, each=2, **changes):
    """Two tables with THQA's columns; `changes` replaces a cell of the first row."""
    rng = np.random.default_rng(0)
    scores, frames = [], []
    for face in range(faces):
        for audio in range(each):
            for place, generator in enumerate(GENERATORS):
                name = f"{face}_voice_en_{face}{audio}_{generator}"
                quality = rng.uniform(0, 1)
                rows = rng.normal(size=(int(rng.integers(3, 6)), len(QUALITY)))
                rows[:, place] += 6
                rows[:, 8] += 3 * quality
                rating = np.clip(place + quality + rng.normal(0, 0.1), 0, 5)
                frames += [[name, f"{n}.png", *row] for n, row in enumerate(rows)]
                sync = rng.normal(size=3)
                scores.append([name, *rows.mean(axis=0), *sync, rating])
    header = ["Image", *QUALITY, "avset", "distance", "confi", "Score"]
    for column, value in changes.items():
        scores[0][header.index(column)] = value
    for file, head, rows in (
        (clips_lib.SCORES, header, scores),
        (clips_lib.FRAMES, ["Image", "png", *QUALITY], frames),
    ):
        with (folder / file).open("w", newline="") as text:
            csv.writer(text).writerows([head, *rows])
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = write_tables(tmp_path_factory.mktemp("tables"))
    return clips_lib.load(folder, folder / "data")


def test_four_of_the_five_tasks_have_no_label_at_all(clips):
    labels = np.array([clip.labels for clip in clips.frames])
    place = clips_lib.TASKS.index("overall")
    assert tuple(clips.schema.task_names) == clips_lib.TASKS
    assert np.isnan(np.delete(labels, place, axis=1)).all()
    np.testing.assert_allclose(labels[:, place], clips.labels, rtol=1e-6)
    assert clips.schema.widths == {"visual": 21, "summary": 24}


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS)
def test_every_clip_is_tested_once_and_no_group_is_on_both_sides(clips, protocol):
    groups = {"face": clips.faces, "generator": clips.generators}.get(
        protocol, np.array(clips.names)
    )
    outer = protocols.outer(protocol, clips)
    tested = np.concatenate([fold.test for fold in outer])
    assert sorted(tested) == list(range(len(clips)))
    for fold in outer:
        inner = protocols.inner(protocol, clips, fold.train)
        tested = np.concatenate([one.test for one in inner])
        assert sorted(tested) == sorted(fold.train)
        for one in (fold, *inner):
            assert not set(groups[one.train]) & set(groups[one.test])
        for one in inner:
            assert not set(one.train) & set(fold.test)


def test_leaving_generators_out_tests_one_generator_a_fold(clips):
    folds = protocols.outer("generator", clips)
    assert [set(clips.generators[fold.test]) for fold in folds] != []
    assert all(len(set(clips.generators[fold.test])) == 1 for fold in folds)
    assert len(folds) == len(GENERATORS)


def spoilt(clips, rows):
    """The same clips with other labels and features in some rows."""
    rng = np.random.default_rng(1)
    labels, means, spreads = clips.labels.copy(), clips.means.copy(), clips.spreads
    labels[rows] = 5 - labels[rows]
    means[rows] = rng.normal(size=(len(rows), means.shape[1]))
    spreads = spreads.copy()
    spreads[rows] += 1.0
    frames = list(clips.frames)
    for row in rows:
        one = frames[row]
        features = {n: rng.normal(size=v.shape) for n, v in one.features.items()}
        features = {name: v.astype(np.float32) for name, v in features.items()}
        frames[row] = dataclasses.replace(one, features=features)
    return dataclasses.replace(
        clips, labels=labels, means=means, spreads=spreads, frames=tuple(frames)
    )


@pytest.mark.parametrize("name", classic.methods(quick=True))
def test_tuning_and_fitting_see_no_test_clip(clips, name):
    fold = protocols.outer("face", clips)[0]
    inner = protocols.inner("face", clips, fold.train)
    method = classic.methods()[name]
    ends = method.settings[:: max(1, len(method.settings) - 1)]
    few = [one | ({"trees": 5} if "trees" in one else {}) for one in ends]
    method = method._replace(settings=few)
    kept, lost = fold.test[:3], fold.test[3:]
    asked = fold._replace(test=kept)
    before = nested.tune(method, clips, asked, inner)
    labels = clips.labels.copy()
    labels[kept] = 0.0
    other = dataclasses.replace(spoilt(clips, lost), labels=labels)
    after = nested.tune(method, other, asked, inner)
    assert before.chosen == after.chosen
    np.testing.assert_array_equal(before.inner, after.inner)
    np.testing.assert_array_equal(before.test, after.test)


@pytest.mark.parametrize("inputs", ["table", "key frames"])
def test_the_network_sees_no_label_and_no_feature_of_other_clips(clips, inputs):
    fold = protocols.outer("face", clips)[0]
    before = network.block(clips, fold.train, inputs)
    after = network.block(spoilt(clips, fold.test), fold.train, inputs)
    assert not before.label_mask[fold.test].any()
    assert not before.labels[fold.test].any()
    for name, rows in before.features.items():
        np.testing.assert_array_equal(
            rows[fold.train], after.features[name][fold.train]
        )
    np.testing.assert_array_equal(before.labels, after.labels)


def test_auxiliary_labels_come_from_training_clips(clips):
    fold = protocols.outer("face", clips)[1]
    labels = network.block(clips, fold.train, "table").labels[fold.train]
    for row, clip in list(zip(labels, fold.train, strict=True))[:9]:
        same = clips.generators[fold.train] == clips.generators[clip]
        mean = clips.labels[fold.train][same].mean()
        assert row[5] == pytest.approx(mean, rel=1e-6)
        assert row[5] + row[6] == pytest.approx(clips.labels[clip], rel=1e-5)
        assert GENERATORS[int(row[7:].argmax())] == clips.generators[clip]


@pytest.mark.slow
def test_a_network_does_not_depend_on_those_beside_it(clips):
    folds = protocols.outer("face", clips)[:2]
    first, second = network.settings()[0], network.settings()[2]
    other = network.Run(1, 1, second)
    plan = network.Plan((1, 2), width=8)
    one = network.train(clips, folds, [network.Run(0, 0, first), other], plan)
    two = network.train(clips, folds, [network.Run(0, 1, second), other], plan)
    np.testing.assert_allclose(one[1], two[1], atol=1e-6)
    assert np.abs(one[1][0] - one[1][1]).max() > 1e-3
    assert np.abs(one[0] - two[0]).max() > 1e-3
    assert one[0].shape == (2, len(folds[0].test))


def test_within_a_generator_equals_a_loop(clips):
    rng = np.random.default_rng(3)
    scores = clips.labels + rng.normal(size=len(clips))
    rows = np.arange(3, len(clips) - 2)
    expected = [
        (
            stats.spearmanr(scores[mine], clips.labels[mine]).statistic,
            stats.pearsonr(scores[mine], clips.labels[mine]).statistic,
            len(mine),
        )
        for name in GENERATORS
        if len(mine := rows[clips.generators[rows] == name])
    ]
    rank, linear, number = map(np.array, zip(*expected, strict=True))
    for name, values in (("within", rank), ("within_plcc", linear)):
        found = agreement.plain(name, scores[rows], clips, rows)
        assert found == pytest.approx((values * number).sum() / number.sum(), abs=1e-12)


def test_within_a_generator_on_a_resample_equals_repeated_clips(clips):
    scores = np.random.default_rng(4).normal(size=len(clips))
    rows = np.arange(len(clips))
    counts = statistics.resample_sources(clips.faces, 2)[1:]
    found = agreement.figure("within", scores, clips, rows, counts)[0]
    repeated = np.repeat(rows, counts[0].astype(int))
    again = agreement.plain("within", scores[repeated], clips, repeated)
    assert found == pytest.approx(again, abs=1e-12)


def test_one_number_a_generator_has_no_correlation_within(clips):
    rows = np.arange(len(clips))
    scores = np.array([GENERATORS.index(name) for name in clips.generators], float)
    assert agreement.plain("within", scores, clips, rows) is None


def test_a_better_method_is_told_from_a_worse_one(clips):
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(2, len(clips)))
    scores = {"good": clips.labels + 0.1 * noise[0], "bad": noise[1]}
    counts = statistics.resample_sources(clips.faces, 500)
    for row in agreement.compare(scores, "good", ["bad"], clips, counts):
        assert row["difference"] > 0 and row["low"] > 0
        assert row["p"] == row["p_holm"] == pytest.approx(2 / 501)


def test_the_combination_is_the_mean_of_gated_ridge_and_network():
    rng = np.random.default_rng(6)
    outcomes = {
        name: nested.Outcome(rng.normal(size=3), rng.normal(size=5), {}, np.empty(0))
        for name in ("ridge", "gated ridge", "network")
    }
    found = nested.combine(outcomes)
    for part in ("test", "inner"):
        one, other = (getattr(outcomes[n], part) for n in ("gated ridge", "network"))
        np.testing.assert_allclose(getattr(found, part), (one + other) / 2)


def stand_in(clips, folds, runs, plan, kept):
    """Means of the training clips and a little noise, in the place of networks."""
    rng = np.random.default_rng(7)
    return [
        clips.labels[folds[run.fold].train].mean()
        + 0.1 * rng.normal(size=(len(plan.stops), len(folds[run.fold].test)))
        for run in runs
    ]


@pytest.mark.parametrize(
    "train", [stand_in, pytest.param(network.train, marks=pytest.mark.slow)]
)
def test_the_command_writes_its_results_and_continues(
    tmp_path, capsys, monkeypatch, train
):
    monkeypatch.setattr(network, "train", train)
    folder, out = write_tables(tmp_path), tmp_path / "out"
    command = [f"--data={folder}", f"--out={out}", "--quick", "--resamples=50"]
    assert thqa.main(command) == 0
    first = (out / "predictions.csv").read_bytes()
    assert b"5 folds by face" in (out / "thqa.md").read_bytes()
    assert (out / "thqa.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((out / "thqa.json").read_text())
    rows = {(r["protocol"], r["resampled"], r["method"]): r for r in found["rows"]}
    assert rows["face", "face", "ridge"]["plcc"] > 0.9
    assert len(rows) == 8 * (len(protocols.PROTOCOLS) + 1)

    def refuse(*_, **__):
        raise AssertionError("done work was done again")

    monkeypatch.setattr(network, "train", refuse)
    monkeypatch.setattr(nested, "tune", refuse)
    assert thqa.main(command) == 0
    assert (out / "predictions.csv").read_bytes() == first
    capsys.readouterr()
    assert thqa.main([*command, "--seeds=3"]) == 2
    assert "holds a study with seeds 2, not 3" in capsys.readouterr().err


def test_bad_input_is_one_line(tmp_path, capsys):
    command = [f"--data={tmp_path}", f"--out={tmp_path / 'out'}", "--quick"]
    assert thqa.main(command) == 2
    assert clips_lib.SCORES in capsys.readouterr().err
    assert thqa.main([*command, "--seeds=0"]) == 2
    assert "--seeds is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"Score": ""}, "no number"),
        ({"Image": "someone"}, "names no face and generator"),
    ],
)
def test_bad_tables_are_refused(tmp_path, changes, expected):
    with pytest.raises(schema.InputError, match=expected):
        clips_lib.load(write_tables(tmp_path, **changes), tmp_path / "data")


@pytest.mark.slow
def test_ridge_on_the_real_table_is_as_measured_before(tmp_path):
    folder = SHARED / "data" / "thqa"
    if not folder.exists():
        pytest.skip(f"no THQA in {folder} (TQA_SHARED)")
    clips = clips_lib.load(folder, tmp_path / "data")
    assert (len(clips), len(set(clips.faces)), len(set(clips.generators))) == (
        800,
        20,
        8,
    )
    method = classic.methods()["ridge"]
    scores = np.empty(len(clips))
    for fold in protocols.outer("face", clips):
        inner = protocols.inner("face", clips, fold.train)
        scores[fold.test] = nested.tune(method, clips, fold, inner).test
    rows = np.arange(len(clips))
    assert agreement.plain("plcc", scores, clips, rows) == pytest.approx(0.77, abs=0.02)
    assert agreement.plain("srcc", scores, clips, rows) == pytest.approx(0.68, abs=0.02)
