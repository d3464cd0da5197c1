import cv2
import numpy as np
import pytest

from extract import crops, landmarks
from tests import media

PLACES = (33, 133, 362, 263, 1, 61, 291)


def _mesh(places, shape):
    """A mesh whose seven points that count are at `places`, in pixels."""
    points = np.full((478, 3), np.nan, np.float32)
    points[list(PLACES), :2] = places / np.array(shape[1::-1])
    return points


def _wanted():
    """Places of the seven points that fit the template without a rest."""
    eyes = crops._TEMPLATE[:2].repeat(2, axis=0)
    return np.concatenate([eyes, crops._TEMPLATE[2:]]) * crops.SIDE


@pytest.mark.parametrize("scale", [0.12, 0.4, 1.0, 2.5])
@pytest.mark.parametrize("angle", [0.0, 0.5, -2.0])
def test_eyes_nose_and_mouth_come_to_the_same_places(scale, angle):
    shape = (900, 1100, 3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    places = (_wanted() - crops.SIDE / 2) @ (turn.T / scale) + (550, 450)
    inside = (places > 20).all(axis=-1) & (places < (1080, 880)).all(axis=-1)
    picture = np.zeros(shape, np.uint8)
    for x, y in places[inside]:
        cv2.circle(
            picture,
            (round(x * 16), round(y * 16)),
            round(128 / scale),
            (255, 255, 255),
            -1,
            shift=4,
        )
    crop = crops.aligned(picture, _mesh(places, shape))
    assert crop.shape == (224, 224, 3) and crop.dtype == np.uint8
    expected = np.zeros((224, 224), bool)
    y, x = np.mgrid[:224, :224]
    for a, b in _wanted()[inside]:
        expected |= (x - a) ** 2 + (y - b) ** 2 <= 8**2
    lit = crop[..., 0] > 127
    assert inside.any() and expected.sum() > 30
    overlap = (lit & expected).sum() / (lit | expected).sum()
    assert overlap > 0.7


def test_a_real_face_is_upright_and_in_the_middle():
    still = media.portrait()
    with landmarks.tracker(landmarks.find_model()) as find:
        face = find(still)
        crop = crops.aligned(still, face.points)
    with landmarks.tracker(landmarks.find_model()) as find:
        again = find(crop).points
    eyes = [again[list(pair), :2].mean(axis=0) for pair in ((33, 133), (362, 263))]
    found = np.array([*eyes, again[1, :2], again[61, :2], again[291, :2]])
    # The face is turned to one side: its nose lies off the middle.
    np.testing.assert_allclose(found, crops._TEMPLATE, atol=0.06)
