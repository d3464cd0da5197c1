"""Losses against loops; what a missing label must never do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tqa_jax import losses

B, K = 7, 3


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(1, 5, (B, K)).astype(np.float32)
    labels = rng.uniform(1, 5, (B, K)).astype(np.float32)
    present = rng.uniform(size=(B, K)) < 0.6
    present[:, 2] = False
    return scores, labels, present


def mean_loss(scores, labels, present):
    return losses.mean(*losses.task_loss_sums(scores, labels, present))


gradient = jax.jit(jax.grad(lambda *args: mean_loss(*args).sum()))


@pytest.mark.parametrize("l1_weight", [0.0, 0.1, 2.0])
def test_sums_and_counts_equal_a_loop(l1_weight):
    scores, labels, present = make_batch()
    sums, counts = losses.task_loss_sums(scores, labels, present, l1_weight=l1_weight)
    for k in range(K):
        total, number = 0.0, 0
        for b in range(B):
            if present[b, k]:
                error = float(scores[b, k]) - float(labels[b, k])
                total += error**2 + l1_weight * abs(error)
                number += 1
        np.testing.assert_allclose(sums[k], total, rtol=1e-6)
        assert counts[k] == number
    assert sums[2] == 0 and counts[2] == 0
    assert sums.dtype == counts.dtype == jnp.float32


def test_leading_axes_add_up():
    scores, labels, present = (np.stack([x, x[::-1]]) for x in make_batch())
    sums, counts = losses.task_loss_sums(scores, labels, present)
    one, number = losses.task_loss_sums(*make_batch())
    np.testing.assert_allclose(sums, 2 * one, rtol=1e-6)
    np.testing.assert_array_equal(counts, 2 * number)


def test_micro_batches_add_up_to_the_batch():
    batch = make_batch(1)
    parts = [
        losses.task_loss_sums(*(x[s] for x in batch))
        for s in np.split(range(7), [2, 3])
    ]
    sums, counts = (sum(part[i] for part in parts) for i in range(2))
    whole = losses.task_loss_sums(*batch)
    np.testing.assert_allclose(
        losses.mean(sums, counts), losses.mean(*whole), rtol=1e-6
    )
    np.testing.assert_array_equal(counts, whole[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 1e30])
def test_what_stands_under_the_mask_changes_no_bit(bad):
    scores, labels, present = make_batch()
    clean = losses.task_loss_sums(scores, np.where(present, labels, 0), present)
    dirty = losses.task_loss_sums(scores, np.where(present, labels, bad), present)
    np.testing.assert_array_equal(clean, dirty)
    dirty = losses.task_loss_sums(np.where(present, scores, bad), labels, present)
    np.testing.assert_array_equal(clean, dirty)
    found = gradient(scores, np.where(present, labels, bad), present)
    np.testing.assert_array_equal(found[~present], 0)
    assert np.isfinite(found).all()


def test_gradient_equals_the_formula():
    scores, labels, present = make_batch()
    error = scores - labels
    wanted = np.where(present, 2 * error + 0.1 * np.sign(error), 0)
    wanted = wanted / np.maximum(present.sum(axis=0), 1)
    np.testing.assert_allclose(gradient(scores, labels, present), wanted, rtol=1e-5)


def test_masked_samples_appended_change_no_bit():
    scores, labels, present = make_batch()
    longer = (
        np.concatenate([scores, scores]),
        np.concatenate([labels, labels]),
        np.concatenate([present, np.zeros_like(present)]),
    )
    np.testing.assert_array_equal(
        mean_loss(*longer), mean_loss(scores, labels, present)
    )


def test_perfect_predictions_have_no_loss_and_a_bounded_gradient():
    _, labels, present = make_batch()
    assert not np.any(mean_loss(labels, labels, present))
    # At 0 any slope of |error| within +-1 is a subgradient; JAX takes 1.
    share = present / np.maximum(present.sum(axis=0), 1)
    assert (np.abs(gradient(labels, labels, present)) <= 0.1 * share + 1e-7).all()


def test_bfloat16_scores_have_a_float32_loss():
    scores, labels, present = make_batch()
    half = jnp.asarray(scores, jnp.bfloat16)
    sums, _ = losses.task_loss_sums(half, labels, present)
    assert sums.dtype == jnp.float32
    exact, _ = losses.task_loss_sums(half.astype(jnp.float32), labels, present)
    np.testing.assert_array_equal(sums, exact)


def test_labels_of_another_shape_are_refused():
    # (B, 1) against (B,) would broadcast to B x B errors.
    scores, labels, present = make_batch()
    with pytest.raises((TypeError, ValueError)):
        losses.task_loss_sums(scores[:, :1], labels[:, 0], present[:, 0])


def test_mean_divides_and_gives_no_label_zero():
    found = losses.mean(jnp.array([6.0, 0.0, 0.5]), jnp.array([3.0, 0.0, 1.0]))
    np.testing.assert_array_equal(found, [2.0, 0.0, 0.5])


def test_smoothing_shrinks_toward_the_mean():
    _, labels, _ = make_batch()
    means = np.array([2.0, 3.0, 4.0], np.float32)
    np.testing.assert_allclose(
        losses.smooth(labels, means, 0.1), 0.9 * labels + 0.1 * means, rtol=1e-6
    )
    np.testing.assert_array_equal(losses.smooth(labels, means, 0.0), labels)
    np.testing.assert_array_equal(
        losses.smooth(labels, means, 1.0), np.broadcast_to(means, labels.shape)
    )
