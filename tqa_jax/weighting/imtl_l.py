"""IMTL-L, loss balance of impartial multi-task learning (Liu et al., ICLR 2021).

    minimise sum_i e^(s_i) L_i - s_i,   w_i = e^(s_i)

so that at the optimum, s_i = -log L_i, every scaled loss is 1. With the sign of s
turned it is the objective e^-s L + s of `uncertainty`, which has the code: the two
papers derive one method, and their weights agree step by step. Use either when task
losses differ in scale; see there for what to expect.
"""

from collections.abc import Sequence

from tqa_jax import weighting
from tqa_jax.weighting import uncertainty


def make(
    *, tasks: Sequence[str], learning_rate: float = 1e-3, limit: float = 5.0
) -> weighting.Weighting:
    """Makes loss-balancing weights.

    Args:
        tasks: names of the tasks.
        learning_rate: of Adam on s, at the network's peak learning rate.
        limit: bound on |s|; weights stay within e^-limit .. e^limit.
    """
    return uncertainty.make(tasks=tasks, learning_rate=learning_rate, limit=limit)
