"""Who is rendered, what is said, and the face that says it."""

import numpy as np
import pytest

from extract import landmarks
from extract.rendering import portrait, render, speech


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


def _talk(seed, count=80, **changes):
    said = speech.synthesize(speech.draw_voice(seed), seconds=count / 25, seed=seed)
    return render.draw_motion(
        said.opening, said.spread, **{"arousal": 0.5, "seed": seed, **changes}
    )


def _still(opening):
    """A face that does nothing but open its mouth."""
    nothing = np.zeros(len(opening))
    return render.Motion(
        opening=np.asarray(opening),
        spread=nothing,
        smile=nothing,
        brow=nothing,
        blink=nothing,
        head=np.zeros((len(opening), 6)),
    )


def _mouth(identity, frames):
    """Pixels of the frames that show the portrait's mouth."""
    x, y = identity.mesh[..., 0], identity.mesh[..., 1]
    return frames[:, (abs(x - portrait.MOUTH[0]) < 12) & (abs(y - 148) < 8)]


def test_equal_arguments_give_equal_pixels_and_identities_differ():
    motion = _talk(0, 5)
    frames = [
        render.render(portrait.draw(seed, beard_allowed=True), motion, seed=1)
        for seed in (7, 7, 8)
    ]
    np.testing.assert_array_equal(frames[0], frames[1])
    assert np.abs(frames[0].astype(float) - frames[2]).mean() > 15


def test_damping_scales_the_expression_and_leaves_the_mouth():
    alive, half, still = (_talk(3, damping=d) for d in (0.0, 0.5, 1.0))
    for name in ("smile", "brow", "blink", "head"):
        whole = getattr(alive, name)
        assert np.ptp(whole) > 0
        np.testing.assert_allclose(getattr(half, name), 0.5 * whole)
        assert not getattr(still, name).any()
    np.testing.assert_array_equal(alive.opening, still.opening)


@pytest.mark.slow
def test_the_landmarker_sees_what_the_face_does():
    names = list(landmarks.BLENDSHAPES)
    found, seen = [], []
    for seed in range(6):
        motion = _talk(seed)
        identity = portrait.draw(seed, beard_allowed=seed % 2 == 0)
        with landmarks.tracker(landmarks.find_model()) as find:
            faces = [find(frame) for frame in render.render(identity, motion)]
        seen.append(np.mean([face is not None for face in faces]))
        shapes = np.array([face.blendshapes for face in faces])
        jaw = shapes[:, names.index("jawOpen")]
        lids = shapes[:, names.index("eyeBlinkLeft")]
        found.append(
            (
                np.corrcoef(jaw, motion.opening)[0, 1],
                np.corrcoef(lids, motion.blink)[0, 1],
            )
        )
    assert min(seen) == 1.0
    jaw, lids = np.mean(found, axis=0)
    assert jaw > 0.75 and lids > 0.9


def test_a_hand_before_the_face_hides_it():
    identity = portrait.draw(1, beard_allowed=False)
    motion = _still(np.zeros(16))
    frames = render.render(identity, motion, covered=(2, 14)).astype(float)
    bare = render.render(identity, motion).astype(float)
    change = np.abs(_mouth(identity, frames) - _mouth(identity, bare)).mean(axis=(1, 2))
    assert change[[0, 1, 14, 15]].max() == 0
    assert change[5:11].min() > 20
