"""The network of the studies without attention between modalities: a third of the time.

    python -m experiments.weighting --config=configs/study_late.py --out=studies/late

For comparisons of many cases on two CPU cores, where fusion is not the question.
"""

import ml_collections

from configs import study


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = study.get_config()
    config.model.cross_layers = 0
    config.model.depth = 1
    config.model.temporal_heads = 2
    return config
