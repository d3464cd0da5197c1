import pathlib

import numpy as np
import pytest

from extract import landmarks
from tests import media
from tqa_jax import schema

MODEL = landmarks.find_model()


def _blank(size=256):
    return np.full((size, size, 3), 128, np.uint8)


def _small(width: int) -> np.ndarray:
    import cv2

    return cv2.resize(media.portrait(), (width, width), interpolation=cv2.INTER_AREA)


def test_a_face_is_found_with_points_blendshapes_and_pose():
    with landmarks.tracker(MODEL) as find:
        face = find(media.portrait())
    assert face.points.shape == (478, 3) and face.points.dtype == np.float32
    assert face.blendshapes.shape == (52,) and face.pose.shape == (4, 4)
    assert face.count == 1
    # Where the photograph has its eyes and mouth, in picture widths and heights.
    eyes = face.points[[33, 263], :2].mean(axis=0)
    np.testing.assert_allclose(eyes, [0.5, 0.38], atol=0.1)
    assert face.points[13, 1] > face.points[1, 1] > face.points[33, 1]
    assert ((face.blendshapes >= 0) & (face.blendshapes <= 1)).all()
    smile = landmarks.BLENDSHAPES.index("mouthSmileLeft")
    assert face.blendshapes[smile] > 0.5  # she smiles


def test_blendshape_names_are_the_models_own():
    import mediapipe as mp
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(MODEL)),
        output_face_blendshapes=True,
    )
    with landmarks._without_noise():
        model = vision.FaceLandmarker.create_from_options(options)
        image = mp.Image(image_format=mp.ImageFormat.SRGB, data=media.portrait())
        found = model.detect(image).face_blendshapes[0]
        model.close()
    assert tuple(shape.category_name for shape in found) == landmarks.BLENDSHAPES


def test_a_picture_without_a_face_gives_none():
    with landmarks.tracker(MODEL) as find:
        assert find(_blank()) is None
        assert find(media.portrait()) is not None
        assert find(_blank()) is None


def _pair(left: int, right: int) -> np.ndarray:
    """Returns a picture with a face of each width beside each other; 0 for none."""
    picture = np.full((256, 512, 3), 128, np.uint8)
    for width, start in ((left, 0), (right, 256)):
        if width:
            picture[:width, start : start + width] = _small(width)
    return picture


def test_of_several_faces_the_largest_is_taken():
    with landmarks.tracker(MODEL) as find:
        faces = [find(_pair(160, 256)) for _ in range(3)]
    assert [face.count for face in faces] == [2, 2, 2]
    assert all(face.points[:, 0].mean() > 0.5 for face in faces)


def test_a_tracker_stays_with_its_face_and_a_new_one_remembers_none():
    with landmarks.tracker(MODEL) as find:
        assert find(_pair(0, 220)).points[:, 0].mean() > 0.5
        assert find(_pair(256, 220)).points[:, 0].mean() > 0.5
    with landmarks.tracker(MODEL) as find:
        assert find(_pair(256, 220)).points[:, 0].mean() < 0.5


def test_a_followed_face_is_kept_until_another_is_twice_as_large():
    def square(centre, side):
        return np.array([(centre - side / 2, 0, 0), (centre + side / 2, side, 0)])

    last = np.array([0.2, 0.15])
    assert landmarks._choose([square(0.7, 0.35), square(0.2, 0.3)], last) == 1
    assert landmarks._choose([square(0.7, 0.50), square(0.2, 0.3)], last) == 0
    assert landmarks._choose([square(0.7, 0.35), square(0.2, 0.3)], None) == 0


def test_a_missing_or_other_model_is_one_clear_line(tmp_path, monkeypatch):
    with pytest.raises(schema.InputError, match="no face landmarker at .*none.task"):
        landmarks.find_model(tmp_path / "none.task")
    other = tmp_path / "other.task"
    other.write_bytes(b"no model")
    with pytest.raises(schema.InputError, match="another face landmarker"):
        landmarks.find_model(other)
    monkeypatch.setenv(landmarks.ENVIRONMENT, str(other))
    with pytest.raises(schema.InputError, match="another face landmarker"):
        landmarks.find_model()
    other.write_bytes(MODEL.read_bytes())
    assert landmarks.find_model() == pathlib.Path(other)


def test_a_missing_system_library_is_one_clear_line(monkeypatch):
    landmarks.check_library(MODEL)

    def tracker(model):
        raise OSError("libEGL.so.1: cannot open shared object file")

    monkeypatch.setattr(landmarks, "tracker", tracker)
    with pytest.raises(schema.InputError, match="libEGL.so.1.*apt-get install libegl1"):
        landmarks.check_library(MODEL)


def test_only_known_noise_is_dropped_from_stderr(capfd):
    import os

    with landmarks._without_noise():
        os.write(2, b"W0000 00:00:1795423365.715443    4122 graph.cc:181] noise\n")
        os.write(2, b"something that matters\n")
    assert capfd.readouterr().err == "something that matters\n"
