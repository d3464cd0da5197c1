"""Activations in float32, bfloat16 and float16 on the main job's network, five seeds.

    python -m tqa_jax.sweep --config=configs/sweeps/precision.py --workdir=runs/p

Fixed weights, so that nothing but the precision differs.
"""

import ml_collections

from configs.sweeps import weighting


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration of the sweep."""
    config = weighting.get_config()
    config.base.weighting.name = "fixed"
    config.grid = ml_collections.ConfigDict(
        {
            "model": {"dtype": ("float32", "bfloat16", "float16")},
            "seed": (0, 1, 2, 3, 4),
        }
    )
    return config
