"""What speech networks share: they hear whole clips, brought to the rows afterwards.

A clip is padded to one of a few lengths, so that a network is compiled few times;
padding changes nothing (`wav2vec2.Wav2Vec2`).
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from extract import backends, sound
from extract.networks import weights
from tqa_jax import schema

PREPARATION = {"do_normalize": True, "sampling_rate": 16000}
"""What `preprocessor_config.json` must say, where it says anything."""

# Lengths of sound that are compiled for, in seconds: little of each is padding.
_SECONDS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 27, 33, 40, 50, 62, 77, 96, 120)


def make(setting: backends.Setting) -> backends.Measurer:
    """Keeps a clip's sound."""
    return backends.Measurer(
        lambda clip: ({"samples": clip.samples}, sound.heard(clip.present, clip.rows))
    )


def width(setting: backends.Setting) -> int:
    """Returns the number of features."""
    return setting.weights.width("hidden_size", 768)


def network(found: weights.Found, dtype: Any) -> backends.Network:
    """Reads the weights of HuBERT or Wav2Vec2, see `extract.backends`."""
    import jax  # Here: the processes that decode do without.

    from extract.networks import tensors, wav2vec2

    network = wav2vec2.from_json(found.config, dtype)
    params = jax.device_put(wav2vec2.from_tensors(tensors.read(found.file), network))

    def inputs(pending: Mapping[str, np.ndarray]) -> Mapping[str, tuple]:
        samples = pending["samples"]
        count = len(samples)
        padded = np.pad(wav2vec2.prepare(samples), (0, padded_length(count) - count))
        return {"sound": (padded[None], np.array([count], np.int32))}

    def finish(
        pending: Mapping[str, np.ndarray], mask: np.ndarray, outputs: Mapping
    ) -> tuple[np.ndarray, np.ndarray]:
        frames = outputs["sound"][0][: wav2vec2.num_frames(len(pending["samples"]))]
        features = on_rows(frames, len(mask))
        features[~mask] = np.nan
        return features, mask

    return backends.Network(
        inputs,
        {"sound": functools.partial(jax.jit(network.apply), params)},
        finish,
        rows=lambda samples, length: (
            len(samples) * round(schema.FPS) // sound.SAMPLE_RATE
        ),
    )


def padded_length(count: int) -> int:
    """Returns the number of samples to which a clip is padded before its network."""
    seconds = count / sound.SAMPLE_RATE
    whole = next(
        (length for length in _SECONDS if length >= seconds),
        30 * int(np.ceil(seconds / 30)),
    )
    return whole * sound.SAMPLE_RATE


def on_rows(
    frames: Float[np.ndarray, "F D"], num_rows: int
) -> Float[np.ndarray, "T D"]:
    """Brings a speech network's frames to the rows' instants, t/25 s, by lines.

    Args:
        frames: 50 a second; each is the instant of the middle of what it saw.
        num_rows: rows of the clip; before the first frame and after the last, that
            frame holds.
    """
    from extract.networks import wav2vec2

    at = wav2vec2.frame_seconds(len(frames))
    place = np.interp(np.arange(num_rows) / schema.FPS, at, np.arange(len(at)))
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, len(frames) - 1)
    share = (place - low)[:, None].astype(np.float32)
    return (1 - share) * frames[low] + share * frames[high]
