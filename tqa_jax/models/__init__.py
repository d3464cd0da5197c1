"""Models as pure functions of their parameters.

The one thing to know: `make` returns functions; nothing outside this package knows
that Flax is behind them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from tqa_jax import batch, hyperparameters, schema
from tqa_jax.models import attention, evaluator, presets

Params = Any
DTYPES = ("float32", "bfloat16", "float16", "float64")
REMAT_POLICIES = (
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
)

_CHOICES = {
    "encoder": ("residual", "embedder"),
    "topology": ("late", "early"),
    "pooling": ("mean", "max", "mean_max"),
    "paths": ("a", "b", "both"),
    "head_style": ("normed", "plain"),
    "head_activation": ("sigmoid", "tanh", "none"),
}


class Model(NamedTuple):
    """A network as functions; `rng` turns dropout on.

    Attributes:
        init: `(rng) -> params`.
        apply: `(params, batch, rng=None) -> scores (B, K)`.
        encode: `(params, batch, rng=None) -> encoded`, all that has a time axis.
        fuse: `(params, encoded, rng=None) -> joined`, up to the last shared layer.
        trunk: `(params, batch, rng=None) -> joined`, the two after one another.
        join: `(params, joined, rng=None) -> shared features (B, D)`.
        heads: `(params, features (K, B, D), rng=None) -> scores (B, K)`.
        attend: `(params, batch) -> weights (B, M, H, T, T)` of each block of time
            attention; M is 1 where modalities are joined before it.
        last_shared: path of the last shared layer's kernel in the parameters.
        options: the resolved fields of the network, for the record.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[..., Float[Array, "B K"]]
    encode: Callable[..., Mapping[str, jax.Array]]
    fuse: Callable[..., Mapping[str, jax.Array]]
    trunk: Callable[..., Mapping[str, jax.Array]]
    join: Callable[..., Float[Array, "B D"]]
    heads: Callable[..., Float[Array, "B K"]]
    attend: Callable[..., list[Float[Array, "B M H T T"]]]
    last_shared: tuple[str, ...]
    options: dict[str, Any]


def make(
    *,
    widths: Mapping[str, int],
    tasks: Sequence[schema.Task],
    max_frames: int,
    preset: str,
    dtype: str = "float32",
    remat: str = "",
    **overrides: Any,
) -> Model:
    """Builds a network from a preset and changes to it.

    Args:
        widths: of each modality after preprocessing, in the order of tokens.
        tasks: of the data set.
        max_frames: longest time axis.
        preset: a key of `presets.PRESETS`.
        dtype: of activations; `float64` where `jax_enable_x64` is set.
        remat: one of `REMAT_POLICIES` (see `jax.checkpoint_policies`), or empty.
        **overrides: fields of `evaluator.Evaluator`.

    Raises:
        InputError: for an unknown preset, field or choice, or widths that heads don't
            divide.
    """
    _check_choice("preset", preset, sorted(presets.PRESETS))
    _check_choice("dtype", dtype, DTYPES)
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise schema.InputError("dtype float64 needs JAX_ENABLE_X64=1")
    fields = dict(presets.PRESETS[preset])
    for name, value in overrides.items():
        _check_choice("model option", name, sorted(fields))
        fields[name] = value
    for name, choices in _CHOICES.items():
        _check_choice(name, fields[name], choices)
    fields["temporal_ffn"] = fields["temporal_ffn"] or 4 * fields["width"]
    for name in (
        *("width", "depth", "temporal_heads", "temporal_layers", "temporal_ffn"),
        *("fusion_heads", "fusion_layers", "fusion_ffn"),
    ):
        least = 1
        if name == "temporal_layers" and fields["topology"] == "late":
            least = 0  # `early` has its last shared layer there.
        if fields[name] < least:
            raise schema.InputError(
                f"model.{name} is {fields[name]}; expected at least {least}"
            )
    if fields["temporal_window"] < 0:
        raise schema.InputError(
            f"model.temporal_window is {fields['temporal_window']}; "
            "expected frames, or 0 for all"
        )
    widths_of_heads = fields["head_hidden"]
    if not all(isinstance(width, int) and width >= 1 for width in widths_of_heads):
        raise schema.InputError(
            f"model.head_hidden is {widths_of_heads}; expected widths, as (128, 64)"
        )
    for name, value in fields.items():
        if not name.endswith("dropout") or not hyperparameters.known(value):
            continue
        if not 0 <= value < 1:
            raise schema.InputError(
                f"model.{name} is {value}; expected 0 or more and less than 1"
            )
    for name in ("temporal_heads", "fusion_heads"):
        if fields["width"] % fields[name]:
            raise schema.InputError(
                f"model.width {fields['width']} is no multiple of "
                f"model.{name} {fields[name]}"
            )
    if remat:
        _check_choice("remat", remat, REMAT_POLICIES)
    module = evaluator.Evaluator(
        modalities=tuple(widths),
        ranges=tuple((task.low, task.high) for task in tasks),
        max_frames=max_frames,
        dtype=jnp.dtype(dtype),
        remat=remat,
        **fields,
    )

    def call(method: str, params: Params, *args: Any, rng: jax.Array | None) -> Any:
        rngs = None if rng is None else {"dropout": rng}
        return module.apply({"params": params}, *args, rngs=rngs, method=method)

    @jax.jit
    def init(rng: jax.Array) -> Params:
        frames = min(2, max_frames)
        features = {
            name: jnp.zeros((1, frames, width)) for name, width in widths.items()
        }
        mask = {name: jnp.ones((1, frames), bool) for name in widths}
        return module.init(rng, features, mask)["params"]

    def apply(params, batch: batch.Batch, rng=None):
        return call("__call__", params, batch.features, batch.frame_mask, rng=rng)

    def encode(params, batch: batch.Batch, rng=None):
        return call("encode", params, batch.features, batch.frame_mask, rng=rng)

    def fuse(params, encoded, rng=None):
        return call("fuse", params, encoded, rng=rng)

    def trunk(params, batch: batch.Batch, rng=None):
        one, two = (None, None) if rng is None else jax.random.split(rng)
        return fuse(params, encode(params, batch, one), two)

    def join(params, joined, rng=None):
        return call("join", params, joined, rng=rng)

    def heads(params, features, rng=None):
        return call("heads", params, features, rng=rng)

    def attend(params, batch: batch.Batch):
        _, kept = module.apply(
            {"params": params},
            *(batch.features, batch.frame_mask),
            method="encode",
            mutable=[attention.WEIGHTS],
        )
        blocks = [
            kept[attention.WEIGHTS][f"time_{layer}"]["attention"]["weights"][0]
            for layer in range(fields["temporal_layers"])
        ]
        early = fields["topology"] == "early"
        return [block[:, None] if early else block for block in blocks]

    return Model(
        init,
        apply,
        encode,
        fuse,
        trunk,
        join,
        heads,
        attend,
        module.last_shared(),
        {"preset": preset, "dtype": dtype, "remat": remat, **fields},
    )


def from_config(
    config: ml_collections.ConfigDict,
    widths: Mapping[str, int],
    tasks: Sequence[schema.Task],
) -> Model:
    """Builds the network that a configuration stands for.

    Args:
        config: see `configs/default.py`.
        widths: of each modality after preprocessing.
        tasks: of the data set.
    """
    options = {
        name: value
        for name, value in config.model.items()
        if name not in ("preset", "dtype", "remat", "modalities") and value is not None
    }
    return make(
        widths=widths,
        tasks=tasks,
        max_frames=config.data.max_frames,
        preset=config.model.preset,
        dtype=config.model.dtype,
        remat=config.model.remat,
        **options,
    )


def _check_choice(what: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise schema.InputError(
            f"unknown {what} {value!r}; available: {', '.join(choices)}"
        )
