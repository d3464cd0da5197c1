"""The network of the studies: small enough for hundreds of runs on two CPU cores.

    python -m tqa_jax.main --config=configs/study.py

`gradnorm.py` with half the width, fixed weights and 20 epochs: about 6 s a run on two
idle cores.
"""

import ml_collections

from configs import gradnorm


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = gradnorm.get_config()
    config.weighting.name = "fixed"
    config.model.width = 32
    config.model.fusion_layers = 1
    config.model.fusion_ffn = 64
    config.model.head_hidden = (32,)
    config.train.epochs = 20
    config.evaluate.dropout_draws = 0
    return config
