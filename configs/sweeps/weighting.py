"""Every task weighting on the main job's network, over five seeds.

    python -m tqa_jax.sweep --config=configs/sweeps/weighting.py --workdir=runs/w

A key of the base is overridden as --config.base.train.epochs=3, one of the grid as
--config.grid.seed="(0, 1)". The table compares with the first setting.
"""

import ml_collections

from configs import gradnorm


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration of the sweep."""
    config = ml_collections.ConfigDict()
    config.base = gradnorm.get_config()  # What all runs have in common.
    # Values by key of the base; the runs are all combinations.
    config.grid = ml_collections.ConfigDict(
        {
            "weighting": {
                "name": (
                    "fixed",
                    "variance",
                    "uncertainty",
                    "learned",
                    "gradnorm",
                    "dwa",
                    "rlw",
                    "famo",
                    "stch",
                )
            },
            "seed": (0, 1, 2, 3, 4),
        }
    )
    # Random search: `number` draws, each combined with the grid. Ranges by key of the
    # base, as {"optim": {"learning_rate": ("log", 1e-4, 1e-2)}}; or ("uniform", ...).
    config.random = ml_collections.ConfigDict({"number": 0, "seed": 0, "ranges": {}})
    # Runs that go through a device's program side by side; 0 measures what is best.
    config.at_once = 0
    return config
