"""Who is rendered, what is said, and the face that says it."""

import numpy as np
import pytest

from extract import landmarks
from extract.rendering import portrait, render, speech


def test_identities_are_deterministic_and_differ_in_shape_and_colour():
    first = portrait.draw(1, beard_allowed=False)
    portrait.draw.cache_clear()
    again = portrait.draw(1, beard_allowed=False)
    other = portrait.draw(2, beard_allowed=False)
    np.testing.assert_array_equal(first.canvas, again.canvas)
    np.testing.assert_array_equal(first.mesh, again.mesh)
    assert np.abs(first.mesh - other.mesh).mean() > 2
    assert (
        np.abs(first.canvas[..., :3].astype(float) - other.canvas[..., :3]).mean() > 2
    )


def test_every_identity_shows_its_whole_face():
    x, y = np.meshgrid([190, 224, 258], [80, 120, 170])
    for seed in range(40):
        mesh = portrait.draw(seed, beard_allowed=True).mesh
        for point in zip(x.flat, y.flat, strict=True):
            nearest = np.hypot(*(mesh - point).transpose(2, 0, 1))
            row, column = np.unravel_index(nearest.argmin(), nearest.shape)
            assert nearest.min() < 1.0, (seed, point)
            assert 3 <= row < portrait.SIZE - 3 and 3 <= column < portrait.SIZE - 3


def test_the_shape_of_no_face_folds():
    for seed in range(40):
        mesh = portrait.draw(seed, beard_allowed=False).mesh
        down = np.diff(mesh[..., 1], axis=0)
        along = np.diff(mesh[..., 0], axis=1)
        assert down.min() > 0.1
        assert np.sign(along.min()) == np.sign(along.max())


def test_a_person_is_opaque_and_the_space_beside_is_not():
    canvas = portrait.draw(3, beard_allowed=False).canvas

    def opacity(x, y):
        row, column = (y - portrait.TOP), (x - portrait.LEFT)
        return canvas[row * portrait.ZOOM, column * portrait.ZOOM, 3]

    assert min(opacity(224, 130), opacity(224, 60), opacity(180, 100)) == 255
    assert max(opacity(110, 40), opacity(330, 100), opacity(140, 100)) == 0


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


def test_an_open_mouth_is_dark_inside():
    identity = portrait.draw(2, beard_allowed=False)
    frames = render.render(identity, _still([0.0, 0.3, 0.6, 0.9]))
    dark = np.mean(_mouth(identity, frames).max(axis=-1) < 75, axis=1)
    assert dark[0] < 0.02
    assert np.all(np.diff(dark) > 0) and dark[-1] > 0.2


def test_only_the_mouth_moves_when_only_the_mouth_moves():
    identity = portrait.draw(2, beard_allowed=False)
    frames = render.render(identity, _still([0.0, 0.8])).astype(float)
    change = np.abs(frames[1] - frames[0]).mean(axis=-1)
    upper = (identity.mesh[..., 1] > 60) & (identity.mesh[..., 1] < 115)
    lower = (abs(identity.mesh[..., 0] - 224) < 18) & (
        abs(identity.mesh[..., 1] - 155) < 18
    )
    assert change[upper].mean() < 3.5  # the camera's noise alone
    assert change[lower].mean() > 12


def test_damping_scales_the_expression_and_leaves_the_mouth():
    alive, half, still = (_talk(3, damping=d) for d in (0.0, 0.5, 1.0))
    for name in ("smile", "brow", "blink", "head"):
        whole = getattr(alive, name)
        assert np.ptp(whole) > 0
        np.testing.assert_allclose(getattr(half, name), 0.5 * whole)
        assert not getattr(still, name).any()
    np.testing.assert_array_equal(alive.opening, still.opening)


def test_an_excited_face_smiles_and_moves_more():
    calm, excited = _talk(3, arousal=0.1), _talk(3, arousal=0.9)
    assert excited.smile.mean() > calm.smile.mean() + 0.4
    assert excited.head.std() > 1.5 * calm.head.std()


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
