"""Thumbnails show the picture of their instant."""

import base64

import cv2
import numpy as np
import pytest

from extract import decode, thumbnail
from tests import media


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two seconds that grow brighter from black to white, 96 x 64."""

    def picture(time):
        return np.full((64, 96, 3), round(250 * time / 2), np.uint8)

    return media.write(
        tmp_path_factory.mktemp("thumbnail") / "a.mkv",
        times=np.arange(50) / 25,
        picture=picture,
        sound=np.zeros(2 * media.RATE, np.float32),
    )


def shown(address):
    head, data = address.split(",")
    assert head == "data:image/jpeg;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), 1)


@pytest.mark.parametrize(("row", "level"), [(0, 0), (25, 125), (49, 245), (900, 245)])
def test_one_picture_is_that_of_its_row(clip, row, level):
    picture = shown(thumbnail.at(clip, row, size=48))
    assert picture.shape == (32, 48, 3)
    assert picture.mean() == pytest.approx(level, abs=4)


def test_a_strip_covers_the_clip_evenly(clip):
    levels = [
        shown(one).mean() for one in thumbnail.strip(clip, 5, size=48, max_seconds=9)
    ]
    np.testing.assert_allclose(levels, 250 * (np.arange(5) + 0.5) / 5, atol=10)


def test_what_is_no_video_says_so(tmp_path):
    (tmp_path / "c.mp4").write_bytes(b"nothing")
    with pytest.raises(decode.ClipError):
        thumbnail.at(tmp_path / "c.mp4", 0, size=48)
