"""What the network is compared with: regressions on the features of a clip.

The one thing to know: `fit` looks at labels of the training clips only, and at features
of the others only to predict them, one clip at a time.

`gated ridge` is no baseline from the literature. It names the generator of a clip by a
linear discriminant analysis and lets each generator have its own level and slopes, all
shrunk towards common ones: what a linear model can do that recognises the generator.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn import (
    discriminant_analysis,
    ensemble,
    linear_model,
    pipeline,
    preprocessing,
    svm,
)

from experiments.talking_heads import clips as clips_lib

Setting = Mapping[str, Any]
_FEATURES = ("means", "means and spreads")
_REACH = 3.0  # standard deviations beyond which the gated ridge clips a feature
_TREES = 100


class Method(NamedTuple):
    """A way to predict ratings.

    Attributes:
        fit: `(clips, train, test, **setting) -> scores of the test clips`.
        settings: to choose from by inner folds.
    """

    fit: Callable[..., Float[np.ndarray, " m"]]
    settings: Sequence[Setting]


def generator_name(
    clips: clips_lib.Clips, train: Int[np.ndarray, " n"], test: Int[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """Predicts the training mean of the clip's generator; of all if it is new."""
    labels, names = clips.labels[train], clips.generators[train]
    means = {name: labels[names == name].mean() for name in set(names.tolist())}
    return np.array(
        [means.get(name, labels.mean()) for name in clips.generators[test].tolist()]
    )


def _regression(make: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Makes a method of a scikit-learn regressor."""

    def fit(clips, train, test, *, features: str, **setting: Any) -> np.ndarray:
        x = clips.features(features)
        model = pipeline.make_pipeline(preprocessing.StandardScaler(), make(**setting))
        return model.fit(x[train], clips.labels[train]).predict(x[test])

    return fit


def _trees(kind: type) -> Callable[..., Any]:
    def make(*, leaf: int, share: float, trees: int = _TREES) -> Any:
        return kind(
            trees,
            min_samples_leaf=leaf,
            max_features=share,
            random_state=0,
        )

    return make


def gated_ridge(
    clips: clips_lib.Clips,
    train: Int[np.ndarray, " n"],
    test: Int[np.ndarray, " m"],
    *,
    level: float,
    common: float,
    own: float,
    noise: float,
) -> Float[np.ndarray, " m"]:
    """Predicts with a common slope and each recognised generator's level and slopes.

    A Gaussian process with the kernel `level p.p' + common z.z'/D + own p.p' w.w'/D`,
    where p are the probabilities of the generators, z the standardised features and w
    those less their expectation given p.

    Args:
        clips: all clips.
        train: whose labels are used.
        test: whose labels are predicted.
        level: prior variance of a generator's level.
        common: of the common slopes.
        own: of a generator's own slopes.
        noise: variance of the labels about the prediction.
    """
    x, names = clips.means, clips.generators[train]
    scaler = preprocessing.StandardScaler().fit(x[train])
    ours, theirs = (
        np.clip(scaler.transform(x[rows]), -_REACH, _REACH) for rows in (train, test)
    )
    recognise = discriminant_analysis.LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage="auto"
    ).fit(ours, names)
    expected = np.array(
        [ours[names == name].mean(axis=0) for name in recognise.classes_]
    )
    p, q = recognise.predict_proba(ours), recognise.predict_proba(theirs)
    within = ours - p @ expected
    spread = np.maximum(within.std(axis=0), 1e-9)
    within, other = within / spread, (theirs - q @ expected) / spread
    width = x.shape[-1]

    def kernel(z, w, p):
        alike = p @ p_train.T
        return (
            level * alike
            + common * (z @ ours.T) / width
            + own * alike * (w @ within.T) / width
        )

    p_train = p
    mean = clips.labels[train].mean()
    weights = np.linalg.solve(
        kernel(ours, within, p) + noise * np.eye(len(train)),
        clips.labels[train] - mean,
    )
    return mean + kernel(theirs, other, q) @ weights


def methods(*, quick: bool = False) -> dict[str, Method]:
    """Returns the methods by name, with few settings if it is to be quick."""
    trees = {"trees": [20] if quick else [_TREES]}
    found = {
        "generator name": Method(generator_name, [{}]),
        "ridge": Method(
            _regression(linear_model.Ridge),
            _grid(alpha=[1.0, 10.0, 30.0, 100.0, 300.0, 1000.0], features=_FEATURES),
        ),
        "SVR": Method(
            _regression(svm.SVR),
            _grid(
                C=[0.3, 1.0, 3.0],
                gamma=[0.003, 0.01],
                epsilon=[0.2],
                features=_FEATURES,
            ),
        ),
        "random forest": Method(
            _regression(_trees(ensemble.RandomForestRegressor)),
            _grid(leaf=[2, 5], share=[0.33], **trees, features=_FEATURES),
        ),
        "extra trees": Method(
            _regression(_trees(ensemble.ExtraTreesRegressor)),
            _grid(leaf=[2, 5], share=[0.5], **trees, features=_FEATURES),
        ),
        "gated ridge": Method(
            gated_ridge,
            _grid(
                level=[0.02, 0.1], common=[0.3, 1.0], own=[0.0, 0.05, 0.1], noise=[0.3]
            ),
        ),
    }
    if quick:
        return {
            name: one._replace(settings=one.settings[:1]) for name, one in found.items()
        }
    return found


def _grid(**values: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        dict(zip(values, some, strict=True))
        for some in itertools.product(*values.values())
    ]
