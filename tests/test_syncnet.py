"""What the distances of SyncNet's embeddings say; the network is in `test_networks`."""

import math

import numpy as np
import pytest

from extract.backends import syncnet

WIDTH = 1024  # of an embedding


def embeddings(num_windows, late, noise=0.3, seed=0):
    """Embeddings of a clip whose sound is late by some rows, known by construction."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(num_windows + 40, WIDTH)).astype(np.float32)
    own = rng.normal(size=(2, num_windows, WIDTH)).astype(np.float32)
    faces = common[20 : 20 + num_windows] + noise * own[0]
    sounds = common[20 - late : 20 - late + num_windows] + noise * own[1]
    return faces, sounds


def public_distances(faces, sounds, reach=15):
    """The public code's distances: zeros beyond the ends of the clip."""
    padded = np.pad(sounds, ((reach, reach), (0, 0)))
    return np.array(
        [
            [
                math.sqrt(np.sum((face - padded[t + j] + 1e-6) ** 2, dtype=float))
                for j in range(2 * reach + 1)
            ]
            for t, face in enumerate(faces)
        ]
    )


@pytest.mark.parametrize("late", [-15, -6, 0, 1, 15])
def test_a_planted_shift_is_found_positive_when_the_audio_is_late(late):
    distances = syncnet.distances(*embeddings(120, late))
    values, mask = syncnet.features(distances, np.ones(124, bool))
    assert mask.all() and (values[:, 3] == 1).all()
    assert (values[:, 2] == late).all()
    # Where they fit only the noise is left: its two parts have 0.3^2 each.
    fit = math.sqrt(WIDTH * 2 * 0.3**2)
    np.testing.assert_allclose(np.median(values[:, 0]), fit, rtol=0.02)
    apart = math.sqrt(WIDTH * (2 + 2 * 0.3**2))
    np.testing.assert_allclose(np.median(values[:, 1]), apart - fit, rtol=0.02)


def test_distances_equal_the_public_code_inside_the_clip():
    faces, sounds = embeddings(40, 2)
    found = syncnet.distances(faces, sounds)
    expected = public_distances(faces, sounds)
    places = np.arange(40)[:, None] + np.arange(-15, 16)
    inside = (places >= 0) & (places < 40)
    np.testing.assert_array_equal(np.isfinite(found), inside)
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-5)


def test_features_equal_the_public_formulas():
    # All 47 windows are in each row's mean; the far lags differ at the clip's ends.
    faces, sounds = embeddings(47, 4, noise=1.0)
    means = np.nanmean(syncnet.distances(faces, sounds), axis=0)[7:24]
    values, _ = syncnet.features(syncnet.distances(faces, sounds), np.ones(51, bool))
    assert values[0, 0] == pytest.approx(means.min(), rel=1e-6)
    public = public_distances(faces, sounds).mean(axis=0)
    public_offset = 15 - np.argmin(public)  # negative when the audio is late
    assert (values[:, 2] == -public_offset).all() and public_offset == -4


def test_a_shift_is_seen_at_its_row():
    # Sound 8 rows late from window 148 on: faces below 148 fit at lag 0, those from
    # 140 on at lag 8. Their middle, 143.5, is the instant of row 145.5.
    faces, sounds = embeddings(296, 0)
    _, late = embeddings(296, 8)
    sounds[148:] = late[148:]
    values, _ = syncnet.features(syncnet.distances(faces, sounds), np.ones(300, bool))
    np.testing.assert_array_equal(values[:, 2], np.where(np.arange(300) < 146, 0, 8))
    assert int(np.argmax(values[:, 0])) in (145, 146)


def test_features_equal_a_loop():
    rng = np.random.default_rng(5)
    distances = rng.uniform(5, 15, (96, 31)).astype(np.float32)
    distances[40:52] = np.nan  # a face is missing
    distances[:, 0][rng.random(96) < 0.6] = np.nan
    seen = np.ones(100, bool)
    seen[44:52] = False
    values, mask = syncnet.features(distances, seen)
    np.testing.assert_array_equal(mask, seen)
    for row in (0, 27, 43, 53, 75, 99):
        start = min(max(row - 2 - 25, 0), 96 - 51)
        part = distances[start : start + 51].astype(float)
        known = np.isfinite(part).sum(axis=0)
        means = np.array(
            [np.nanmean(part[:, j]) if known[j] >= 25.5 else np.nan for j in range(31)]
        )
        expected = [np.nanmin(means), np.nanmedian(means) - np.nanmin(means)]
        np.testing.assert_allclose(values[row, :2], expected, rtol=1e-5)
        assert values[row, 2] == np.nanargmin(means) - 15
        assert np.isnan(means[0]) and values[row, 3] == 1


def test_rows_without_face_or_sound_are_masked():
    faces, sounds = embeddings(146, 0)
    faces[100:] = np.nan
    seen = np.arange(150) < 104
    values, mask = syncnet.features(syncnet.distances(faces, sounds), seen)
    # Of row 102's 51 windows, 75 to 125, only 25 have faces.
    np.testing.assert_array_equal(mask, np.arange(150) < 102)
    assert np.isnan(values[~mask]).all() and np.isfinite(values[mask]).all()
    faces, sounds = embeddings(146, 0)
    sounds[60:] = np.nan
    values, mask = syncnet.features(
        syncnet.distances(faces, sounds), np.ones(150, bool)
    )
    assert mask[:60].all() and not mask[64:].any()


@pytest.mark.parametrize("num_rows", [0, 1, 4, 5, 6, 23, 24, 30])
def test_short_clips_work(num_rows):
    num_windows = max(0, num_rows - 4)
    faces, sounds = embeddings(num_windows, 1)
    sounds[-1:] = np.nan
    distances = syncnet.distances(faces, sounds)
    values, mask = syncnet.features(distances, np.ones(num_rows, bool))
    assert values.shape == (num_rows, 4) and mask.shape == (num_rows,)
    assert np.isfinite(values[mask]).all()
    if num_rows >= 24:
        assert (values[:, 2] == 1).all() and mask.all()
    else:
        np.testing.assert_array_equal(values[mask], 0)
