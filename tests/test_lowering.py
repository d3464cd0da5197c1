"""Training, scoring and the scorer's network lower for CPU, CUDA and TPU.

Lowering is tracing and translation for a platform, without its compiler: it finds
operations that a platform does not have, and code that looks at the local device.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from tqa_jax import assemble, batch, train_step

PLATFORMS = ("cpu", "cuda", "tpu")
WIDTHS = small.SCHEMA.widths
TASKS = len(small.SCHEMA.tasks)
FACTS = assemble.Facts(
    tasks=small.SCHEMA.tasks,
    widths=WIDTHS,
    label_means=np.full(TASKS, 3, np.float32),
    label_variances=np.ones(TASKS),
    label_correlation=np.eye(TASKS, dtype=np.float32),
    steps_per_epoch=4,
)


def windows(number, frames=8):
    rng = np.random.default_rng(0)
    return batch.Batch(
        {
            name: rng.normal(size=(number, frames, width)).astype(np.float32)
            for name, width in WIDTHS.items()
        },
        {name: rng.uniform(size=(number, frames)) < 0.9 for name in WIDTHS},
        rng.uniform(1, 5, (number, TASKS)).astype(np.float32),
        rng.uniform(size=(number, TASKS)) < 0.9,
    )


def lower(function, *arguments):
    return jax.export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)


def assert_lowered(found, function, *arguments):
    assert found.platforms == PLATFORMS
    wanted = jax.tree.leaves(jax.eval_shape(function, *arguments))
    assert [(a.shape, a.dtype) for a in found.out_avals] == [
        (a.shape, a.dtype) for a in wanted
    ]


TRAINING = {
    "gradnorm": {"surgery__name": "pcgrad"},
    "gradnorm bfloat16": {"model__dtype": "bfloat16", "train__accumulation": 2},
    "uncertainty float16": {
        "weighting__name": "uncertainty",
        "surgery__name": "upgrad",
        "model__dtype": "float16",
        "model__remat": "nothing_saveable",
    },
    "famo advanced members": {
        "weighting__name": "famo",
        "surgery__name": "nash",
        "model__preset": "advanced",
        "consistency__mode": "corr_target",
        "train__members": 2,
    },
    "windowed": {"model__temporal_window": 3},
}


@pytest.mark.parametrize("changes", TRAINING.values(), ids=TRAINING)
def test_a_segment_of_training_lowers_for_every_platform(changes):
    config = small.config(**changes)
    parts = assemble.make(config, FACTS)
    state = jax.eval_shape(parts.init, 0)
    arguments = (state, windows(20), np.zeros((2, 8), np.int64))
    segment = train_step.segment(parts.step)
    assert_lowered(lower(segment, *arguments), segment, *arguments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_evaluation_lowers_for_every_platform(dtype):
    parts = assemble.make(small.config(model__dtype=dtype), FACTS)
    params = jax.eval_shape(parts.init, 0).params
    for function, *more in (
        (parts.score,),
        (parts.represent,),
        (parts.draw, jax.eval_shape(lambda: jax.random.key(0))),
    ):
        arguments = (params, windows(8), *more)
        assert_lowered(lower(function, *arguments), function, *arguments)


@pytest.mark.slow
def test_training_from_the_lowered_program_gives_the_same_numbers():
    parts = assemble.make(small.config(), FACTS)
    state, data = parts.init(0), windows(20)
    order = np.arange(16).reshape(2, 8)
    segment = train_step.segment(parts.step)
    found = lower(segment, state, data, order).call(state, data, order)
    wanted = jax.tree_util.tree_leaves_with_path(jax.jit(segment)(state, data, order))
    assert len(jax.tree.leaves(found)) == len(wanted) > 100
    for one, (path, other) in zip(jax.tree.leaves(found), wanted, strict=True):
        # No score depends on the keys' biases: their gradients are rounding errors,
        # which Adam scales to steps.
        if "['key']['bias']" not in (name := jax.tree_util.keystr(path)):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_a_platform_does_not_have_is_found():
    # Only CPUs and GPUs have eigenvalues of general matrices.
    with pytest.raises(NotImplementedError):
        lower(lambda x: jax.lax.linalg.eig(x)[0], jnp.eye(2))
