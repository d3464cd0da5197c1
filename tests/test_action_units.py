import numpy as np
import pytest

from extract import landmarks
from extract.backends import blendshapes, geometry, openface


def test_units_are_in_openface_order():
    expected = (
        "AU01 AU02 AU04 AU05 AU06 AU07 AU09 AU10 AU12 AU14 AU15 AU17 AU20 AU23 AU25 "
        "AU26 AU45"
    )
    assert " ".join(blendshapes.FEATURES) == expected


@pytest.mark.parametrize(
    "shapes, unit, expected",
    [
        ({"browInnerUp": 0.5}, 1, 2.5),
        ({"eyeBlinkLeft": 1.0}, 45, 2.5),
        ({"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0}, 45, 5.0),
        ({"jawOpen": 0.6}, 26, 3.0),
        ({"jawOpen": 0.6, "mouthClose": 0.2}, 25, 2.0),
        ({"mouthClose": 0.4}, 25, 0.0),
        ({"mouthLowerDownLeft": 0.8, "mouthLowerDownRight": 0.4}, 25, 3.0),
    ],
)
def test_blendshapes_map_to_units(shapes, unit, expected):
    activations = np.zeros((2, 52), np.float32)
    for name, value in shapes.items():
        activations[0, landmarks.BLENDSHAPES.index(name)] = value
    found = blendshapes.from_blendshapes(activations)
    column = openface.UNITS.index(unit)
    assert found[0, column] == pytest.approx(expected)
    np.testing.assert_array_equal(found[1], 0)
    assert found[0].sum() >= expected and found.max() <= 5


def test_missing_blendshapes_stay_missing():
    assert np.isnan(blendshapes.from_blendshapes(np.full((1, 52), np.nan))).all()


def _faces(count: int) -> np.ndarray:
    """Mesh points at random places of a picture, the last row missing."""
    points = np.random.default_rng(0).uniform(0.2, 0.8, (count, 478, 3))
    points[-1] = np.nan
    return points


def _older(points: np.ndarray) -> dict[int, float]:
    """The older system's distances of one face, unit by unit, written out."""

    def d(i: int, j: int) -> float:
        return float(np.sqrt(((points[i] - points[j]) ** 2).sum()))

    units = {
        1: (d(65, 8) + d(295, 8)) / 2,
        2: (d(105, 8) + d(334, 8)) / 2,
        4: d(66, 296),
        5: (d(159, 145) + d(386, 374)) / 2,
        6: (d(133, 61) + d(362, 291)) / 2,
        9: d(5, 6),
        10: d(13, 8),
        12: (d(61, 152) + d(291, 377)) / 2,
        17: d(17, 8),
        20: d(61, 291),
        25: d(13, 17),
        26: 1.2 * d(13, 17),
        23: 1 / (d(13, 17) + 1e-6),
        28: 1 / (d(61, 291) + 1e-6),
    }
    units[7] = 1 / (units[5] + 1e-6)
    units[14] = 1 / (units[12] + 1e-6)
    units[15] = 0.8 * units[14]
    return units


def test_geometry_is_the_older_systems_distances_in_its_order():
    points = _faces(4)
    found = geometry.from_geometry(points)
    order = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 28)
    for row in range(3):
        expected = _older(points[row])
        np.testing.assert_allclose(found[row], [expected[u] for u in order], rtol=1e-6)
    assert np.isnan(found[3]).all() and found.dtype == np.float32
    np.testing.assert_array_equal(geometry.from_geometry(points[:, :468]), found)
    assert geometry.FEATURES[-1] == "AU28_distance"


def test_rows_divided_by_their_maximum_come_back_as_they_were_measured():
    points = _faces(200)[:-1]
    points[:50] *= 1e-2  # small faces: the constant beside the distance then matters
    points[50, 145], points[50, 374] = points[50, 159], points[50, 386]  # eyes shut
    exact = geometry.from_geometry(points).astype(np.float64)
    old = (exact / exact.max(axis=-1, keepdims=True)).astype(np.float32)
    assert np.abs(old - exact).max() > 0.5
    found, scaled = geometry.undo_scaling(old)
    assert scaled.all()
    np.testing.assert_allclose(found, exact, rtol=1e-5)
