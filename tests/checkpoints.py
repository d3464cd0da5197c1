"""Checkpoints of random weights in the formats of the public ones, for tests.

Names and shapes are written out here from the public files, not taken from the code
that reads them. Weights are scaled so that activations keep their size through networks
of any depth.
"""

import json
import math

import numpy as np
import safetensors.numpy


def resnet(
    folder,
    *,
    embedding_size=8,
    hidden_sizes=(8, 16, 24, 32),
    depths=(1, 2, 1, 3),
    prefix="resnet.",
    seed=0,
):
    """Writes a ResNet with bottleneck blocks and returns the folder."""
    draw = _Draw(seed, prefix)

    def layer(name, outputs, inputs, size, gain=1.0):
        shape = (outputs, inputs, size, size)
        draw.kernel(f"{name}.convolution.weight", shape, gain=2.0)
        draw.batch_norm(f"{name}.normalization", outputs, gain)

    layer("embedder.embedder", embedding_size, 3, 7)
    channels = embedding_size
    for stage, (width, depth) in enumerate(zip(hidden_sizes, depths, strict=True)):
        for block in range(depth):
            name = f"encoder.stages.{stage}.layers.{block}"
            if block == 0 and (stage or width != channels):
                layer(f"{name}.shortcut", width, channels, 1)
            layer(f"{name}.layer.0", width // 4, channels, 1)
            layer(f"{name}.layer.1", width // 4, width // 4, 3)
            layer(f"{name}.layer.2", width, width // 4, 1, gain=sum(depths) ** -0.5)
            channels = width
    if prefix:
        draw.prefix = ""
        draw.linear("classifier.1", 10, channels)
    config = {
        "depths": list(depths),
        "embedding_size": embedding_size,
        "hidden_sizes": list(hidden_sizes),
        "layer_type": "bottleneck",
        "model_type": "resnet",
    }
    preprocessor = {
        "crop_pct": 0.875,
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "size": 224,
    }
    return _write(folder, config, preprocessor, draw.tensors)


def hubert(folder, **sizes):
    """Writes a HuBERT as `facebook/hubert-base-ls960` is; see `_speech`."""
    return _speech(folder, "hubert", **sizes)


def wav2vec2(folder, **sizes):
    """Writes a Wav2Vec2 as `facebook/wav2vec2-base` is; see `_speech`."""
    return _speech(folder, "wav2vec2", **sizes)


def _speech(folder, kind, *, prefix=None, parametrized=True, seed=0, **changes):
    """Writes either network.

    Args:
        folder: to write to.
        kind: `hubert` or `wav2vec2`.
        prefix: of the names, by default the network's; heads for training are written
            with one only.
        parametrized: names the normalised kernel as newer versions of PyTorch do.
        seed: of the weights.
        **changes: sizes as in `config.json`.
    """
    config = {
        "conv_bias": False,
        "conv_dim": [12] * 7,
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "do_stable_layer_norm": False,
        "feat_extract_norm": "group",
        "hidden_size": 24,
        "intermediate_size": 40,
        "layer_norm_eps": 1e-5,
        "model_type": kind,
        "num_attention_heads": 3,
        "num_conv_pos_embedding_groups": 4,
        "num_conv_pos_embeddings": 16,
        "num_feat_extract_layers": 7,
        "num_hidden_layers": 2,
    } | changes
    width, inner = config["hidden_size"], config["intermediate_size"]
    depth, taps = config["num_hidden_layers"], config["num_conv_pos_embeddings"]
    prefix = f"{kind}." if prefix is None else prefix
    draw = _Draw(seed, prefix)
    draw.near("masked_spec_embed", 0, width)
    inputs = 1
    for index, channels in enumerate(config["conv_dim"]):
        shape = (channels, inputs, config["conv_kernel"][index])
        name = f"feature_extractor.conv_layers.{index}"
        draw.kernel(f"{name}.conv.weight", shape, gain=2.0)
        inputs = channels
    draw.norm("feature_extractor.conv_layers.0.layer_norm", config["conv_dim"][0])
    draw.norm("feature_projection.layer_norm", inputs)
    draw.linear("feature_projection.projection", width, inputs)
    name = "encoder.pos_conv_embed.conv"
    names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    scale, direction = names if parametrized else ("weight_g", "weight_v")
    draw.near(f"{name}.bias", 0, width)
    groups = config["num_conv_pos_embedding_groups"]
    kernel = draw.kernel(f"{name}.{direction}", (width, width // groups, taps), gain=9)
    length = np.sqrt(np.square(kernel).sum((0, 1), keepdims=True)) / 3
    draw.near(f"{name}.{scale}", 1, taps, gain=length)
    draw.norm("encoder.layer_norm", width)
    for index in range(depth):
        name = f"encoder.layers.{index}"
        for part in ("q", "k", "v", "out"):
            # Attention that is far from uniform, and whose sum with the frames stays
            # different from frame to frame through all layers.
            gain = 4.0 if part in "qk" else depth**-0.5
            draw.linear(f"{name}.attention.{part}_proj", width, width, gain)
        draw.norm(f"{name}.layer_norm", width)
        draw.linear(f"{name}.feed_forward.intermediate_dense", inner, width)
        draw.linear(f"{name}.feed_forward.output_dense", width, inner, gain=2.0)
        draw.norm(f"{name}.final_layer_norm", width)
    if prefix:
        draw.prefix = ""
        draw.linear("lm_head", 32, width)
    preprocessor = {
        "do_normalize": True,
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16000,
    }
    return _write(folder, config, preprocessor, draw.tensors)


def syncnet(seed=0):
    """Returns tensors by the names and shapes of `syncnet_v2.model`."""
    draw = _Draw(seed, centred=False)
    sound = ((64, 1), (192, 64), (384, 192), (256, 384), (256, 256), (512, 256))
    face = ((96, 3), (256, 96), (256, 256), (256, 256), (256, 256), (512, 256))
    flat = ((3, 3),) * 5 + ((5, 4),)
    deep = ((5, 7, 7), (1, 5, 5), *((1, 3, 3),) * 3, (1, 6, 6))
    # The first layers bring pixels and cepstra to numbers near 1.
    for kind, widths, sizes, first in (
        ("aud", sound, flat, 1e-2),
        ("lip", face, deep, 1e-4),
    ):
        for index, (place, size) in enumerate(
            zip((0, 4, 8, 11, 14, 18), sizes, strict=True)
        ):
            outputs, inputs = widths[index]
            name, gain = f"netcnn{kind}.{place}", 1.0 if index else first
            draw.kernel(f"{name}.weight", (outputs, inputs, *size), 2 * gain)
            draw.near(f"{name}.bias", 0, outputs)
            draw.batch_norm(f"netcnn{kind}.{place + 1}", outputs)
        draw.linear(f"netfc{kind}.0", 512, 512, gain=2.0)
        draw.batch_norm(f"netfc{kind}.1", 512)
        draw.linear(f"netfc{kind}.3", 1024, 512, gain=2.0)
    return draw.tensors


def read(folder):
    """Reads a folder back: the configuration and the tensors."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config, safetensors.numpy.load_file(folder / "model.safetensors")


class _Draw:
    """Random tensors, float32, by their names."""

    def __init__(self, seed, prefix="", centred=True):
        self.rng, self.tensors = np.random.default_rng(seed), {}
        self.prefix, self.centred = prefix, centred

    def kernel(self, name, shape, gain=1.0):
        """Keeps the variance of what it multiplies, times `gain`.

        Each output's weights sum to 0, since activations have a mean after ReLU and
        GELU, which would drown what differs between frames after many layers.
        """
        values = self.rng.standard_normal(shape)
        if self.centred:
            values -= values.mean(tuple(range(1, len(shape))), keepdims=True)
        values *= math.sqrt(gain / math.prod(shape[1:]))
        self.tensors[self.prefix + name] = values.astype(np.float32)
        return self.tensors[self.prefix + name]

    def near(self, name, value, width, gain=1.0):
        values = gain * (value + self.rng.uniform(-0.3, 0.3, width))
        self.tensors[self.prefix + name] = values.astype(np.float32)

    def linear(self, name, outputs, inputs, gain=1.0):
        self.kernel(f"{name}.weight", (outputs, inputs), gain)
        self.near(f"{name}.bias", 0, outputs)

    def norm(self, name, width, gain=1.0):
        self.near(f"{name}.weight", 1, width, gain)
        self.near(f"{name}.bias", 0, width, gain)

    def batch_norm(self, name, width, gain=1.0):
        self.norm(name, width, gain)
        self.near(f"{name}.running_mean", 0, width)
        self.near(f"{name}.running_var", 1, width)
        self.tensors[f"{self.prefix}{name}.num_batches_tracked"] = np.array(7)


def _write(folder, config, preprocessor, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (("config", config), ("preprocessor_config", preprocessor)):
        text = json.dumps(value, indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    safetensors.numpy.save_file(
        tensors, folder / "model.safetensors", metadata={"format": "pt"}
    )
    return folder
