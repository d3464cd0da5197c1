"""Audio backend `distillmos`: a listener's opinion of speech, and what it rests on.

DistillMOS hears windows of 7.68 s, at most a second apart, and gives each an opinion
from 1 to 5 and the 200 numbers that it is made of. A row takes the line between the
windows in whose middles it lies, so it says nothing of a single word.

Licence: MIT (package `distillmos`, which ships the 4.2 million weights, 17 MB; the
network is computed by JAX and needs no PyTorch, which the package itself wants:
`pip install --no-deps distillmos==0.9.1` is enough). Speed: 0.5 s a
second of clip on one core, a third of that for clips of 8 s.
Blind to what lies above 8 kHz and to loudness, to what is said and by whom, and to
whether the mouth moves with it.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from extract import backends, sound
from extract.networks import weights
from tqa_jax import schema

MODALITY = "audio"
VERSION = "1"
DTYPES = ("float32",)
DESCRIPTION = (
    "DistillMOS: an opinion of 8 s of speech around each row, 1 to 5, and its embedding"
)
FEATURES = ("distill_mos",) + tuple(f"distill_{index:03d}" for index in range(200))
"""Names of the features, in the order of the last axis."""

_FILE = "weights/distill_mos_v7.pt"
_SHA256 = "b18b3ac60227267cfb91e5d00ce22cc7b73716fd92f269484da1446e27031a40"
_WINDOW = 122_880  # samples
_HOP = 16_000  # samples between windows, at most


def find(given: str | None) -> weights.Found:
    """Finds the weights in the package, see `extract.backends`.

    Raises:
        schema.InputError: the package is missing or another version, or other weights
            are asked for.
    """
    if given is not None:
        raise schema.InputError(
            f"--audio_weights={given} is given, but distillmos takes only the weights "
            "of its package; leave it out"
        )
    path = weights.packaged("distillmos", _FILE, _SHA256)
    return weights.Found(pathlib.Path(path), {}, {}, _SHA256, "distillmos 0.9.1")


def make(setting: backends.Setting) -> backends.Measurer:
    """Keeps a clip's sound."""
    return backends.Measurer(
        lambda clip: ({"samples": clip.samples}, sound.heard(clip.present, clip.rows))
    )


def group(name: str) -> str:
    """Returns the group that a feature belongs to where groups are compared."""
    return "opinion of speech" if name == "distill_mos" else "embedding of speech"


def starts(count: int) -> np.ndarray:
    """Returns the first sample of each of the package's windows of so many samples."""
    over = max(0, count - _WINDOW)
    return (np.linspace(0, 1, -(-over // _HOP) + 1) * over).astype(int)


def network(found: weights.Found, dtype: Any) -> backends.Network:
    """Reads the weights, see `extract.backends`."""
    import functools

    import jax  # Here: the processes that decode do without.

    from extract.networks import distillmos, torch_file

    params = distillmos.from_tensors(torch_file.read(found.file)["model"])
    run = functools.partial(
        jax.jit(distillmos.DistillMos().apply), jax.device_put(params)
    )

    def inputs(pending: Mapping[str, np.ndarray]) -> Mapping[str, tuple]:
        samples = pending["samples"]
        padded = np.pad(samples, (0, max(0, _WINDOW - len(samples))))
        windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)
        return {"windows": (windows[starts(len(samples))],)}

    def finish(
        pending: Mapping[str, np.ndarray], mask: np.ndarray, outputs: Mapping
    ) -> tuple[np.ndarray, np.ndarray]:
        middles = (starts(len(pending["samples"])) + _WINDOW / 2) / sound.SAMPLE_RATE
        features = on_rows(outputs["windows"], middles, len(mask))
        features[~mask] = np.nan
        return features, mask

    return backends.Network(inputs, {"windows": run}, finish, rows=lambda samples: 25)


def on_rows(
    values: Float[np.ndarray, "W D"], seconds: Float[np.ndarray, " W"], num_rows: int
) -> Float[np.ndarray, "T D"]:
    """Brings values at some seconds to the rows' instants, t/25 s, by lines."""
    rows = np.arange(num_rows) / schema.FPS
    columns = [np.interp(rows, seconds, column) for column in values.T]
    return np.stack(columns, axis=-1).astype(np.float32)
