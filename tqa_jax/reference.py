"""What training features look like, so that other input can be told from them.

The one thing to know: a window is summed up by the mean of each modality's
preprocessed frames; its distance is the root mean square of that mean's z-scores over
training windows, divided by what 99 % of training windows stay below. Above 1 is
unusual; a model's scores for what is far above 1 are guesses.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from jaxtyping import Bool, Float

from tqa_jax import batch as batches
from tqa_jax import output

_SHARE = 0.99


def means(
    features: Float[np.ndarray, "B T D"], mask: Bool[np.ndarray, "B T"]
) -> Float[np.ndarray, "N D"]:
    """Mean frame of each window that has one."""
    count = mask.sum(axis=1)
    total = np.einsum("btd,bt->bd", features, mask.astype(features.dtype))
    there = count > 0
    return total[there] / count[there, None]


def fit(
    windows: Callable[[], Iterable[batches.Batch]],
) -> dict[str, dict[str, np.ndarray]]:
    """Measures training windows.

    Args:
        windows: starts a pass over their batches, in NumPy.

    Returns:
        By modality `mean` (D,) and `scale` (D,) of the windows' means, and `limit` ().
        A feature that is the same in all windows has scale 1.
    """
    found: dict[str, list[np.ndarray]] = {}
    for one in windows():
        for name, features in one.features.items():
            rows = means(np.asarray(features), np.asarray(one.frame_mask[name]))
            found.setdefault(name, []).append(rows)
    fitted = {}
    for name, parts in found.items():
        rows = np.concatenate(parts)
        mean, scale = rows.mean(axis=0), rows.std(axis=0)
        scale = np.where(scale > 1e-6, scale, 1)
        one = {"mean": mean, "scale": scale, "limit": np.float32(1)}
        limit = np.quantile(distance(one, rows), _SHARE)
        fitted[name] = one | {"limit": np.float32(max(limit, 1e-6))}
    return fitted


def distance(
    fitted: Mapping[str, np.ndarray], rows: Float[np.ndarray, "N D"]
) -> Float[np.ndarray, " N"]:
    """Distance of windows' means from the training windows, 1 at the limit."""
    scores = (rows - fitted["mean"]) / fitted["scale"]
    return np.sqrt(np.square(scores).mean(axis=-1)) / fitted["limit"]


def save(path: pathlib.Path, fitted: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Writes what `fit` returned to an `.npz` file, atomically."""
    output.write_arrays(
        path,
        **{
            f"{name}/{field}": np.asarray(value, np.float32)
            for name, one in fitted.items()
            for field, value in one.items()
        },
    )
