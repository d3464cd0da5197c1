import numpy as np

from extract.rendering import portrait


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
