"""DNSMOS and PLCMOS of the sound, against the package that ships their weights."""

import importlib.util
import warnings

import numpy as np
import pytest
import scipy.signal

from extract import backends, clip
from extract.backends import dnsmos
from tests import media
from tqa_jax import cli, schema

ABSENT = [n for n in ("onnxruntime", "speechmos") if not importlib.util.find_spec(n)]
needs = pytest.mark.skipif(bool(ABSENT), reason="needs the perceptual extra")
RATE = 16_000


def voice(seconds, noise=0.01):
    """A buzz with formants in syllables, and hiss."""
    rng = np.random.default_rng(0)
    at = np.arange(round(seconds * RATE)) / RATE
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.5 * at)
    buzz = scipy.signal.sawtooth(2 * np.pi * np.cumsum(pitch) / RATE)
    for hertz in (600, 1200, 2600):
        buzz = buzz + scipy.signal.lfilter(
            *scipy.signal.iirpeak(hertz, 8, fs=RATE), buzz
        )
    loud = np.clip(np.sin(2 * np.pi * 1.7 * at), 0, 1)
    return (0.1 * loud * buzz + noise * rng.normal(size=len(at))).astype(np.float32)


def measure(samples):
    """Features of the rows, through what the commands call."""
    rows = len(samples) * 25 // RATE
    found = backends.Clip(
        path=None,
        rows=rows,
        frame_seconds=(),
        points=None,
        blendshapes=None,
        seen=None,
        aspect=1.0,
        samples=samples,
        present=np.ones(len(samples), bool),
        notes=[],
    )
    setting = backends.Setting("audio", "dnsmos")
    values, mask = backends.load("dnsmos").make(setting).finish(found)
    assert mask.all() and values.shape == (rows, 5)
    return values


def package(samples):
    """What the package's own functions say of the whole sound."""
    pytest.importorskip("librosa")
    pytest.importorskip("requests")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from speechmos import dnsmos as theirs

        found = theirs.run(samples, RATE)
    return [found[f"{name}_mos"] for name in ("sig", "bak", "ovrl", "p808")]


@needs
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1])
def test_a_window_is_what_the_package_says_of_it(noise):
    samples = voice(9.5, noise)
    values = measure(samples)
    np.testing.assert_array_equal(np.ptp(values, axis=0), 0)
    np.testing.assert_allclose(values[0, :4], package(samples), atol=2e-4)


@needs
def test_windows_follow_each_other_by_a_second_and_rows_lie_between_them():
    samples = np.concatenate([voice(6), voice(6, 0.1)])
    values = measure(samples)
    windows = [package(samples[at * RATE :][: dnsmos.WINDOW]) for at in range(3)]
    np.testing.assert_allclose(np.mean(windows, axis=0), package(samples), atol=2e-4)
    middles = np.arange(3) + 9.01 / 2
    for column, of_windows in zip(values.T[:4], np.transpose(windows), strict=True):
        expected = np.interp(np.arange(300) / 25, middles, of_windows)
        np.testing.assert_allclose(column, expected, atol=2e-4)


@needs
def test_short_sound_is_doubled_as_the_package_does():
    samples = voice(2.0)
    windows = dnsmos.cut(samples)
    np.testing.assert_array_equal(windows[0], np.tile(samples, 5)[: dnsmos.WINDOW])
    assert len(windows) == int(16 - 9.01) + 1
    np.testing.assert_allclose(measure(samples)[0, :4], package(windows[0]), atol=2e-4)


@needs
def test_packet_loss_is_heard_as_by_the_packages_raters(monkeypatch):
    from speechmos import plcmos as theirs

    whole = voice(9.01)
    broken = whole.copy()
    for start in np.random.default_rng(1).integers(0, len(whole) - 640, 40):
        broken[start : start + 640] = 0
    network = theirs.PLCMOS()
    for samples in (whole, broken, np.zeros_like(whole)):
        ours = network.stft_transform(samples)
        np.testing.assert_allclose(dnsmos._log_power(samples), ours, rtol=1e-5)
        rater = {"rater_embed": np.zeros((1, 64), np.float32)}
        spectrum = {"degraded_audio": ours.astype(np.float32)[None, None]}
        opinion = network.session.run(None, rater | spectrum)[0]
        np.testing.assert_allclose(measure(samples)[:, 4], opinion, atol=1e-3)
    monkeypatch.setattr(np.random, "normal", np.random.default_rng(0).normal)
    assert abs(network.get_mos(whole) - measure(whole)[0, 4]) < 0.5
    assert measure(whole)[0, 4] > measure(broken)[0, 4] + 0.3


@needs
def test_two_runs_give_the_same_bytes_through_the_commands(tmp_path):
    path = media.face(tmp_path / "a.mp4", 0.6)
    options = backends.options(audio="logmel+dnsmos")
    described = {m.name: m for m in backends.check(options)}["audio"]
    assert (described.width, described.version) == (150, "1+1")
    one, two = (clip.observe(path, options, ["audio/dnsmos"]) for _ in range(2))
    np.testing.assert_array_equal(
        one.features["audio"], two.features["audio"], strict=True
    )


def test_without_the_package_it_is_one_line(monkeypatch):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(schema.InputError, match="extra perceptual") as caught:
        backends.check(backends.options(audio="dnsmos"))
    assert "\n" not in str(caught.value)
