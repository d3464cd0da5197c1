"""Predictions of every clip by every method, each with settings chosen on inner folds.

The one thing to know: a setting is chosen by the predictions that the inner folds of an
outer fold's training part make of it: the mean of PLCC, SRCC and SRCC within a
generator. Test clips are predicted once, with that setting. What is done is a file, and
is not done again.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.talking_heads import agreement, classic, network, protocols
from experiments.talking_heads import clips as clips_lib
from tqa_jax import logistic, run_folder

NETWORK, COMBINATION = "network", "combination"
COMBINED = ("gated ridge", NETWORK)
"""What the combination is the mean of."""

_INNER_SEEDS = 2


class Outcome(NamedTuple):
    """What a method says in one outer fold.

    Attributes:
        test: scores of the test clips.
        inner: scores of the training clips, each by models that did not see it.
        chosen: the setting.
        members: scores of the test clips by each network of an ensemble, or empty.
    """

    test: np.ndarray
    inner: np.ndarray
    chosen: Mapping[str, Any]
    members: np.ndarray


def value(scores: np.ndarray, clips: clips_lib.Clips, rows: np.ndarray) -> float:
    """What a setting is chosen by; a figure that is undefined counts as 0."""
    found = [agreement.plain(n, scores, clips, rows) for n in agreement.COMPARED]
    return float(np.mean([0.0 if one is None else one for one in found]))


def tune(
    method: classic.Method,
    clips: clips_lib.Clips,
    fold: protocols.Fold,
    inner: Sequence[protocols.Fold],
) -> Outcome:
    """Chooses a setting on inner folds and predicts the test clips with it.

    Args:
        method: what to tune.
        clips: all clips.
        fold: the outer fold.
        inner: folds of its training part.
    """
    tried = []
    for setting in method.settings:
        parts = [method.fit(clips, *one, **setting) for one in inner]
        tried.append(_together(inner, parts, fold.train))
    best = int(np.argmax([value(one, clips, fold.train) for one in tried]))
    setting = method.settings[best]
    test = method.fit(clips, fold.train, fold.test, **setting)
    return Outcome(test, tried[best], setting, np.empty((0, len(fold.test))))


def networks(
    clips: clips_lib.Clips,
    folds: Sequence[protocols.Fold],
    inner: Sequence[Sequence[protocols.Fold]],
    *,
    plan: network.Plan,
    settings: Sequence[network.Setting],
    seeds: int,
    kept: network.Kept,
) -> list[Outcome]:
    """Chooses a setting and an epoch in each outer fold, and trains with them.

    Args:
        clips: all clips.
        folds: outer folds.
        inner: inner folds of each.
        plan: size of the training.
        settings: to choose from.
        seeds: networks of an ensemble that predicts test clips.
        kept: `(name, make) -> value`, kept in a file of that name.
    """

    def part(whole: str) -> network.Kept:
        return lambda name, make: kept(f"{whole} {name}", make)

    flat = [one for some in inner for one in some]
    starts = np.cumsum([0, *map(len, inner)])
    tried = []  # by setting, stop and outer fold
    for number, setting in enumerate(settings):
        name = f"network-inner-{number}"
        runs = [
            network.Run(place, seed, setting)
            for place in range(len(flat))
            for seed in range(_INNER_SEEDS)
        ]

        def train(runs=runs, name=name) -> list[Any]:
            found = network.train(clips, flat, runs, plan, part(name))
            pairs = [
                np.mean(found[i : i + _INNER_SEEDS], axis=0)
                for i in range(0, len(found), _INNER_SEEDS)
            ]
            return [one.tolist() for one in pairs]

        scores = [np.array(one) for one in kept(name, train)]
        for at, stop in enumerate(plan.stops):
            by_fold = [
                _together(
                    some,
                    [one[at] for one in scores[start : start + len(some)]],
                    f.train,
                )
                for some, start, f in zip(inner, starts[:-1], folds, strict=True)
            ]
            tried.append(({**setting, "epochs": stop}, at, setting, by_fold))
    best = [
        max(tried, key=lambda one: value(one[3][place], clips, fold.train))
        for place, fold in enumerate(folds)
    ]

    def final() -> list[Any]:
        runs = [
            network.Run(place, seed, best[place][2])
            for place in range(len(folds))
            for seed in range(seeds)
        ]
        found = network.train(clips, folds, runs, plan, part("network-test"))
        return [
            [
                found[place * seeds + seed][best[place][1]].tolist()
                for seed in range(seeds)
            ]
            for place in range(len(folds))
        ]

    members = [np.array(one) for one in kept("network-test", final)]
    return [
        Outcome(one.mean(axis=0), chosen[3][place], chosen[0], one)
        for place, (one, chosen) in enumerate(zip(members, best, strict=True))
    ]


def combine(outcomes: Mapping[str, Outcome]) -> Outcome:
    """Averages methods: weights fitted on inner folds do not carry over to generators.

    Args:
        outcomes: of the methods in one outer fold, those of `COMBINED` among them.
    """
    some = [outcomes[name] for name in COMBINED]
    test, inner = (
        np.mean([getattr(one, part) for one in some], axis=0)
        for part in ("test", "inner")
    )
    return Outcome(test, inner, {}, np.empty((0, len(test))))


def run(
    clips: clips_lib.Clips,
    protocol: str,
    folder: pathlib.Path,
    *,
    seeds: int,
    quick: bool,
    said: Callable[[str], None],
) -> dict[str, list[Outcome]]:
    """Predicts all clips by all methods in one protocol.

    Args:
        clips: all clips.
        protocol: of `protocols.PROTOCOLS`.
        folder: of what is done.
        seeds: see `networks`.
        quick: few settings and a short training.
        said: told what comes next.

    Returns:
        By method, what it says in each outer fold.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def kept(name: str, make: Callable[[], Any]) -> Any:
        file = folder / f"{name}.json"
        with contextlib.suppress(OSError, ValueError):  # Not there, or damaged.
            return json.loads(file.read_bytes())
        said(f"{protocols.PROTOCOLS[protocol]}: {name}")
        run_folder.write_json(file, make())
        return json.loads(file.read_bytes())

    folds = protocols.outer(protocol, clips)
    inner = [protocols.inner(protocol, clips, fold.train) for fold in folds]
    found: dict[str, list[Outcome]] = {}
    for name, method in classic.methods(quick=quick).items():
        found[name] = [
            _read(
                kept(
                    f"{name}-{n}",
                    lambda f=f, i=i, m=method: _plain(tune(m, clips, f, i)),
                )
            )
            for n, (f, i) in enumerate(zip(folds, inner, strict=True))
        ]
    found[NETWORK] = networks(
        clips,
        folds,
        inner,
        plan=network.Plan((1, 2)) if quick else network.Plan(),
        settings=network.settings(quick=quick),
        seeds=seeds,
        kept=kept,
    )
    found[COMBINATION] = [
        combine({name: some[n] for name, some in found.items()})
        for n in range(len(folds))
    ]
    return found


def pooled(
    outcomes: Sequence[Outcome],
    clips: clips_lib.Clips,
    folds: Sequence[protocols.Fold],
) -> tuple[np.ndarray, np.ndarray | None]:
    """Puts the test scores of all folds together.

    Returns:
        Scores of all clips; and the same after the logistic mapping of each fold,
        fitted on its inner predictions, or None if one of the fits failed.
    """
    scores, mapped = np.full((2, len(clips)), np.nan)
    for outcome, fold in zip(outcomes, folds, strict=True):
        scores[fold.test] = outcome.test
        found = logistic.fit(
            outcome.inner,
            clips.labels[fold.train],
            low=clips_lib.LOW,
            high=clips_lib.HIGH,
        )
        if found.params is not None:
            mapped[fold.test] = logistic.apply(outcome.test, found.params)
    return scores, mapped if np.isfinite(mapped).all() else None


def _together(
    inner: Sequence[protocols.Fold], parts: Sequence[np.ndarray], train: np.ndarray
) -> np.ndarray:
    """Scores of inner test clips, in the order of the training clips."""
    found = np.full(1 + train.max(), np.nan)
    for fold, scores in zip(inner, parts, strict=True):
        found[fold.test] = scores
    return found[train]


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {
        "test": outcome.test.tolist(),
        "inner": outcome.inner.tolist(),
        "chosen": dict(outcome.chosen),
        "members": outcome.members.tolist(),
    }


def _read(kept: Mapping[str, Any]) -> Outcome:
    test, inner = np.array(kept["test"]), np.array(kept["inner"])
    members = np.array(kept["members"]).reshape(-1, len(test))
    return Outcome(test, inner, kept["chosen"], members)
