"""Scores of clips from preferences: Bradley-Terry with ties and a bias to one side.

The one thing to know: of two clips with scores a and b, a on the left, left is chosen
with weight exp(d/2), right with exp(-d/2) and neither with exp(tie), d = a - b + bias.
This is Davidson (1970) with the order effect of Davidson and Beaver (1977). Scores are
log odds, sum to 0 in each group of clips that comparisons connect, and mean nothing
across groups. Answers of one rater are not independent, so intervals are by rater.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, sparse, stats
from scipy.sparse import csgraph

PRIOR_SD = 3.0
"""Standard deviation in log odds of the normal prior that separated data get."""

_OUTCOMES = np.array([-1, 0, 1])
_STEPS = 50
_CLOSE = 1e-8
_LARGE = 15.0  # log odds beyond which separation is looked for
_LEAST_RATERS = 5


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted model of C clips.

    Attributes:
        scores: NaN for clips that were compared with none (C,).
        groups: of clips that comparisons connect, numbered from 0; -1 for none (C,).
        bias: log odds that a clip gains on the left; NaN when it cannot be told from
            the scores, since clips were always on the same side.
        tie: logarithm of the weight of a tie; -inf when nobody chose it.
        separated: whether the likelihood has no maximum, as when a clip wins always.
            A normal prior (`PRIOR_SD`) on all parameters then keeps it finite.
        covariance: of scores, bias and tie, by rater (C+2, C+2).
        information: the same from the observed information, as if all answers were
            independent (C+2, C+2).
        raters: how many the covariance is from.
        log_likelihood: without the prior.
        free: number of free parameters.
    """

    scores: Float[np.ndarray, " C"]
    groups: Int[np.ndarray, " C"]
    bias: float
    tie: float
    separated: bool
    covariance: Float[np.ndarray, "C2 C2"]
    information: Float[np.ndarray, "C2 C2"]
    raters: int
    log_likelihood: float
    free: int

    def half_width(self, *, clustered: bool = True) -> Float[np.ndarray, " C2"]:
        """Half the 95 % interval of scores, bias and tie.

        Args:
            clustered: by rater (Student's t), NaN for fewer than 5 raters, and not
                narrower than the prior leaves it for separated data; else from the
                observed information.
        """
        alone = stats.norm.ppf(0.975) * np.sqrt(np.diag(self.information))
        if not clustered:
            return alone
        if self.raters < _LEAST_RATERS:
            return np.full(len(alone), np.nan)
        wide = stats.t.ppf(0.975, self.raters - 1)
        together = wide * np.sqrt(np.diag(self.covariance))
        return np.maximum(together, alone) if self.separated else together

    def probabilities(
        self, left: Int[np.ndarray, " N"], right: Int[np.ndarray, " N"]
    ) -> Float[np.ndarray, "N 3"]:
        """Returns how likely right, neither and left are preferred."""
        bias = 0.0 if np.isnan(self.bias) else self.bias
        return np.exp(
            _log_shares(self.scores[left] - self.scores[right] + bias, self.tie)
        )


def fit(
    left: Int[np.ndarray, " N"],
    right: Int[np.ndarray, " N"],
    preference: Float[np.ndarray, " N"],
    rater: Int[np.ndarray, " N"],
    *,
    clips: int,
) -> Fit:
    """Fits the model by maximum likelihood.

    Args:
        left: clip on the left of each answer.
        right: clip on the right, another one.
        preference: 1 for left, 0 for equal, -1 for right; none missing.
        rater: who answered.
        clips: how many there are.

    Raises:
        ValueError: without an answer, or for a pair of one clip.
    """
    if not len(left) or (left == right).any():
        raise ValueError("expected answers to pairs of two different clips")
    groups = connected(left, right, clips)
    design = np.zeros((len(left), clips + 1))
    rows = np.arange(len(left))
    design[rows, left], design[rows, right] = 1, -1
    identified = _bias_is_identified(design, clips)
    design[:, clips] = identified
    ties = bool((preference == 0).any())
    within = [(groups == g).astype(float) for g in range(groups.max() + 1)]
    # Directions that the answers say nothing about get a curvature, so that they stay
    # at 0: the mean of a group, clips without a pair, parameters that are left out.
    fixed = np.zeros((clips + 2, clips + 2))
    fixed[:clips, :clips] = sum(np.outer(one, one) for one in within)
    fixed[:clips, :clips] += np.diag((groups < 0).astype(float))
    fixed[clips, clips] = not identified
    fixed[-1, -1] = not ties
    params, converged = _maximise(design, preference, fixed, ties=ties, ridge=0.0)
    separated = False
    if not converged or np.abs(params).max() > _LARGE:
        separated = _separated(design, preference, ties)
    ridge = separated / PRIOR_SD**2
    if separated or not converged:
        params, converged = _maximise(design, preference, fixed, ties=ties, ridge=ridge)
    if not converged:
        raise RuntimeError("the Bradley-Terry model did not converge")
    slopes, information = _derivatives(design, preference, params, ties)
    bread = np.linalg.inv(information + fixed + ridge * np.eye(len(params)))
    centre = np.eye(clips + 2)
    for one in within:
        centre[:clips, :clips] -= np.outer(one, one) / one.sum()
    bread = centre @ bread @ centre
    names, cluster = np.unique(rater, return_inverse=True)
    sums = np.zeros((len(names), clips + 2))
    np.add.at(sums, cluster, slopes)
    meat = sums.T @ sums * (len(names) / max(1, len(names) - 1))
    unknown = np.append(groups < 0, [not identified, not ties])
    covariance = bread @ meat @ bread
    for matrix in (covariance, bread):
        matrix[unknown] = matrix[:, unknown] = np.nan
    return Fit(
        np.where(groups < 0, np.nan, params[:clips]),
        groups,
        float(params[clips]) if identified else float("nan"),
        float(params[-1]) if ties else -np.inf,
        separated,
        covariance,
        bread,
        len(names),
        _log_likelihood(design, preference, params, ties),
        int((groups >= 0).sum() - len(within) + identified + ties),
    )


def connected(
    left: Int[np.ndarray, " N"], right: Int[np.ndarray, " N"], clips: int
) -> Int[np.ndarray, " C"]:
    """Numbers the groups of clips that comparisons connect; -1 for clips in none."""
    graph = sparse.coo_matrix((np.ones(len(left)), (left, right)), (clips, clips))
    _, labels = csgraph.connected_components(graph, directed=False)
    used = np.zeros(clips, bool)
    used[left] = used[right] = True
    result = np.full(clips, -1)
    result[used] = np.unique(labels[used], return_inverse=True)[1]
    return result


def _maximise(
    design: np.ndarray,
    preference: np.ndarray,
    fixed: np.ndarray,
    *,
    ties: bool,
    ridge: float,
) -> tuple[np.ndarray, bool]:
    """Newton's method from 0: parameters, and whether it came to an end."""
    params = np.zeros(len(fixed))
    curvature = fixed + ridge * np.eye(len(fixed))

    def value(at: np.ndarray) -> float:
        return _log_likelihood(design, preference, at, ties) - ridge * at @ at / 2

    best = value(params)
    for _ in range(_STEPS):
        slopes, information = _derivatives(design, preference, params, ties)
        slope = slopes.sum(axis=0) - ridge * params
        try:
            step = np.linalg.solve(information + curvature, slope)
        except np.linalg.LinAlgError:  # so far out that nothing is left to learn
            return params, False
        # The likelihood is concave: halving a step that is too long always ends.
        scale = 1.0
        while value(params + scale * step) < best - 1e-9 and scale > 1e-6:
            scale /= 2
        params = params + scale * step
        best = value(params)
        if np.abs(step).max() < _CLOSE:
            return params, True
    return params, False


def _log_likelihood(
    design: np.ndarray, preference: np.ndarray, params: np.ndarray, ties: bool
) -> float:
    shares = _log_shares(design @ params[:-1], params[-1] if ties else -np.inf)
    return float(shares[np.arange(len(design)), (preference + 1).astype(int)].sum())


def _log_shares(difference: np.ndarray, tie: float) -> np.ndarray:
    """Logarithms of the probabilities of right, neither and left (N, 3)."""
    weights = np.stack(
        [-difference / 2, np.full(len(difference), tie), difference / 2], axis=-1
    )
    top = weights.max(axis=-1, keepdims=True)
    return weights - top - np.log(np.exp(weights - top).sum(axis=-1, keepdims=True))


def _derivatives(
    design: np.ndarray, preference: np.ndarray, params: np.ndarray, ties: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Slope of each answer's log likelihood (N, C+2), and the information matrix."""
    tie = params[-1] if ties else -np.inf
    shares = np.exp(_log_shares(design @ params[:-1], tie))
    mean = shares @ (_OUTCOMES / 2)
    neither = shares[:, 1]
    slopes = np.empty((len(design), len(params)))
    slopes[:, :-1] = (preference / 2 - mean)[:, None] * design
    slopes[:, -1] = (preference == 0) - neither
    information = np.empty((len(params), len(params)))
    spread = (1 - neither) / 4 - mean**2
    information[:-1, :-1] = (design * spread[:, None]).T @ design
    information[-1, :-1] = information[:-1, -1] = -(mean * neither) @ design
    information[-1, -1] = (neither * (1 - neither)).sum()
    return slopes, information


def _bias_is_identified(design: np.ndarray, clips: int) -> bool:
    contrasts = np.unique(design[:, :clips], axis=0)
    both = np.append(contrasts, np.ones((len(contrasts), 1)), axis=1)
    rank = np.linalg.matrix_rank
    return bool(rank(both) > rank(contrasts))


def _separated(design: np.ndarray, preference: np.ndarray, ties: bool) -> bool:
    """Says whether parameters can grow for ever without making any answer less likely.

    A linear programme finds such a direction (Konis 2007): one in which the weight of
    the outcome that was chosen falls behind no other one's.
    """
    known = np.unique(np.append(design, preference[:, None], axis=1), axis=0)
    rows, chosen = known[:, :-1], known[:, -1]
    ahead = []
    for outcome in _OUTCOMES:
        mine = rows[chosen == outcome]
        for other in _OUTCOMES:
            if other == outcome or (not ties and other == 0):
                continue
            gain = np.full((len(mine), 1), float(outcome == 0) - float(other == 0))
            ahead.append(np.append(mine * (outcome - other) / 2, gain, axis=1))
    constraints = np.concatenate(ahead)
    found = optimize.linprog(
        -constraints.sum(axis=0),
        A_ub=-constraints,
        b_ub=np.zeros(len(constraints)),
        bounds=(-1, 1),
        method="highs",
    )
    if found.status != 0:
        raise RuntimeError(f"the check for separation failed: {found.message}")
    return bool(-found.fun > 1e-7)
