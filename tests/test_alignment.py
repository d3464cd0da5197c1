"""Row t of every modality is the same instant, by clips with flashes and clicks."""

import numpy as np
import pytest

from extract import decode, sound
from extract.backends import _speech
from extract.networks import wav2vec2
from tests import media

# Frames of a network that hears nothing but loudness, where each frame hears it.
_FIELD, _HOP = 400, 320


def _loudness(samples):
    count = wav2vec2.num_frames(len(samples))
    frames = [samples[_HOP * i : _HOP * i + _FIELD] for i in range(count)]
    return np.array([[np.mean(frame**2)] for frame in frames], np.float32)


def _clip(path, times, start, seconds):
    """Writes flashes of three pictures, each with a click in its middle.

    A picture is the nearest one from half-way after the one before it to half-way to
    the next one.
    """
    middles = np.searchsorted(times, np.arange(0.5, seconds - 0.4, 0.7))
    lit = times[np.add.outer(middles, (-1, 0, 1)).ravel()]
    first, before, after, last = (times[middles + step] for step in (-2, -1, 1, 2))
    flashes = (first + before + after + last) / 4

    def picture(time):
        level = 230 if np.abs(lit - time).min() < 1e-6 else 20
        return np.full((64, 64, 3), level, np.uint8)

    samples = np.zeros(round(seconds * media.RATE), np.float32)
    for at in flashes:
        samples += media.click(seconds, at - 0.01)
    media.write(
        path,
        times=times,
        picture=picture,
        sound=samples,
        start=start,
        fps=30,
        sound_codec="pcm_s16le",
    )
    return flashes


def _times(fps, seconds):
    if fps is None:  # steps of 20 to 60 ms
        steps = np.random.default_rng(0).uniform(0.02, 0.06, round(seconds * 30))
        times = np.concatenate([[0], np.cumsum(steps)])
        return np.round(times[times < seconds], 4)
    return np.arange(round(seconds * fps)) / fps


def _centres(values, flashes):
    """The middle of the rise around each flash, seconds."""
    found = []
    for at in flashes:
        rows = np.arange(max(0, round(25 * at) - 4), round(25 * at) + 5)
        rows = rows[rows < len(values)]
        rise = values[rows] - values.min()
        found.append((rows * rise).sum() / rise.sum() / 25)
    return np.array(found)


@pytest.mark.parametrize("start", [0.0, 1.4])
@pytest.mark.parametrize("fps", [22.13, 25, 30000 / 1001, 30, None])
@pytest.mark.parametrize("seconds", [2, 6, 20])
def test_flash_and_click_are_the_same_row(tmp_path, seconds, fps, start):
    times = _times(fps, seconds)
    path = tmp_path / "a.mkv"
    flashes = _clip(path, times, start, seconds)
    of = decode.Media()
    seen = np.array([pixels.mean() for pixels in decode.frames(path, of)])
    samples, _ = sound.track(of.chunks, of.rows)
    heard = _speech.on_rows(_loudness(samples), of.rows)[:, 0]
    assert abs(of.rows - 25 * seconds) <= 1
    longest = max(np.diff(times).max(), 1 / 25)
    apart = _centres(heard, flashes) - _centres(seen, flashes)
    assert len(flashes) >= 2 and np.abs(apart).max() <= longest / 2
    assert np.abs(_centres(heard, flashes) - flashes).max() <= 0.01


def test_frames_come_to_the_rows_by_lines():
    at = wav2vec2.frame_seconds(99)
    np.testing.assert_allclose(at, (320 * np.arange(99) + 199.5) / 16_000)
    line = np.column_stack([at, -2 * at]).astype(np.float32)
    rows = _speech.on_rows(line, 50)
    wanted = np.clip(np.arange(50) / 25, at[0], at[-1])
    np.testing.assert_allclose(rows, np.column_stack([wanted, -2 * wanted]), atol=1e-6)
    np.testing.assert_array_equal(_speech.on_rows(line[:1], 3), line[[0, 0, 0]])
