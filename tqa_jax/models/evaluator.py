"""The Evaluator network: from features and masks to one score a task.

The one thing to know: it runs in four parts. `encode` is what has a time axis, `fuse`
the rest before the last shared layer, `join` that layer and `heads` what the tasks
don't share: so training may encode clips in small groups, and a weighting gets each
task's gradient at the last shared layer without going through the others again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from tqa_jax.models import dropout, layers


class Evaluator(nn.Module):
    """Encoders, temporal attention, fusion and heads; presets are sets of fields.

    Attributes:
        modalities: names, in the order of tokens.
        ranges: lowest and highest score of each task.
        max_frames: longest time axis; sizes the table of positions.
        dtype: of activations.
        remat: name of a policy of `jax.checkpoint_policies` for every encoder and
            transformer block, or empty to keep all activations. With any of them time
            attention goes head by head and keeps no weights.
        width: D, of every token.
        encoder: `residual` (`layers.ResidualEncoder`) or `embedder`.
        depth: layers of a residual encoder.
        embedder_hidden: hidden width of each modality's embedder.
        dropout: rate in the encoders.
        topology: `late` runs time attention in each modality, pools, then fuses;
            `early` fuses the mean over modalities, then runs time attention.
        positions: adds learned positions in time.
        modality_embeddings: adds a learned vector to each modality's frames.
        temporal_layers: blocks of time attention; `late` shares them between
            modalities, and needs none.
        temporal_heads: attention heads in time.
        temporal_ffn: feed-forward width in time.
        temporal_dropout: rate in the time and cross-modal blocks.
        temporal_window: frames away, on either side, that time attention sees; 0 for
            all. Its cost is linear in the length of a clip.
        cross_layers: blocks of attention between modalities at the same frame, before
            pooling; 0 fuses only after pooling and cannot see synchrony.
        attention_dropout: rate on attention weights, everywhere.
        pooling: `mean`, `max` or `mean_max` over time.
        paths: `a` (concatenation), `b` (transformer over modality tokens) or `both`.
        gate: learns how to weigh the two paths; else their mean.
        fusion_layers: blocks of path B.
        fusion_heads: attention heads of path B.
        fusion_ffn: feed-forward width of path B.
        fusion_dropout: rate in path B; path A has 0.2 as the original.
        modality_dropout: chance of hiding a whole modality of a clip in training.
        head_hidden: widths of a head's hidden layers.
        head_dropout: rate in the heads.
        head_style: see `layers.Heads`.
        head_activation: see `layers.Heads`.
    """

    modalities: Sequence[str]
    ranges: Sequence[tuple[float, float]]
    max_frames: int
    dtype: Any
    remat: str
    width: int
    encoder: str
    depth: int
    embedder_hidden: Mapping[str, int]
    dropout: float
    topology: str
    positions: bool
    modality_embeddings: bool
    temporal_layers: int
    temporal_heads: int
    temporal_ffn: int
    temporal_dropout: float
    temporal_window: int
    cross_layers: int
    attention_dropout: float
    pooling: str
    paths: str
    gate: bool
    fusion_layers: int
    fusion_heads: int
    fusion_ffn: int
    fusion_dropout: float
    modality_dropout: float
    head_hidden: Sequence[int]
    head_dropout: float
    head_style: str
    head_activation: str

    def setup(self) -> None:
        """Makes the layers."""
        self.encoders = {name: self._encoder(name) for name in self.modalities}
        self.time = [
            self._block(
                self.temporal_heads,
                self.temporal_ffn,
                self.temporal_dropout,
                self.temporal_window,
                bool(self.remat),
            )
            for _ in range(self.temporal_layers)
        ]
        self.cross = [
            self._block(self.temporal_heads, self.temporal_ffn, self.temporal_dropout)
            for _ in range(self.cross_layers)
        ]
        near_zero = nn.initializers.normal(0.02)
        tokens = (len(self.modalities), self.width)
        if self.positions:
            self.position = self.param(
                "position", near_zero, (self.max_frames, self.width)
            )
        if self.modality_embeddings:
            self.modality = self.param("modality", near_zero, tokens)
        if self.topology == "late":
            self.absent = self.param("absent", near_zero, tokens)
            self.pool_dense = self._dense(self.width)
            if self.paths in ("b", "both"):
                self.path_b = [
                    self._block(self.fusion_heads, self.fusion_ffn, self.fusion_dropout)
                    for _ in range(self.fusion_layers)
                ]
            if self.paths in ("a", "both"):
                self.path_a_expand = self._dense(2 * self.width)
                self.path_a_drop = dropout.Dropout(0.2)
                self.path_a_contract = self._dense(self.width)
            if self.gate and self.paths == "both":
                self.path_gate = self._dense(self.width)
        self.head = layers.Heads(
            self.ranges,
            self.head_hidden,
            self.head_dropout,
            self.head_style,
            self.head_activation,
            self.dtype,
        )

    def _dense(self, width: int) -> nn.Dense:
        return nn.Dense(width, dtype=self.dtype)

    def _remat(self, module: type[nn.Module], *methods: str) -> type[nn.Module]:
        if not self.remat:
            return module
        policy = getattr(jax.checkpoint_policies, self.remat)
        return nn.remat(module, policy=policy, methods=methods)

    def _encoder(self, name: str) -> nn.Module:
        if self.encoder == "residual":
            module = self._remat(layers.ResidualEncoder, "__call__")
            return module(self.width, self.depth, self.dropout, self.dtype)
        module = self._remat(layers.Embedder, "__call__")
        hidden = self.embedder_hidden.get(name, self.width)
        return module(hidden, self.width, self.dropout, self.dtype)

    def _block(
        self,
        heads: int,
        ffn: int,
        dropout: float,
        window: int = 0,
        remat_attention: bool = False,
    ) -> layers.TransformerBlock:
        module = self._remat(layers.TransformerBlock, "hidden", "finish")
        return module(
            heads,
            ffn,
            dropout,
            self.attention_dropout,
            self.dtype,
            self.width,
            window,
            remat_attention,
        )

    def encode(
        self,
        features: Mapping[str, Float[Array, "B T _"]],
        frame_mask: Mapping[str, Bool[Array, "B T"]],
    ) -> dict[str, jax.Array]:
        """Runs what has a time axis, nearly all of the work and memory.

        Args:
            features: of each modality, preprocessed.
            frame_mask: of each modality; a wholly missing modality is False throughout.

        Returns:
            The inputs of `fuse`, with leading axis B.
        """
        x = jnp.stack(
            [
                self.encoders[name](features[name].astype(self.dtype))
                for name in self.modalities
            ],
            axis=1,
        )  # (B, M, T, D)
        mask = jnp.stack([frame_mask[name] for name in self.modalities], axis=1)
        mask = self._drop_modalities(mask)
        if self.modality_embeddings:
            x = x + self.modality[:, None].astype(self.dtype)
        return self._early(x, mask) if self.topology == "early" else self._late(x, mask)

    def _drop_modalities(self, mask: Bool[Array, "B M T"]) -> Bool[Array, "B M T"]:
        if not (self.modality_dropout and self.has_rng("dropout")):
            return mask
        there = mask.any(axis=-1)  # (B, M)
        kept = there & jax.random.bernoulli(
            self.make_rng("dropout"), 1 - self.modality_dropout, there.shape
        )
        # A clip never loses its last modality.
        kept = jnp.where(kept.any(axis=-1, keepdims=True), kept, there)
        return mask & kept[..., None]

    def _add_positions(self, x: Float[Array, "*B T D"]) -> Float[Array, "*B T D"]:
        frames = x.shape[-2]
        if frames > self.max_frames:
            raise ValueError(
                f"got {frames} frames; the model has positions for {self.max_frames}"
            )
        return x + self.position[:frames].astype(self.dtype) if self.positions else x

    def _early(
        self, x: Float[Array, "B M T D"], mask: Bool[Array, "B M T"]
    ) -> dict[str, jax.Array]:
        keep = mask[..., None]
        count = jnp.maximum(keep.sum(axis=1), 1).astype(self.dtype)
        x = self._add_positions(jnp.where(keep, x, 0).sum(axis=1) / count)
        there = mask.any(axis=1)  # (B, T)
        *first, last = self.time
        for block in first:
            x = block(x, there)
        x, hidden = last.hidden(x, there)
        return {"residual": x, "hidden": hidden, "mask": there}

    def _late(
        self, x: Float[Array, "B M T D"], mask: Bool[Array, "B M T"]
    ) -> dict[str, jax.Array]:
        x = self._add_positions(x)
        for block in self.time:
            x = block(x, mask)
        x, mask_by_frame = jnp.swapaxes(x, 1, 2), jnp.swapaxes(mask, 1, 2)
        for block in self.cross:
            x = block(x, mask_by_frame)  # (B, T, M, D)
        x = jnp.swapaxes(x, 1, 2)
        tokens = self.pool_dense(layers.pool(x, mask, self.pooling))  # (B, M, D)
        there = mask.any(axis=-1)
        tokens = jnp.where(there[..., None], tokens, self.absent.astype(self.dtype))
        return {"tokens": tokens}

    def fuse(self, encoded: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Runs what is left before the last shared layer.

        Returns:
            The inputs of `join`, with leading axis B.
        """
        if self.topology == "early":
            return dict(encoded)
        tokens = encoded["tokens"]
        everyone = jnp.ones(tokens.shape[:-1], bool)
        joined = {}
        if self.paths in ("a", "both"):
            flat = tokens.reshape(*tokens.shape[:-2], -1)
            hidden = layers.gelu(self.path_a_expand(flat))
            joined["hidden"] = self.path_a_drop(hidden)
        if self.paths == "b":
            *first, last = self.path_b
            for block in first:
                tokens = block(tokens, everyone)
            joined["residual"], joined["hidden"] = last.hidden(tokens, everyone)
        if self.paths == "both":
            for block in self.path_b:
                tokens = block(tokens, everyone)
            joined["other"] = tokens.mean(axis=-2)
        return joined

    def join(self, joined: Mapping[str, jax.Array]) -> Float[Array, "B D"]:
        """Applies the last shared layer to what `fuse` returned.

        Returns:
            The features that all heads share.
        """
        if self.topology == "early":
            x = self.time[-1].finish(joined["residual"], joined["hidden"])
            return layers.pool(x, joined["mask"], self.pooling)
        if self.paths == "b":
            x = self.path_b[-1].finish(joined["residual"], joined["hidden"])
            return x.mean(axis=-2)
        one = self.path_a_contract(joined["hidden"])
        if self.paths == "a":
            return one
        other = joined["other"]
        if not self.gate:
            return (one + other) / 2
        share = nn.sigmoid(self.path_gate(jnp.concatenate([one, other], axis=-1)))
        return share * one + (1 - share) * other

    def heads(self, features: Float[Array, "K B D"]) -> Float[Array, "B K"]:
        """Scores clips from one copy of the shared features for each task."""
        return self.head(features)

    def __call__(
        self,
        features: Mapping[str, Float[Array, "B T _"]],
        frame_mask: Mapping[str, Bool[Array, "B T"]],
    ) -> Float[Array, "B K"]:
        """Scores clips; see `encode` for the arguments."""
        shared = self.join(self.fuse(self.encode(features, frame_mask)))
        return self.heads(jnp.broadcast_to(shared, (len(self.ranges), *shared.shape)))

    def last_shared(self) -> tuple[str, ...]:
        """Path, in the parameters, of the kernel that `join` multiplies by."""
        if self.topology == "early":
            return (f"time_{self.temporal_layers - 1}", "contract", "kernel")
        if self.paths == "b":
            return (f"path_b_{self.fusion_layers - 1}", "contract", "kernel")
        return ("path_a_contract", "kernel")
