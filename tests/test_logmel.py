import numpy as np
import pytest

from extract.backends import logmel

RNG = np.random.default_rng(0)


def _features(samples, rows=None):
    rows = rows or len(samples) // 640
    values, mask = logmel.features(samples, np.ones(len(samples), bool), rows)
    return {name: values[:, i] for i, name in enumerate(logmel.FEATURES)}, mask


def _sine(hertz: float, level: float = 1.0, seconds: float = 2.0) -> np.ndarray:
    time = np.arange(round(seconds * 16000)) / 16000
    return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def test_filters_equal_librosa():
    librosa = pytest.importorskip("librosa")
    ours = logmel.mel_filters(64, 1024)
    theirs = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=64)
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_statistics_equal_a_plain_loop():
    samples = RNG.normal(0, 0.1, 16000).astype(np.float32)
    found, _ = _features(samples)
    row = 12
    window = samples[row * 640 - 512 : row * 640 + 512].astype(float)
    assert found["rms_db"][row] == pytest.approx(
        10 * np.log10(np.mean(window**2)), abs=1e-3
    )
    power = np.abs(np.fft.rfft(window * np.hanning(1025)[:-1])) ** 2
    hertz = np.fft.rfftfreq(1024, 1 / 16000)
    centroid = (power * hertz).sum() / power.sum()
    spread = np.sqrt((power * (hertz - centroid) ** 2).sum() / power.sum())
    assert found["centroid_khz"][row] == pytest.approx(centroid / 1000, rel=2e-3)
    assert found["bandwidth_khz"][row] == pytest.approx(spread / 1000, rel=2e-3)
    mel = power * (2 / 512) ** 2 @ logmel.mel_filters().T
    np.testing.assert_allclose(
        [found[f"mel{band:02d}_db"][row] for band in range(64)],
        10 * np.log10(mel),
        atol=0.05,
    )
    crossings = np.mean(np.diff(np.sign(window)) != 0)
    assert found["zero_crossings"][row] == pytest.approx(crossings, abs=2e-3)


def test_a_row_is_centred_on_its_instant():
    samples = np.zeros(32000, np.float32)
    samples[20 * 640] = 1.0
    found, _ = _features(samples)
    assert np.argmax(found["rms_db"]) == 20
    assert found["rms_db"][19] == found["rms_db"][21] == pytest.approx(-100)
    samples = np.zeros(32000, np.float32)
    samples[20 * 640 + 400] = 1.0  # between rows 20 and 21: both hear it
    found, _ = _features(samples)
    np.testing.assert_allclose(found["rms_db"][[20, 21]], -30.1, atol=0.1)


def test_delta_is_the_slope_of_the_spectrum():
    level = 10 ** (np.arange(32000) / 640 * 0.5 / 20)  # 0.5 dB a row
    samples = (1e-3 * level * RNG.choice([-1.0, 1.0], 32000)).astype(np.float32)
    found, _ = _features(samples)
    slopes = [found[f"mel{band:02d}_delta"][5:-5].mean() for band in range(64)]
    assert np.mean(slopes) == pytest.approx(0.5, abs=0.02)


def test_statistics_know_a_tone_from_noise():
    tone, _ = _features(_sine(200, 0.5))
    noise, _ = _features(RNG.normal(0, 0.2, 32000).astype(np.float32))
    inside = slice(5, -5)
    assert tone["periodicity"][inside].min() > 0.99
    assert noise["periodicity"][inside].max() < 0.5
    assert tone["centroid_khz"][inside].mean() == pytest.approx(0.2, abs=0.01)
    assert noise["centroid_khz"][inside].mean() == pytest.approx(4.0, abs=0.2)
    assert tone["rms_db"][20] == pytest.approx(-9.03, abs=0.1)
    assert noise["flatness_db"][20] > tone["flatness_db"][20] + 20


def test_clipping_is_seen_at_and_below_full_scale():
    clean, _ = _features(_sine(150, 0.9))
    hard, _ = _features(np.clip(_sine(150, 3.0), -1, 1))
    quiet, _ = _features(0.4 * np.clip(_sine(150, 3.0), -1, 1))
    assert clean["clipped_share"].max() == 0
    assert hard["clipped_share"][20] == pytest.approx(0.79, abs=0.02)
    assert quiet["clipped_share"].max() == 0
    assert quiet["clip_level_share"][20] > 3 * clean["clip_level_share"][20]


@pytest.mark.parametrize("snr", [10.0, 30.0])
def test_noise_floor_and_snr_are_measured(snr):
    noise = RNG.normal(0, 10 ** (-50 / 20), 64000).astype(np.float32)
    speech = _sine(300, np.sqrt(2) * 10 ** ((-50 + snr) / 20), 4.0)
    speech *= (np.arange(64000) // 4000) % 2  # half of the time
    found, _ = _features(noise + speech)
    assert np.median(found["noise_floor_db"]) == pytest.approx(-50, abs=1.5)
    assert np.median(found["snr_db"]) == pytest.approx(snr, abs=2.5)


@pytest.mark.parametrize("rows", [1, 2, 30])
@pytest.mark.parametrize("level", [0.0, 1.0, 4.0])
def test_any_sound_gives_finite_small_numbers(rows, level):
    samples = level * RNG.choice([-1.0, 1.0], rows * 640).astype(np.float32)
    values, mask = logmel.features(samples, np.ones(len(samples), bool), rows)
    assert values.shape == (rows, len(logmel.FEATURES)) and values.dtype == np.float32
    assert np.isfinite(values).all() and np.abs(values).max() < 1000
    assert mask.all()


def test_missing_sound_is_no_step_to_silence():
    samples = RNG.normal(0, 0.1, 64000).astype(np.float32)
    present = np.ones(64000, bool)
    present[16000:32000] = False
    whole, _ = logmel.features(samples, np.ones(64000, bool), 100)
    gapped, mask = logmel.features(samples * present, present, 100)
    changes = [
        index
        for index, name in enumerate(logmel.FEATURES)
        if name.endswith("_delta") or name == "flux_db"
    ]
    edges = mask & np.isin(np.arange(100), [24, 25, 50, 51, 52])
    usual = np.abs(whole[:, changes]).max()
    assert mask.sum() == 76 and edges.sum() == 5
    assert np.abs(gapped[edges][:, changes]).max() < 2 * usual


def test_missing_sound_is_masked_and_sets_no_noise_floor():
    samples = RNG.normal(0, 0.01, 32000).astype(np.float32)
    present = np.ones(32000, bool)
    present[16000:] = False
    samples[16000:] = 0
    values, mask = logmel.features(samples, present, 50)
    np.testing.assert_array_equal(mask, np.arange(50) <= 25)
    floor = values[:, logmel.FEATURES.index("noise_floor_db")]
    np.testing.assert_allclose(floor[mask], -40, atol=2)
