"""Visual backend `clip`: CLIP's image embedding of the aligned face.

PyTorch runs it, on the CPU and in float32; it needs the extra `clip`.
"""

from typing import Any

from extract import backends, crops
from extract.backends import _aligned
from extract.networks import weights

MODALITY = "visual"
VERSION = f"1.{crops.VERSION}"
DESCRIPTION = "CLIP's image embedding of the aligned face"
DTYPES = ("float32",)
SOURCE = weights.Source(
    "clip",
    option="--visual_weights",
    instead="--visual=nss",
    file="pytorch_model.bin",
    repository="openai/clip-vit-base-patch32",
    revision="3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
    sha256="a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
    preparation={"do_rescale": True, "do_normalize": True},
)

make, find = _aligned.make, SOURCE.find


def width(setting: backends.Setting) -> int:
    """Returns the number of features."""
    return setting.weights.width("projection_dim", 512)


def network(found: weights.Found, dtype: Any) -> backends.Network:
    """Reads the weights, see `extract.backends`."""
    from extract.networks import clip_vision

    return _aligned.network(clip_vision.load(found))
