"""Checkpoints of random weights in the hub's own format, for tests.

The one thing to know: names and shapes are written out here from the hub's files, not
taken from the code that reads them. Weights are scaled so that activations keep their
size through networks of any depth.
"""

import json

import numpy as np
import safetensors.numpy


def resnet(
    folder,
    *,
    embedding_size=8,
    hidden_sizes=(16, 32),
    depths=(2, 2),
    prefix="resnet.",
    seed=0,
):
    """Writes a ResNet with bottleneck blocks and returns the folder."""
    draw = _Draw(seed)
    tensors = {}

    def layer(name, outputs, inputs, size, gain=1.0):
        shape = (outputs, inputs, size, size)
        tensors[f"{name}.convolution.weight"] = draw.kernel(shape, gain=2.0)
        norm = f"{name}.normalization"
        tensors[f"{norm}.weight"] = gain * draw.near(1, outputs)
        tensors[f"{norm}.bias"] = gain * draw.near(0, outputs)
        tensors[f"{norm}.running_mean"] = draw.near(0, outputs)
        tensors[f"{norm}.running_var"] = draw.near(1, outputs)
        tensors[f"{norm}.num_batches_tracked"] = np.array(7, np.int64)

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
    tensors = {prefix + name: value for name, value in tensors.items()}
    if prefix:
        tensors["classifier.1.weight"] = draw.kernel((10, channels))
        tensors["classifier.1.bias"] = draw.near(0, 10)
    config = {
        "architectures": ["ResNetForImageClassification"],
        "depths": list(depths),
        "downsample_in_bottleneck": False,
        "downsample_in_first_stage": False,
        "embedding_size": embedding_size,
        "hidden_act": "relu",
        "hidden_sizes": list(hidden_sizes),
        "layer_type": "bottleneck",
        "model_type": "resnet",
        "num_channels": 3,
    }
    preprocessor = {
        "crop_pct": 0.875,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": 224,
    }
    return _write(folder, config, preprocessor, tensors)


def hubert(folder, **sizes):
    """Writes a HuBERT as `facebook/hubert-base-ls960` is; see `_speech`."""
    return _speech(folder, "hubert", **sizes)


def wav2vec2(folder, **sizes):
    """Writes a Wav2Vec2 as `facebook/wav2vec2-base` is; see `_speech`."""
    return _speech(folder, "wav2vec2", **sizes)


def _speech(
    folder,
    kind,
    *,
    conv_dim=(12,) * 7,
    hidden_size=24,
    layers=2,
    heads=3,
    intermediate_size=40,
    positions=16,
    groups=4,
    prefix=None,
    parametrized=True,
    seed=0,
):
    """Writes either network.

    Args:
        folder: to write to.
        kind: `hubert` or `wav2vec2`.
        conv_dim: channels of the seven convolutions.
        hidden_size: of the transformer.
        layers: of the transformer.
        heads: of attention.
        intermediate_size: of the feed-forward parts.
        positions: frames that the positional convolution sees.
        groups: of the positional convolution.
        prefix: of the names, by default the network's; heads for training are written
            with one only.
        parametrized: names the normalised kernel as newer versions of PyTorch do.
        seed: of the weights.
    """
    prefix = f"{kind}." if prefix is None else prefix
    draw = _Draw(seed)
    tensors = {"masked_spec_embed": draw.near(0, hidden_size)}

    def linear(name, outputs, inputs, gain=1.0):
        tensors[f"{name}.weight"] = draw.kernel((outputs, inputs), gain)
        tensors[f"{name}.bias"] = draw.near(0, outputs)

    def norm(name, width):
        tensors[f"{name}.weight"] = draw.near(1, width)
        tensors[f"{name}.bias"] = draw.near(0, width)

    inputs = 1
    for index, (width, size) in enumerate(
        zip(conv_dim, (10, 3, 3, 3, 3, 2, 2), strict=True)
    ):
        name = f"feature_extractor.conv_layers.{index}"
        tensors[f"{name}.conv.weight"] = draw.kernel((width, inputs, size), gain=2.0)
        inputs = width
    norm("feature_extractor.conv_layers.0.layer_norm", conv_dim[0])
    norm("feature_projection.layer_norm", inputs)
    linear("feature_projection.projection", hidden_size, inputs)
    shape = (hidden_size, hidden_size // groups, positions)
    name = "encoder.pos_conv_embed.conv"
    kernel = draw.kernel(shape)
    length = np.sqrt(np.square(kernel).sum((0, 1), keepdims=True))
    names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    scale, direction = names if parametrized else ("weight_g", "weight_v")
    tensors[f"{name}.{scale}"] = length * draw.near(1, positions)
    tensors[f"{name}.{direction}"] = 3 * kernel
    tensors[f"{name}.bias"] = draw.near(0, hidden_size)
    norm("encoder.layer_norm", hidden_size)
    for index in range(layers):
        name = f"encoder.layers.{index}"
        for part in ("q", "k", "v", "out"):
            # Attention that is far from uniform, and whose sum with the frames stays
            # different from frame to frame through all layers.
            gain = 4.0 if part in "qk" else layers**-0.5
            linear(f"{name}.attention.{part}_proj", hidden_size, hidden_size, gain)
        norm(f"{name}.layer_norm", hidden_size)
        part = f"{name}.feed_forward"
        linear(f"{part}.intermediate_dense", intermediate_size, hidden_size)
        linear(f"{part}.output_dense", hidden_size, intermediate_size, gain=2.0)
        norm(f"{name}.final_layer_norm", hidden_size)
    tensors = {prefix + name: value for name, value in tensors.items()}
    if prefix:
        tensors["lm_head.weight"] = draw.kernel((32, hidden_size))
        tensors["lm_head.bias"] = draw.near(0, 32)
    config = {
        "architectures": ["HubertModel" if kind == "hubert" else "Wav2Vec2Model"],
        "conv_bias": False,
        "conv_dim": list(conv_dim),
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "do_stable_layer_norm": False,
        "feat_extract_activation": "gelu",
        "feat_extract_norm": "group",
        "hidden_act": "gelu",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "layer_norm_eps": 1e-5,
        "model_type": kind,
        "num_attention_heads": heads,
        "num_conv_pos_embedding_groups": groups,
        "num_conv_pos_embeddings": positions,
        "num_feat_extract_layers": 7,
        "num_hidden_layers": layers,
    }
    preprocessor = {
        "do_normalize": True,
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0,
        "return_attention_mask": False,
        "sampling_rate": 16000,
    }
    return _write(folder, config, preprocessor, tensors)


def read(folder):
    """Reads a folder back: the configuration and the tensors."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config, safetensors.numpy.load_file(folder / "model.safetensors")


class _Draw:
    """Random tensors, float32."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def kernel(self, shape, gain=1.0):
        """Keeps the variance of what it multiplies, times `gain`.

        Each output's weights sum to 0, since activations have a mean after ReLU and
        GELU, which would drown what differs between frames after a few layers.
        """
        values = self.rng.standard_normal(shape)
        values -= values.mean(tuple(range(1, len(shape))), keepdims=True)
        return (np.sqrt(gain / np.prod(shape[1:])) * values).astype(np.float32)

    def near(self, value, width):
        return (value + self.rng.uniform(-0.3, 0.3, width)).astype(np.float32)


def _write(folder, config, preprocessor, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (("config", config), ("preprocessor_config", preprocessor)):
        text = json.dumps(value, indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    safetensors.numpy.save_file(
        tensors, folder / "model.safetensors", metadata={"format": "pt"}
    )
    return folder
