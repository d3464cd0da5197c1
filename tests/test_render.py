import numpy as np
import pytest

from extract import landmarks
from extract.rendering import portrait, render, speech


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
