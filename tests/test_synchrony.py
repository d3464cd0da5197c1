"""A trained `synced` network hears late audio; `advanced` cannot, trained or not."""

import jax
import numpy as np
import optax

from tqa_jax import batch, losses, models, schema

FRAMES = 24
TASKS = (schema.Task("lip_sync"),)


def make_batch(rng, clips, late):
    """A signal in `visual` and, `late` frames later, in `audio`."""
    signal = rng.normal(size=(clips, FRAMES + 8))
    signal = np.where(signal > 0.5, 1.5, -0.5)
    visual = signal[:, 8:, None]
    rows = np.arange(FRAMES) + 8 - late[:, None]
    audio = np.take_along_axis(signal, rows, axis=1)[..., None]
    mask = np.ones((clips, FRAMES), bool)
    labels = (5 - late[:, None]).astype(np.float32)
    return batch.Batch(
        {"visual": visual.astype(np.float32), "audio": audio.astype(np.float32)},
        {"visual": mask, "audio": mask},
        labels,
        np.ones_like(labels, bool),
    )


def train(preset, steps):
    """Trains on clips with 0 or 4 frames of delay and returns how it scores them."""
    model = models.make(
        widths={"visual": 1, "audio": 1},
        tasks=TASKS,
        max_frames=FRAMES,
        preset=preset,
        width=16,
        depth=1,
        temporal_heads=2,
        fusion_layers=1,
        fusion_heads=2,
        fusion_ffn=16,
        head_hidden=(16,),
    )
    optimizer = optax.adam(3e-3)
    rng = np.random.default_rng(0)

    @jax.jit
    def step(params, state, found):
        def loss(params):
            scores = model.apply(params, found)
            sums, counts = losses.task_loss_sums(scores, found.labels, found.label_mask)
            return losses.mean(sums, counts).sum()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params = model.init(jax.random.key(0))
    state = optimizer.init(params)
    for _ in range(steps):
        late = 4 * rng.integers(0, 2, 64)
        params, state = step(params, state, make_batch(rng, 64, late))
    apply = jax.jit(model.apply)
    return lambda found: np.asarray(apply(params, found))[:, 0]


def test_delay_lowers_lip_sync_of_the_trained_synced_network():
    score = train("synced", steps=150)
    in_sync = score(make_batch(np.random.default_rng(1), 200, np.zeros(200, int)))
    late = score(make_batch(np.random.default_rng(1), 200, np.full(200, 4)))
    # Labels are 5 and 1.
    assert in_sync.mean() - late.mean() > 2
    assert (in_sync > late).mean() > 0.9


def test_delay_changes_nothing_for_the_trained_advanced_network():
    score = train("advanced", steps=20)
    rng = np.random.default_rng(1)
    found = make_batch(rng, 50, np.zeros(50, int))
    moved = np.roll(found.features["audio"], 5, axis=1)
    shifted = found.replace(features={**found.features, "audio": moved})
    np.testing.assert_allclose(score(shifted), score(found), atol=1e-5)
