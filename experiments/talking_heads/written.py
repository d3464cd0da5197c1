"""What the study writes: `thqa.csv`, `.json`, `.md`, `.png` and `predictions.csv`.

The one thing to know: values are over all clips, each predicted by models that did not
see it; `_folds` columns are means over folds, where a fold has a value.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.studying import figures
from experiments.talking_heads import agreement, nested, protocols
from experiments.talking_heads import clips as clips_lib
from tqa_jax import output

_SHOWN = {"plcc": "PLCC", "srcc": "SRCC", "within": "SRCC within a generator"}
_OURS = (nested.NETWORK, nested.COMBINATION)


def predictions(
    path: pathlib.Path,
    clips: clips_lib.Clips,
    scores: Mapping[str, Mapping[str, np.ndarray]],
    places: Mapping[str, np.ndarray],
) -> None:
    """Writes a row a clip and protocol, with a column a method.

    Args:
        path: of the CSV.
        clips: all clips.
        scores: by protocol and method.
        places: number of the fold that tests each clip, by protocol.
    """
    methods = list(next(iter(scores.values())))
    rows = [
        [
            protocol,
            str(places[protocol][n]),
            name,
            clips.faces[n],
            clips.generators[n],
            str(clips.labels[n]),
            *[str(some[method][n]) for method in methods],
        ]
        for protocol, some in scores.items()
        for n, name in enumerate(clips.names)
    ]
    head = ["protocol", "fold", "clip", "face", "generator", "label", *methods]
    output.write(path, output.table(head, rows))


def table(rows: Sequence[agreement.Row]) -> str:
    """The Markdown table: a row a protocol and method."""
    lines = ["| folds | method | " + " | ".join(_SHOWN.values()) + " | RMSE |"]
    lines.append("|---|---|" + "---|" * (len(_SHOWN) + 1))
    for row in rows:
        cells = [_cell(row, name) for name in (*_SHOWN, "rmse")]
        first = protocols.PROTOCOLS[row["protocol"]]
        lines.append("| " + " | ".join([first, row["method"], *cells]) + " |")
    return "\n".join(lines)


def sentences(
    compared: Sequence[agreement.Row],
    members: Mapping[str, Sequence[float]],
    *,
    clips: int,
    faces: int,
    generators: int,
    resamples: int,
) -> list[str]:
    """Says what was done and what came out, comparison by comparison.

    Args:
        compared: rows of `agreement.compare`, with their protocol.
        members: PLCC of single networks, by protocol.
        clips: number of clips.
        faces: number of faces.
        generators: number of generators.
        resamples: of the bootstrap.
    """
    said = [
        f"{clips} clips, {faces} faces, {generators} generators. Settings of every "
        "method and the epoch of the network are chosen on inner folds of the training "
        "clips. In brackets 95 % intervals from "
        f"{resamples} resamples of faces. Differences are paired on the same "
        "resamples, p corrected by Holm over the methods compared with. The network "
        "is an ensemble; the combination is the mean of "
        f"{' and '.join(nested.COMBINED)}."
    ]
    for protocol, title in protocols.PROTOCOLS.items():
        values = members[protocol]
        said.append(
            f"{title}: a single network has PLCC {np.mean(values):.3f} ± "
            f"{np.std(values, ddof=1) if len(values) > 1 else 0:.3f} over "
            f"{len(values)} seeds."
        )
        for ours in _OURS:
            said += [
                f"{title}, {ours}, {_SHOWN[name]}: {_verdicts(rows)}."
                for name in _SHOWN
                if (
                    rows := [
                        row
                        for row in compared
                        if (row["protocol"], row["ours"], row["figure"])
                        == (protocol, ours, name)
                    ]
                )
            ]
    return said


def draw(rows: Sequence[agreement.Row], path: pathlib.Path) -> None:
    """Draws PLCC, SRCC and SRCC within a generator, with intervals."""
    pyplot = figures.start()
    names = list(protocols.PROTOCOLS)
    drawn, axes = pyplot.subplots(
        len(names),
        len(_SHOWN),
        sharey=True,
        sharex="col",
        figsize=(10, 7),
        layout="constrained",
    )
    for line, protocol in zip(axes, names, strict=True):
        mine = [row for row in rows if row["protocol"] == protocol]
        for axis, (name, title) in zip(line, _SHOWN.items(), strict=True):
            for place, row in enumerate(mine):
                color = "C1" if row["method"] in _OURS else "C0"
                if row[f"{name}_low"] is not None:
                    ends = row[f"{name}_low"], row[f"{name}_high"]
                    axis.plot(ends, [place] * 2, color=color)
                if row[name] is not None:
                    axis.plot(row[name], place, "o", color=color)
            axis.set_yticks(range(len(mine)), [row["method"] for row in mine])
            axis.axvline(0, color="grey", lw=0.5)
            axis.set_title(f"{title}, {protocols.PROTOCOLS[protocol]}", fontsize=8)
        line[0].invert_yaxis()
    with output.atomic(path) as part:
        drawn.savefig(part, dpi=150, format="png")
    pyplot.close(drawn)


def _cell(row: agreement.Row, name: str) -> str:
    if row[name] is None:
        return "-"
    if row[f"{name}_low"] is None:
        return f"{row[name]:.3f}"
    return f"{row[name]:.3f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _verdicts(rows: Sequence[agreement.Row]) -> str:
    kinds: dict[str, list[str]] = {}
    for row in rows:
        if row["p_holm"] is None:
            kinds.setdefault("not comparable with", []).append(row["other"])
            continue
        said = f"{row['other']} ({row['difference']:+.3f}, p {row['p_holm']:.3f})"
        if row["p_holm"] >= 0.05:
            kinds.setdefault("no difference shown to", []).append(said)
        else:
            kind = "better than" if row["difference"] > 0 else "worse than"
            kinds.setdefault(kind, []).append(said)
    return "; ".join(f"{kind} {', '.join(some)}" for kind, some in kinds.items())
