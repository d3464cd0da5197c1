"""The standard size: width 256, 3 layers, 8 heads, FFN 1024.

    python -m tqa_jax.main --config=configs/standard.py

For a GPU or TPU; not run to its end yet.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.model.width = 256
    config.model.fusion_layers = 3
    config.model.fusion_heads = 8
    config.model.fusion_ffn = 1024
    config.optim.learning_rate = 1e-4
    config.optim.weight_decay = 1e-4
    config.train.epochs = 30
    return config
