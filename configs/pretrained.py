"""The network of the packaged scorer: small, and without attention in time.

    python -m tqa_jax.main --config=configs/pretrained.py --config.data.path=data/mine \
        --config.train.start_from=default --workdir=runs/mine

Its inputs say what happens over half a second already, and with a few hundred copies of
some dozen people attention in time learns the people.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.preprocess.pca = ml_collections.ConfigDict({"visual": 24, "audio": 32})
    config.preprocess.winsorise = 1.5
    config.model.width = 32
    config.model.depth = 1
    config.model.temporal_layers = 0
    config.model.cross_layers = 0
    config.model.pooling = "mean"
    config.model.fusion_layers = 1
    config.model.fusion_heads = 4
    config.model.fusion_ffn = 64
    config.model.head_hidden = (32,)
    config.model.modality_dropout = 0.1
    config.weighting.name = "fixed"
    config.optim.learning_rate = 3e-3
    config.train.epochs = 45
    config.train.patience = 15
    config.train.members = 3
    return config
