"""BRISQUE of face and mouth, against the package that ships its parameters."""

import importlib.util
import warnings

import cv2
import numpy as np
import pytest

from extract import backends, clip
from extract.backends import naturalness
from tests import media
from tqa_jax import cli, schema

needs = pytest.mark.skipif(
    importlib.util.find_spec("brisque") is None, reason="needs the brisque extra"
)


def damaged():
    """A photograph, whole and in ways that it can be spoilt, RGB."""
    import skimage.data

    whole = np.ascontiguousarray(skimage.data.astronaut())
    noise = np.random.default_rng(0).normal(0, 25, whole.shape)
    _, code = cv2.imencode(".jpg", whole, [cv2.IMWRITE_JPEG_QUALITY, 10])
    return {
        "whole": whole,
        "blurred": cv2.GaussianBlur(whole, (0, 0), 1.5),
        "noisy": np.clip(whole + noise, 0, 255).astype(np.uint8),
        "coded": cv2.imdecode(code, cv2.IMREAD_COLOR),
    }


@needs
def test_a_picture_is_judged_as_by_the_package():
    pytest.importorskip("libsvm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import skimage.color
        from brisque import BRISQUE

        package = BRISQUE()
        model, opinions = naturalness.regression(), {}
        for name, pixels in damaged().items():
            grey = skimage.color.rgb2gray(pixels)
            half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
            statistics = [
                np.ravel(value).astype(float)
                for scale in (grey, half)
                for value in package.calculate_brisque_features(scale)
            ]
            statistics = np.concatenate(statistics)
            theirs = package.calculate_image_quality_score(list(statistics))
            # The regression is the package's to the digits of its parameters.
            ours = naturalness.predict(statistics, model)
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
            # Statistics differ at the border and by the rounding of fits.
            whole = cv2.cvtColor(pixels.astype(np.float32), cv2.COLOR_RGB2GRAY)
            opinions[name] = naturalness.opinion(whole, model)
            np.testing.assert_allclose(opinions[name], theirs, atol=2.5)
    assert min(opinions, key=opinions.get) == "whole"


@needs
def test_a_blurred_mouth_stands_out_from_its_face(tmp_path):
    portrait = media.portrait()
    blurred = cv2.GaussianBlur(portrait, (0, 0), 3)
    mask = np.zeros(portrait.shape[:2], np.float32)
    mask[125:170, 95:150] = 1  # around the mouth
    mask = cv2.GaussianBlur(mask, (0, 0), 4)[..., None]
    mixed = (portrait * (1 - mask) + blurred * mask).astype(np.uint8)
    options, values = backends.options(visual="naturalness"), {}
    pictures = {"whole": portrait, "mouth": mixed, "all": blurred}
    for name, picture in pictures.items():
        path = tmp_path / f"{name}.mp4"
        media.face(path, 0.6, picture=lambda time, picture=picture: picture)
        found = clip.observe(path, options, ["visual/naturalness"])
        assert found.frame_mask["visual"].all()
        values[name] = found.features["visual"].mean(axis=0)
    face, mouth, less = np.stack([values[name] for name in pictures]).T
    assert mouth[1] > mouth[0] + 8 and less[1] > less[0] + 8
    assert face[2] > face[0] + 20 and mouth[2] > mouth[0] + 20
    np.testing.assert_allclose(less, mouth - face, rtol=1e-4)


@needs
def test_every_fifth_row_is_measured_and_holds_while_the_face_is_seen():
    measurer = naturalness.make(backends.Setting("visual", "naturalness"))
    rng = np.random.default_rng(0)
    points = rng.uniform(0.2, 0.8, (478, 3)).astype(np.float32)
    seen = np.ones(17, bool)
    seen[[7, 8, 15]] = False
    for face in seen:
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        measurer.frame(pixels, points if face else None)
    shown = backends.Clip(None, 17, (), None, None, seen, 1.0, None, None, [])
    values, mask = measurer.finish(shown)
    np.testing.assert_array_equal(mask, seen)
    np.testing.assert_array_equal(np.isnan(values).all(axis=-1), ~seen)
    fresh = np.flatnonzero(np.any(np.diff(values[:, :2], axis=0) != 0, axis=-1)) + 1
    np.testing.assert_array_equal(fresh, [5, 7, 8, 9, 10, 15, 16])


@needs
@pytest.mark.parametrize("size", [(16, 16), (1200, 700)])
def test_crops_have_a_size_that_can_be_judged(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for low, high in ((0.4, 0.6), (-0.5, 1.5), (0.98, 1.1)):
        corners = np.array([[low, low, 0], [high, high, 0]])
        grey = naturalness.crop(pixels, corners, 0.05)
        assert min(grey.shape) >= 8 and 32 <= max(grey.shape) <= 512
        assert np.isfinite(naturalness.opinion(grey, naturalness.regression()))
    flat = np.full((40, 40), 128, np.float32)
    assert np.isfinite(naturalness.opinion(flat, naturalness.regression()))


def test_without_the_package_it_is_one_line(monkeypatch):
    naturalness.regression.cache_clear()
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(schema.InputError, match="extra brisque") as caught:
        backends.check(backends.options(visual="naturalness"))
    assert "\n" not in str(caught.value)
