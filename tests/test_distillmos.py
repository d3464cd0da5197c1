"""DistillMOS of the sound; that it equals the package is in test_parity_distillmos."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from extract import backends, clip, network_stage
from extract.backends import distillmos
from tests import media
from tqa_jax import cli, schema

needs = pytest.mark.skipif(
    importlib.util.find_spec("distillmos") is None, reason="needs the distillmos extra"
)
RATE = 16_000
# Of `voice` of so many seconds, by the package's own function.
OPINIONS = {3: 2.612753, 7.68: 2.259890, 9: 2.214372, 12.5: 2.242817}


def voice(seconds):
    """A buzz with formants in syllables, and hiss."""
    at = np.arange(round(seconds * RATE)) / RATE
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.5 * at)
    buzz = scipy.signal.sawtooth(2 * np.pi * np.cumsum(pitch) / RATE)
    buzz = sum(
        scipy.signal.lfilter(*scipy.signal.iirpeak(hertz, 8, fs=RATE), buzz)
        for hertz in (600, 1200, 2600)
    )
    hiss = np.random.default_rng(0).normal(size=len(at))
    loud = np.clip(np.sin(2 * np.pi * 1.7 * at), 0, 1)
    return (0.1 * loud * buzz + 0.002 * hiss).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    return distillmos.network(distillmos.find(None), jnp.float32)


def windows(network, samples):
    """What the network says of each window of the package."""
    (columns,) = network.inputs({"samples": samples})["windows"]
    return np.concatenate([network.run["windows"](row[None]) for row in columns])


@needs
@pytest.mark.parametrize("seconds", OPINIONS)
def test_the_mean_of_the_windows_is_what_the_package_says(network, seconds):
    found = windows(network, voice(seconds))
    assert found.shape == (max(1, int(np.ceil(seconds - 7.68)) + 1), 201)
    np.testing.assert_allclose(found[:, 0].mean(), OPINIONS[seconds], atol=1e-4)


@needs
def test_rows_lie_between_windows_and_a_row_without_sound_is_nan(network):
    samples = np.concatenate([voice(6), 0.1 * voice(6)[::-1]])
    found = windows(network, samples)
    mask = np.arange(300) != 7
    values, kept = network.finish({"samples": samples}, mask, {"windows": found})
    np.testing.assert_array_equal(kept, mask)
    assert np.isnan(values[7]).all() and np.isfinite(values[mask]).all()
    middles = distillmos.starts(len(samples)) / RATE + 7.68 / 2
    np.testing.assert_allclose(np.diff(middles), 4.32 / 5, atol=1e-4)
    for column in (0, 1, 200):
        expected = np.interp(np.arange(300) / 25, middles, found[:, column])
        np.testing.assert_allclose(values[mask, column], expected[mask], rtol=1e-5)


@needs
def test_loudness_and_what_shares_a_batch_change_nothing(network):
    samples = voice(7.68)
    pair = np.stack([samples, 0.01 * samples])
    one, other = np.asarray(network.run["windows"](pair))
    np.testing.assert_allclose(one, other, atol=2e-4)
    np.testing.assert_allclose(one, windows(network, samples)[0], atol=1e-5)
    silent = np.asarray(network.run["windows"](np.zeros_like(pair)))
    assert np.isfinite(silent).all()


@needs
def test_it_goes_through_both_stages(tmp_path):
    path = media.face(tmp_path / "a.mp4", 0.6)
    options = backends.options(audio="logmel+distillmos")
    described = {m.name: m for m in backends.check(options)}["audio"]
    assert described.width == 145 + 201 and "distillmos 0.9.1" in described.description
    stage = network_stage.Networks(
        [s for s in options.settings if s.backend == "distillmos"]
    )
    names = ["audio/logmel", "audio/distillmos"]
    ((_, found),) = [
        *stage.add("a", clip.observe(path, options, names)),
        *stage.finish(),
    ]
    values = found.parts["audio/distillmos"]
    assert values.shape == (15, 201) and 1 <= values[0, 0] <= 5
    np.testing.assert_array_equal(np.ptp(values, axis=0), 0)


def test_without_the_package_or_with_other_weights_it_is_one_line(monkeypatch):
    for values, message in (
        ({}, "extra distillmos"),
        ({"audio_weights": "mine.pt"}, "takes only the weights of its package"),
    ):
        monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(schema.InputError, match=message) as caught:
            backends.check(backends.options(audio="distillmos", **values))
        assert "\n" not in str(caught.value)
