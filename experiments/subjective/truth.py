"""Raters and clips of whom everything is known, and the answers that follow from it.

The one thing to know: preferences follow the model of `bradley_terry` and ratings that
of ITU-T P.910 (Annex E), so this tests the estimators and their intervals, not whether
people are like that. Careless raters follow neither.
"""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Bool, Float

from experiments.subjective import ratings
from tqa_jax import schema

_QUALITY = (2.0, 4.0)  # far enough from the ends of the scale for few ratings to be cut
_SCALE = (1.0, 5.0)
_SECONDS = 25.0  # median time of an answer
_SPREAD = 0.25  # of the logarithms of inconsistencies and times
_EXTRA = 2  # controls and repeats of each rater


@dataclasses.dataclass(frozen=True)
class Settings:
    """A study to simulate."""

    raters: int = 30
    """Raters, careless ones included."""
    clips: int = 20
    """Clips; their qualities are uniform from 2 to 4."""
    trials: int = 20
    """Pairs that a rater compares, drawn from all pairs."""
    careless: int = 3
    """Raters who answer at random."""
    bias: float = 0.3
    """Standard deviation of raters' biases, points."""
    inconsistency: float = 0.6
    """Median standard deviation of a rater's noise, points."""
    side_bias: float = 0.2
    """Bias to the left, log odds."""
    tie: float = -0.5
    """Logarithm of the weight of a tie."""
    slope: float = 1.5
    """Log odds that a point of quality of the last task is worth."""
    tasks: tuple[str, ...] = ("lip_sync", "overall")
    """What is rated."""

    def check(self) -> None:
        """Refuses what cannot be simulated."""
        pairs = self.clips * (self.clips - 1) // 2
        for name, low, high in (
            ("clips", 3, 1000),
            ("raters", 2, 100_000),
            ("trials", 2, pairs),
            ("careless", 0, self.raters - 1),
            ("bias", 0.0, 2.0),
            ("inconsistency", 0.01, 4.0),
            ("side_bias", -10.0, 10.0),
            ("tie", -10.0, 10.0),
            ("slope", 0.0, 20.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise schema.InputError(
                    f"--{name} is {value}; expected {low} to {high}"
                )


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the answers were made from.

    Attributes:
        quality: of each clip and task (C, K).
        bias: of each rater and task (I, K).
        inconsistency: of each rater (I,).
        careless: who answered at random (I,).
        scores: Bradley-Terry scores of the clips, sum 0 (C,).
        side_bias: log odds.
        tie: logarithm of a weight.
    """

    quality: Float[np.ndarray, "C K"]
    bias: Float[np.ndarray, "I K"]
    inconsistency: Float[np.ndarray, " I"]
    careless: Bool[np.ndarray, " I"]
    scores: Float[np.ndarray, " C"]
    side_bias: float
    tie: float


def simulate(
    settings: Settings, rng: np.random.Generator
) -> tuple[Truth, ratings.Ratings]:
    """Draws clips and raters, and has the raters answer.

    Args:
        settings: of the study.
        rng: where the draws come from.
    """
    known = _draw(settings, rng)
    pairs = np.array(list(itertools.combinations(range(settings.clips), 2)))
    repeats = min(_EXTRA, settings.trials)
    answers = []
    for rater in range(settings.raters):
        chosen = pairs[rng.permutation(len(pairs))[: settings.trials]]
        chosen = np.where(rng.random((len(chosen), 1)) < 0.5, chosen, chosen[:, ::-1])
        same = np.repeat(rng.integers(settings.clips, size=(_EXTRA, 1)), 2, axis=1)
        shown = np.concatenate([chosen, chosen[:repeats, ::-1], same])
        answers.append((np.full(len(shown), rater), shown))
    rater = np.concatenate([one for one, _ in answers])
    shown = np.concatenate([one for _, one in answers])
    kinds = ["trial"] * settings.trials + ["repeat"] * repeats + ["control"] * _EXTRA
    width = len(str(max(settings.raters, settings.clips) - 1))
    low, high = shown.min(axis=1), shown.max(axis=1)
    items = [f"{a:0{width}}-{b:0{width}}" for a, b in zip(low, high, strict=True)]
    return known, ratings.Ratings(
        tuple(f"r{n:0{width}}" for n in range(settings.raters)),
        tuple(f"clips/c{n:0{width}}.mp4" for n in range(settings.clips)),
        settings.tasks,
        rater,
        shown[:, 0],
        shown[:, 1],
        shown[:, 0] == low,
        np.array(items),
        np.array(kinds * settings.raters),
        _opinions(known, rater, shown, rng),
        _preferences(known, rater, shown, rng),
        np.round(_SECONDS * np.exp(_SPREAD * rng.normal(size=len(rater))), 1),
        np.ones(len(rater)),
    )


def _draw(settings: Settings, rng: np.random.Generator) -> Truth:
    tasks = len(settings.tasks)
    quality = rng.uniform(*_QUALITY, (settings.clips, tasks))
    scores = settings.slope * (quality[:, -1] - quality[:, -1].mean())
    careless = np.zeros(settings.raters, bool)
    careless[rng.permutation(settings.raters)[: settings.careless]] = True
    return Truth(
        quality,
        settings.bias * rng.normal(size=(settings.raters, tasks)),
        settings.inconsistency * np.exp(_SPREAD * rng.normal(size=settings.raters)),
        careless,
        scores,
        settings.side_bias,
        settings.tie,
    )


def _opinions(
    known: Truth, rater: np.ndarray, shown: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    noise = rng.normal(size=(*shown.shape, known.quality.shape[1]))
    felt = known.quality[shown] + known.bias[rater][:, None]
    felt = felt + known.inconsistency[rater][:, None, None] * noise
    random = rng.uniform(*_SCALE, noise.shape)
    felt = np.where(known.careless[rater][:, None, None], random, felt)
    return np.round(np.clip(felt, *_SCALE), 1)


def _preferences(
    known: Truth, rater: np.ndarray, shown: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    ahead = known.scores[shown[:, 0]] - known.scores[shown[:, 1]] + known.side_bias
    # Of one clip on both sides a careful rater sees that it is one.
    tie = np.where(shown[:, 0] == shown[:, 1], np.inf, known.tie)
    left, right, equal = np.exp(ahead / 2), np.exp(-ahead / 2), np.exp(tie)
    drawn = rng.random(len(rater))
    with np.errstate(invalid="ignore"):
        total = left + right + equal
        decided = np.where(drawn < left / total, 1, -1)
        decided = np.where(drawn >= (left + right) / total, 0, decided)
    decided = np.where(np.isinf(equal), 0, decided)
    random = rng.integers(-1, 2, size=len(rater))
    return np.where(known.careless[rater], random, decided).astype(float)
