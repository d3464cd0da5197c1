"""What the benchmarks train: sizes, and the numbers that all sides share.

The one thing to know: nothing is imported here, so that each side's process holds its
own library and no other.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

WIDTHS = {"visual": 100, "audio": 200, "keypoints": 50, "action_units": 17}
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 1e-2
CLIP_NORM = 1.0
L1_WEIGHT = 0.1
CONSISTENCY_WEIGHT = 0.05
CONSISTENCY_TASKS = (0, 1, 2, 3)
# What `evaluator.Evaluator` has in path A.
PATH_A_DROPOUT = 0.2


@dataclasses.dataclass(frozen=True)
class Size:
    """A network and its batch.

    Attributes:
        clips: in a batch.
        frames: of each clip, all of them there.
        options: changes to the preset `advanced`.
    """

    clips: int
    frames: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


SMALL = {
    "width": 64,
    "temporal_heads": 4,
    "fusion_layers": 2,
    "fusion_heads": 4,
    "fusion_ffn": 128,
    "head_hidden": (64, 32),
}
_OPTIMIZED = {
    "width": 512,
    "temporal_heads": 16,
    "fusion_layers": 6,
    "fusion_heads": 16,
    "fusion_ffn": 2048,
    "head_hidden": (256, 128),
}
SIZES = {
    "standard": Size(32, 150),
    "optimized": Size(8, 150, _OPTIMIZED),
    # Sweeps. One frame a clip: features that were pooled over time beforehand.
    "pooled 64": Size(32, 1, SMALL),
    "pooled 256": Size(32, 1),
    "temporal 64": Size(16, 150, SMALL),
    "tiny": Size(8, 10, SMALL | {"width": 16}),
}


def rates(dropout: float) -> dict[str, float]:
    """Options that set all rates of dropout but that in path A, which is fixed."""
    names = ("", "temporal_", "attention_", "fusion_", "head_")
    return {f"{name}dropout": dropout for name in names}
