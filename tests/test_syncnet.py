import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from extract.networks import syncnet
from tqa_jax import schema

# (place in the checkpoint, outputs, kernel) of the convolutions, (outputs, inputs) of
# the last layers, as in the public checkpoint.
SOUND = (
    (0, 64, (1, 3, 3)),
    (4, 192, (64, 3, 3)),
    (8, 384, (192, 3, 3)),
    (11, 256, (384, 3, 3)),
    (14, 256, (256, 3, 3)),
    (18, 512, (256, 5, 4)),
)
FACE = (
    (0, 96, (3, 5, 7, 7)),
    (4, 256, (96, 1, 5, 5)),
    (8, 256, (256, 1, 3, 3)),
    (11, 256, (256, 1, 3, 3)),
    (14, 256, (256, 1, 3, 3)),
    (18, 512, (256, 1, 6, 6)),
)


def tensors(seed=0):
    """Random weights by the names and shapes of the public checkpoint.

    Their scale keeps the numbers between the layers near 1 for pixels and cepstra.
    """
    rng = np.random.default_rng(seed)
    found = {}

    def norm(name, width):
        found[f"{name}.weight"] = rng.uniform(0.5, 1.5, width)
        found[f"{name}.bias"] = rng.normal(size=width) * 0.2
        found[f"{name}.running_mean"] = rng.normal(size=width) * 0.2
        found[f"{name}.running_var"] = rng.uniform(0.5, 1.5, width)
        found[f"{name}.num_batches_tracked"] = np.array(7)

    def layer(name, outputs, inputs, scale):
        spread = scale * math.sqrt(2 / math.prod(inputs))
        found[f"{name}.weight"] = rng.normal(size=(outputs, *inputs)) * spread
        found[f"{name}.bias"] = rng.normal(size=outputs) * 0.1

    for name, layers, scale in (("aud", SOUND, 0.1), ("lip", FACE, 0.01)):
        for place, outputs, inputs in layers:
            first = scale if place == 0 else 1.0
            layer(f"netcnn{name}.{place}", outputs, inputs, first)
            norm(f"netcnn{name}.{place + 1}", outputs)
        head = "netfclip" if name == "lip" else "netfcaud"
        layer(f"{head}.0", 512, (512,), 1.0)
        norm(f"{head}.1", 512)
        layer(f"{head}.3", 1024, (512,), 1.0)
    return {
        name: value if value.dtype == np.int64 else value.astype(np.float32)
        for name, value in found.items()
    }


@functools.cache
def checkpoint():
    return tensors()


@functools.cache
def params():
    return syncnet.from_tensors(checkpoint())


def windows_of_sound(count, seed=0):
    rng = np.random.default_rng(seed)
    return (10 * rng.normal(size=(count, 20, 13))).astype(np.float32)


def windows_of_faces(count, seed=0):
    """Random tiles and a little noise: white noise would all look the same."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 241, (count, 5, 14, 14, 3), np.uint8)
    noise = rng.integers(0, 16, (count, 5, 224, 224, 3), np.uint8)
    return tiles.repeat(16, axis=2).repeat(16, axis=3) + noise


def reference(found, kind, x):
    """The network in NumPy, of one (C, H, W); batch norm is applied, not folded.

    Pictures over time are channels: the kernels of the checkpoint reach over all of
    them or over one.
    """

    def norm(name, x):
        mean, variance, weight, bias = (
            found[f"{name}.{part}"].astype(float)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        shape = (-1,) + (1,) * (x.ndim - 1)
        x = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + 1e-5)
        return x * weight.reshape(shape) + bias.reshape(shape)

    def windows(x, kernel, strides, pad, value):
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)), constant_values=value)
        cut = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))
        return cut[:, :: strides[0], :: strides[1]]  # (C, H, W, kernel)

    pads = {"lip": (0, 1, 1, 1, 1, 0), "aud": (1, 1, 1, 1, 1, 0)}[kind]
    strides = {"lip": (2, 2, 1, 1, 1, 1), "aud": (1,) * 6}[kind]
    pools = {
        "lip": {0: ((2, 2), 0), 1: ((2, 2), 1), 4: ((2, 2), 0)},
        "aud": {1: ((1, 2), 0), 4: ((2, 2), 0)},
    }[kind]
    for index, place in enumerate((0, 4, 8, 11, 14, 18)):
        name = f"netcnn{kind}.{place}"
        weight = found[f"{name}.weight"].astype(float)
        weight = weight.reshape(len(weight), -1, *weight.shape[-2:])
        stride = (strides[index],) * 2
        cut = windows(x, weight.shape[-2:], stride, pads[index], 0.0)
        x = np.tensordot(weight, cut, ((1, 2, 3), (0, 3, 4)))
        x += found[f"{name}.bias"].astype(float)[:, None, None]
        x = np.maximum(norm(f"netcnn{kind}.{place + 1}", x), 0)
        if index in pools:
            x = windows(x, (3, 3), *pools[index], -np.inf).max(axis=(-2, -1))
    assert x.shape == (512, 1, 1)
    head = f"netfc{kind}"
    x = found[f"{head}.0.weight"].astype(float) @ x.ravel() + found[f"{head}.0.bias"]
    x = np.maximum(norm(f"{head}.1", x), 0)
    return found[f"{head}.3.weight"].astype(float) @ x + found[f"{head}.3.bias"]


def error(found, expected):
    """The largest difference over the largest number."""
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_sound_embeddings_equal_the_layers_one_by_one():
    windows = windows_of_sound(2)
    found = np.asarray(jax.jit(syncnet.sounds)(params(), windows))
    for window, embedding in zip(windows, found, strict=True):
        expected = reference(checkpoint(), "aud", window.T[None].astype(float))
        assert error(embedding, expected) < 1e-5
    assert error(found[0], found[1]) > 0.1, "different sounds, different numbers"


def test_face_embeddings_equal_the_layers_one_by_one():
    windows = windows_of_faces(1)
    found = np.asarray(jax.jit(syncnet.faces)(params(), windows))
    blue_first = windows[0, ..., ::-1].astype(float)
    # (5, H, W, C) -> (C x 5, H, W)
    channels = blue_first.transpose(3, 0, 1, 2).reshape(15, 224, 224)
    expected = reference(checkpoint(), "lip", channels)
    assert error(found[0], expected) < 1e-5


def test_the_first_convolution_is_the_same_on_every_device():
    rng = np.random.default_rng(0)
    for height, width in ((224, 31), (10, 9), (7, 8)):
        x = rng.normal(size=(2, height, width, 3)).astype(np.float32)
        kernel = rng.normal(size=(7, 7, 3, 5)).astype(np.float32)
        expected = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        found = syncnet._by_rows(x, kernel)
        assert error(np.asarray(found), np.asarray(expected)) < 1e-5


def test_it_compiles_for_every_device():
    for function, windows in (
        (syncnet.faces, jax.ShapeDtypeStruct((4, 5, 224, 224, 3), np.uint8)),
        (syncnet.sounds, jax.ShapeDtypeStruct((4, 20, 13), np.float32)),
    ):
        for device in ("cpu", "cuda", "tpu"):
            lowered = jax.export.export(jax.jit(function), platforms=[device])
            assert lowered(params(), windows).platforms == (device,)


def test_bfloat16_is_near():
    windows = windows_of_sound(4)
    exact = np.asarray(jax.jit(syncnet.sounds)(params(), windows))
    found = np.asarray(
        jax.jit(syncnet.sounds, static_argnums=2)(params(), windows, jnp.bfloat16)
    )
    assert found.dtype == np.float32
    # Eight bits are 0.4 %; eight layers of rounding add up to a few times that.
    assert 1e-4 < error(found, exact) < 2e-2


def test_names_may_have_prefixes():
    plain = params()
    for prefix in ("__S__.", "module.", "module.__S__."):
        named = {prefix + name: value for name, value in checkpoint().items()}
        other = syncnet.from_tensors(named)
        assert jax.tree.all(jax.tree.map(np.array_equal, plain, other))


def test_wrong_tensors_are_named():
    wrong = dict(checkpoint())
    del wrong["netcnnlip.5.running_mean"]
    wrong["netfcaud.3.weight"] = wrong["netfcaud.3.weight"][:512]
    with pytest.raises(schema.InputError) as caught:
        syncnet.from_tensors(wrong)
    message = str(caught.value)
    assert "netcnnlip.5.running_mean is missing, expected (256,)" in message
    assert "netfcaud.3.weight has shape (512, 512), expected (1024, 512)" in message
    with pytest.raises(schema.InputError, match="and 85 more"):
        syncnet.from_tensors({})


def embeddings(num_windows, late, noise=0.3, seed=0):
    """Embeddings of a clip whose sound is late by some rows, known by construction."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(num_windows + 40, syncnet.WIDTH)).astype(np.float32)
    own = rng.normal(size=(2, num_windows, syncnet.WIDTH)).astype(np.float32)
    faces = common[20 : 20 + num_windows] + noise * own[0]
    sounds = common[20 - late : 20 - late + num_windows] + noise * own[1]
    return faces, sounds


def public_distances(faces, sounds, reach=15):
    """The public code's distances: zeros beyond the ends of the clip."""
    padded = np.pad(sounds, ((reach, reach), (0, 0)))
    return np.array(
        [
            [
                math.sqrt(np.sum((face - padded[t + j] + 1e-6) ** 2, dtype=float))
                for j in range(2 * reach + 1)
            ]
            for t, face in enumerate(faces)
        ]
    )


@pytest.mark.parametrize("late", [-15, -6, -1, 0, 1, 6, 15])
def test_a_planted_shift_is_found_positive_when_the_audio_is_late(late):
    distances = syncnet.lags(*embeddings(120, late))
    found = syncnet.measures(distances)
    assert found.offset_frames == late
    # Where they fit only the noise is left: its two parts have 0.3^2 each.
    fit = math.sqrt(1024 * 2 * 0.3**2)
    assert found.lse_d == pytest.approx(fit, rel=0.02)
    apart = math.sqrt(1024 * (2 + 2 * 0.3**2))
    assert found.lse_c == pytest.approx(apart - fit, rel=0.02)
    values, mask = syncnet.features(distances, np.ones(124, bool))
    assert mask.all() and (values[:, 3] == 1).all()
    assert (values[:, 2] == late).all()


def test_distances_equal_the_public_code_inside_the_clip():
    faces, sounds = embeddings(40, 2)
    found = syncnet.lags(faces, sounds)
    expected = public_distances(faces, sounds)
    places = np.arange(40)[:, None] + np.arange(-15, 16)
    inside = (places >= 0) & (places < 40)
    np.testing.assert_array_equal(np.isfinite(found), inside)
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-5)


def test_measures_equal_the_public_formulas():
    distances = public_distances(*embeddings(30, 4, noise=1.0))
    means = distances.mean(axis=0)
    found = syncnet.measures(distances)
    assert found.lse_d == pytest.approx(means.min(), rel=1e-6)
    assert found.lse_c == pytest.approx(np.median(means) - means.min(), rel=1e-6)
    public_offset = 15 - np.argmin(means)  # negative when the audio is late
    assert found.offset_frames == -public_offset == 4


def test_fewer_sounds_than_faces_are_no_problem():
    faces, sounds = embeddings(60, 3)
    distances = syncnet.lags(faces, sounds[:-1])
    assert np.isnan(distances[-1, 15]) and np.isfinite(distances[-2, 15])
    assert syncnet.measures(distances).offset_frames == 3


def test_a_shift_is_seen_at_its_row():
    # Sound 8 rows late from window 148 on: faces below 148 fit at lag 0, those from
    # 140 on at lag 8. Their middle, 143.5, is the instant of row 145.5.
    faces, sounds = embeddings(296, 0)
    _, late = embeddings(296, 8)
    sounds[148:] = late[148:]
    values, _ = syncnet.features(syncnet.lags(faces, sounds), np.ones(300, bool))
    np.testing.assert_array_equal(values[:, 2], np.where(np.arange(300) < 146, 0, 8))
    assert int(np.argmax(values[:, 0])) in (145, 146)


def test_features_equal_a_loop():
    rng = np.random.default_rng(5)
    distances = rng.uniform(5, 15, (96, 31)).astype(np.float32)
    distances[40:52] = np.nan  # a face is missing
    distances[:, 0][rng.random(96) < 0.6] = np.nan
    seen = np.ones(100, bool)
    seen[44:52] = False
    values, mask = syncnet.features(distances, seen)
    np.testing.assert_array_equal(mask, seen)
    for row in (0, 27, 43, 53, 75, 99):
        start = min(max(row - 2 - 25, 0), 96 - 51)
        part = distances[start : start + 51].astype(float)
        known = np.isfinite(part).sum(axis=0)
        means = np.array(
            [np.nanmean(part[:, j]) if known[j] >= 25.5 else np.nan for j in range(31)]
        )
        expected = [np.nanmin(means), np.nanmedian(means) - np.nanmin(means)]
        np.testing.assert_allclose(values[row, :2], expected, rtol=1e-5)
        assert values[row, 2] == np.nanargmin(means) - 15
        assert np.isnan(means[0]) and values[row, 3] == 1


def test_rows_without_face_or_sound_are_masked():
    faces, sounds = embeddings(146, 0)
    faces[100:] = np.nan
    seen = np.arange(150) < 104
    values, mask = syncnet.features(syncnet.lags(faces, sounds), seen)
    # Of row 102's 51 windows, 75 to 125, only 25 have faces.
    np.testing.assert_array_equal(mask, np.arange(150) < 102)
    assert np.isnan(values[~mask]).all() and np.isfinite(values[mask]).all()
    faces, sounds = embeddings(146, 0)
    sounds[60:] = np.nan
    values, mask = syncnet.features(syncnet.lags(faces, sounds), np.ones(150, bool))
    assert mask[:60].all() and not mask[64:].any()


@pytest.mark.parametrize("num_rows", [0, 1, 4, 5, 6, 23, 24, 30])
def test_short_clips_work(num_rows):
    num_windows = max(0, num_rows - 4)
    faces, sounds = embeddings(num_windows, 1)
    distances = syncnet.lags(faces, sounds[: max(0, num_windows - 1)])
    values, mask = syncnet.features(distances, np.ones(num_rows, bool))
    assert values.shape == (num_rows, 4) and mask.shape == (num_rows,)
    assert np.isfinite(values[mask]).all()
    if num_rows >= 24:
        assert (values[:, 2] == 1).all() and mask.all()
    else:
        np.testing.assert_array_equal(values[mask], 0)


def test_nothing_to_compare_has_no_measures():
    nothing = np.full((10, 31), np.nan)
    assert all(math.isnan(value) for value in syncnet.measures(nothing))
