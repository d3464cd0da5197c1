"""HuBERT and Wav2Vec2 against a plain NumPy network; padding; unusable checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from extract.networks import wav2vec2, wav2vec2_layers
from tests import checkpoints
from tqa_jax import schema

KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Configuration, tensors and parameters of a tiny network."""
    folder = checkpoints.hubert(tmp_path_factory.mktemp("hubert"))
    found, tensors = checkpoints.read(folder)
    config = wav2vec2.Config.from_json(found)
    return config, tensors, wav2vec2.from_tensors(tensors, config)


def clip(num_samples, seed=0):
    """Returns noise whose loudness comes and goes."""
    level = np.sin(np.arange(num_samples) / 1500) ** 2 + 0.05
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    return wav2vec2.prepare(level * noise)


def padded(clips, filling, more=0):
    """Joins clips to a batch; what follows each is `filling`."""
    lengths = np.array([len(samples) for samples in clips])
    batch = np.full((len(clips), max(lengths) + more), filling, np.float32)
    for row, samples in zip(batch, clips, strict=True):
        row[: len(samples)] = samples
    return batch, lengths


hidden = jax.jit(wav2vec2.hidden, static_argnames=("config", "dtype"))


def run(config, params, samples, lengths, **more):
    return np.asarray(hidden(params, config, samples, lengths, **more))


def alone(config, params, samples):
    return run(config, params, samples[None], np.array([len(samples)]))[0]


def gelu(x):
    return x * scipy.special.ndtr(x)


def reference(tensors, samples, config):
    """The network for one clip in float64, as the papers and the hub write it."""
    tensors = {
        name.removeprefix("hubert."): value.astype("f8")
        for name, value in tensors.items()
    }

    def linear(name, x):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(name, x, axis=-1):
        x = x - x.mean(axis, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis, keepdims=True) + 1e-5)
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def convolve(x, kernel, stride=1):  # (T, I) by (O, I, taps)
        seen = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[-1], 0)
        return np.einsum("tik,oik->to", seen[::stride], kernel)

    x = samples[:, None].astype("f8")
    for index, stride in enumerate(STRIDES):
        name = f"feature_extractor.conv_layers.{index}"
        x = convolve(x, tensors[f"{name}.conv.weight"], stride)
        x = gelu(x if index else norm(f"{name}.layer_norm", x, axis=0))
    x = norm("feature_projection.layer_norm", x)
    x = linear("feature_projection.projection", x)

    name = "encoder.pos_conv_embed.conv"
    length = tensors[f"{name}.parametrizations.weight.original0"]
    kernel = tensors[f"{name}.parametrizations.weight.original1"]
    kernel = length * kernel / np.sqrt((kernel**2).sum((0, 1), keepdims=True))
    outputs, inputs, taps = kernel.shape
    around = np.pad(x, ((taps // 2, taps - 1 - taps // 2), (0, 0)))
    groups = outputs // inputs
    parts = zip(np.split(around, groups, axis=1), np.split(kernel, groups), strict=True)
    y = np.concatenate([convolve(*part) for part in parts], axis=1)
    x = norm("encoder.layer_norm", x + gelu(y + tensors[f"{name}.bias"]))

    for index in range(config.num_hidden_layers):
        name = f"encoder.layers.{index}"
        attended = []
        heads = [
            np.split(linear(f"{name}.attention.{part}_proj", x), 3, axis=1)
            for part in "qkv"
        ]
        for query, key, value in zip(*heads, strict=True):
            scores = query @ key.T / np.sqrt(query.shape[1])
            attended.append(scipy.special.softmax(scores, axis=1) @ value)
        y = linear(f"{name}.attention.out_proj", np.concatenate(attended, axis=1))
        x = norm(f"{name}.layer_norm", x + y)
        y = gelu(linear(f"{name}.feed_forward.intermediate_dense", x))
        y = linear(f"{name}.feed_forward.output_dense", y)
        x = norm(f"{name}.final_layer_norm", x + y)
    return x


def test_hidden_equals_a_plain_network(checkpoint):
    config, tensors, params = checkpoint
    samples = clip(16_000)
    expected = reference(tensors, samples, config)
    assert expected.std(0).min() > 0.1  # Frames differ in what is compared.
    found = alone(config, params, samples)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_what_follows_a_clip_changes_nothing(checkpoint):
    config, _, params = checkpoint
    # The second has samples beyond its last frame; the third has one frame.
    clips = [clip(9_000, 1), clip(5_519, 2), clip(400, 3), clip(399, 4)]
    expected = [alone(config, params, samples) for samples in clips[:3]]
    zeros = run(config, params, *padded(clips, 0.0, more=1_000))
    for filling in (0.0, 50.0, np.nan):
        found = run(config, params, *padded(clips, filling, more=1_000))
        np.testing.assert_array_equal(found, zeros)
    for row, own in zip(zeros[:3], expected, strict=True):
        np.testing.assert_allclose(row[: len(own)], own, atol=2e-5)
        assert not row[len(own) :].any()
    assert not zeros[3].any()  # Too short for a frame.


def test_long_clips_are_computed_in_parts_with_the_same_result(checkpoint, monkeypatch):
    config, _, params = checkpoint
    batch = padded([clip(8_400, 1), clip(20_000, 2), clip(3_000, 3)], 0.0)
    whole = run(config, params, *batch)
    monkeypatch.setattr(wav2vec2_layers, "_STRETCH", 7)
    monkeypatch.setattr(wav2vec2_layers, "_QUERIES", 13)
    assert whole.shape[1] == 62  # A multiple of neither.
    anew = jax.jit(lambda params: wav2vec2.hidden(params, config, *batch))
    np.testing.assert_allclose(anew(params), whole, atol=1e-5)


def test_two_minutes_need_less_than_a_gigabyte():
    config = wav2vec2.Config()
    module = wav2vec2.Wav2Vec2(config, jnp.float32)
    samples = jax.ShapeDtypeStruct((1, 120 * 16_000), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), samples, lengths)
    program = jax.jit(module.apply).lower(params, samples, lengths).compile()
    # The scores of all layers and heads would be 20 GB, the widest activation 0.8 GB.
    assert program.memory_analysis().temp_size_in_bytes < 1e9


def test_bfloat16_is_near(checkpoint):
    config, _, params = checkpoint
    batch = padded([clip(16_000)], 0.0)
    exact = run(config, params, *batch)
    found = run(config, params, *batch, dtype=jnp.bfloat16)
    assert found.dtype == np.float32
    # Eight bits of mantissa; a wrong layer would be off by as much as the features.
    error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
    assert 0 < error < 0.05


@pytest.mark.parametrize("make", [checkpoints.hubert, checkpoints.wav2vec2])
@pytest.mark.parametrize("parametrized", [True, False])
@pytest.mark.parametrize("prefix", [None, ""])
def test_all_layouts_give_the_same_parameters(
    checkpoint, tmp_path, make, parametrized, prefix
):
    config, _, params = checkpoint
    folder = make(tmp_path, parametrized=parametrized, prefix=prefix)
    found, tensors = checkpoints.read(folder)
    assert wav2vec2.Config.from_json(found) == config
    jax.tree.map(
        np.testing.assert_array_equal, wav2vec2.from_tensors(tensors, config), params
    )


def test_the_parameters_are_those_that_the_network_makes(checkpoint):
    config, _, params = checkpoint
    module = wav2vec2.Wav2Vec2(config, jnp.float32)
    batch = padded([clip(2_000)], 0.0)
    made = jax.eval_shape(module.init, jax.random.key(0), *batch)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, made)


def test_the_network_lowers_for_accelerators(checkpoint):
    config, _, params = checkpoint
    run = jax.jit(lambda p, *x: wav2vec2.hidden(p, config, *x, dtype=jnp.bfloat16))
    samples, lengths = padded([clip(2_000), clip(1_000)], 0.0)
    export = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))
    exported = export(params, samples, lengths)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert exported.out_avals[0].shape == (2, 6, config.width)


def test_default_sizes_are_those_of_base():
    sizes = [np.prod(shape) for shape in wav2vec2.shapes(wav2vec2.Config()).values()]
    # Baevski et al. 2020: 95 million parameters; the hub's network without the
    # masking vector of 768.
    assert sum(sizes) == 94_371_712 - 768
    assert wav2vec2.Config().width == 768


def test_frames_lie_where_their_samples_do():
    for num_samples in (0, 399, 400, 719, 720, 16_000, 80_001):
        count = num_samples
        for size, stride in zip(KERNELS, STRIDES, strict=True):
            count = max(0, (count - size) // stride + 1)
        assert wav2vec2.num_frames(num_samples) == count
    first = last = np.arange(50)
    for size, stride in zip(KERNELS[::-1], STRIDES[::-1], strict=True):
        first, last = first * stride, last * stride + size - 1
    expected = (first + last) / 2 / 16_000
    np.testing.assert_allclose(wav2vec2.frame_seconds(50), expected, rtol=1e-12)


def test_a_clip_is_normalised_and_silence_stays_silent():
    rng = np.random.default_rng(0)
    samples = (0.3 + 0.01 * rng.standard_normal(4_000)).astype(np.float32)
    found = wav2vec2.prepare(samples)
    expected = (samples - 0.3) / 0.01
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert abs(found.mean()) < 1e-4 and abs(found.std() - 1) < 1e-3
    assert not wav2vec2.prepare(np.zeros(500)).any()


def test_a_batch_without_room_for_a_frame_is_refused(checkpoint):
    config, _, params = checkpoint
    with pytest.raises(ValueError, match="room for 399 samples; expected 400"):
        run(config, params, *padded([clip(399)], 0.0))


NAME = "hubert.encoder.layers.1.attention.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({NAME: None}, "lacks the tensor encoder.layers.1.attention.q_proj.weight"),
        ({NAME: np.zeros((24, 8))}, r"\(24, 8\); expected \(24, 24\)"),
        ({NAME: np.full((24, 24), np.inf)}, "q_proj.weight is not finite"),
        ({"hubert.adapter.weight": np.zeros(3)}, "unknown tensor adapter.weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(checkpoint, change, message):
    config, tensors, _ = checkpoint
    tensors = {k: v for k, v in (tensors | change).items() if v is not None}
    with pytest.raises(schema.InputError, match=message):
        wav2vec2.from_tensors(tensors, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"do_stable_layer_norm": True},
            "do_stable_layer_norm is True; expected False",
        ),
        ({"feat_extract_norm": "layer"}, "feat_extract_norm is 'layer'"),
        ({"model_type": "wavlm"}, "'wavlm'; expected 'hubert' or 'wav2vec2'"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 4]}, "conv_stride is"),
        ({"conv_dim": [12, 12]}, "conv_dim .* expected 7 sizes"),
        ({"conv_dim": [12] * 6 + [0]}, "conv_dim 0; expected a size"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers 2.5; expected a size"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads, 5"),
        ({"num_conv_pos_embedding_groups": 7}, "multiple of num_conv_pos"),
        ({"layer_norm_eps": 0}, "layer_norm_eps 0"),
    ],
)
def test_another_network_is_refused(tmp_path, change, message):
    found, _ = checkpoints.read(checkpoints.hubert(tmp_path))
    with pytest.raises(schema.InputError, match=message):
        wav2vec2.Config.from_json(found | change)
