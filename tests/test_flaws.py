import numpy as np
import pytest
from scipy import signal

from extract import encode
from extract.degrading import (
    FRAME,
    RATE,
    Scene,
    flaws,
    harmless,
    picture_flaws,
    sound_flaws,
)
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


def _sound(flaw, audio, strength, seed=0, other=None):
    return flaws.plant("sound", audio, {flaw: strength}, Scene(seed, other=other))


def _shown(flaw, frames, strength, seed=0, x264=""):
    scene = Scene(seed, rows=len(frames), x264=x264)
    return np.stack(list(flaws.plant("picture", iter(frames), {flaw: strength}, scene)))


def test_equal_seeds_give_equal_flaws(audio, frames):
    for flaw in flaws.SOUND:
        one, two = (_sound(flaw, audio, 0.7, 4, audio[::-1]) for _ in range(2))
        assert np.any(one != audio)
        np.testing.assert_array_equal(one, two)
    for flaw in picture_flaws.FLAWS.keys() - {"damping"}:
        one, two = (_shown(flaw, frames, 0.7, 4, encode.SAME_BYTES) for _ in range(2))
        assert one.shape == frames.shape and np.any(one != frames)
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("seed", range(4))
def test_where_the_ends_of_shifted_sound_meet_there_is_no_click(seed):
    ramp = np.linspace(0.2, 0.8, 32_000).astype(np.float32)
    moved = _sound("offset", ramp, 1.0, seed)
    assert np.abs(np.diff(moved)).max() < 0.01
    shift = sound_flaws.offset_frames(1.0, seed) * FRAME
    near = np.abs(np.arange(32_000) + 0.5 - shift % 32_000) < 320
    np.testing.assert_array_equal(moved[~near], np.roll(ramp, shift)[~near])


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_band_limit_removes_what_is_above_its_cutoff(strength):
    white = np.random.default_rng(0).standard_normal(48_000).astype(np.float32) * 0.1
    cut = 7000 * 0.1**strength
    frequencies, before = signal.welch(white, RATE, nperseg=1024)
    limited = _sound("band_limit", white, strength)
    change = 10 * np.log10(signal.welch(limited, RATE, nperseg=1024)[1] / before)
    assert np.all(np.abs(change[(frequencies > 100) & (frequencies < 0.7 * cut)]) < 1)
    above = frequencies > min(1.3 * cut, 7600)
    assert np.mean(change[above]) < -25


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("silent", [0.0, 0.7, 0.999])
def test_clipping_cuts_the_planned_share_of_what_is_not_silent(audio, strength, silent):
    quiet = audio.copy()
    quiet[: round(silent * len(audio))] = 0
    cut = _sound("clipping", quiet, strength)
    assert np.all(np.isfinite(cut)) and np.abs(cut).max() <= 1
    np.testing.assert_array_equal(cut == 0, quiet == 0)
    at_limit = np.sum(np.abs(cut) >= np.abs(cut).max() * (1 - 1e-6))
    heard = np.count_nonzero(quiet)
    assert at_limit == pytest.approx(sound_flaws.MAX_CLIPPED * strength * heard, abs=2)
    if not silent:  # the loudness stays
        assert np.std(cut) == pytest.approx(np.std(audio), rel=1e-3)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_swap_replaces_the_planned_share_in_one_stretch(audio, strength):
    other = speech.synthesize(speech.draw_voice(1), seconds=3.2, seed=9).audio
    mixed = _sound("swap", audio, strength, 2, other)
    foreign = np.flatnonzero(mixed != audio)
    assert np.ptp(foreign) + 1 == pytest.approx(strength * len(audio), abs=2)
    inner = slice(foreign[0] + 400, foreign[-1] - 400)
    np.testing.assert_array_equal(mixed[inner], other[inner])


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("seed", range(5))
def test_frozen_frames_do_not_differ_and_have_the_planned_share(frames, strength, seed):
    held = _shown("freeze", frames, strength, seed)
    still = np.all(held[1:] == held[:-1], axis=(1, 2, 3))
    most = picture_flaws.MAX_FROZEN * strength
    assert still.sum() == round(most * (len(frames) - 1))
    # What moves shows its own instant: nothing drifts.
    np.testing.assert_array_equal(held[1:][~still], frames[1:][~still])


@pytest.mark.parametrize("strength", STRENGTHS)
def test_jitter_shows_the_planned_share_at_another_instant(strength):
    off = picture_flaws.jitter_picks(400, strength, 7) - np.arange(400)
    assert np.abs(off).max() <= picture_flaws.MAX_JITTER
    # Five standard deviations of a binomial share of 400.
    assert np.mean(off != 0) == pytest.approx(strength, abs=0.125)


# The labels that follow.


@pytest.mark.parametrize("flaw", flaws.FLAWS)
def test_labels_fall_with_strength_and_stay_in_range(flaw):
    rows = np.array(
        [list(flaws.labels({flaw: s}).values()) for s in np.linspace(0, 1, 9)]
    )
    change = np.diff(rows, axis=0)
    assert np.all(change <= 0) and np.all(rows >= 1) and np.all(rows <= 5)
    hurt = [task.name in flaws.FLAWS[flaw].penalties for task in schema.TASKS]
    assert np.all(change[:, hurt] < 0) and not change[:, np.logical_not(hurt)].any()
    assert hurt[-1] or flaw in harmless.FLAWS, "every flaw takes from `overall`"
    assert not any(hurt) or flaw not in harmless.FLAWS


def test_all_flaws_together_stay_in_range():
    worst = flaws.labels(dict.fromkeys(flaws.FLAWS, 1.0))
    assert all(1 <= score < 1.5 for score in worst.values())
