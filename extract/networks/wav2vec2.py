"""HuBERT base (Hsu et al. 2021) and Wav2Vec2 base (Baevski et al. 2020), one network.

A row of a batch is what the clip alone gives. Samples beyond a clip's length reach
neither the statistics of the group norm, nor the positional convolution, nor attention,
whatever they hold.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from extract.networks import tensors, wav2vec2_layers
from tqa_jax import schema
from tqa_jax.models import layers

SAMPLE_RATE = 16_000

_PREFIXES = ("hubert.", "wav2vec2.")
_CONVOLUTIONS = "feature_extractor.conv_layers"
_POSITIONS = "encoder.pos_conv_embed.conv"
_RENAMED = {
    f"{_POSITIONS}.parametrizations.weight.original0": f"{_POSITIONS}.weight_g",
    f"{_POSITIONS}.parametrizations.weight.original1": f"{_POSITIONS}.weight_v",
}
# Of training: the masking vector, quantiser, projections and classifiers.
_IGNORED = (
    *("masked_spec_embed", "quantizer.", "project_hid.", "project_q.", "lm_head."),
    *("projector.", "classifier."),
)
_FIXED = {
    "model_type": ("hubert", "wav2vec2"),
    "feat_extract_norm": ("group",),
    "do_stable_layer_norm": (False,),
    "feat_proj_layer_norm": (True,),
    "conv_pos_batch_norm": (False,),
    "conv_bias": (False,),
    "conv_kernel": (list(wav2vec2_layers.KERNELS),),
    "conv_stride": (list(wav2vec2_layers.STRIDES),),
    "hidden_act": ("gelu",),
    "feat_extract_activation": ("gelu",),
    "add_adapter": (False,),
    "adapter_attn_dim": (None,),
}


def num_frames(num_samples: int) -> int:
    """Returns how many frames a clip has; 0 below 400 samples."""
    return max(0, (num_samples - wav2vec2_layers.FIELD) // wav2vec2_layers.HOP + 1)


def frame_seconds(count: int) -> Float[np.ndarray, " F"]:
    """Returns the centre of what each frame is computed from; sample 0 is second 0."""
    first = (wav2vec2_layers.FIELD - 1) / 2
    return (first + np.arange(count) * wav2vec2_layers.HOP) / SAMPLE_RATE


def prepare(samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Gives a clip mean 0 and variance 1, as the hub's feature extractor does."""
    samples = np.asarray(samples, np.float32)
    return (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)


class Wav2Vec2(nn.Module):
    """The network, from samples to the last hidden state; the defaults are `base`'s.

    Attributes:
        conv_dim: channels of the seven convolutions.
        hidden_size: width of the transformer.
        num_hidden_layers: of the transformer.
        num_attention_heads: of each layer.
        intermediate_size: width of the feed-forward parts.
        num_conv_pos_embeddings: frames that the positional convolution sees.
        num_conv_pos_embedding_groups: of the positional convolution.
        layer_norm_eps: of all layer norms.
        dtype: of activations; statistics, softmax and the result are float32.
    """

    conv_dim: tuple[int, ...] = (512,) * 7
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    layer_norm_eps: float = 1e-5
    dtype: Any = jnp.float32

    # Accelerators round float32 products to fewer digits unless told otherwise.
    @jax.default_matmul_precision("float32")
    @nn.compact
    def __call__(
        self, samples: Float[Array, "B N"], lengths: Int[Array, " B"]
    ) -> Float[Array, "B F D"]:
        """Returns the last hidden state at 50 Hz, see `frame_seconds`.

        Args:
            samples: clips at 16 kHz after `prepare`, each followed by anything, with
                room for a frame, 400 samples.
            lengths: samples of each clip.

        Returns:
            `num_frames(N)` rows a clip; those beyond `num_frames(length)` are 0.
        """
        dtype = self.dtype

        def norm(name: str) -> nn.LayerNorm:
            return wav2vec2_layers.norm(name, self.layer_norm_eps, dtype)

        last = (lengths - wav2vec2_layers.FIELD) // wav2vec2_layers.HOP
        keep = jnp.arange(num_frames(samples.shape[-1])) <= last[:, None]  # (B, F)
        x = wav2vec2_layers.Convolutions(self.conv_dim, dtype, name="convolutions")(
            samples.astype(jnp.float32), lengths
        )
        x = nn.Dense(self.hidden_size, dtype=dtype, name="projection")(
            norm("projection_norm")(x)
        )
        x = jnp.where(keep[..., None], x, 0)
        taps = self.num_conv_pos_embeddings
        positions = nn.Conv(
            self.hidden_size,
            taps,
            padding=[(taps // 2, taps - 1 - taps // 2)],
            feature_group_count=self.num_conv_pos_embedding_groups,
            dtype=dtype,
            name="positions",
        )
        x = norm("norm")(x + layers.gelu(positions(x)))
        for index in range(self.num_hidden_layers):
            x = wav2vec2_layers.Layer(
                self.num_attention_heads,
                self.intermediate_size,
                self.layer_norm_eps,
                dtype,
                name=f"layer_{index}",
            )(x, keep)
        return jnp.where(keep[..., None], x, 0).astype(jnp.float32)


def from_json(config: Mapping[str, Any], dtype: Any = jnp.float32) -> Wav2Vec2:
    """Makes the network that the hub's `config.json` describes.

    Raises:
        schema.InputError: for another network, and for sizes that cannot be.
    """
    network = tensors.sizes(Wav2Vec2, config, _FIXED)(dtype=dtype)
    if network.hidden_size % network.num_attention_heads:
        raise schema.InputError(
            f"network.json has hidden_size {network.hidden_size}; expected a multiple "
            f"of num_attention_heads, {network.num_attention_heads}"
        )
    return network


def from_tensors(
    checkpoint: Mapping[str, np.ndarray], network: Wav2Vec2
) -> dict[str, Any]:
    """Turns a checkpoint's tensors into parameters.

    Args:
        checkpoint: tensors by the hub's names, with the prefix `hubert.` or `wav2vec2.`
            or without one, and with either of PyTorch's names for the kernel of the
            positional convolution; what only training needs is ignored.
        network: that they are for.

    Returns:
        Parameters of the network, float32.

    Raises:
        schema.InputError: for the first tensor that is missing, of another shape, not
            finite, or unknown.
    """
    found = {}
    for name, value in checkpoint.items():
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if not name.startswith(_IGNORED):
            found[_RENAMED.get(name, name)] = value
    take = tensors.Tensors(found, "speech")

    def linear(inputs: int, outputs: int, *names: str) -> dict[str, np.ndarray]:
        kernels = [take(f"{name}.weight", outputs, inputs).T for name in names]
        biases = [take(f"{name}.bias", outputs) for name in names]
        return {
            "kernel": np.concatenate(kernels, axis=-1),
            "bias": np.concatenate(biases),
        }

    def norm(name: str, size: int) -> dict[str, np.ndarray]:
        return {
            "scale": take(f"{name}.weight", size),
            "bias": take(f"{name}.bias", size),
        }

    width, inner = network.hidden_size, network.intermediate_size
    inputs, convolutions = 1, {}
    for index, (channels, taps) in enumerate(
        zip(network.conv_dim, wav2vec2_layers.KERNELS, strict=True)
    ):
        kernel = take(f"{_CONVOLUTIONS}.{index}.conv.weight", channels, inputs, taps)
        # (O, I, taps) -> (taps I, O)
        kernel = kernel.transpose(2, 1, 0).reshape(-1, channels)
        convolutions[f"kernel_{index}"] = kernel
        inputs = channels
    taps, groups = (
        network.num_conv_pos_embeddings,
        network.num_conv_pos_embedding_groups,
    )
    params = {
        "convolutions": convolutions
        | norm(f"{_CONVOLUTIONS}.0.layer_norm", network.conv_dim[0]),
        "projection_norm": norm("feature_projection.layer_norm", inputs),
        "projection": linear(inputs, width, "feature_projection.projection"),
        "positions": {
            "kernel": _positional_kernel(
                take(f"{_POSITIONS}.weight_g", 1, 1, taps),
                take(f"{_POSITIONS}.weight_v", width, width // groups, taps),
            ),
            "bias": take(f"{_POSITIONS}.bias", width),
        },
        "norm": norm("encoder.layer_norm", width),
    }
    for index in range(network.num_hidden_layers):
        name = f"encoder.layers.{index}"
        attention, feed = f"{name}.attention", f"{name}.feed_forward"
        params[f"layer_{index}"] = {
            "inputs": linear(
                width, width, *(f"{attention}.{part}_proj" for part in "qkv")
            ),
            "out": linear(width, width, f"{attention}.out_proj"),
            "norm_0": norm(f"{name}.layer_norm", width),
            "expand": linear(width, inner, f"{feed}.intermediate_dense"),
            "contract": linear(inner, width, f"{feed}.output_dense"),
            "norm_1": norm(f"{name}.final_layer_norm", width),
        }
    take.finish()
    return {"params": params}


def _positional_kernel(length: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Multiplies weight normalisation out: (O, I, taps) -> (taps, I, O)."""
    norm = np.sqrt(np.square(direction, dtype=np.float64).sum((0, 1), keepdims=True))
    return (length * direction / norm).transpose(2, 1, 0).astype(np.float32)
