"""A teacher's scores and features become tasks; what is shipped has the real ones."""

import json
import pathlib

import numpy as np
import pytest
from scipy import stats
from sklearn import decomposition

from experiments import distill
from experiments.studying import derived, teacher, trials
from tests import small
from tqa_jax import comparison, export, records, schema, scorer
from tqa_jax import run as run_lib


@pytest.fixture(scope="module")
def widened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    small.write(folder / "data", clips=30)
    names = [c.clip for split, c in derived.pairs(folder / "data") if split == "train"]
    values = np.linspace(1, 5, 2 * len(names)).reshape(len(names), 2)
    tasks = [schema.Task("teacher_overall"), schema.Task("feature_0")]
    return teacher.widen(folder / "data", folder / "more", tasks, values, names)


@pytest.fixture(scope="module")
def run(widened):
    base = small.config(
        data__path=str(widened), train__epochs=2, evaluate__dropout_draws=0
    )
    changes = {"weighting.name": "fixed", "train.members": 2}
    changes |= {f"train.select_weights.{n}": 1.0 for n in small.SCHEMA.task_names}
    folder = widened.parent / "runs"
    return trials.run(base, {"a": changes}, seeds=(0,), folder=folder)["a"][0]


def test_components_are_the_principal_ones():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 12)) * np.linspace(3, 0.1, 12) + 7
    found = teacher.components(features, 3)
    expected = decomposition.PCA(3).fit_transform(features)
    expected /= expected.std(axis=0)
    for column, other in zip(found.T, expected.T, strict=True):
        sign = np.sign(np.corrcoef(column, other)[0, 1])
        np.testing.assert_allclose(column, np.clip(3 + sign * other * 2 / 3, 1, 5))
    assert teacher.components(features[:, :2], 3).shape == (40, 2)


def test_only_training_clips_have_the_further_labels(widened):
    before = {c.clip: c for _, c in derived.pairs(widened.parent / "data")}
    rows = [clip for split, clip in derived.pairs(widened) if split == "train"]
    expected = np.linspace(1, 5, 36, dtype=np.float32).reshape(18, 2)
    np.testing.assert_array_equal([clip.labels[3:] for clip in rows], expected)
    for split, clip in derived.pairs(widened):
        np.testing.assert_array_equal(clip.labels[:3], before[clip.clip].labels)
        assert split == "train" or np.isnan(clip.labels[3:]).all()


@pytest.mark.slow
def test_a_teacher_sees_clips_as_its_run_did(run, widened):
    seen = teacher.view(run.folder, widened, "test")
    kept = run_lib.Run.load(run.folder).predictions().of("test")
    assert seen.clips == tuple(kept.clips)
    np.testing.assert_allclose(seen.scores, kept.scores, atol=1e-4)
    with np.load(run.folder / "representation.npz") as file:
        features = file["features"][file["split"] == "test"]
    members = seen.features.reshape(len(features), 2, -1)
    np.testing.assert_allclose(members.mean(axis=1), features, atol=1e-5)


@pytest.mark.slow
def test_shipped_scorer_has_the_real_tasks_and_their_scores(run, widened, tmp_path):
    whole = run_lib.Run.load(run.folder)
    some = teacher.only(whole, small.SCHEMA.tasks)
    data = export.pack(export.describe(some), export.collect(some))
    (tmp_path / "scorer.npz").write_bytes(data)
    judge = scorer.load(tmp_path / "scorer.npz")
    said = run.outcome.predictions
    clips = list(records.read_split(widened, schema.load(widened), "test"))
    for number, clip in enumerate(clips):
        found = judge.score(clip.features, clip.frame_mask)
        assert list(found) == ["lip_sync", "audio_quality", "overall"]
        for name, score in found.items():
            wanted = said.scores[number, said.tasks.index(name)]
            assert score == pytest.approx(wanted, abs=2e-4)


@pytest.mark.slow
def test_runs_are_judged_by_the_real_tasks(run):
    found = teacher.real(run.outcome, small.SCHEMA.tasks)
    said = run.outcome.predictions
    values = []
    for name in small.SCHEMA.task_names:
        k = said.tasks.index(name)
        known = ~np.isnan(said.labels[:, k])
        values.append(stats.spearmanr(said.scores[known, k], said.labels[known, k])[0])
    assert found.results["average"]["srcc"]["value"] == pytest.approx(np.mean(values))
    assert list(found.results["tasks"]) == list(small.SCHEMA.task_names)
    assert list(found.predictions.tasks) == list(small.SCHEMA.task_names)
    assert isinstance(found, comparison.Outcome)


def test_students_need_a_width_that_heads_divide():
    base = small.config(model__width=32)
    assert distill.student_widths(base) == (16, 8)
    base.model.temporal_heads = 16
    with pytest.raises(schema.InputError, match="multiple of 64"):
        distill.student_widths(base)


@pytest.mark.slow
def test_the_study_runs(widened, tmp_path):
    data = widened.parent / "data"
    given = [f"--data={data}", f"--out={tmp_path}", "--quick", "--seeds=1", "--draws=1"]
    assert distill.main(given) == 0
    rows = json.loads((tmp_path / "distill.json").read_text())["rows"]
    assert [row["case"] for row in rows][:3] == [
        "teacher",
        "width 8: labels",
        "width 8: labels, scores",
    ]
    assert len(rows) == 7 and all(row["srcc"] is not None for row in rows)
    # Without the further heads, students of a width are of one size.
    sizes = [row["parameters"] for row in rows]
    assert sizes[0] > sizes[1] == sizes[2] == sizes[3] > sizes[4] == sizes[6]
    assert rows[0]["time"] == 1.0
    assert all(pathlib.Path(tmp_path / row["scorer"]).is_file() for row in rows)
