"""Presets: the fields of `Evaluator` under a name.

`advanced` and `optimized_mtl` are the two networks of the older PyTorch system
without its defects (masks everywhere, scores mapped to their range once); `synced` is
ours and adds what lets a network see synchrony.
"""

from typing import Any

_ADVANCED: dict[str, Any] = {
    "width": 256,
    "encoder": "residual",
    "depth": 3,
    "embedder_hidden": {},
    "dropout": 0.3,
    "topology": "late",
    "positions": False,
    "modality_embeddings": False,
    "temporal_layers": 1,
    "temporal_heads": 8,
    "temporal_ffn": 0,
    "temporal_dropout": 0.1,
    "temporal_window": 0,
    "cross_layers": 0,
    "attention_dropout": 0.1,
    "pooling": "mean_max",
    "paths": "both",
    "gate": False,
    "fusion_layers": 3,
    "fusion_heads": 8,
    "fusion_ffn": 1024,
    "fusion_dropout": 0.1,
    "modality_dropout": 0.0,
    "head_hidden": (128, 64),
    "head_dropout": 0.2,
    "head_style": "normed",
    "head_activation": "sigmoid",
}

PRESETS: dict[str, dict[str, Any]] = {
    "advanced": _ADVANCED,
    "synced": _ADVANCED
    | {
        "positions": True,
        "modality_embeddings": True,
        "cross_layers": 1,
        # The random numbers for T x T attention weights cost more than the attention.
        "attention_dropout": 0.0,
        "gate": True,
        "modality_dropout": 0.1,
    },
    "optimized_mtl": _ADVANCED
    | {
        "width": 512,
        "encoder": "embedder",
        "embedder_hidden": {
            "visual": 256,
            "audio": 512,
            "keypoints": 512,
            "action_units": 128,
        },
        "topology": "early",
        "positions": True,
        "modality_embeddings": True,
        "temporal_layers": 6,
        "temporal_heads": 16,
        "temporal_dropout": 0.3,
        "attention_dropout": 0.3,
        "pooling": "mean",
        "head_hidden": (256, 128),
        "head_dropout": 0.3,
        "head_style": "plain",
    },
}
