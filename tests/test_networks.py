"""What every network promises; that they equal PyTorch is in `test_parity_*.py`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from extract.networks import resnet, syncnet, wav2vec2
from tests import checkpoints
from tqa_jax import schema


class Network(NamedTuple):
    """A network with random weights, and a batch for it."""

    tensors: dict[str, np.ndarray]
    read: Callable[[dict[str, np.ndarray]], Any]  # from tensors to parameters
    run: Callable[..., jax.Array]  # of parameters, dtype and batch
    batch: tuple[np.ndarray, ...]
    matrix: str  # name of a tensor
    low: float  # error of bfloat16: its eight bits of mantissa, layer after layer


def clip(num_samples, seed=0):
    """Returns noise whose loudness comes and goes."""
    level = np.sin(np.arange(num_samples) / 1500) ** 2 + 0.05
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    return wav2vec2.prepare(level * noise)


def padded(clips, filling=0.0, more=0):
    """Joins clips to a batch; what follows each is `filling`."""
    lengths = np.array([len(samples) for samples in clips])
    batch = np.full((len(clips), max(lengths) + more), filling, np.float32)
    for row, samples in zip(batch, clips, strict=True):
        row[: len(samples)] = samples
    return batch, lengths


def windows_of_sound(count):
    rng = np.random.default_rng(0)
    return (10 * rng.normal(size=(count, 20, 13))).astype(np.float32)


def windows_of_faces(count):
    """Random tiles and a little noise: white noise would all look the same."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 241, (count, 5, 14, 14, 3), np.uint8)
    noise = rng.integers(0, 16, (count, 5, 224, 224, 3), np.uint8)
    return tiles.repeat(16, axis=2).repeat(16, axis=3) + noise


def _resnet(folder):
    found, tensors = checkpoints.read(checkpoints.resnet(folder))
    module = resnet.from_json(found)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 45, 38, 3), dtype=np.uint8)
    return Network(
        tensors,
        lambda tensors: resnet.from_tensors(tensors, module),
        lambda params, dtype, x: module.clone(dtype=dtype).apply(params, x),
        (pixels,),
        "resnet.encoder.stages.1.layers.0.layer.1.convolution.weight",
        0.02,
    )


def _hubert(folder):
    found, tensors = checkpoints.read(checkpoints.hubert(folder))
    module = wav2vec2.from_json(found)
    return Network(
        tensors,
        lambda tensors: wav2vec2.from_tensors(tensors, module),
        lambda params, dtype, *x: module.clone(dtype=dtype).apply(params, *x),
        padded([clip(6_000), clip(6_000, 1)]),
        "hubert.encoder.layers.1.attention.q_proj.weight",
        0.05,
    )


def _syncnet(function, batch, matrix):
    def run(params, dtype, windows):
        return function(params, windows, dtype)

    tensors = checkpoints.syncnet()
    return Network(tensors, syncnet.from_tensors, run, (batch,), matrix, 0.02)


NETWORKS = {
    "resnet": _resnet,
    "hubert": _hubert,
    "faces": lambda folder: _syncnet(
        syncnet.faces, windows_of_faces(2), "netcnnlip.4.weight"
    ),
    "sounds": lambda folder: _syncnet(
        syncnet.sounds, windows_of_sound(4), "netfcaud.3.weight"
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, tmp_path_factory):
    return NETWORKS[request.param](tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    return _hubert(tmp_path_factory.mktemp("hubert"))


def run(network, *batch, dtype=jnp.float32):
    program = jax.jit(network.run, static_argnums=1)
    return np.asarray(program(network.read(network.tensors), dtype, *batch))


def test_bfloat16_and_neighbours_in_a_batch_change_little(network):
    exact = run(network, *network.batch)
    assert exact.dtype == np.float32
    assert exact.std(0).max() > 0.1  # Entries of the batch differ.
    low = run(network, *network.batch, dtype=jnp.bfloat16)
    assert low.dtype == np.float32
    error = np.sqrt(np.mean((low - exact) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < network.low
    alone = run(network, *(column[1:2] for column in network.batch))
    np.testing.assert_allclose(alone, exact[1:2], atol=2e-5 * np.abs(exact).max())


def test_a_network_lowers_for_accelerators(network):
    program = jax.jit(lambda p, *x: network.run(p, jnp.bfloat16, *x))
    export = jax.export.export(program, platforms=("cpu", "cuda", "tpu"))
    exported = export(network.read(network.tensors), *network.batch)
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_a_checkpoint_that_does_not_fit_is_refused(network):
    name, short = network.matrix, network.matrix.split(".", 1)[1]
    right = network.tensors[name].shape
    wrong = np.full(right, np.nan, np.float32)
    for value, message in (
        (None, f"lacks the tensor .*{short}, expected of shape .*; it has "),
        (np.zeros((8, 3)), rf"{short} has shape \(8, 3\) .* expected .* of shape"),
        (np.zeros(right, bool), f"{short} has shape .* and type bool; expected numb"),
        (wrong, f"{short} is not finite"),
    ):
        tensors = {k: v for k, v in (network.tensors | {name: value}).items()}
        if value is None:
            del tensors[name]
        with pytest.raises(schema.InputError, match=message):
            network.read(tensors)


def test_all_layouts_give_the_same_parameters(tmp_path):
    layouts = [dict(prefix=None), dict(prefix=""), dict(parametrized=False)]
    for write, module, changes in (
        (checkpoints.resnet, resnet, [dict(prefix="resnet."), dict(prefix="")]),
        (checkpoints.hubert, wav2vec2, layouts),
        (checkpoints.wav2vec2, wav2vec2, layouts),
    ):
        first, *others = (checkpoints.read(write(tmp_path, **one)) for one in changes)
        network = module.from_json(first[0])
        expected = module.from_tensors(first[1], network)
        for found, tensors in others:
            assert set(tensors) != set(first[1])
            assert module.from_json(found) == network
            params = module.from_tensors(tensors, network)
            jax.tree.map(np.testing.assert_array_equal, params, expected)
    tensors = checkpoints.syncnet()
    expected = syncnet.from_tensors(tensors)
    for prefix in ("__S__.", "module.", "module.__S__."):
        named = {prefix + name: value for name, value in tensors.items()}
        params = syncnet.from_tensors(named | {"__L__.w": np.ones(1)})
        jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(
    ("write", "change", "message"),
    [
        ("resnet", {"layer_type": "basic"}, "'basic'; expected 'bottleneck'"),
        ("resnet", {"downsample_in_bottleneck": True}, "in_bottleneck is True"),
        ("resnet", {"depths": None}, "depths None; expected sizes like"),
        ("resnet", {"embedding_size": "8"}, "embedding_size '8'; expected sizes"),
        ("hubert", {"do_stable_layer_norm": True}, "layer_norm is True; expected Fal"),
        ("hubert", {"feat_extract_norm": "layer"}, "feat_extract_norm is 'layer'"),
        ("hubert", {"model_type": "wavlm"}, "expected 'hubert' or 'wav2vec2'"),
        ("hubert", {"conv_stride": [5, 2, 2, 2, 2, 2, 4]}, "conv_stride is"),
        ("hubert", {"conv_dim": [12, 12]}, r"conv_dim \[12, 12\]; expected sizes"),
        ("hubert", {"num_attention_heads": 5}, "multiple of num_attention_heads, 5"),
    ],
)
def test_another_network_is_refused(tmp_path, write, change, message):
    found, _ = checkpoints.read(getattr(checkpoints, write)(tmp_path))
    module = {"resnet": resnet, "hubert": wav2vec2}[write]
    with pytest.raises(schema.InputError, match=message):
        module.from_json(found | change)


def test_what_follows_a_clip_changes_nothing(hubert):
    # The second has samples beyond its last frame; the third has one frame.
    clips = [clip(2_000, 1), clip(1_519, 2), clip(400, 3), clip(399, 4)]
    zeros = run(hubert, *padded(clips, 0.0, more=400))
    for filling in (50.0, np.nan):
        found = run(hubert, *padded(clips, filling, more=400))
        np.testing.assert_array_equal(found, zeros)
    for row, samples in zip(zeros[:3], clips, strict=False):
        own = run(hubert, *padded([samples]))[0]
        np.testing.assert_allclose(row[: len(own)], own, atol=2e-5)
        assert not row[len(own) :].any()
    assert not zeros[3].any()  # Too short for a frame.


def test_two_minutes_need_less_than_a_gigabyte():
    module = wav2vec2.Wav2Vec2()
    samples = jax.ShapeDtypeStruct((1, 120 * 16_000), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), samples, lengths)
    program = jax.jit(module.apply).lower(params, samples, lengths).compile()
    # The scores of all layers and heads would be 20 GB, the widest activation 0.8 GB.
    assert program.memory_analysis().temp_size_in_bytes < 1e9
