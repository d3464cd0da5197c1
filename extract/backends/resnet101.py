"""Visual backend `resnet101`: an ImageNet network over the aligned face."""

import functools
from typing import Any

from extract import backends, crops
from extract.backends import _aligned
from extract.networks import weights

MODALITY = "visual"
VERSION = f"1.{crops.VERSION}"
DESCRIPTION = "ResNet of the aligned face, mean over positions"
# Revision and checksum: the hub's page of the file alone, so the latter is not pinned.
# (It lists f2957549a2feece05426879095399ded54f4ba62aef57b26b88e0c758a0f3bd0.) The main
# branch has a pickle only; this is the hub's conversion of it.
SOURCE = weights.Source(
    "resnet101",
    option="--visual_weights",
    instead="--visual=nss",
    repository="microsoft/resnet-101",
    revision="5b977138c80713ccee33a115e91899aea7a2f9a6",
    kind="resnet",
    preparation={
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
)

make, find = _aligned.make, SOURCE.find


def width(setting: backends.Setting) -> int:
    """Returns the number of features."""
    return setting.weights.width("hidden_sizes", 2048)


def network(found: weights.Found, dtype: Any) -> backends.Network:
    """Reads the weights, see `extract.backends`."""
    import jax  # Here: the processes that decode do without.

    from extract.networks import resnet, tensors

    network = resnet.from_json(found.config, dtype)
    params = jax.device_put(resnet.from_tensors(tensors.read(found.file), network))
    return _aligned.network(functools.partial(jax.jit(network.apply), params))
