"""How well scores of a model agree with raters, on clips and on pairs of clips.

The one thing to know: raters and clips are both samples, so resamples draw both, each
with replacement; an interval over clips alone would take mean opinions for exact.
Several models are compared on the same resamples.
"""

import csv
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from experiments.subjective import opinions
from experiments.subjective import ratings as ratings_lib
from tqa_jax import metrics, schema, statistics

METRICS = (
    "plcc",
    "srcc",
    "rmse",
    "pairs",
    "pairs_half",
    "different",
    "better",
)
"""Pearson's and Spearman's correlation and error against mean opinions; share of
preferences that the scores' order predicts, without ties and with ties as half right;
areas under the curve for telling different clips from similar ones, and the better of
two different ones from the worse (Krasula et al. 2016)."""

_LEVEL = 0.05  # two clips are different below it (t-test over raters of both)
_LEAST_CLIPS = 5


def read_scores(
    path: str | pathlib.Path, clips: Sequence[str], tasks: Sequence[str]
) -> dict[str, Float[np.ndarray, " C"]]:
    """Reads a model's scores.

    Args:
        path: a CSV with `clip` and `<task>` or `<task>_score`, as `tqa_jax.score` or an
            evaluation writes it.
        clips: of the ratings. A clip is found by its path or, when that is unique in
            both lists, by its file name with or without the ending.
        tasks: of the ratings.

    Returns:
        By task that both have, the score of each clip; NaN where there is none.

    Raises:
        schema.InputError: it cannot be read, or no task or clip is in both.
    """
    path = pathlib.Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows, header = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise schema.InputError(f"{path} cannot be read: {error}") from error
    columns = {
        task: name
        for task in tasks
        for name in (f"{task}_score", task)
        if name in header
    }
    if "clip" not in header or not columns:
        raise schema.InputError(
            f"{path} must have the columns clip and one of {', '.join(tasks)}; it has "
            f"{', '.join(header)[:200]}"
        )
    names = [row["clip"] or "" for row in rows]
    if len(set(names)) < len(names):
        raise schema.InputError(f"{path} has a clip twice")
    found = {clip: names.index(clip) for clip in clips if clip in names}
    for short in (_file, _stem):
        mine, theirs = [short(clip) for clip in clips], [short(name) for name in names]
        for clip, key in zip(clips, mine, strict=True):
            if mine.count(key) == theirs.count(key) == 1:
                found.setdefault(clip, theirs.index(key))
    if not found:
        raise schema.InputError(
            f"{path} has none of the rated clips, such as {clips[0]!r}; its first is "
            f"{(names or ['none'])[0]!r}"
        )
    return {
        task: np.array(
            [
                _number(rows[found[clip]][name], path, clip) if clip in found
                else math.nan
                for clip in clips
            ]
        )
        for task, name in columns.items()
    }  # fmt: skip


def compare(
    trials: ratings_lib.Ratings,
    models: Mapping[str, Mapping[str, Float[np.ndarray, " C"]]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measures each model's agreement, and differences to the first.

    Args:
        trials: answers.
        models: by name and task, the score of each clip.
        resamples: of raters and clips.
        seed: of the resamples.

    Returns:
        A row a model, task and metric: `value`, `low`, `high`, or a `reason`; `clips`;
        and, but for the first model, `difference`, its interval `difference_low`,
        `difference_high`, and `p` with `p_holm` over all rows of one metric. A clip
        counts when every model that has the task has a score for it.
    """
    rows: list[dict[str, Any]] = []
    for task in trials.tasks:
        these = {name: one[task] for name, one in models.items() if task in one}
        if these:
            rows += _task(trials, task, these, resamples=resamples, seed=seed)
    for metric in METRICS:
        tested = [row for row in rows if row["metric"] == metric and "p" in row]
        statistics.correct(tested, ("p",), "_holm")
    return rows


def _task(
    trials: ratings_lib.Ratings,
    task: str,
    models: Mapping[str, np.ndarray],
    *,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    table = opinions.votes(trials, trials.tasks.index(task)).table(
        len(trials.raters), len(trials.clips)
    )
    scored = np.all([np.isfinite(one) for one in models.values()], axis=0)
    clips = np.flatnonzero(scored)
    rng = np.random.default_rng(seed)
    raters = np.flatnonzero(np.bincount(trials.rater, minlength=len(trials.raters)))
    number = resamples if len(clips) >= _LEAST_CLIPS else 0
    rater_counts = np.zeros((1 + number, len(table)))
    clip_counts = np.zeros((1 + number, len(scored)))
    for counts, places in ((rater_counts, raters), (clip_counts, clips)):
        counts[:, places] = statistics.resample_sources(places, number, rng, least=1)
    plain, *drawn = (
        _measure(trials, table, models, *counts)
        for counts in zip(rater_counts, clip_counts, strict=True)
    )
    draws = np.array(drawn)  # (R, models, metrics)
    rows = []
    for m, name in enumerate(models):
        for k, metric in enumerate(METRICS):
            row: dict[str, Any] = {"model": name, "task": task, "metric": metric}
            row |= {"clips": len(clips)} | _summary(plain[m, k], draws, (m, k))
            if m:
                row |= _difference(plain[m, k] - plain[0, k], draws, m, k)
            rows.append(row)
    return rows


def _summary(value: float, draws: np.ndarray, at: tuple[int, int]) -> dict[str, Any]:
    empty = {"value": None, "low": None, "high": None, "reason": ""}
    if not math.isfinite(value):
        return empty | {"reason": "undefined: too few clips or pairs, or no spread"}
    found = empty | {"value": float(value)}
    if not len(draws):
        return found | {"reason": f"no interval: fewer than {_LEAST_CLIPS} clips"}
    low, high = statistics.interval(draws[(slice(None), *at)])
    if low is None:
        return found | {"reason": "no interval: undefined on many resamples"}
    return found | {"low": low, "high": high}


def _difference(value: float, draws: np.ndarray, m: int, k: int) -> dict[str, Any]:
    found = dict.fromkeys(("difference", "difference_low", "difference_high", "p"))
    if not math.isfinite(value):
        return found
    found["difference"] = float(value)
    if len(draws):
        low, high, p = statistics.paired(draws[:, m, k] - draws[:, 0, k])
        found |= {"difference_low": low, "difference_high": high, "p": p}
    return found


def _measure(
    trials: ratings_lib.Ratings,
    table: np.ndarray,
    models: Mapping[str, np.ndarray],
    rater_counts: np.ndarray,
    clip_counts: np.ndarray,
) -> np.ndarray:
    """Every metric of every model on one resample (models, metrics)."""
    known = ~np.isnan(table)
    values = np.where(known, table, 0)
    weights = rater_counts @ known  # ratings of each clip
    used = (clip_counts > 0) & (weights > 0)
    labels = (rater_counts @ values)[used] / weights[used]
    squares = (rater_counts @ values**2)[used] / weights[used] - labels**2
    with np.errstate(divide="ignore", invalid="ignore"):
        # Squared standard error; undefined with one rating.
        error = np.maximum(squares, 0) / (weights[used] - 1)
    counts = clip_counts[used]
    votes = rater_counts[trials.rater]
    votes = votes * clip_counts[trials.left] * clip_counts[trials.right]
    votes = votes * (~np.isnan(trials.preference) & (trials.left != trials.right))
    result = np.full((len(models), len(METRICS)), np.nan)
    for m, scores in enumerate(models.values()):
        mine = scores[used]
        for k, metric in enumerate(METRICS[:3]):
            ready = metrics.prepare(metric, mine, labels, low=0.0, high=1.0)
            if not ready.reason:
                result[m, k] = metrics.resampled(metric, mine, labels, counts[None])[0]
        result[m, 3:5] = _pairwise(trials, scores, votes)
        result[m, 5:7] = _krasula(mine, labels, error, weights[used], counts)
    return result


def _pairwise(
    trials: ratings_lib.Ratings, scores: np.ndarray, votes: np.ndarray
) -> tuple[float, float]:
    """Share of preferences that scores predict: without ties, and with ties as half."""
    order = np.sign(scores[trials.left] - scores[trials.right])
    counted = np.where(votes > 0, votes, 0)
    said = np.where(votes > 0, np.nan_to_num(trials.preference), 0)
    order = np.where(votes > 0, np.nan_to_num(order), 0)
    decided = counted * (said != 0)
    right = (decided * (said * order > 0)).sum()
    half = (decided * (order == 0)).sum() / 2
    ties = (counted * (said == 0)).sum()
    nan = float("nan")
    without = (right + half) / decided.sum() if decided.sum() else nan
    total = decided.sum() + ties
    return without, (right + half + ties / 2) / total if total else nan


def _krasula(
    scores: np.ndarray,
    labels: np.ndarray,
    error: np.ndarray,
    raters: np.ndarray,
    counts: np.ndarray,
) -> tuple[float, float]:
    """Areas under the curve: different from similar pairs, and better from worse."""
    one, other = np.triu_indices(len(scores), 1)
    enough = np.isfinite(error[one] + error[other])
    one, other = one[enough], other[enough]
    gap, spread = labels[one] - labels[other], np.sqrt(error[one] + error[other])
    freedom = np.maximum(np.minimum(raters[one], raters[other]) - 1, 1)
    limit = stats.t.ppf(1 - _LEVEL / 2, freedom)
    different = np.abs(gap) > limit * spread
    predicted = scores[one] - scores[other]
    weight = counts[one] * counts[other]
    telling = _auc(np.abs(predicted), different, weight)
    signed = np.where(gap > 0, predicted, -predicted)[different]
    # Every different pair is there in both orders: one better, one worse.
    mirrored = np.concatenate([signed, -signed])
    better = np.arange(len(mirrored)) < len(signed)
    return telling, _auc(mirrored, better, np.tile(weight[different], 2))


def _auc(values: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> float:
    """Weighted share of positive-negative pairs in the right order, ties as half."""
    if not positive.any() or positive.all():
        return float("nan")
    _, place = np.unique(values, return_inverse=True)
    yes = np.bincount(place, weight * positive)
    no = np.bincount(place, weight * ~positive, len(yes))
    yes = np.append(yes, np.zeros(len(no) - len(yes)))
    below = np.cumsum(no) - no
    return float((yes * (below + no / 2)).sum() / (yes.sum() * no.sum()))


def _file(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def _stem(path: str) -> str:
    return _file(path).rsplit(".", 1)[0]


def _number(text: str | None, path: pathlib.Path, clip: str) -> float:
    if not text:
        return math.nan
    try:
        return float(text)
    except ValueError as error:
        raise schema.InputError(f"{path}: {text!r} of {clip!r} is no number") from error
