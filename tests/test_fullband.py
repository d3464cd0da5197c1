"""The sound above 8 kHz, at the file's own rate."""

import os
import pathlib

import numpy as np
import pytest
import scipy.signal

from extract import backends, clip, decode, sound
from extract.backends import fullband
from tests import media

CUTS_KHZ = (3.4, 7, 8, 12, 16)


def measure(samples, rate=48_000, rows=None):
    """Features by name, and the mask."""
    rows = rows or len(samples) * 25 // rate
    samples = samples.astype(np.float32)
    values, mask = fullband.features(samples, np.ones(len(samples), bool), rate, rows)
    return dict(zip(fullband.FEATURES, values.T, strict=True)), mask


def low_passed(samples, rate, khz):
    """Nothing is left above the cut; the fall begins a seventh below it."""
    band = scipy.signal.cheby2(12, 60, khz * 1000, fs=rate, output="sos")
    return scipy.signal.sosfiltfilt(band, samples).astype(np.float32)


def test_white_noise_has_its_share_in_each_band_and_reaches_the_top():
    noise = 0.1 * np.random.default_rng(0).normal(size=4 * 48_000)
    values, mask = measure(noise)
    assert mask.all()
    share = 10 * np.log10(4 / 24)
    for name in fullband.FEATURES[3:]:
        np.testing.assert_allclose(values[name], share, atol=0.4)
    np.testing.assert_array_equal(values["rate_khz"], 48)
    np.testing.assert_array_equal(values["bandwidth_khz"], 24)
    assert values["cliff_db"].max() < 6


def test_a_tone_is_in_its_band_alone():
    tone = np.sin(2 * np.pi * 10_000 * np.arange(2 * 48_000) / 48_000)
    values, _ = measure(tone)
    np.testing.assert_allclose(values["level_08_12_khz_db"], 0, atol=1e-3)
    assert values["level_04_08_khz_db"].max() < -60
    assert values["level_20_24_khz_db"].max() < -90


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 96_000])
def test_any_rate_gives_a_bandwidth_of_half_of_it_at_most(rate):
    noise = 0.1 * np.random.default_rng(0).normal(size=3 * rate)
    values, _ = measure(noise, rate)
    top = min(rate / 2000, 24)
    np.testing.assert_allclose(values["bandwidth_khz"], top, atol=0.26)
    for name in fullband.FEATURES[3:]:
        low, high = (float(part) for part in name.split("_")[1:3])
        if low >= top:
            np.testing.assert_array_equal(values[name], -100)


def test_silence_has_no_bandwidth_and_a_pause_has_its_neighbours():
    values, mask = measure(np.zeros(2 * 48_000))
    assert mask.all()
    np.testing.assert_array_equal(values["bandwidth_khz"], 0)
    noise = low_passed(np.random.default_rng(0).normal(size=6 * 48_000), 48_000, 8)
    noise[2 * 48_000 : 4 * 48_000] = 0
    values, _ = measure(0.1 * noise)
    np.testing.assert_allclose(values["bandwidth_khz"], 7.5, atol=0.5)


def test_a_single_click_does_not_widen_the_sound():
    noise = 0.1 * low_passed(np.random.default_rng(0).normal(size=144_000), 48_000, 8)
    noise[70_000] = 1.0
    values, _ = measure(noise)
    np.testing.assert_allclose(values["bandwidth_khz"], 7.5, atol=0.5)


def test_sound_that_is_not_there_is_masked():
    noise = 0.1 * np.random.default_rng(0).normal(size=96_000).astype(np.float32)
    present = np.arange(96_000) >= 48_000
    values, mask = fullband.features(noise * present, present, 48_000, 50)
    np.testing.assert_array_equal(mask, np.arange(50) >= 25)
    np.testing.assert_array_equal(values[mask, 1], 24)


def test_native_samples_are_those_of_the_file(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 44_100).astype(np.float32)
    path = media.simple(
        tmp_path / "a.mkv", sound=noise, sound_rate=44_100, sound_codec="pcm_s16le"
    )
    kept = decode.Media(wants_native=True)
    rows = sum(1 for _ in decode.frames(path, kept))
    assert (rows, kept.native_rate) == (25, 44_100)
    samples, present = sound.track(kept.native_chunks, rows, 44_100)
    assert present.all()
    np.testing.assert_allclose(samples, noise, atol=2 / 32768)
    plain = decode.Media()
    assert sum(1 for _ in decode.frames(path, plain)) == rows and not plain.native_rate
    for (at, one), (there, other) in zip(plain.chunks, kept.chunks, strict=True):
        assert at == there
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("khz", [*CUTS_KHZ, 24])
def test_a_cut_is_seen_through_the_codec_and_logmel_stays_as_it_is(tmp_path, khz):
    voice = media.speech(2.0)
    voice = voice if khz == 24 else low_passed(voice, media.RATE, khz)
    path = media.face(tmp_path / "a.mkv", 2.0, sound=voice, sound_codec="flac")
    options = backends.options(audio="logmel+fullband")
    found = clip.observe(path, options, ["audio/logmel", "audio/fullband"])
    alone = clip.observe(path, backends.options(), ["audio/logmel"])
    np.testing.assert_array_equal(
        found.parts["audio/logmel"], alone.parts["audio/logmel"]
    )
    bandwidth = found.features["audio"][:, 145 + 1]
    assert 0.8 * khz <= np.median(bandwidth) <= khz
    assert np.ptp(bandwidth) <= 0.5


CLIPS = pathlib.Path(os.environ.get("TQA_SHARED", "../shared")) / "data/clips"


@pytest.mark.skipif(not CLIPS.is_dir(), reason="needs the shared clips")
@pytest.mark.parametrize(
    ("name", "own_khz"),
    [
        ("LivePortrait__d11.mp4", 12.25),
        ("Wav2Lip-GFPGAN__kim_7s_raw.mp4", 15.75),
        ("SadTalker__RD_Radio2_000.mp4", 8.0),
    ],
)
def test_real_speech_ends_where_it_was_cut(name, own_khz):
    kept = decode.Media(wants_native=True)
    rows = sum(1 for _ in decode.frames(CLIPS / name, kept))
    rate = kept.native_rate
    samples, _ = sound.track(kept.native_chunks, rows, rate)
    values, _ = measure(samples, rate, rows)
    assert np.median(values["bandwidth_khz"]) == own_khz
    for khz in CUTS_KHZ:
        if 0.85 * khz < own_khz - 0.5 and 2000 * khz < rate:
            cut, _ = measure(low_passed(samples, rate, khz), rate, rows)
            found = np.percentile(cut["bandwidth_khz"], [5, 95])
            assert 0.75 * khz <= found[0] <= found[1] <= khz
