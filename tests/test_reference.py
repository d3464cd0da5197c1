"""Distance of input to the training windows."""

import numpy as np

from tqa_jax import batch, reference


def make_batch(rng, shift=0.0, clips=50):
    features = {
        "visual": (rng.normal(size=(clips, 6, 3)) + shift).astype(np.float32),
        "audio": np.zeros((clips, 6, 2), np.float32),
    }
    mask = {name: rng.uniform(size=(clips, 6)) < 0.8 for name in features}
    mask["visual"][0] = False
    features["visual"][~mask["visual"]] = 1e6  # Nothing may read it.
    return batch.Batch(features, mask, np.zeros((clips, 1)), np.ones((clips, 1), bool))


def test_means_are_over_measured_frames_of_windows_that_have_one():
    one = make_batch(np.random.default_rng(0))
    found = reference.means(one.features["visual"], one.frame_mask["visual"])
    wanted = [
        rows[there].mean(axis=0)
        for rows, there in zip(
            one.features["visual"], one.frame_mask["visual"], strict=True
        )
        if there.any()
    ]
    assert len(wanted) < 50
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_99_percent_of_training_windows_are_within_the_limit():
    rng = np.random.default_rng(1)
    parts = [make_batch(rng) for _ in range(20)]
    fitted = reference.fit(lambda: iter(parts))
    rows = np.concatenate(
        [reference.means(p.features["visual"], p.frame_mask["visual"]) for p in parts]
    )
    np.testing.assert_allclose(fitted["visual"]["mean"], rows.mean(axis=0), rtol=1e-5)
    inside = reference.distance(fitted["visual"], rows) <= 1
    np.testing.assert_allclose(inside.mean(), 0.99, atol=0.002)


def test_other_input_is_far_away_and_constant_features_do_not_matter():
    rng = np.random.default_rng(2)
    fitted = reference.fit(lambda: iter([make_batch(rng, clips=400)]))
    new = make_batch(rng)
    odd = make_batch(rng, shift=4.0)
    for found, far in ((new, False), (odd, True)):
        rows = reference.means(found.features["visual"], found.frame_mask["visual"])
        distances = reference.distance(fitted["visual"], rows)
        assert (distances > 2).all() if far else (distances < 1.5).all()
    rows = reference.means(new.features["audio"], new.frame_mask["audio"])
    assert np.isfinite(reference.distance(fitted["audio"], rows)).all()


def test_what_is_saved_is_what_was_fitted(tmp_path):
    fitted = reference.fit(lambda: iter([make_batch(np.random.default_rng(3))]))
    reference.save(tmp_path / "reference.npz", fitted)
    assert [file.name for file in tmp_path.iterdir()] == ["reference.npz"]
    with np.load(tmp_path / "reference.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {
            f"{name}/{field}"
            for name in ("visual", "audio")
            for field in ("mean", "scale", "limit")
        }
        np.testing.assert_allclose(arrays["visual/mean"], fitted["visual"]["mean"])
