import math

import cv2
import numpy as np
import pytest
import scipy.stats

from extract.backends import nss

skimage_data = pytest.importorskip("skimage.data")


def _portrait() -> np.ndarray:
    return np.ascontiguousarray(skimage_data.astronaut()[0:256, 96:352])


def _points() -> np.ndarray:
    """Landmarks in a circle on the portrait's face, eyes and mouth in place."""
    angles = np.linspace(0, 2 * np.pi, 478)
    points = np.zeros((478, 3), np.float32)
    points[:, 0] = 0.5 + 0.2 * np.cos(angles)
    points[:, 1] = 0.45 + 0.25 * np.sin(angles)
    for indices, centre in ((nss._EYES, (0.5, 0.38)), (nss._MOUTH, (0.5, 0.58))):
        ring = np.linspace(0, 2 * np.pi, len(indices))
        points[list(indices), 0] = centre[0] + 0.12 * np.cos(ring)
        points[list(indices), 1] = centre[1] + 0.05 * np.sin(ring)
    return points


def _measure(pictures) -> dict[str, np.ndarray]:
    state = nss.State()
    values = nss.finish([nss.row(picture, _points(), state) for picture in pictures])
    return {name: values[:, i] for i, name in enumerate(nss.FEATURES)}


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0])
def test_the_gaussian_fit_finds_its_shape(shape):
    rng = np.random.default_rng(0)
    values = scipy.stats.gennorm.rvs(shape, size=200_000, random_state=rng)
    ratio = np.abs(values).mean() ** 2 / (values**2).mean()
    assert nss._shape(ratio) == pytest.approx(shape, rel=0.05)


def test_normalised_pictures_equal_a_plain_loop():
    patch = cv2.cvtColor(_portrait(), cv2.COLOR_RGB2GRAY).astype(np.float32)[:40, :40]
    kernel = cv2.getGaussianKernel(7, 7 / 6)
    weights = kernel @ kernel.T
    window = patch[10:17, 20:27]
    mean = (weights * window).sum()
    deviation = math.sqrt((weights * window**2).sum() - mean**2)
    expected = (patch[13, 23] - mean) / (deviation + 1)
    assert nss.normalised(patch)[13, 23] == pytest.approx(expected, abs=1e-4)


def test_blur_noise_and_blocks_move_their_features():
    portrait = _portrait()
    rng = np.random.default_rng(0)
    noisy = np.clip(portrait + rng.normal(0, 12, portrait.shape), 0, 255)
    ok, code = cv2.imencode(".jpg", portrait, [cv2.IMWRITE_JPEG_QUALITY, 8])
    assert ok
    clean, blurred, noised, blocky = (
        {name: values[0] for name, values in _measure([picture]).items()}
        for picture in (
            portrait,
            cv2.GaussianBlur(portrait, (9, 9), 2),
            noisy.astype(np.uint8),
            cv2.imdecode(code, cv2.IMREAD_COLOR),
        )
    )
    for crop in ("face", "eyes", "mouth"):
        name = f"{crop}_log_sharpness"
        assert blurred[name] < clean[name] < noised[name]
        assert noised[f"{crop}_log_noise"] > clean[f"{crop}_log_noise"]
    for axis in ("horizontal", "vertical"):
        assert blocky[f"blockiness_{axis}"] > clean[f"blockiness_{axis}"] + 0.5
    grey = np.repeat(portrait.mean(axis=-1, keepdims=True), 3, axis=-1)
    plain = _measure([grey.astype(np.uint8)])
    assert plain["face_colourfulness"][0] < 0.5 < clean["face_colourfulness"]


def test_temporal_features_see_frozen_and_moving_pictures():
    portrait = _portrait()
    moved = np.roll(portrait, 2, axis=1)
    brighter = np.clip(portrait.astype(int) + 10, 0, 255).astype(np.uint8)
    found = _measure([portrait, portrait, moved, moved, portrait, brighter])
    still = found["face_still_share"]
    assert still[1] == still[3] == 1.0 and still[2] < 0.6
    change = found["face_log_change"]
    assert change[1] == pytest.approx(math.log(0.01))
    assert change[2] > 0 and change[2] == pytest.approx(change[4])
    assert found["face_brightness_change"][5] == pytest.approx(10, abs=0.5)
    # The first row has no row before it: it takes the next row's.
    assert change[0] == change[1] and still[0] == still[1]


def test_rows_without_a_face_are_missing_and_nothing_else_is():
    portrait, points = _portrait(), _points()
    state = nss.State()
    rows = [nss.row(portrait, p, state) for p in (None, points, None, points, points)]
    values = nss.finish(rows)
    np.testing.assert_array_equal(
        np.isnan(values).all(axis=-1), [True, False, True, False, False]
    )
    assert np.isfinite(values[[1, 3, 4]]).all()


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("size", [(16, 16), (64, 48), (1080, 1920)])
def test_any_picture_gives_finite_small_numbers(level, size):
    picture = np.full((*size, 3), level, np.uint8)
    state = nss.State()
    rows = [nss.row(picture, _points(), state) for _ in range(2)]
    values = nss.finish(rows)
    assert np.isfinite(values).all() and np.abs(values).max() < 1000
