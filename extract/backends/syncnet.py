"""Sync backend `syncnet`: LSE-D, LSE-C and offset of the two-stream network.

References:
    Chung, Zisserman 2016, "Out of time: automated lip sync in the wild".
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from extract import backends
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
    settings=(),
)


def find(given: str | None) -> weights.Found:
    """Finds the weights, see `extract.backends`."""
    return weights.of_network(SOURCE, given)


def make(setting: backends.Setting) -> backends.Measurer:
    """Cuts the faces out of a clip's rows and keeps its sound."""
    cropper, crops = syncnet_input.Cropper(), []

    def frame(pixels: np.ndarray, points: np.ndarray | None) -> None:
        crops.extend(cropper.push(pixels, points))

    def finish(clip: backends.Clip) -> tuple[dict[str, np.ndarray], np.ndarray]:
        crops.extend(cropper.finish())
        faces = np.stack([crop for crop in crops if crop is not None])
        pending = {"crops": faces, "samples": clip.samples, "present": clip.present}
        return {**pending, "seen": clip.seen}, clip.seen

    return backends.Measurer(finish, frame)


def network(found: weights.Found, dtype: Any) -> backends.Network:
    """Reads the weights, see `extract.backends`."""
    import jax  # Here: the processes that decode do without.

    from extract.networks import syncnet, tensor_file

    params = jax.device_put(syncnet.from_tensors(tensor_file.read(found.file)))
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
        places = syncnet_input.face_windows(pending["seen"]), np.flatnonzero(known)
        count = max(0, len(mask) - syncnet_input.FRAMES + 1)
        embeddings = np.full((2, count, syncnet.WIDTH), np.nan, np.float32)
        for stream, at, name in zip(
            embeddings, places, ("faces", "sounds"), strict=True
        ):
            if len(at):
                stream[at] = outputs[name]
        return syncnet.features(syncnet.lags(*embeddings), mask)

    return backends.Network(
        inputs,
        {
            "faces": lambda windows: faces(params, windows),
            "sounds": lambda windows: sounds(params, windows),
        },
        finish,
    )
