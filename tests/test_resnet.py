"""ResNet against a plain NumPy network, and checkpoints that cannot be used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from extract.networks import resnet
from tests import checkpoints
from tqa_jax import schema


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Configuration, tensors and parameters of a tiny network."""
    folder = checkpoints.resnet(tmp_path_factory.mktemp("resnet"))
    found, tensors = checkpoints.read(folder)
    config = resnet.Config.from_json(found)
    return config, tensors, resnet.from_tensors(tensors, config)


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (3, 45, 38, 3), dtype=np.uint8)


features = jax.jit(resnet.features, static_argnames=("config", "dtype"))


def run(config, params, pixels, **more):
    return np.asarray(features(params, config, pixels, **more))


def convolve(x, kernel, stride):
    """A convolution of (B, H, W, C) by (O, I, size, size), padded by size // 2."""
    size = kernel.shape[-1]
    edge = size // 2
    x = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    seen = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    return np.einsum("bhwiyx,oiyx->bhwo", seen[:, ::stride, ::stride], kernel)


def reference(tensors, pixels, depths):
    """The network in float64, batch norms as they are written."""
    tensors = {name.removeprefix("resnet."): v for name, v in tensors.items()}

    def layer(name, x, stride=1):
        x = convolve(x, tensors[f"{name}.convolution.weight"].astype("f8"), stride)
        weight, bias, mean, variance = (
            tensors[f"{name}.normalization.{kind}"].astype("f8")
            for kind in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias

    x = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = np.maximum(layer("embedder.embedder", x, 2), 0)
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2]
    x = x.max((-1, -2))
    for stage, depth in enumerate(depths):
        for block in range(depth):
            name = f"encoder.stages.{stage}.layers.{block}"
            stride = 2 if stage and not block else 1
            y = np.maximum(layer(f"{name}.layer.0", x), 0)
            y = np.maximum(layer(f"{name}.layer.1", y, stride), 0)
            if f"{name}.shortcut.convolution.weight" in tensors:
                x = layer(f"{name}.shortcut", x, stride)
            x = np.maximum(x + layer(f"{name}.layer.2", y), 0)
    return x.mean((1, 2))


def test_features_equal_a_plain_network(checkpoint, pixels):
    config, tensors, params = checkpoint
    expected = reference(tensors, pixels, config.depths)
    assert expected.std(0).max() > 0.1  # The pictures differ in what is compared.
    found = run(config, params, pixels)
    assert found.dtype == np.float32 and found.shape == (3, config.width)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bfloat16_is_near(checkpoint, pixels):
    config, _, params = checkpoint
    exact = run(config, params, pixels)
    found = run(config, params, pixels, dtype=jnp.bfloat16)
    assert found.dtype == np.float32
    # Eight bits of mantissa; a wrong layer would be off by as much as the features.
    error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
    assert 0 < error < 0.02


def test_a_picture_has_the_features_that_it_has_alone(checkpoint, pixels):
    config, _, params = checkpoint
    together = run(config, params, pixels)
    np.testing.assert_allclose(run(config, params, pixels[1:2]), together[1:2], 1e-5)


def test_prefix_and_classifier_may_be_missing(checkpoint, tmp_path):
    config, _, params = checkpoint
    _, tensors = checkpoints.read(checkpoints.resnet(tmp_path, prefix=""))
    assert not any(name.startswith(("resnet.", "classifier.")) for name in tensors)
    jax.tree.map(
        np.testing.assert_array_equal, resnet.from_tensors(tensors, config), params
    )


def test_the_parameters_are_those_that_the_network_makes(checkpoint, pixels):
    config, _, params = checkpoint
    module = resnet.ResNet(config, jnp.float32)
    made = jax.eval_shape(module.init, jax.random.key(0), pixels)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, made)


def test_the_network_lowers_for_accelerators(checkpoint, pixels):
    config, _, params = checkpoint
    run = jax.jit(lambda p, x: resnet.features(p, config, x, dtype=jnp.bfloat16))
    exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(params, pixels)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert exported.out_avals[0].shape == (3, config.width)


def test_default_sizes_are_those_of_resnet_101():
    config = resnet.Config()
    sizes = {
        name: np.prod(shape)
        for name, shape in resnet.shapes(config).items()
        if "running" not in name
    }
    # He et al. 2016: 44.55 million with the classifier, of 2048 x 1000 + 1000.
    assert sum(sizes.values()) == 44_549_160 - 2_049_000
    assert sum(name.endswith("convolution.weight") for name in sizes) == 100 + 4
    assert config.width == 2048


NAME = "resnet.encoder.stages.1.layers.0.layer.1.convolution.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({NAME: None}, "lacks the tensor encoder.stages.1.layers.0.layer.1"),
        ({NAME: np.zeros((8, 8, 1, 1))}, r"\(8, 8, 1, 1\); expected \(8, 8, 3, 3\)"),
        ({NAME: np.full((8, 8, 3, 3), np.nan)}, "is not finite"),
        ({"resnet.extra.weight": np.zeros(3)}, "unknown tensor extra.weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(checkpoint, change, message):
    config, tensors, _ = checkpoint
    tensors = {k: v for k, v in (tensors | change).items() if v is not None}
    with pytest.raises(schema.InputError, match=message):
        resnet.from_tensors(tensors, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_type": "basic"}, "layer_type is 'basic'; expected 'bottleneck'"),
        ({"model_type": "vit"}, "model_type is 'vit'"),
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck is True"),
        ({"depths": None}, "depths None; expected sizes"),
        ({"depths": [1, 0]}, r"depths \[1, 0\]; expected sizes"),
        ({"depths": [1]}, "2 hidden_sizes and 1 depths"),
        ({"hidden_sizes": [16, 30]}, "multiples of 4"),
        ({"embedding_size": "8"}, "embedding_size '8'; expected"),
    ],
)
def test_another_network_is_refused(tmp_path, change, message):
    found, _ = checkpoints.read(checkpoints.resnet(tmp_path))
    with pytest.raises(schema.InputError, match=message):
        resnet.Config.from_json(found | change)
