import cv2
import numpy as np
import pytest
import scipy.signal

from extract.networks import syncnet_input


def speech(count, seed=0):
    """Returns loud and soft noise with a hum, at times beyond full scale."""
    rng = np.random.default_rng(seed)
    time = np.arange(count) / 16000
    level = 0.3 * (1 + np.sin(2 * np.pi * 3 * time))
    return (level * rng.normal(size=count) + 0.2 * np.sin(900 * time)).astype(
        np.float32
    )


def plain_mfcc(whole):
    """`python_speech_features.mfcc` at its defaults, in loops, of 16-bit samples."""
    whole = whole.astype(float)
    signal = np.array([whole[0], *(whole[1:] - 0.97 * whole[:-1])])
    steps = 1 if len(signal) <= 400 else 1 + int(np.ceil((len(signal) - 400) / 160))
    mel = [2595 * np.log10(1 + 8000 / 700) * k / 27 for k in range(28)]
    edges = [int(513 * 700 * (10 ** (value / 2595) - 1) / 16000) for value in mel]
    rows = []
    for step in range(steps):
        piece = np.zeros(512)
        part = signal[160 * step : 160 * step + 400]
        piece[: len(part)] = part
        power = np.abs(np.fft.rfft(piece)) ** 2 / 512
        energies = []
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for k in range(low, middle):
                total += power[k] * (k - low) / (middle - low)
            for k in range(middle, high):
                total += power[k] * (high - k) / (high - middle)
            energies.append(np.log(total or np.finfo(float).eps))
        row = []
        for n in range(13):
            angles = np.pi * n * (np.arange(26) + 0.5) / 26
            scale = np.sqrt((1 if n == 0 else 2) / 26)
            value = scale * np.sum(np.array(energies) * np.cos(angles))
            row.append(value * (1 + 11 * np.sin(np.pi * n / 22)))
        row[0] = np.log(power.sum() or np.finfo(float).eps)
        rows.append(row)
    return np.array(rows)


def as_int16(samples):
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)


@pytest.mark.parametrize("count", [1, 399, 400, 401, 560, 3200, 3333])
def test_cepstra_equal_a_loop(count):
    for samples in (speech(count), np.zeros(count, np.float32)):
        found = syncnet_input.mfcc(samples)
        expected = plain_mfcc(as_int16(samples))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_windows_of_sound_begin_at_their_rows():
    samples = speech(640 * 20)
    windows, heard = syncnet_input.sound_windows(samples, np.ones(len(samples), bool))
    assert windows.shape == (15, 20, 13) and heard.all()
    cepstra = syncnet_input.mfcc(samples)
    for row in (0, 7, 14):
        np.testing.assert_array_equal(windows[row], cepstra[4 * row : 4 * row + 20])
    # A click in row 9 is in the windows of the rows 5 to 9, and in no other.
    click = np.zeros(640 * 20, np.float32)
    click[640 * 9 + 320] = 0.9
    windows, _ = syncnet_input.sound_windows(click, np.ones(len(click), bool))
    np.testing.assert_array_equal(
        np.flatnonzero((windows[:, :, 0] > 0).any(axis=1)), np.arange(5, 10)
    )


def mesh(left, top, right, bottom, width, height):
    """Returns landmarks whose mesh fills a box; irises outside it don't count."""
    rng = np.random.default_rng(0)
    points = np.zeros((478, 3), np.float32)
    points[:468, :2] = rng.uniform(0, 1, (468, 2))
    points[:2, :2] = [(0, 0), (1, 1)]
    points[:, 0] = (left + points[:, 0] * (right - left)) / width
    points[:, 1] = (top + points[:, 1] * (bottom - top)) / height
    points[468:] = 5.0
    return points


def public_crop(pixels, x, y, half):
    """The public code's: the whole picture is padded, then cut."""
    pad = int(half * 1.8)
    frame = np.pad(
        pixels, ((pad, pad), (pad, pad), (0, 0)), "constant", constant_values=110
    )
    y, x = y + pad, x + pad
    face = frame[
        int(y - half) : int(y + half * 1.8), int(x - half * 1.4) : int(x + half * 1.4)
    ]
    return cv2.resize(face, (224, 224))


def run(pictures, points):
    cropper = syncnet_input.Cropper()
    found, delays = [], []
    for pixels, face in zip(pictures, points, strict=True):
        found += cropper.push(pixels, face)
        delays.append(len(found))
    return found + cropper.finish(), delays


def test_crops_equal_the_public_code():
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (40, 120, 160, 3), np.uint8)
    # Near the edges, so that there is padding on all four sides.
    left, top = 15 + np.cumsum(rng.normal(size=(2, 40)), axis=1) * 1.5
    width, height = 110 + 3 * rng.normal(size=(2, 40))
    boxes = np.stack([left, top, left + width, top + height], axis=1)
    points = [mesh(*box, 160, 120) for box in boxes]
    found, delays = run(pictures, points)
    np.testing.assert_array_equal(delays, np.maximum(np.arange(40) - 5, 0))
    half = np.maximum(width, height) / 2
    middle = np.stack([boxes[:, ::2].mean(axis=1), boxes[:, 1::2].mean(axis=1), half])
    # The filter of the public code has zeros beyond the ends: compare inside.
    smooth = [scipy.signal.medfilt(line, 13) for line in middle]
    assert len(found) == 40
    for row in range(6, 34):
        expected = public_crop(pictures[row], *(line[row] for line in smooth))
        # Landmarks are float32: an edge may fall into the next pixel.
        assert np.abs(found[row].astype(int) - expected).mean() < 0.5, row
    assert all(crop.shape == (224, 224, 3) and crop.dtype == np.uint8 for crop in found)
    for row in (0, 3, 39):
        near = slice(max(0, row - 6), row + 7)
        expected = public_crop(pictures[row], *np.median(middle[:, near], axis=1))
        assert np.abs(found[row].astype(int) - expected).mean() < 0.5, row


def test_rows_without_a_face_have_no_crop():
    pictures = [np.full((80, 80, 3), row, np.uint8) for row in range(12)]
    face = mesh(20, 20, 60, 60, 80, 80)
    points = [None if row in (0, 4, 5, 11) else face for row in range(12)]
    found, _ = run(pictures, points)
    # Each crop is of its own picture, and a face that stays has the same box.
    for row, crop in zip((1, 2, 3, 6, 7, 8, 9, 10), found, strict=True):
        np.testing.assert_array_equal(crop, row)
