"""Preprocessing against scikit-learn, and what must never leak or blow up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import decomposition, impute, preprocessing

from tqa_jax import preprocess, schema


def make_rows(rows=300, width=12, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, width)) @ rng.normal(size=(width, width))
    return (mixed * rng.uniform(0.1, 30, width) + 5).astype(np.float32)


def fit(rows, pca=0, chunks=7, **options):
    parts = [{"visual": part} for part in np.array_split(rows, chunks)]
    return preprocess.fit(
        lambda: parts, {"visual": rows.shape[1]}, pca={"visual": pca}, **options
    )["visual"]


def test_equals_scikit_learn_up_to_one_factor():
    rows = make_rows()
    rows[3, 2] = np.nan
    rows[10:14, 5] = np.nan
    imputed = impute.SimpleImputer(strategy="median").fit_transform(rows)
    scaled = preprocessing.StandardScaler().fit_transform(imputed.astype(np.float64))
    pca = decomposition.PCA(4, svd_solver="full").fit(scaled)
    want = pca.transform(scaled)
    transform = fit(rows, pca=4)
    found = preprocess.apply(transform, rows)
    signs = np.sign((want * found).sum(axis=0))
    factor = np.sqrt((found**2).sum() / (want**2).sum())
    np.testing.assert_allclose(found, want * signs * factor, atol=2e-5)
    assert transform.explained == pytest.approx(
        pca.explained_variance_ratio_.sum(), 1e-6
    )
    assert found.var(axis=0).mean() == pytest.approx(1, rel=1e-5)


def test_without_pca_it_is_a_z_score():
    rows = make_rows()
    found = preprocess.apply(fit(rows), rows)
    want = preprocessing.StandardScaler().fit_transform(rows.astype(np.float64))
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("winsorise", [0.0, 1.5])
def test_applying_leaves_the_given_rows_as_they_are(winsorise):
    rows = make_rows()
    rows[3, 2] = np.nan
    given = rows.copy()
    preprocess.apply(fit(rows, winsorise=winsorise), rows)
    np.testing.assert_array_equal(rows, given)


def test_number_of_chunks_changes_nothing():
    rows = make_rows()
    one, many = fit(rows, 4, chunks=1), fit(rows, 4, chunks=50)
    np.testing.assert_allclose(one.components, many.components, atol=1e-6)
    np.testing.assert_array_equal(one.median, many.median)


def test_winsorising_moves_values_to_tukeys_fences():
    rows = make_rows()
    rows[7, 0] = 1e4
    transform = fit(rows, winsorise=1.5)
    lower, upper = np.percentile(rows[:, 0], (25, 75))
    fence = upper + 1.5 * (upper - lower)
    assert transform.high[0] == pytest.approx(fence, rel=1e-5)
    at_fence = rows[7].copy()
    at_fence[0] = fence
    np.testing.assert_allclose(
        preprocess.apply(transform, rows[7]),
        preprocess.apply(transform, at_fence),
        rtol=1e-5,
    )


def test_constant_and_never_measured_features_give_zero():
    rows = make_rows()
    rows[:, 1] = 3.7
    rows[:, 2] = np.nan
    found = preprocess.apply(fit(rows), rows)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:, 1:3], 0)
    assert np.isfinite(preprocess.apply(fit(rows, pca=4), rows)).all()


@pytest.mark.parametrize("chunks", [1, 50])
def test_winsorising_leaves_a_sparse_feature_alone(chunks):
    rows = make_rows()
    rows[:, 1] = np.arange(300) % 10 == 0  # Both quartiles are 0.
    rows[:, 2] = 3 + 2 * (np.arange(300) % 7 == 0)
    found = preprocess.apply(fit(rows, winsorise=1.5, chunks=chunks), rows)
    want = preprocessing.StandardScaler().fit_transform(rows.astype(np.float64))
    np.testing.assert_allclose(found[:, 1:3], want[:, 1:3], atol=1e-5)


@pytest.mark.parametrize("pca", [0, 4])
@pytest.mark.parametrize("winsorise", [0.0, 1.5])
@pytest.mark.parametrize(
    "value", [1e30, 1e37, 3.4e38, -1e37, -3.4e38, np.nan, np.inf, -np.inf]
)
def test_whatever_comes_in_what_comes_out_fits_into_float16(pca, winsorise, value):
    rows = make_rows()
    rows[:, 1] = 3.7
    rows[:, 2] *= 1e-8
    rows[:, 3] *= 1e34  # Its products overflow float32, and not float64.
    transform = fit(rows, pca, winsorise=winsorise)
    wild = rows.copy()
    wild[5] = value
    for xp in (np, jnp):
        found = np.asarray(preprocess.apply(transform, xp.asarray(wild)))
        assert np.isfinite(found.astype(np.float16)).all()
    np.testing.assert_array_equal(
        np.delete(preprocess.apply(transform, wild), 5, axis=0),
        np.delete(preprocess.apply(transform, rows), 5, axis=0),
    )


def test_half_precision_rows_are_not_computed_in_half_precision():
    rows = make_rows().astype(np.float16)
    rows[0, 0] = np.inf  # What a larger number is stored as.
    transform = fit(rows.astype(np.float32), 4)
    np.testing.assert_array_equal(
        preprocess.apply(transform, rows),
        preprocess.apply(transform, rows.astype(np.float32)),
    )


def test_modality_that_is_constant_in_training_has_components_of_ordinary_size():
    transform = fit(np.full((50, 12), 3.7, np.float32), pca=4)
    assert np.abs(transform.components).max() <= 1
    rows = make_rows()
    np.testing.assert_array_equal(preprocess.apply(transform, rows), 0)


def test_infinity_is_imputed_like_nan():
    rows = make_rows()
    transform = fit(rows)
    one, other = rows[:1].copy(), rows[:1].copy()
    one[0, 3], other[0, 3] = np.inf, np.nan
    np.testing.assert_array_equal(
        preprocess.apply(transform, one), preprocess.apply(transform, other)
    )


def test_jax_applies_the_same():
    rows = make_rows()
    rows[0, 0] = np.nan
    transform = fit(rows, pca=4)
    found = jax.jit(lambda x: preprocess.apply(transform, x))(jnp.asarray(rows))
    np.testing.assert_allclose(found, preprocess.apply(transform, rows), atol=1e-5)


def test_narrow_modality_is_passed_through():
    rows = make_rows(width=6)
    assert fit(rows, pca=6).width == 6
    assert fit(rows, pca=100).components.shape == (6, 0)
    assert fit(rows, pca=5).width == 5


def test_modality_never_measured_is_an_error():
    with pytest.raises(schema.InputError, match="'visual' has no measured frame"):
        fit(np.empty((0, 3), np.float32))


def test_medians_of_a_large_set_come_from_a_fair_sample(monkeypatch):
    monkeypatch.setattr(preprocess, "_SAMPLE_ROWS", 400)
    rng = np.random.default_rng(0)
    rows = np.sort(rng.normal(size=(4000, 2)).astype(np.float32), axis=0)
    found = fit(rows, chunks=13).median
    np.testing.assert_allclose(found, np.median(rows, axis=0), atol=0.15)


def test_saved_transforms_come_back_equal(tmp_path):
    transforms = {"visual": fit(make_rows(), 4), "audio": fit(make_rows(width=3))}
    preprocess.save(tmp_path / "p.npz", transforms)
    found = preprocess.load(tmp_path / "p.npz")
    rows = make_rows()
    for name, width in (("visual", 12), ("audio", 3)):
        np.testing.assert_array_equal(
            preprocess.apply(found[name], rows[:, :width]),
            preprocess.apply(transforms[name], rows[:, :width]),
        )
    assert [p.name for p in tmp_path.iterdir()] == ["p.npz"]
