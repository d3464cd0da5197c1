import numpy as np
import pytest

from extract.rendering import speech


def _levels(audio: np.ndarray) -> np.ndarray:
    """Root mean square around each row."""
    padded = np.pad(audio, 320)
    return np.array(
        [
            np.sqrt(np.mean(np.square(padded[at : at + 640])))
            for at in range(0, len(audio), 640)
        ]
    )


def test_equal_seeds_give_equal_bits_and_others_do_not():
    voice = speech.draw_voice(3)
    first = speech.synthesize(voice, seconds=2.0, arousal=0.4, seed=5)
    again = speech.synthesize(voice, seconds=2.0, arousal=0.4, seed=5)
    other = speech.synthesize(voice, seconds=2.0, arousal=0.4, seed=6)
    assert first.audio.tobytes() == again.audio.tobytes()
    assert first.opening.tobytes() == again.opening.tobytes()
    assert abs(np.corrcoef(first.audio, other.audio)[0, 1]) < 0.2


def test_audio_and_articulation_share_one_time_axis():
    said = speech.synthesize(speech.draw_voice(0), seconds=3.2)
    assert said.audio.shape == (51_200,)
    assert said.opening.shape == said.spread.shape == (80,)
    assert np.abs(said.audio).max() < 1
    assert 0 <= said.opening.min() and 0.4 < said.opening.max() < 1
    assert np.abs(said.spread).max() <= 1


def test_loudness_follows_the_opening_of_the_mouth_without_a_lag():
    shifts = range(-6, 7)
    found = []
    for seed in range(12):
        said = speech.synthesize(speech.draw_voice(seed), seconds=3.2, seed=seed)
        levels = _levels(said.audio)
        found.append(
            [np.corrcoef(np.roll(said.opening, k), levels)[0, 1] for k in shifts]
        )
    mean = np.mean(found, axis=0)
    assert mean.max() > 0.6
    assert abs(list(shifts)[int(mean.argmax())]) <= 1


@pytest.mark.parametrize("seed", range(4))
def test_voiced_speech_has_the_pitch_of_its_voice(seed):
    voice = speech.draw_voice(seed)
    audio = speech.synthesize(voice, seconds=3.0, arousal=0.0, seed=seed).audio
    lags = np.arange(speech.RATE // 400, speech.RATE // 60)
    spectrum = np.abs(np.fft.rfft(audio, 2 * len(audio))) ** 2
    periodicity = np.fft.irfft(spectrum)[lags]
    pitch = speech.RATE / lags[periodicity.argmax()]
    # Within the calm melody's reach of two or three semitones.
    assert abs(12 * np.log2(pitch / voice.pitch)) < 3.5


def test_excited_speech_is_louder_and_its_mouth_wider():
    voice = speech.draw_voice(1)
    calm = speech.synthesize(voice, seconds=3.2, arousal=0.0, seed=2)
    excited = speech.synthesize(voice, seconds=3.2, arousal=1.0, seed=2)
    gain = np.std(excited.audio) / np.std(calm.audio)
    assert 2.0 < gain < 4.0
    assert excited.opening.max() > calm.opening.max()
