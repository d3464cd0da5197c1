"""The batch that crosses `jit`: features, masks and labels of B windows.

The one thing to know: absence is always a mask. Values under a False mask are zeros
that nothing may read.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@flax.struct.dataclass
class Batch:
    """Windows of clips, padded to one length.

    Attributes:
        features: by modality, preprocessed features.
        frame_mask: by modality, True where a frame was measured.
        labels: opinion scores, 0 where `label_mask` is False.
        label_mask: True where the clip has a label for the task.
    """

    features: dict[str, jax.Array]  # each (B, T, D_m)
    frame_mask: dict[str, jax.Array]  # each (B, T)
    labels: jax.Array  # (B, K)
    label_mask: jax.Array  # (B, K)

    @property
    def clip_mask(self) -> Bool[Array, " B"]:
        """True for rows that hold a clip, False for rows that only fill a batch."""
        masks = jnp.stack([mask.any(axis=-1) for mask in self.frame_mask.values()])
        return masks.any(axis=0)


def take(batch: Batch, rows: Int[Array, " B"]) -> Batch:
    """Picks rows of a batch; a row of -1 gives an empty one, every mask False."""
    filled = rows >= 0

    def pick(array: jax.Array) -> jax.Array:
        keep = filled.reshape(-1, *[1] * (array.ndim - 1))
        return jnp.where(keep, array[jnp.maximum(rows, 0)], jnp.zeros((), array.dtype))

    return jax.tree.map(pick, batch)
