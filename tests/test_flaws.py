import numpy as np
import pytest
from scipy import signal

from extract.degrading import flaws
from extract.rendering import speech
from tqa_jax import schema

STRENGTHS = (0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def audio():
    return speech.synthesize(speech.draw_voice(1), seconds=3.2, seed=1).audio


@pytest.fixture(scope="module")
def frames():
    """A grey texture that slides by a pixel a frame."""
    rng = np.random.default_rng(0)
    wide = rng.uniform(0, 255, (32, 60, 1)).repeat(3, axis=0).repeat(3, axis=1)
    wide = wide.repeat(3, axis=2).astype(np.uint8)
    return np.stack([wide[:96, at : at + 96] for at in range(60)])


def _sharpness(frames):
    return float(np.abs(np.diff(frames.astype(np.float64), axis=2)).mean())


def test_strength_zero_changes_nothing(audio, frames):
    assert flaws.offset(audio, 0, 1) is audio
    assert flaws.noise(audio, 0, 1) is audio
    assert flaws.band_limit(audio, 0) is audio
    assert flaws.clipping(audio, 0) is audio
    assert flaws.swap(audio, audio, 0, 1) is audio
    assert flaws.blur(frames, 0) is frames
    assert flaws.compression(frames, 0) is frames
    assert flaws.freeze(frames, 0, 1) is frames
    assert flaws.jitter(frames, 0, 1) is frames


def test_equal_seeds_give_equal_flaws(audio, frames):
    other = audio[::-1]
    for made in (
        lambda: flaws.offset(audio, 0.7, 4),
        lambda: flaws.noise(audio, 0.7, 4),
        lambda: flaws.swap(audio, other, 0.4, 4),
        lambda: flaws.freeze(frames, 0.5, 4),
        lambda: flaws.jitter(frames, 0.5, 4),
        lambda: flaws.compression(frames, 0.5),
    ):
        np.testing.assert_array_equal(made(), made())


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_its_range_is_refused(audio, strength):
    with pytest.raises(schema.InputError, match="expected 0 to 1"):
        flaws.noise(audio, strength, 0)


@pytest.mark.parametrize("seed", range(6))
def test_the_offset_is_recovered_by_cross_correlation(audio, seed):
    strength = (1 + 2 * seed) / flaws.MAX_OFFSET
    planned = flaws.offset_frames(strength, seed)
    assert abs(planned) == 1 + 2 * seed
    moved = flaws.offset(audio, strength, seed)
    lags = signal.correlation_lags(len(moved), len(audio))
    best = lags[np.argmax(signal.correlate(moved, audio))]
    assert best == planned * flaws.RATE // flaws.FPS


def test_offsets_go_both_ways():
    assert {np.sign(flaws.offset_frames(1.0, seed)) for seed in range(20)} == {-1, 1}


@pytest.mark.parametrize("strength", STRENGTHS)
def test_noise_has_the_planned_ratio_to_the_signal(audio, strength):
    noisy = flaws.noise(audio, strength, 3)
    # What is not proportional to the signal is noise, however the sum was scaled.
    scale = np.dot(noisy, audio) / np.dot(audio, audio)
    rest = noisy - scale * audio
    snr = 10 * np.log10(np.sum((scale * audio) ** 2) / np.sum(rest**2))
    assert snr == pytest.approx(40 - 40 * strength, abs=1.0)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_band_limit_removes_what_is_above_its_cutoff(strength):
    white = np.random.default_rng(0).standard_normal(48_000).astype(np.float32) * 0.1
    cut = flaws.cutoff_hz(strength)
    frequencies, before = signal.welch(white, flaws.RATE, nperseg=1024)
    after = signal.welch(flaws.band_limit(white, strength), flaws.RATE, nperseg=1024)[1]
    change = 10 * np.log10(after / before)
    assert np.all(np.abs(change[(frequencies > 100) & (frequencies < 0.7 * cut)]) < 1)
    above = frequencies > min(1.3 * cut, 7600)
    assert np.mean(change[above]) < -25


@pytest.mark.parametrize("strength", STRENGTHS)
def test_clipping_cuts_the_planned_share_and_keeps_the_loudness(audio, strength):
    cut = flaws.clipping(audio, strength)
    share = np.mean(np.abs(cut) >= np.abs(cut).max() * (1 - 1e-6))
    assert share == pytest.approx(flaws.MAX_CLIPPED * strength, abs=0.002)
    assert np.abs(cut).max() <= 1
    assert np.std(cut) == pytest.approx(np.std(audio), rel=1e-3)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("silent", [0.0, 0.7, 0.999])
def test_digital_silence_is_not_clipped_and_does_not_count(audio, strength, silent):
    quiet = audio.copy()
    quiet[: round(silent * len(audio))] = 0
    cut = flaws.clipping(quiet, strength)
    assert np.all(np.isfinite(cut)) and np.abs(cut).max() <= 1
    np.testing.assert_array_equal(cut == 0, quiet == 0)
    at_limit = np.sum(np.abs(cut) >= np.abs(cut).max() * (1 - 1e-6))
    heard = np.count_nonzero(quiet)
    assert at_limit == pytest.approx(flaws.MAX_CLIPPED * strength * heard, abs=2)
    assert flaws.clipping(np.zeros_like(audio), strength).max() == 0


@pytest.mark.parametrize("seed", range(4))
def test_where_the_ends_of_shifted_sound_meet_there_is_no_click(seed):
    ramp = np.linspace(0.2, 0.8, 32_000).astype(np.float32)
    moved = flaws.offset(ramp, 1.0, seed)
    assert np.abs(np.diff(moved)).max() < 0.01
    shift = flaws.offset_frames(1.0, seed) * flaws.RATE // flaws.FPS
    near = np.abs(np.arange(32_000) + 0.5 - shift % 32_000) < 320
    np.testing.assert_array_equal(moved[~near], np.roll(ramp, shift)[~near])


def test_frames_that_are_compressed_one_by_one_are_the_same(frames):
    frames = np.tile(frames, (1, 1, 3, 1))[:, :, :256]  # see `encode`
    streamed = flaws.compressed(iter(frames), 0.6)
    np.testing.assert_array_equal(
        np.stack(list(streamed)), flaws.compression(frames, 0.6)
    )


@pytest.mark.parametrize("strength", STRENGTHS)
def test_swap_replaces_the_planned_share_in_one_stretch(audio, strength):
    other = speech.synthesize(speech.draw_voice(1), seconds=3.2, seed=9).audio
    mixed = flaws.swap(audio, other, strength, 2)
    foreign = np.flatnonzero(mixed != audio)
    assert np.ptp(foreign) + 1 == pytest.approx(strength * len(audio), abs=2)
    inner = slice(foreign[0] + 400, foreign[-1] - 400)
    np.testing.assert_array_equal(mixed[inner], other[inner])


def test_swap_refuses_speech_that_is_too_short(audio):
    with pytest.raises(schema.InputError, match="expected 51200 or more"):
        flaws.swap(audio, audio[:-1], 0.5, 0)


def test_blur_and_compression_take_detail_with_strength(frames):
    for flaw, least in ((flaws.blur, 0.7), (flaws.compression, 0.98)):
        sharp = [_sharpness(flaw(frames, s)) for s in (0.0, *STRENGTHS)]
        assert sharp[-1] < least * sharp[0], flaw.__name__
    blurred = [_sharpness(flaws.blur(frames, s)) for s in (0.0, *STRENGTHS)]
    assert blurred == sorted(blurred, reverse=True)


def test_compression_errs_more_with_strength_and_keeps_every_frame(frames):
    errors = []
    for strength in STRENGTHS:
        coded = flaws.compression(frames, strength)
        assert coded.shape == frames.shape and coded.dtype == np.uint8
        errors.append(np.abs(coded.astype(float) - frames).mean())
    assert errors == sorted(errors) and errors[-1] > 2 * errors[0]


def test_compression_refuses_odd_sizes(frames):
    with pytest.raises(schema.InputError, match="95x96"):
        flaws.compression(frames[:, :, :95], 0.5)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("seed", range(5))
def test_frozen_frames_do_not_differ_and_have_the_planned_share(frames, strength, seed):
    held = flaws.freeze(frames, strength, seed)
    still = np.all(held[1:] == held[:-1], axis=(1, 2, 3))
    assert still.sum() == round(flaws.MAX_FROZEN * strength * (len(frames) - 1))
    # What moves shows its own instant: nothing drifts.
    np.testing.assert_array_equal(held[1:][~still], frames[1:][~still])


@pytest.mark.parametrize("count", range(1, 10))
def test_short_clips_freeze_as_well(frames, count):
    for seed in range(20):
        held = flaws.freeze(frames[:count], 1.0, seed)
        still = np.all(held[1:] == held[:-1], axis=(1, 2, 3))
        assert still.sum() == round(flaws.MAX_FROZEN * (count - 1))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_jitter_shows_the_planned_share_at_another_instant(frames, strength):
    numbered = np.arange(400, dtype=np.uint16)[:, None, None, None]
    shown = flaws.jitter(numbered, strength, 7)[:, 0, 0, 0].astype(int)
    off = shown - np.arange(400)
    assert np.abs(off).max() <= flaws.MAX_JITTER
    # Five standard deviations of a binomial share of 400.
    assert np.mean(off != 0) == pytest.approx(strength, abs=0.125)
