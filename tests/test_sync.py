import numpy as np
import pytest
import scipy.ndimage

from extract.backends import correlation as sync


def _syllables(num_rows: int, seed: int = 0) -> np.ndarray:
    """Returns a mouth opening in 0..1 with about four syllables a second."""
    rng = np.random.default_rng(seed)
    noise = scipy.ndimage.gaussian_filter1d(rng.normal(size=num_rows + 60), 2)[30:-30]
    return np.clip(0.4 + 2.0 * noise, 0, 1)


def _points(opening: np.ndarray, turn: float = 0.0) -> np.ndarray:
    """Returns landmarks of a face whose lips are apart by up to a tenth of it."""
    points = np.zeros((len(opening), 478, 3))
    points[:, 10, 1], points[:, 152, 1] = 0.2, 0.8
    for upper, lower in ((13, 14), (82, 87), (312, 317), (0, 17)):
        points[:, upper, 1] = 0.6 - 0.03 * opening
        points[:, lower, 1] = 0.6 + 0.03 * opening
    if turn:
        angles = turn * np.linspace(-1, 1, len(opening))
        across = points[:, :, 1] * np.sin(angles)[:, None]
        points[:, :, 1] *= np.cos(angles)[:, None]
        points[:, :, 0] = 0.5 + across
    return points


def _sound(opening: np.ndarray, late_rows: float, seed: int = 1) -> np.ndarray:
    """Returns noise as loud as the mouth is open, late by so many rows."""
    count = len(opening) * 640
    time = np.arange(count) / 640 - late_rows
    level = np.interp(time, np.arange(len(opening)), opening)
    noise = np.random.default_rng(seed).normal(size=count)
    return (0.2 * 10 ** (2 * (level - 1)) * noise).astype(np.float32)


def _run(opening, sound, **more):
    present = np.ones(len(sound), bool)
    return sync.features(_points(opening, **more), 1.0, sound, present)


@pytest.mark.parametrize("late", [-10, -4, -1, 0, 1, 4, 10])
@pytest.mark.parametrize("turn", [0.0, 0.4])
def test_a_planted_offset_is_found_positive_when_audio_is_late(late, turn):
    opening = _syllables(200)
    values, mask = _run(opening, _sound(opening, late), turn=turn)
    assert mask.all() and values[:, 3].all()
    inside = values[15:-15]
    assert np.mean(inside[:, 2] == late) > 0.95
    assert np.median(inside[:, 0]) > 0.5 and np.median(inside[:, 1]) > 0.3


def test_unrelated_sound_has_low_confidence():
    opening = _syllables(200)
    matched, _ = _run(opening, _sound(opening, 0))
    other, _ = _run(opening, _sound(_syllables(200, seed=7), 0))
    assert np.median(other[:, 1]) < 0.6 * np.median(matched[:, 1])


def test_correlations_equal_a_plain_loop():
    rng = np.random.default_rng(3)
    inner, outer, level = rng.normal(size=(3, 80))
    inner[20:24] = np.nan
    starts = np.clip(np.arange(80) - 25, 0, 80 - 51)
    found = sync.correlations(inner, outer, level, starts, 51)
    rate, change = np.gradient(outer), np.gradient(level)
    pairs = [
        (inner, level),
        (rate, change),
        (abs(rate), level),
        (abs(rate), abs(change)),
    ]
    for row, lag in ((0, 3), (40, 0), (40, -15), (79, -7)):
        rows = np.arange(starts[row], starts[row] + 51)
        rows = rows[(rows + lag >= 0) & (rows + lag < 80)]
        expected = []
        for mouth, sound in pairs:
            a, b = mouth[rows], sound[rows + lag]
            known = np.isfinite(a) & np.isfinite(b)
            correlation = np.corrcoef(a[known], b[known])[0, 1]
            expected.append(correlation * np.sqrt(known.sum() / 51))
        assert found[row, lag + 15] == pytest.approx(np.mean(expected), abs=1e-9)


def test_missing_sound_is_masked():
    opening = _syllables(120)
    sound = _sound(opening, 0)
    present = np.arange(len(sound)) < len(sound) // 4
    values, mask = sync.features(_points(opening), 1.0, sound * present, present)
    assert mask[0] and not mask[-1]
    assert np.isnan(values[~mask]).all()
