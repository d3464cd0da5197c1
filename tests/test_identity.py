"""Drift of a face's proportions, from its mesh."""

import numpy as np
import pytest
from scipy.spatial import transform

from extract import backends, clip
from extract.backends import identity
from tests import media


@pytest.fixture(scope="module")
def face():
    """A symmetric face of 478 points, ears at x = -1 and 1, forehead at y = -1."""
    points = np.random.default_rng(0).normal(0, 0.5, (478, 3))
    for left, right in identity._PAIRS:
        points[right] = points[left] * [-1, 1, 1]
    points[list(identity._MIDLINE), 0] = 0
    points[234], points[454] = [-1, 0.1, 0.4], [1, 0.1, 0.4]
    points[10], points[2] = [0, -1, 0], [0, 0.5, -0.3]
    return points


def measure(rows, aspect=1.0):
    return dict(zip(identity.FEATURES, identity.features(rows, aspect).T, strict=True))


def test_a_head_that_moves_as_a_whole_does_not_drift(face):
    at = np.arange(100)[:, None] / 25
    angles = 0.3 * np.sin(at * [1.0, 1.7, 2.3])
    turned = transform.Rotation.from_euler("xyz", angles).as_matrix()
    rows = np.einsum("pi,tji->tpj", face, turned) * (0.1 + 0.01 * np.sin(at))[..., None]
    rows += 0.5 + 0.1 * np.cos(at)[:, None]
    wide = rows / [16 / 9, 1, 16 / 9]  # in picture widths and heights
    for values in measure(wide, 16 / 9).values():
        np.testing.assert_allclose(values, 0, atol=1e-3)


def test_lips_jaw_and_brows_do_not_count(face):
    rows = np.repeat(face[None], 60, axis=0)
    rows[:, [13, 14, 17, 61, 291, 152, 70, 105, 300]] += np.random.default_rng(
        1
    ).normal(size=(60, 9, 3))
    for values in measure(rows).values():
        np.testing.assert_allclose(values, 0, atol=1e-3)


def test_a_face_that_widens_has_the_change_of_its_proportion(face):
    growth = 1 + 0.06 * np.linspace(0, 1, 201)
    values = measure(face * np.stack([growth, growth**0, growth**0], -1)[:, None])
    expected = 100 * np.log(growth / growth[100])
    inner = slice(13, -13)  # the second around them is whole
    np.testing.assert_allclose(
        values["width_over_height_pct"][inner], expected[inner], atol=0.05
    )
    drift = values["drift_from_median_pct"]
    assert drift[100] < 0.02 and (np.diff(drift[100:-13]) > 0).all()
    a_second = values["drift_in_a_second_pct"][38:-13]
    np.testing.assert_allclose(a_second, a_second.mean(), rtol=0.1)
    np.testing.assert_allclose(drift[125], a_second.mean(), rtol=0.1)


def test_a_change_of_face_is_a_step_and_rows_without_one_are_nan(face):
    other = face.copy()
    other[[4, 5, 1]] += [0, 0.2, 0]  # a longer nose
    rows = np.repeat(face[None], 150, axis=0)
    rows[90:] = other
    rows[[20, 21, 130]] = np.nan
    values = measure(rows)
    seen = np.isfinite(rows[:, 0, 0])
    for column in values.values():
        np.testing.assert_array_equal(np.isfinite(column), seen)
    drift, change = list(values.values())[:2]
    np.testing.assert_allclose(drift[:75][seen[:75]], 0, atol=1e-3)
    assert drift[110] > 1
    assert np.nanargmax(change) in range(90, 116)
    np.testing.assert_allclose(change[140:], 0, atol=1e-3)
    assert np.isnan(identity.features(np.full((5, 478, 3), np.nan), 1.0)).all()


def test_it_joins_the_mesh(tmp_path):
    path = media.face(tmp_path / "a.mp4", 1.0)
    options = backends.options(keypoints="facelandmarker+identity")
    (described,) = (m for m in backends.check(options) if m.name == "keypoints")
    assert described.width == 1404 + 3
    names = ["keypoints/facelandmarker", "keypoints/identity"]
    found = clip.observe(path, options, names)
    drift = found.parts["keypoints/identity"]
    assert found.frame_mask["keypoints"].all() and np.isfinite(drift).all()
    assert np.abs(drift).max() < 3  # a still picture that sways
