"""Noise goes where it is said to, and no noise is the run's own result."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import noise
from experiments.studying import contrasts, trials
from tests import small
from tqa_jax import evaluate, metrics, records, schema, statistics
from tqa_jax import run as run_lib


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three seeds of a small network, and the options that they were trained with."""
    folder = tmp_path_factory.mktemp("noise")
    small.write(folder / "data")
    base = small.config(
        data__path=str(folder / "data"), train__epochs=2, evaluate__dropout_draws=0
    )
    base.weighting.name = "fixed"
    runs = trials.run(base, {"fixed": {}}, seeds=(0, 1, 2), folder=folder / "runs")
    return folder / "data", runs["fixed"]


@pytest.mark.slow
def test_without_noise_results_are_those_of_the_run(trained):
    data, runs = trained
    info = schema.load(data)
    splits = {
        split: list(records.read_split(data, info, split))
        for split in ("validation", "test")
    }
    for one in runs:
        run = run_lib.Run.load(one.folder)
        pairs, sources = {}, None
        for split, clips in splits.items():
            same = [
                noise.noisy(clip, run.transforms, level=0.0, seed=one.seed)
                for clip in clips
            ]
            described, windows = run.windows(same)
            found = run.score(described, windows)
            pairs[split] = (found, described.labels)
            sources = described.sources
        kept = json.loads((one.folder / "results.json").read_text())
        now = evaluate.final(
            **pairs,
            sources=sources,
            tasks=info.schema.tasks,
            resamples=run.config.evaluate.resamples,
            seed=one.seed,
        )
        assert now["tasks"] == kept["tasks"]
        assert now["average"] == kept["average"]


@pytest.mark.slow
def test_noise_has_the_deviation_of_the_feature_and_spares_what_is_missing(trained):
    data, runs = trained
    run = run_lib.Run.load(runs[0].folder)
    rng = np.random.default_rng(0)
    clip = small.make_clip(1, "s", rng)
    long = {
        name: np.repeat(rows[:1], 20_000, axis=0)
        for name, rows in clip.features.items()
    }
    long["audio"][5, 2] = np.nan
    mask = {name: np.ones(20_000, bool) for name in long}
    clip = dataclasses.replace(clip, features=long, frame_mask=mask)
    once = noise.noisy(clip, run.transforms, level=1.0, seed=3)
    again = noise.noisy(clip, run.transforms, level=1.0, seed=3)
    twice = noise.noisy(clip, run.transforms, level=2.0, seed=3)
    other = noise.noisy(clip, run.transforms, level=1.0, seed=4)
    clips = list(records.read_split(data, schema.load(data), "train"))
    for name, rows in long.items():
        there = [one.features[name][one.frame_mask[name]] for one in clips]
        expected = np.concatenate(there).std(axis=0)
        added = once.features[name] - rows
        np.testing.assert_allclose(np.nanstd(added, axis=0), expected, rtol=0.03)
        np.testing.assert_array_equal(once.features[name], again.features[name])
        np.testing.assert_allclose(
            twice.features[name] - rows, 2 * added, rtol=1e-2, atol=1e-4
        )
        assert (other.features[name] != once.features[name]).any()
    assert np.isnan(once.features["audio"][5, 2])
    assert np.isfinite(once.features["audio"][6]).all()


@pytest.mark.slow
def test_constant_features_get_no_noise(trained):
    run = run_lib.Run.load(trained[1][0].folder)
    transform = run.transforms["audio"]
    scale = transform.scale.copy()
    scale[1] = 0
    found = noise.deviations(dataclasses.replace(transform, scale=scale))
    assert found[1] == 0
    np.testing.assert_allclose(found[0], 1 / scale[0])


def test_figures_are_those_of_a_loop_over_resamples():
    rng = np.random.default_rng(1)
    labels = rng.normal(size=12)
    labels[3] = np.nan
    scores = rng.normal(size=(2, 12))
    sources = [f"s{at // 3}" for at in range(12)]
    counts = statistics.resample_sources(sources, 20, seed=5)
    known = ~np.isnan(labels)
    for metric in ("srcc", "rmse"):
        found = contrasts.figures(metric, scores, labels, counts)
        for run in range(2):
            for r, times in enumerate(counts):
                rows = np.repeat(np.flatnonzero(known), times[known].astype(int))
                expected = metrics.measure(metric, scores[run, rows], labels[rows])
                value = np.nan if expected.value is None else expected.value
                np.testing.assert_allclose(found[run, r], value, atol=1e-9)
    bias = contrasts.figures(contrasts.BIAS, scores, labels, counts)
    np.testing.assert_allclose(bias[1, 0], (scores[1] - labels)[known].mean())


def test_estimate_needs_seeds_and_sources():
    rng = np.random.default_rng(2)
    values = 1 + 0.01 * rng.normal(size=(3, 101))
    found = contrasts.estimate(values)
    assert found["value"] == pytest.approx(values[:, 0].mean())
    drawn = values[:, 1:].mean(axis=0)
    assert found["low"] == pytest.approx(np.percentile(drawn, 2.5))
    assert found["p_clips"] == pytest.approx(2 / 101) and found["p_seeds"] < 0.01
    assert contrasts.estimate(values[:2])["p_seeds"] is None
    alone = contrasts.estimate(values[:, :1])
    assert alone["low"] is None and alone["value"] is not None
    assert statistics.holm([0.01, None, 0.04, 0.03]) == [0.03, None, 0.06, 0.06]
    assert statistics.resample_sources(["a", "a", "b"]).shape == (1, 3)


@pytest.mark.slow
def test_study_says_where_noise_hurts(trained, tmp_path, capsys):
    data, runs = trained
    arguments = [f"--data={data}", f"--out={tmp_path}", "--quick", "--draws=1"]
    assert noise.main([*arguments, "--seeds=3"]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "noise.json").read_text())
    by_key = {(row["input"], row["level"]): row for row in found["rows"]}
    assert set(by_key) == {
        (name, level)
        for name in ("visual", "audio", "sync", "all")
        for level in (0.0, 1.0, 4.0)
    }
    for name in ("visual", "all"):
        row, clean = by_key[name, 4.0], by_key[name, 0.0]
        assert row["srcc_drop"] == pytest.approx(clean["srcc"] - row["srcc"])
        assert row["rmse_rise"] == pytest.approx(row["rmse"] - clean["rmse"])
    assert clean["verdict"] == "" and clean["srcc_drop"] is None
    assert "noise on visual" in said.lower() and (tmp_path / "noise.png").is_file()


def test_unfit_command_is_one_line(tmp_path, capsys):
    assert noise.main(["--data=nowhere", f"--out={tmp_path}"]) == 2
    assert "nowhere is no data set" in capsys.readouterr().err
