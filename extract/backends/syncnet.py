"""Sync backend `syncnet`: how far the sound is from the mouth, by a trained network.

`offset_frames` is positive when the audio is late, as in the backend `correlation`; the
public code of SyncNet prints the opposite sign. Window `t` is the five pictures of rows
t to t+4 and the sound of the same 0.2 s, so what it measures belongs to row t+2, its
middle.

The distance of the two networks' embeddings is small where lips and sound fit. The lag
of the sound at which the mean distance is least is the offset, that distance is LSE-D,
and how far the median over the lags lies above it is LSE-C.

References:
    Chung, Zisserman 2016, "Out of time: automated lip sync in the wild"; the formulas
    are those of its public code. We differ where a lag moves a pair out of the clip: it
    is left out, while the public code compares with zeros, which bends the mean at far
    lags.
    Prajwal et al. 2020, "A lip sync expert is all you need", for LSE-D and LSE-C.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from extract import backends
from extract.backends import _sync
from extract.networks import syncnet_input, weights

MODALITY = "sync"
VERSION = "1"
DESCRIPTION = (
    "SyncNet over about 2 s around the row: LSE-D, LSE-C, lag in frames "
    "(positive: audio late) and 1 where there was anything to compare"
)
FEATURES = ("lse_d", "confidence", "offset_frames", "validity")  # LSE-D, LSE-C
"""Names of the features, in the order of the last axis."""
# Its authors publish it on their own site; copies on the hub have no clear licence.
SOURCE = weights.Source(
    "syncnet",
    option="--sync_weights",
    instead="--sync=correlation",
    file="syncnet_v2.model",
    sha256="961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
    page="http://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model",
)
WINDOW = 51  # windows behind a row's features, about 2 s

_EPSILON = 1e-6  # added to each difference by PyTorch's `pairwise_distance`

find = SOURCE.find


def make(setting: backends.Setting) -> backends.Measurer:
    """Cuts the faces out of a clip's rows and keeps its sound."""
    cropper, crops = syncnet_input.Cropper(), []

    def frame(pixels: np.ndarray, points: np.ndarray | None) -> None:
        crops.extend(cropper.push(pixels, points))

    def finish(clip: backends.Clip) -> tuple[dict[str, np.ndarray], np.ndarray]:
        crops.extend(cropper.finish())
        pending = {"samples": clip.samples, "present": clip.present, "seen": clip.seen}
        return {"crops": np.stack(crops), **pending}, clip.seen

    return backends.Measurer(finish, frame)


def network(found: weights.Found, dtype: Any) -> backends.Network:
    """Reads the weights, see `extract.backends`."""
    import jax  # Here: the processes that decode do without.

    from extract.networks import syncnet, tensors

    params = jax.device_put(syncnet.from_tensors(tensors.read(found.file)))
    faces = jax.jit(functools.partial(syncnet.faces, dtype=dtype))
    sounds = jax.jit(functools.partial(syncnet.sounds, dtype=dtype))

    def inputs(pending: Mapping[str, np.ndarray]) -> Mapping[str, tuple]:
        seen, crops = pending["seen"], pending["crops"]
        # The rows of a window all have a face, so their crops follow each other.
        places = np.cumsum(seen)[syncnet_input.face_windows(seen)] - 1
        windows = [crops[at : at + syncnet_input.FRAMES] for at in places]
        heard, known = syncnet_input.sound_windows(
            pending["samples"], pending["present"]
        )
        return {"faces": (windows,), "sounds": (heard[known],)}

    def finish(
        pending: Mapping[str, np.ndarray], mask: np.ndarray, outputs: Mapping
    ) -> tuple[np.ndarray, np.ndarray]:
        _, known = syncnet_input.sound_windows(pending["samples"], pending["present"])
        places = {
            "faces": syncnet_input.face_windows(pending["seen"]),
            "sounds": np.flatnonzero(known),
        }
        count = max(0, len(mask) - syncnet_input.FRAMES + 1)
        embeddings = np.full((2, count, syncnet.WIDTH), np.nan, np.float32)
        for stream, (name, at) in zip(embeddings, places.items(), strict=True):
            if len(at):
                stream[at] = outputs[name]
        return features(distances(*embeddings), mask)

    return backends.Network(
        inputs,
        {
            "faces": lambda windows: faces(params, windows),
            "sounds": lambda windows: sounds(params, windows),
        },
        finish,
    )


def distances(
    faces: Float[np.ndarray, "W 1024"], sounds: Float[np.ndarray, "W 1024"]
) -> Float[np.ndarray, "W 31"]:
    """Measures how far each window of faces is from the windows of sound around it.

    Args:
        faces: embedding of each window, NaN where there is none.
        sounds: likewise.

    Returns:
        For lags -15 to 15 of the sound, in rows: the distance of window `t` of faces
        from window `t + lag` of sound; NaN where either is unknown or outside.
    """
    lags = _sync.lagged(sounds)
    columns = [np.linalg.norm(faces - moved + _EPSILON, axis=-1) for moved in lags]
    return np.stack(columns, axis=-1)


def features(
    distances: Float[np.ndarray, "W 31"], seen: Bool[np.ndarray, " T"]
) -> tuple[Float[np.ndarray, "T 4"], Bool[np.ndarray, " T"]]:
    """Measures about 2 s around each row.

    Row `r` is measured over the 51 windows whose middles are nearest to it, those
    that begin at rows r-27 to r+23, moved inwards at the ends of the clip.

    Args:
        distances: window `t` is of rows t to t+4, so W is T-4, or 0.
        seen: rows with a face.

    Returns:
        Features and mask. The mask is False in rows without a face, and where
        half of the windows or more lack face or sound. In a clip of fewer than 20
        windows, or where gaps leave too few of the lags, the row is present and all
        of its four values are 0.
    """
    num_windows = len(distances)
    result, mask = np.zeros((len(seen), len(FEATURES)), np.float32), np.array(seen)
    if num_windows:
        middles = np.arange(len(seen)) - syncnet_input.FRAMES // 2
        starts, window = _sync.windows(num_windows, WINDOW, middles)
        known = np.isfinite(distances)
        count = _sync.sums(known, starts, window)
        total = _sync.sums(np.where(known, distances, 0.0), starts, window)
        mask &= count[:, _sync.MAX_LAG] > 0.5 * window
        enough = _sync.enough(count, window)
        means = np.full(count.shape, np.nan)
        np.divide(total, count, out=means, where=enough)
        valid = mask & (enough.sum(axis=-1) > _sync.MAX_LAG)
        valid &= window >= _sync.MIN_ROWS
        if valid.any():
            means = means[valid]
            least, lag = np.nanmin(means, -1), np.nanargmin(means, -1) - _sync.MAX_LAG
            above = np.nanmedian(means, axis=-1) - least
            result[valid] = np.stack([least, above, lag, np.ones_like(least)], axis=-1)
    result[~mask] = np.nan
    return result, mask
