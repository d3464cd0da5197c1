"""The NumPy scorer equals the Flax model, and works alone."""

import concurrent.futures
import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import ml_collections
import numpy as np
import pytest

from tqa_jax import (
    evaluate,
    export,
    models,
    pipeline,
    preprocess,
    records,
    schema,
    scorer,
)
from tqa_jax import run as run_lib
from tqa_jax.models import evaluator

MAX_FRAMES = 12
RAW = {"visual": 12, "audio": 9, "keypoints": 16, "action_units": 3, "sync": 2}
PCA = {"visual": 5, "audio": 6}
SCHEMA = schema.Schema(
    modalities=tuple(
        schema.Modality(name, width, "none", "1") for name, width in RAW.items()
    ),
    tasks=(
        schema.Task("lip_sync"),
        schema.Task("liked", 0.0, 10.0),
        schema.Task("overall", -1.0, 1.0),
    ),
)
SMALL = {
    "width": 16,
    "depth": 2,
    "temporal_heads": 2,
    "fusion_heads": 4,
    "fusion_layers": 2,
    "fusion_ffn": 24,
    "head_hidden": (12, 8),
}
VARIANTS = {
    "advanced": ("advanced", {}),
    "synced": ("synced", {}),
    "optimized_mtl": ("optimized_mtl", {"temporal_layers": 2}),
    "path_a_max_tanh": (
        "advanced",
        {"paths": "a", "pooling": "max", "head_activation": "tanh", "depth": 1},
    ),
    "path_b_mean_none": (
        "synced",
        {"paths": "b", "pooling": "mean", "head_activation": "none"},
    ),
    "early_mean_max_residual": (
        "optimized_mtl",
        {"encoder": "residual", "pooling": "mean_max", "temporal_layers": 1},
    ),
    "late_embedder_plain": (
        "synced",
        {"encoder": "embedder", "embedder_hidden": {"audio": 7}, "gate": False}
        | {"head_style": "plain", "cross_layers": 2, "temporal_layers": 2},
    ),
    "early_max_bare": (
        "optimized_mtl",
        {"pooling": "max", "positions": False, "modality_embeddings": False}
        | {"temporal_layers": 1, "head_hidden": (), "head_style": "normed"},
    ),
    "late_window": ("synced", {"temporal_window": 3, "temporal_layers": 2}),
    "early_window": ("optimized_mtl", {"temporal_window": 1, "temporal_layers": 2}),
    "late_no_time": ("synced", {"temporal_layers": 0}),
    "odd_ffn_gate_no_cross": (
        "advanced",
        {"gate": True, "temporal_ffn": 10, "positions": True, "head_hidden": (9,)},
    ),
}
NO_WINDOW = {"temporal_window": 0}


def make_clips(seed=0):
    """Short, exact, long, one frame; gaps, NaN, absent modalities."""
    rng = np.random.default_rng(seed)
    found = []
    for number, frames in enumerate((MAX_FRAMES - 5, MAX_FRAMES, 31, 1, 9, 14, 36)):
        features = {
            name: (3 + 2 * rng.normal(size=(frames, width))).astype(np.float32)
            for name, width in RAW.items()
        }
        mask = {name: np.ones(frames, bool) for name in RAW}
        if number == 0:
            mask["keypoints"][2:4] = False
        if number == 2:
            for rows in mask.values():
                rows[:MAX_FRAMES] = False  # The whole first window.
            mask["audio"] = rng.random(frames) < 0.5
            mask["audio"][:MAX_FRAMES] = False
            mask["sync"][:] = False
        if number in (1, 4):
            mask["audio"][:] = False
            features["audio"][:] = np.nan
            features["visual"][0, :3] = np.nan, np.inf, -np.inf
        if number == 6:
            for rows in mask.values():
                rows[MAX_FRAMES:-MAX_FRAMES] = False  # The whole middle window.
        for name in RAW:
            features[name][~mask[name]] = 1e6  # Must not be looked at.
        found.append(
            records.Clip(f"c{number}", "s", features, mask, np.zeros(3, np.float32))
        )
    return found


def make_transforms(seed=0, winsorise=0.0):
    rng = np.random.default_rng(seed)
    rows = {
        name: (3 + 2 * rng.normal(size=(400, width))).astype(np.float32)
        for name, width in RAW.items()
    }
    rows["keypoints"][:, 3] = 7.0  # A constant feature.
    return preprocess.fit(lambda: [rows], RAW, pca=PCA, winsorise=winsorise)


def make_run(preset="synced", members=1, winsorise=0.0, results=None, **options):
    """A run that was never trained: every parameter is off its initial value."""
    config = ml_collections.ConfigDict({"data": {"max_frames": MAX_FRAMES}})
    transforms = make_transforms(winsorise=winsorise)
    model = models.make(
        widths={name: one.width for name, one in transforms.items()},
        tasks=SCHEMA.tasks,
        max_frames=MAX_FRAMES,
        preset=preset,
        **SMALL | options,
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(7)

    def draw(path, leaf):
        key = path[-1].key
        values = rng.normal(size=leaf.shape).astype(np.float32)
        if key == "kernel":
            return values / np.float32(math.sqrt(leaf.shape[-2]))
        return values * np.float32(0.3) + np.float32(key == "scale")

    return run_lib.Run().but(
        config=config,
        schema=SCHEMA,
        transforms=transforms,
        model=model,
        members=[
            jax.tree_util.tree_map_with_path(draw, shapes) for _ in range(members)
        ],
        results=results or {},
    )


@functools.cache
def packed(**options):
    run = make_run(**options)
    return export.pack(export.describe(run), export.collect(run))


def make_scorer(run, dtype="float32", reference=None):
    names = dict.fromkeys(name.split("/")[0] for name in reference or {})
    description = export.describe(run, dtype=dtype, reference=list(names))
    return scorer.Scorer(description, export.collect(run, reference))


def flax_scores(run, clips):
    """Scores of windows and clips by the path that evaluation takes."""
    score = jax.jit(run.model.apply)
    windows = pipeline.load_windows(
        clips, run.transforms, max_frames=MAX_FRAMES, frames=MAX_FRAMES
    )
    listed = pipeline.describe(clips, MAX_FRAMES, run.transforms)
    each = np.stack([np.asarray(score(one, windows)) for one in run.members])
    return each, evaluate.pooled(each, listed).mean(axis=0), listed


def as_array(scores):
    return np.array([[one[task.name] for task in SCHEMA.tasks] for one in scores])


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_are_those_of_the_flax_model(name):
    preset, options = VARIANTS[name]
    run = make_run(preset, winsorise=1.5 * (name == "synced"), **options)
    clips = make_clips()
    windows, want, listed = flax_scores(run, clips)
    found = make_scorer(run)
    got = as_array(
        found.score_batch(
            [clip.features for clip in clips], [clip.frame_mask for clip in clips]
        )
    )
    # The largest range is 10; raw scores reach about 3.
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-5)
    assert np.ptp(want, axis=0).min() > 1e-3  # The clips differ.
    assert set(listed.window_start[listed.window_clip == 6]) == {0, 24}
    for number, clip in enumerate(clips):
        alone = found.score(clip.features, clip.frame_mask)
        np.testing.assert_allclose(as_array([alone])[0], want[number], atol=1e-5)
        starts, scores = found.windows(clip.features, clip.frame_mask)
        mine = listed.window_clip == number
        np.testing.assert_array_equal(starts, listed.window_start[mine])
        np.testing.assert_allclose(scores, windows[:, mine], rtol=2e-6, atol=1e-5)


def test_members_are_averaged():
    run = make_run(members=3)
    clips = make_clips()
    windows, want, _ = flax_scores(run, clips)
    found = make_scorer(run)
    got = [found.score(clip.features, clip.frame_mask) for clip in clips]
    np.testing.assert_allclose(as_array(got), want, atol=1e-5)
    _, scores = found.windows(clips[2].features, clips[2].frame_mask)
    assert scores.shape == (3, 2, 3)
    assert np.ptp(windows, axis=0).max() > 0.1


def unmeasured(clip, front, behind):
    """The clip with frames around it in which no modality was measured."""

    def longer(rows, fill):
        ends = [(front, behind)] + [(0, 0)] * (rows.ndim - 1)
        return np.pad(rows, ends, constant_values=fill)

    return dataclasses.replace(
        clip,
        features={name: longer(rows, 7) for name, rows in clip.features.items()},
        frame_mask={name: longer(m, False) for name, m in clip.frame_mask.items()},
    )


@pytest.mark.parametrize("name", ["synced", "optimized_mtl"])
def test_unmeasured_frames_around_a_clip_change_no_score(name):
    run = make_run(VARIANTS[name][0], **VARIANTS[name][1])
    judge = make_scorer(run)
    clips = make_clips()
    ends = ((0, 180), (1, 0), (25, 0), (7, 180))
    longer = [unmeasured(clip, *end) for end in ends for clip in clips]
    want = np.tile(flax_scores(run, clips)[1], (len(ends), 1))
    np.testing.assert_allclose(flax_scores(run, longer)[1], want, atol=1e-6)
    want = [judge.score(clip.features, clip.frame_mask) for clip in clips]
    got = [judge.score(clip.features, clip.frame_mask) for clip in longer]
    np.testing.assert_allclose(
        as_array(got), np.tile(as_array(want), (len(ends), 1)), atol=1e-6
    )


def test_a_window_without_a_measured_frame_counts_for_nothing():
    judge, clip = make_scorer(make_run()), make_clips()[6]
    parts = [
        judge.score({name: rows[part] for name, rows in clip.features.items()})
        for part in (slice(MAX_FRAMES), slice(-MAX_FRAMES, None))
    ]
    got = judge.score(clip.features, clip.frame_mask)
    want = as_array(parts).mean(axis=0)
    np.testing.assert_allclose(as_array([got])[0], want, atol=1e-6)
    starts = judge.windows(clip.features, clip.frame_mask)[0]
    np.testing.assert_array_equal(starts, [0, 2 * MAX_FRAMES])
    # Sound alone is enough.
    heard = clip.frame_mask | {"audio": np.ones(3 * MAX_FRAMES, bool)}
    assert len(judge.windows(clip.features, heard)[0]) == 3
    none = {name: np.zeros_like(mask) for name, mask in clip.frame_mask.items()}
    with pytest.raises(scorer.ScorerError, match="no modality has a measured frame"):
        judge.score(clip.features, none)


def test_modality_left_out_is_one_that_is_masked():
    found = make_scorer(make_run())
    clip = make_clips()[1]
    less = {name: x for name, x in clip.features.items() if name != "audio"}
    assert found.score(less) == found.score(clip.features, clip.frame_mask)


def test_every_field_of_the_network_is_known():
    fields = {field.name for field in dataclasses.fields(evaluator.Evaluator)}
    outside = {"modalities", "ranges", "max_frames", "parent", "name"}
    assert set(scorer.OPTIONS) == fields - outside | {"preset"}
    for name, choices in models._CHOICES.items():
        assert scorer.OPTIONS[name] == choices


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_follow_from_the_options(name):
    preset, options = VARIANTS[name]
    run = make_run(preset, members=2, **options)
    wanted = scorer.contents(export.describe(run))
    arrays = export.collect(run)
    assert {k: v.shape for k, v in arrays.items()} == {
        name: shape for name, (_, shape) in wanted.items()
    }


def test_gelu_is_the_exact_one():
    x = np.linspace(-9, 9, 20001).astype(np.float32)
    x = np.concatenate([x, np.float32([-1e20, -40, 0, 40, 1e20])])
    exact = np.array([v / 2 * math.erfc(-v / math.sqrt(2)) for v in x.tolist()])
    half = x / 2
    with np.errstate(over="ignore"):
        scorer._gelu(half, scorer._Room())
    error = np.abs(half - exact)
    assert error.max() <= 2e-7 * max(1, np.abs(x).max())
    assert error[np.abs(x) < 2].max() < 2.5e-7
    assert (error / np.maximum(1, np.abs(x))).max() < 2e-7


def test_large_logits_do_not_overflow():
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 2, 7, 4)).astype(np.float32)
    out = np.empty((2, 7, 4), np.float32)
    for scale in (1, 100):
        logits = np.float64(scale) * query @ key.swapaxes(1, 2)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        want = weights / weights.sum(axis=-1, keepdims=True) @ value
        scorer._attention(np.float32(scale) * query, key, value, out, scorer._Room())
        np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5)


def test_queries_in_parts_are_queries_at_once(monkeypatch):
    clip = make_clips()[1]
    found = make_scorer(make_run())
    want = found.score(clip.features, clip.frame_mask)
    monkeypatch.setattr(scorer, "_PRODUCTS", 500)
    got = found.score(clip.features, clip.frame_mask)
    assert as_array([got]) == pytest.approx(as_array([want]), abs=1e-5)


@pytest.mark.parametrize("name", ["late_window", "early_window"])
def test_windowed_attention_in_blocks_is_that_of_the_flax_model(name, monkeypatch):
    preset, options = VARIANTS[name]
    run = make_run(preset, **options)
    clips = make_clips()
    _, want, _ = flax_scores(run, clips)
    _, unlike, _ = flax_scores(make_run(preset, **options | NO_WINDOW), clips)
    assert np.abs(want - unlike)[1].max() > 1e-3  # The window matters.
    monkeypatch.setattr(scorer, "_FEW", 1)
    found = make_scorer(run)
    got = [found.score(clip.features, clip.frame_mask) for clip in clips]
    np.testing.assert_allclose(as_array(got), want, rtol=2e-6, atol=1e-5)


def test_blocks_see_what_is_near_and_work_is_linear():
    rng = np.random.default_rng(0)
    frames = np.flatnonzero(rng.random(400) < 0.6)
    for window in (1, 7, 40):
        seen = np.zeros((len(frames), len(frames)), bool)
        work = 0
        for part, near, there in scorer._bands(frames, window):
            seen[part, near] = there
            work += there.size
        near = np.abs(frames[:, None] - frames) <= window
        np.testing.assert_array_equal(seen, near)
        block = max(window, scorer._FEW)
        assert work <= len(frames) * (block / 0.4 + 2 * window + 1)


@pytest.mark.parametrize("name", ["synced", "optimized_mtl"])
def test_windows_are_scored_alone_or_together(name, monkeypatch):
    preset, options = VARIANTS[name]
    clip = make_clips()[2]  # Its first window is empty.
    assert not any(mask[:MAX_FRAMES].any() for mask in clip.frame_mask.values())
    found = make_scorer(make_run(preset, **options))
    _, together = found.windows(clip.features, clip.frame_mask)
    monkeypatch.setattr(scorer, "_GROUP", 1)
    _, alone = found.windows(clip.features, clip.frame_mask)
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_threads_do_not_disturb_each_other():
    found = make_scorer(make_run())
    clips = make_clips() * 10
    want = [found.score(clip.features, clip.frame_mask) for clip in clips]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda c: found.score(c.features, c.frame_mask), clips))
    assert got == want


def test_distance_is_in_units_of_its_limit():
    run = make_run()
    rng = np.random.default_rng(0)
    widths = {name: one.width for name, one in run.transforms.items()}
    reference = {}
    for name in ("visual", "sync"):
        reference[f"{name}/mean"] = rng.normal(size=widths[name]).astype("f4")
        reference[f"{name}/scale"] = rng.uniform(0.5, 2, widths[name]).astype("f4")
        reference[f"{name}/limit"] = np.float32(1.5)
    found = make_scorer(run, reference=reference)
    clip = make_clips()[2]
    got = found.distance(clip.features, clip.frame_mask)
    assert list(got) == ["visual"]  # There is no sync in this clip.
    far = []
    for start in found.windows(clip.features, clip.frame_mask)[0]:
        part = slice(start, start + found.max_frames)
        rows = clip.features["visual"][part][clip.frame_mask["visual"][part]]
        if not len(rows):
            continue
        mean = preprocess.apply(run.transforms["visual"], rows).mean(axis=0)
        z = (mean - reference["visual/mean"]) / reference["visual/scale"]
        far.append(np.sqrt((z**2).mean()) / 1.5)
    assert len(far) > 1
    assert got["visual"] == pytest.approx(max(far), rel=1e-5)
    assert make_scorer(run).distance(clip.features, clip.frame_mask) == {}


def test_distance_of_a_long_clip_is_that_of_its_farthest_window():
    run = make_run()
    widths = {name: one.width for name, one in run.transforms.items()}
    reference = {
        "visual/mean": np.zeros(widths["visual"], "f4"),
        "visual/scale": np.ones(widths["visual"], "f4"),
        "visual/limit": np.float32(1),
    }
    found = make_scorer(run, reference=reference)
    frames = 2 * found.max_frames
    raw = np.zeros((frames, run.schema.widths["visual"]), "f4")
    raw[: frames // 2], raw[frames // 2 :] = 100.0, -100.0
    halves = [
        found.distance({"visual": half})["visual"] for half in np.split(raw, 2, axis=0)
    ]
    assert found.distance({"visual": raw})["visual"] == pytest.approx(max(halves))
    assert max(halves) > 1
    # However far, a distance is a number: preprocessing bounds what comes in.
    assert found.distance({"visual": raw * np.float32(1e30)})["visual"] > 100


def test_what_the_run_says_comes_along(tmp_path):
    run = make_run(results={"confidence": {"any": [1, {"thing": None}]}})
    path = tmp_path / "scorer.npz"
    path.write_bytes(export.pack(export.describe(run), export.collect(run)))
    found = scorer.load(path)
    assert found.confidence == {"any": [1, {"thing": None}]}
    assert found.schema == SCHEMA.to_json()
    assert found.max_frames == MAX_FRAMES


def rows(name, frames=4, width=None):
    return {name: np.ones((frames, width or RAW[name]), np.float32)}


@pytest.mark.parametrize(
    ("features", "masks", "message"),
    [
        (rows("visual", width=7), None, r"visual has shape \(4, 7\); expected .* 12\)"),
        ({"visual": np.ones(12)}, None, r"shape \(12,\)"),
        (
            {"smell": np.ones((4, 2))},
            None,
            "unknown modality 'smell'; .* visual, audio",
        ),
        (rows("visual"), {"smell": np.ones(4, bool)}, "unknown mask 'smell'"),
        (rows("visual"), {"visual": np.ones(3, bool)}, r"expected bool \(4,\)"),
        (rows("visual"), {"visual": np.ones(4)}, "float64"),
        (rows("visual"), {"visual": np.zeros(4, bool)}, "no modality has a measured"),
        ({}, None, "no modality has a measured"),
        (rows("visual", frames=0), None, "no modality has a measured"),
        (rows("visual") | rows("audio", frames=5), None, "visual 4, audio 5"),
        ({"visual": [["a"] * 12]}, None, "expected numbers"),
        ({"visual": np.full((2, 12), None)}, None, "holds object"),
        ({"visual": [[1.0] * 12, [1.0]]}, None, "visual is no array"),
    ],
)
def test_unusable_features_are_refused(features, masks, message):
    found = make_scorer(make_run())
    with pytest.raises(scorer.ScorerError, match=message):
        found.score(features, masks)


def test_other_kinds_of_numbers_are_taken():
    found = make_scorer(make_run())
    values = np.arange(48).reshape(4, 12) % 7
    want = found.score({"visual": values.astype(np.float32)})
    assert found.score({"visual": values}) == want
    assert found.score({"visual": values.astype(np.float64).tolist()}) == want
    assert found.score({"visual": np.asfortranarray(values.astype(np.float16))}) == want
    huge = np.where(np.arange(48).reshape(4, 12) == 5, 1e300, values)
    nan = np.where(np.arange(48).reshape(4, 12) == 5, np.nan, values)
    assert found.score({"visual": huge}) == found.score({"visual": nan})


def test_the_features_of_the_caller_are_left_alone():
    found = make_scorer(make_run(winsorise=1.5))
    clip = make_clips()[2]
    before = {name: x.copy() for name, x in clip.features.items()}
    found.score(clip.features, clip.frame_mask)
    found.score(clip.features)
    for name, x in clip.features.items():
        np.testing.assert_array_equal(x, before[name])


ALONE = """
import sys

class OnlyNumPy:
    def find_spec(self, name, path=None, target=None):
        root = name.split(".")[0]
        if root not in sys.stdlib_module_names | {"numpy", "scorer"}:
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, OnlyNumPy())
sys.path[:0] = ["", NUMPY]
import scorer
for name in ("jax", "scipy", "tqa_jax"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} could be imported")
raise SystemExit(scorer.main(["scorer.npz", "features.npz"]))
"""


def alone(folder):
    numpy = str(pathlib.Path(np.__file__).parent.parent)
    # Isolated, and without the site packages: just what the code adds itself.
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", ALONE.replace("NUMPY", repr(numpy))],
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )


def test_file_alone_scores_features_where_only_numpy_is(tmp_path):
    clip = make_clips()[2]
    arrays = {**clip.features}
    arrays |= {f"{name}/mask": mask for name, mask in clip.frame_mask.items()}
    np.savez(tmp_path / "features.npz", **arrays)
    (tmp_path / "scorer.npz").write_bytes(packed())
    shutil.copy(scorer.__file__, tmp_path)
    done = alone(tmp_path)
    assert done.returncode == 0, done.stderr
    _, want, _ = flax_scores(make_run(), [clip])
    np.testing.assert_allclose(as_array([json.loads(done.stdout)]), want, atol=1e-5)
    np.savez(tmp_path / "features.npz", visual=np.ones((3, 2)))
    done = alone(tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: visual has shape (3, 2); expected (frames, 12)\n"
    np.savez(tmp_path / "features.npz", visual=np.full((3, 12), None))
    done = alone(tmp_path)
    assert done.returncode == 2 and "pickle" in done.stderr
