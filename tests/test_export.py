"""Exported files: what they hold, what storage costs, and that they score the same."""

import json

import jax
import ml_collections
import numpy as np
import pytest

from tests import test_scorer
from tqa_jax import export, preprocess, schema, scorer
from tqa_jax import run as run_lib


@pytest.fixture(scope="module")
def run():
    return test_scorer.make_run(members=2, depth=1, paths="a", head_hidden=(8,))


@pytest.fixture
def command(run, monkeypatch, tmp_path):
    """Runs the command on the run that was never trained."""
    monkeypatch.setattr(run_lib.Run, "load", lambda workdir: run)

    def call(*arguments, out="scorer.npz"):
        (tmp_path / "run").mkdir(exist_ok=True)
        return export.main(
            [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / out}", *arguments]
        )

    return call


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_command_writes_a_scorer_and_states_its_error(
    dtype, run, command, tmp_path, capsys
):
    assert command(f"--dtype={dtype}") == 0
    said = capsys.readouterr().out
    path = tmp_path / "scorer.npz"
    assert f"{path.stat().st_size / 1e6:.2f} MB, loads in" in said
    assert "members: 2, tasks: lip_sync, liked, overall" in said
    found, exact = scorer.load(path), test_scorer.make_scorer(run)
    clips = export.random_clips(run, 32)
    error = max(
        abs(one[task] - other[task])
        for one, other in zip(
            found.score_batch(clips), exact.score_batch(clips), strict=True
        )
        for task in one
    )
    if dtype == "float32":
        assert error == 0
        assert "float32 moves" not in said
    else:
        # Scores range over 10; bfloat16 keeps 8 bits of a weight, float16 11.
        assert 1e-6 < error < (0.3 if dtype == "bfloat16" else 0.04)
        assert f"{dtype} moves a score by at most {error:.2g} of float32's" in said
    assert not list(tmp_path.glob("*.part"))


def test_half_the_bytes_of_weights_take_half_the_file(run):
    arrays = export.collect(run)
    sizes = {
        dtype: len(export.pack(export.describe(run, dtype=dtype), arrays))
        for dtype in export.DTYPES
    }
    weights = 4 * sum(a.size for n, a in arrays.items() if n.startswith("params/"))
    assert abs(sizes["float16"] - sizes["bfloat16"]) == 1  # The longer word.
    assert sizes["float32"] - sizes["float16"] >= weights / 2


def test_equal_input_gives_equal_bytes(run):
    arrays = export.collect(run)
    one, other = (export.pack(export.describe(run), arrays) for _ in range(2))
    assert one == other


def test_random_features_are_those_of_training(run):
    clips = export.random_clips(run, 200)
    for name, transform in run.transforms.items():
        rows = np.concatenate([clip[name] for clip in clips])
        out = preprocess.apply(transform, rows)
        varying = np.ones(out.shape[1], bool)
        if not transform.components.shape[1]:
            varying = transform.scale > 0
        np.testing.assert_allclose(out[:, varying].mean(axis=0), 0, atol=0.25)
        np.testing.assert_allclose(out[:, varying].std(axis=0), 1, atol=0.15)
        assert not out[:, ~varying].any()


@pytest.mark.parametrize(("dtype", "value"), [("float16", 7e4), ("bfloat16", 3.4e38)])
def test_weight_that_does_not_fit_is_refused(run, dtype, value):
    arrays = export.collect(run)
    arrays["params/pool_dense/bias"] = arrays["params/pool_dense/bias"].copy()
    arrays["params/pool_dense/bias"][1, 3] = value
    with pytest.raises(schema.InputError, match="pool_dense/bias holds .*" + dtype):
        export.pack(export.describe(run, dtype=dtype), arrays)


def test_arrays_that_do_not_fit_the_options_are_refused(run):
    arrays = export.collect(run)
    arrays["params/pool_dense/bias"] = np.zeros((2, 3), np.float32)
    with pytest.raises(schema.InputError, match=r"pool_dense/bias has shape \(2, 3\)"):
        export.pack(export.describe(run), arrays)


def test_training_statistics_are_taken_along(run, command, tmp_path):
    (tmp_path / "run").mkdir()
    width = run.transforms["sync"].width
    np.savez(
        tmp_path / "run" / "reference.npz",
        **{
            "sync/mean": np.zeros(width),
            "sync/scale": np.ones(width),
            "sync/limit": np.float64(2.0),
        },
    )
    assert command() == 0
    found = scorer.load(tmp_path / "scorer.npz")
    transform = run.transforms["sync"]
    rows = np.tile(transform.mean + 3 / transform.scale, (4, 1))
    assert found.distance({"sync": rows}) == {"sync": pytest.approx(1.5, rel=1e-5)}


def test_stablehlo_reloads_for_three_platforms_and_scores_equally(
    run, command, tmp_path, capsys
):
    assert command("--format=stablehlo", out="scorer.stablehlo") == 0
    assert "scorer.stablehlo: " in capsys.readouterr().out
    data = (tmp_path / "scorer.stablehlo").read_bytes()
    loaded = jax.export.deserialize(bytearray(data))
    assert set(loaded.platforms) == {"cpu", "cuda", "tpu"}
    found = test_scorer.make_scorer(run)
    clips = [
        clip
        for clip in test_scorer.make_clips()
        if clip.frames <= test_scorer.MAX_FRAMES
    ]
    for clip in clips[:2]:  # Two lengths.
        features = {
            name: np.stack([x, x + 1]).astype(np.float32)
            for name, x in clip.features.items()
        }
        masks = {name: np.stack([x, x]) for name, x in clip.frame_mask.items()}
        scores = np.asarray(loaded.call(features, masks))
        for i in range(2):
            want = found.score(
                {name: x[i] for name, x in features.items()}, clip.frame_mask
            )
            np.testing.assert_allclose(scores[i], list(want.values()), atol=1e-4)
    described = json.loads((tmp_path / "scorer.stablehlo.json").read_text())
    assert described["schema"] == test_scorer.SCHEMA.to_json()
    assert described["max_frames"] == test_scorer.MAX_FRAMES


def test_mistakes_are_one_line(command, tmp_path, capsys, monkeypatch):
    assert command("--format=stablehlo", "--dtype=float16") == 2
    assert capsys.readouterr().err.startswith("error: --format=stablehlo stores")
    assert command(out="no/such/folder.npz") == 2
    assert "cannot be written" in capsys.readouterr().err
    monkeypatch.undo()
    assert export.main([f"--workdir={tmp_path}", "--out=x.npz"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no run")


def test_options_of_a_configuration_become_json(run):
    options = dict(run.model.options)
    options["embedder_hidden"] = ml_collections.ConfigDict({"audio": 5})
    described = export.describe(run.but(model=run.model._replace(options=options)))
    assert json.loads(json.dumps(described)) == described
    assert described["options"]["embedder_hidden"] == {"audio": 5}
