"""The optimized size: width 512, 6 layers, 16 heads, FFN 2048.

    python -m tqa_jax.main --config=configs/optimized.py

For a GPU or TPU; not run to its end yet. A batch of 64 in 8 micro-batches, which
equals the whole batch up to dropout's draws.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.model.width = 512
    config.model.temporal_heads = 16
    config.model.fusion_layers = 6
    config.model.fusion_heads = 16
    config.model.fusion_ffn = 2048
    config.model.head_hidden = (256, 128)
    config.model.head_dropout = 0.3
    config.loss.label_smoothing = 0.1
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 500
    config.train.epochs = 150
    config.train.patience = 15
    config.train.batch_size = 64
    config.train.accumulation = 8
    return config
