"""A tiny run that touches everything: to see that an installation works.

    python -m tqa_jax.main --config=configs/smoke.py

Half a minute on two idle CPU cores, a minute the first time. Its scores mean nothing.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.data.demo_clips = 24
    config.model.width = 16
    config.model.temporal_heads = 2
    config.model.fusion_layers = 1
    config.model.fusion_heads = 2
    config.model.fusion_ffn = 32
    config.model.head_hidden = (16,)
    config.train.epochs = 3
    config.optim.warmup_steps = 1
    config.train.batch_size = 8
    return config
