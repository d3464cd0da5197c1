"""What scores depend on: planted truth is found, every preset and a whole run work."""

import csv
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import interpret
from experiments.interpreting import case as cases
from experiments.interpreting import over_time, permutation
from tests import small
from tqa_jax import (
    models,
    pipeline,
    preprocess,
    records,
    schema,
    statistics,
    train,
)
from tqa_jax import run as run_lib
from tqa_jax.models import attention, presets

MAX_FRAMES = 8
TASKS = small.SCHEMA.task_names


def planted(params, batch):
    """Scores by one feature each: visual 0, audio 1, and their mean."""
    del params

    def mean(name, column):
        keep = batch.frame_mask[name]
        total = jnp.where(keep, batch.features[name][..., column], 0).sum(axis=-1)
        return 3 + total / jnp.maximum(keep.sum(axis=-1), 1)

    one, two = mean("visual", 0), mean("audio", 1)
    return jnp.stack([one, two, (one + two) / 2], axis=-1)


def make_case(folder, model, params):
    """A case of the small data set with any model, without a run's folder."""
    info = schema.load(folder)

    def read():
        return records.read_split(folder, info, "test")

    transforms = preprocess.fit(
        lambda: map(pipeline.measured_rows, records.read_split(folder, info, "train")),
        small.SCHEMA.widths,
        pca={"visual": 4},
    )
    run = run_lib.Run(folder).but(
        config=small.config(),
        schema=small.SCHEMA,
        transforms=transforms,
        model=model,
        members=params,
    )
    windows = pipeline.load_windows(
        read(), transforms, max_frames=MAX_FRAMES, frames=MAX_FRAMES
    )
    clips = pipeline.describe(read(), MAX_FRAMES, transforms)
    return cases.Case(run, folder, info, clips, windows)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "small"
    small.write(folder)
    return folder


def make_model(preset, **more):
    sizes = {
        **{"width": 8, "temporal_heads": 2, "temporal_layers": 1, "fusion_heads": 2},
        **{"fusion_layers": 1, "fusion_ffn": 8, "head_hidden": (4,)},
        **{"widths": small.SCHEMA.widths | {"visual": 4}, "preset": preset},
        **{"tasks": small.SCHEMA.tasks, "max_frames": MAX_FRAMES},
    }
    return models.make(**(sizes | more))


@pytest.fixture(scope="module")
def known(data):
    """A case whose scores are `planted`."""
    case = make_case(data, make_model("advanced")._replace(apply=planted), [0.0])
    # PCA mixes the columns that the scores are made of: turn it off.
    transforms = dict(case.run.transforms)
    visual = transforms["visual"]
    transforms["visual"] = dataclasses.replace(
        visual, components=visual.components[:, :0]
    )
    run = case.run.but(transforms=transforms)
    windows = pipeline.load_windows(
        records.read_split(data, case.info, "test"),
        transforms,
        **{"max_frames": MAX_FRAMES, "frames": MAX_FRAMES},
    )
    return dataclasses.replace(case, run=run, windows=windows)


def test_planted_features_are_the_ones_that_matter(known):
    before = known.scores(known.windows)
    found = {
        (one.kind, one.modality, one.group): permutation.losses(
            before, one, known, resamples=300
        )
        for one in permutation.measure(known, repetitions=5)
    }
    assert len(found) == 2 * 3 + 6 + 5 + 2
    needs = {"lip_sync": ("visual", "column 0"), "audio_quality": ("audio", "column 1")}
    for (kind, modality, group), by_task in found.items():
        for task, (named, column) in needs.items():
            by_metric = by_task[task]
            if modality == named and group in ("", column):
                if kind == "hidden":  # Every clip has the same score then.
                    assert by_metric["srcc"]["reason"] == "predictions are constant"
                    continue
                assert by_metric["srcc"]["value"] > 0.5
                assert by_metric["srcc"]["low"] > 0.2
                assert by_metric["rmse"]["low"] > 0
            else:
                for cell in by_metric.values():
                    assert cell["value"] == pytest.approx(0, abs=1e-6)
        overall = by_task["overall"]["srcc"]["value"]
        if modality == "sync":
            assert overall == pytest.approx(0, abs=1e-6)


def test_losses_are_those_of_a_loop(known):
    rng = np.random.default_rng(0)
    number = len(known.clips.names)
    labels = known.clips.labels[:, 1]
    before = rng.normal(size=(number, 3)) + np.nan_to_num(labels)[:, None]
    after = rng.normal(size=(4, number, 3)) + 0.5 * np.nan_to_num(labels)[:, None]
    changed = permutation.Changed("permuted", "audio", "", 5, after)
    found = permutation.losses(before, changed, known, resamples=200, seed=3)
    keep = np.isfinite(labels)
    assert 0 < keep.sum() < number
    sources = np.array(known.clips.sources)[keep]
    counts = statistics.resample_sources(sources, 200, 3)[1:].astype(int)

    def fall(rows):
        def srcc(scores):
            return stats.spearmanr(scores[keep, 1][rows], labels[keep][rows])[0]

        return np.array([srcc(before) - srcc(one) for one in after])

    every = fall(np.arange(keep.sum()))
    cell = found["audio_quality"]["srcc"]
    assert cell["value"] == pytest.approx(every.mean())
    assert cell["sd"] == pytest.approx(every.std(ddof=1))
    drawn = [fall(np.repeat(np.arange(keep.sum()), c)).mean() for c in counts]
    ends = np.percentile(drawn, (2.5, 97.5))
    assert [cell["low"], cell["high"]] == pytest.approx(ends)
    error = np.sqrt(((after[:, keep, 1] - labels[keep]) ** 2).mean(axis=1)).mean()
    error -= np.sqrt(((before[keep, 1] - labels[keep]) ** 2).mean())
    assert found["audio_quality"]["rmse"]["value"] == pytest.approx(error)


def test_every_clip_gets_the_windows_of_another_clip():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 5, 9)
    clip = np.repeat(np.arange(9), lengths)
    clips = pipeline.Clips(
        *(tuple("abcdefghi"), tuple("abcdefghi"), np.zeros((9, 1))),
        *(clip, np.zeros(len(clip), int), (4,) * 9, np.arange(9), ()),
    )
    givers = set()
    for _ in range(20):
        donor = permutation.donors(9, rng)
        assert sorted(donor) == list(range(9)) and (donor != np.arange(9)).all()
        givers.add(tuple(donor))
        windows = permutation.donor_windows(clips, donor)
        np.testing.assert_array_equal(clip[windows], donor[clip])
        for number in range(9):
            mine = windows[clip == number]
            assert (np.diff(mine) >= 0).all()  # In the order of time.
            if lengths[donor[number]] == lengths[number]:
                assert (np.diff(mine) == 1).all()
    assert len(givers) == 20


def test_columns_are_taken_row_by_row_and_nothing_else_changes():
    raw = [np.arange(6.0).reshape(3, 2), np.full((2, 2), 9.0), np.zeros((0, 2))]
    raw[1][1, 1] = 7.0
    one, two, three = permutation.with_columns(raw, np.array([1, 2, 0]), np.array([1]))
    np.testing.assert_array_equal(one, [[0, 9], [2, 7], [4, 9]])  # Starts again.
    np.testing.assert_array_equal(two, [[9, np.nan], [9, np.nan]])
    assert three.shape == (0, 2) and raw[0][0, 1] == 1


def test_a_window_from_which_everything_is_hidden_counts_for_nothing(known):
    clip = next(n for n, frames in enumerate(known.clips.frames) if frames > MAX_FRAMES)
    first, last = known.windows_of(clip)
    masks = {name: mask.copy() for name, mask in known.windows.frame_mask.items()}
    for mask in masks.values():
        mask[first] = False
    hidden = known.windows.replace(frame_mask=masks)
    single = known.run.predict(known.windows)
    np.testing.assert_allclose(known.scores(hidden)[clip], single[last], rtol=1e-6)
    for mask in masks.values():
        mask[last] = False  # Nothing is left of the clip: what is said of nothing.
    wanted = known.run.predict(hidden)[[first, last]].mean(axis=0)
    np.testing.assert_allclose(known.scores(hidden)[clip], wanted, rtol=1e-6)


def test_own_rows_give_back_the_windows(known, data):
    for case in (known, make_case(data, make_model("advanced"), [0.0])):
        for name in case.modalities:
            same = case.filled(name, case.raw(name))
            for a, b in zip(
                jax.tree.leaves(same), jax.tree.leaves(case.windows), strict=True
            ):
                np.testing.assert_allclose(a, b, atol=1e-5)


def test_hiding_changes_scores_where_the_planted_frame_is(known):
    # A score that is the feature of one frame, if that is there.
    long = int(np.argmax(known.clips.frames))
    assert known.clips.frames[long] > MAX_FRAMES  # Two windows, which overlap.
    frame = known.clips.frames[long] - MAX_FRAMES + 1  # In both.

    def planted_frame(params, batch):
        del params
        starts = known.clips.window_start[known.windows_of(long)]
        values = batch.features["audio"][..., 1]
        there = batch.frame_mask["audio"]
        # Windows of this clip come in turn: the place of the frame alternates.
        place = frame - jnp.resize(jnp.asarray(starts), len(values))
        rows = jnp.arange(len(values))
        seen = jnp.where(there[rows, place], values[rows, place] + 10, 0)
        return jnp.stack([seen, seen * 0, seen * 0], axis=-1)

    model = known.run.model._replace(apply=planted_frame)
    run = known.run.but(model=model)
    found = over_time.occlude(dataclasses.replace(known, run=run), long)
    covers = (found.starts <= frame) & (frame < found.starts + found.length)
    assert 0 < covers.sum() < len(covers)
    for name, change in found.change.items():
        if name in (over_time.ALL, "audio"):
            assert (np.abs(change[covers, 0]) > 1).all()
            np.testing.assert_array_equal(change[~covers, 0], 0)
        else:
            assert np.nanmax(np.abs(change[:, 0]), initial=0) == 0
        assert np.nanmax(np.abs(change[:, 1]), initial=0) == 0


def test_hiding_what_is_not_there_is_undefined(known):
    masks = known.windows.frame_mask["sync"]
    without = int(known.clips.window_clip[np.flatnonzero(~masks.any(axis=1))[0]])
    found = over_time.occlude(known, without)
    assert np.isnan(found.change["sync"]).all()
    assert np.isfinite(found.change["audio"]).all()


def test_worst_and_right_clips_are_chosen():
    labels = np.array([[1.0, 3.0], [5.0, np.nan], [3.0, 3.1], [3.0, 5.0], [2.9, 3.0]])
    scores = np.array([[1.1, 3.0], [1.0, 3.0], [3.0, 3.1], [3.0, 4.8], [2.9, 3.0]])
    found = over_time.choose(scores, labels, np.array([4.0, 4.0]), most=1)
    # Clip 0 has the one unusual label of task 0 that is right; usual ones don't count.
    assert found == [("worst", 1, 0), ("right", 0, 0)]
    more = over_time.choose(scores, labels, np.array([4.0, 4.0]), most=2)
    assert [one[:2] for one in more] == [
        *(("worst", 1), ("worst", 3), ("right", 0), ("right", 2))
    ]


def test_attention_that_follows_the_effect_agrees():
    starts, shares = np.arange(0, 40, 5), np.linspace(0, 2, 50)
    attended = over_time.Attended({"audio": shares}, {"audio": 0.5})
    change = np.stack([-starts * 0.1, starts * 0.2], axis=-1)
    ranges = np.array([4.0, 4.0])
    hidden = over_time.Occluded(starts, 10, {"audio": change})
    assert over_time.agreement(attended, hidden, ranges)["audio"] == pytest.approx(1)
    hidden = over_time.Occluded(starts, 10, {"audio": change[::-1]})
    assert over_time.agreement(attended, hidden, ranges)["audio"] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("preset", "more"),
    [
        *((preset, {}) for preset in sorted(presets.PRESETS)),
        ("synced", {"temporal_window": 2, "remat": "nothing_saveable"}),
    ],
)
def test_every_preset_and_ensembles_are_attended_over_time(data, preset, more):
    model = make_model(preset, **more)
    members = [jax.jit(model.init)(jax.random.key(seed)) for seed in range(2)]
    assert attention.WEIGHTS not in members[0]
    case = make_case(data, model, members)
    early = model.options["topology"] == "early"
    names = [over_time.ALL] if early else list(case.modalities)
    long = int(np.argmax(case.clips.frames))

    def attended(members):
        run = case.run.but(members=members)
        return over_time.Attention(dataclasses.replace(case, run=run)).of(long)

    both = attended(members)
    assert list(both.received) == names
    for name in names:
        assert both.received[name].shape == (case.clips.frames[long],)
        assert 0 < both.evenness[name] <= 1 + 1e-6
    if more:
        one, two = (attended([member] * 2) for member in members)
        for name in names:
            mean = (one.received[name] + two.received[name]) / 2
            np.testing.assert_allclose(both.received[name], mean, atol=1e-5)
            assert not np.allclose(one.received[name], mean, equal_nan=True)
    hidden = over_time.occlude(case, long)
    assert hidden.change[over_time.ALL].shape == (len(hidden.starts), len(TASKS))
    assert np.abs(hidden.change["audio"]).max() > 0


def test_attention_of_a_model_is_seen_by_nothing_that_is_absent(data):
    model = make_model("synced", temporal_layers=2)
    case = make_case(data, model, [0.0])
    params = jax.jit(model.init)(jax.random.key(0))
    windows = jax.tree.map(lambda leaf: leaf[:4], case.windows)
    blocks = jax.jit(model.attend)(params, windows)
    assert [block.shape for block in blocks] == [(4, 3, 2, MAX_FRAMES, MAX_FRAMES)] * 2
    mask = np.stack([windows.frame_mask[name] for name in case.modalities], axis=1)
    assert not mask.all()
    for block in blocks:
        unseen = ~mask[:, :, None, None] & mask.any(axis=-1)[..., None, None, None]
        assert np.abs(np.where(unseen, block, 0)).max() == 0
        np.testing.assert_allclose(np.asarray(block).sum(axis=-1), 1, atol=1e-6)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A tiny finished run, the one of `test_train`: its programs are compiled once."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train.run(small.config(), data_path=data, workdir=folder)
    return folder


@pytest.mark.slow
def test_learned_run_depends_on_what_its_labels_are_made_of(tmp_path):
    small.write(tmp_path / "data", clips=300)
    config = small.config(train__epochs=40, train__patience=40)
    train.run(config, data_path=tmp_path / "data", workdir=tmp_path / "run")
    out = tmp_path / "out"
    arguments = [f"--workdir={tmp_path / 'run'}", f"--out={out}", "--seeds=4"]
    assert interpret.main(arguments) == 0
    found = json.loads((out / "interpretation.json").read_text())
    fall = {
        (one["kind"], one["modality"], one["group"]): {
            task: cells["srcc"] for task, cells in one["tasks"].items()
        }
        for one in found["importance"]
    }
    for task, mine, other in (
        ("audio_quality", ("audio", "column 1"), ("visual", "column 0")),
        ("lip_sync", ("visual", "column 0"), ("audio", "column 1")),
    ):
        assert fall["permuted", mine[0], ""][task]["low"] > 0.3
        assert fall["group", *mine][task]["low"] > 0.3
        for name in (("permuted", other[0], ""), ("group", *other)):
            assert abs(fall[name][task]["value"]) < 0.1
        assert abs(fall["permuted", "sync", ""][task]["value"]) < 0.1
    for name in ("audio", "visual"):
        assert fall["permuted", name, ""]["overall"]["low"] > 0.05


@pytest.mark.slow
def test_ensemble_of_a_preset_that_joins_modalities_is_interpreted(data, tmp_path):
    page = pytest.importorskip("tqa_jax.report.page")
    config = small.config(model__preset="optimized_mtl", train__members=2)
    config.train.epochs = config.model.temporal_layers = 1
    train.run(config, data_path=data, workdir=tmp_path / "run")
    assert interpret.main([f"--workdir={tmp_path / 'run'}", "--quick"]) == 0
    found = json.loads((tmp_path / "run" / "interpretation.json").read_text())
    assert list(found["attention"]) == [over_time.ALL]
    assert 'class="shade' in page.build(tmp_path / "run")


def test_command_interprets_a_run_and_the_report_shows_it(finished, data, tmp_path):
    pytest.importorskip("matplotlib")
    page = pytest.importorskip("tqa_jax.report.page")
    run, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(finished, run)
    shutil.copytree(data, moved)
    arguments = [f"--workdir={run}", f"--data={moved}", "--quick", "--seeds=3"]
    assert interpret.main(arguments) == 0
    assert not list(run.glob("*.part"))
    assert (run / "interpretation.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((run / "interpretation.json").read_text())
    assert found["settings"]["repetitions"] == 3
    assert {one["kind"] for one in found["clips"]} == {"worst", "right"}
    with (run / "interpretation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (2 * 3 + 6 + 5 + 2) * 3 * 3
    for row in rows:
        (one,) = (
            one
            for one in found["importance"]
            if all(one[key] == row[key] for key in ("kind", "modality", "group"))
        )
        cell = one["tasks"][row["task"]][row["metric"]]
        assert row["loss"] == ("" if cell["value"] is None else str(cell["value"]))
        assert row["loss"] or row["reason"]
    text = page.build(run)
    assert 'class="shade' in text and "all modalities" in text
    # The same again, elsewhere; the run's own files are left alone.
    before = (run / "interpretation.csv").read_bytes()
    assert interpret.main([*arguments, f"--out={tmp_path / 'new' / 'out'}"]) == 0
    assert (tmp_path / "new" / "out" / "interpretation.csv").read_bytes() == before


def test_runs_that_do_not_match_are_one_clear_line(finished, data, tmp_path, capsys):
    pytest.importorskip("matplotlib")

    def error(*arguments):
        assert interpret.main(list(arguments)) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ") and text.count("\n") == 1
        return text

    small.write(tmp_path / "other", seed=1)
    said = error(f"--workdir={finished}", f"--data={tmp_path / 'other'}")
    assert "is not the data set that the run was trained on" in said
    said = error(f"--workdir={finished}", f"--data={tmp_path}")
    assert "say where it is with --data" in said
    assert "holds no run" in error(f"--workdir={tmp_path}")
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    kept = (run / "predictions.csv").read_text()
    lines = kept.splitlines()
    cells = lines[-1].split(",")
    cells[3] = f"{float(cells[3]) + 0.5:.4f}"
    (run / "predictions.csv").write_text("\n".join([*lines[:-1], ",".join(cells)]))
    assert "scores differ from those in" in error(f"--workdir={run}", f"--data={data}")
    (run / "predictions.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert "has other test clips" in error(f"--workdir={run}", f"--data={data}")
    (run / "results.json").unlink()
    assert "not finished" in error(f"--workdir={run}", f"--data={data}")
    assert not (run / "interpretation.json").exists()
