"""Groups of features: every feature of a known extractor is in one of them."""

import numpy as np
import pytest

from experiments.interpreting import groups
from tqa_jax import schema

pytest.importorskip("cv2")


def modality(backend, width, version="1"):
    return schema.Modality("m", width, backend, version)


@pytest.mark.parametrize(
    ("backend", "width", "version", "sizes"),
    [
        (
            *("nss", 116, "1"),
            {
                **{"face: appearance": 44, "face: change": 5, "eyes: appearance": 26},
                **{"eyes: change": 5, "mouth: appearance": 26, "mouth: change": 5},
                "whole picture": 5,
            },
        ),
        (
            *("logmel", 145, "1"),
            {
                **{"mel bands below 1.7 kHz": 32, "mel bands above 1.7 kHz": 32},
                **{"change of the mel bands": 64, "level and clipping": 5},
                **{"spectral shape": 8, "noise and pauses": 4},
            },
        ),
        (
            *("facelandmarker", 1404, "1"),
            {
                **{"mouth": 120, "eyes": 96, "brows": 60, "contour": 108},
                "nose, cheeks, forehead": 1020,
            },
        ),
        *(
            (backend, 17, version, {"upper face": u, "lower face": 15 - u, "mouth": 2})
            for backend, version, u in (
                *(("blendshapes", "1", 7), ("openface", "2", 7), ("geometry", "1", 6)),
            )
        ),
        (
            *("correlation", 4, "1"),
            dict.fromkeys(("peak", "confidence", "offset_frames", "validity"), 1),
        ),
        (
            *("syncnet", 4, "1"),
            dict.fromkeys(("lse_d", "confidence", "offset_frames", "validity"), 1),
        ),
    ],
)
def test_features_of_extractors_are_grouped_by_name(backend, width, version, sizes):
    found, named = groups.of(modality(backend, width, version))
    assert named
    got = {group.name.replace("mouth opening", "mouth"): group for group in found}
    assert {name: len(group.columns) for name, group in got.items()} == sizes
    together = np.concatenate([group.columns for group in found])
    assert sorted(together) == list(range(width))


def test_points_are_those_of_the_mesh():
    tasks = pytest.importorskip("mediapipe.tasks.python.vision.face_landmarker")
    mesh = tasks.FaceLandmarksConnections

    def points(*names):
        return {
            point
            for name in names
            for edge in getattr(mesh, f"FACE_LANDMARKS_{name}")
            for point in (edge.start, edge.end)
        }

    found = {
        group.name: set((group.columns // 3).tolist())
        for group in groups.of(modality("facelandmarker", 1404))[0]
    }
    assert found["mouth"] == points("LIPS")
    assert found["eyes"] == points("LEFT_EYE", "RIGHT_EYE")
    assert found["brows"] == points("LEFT_EYEBROW", "RIGHT_EYEBROW")
    assert found["contour"] == points("FACE_OVAL")


def test_features_without_names_are_columns_or_blocks():
    for one in (modality("thqa", 24), modality("logmel", 24), modality("nss", 24, "2")):
        found, named = groups.of(one)
        assert not named and [len(group.columns) for group in found] == [1] * 24
    found, named = groups.of(modality("nss", 116, "0"))
    assert not named and len(found) == 8
    assert found[0].name == "columns 0 to 14"
    together = np.concatenate([group.columns for group in found])
    np.testing.assert_array_equal(together, np.arange(116))
