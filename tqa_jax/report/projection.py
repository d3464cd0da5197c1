"""Map of the clips of a run: what the network makes of them, in two dimensions.

The one thing to know: PCA is always drawn, t-SNE beside it where scikit-learn is
installed and the clips are few; a remark says which.
"""

import numpy as np

from tqa_jax.report import charts, record
from tqa_jax.report.panels import Figure

_MOST_FOR_TSNE = 500  # Clips; its time grows with their number squared.
_MOST_SOURCES = 12  # With a colour of their own.


def draw(run: record.Record) -> tuple[list[Figure], str]:
    """Maps of what the network makes of each clip, and a remark on what is shown.

    Two maps a projection: coloured by score, and by source.
    """
    found = run.representation
    if found is None or run.predictions is None or not len(run.predictions.clips):
        return [], ""
    known = np.isfinite(found.features).all(axis=1)
    features = found.features[known]
    if len(features) < 3:
        return [], ""
    keys = list(zip(found.splits[known], found.clips[known], strict=True))
    rows = {
        key: row
        for row, key in enumerate(
            zip(run.predictions.splits, run.predictions.clips, strict=True)
        )
    }
    order = np.array([rows.get(key, -1) for key in keys])
    names = [task.name for task in run.tasks]
    k = names.index("overall") if "overall" in names else 0
    scores = np.where(order >= 0, run.predictions.scores[order, k], np.nan)
    sources = np.where(order >= 0, run.predictions.sources[order], "")
    centred = features - features.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    places = (left * sizes)[:, :2]
    if places.shape[1] < 2 or not sizes[0] > 0:
        return [], "All clips are the same to the network: there is nothing to map."
    shares = np.square(sizes[:2] / sizes[0]) / np.square(sizes / sizes[0]).sum()
    maps = [
        (
            "PCA",
            places,
            [f"component {i + 1}, {100 * s:.0f} %" for i, s in enumerate(shares)],
        )
    ]
    tsne, remark = _tsne(centred / sizes[0], float(sizes[1]))
    if tsne is not None:
        maps.append(("t-SNE", tsne, ["", ""]))
    colours = (_by_score(scores, names[k]), _by_source(sources))
    figures = []
    for name, xy, labels in maps:
        for what, groups in zip((names[k], "source"), colours, strict=True):
            chart = charts.Chart(
                f"{name} of {len(xy)} clips, coloured by {what}",
                *(charts.span(column) for column in xy.T),
                x_label=labels[0],
                y_label=labels[1],
                height=280,
            )
            for kind, _, chosen in groups:
                chart.dots(*xy[chosen].T, kind)
            key = [(f"dots {kind}", text) for kind, text, _ in groups]
            figures.append(Figure(f"{name}, by {what}", chart.svg(), key))
    return figures, remark


def _by_score(scores: np.ndarray, name: str) -> list[tuple[str, str, np.ndarray]]:
    edges = np.unique(
        np.nanquantile(scores, np.linspace(0, 1, charts.STEPS + 1))
        if np.isfinite(scores).any()
        else []
    )
    groups = [("rest", f"no {name} score", ~np.isfinite(scores))]
    if len(edges) == 1:
        groups.append(("q0", f"{edges[0]:.2f}", scores == edges[0]))
    for step, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        last = step == len(edges) - 2
        chosen = (scores >= low) & ((scores <= high) if last else (scores < high))
        groups.append((f"q{step}", f"{low:.2f} to {high:.2f}", chosen))
    return [group for group in groups if group[2].any()]


def _by_source(sources: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    names, counts = np.unique(sources.astype(str), return_counts=True)
    largest = names[np.argsort(-counts, kind="stable")]
    shown = sorted(largest[:_MOST_SOURCES])
    groups = [("rest", f"{len(names) - len(shown)} others", ~np.isin(sources, shown))]
    groups += [
        (f"s{i % 6}" + " ring" * (i >= 6), name, sources == name)
        for i, name in enumerate(shown)
    ]
    return [group for group in groups if group[2].any()]


def _tsne(features: np.ndarray, second: float) -> tuple[np.ndarray | None, str]:
    if len(features) > _MOST_FOR_TSNE or len(features) < 10 or not second > 0:
        return None, (
            f"t-SNE is left out: it is drawn for 10 to {_MOST_FOR_TSNE} clips that "
            "differ in more than one direction."
        )
    try:
        from sklearn import manifold
    except ImportError:
        return None, "t-SNE is left out: scikit-learn is not installed."
    model = manifold.TSNE(
        perplexity=min(30.0, (len(features) - 1) / 3),
        init="pca",
        method="exact",
        random_state=0,
    )
    return model.fit_transform(features).astype(float), (
        "Distances between far groups mean nothing in t-SNE."
    )
