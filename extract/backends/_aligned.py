"""What image networks share: they see the aligned face of each row that has one."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from extract import backends, crops


def make(setting: backends.Setting) -> backends.Measurer:
    """Cuts the faces out of a clip's rows."""
    cut = []

    def frame(pixels: np.ndarray, points: np.ndarray | None) -> None:
        if points is not None:
            cut.append(crops.aligned(pixels, points))

    return backends.Measurer(lambda clip: ({"crops": np.stack(cut)}, clip.seen), frame)


def network(run: Callable[..., Any]) -> backends.Network:
    """Puts what a network says of the crops on the clip's rows.

    Args:
        run: from crops, uint8 (B, 224, 224, 3), to features (B, D).
    """

    def finish(
        pending: Mapping[str, np.ndarray], mask: np.ndarray, outputs: Mapping
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = outputs["faces"]
        features = np.full((len(mask), rows.shape[-1]), np.nan, np.float32)
        features[mask] = rows
        return features, mask

    return backends.Network(
        lambda pending: {"faces": (pending["crops"],)}, {"faces": run}, finish
    )
