r"""Compares task weightings on the toy problem of the GradNorm paper.

    python -m experiments.gradnorm_toy --tasks=10 --steps=5000 --seeds=3

Prints a table and whether the paper's ordering held, and writes `gradnorm_toy.csv`
(a line for each method, seed, recorded step and task), `gradnorm_toy.json` (summary,
settings, versions) and `gradnorm_toy.png` (weights and test loss ratios over time) into
--out. Files there are replaced when all is computed, not before. Exit status: 0 when
computed, whatever came out; 2 for bad input.

`gradnorm` is the library's default form. `gradnorm_linear` is
Algorithm 1 without our changes: steps on w itself and no floor, so that a weight can
turn negative, and its task's loss is then maximised until it is positive again.
"""

import dataclasses
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tqdm
from scipy import stats

from experiments import toy_problem
from tqa_jax import cli, output, run_folder, schema, weighting

# Two tasks as in the paper, which gives no numbers for ten: |N(0, 30)| + 1, drawn once.
SIGMAS = {
    2: (1.0, 100.0),
    10: (17.8, 29.0, 26.3, 35.2, 60.1, 27.1, 7.5, 44.1, 4.4, 8.9),
}
# The paper's alpha and rate of the weights; uncertainty without a bound, as published.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "equal": ("fixed", {}),
    "gradnorm": ("gradnorm", {"alpha": 0.12, "learning_rate": 0.025}),
    "gradnorm_linear": (
        "gradnorm",
        {
            "alpha": 0.12,
            "learning_rate": 0.025,
            "log_domain": False,
            "initial_steps": 1,
            "floor": -math.inf,
        },
    ),
    "uncertainty": ("uncertainty", {"learning_rate": 0.025, "limit": math.inf}),
    "gradnorm_simple": ("gradnorm_simple", {"alpha": 0.12}),
}
_JUDGED = ("gradnorm", "equal", "uncertainty")
_MILESTONE = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    tasks: Literal[2, 10] = 10
    """Number of tasks."""
    steps: cli.Count = 5000
    """Training steps."""
    seeds: cli.Count = 3
    """Runs of each method."""
    methods: str = ",".join(METHODS)
    """Which methods, and in which order."""
    learning_rate: float = 1e-3
    """Rate of Adam on the network."""
    out: pathlib.Path = pathlib.Path("runs/gradnorm_toy")
    """Folder for the results."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return cli.main(_run, Options, arguments, stopped="stopped; nothing was written")


def make(name: str, tasks: int) -> weighting.Weighting:
    """Makes the weighting of a method of `METHODS`."""
    kind, options = METHODS[name]
    return weighting.make(kind, tasks=[f"task{i}" for i in range(tasks)], **options)


def _run(given: Options) -> None:
    methods = given.methods.split(",")
    for method in methods:
        if method not in METHODS:
            raise schema.InputError(
                f"--methods names unknown {method!r}; available: {', '.join(METHODS)}"
            )
    if not 0 < given.learning_rate < math.inf:
        raise schema.InputError(
            f"--learning_rate is {given.learning_rate}; expected a number above 0"
        )
    cli.need("matplotlib")
    folder = given.out
    folder.mkdir(parents=True, exist_ok=True)
    cli.prepare_jax()

    sigmas = SIGMAS[given.tasks]
    begun = time.perf_counter()
    with tqdm.tqdm(total=given.steps, unit="step", disable=None) as bar:
        histories = toy_problem.run(
            {method: make(method, given.tasks) for method in methods},
            sigmas=sigmas,
            seeds=range(given.seeds),
            steps=given.steps,
            learning_rate=given.learning_rate,
            advance=bar.update,
        )
    seconds = time.perf_counter() - begun
    summaries = {name: summarise(one, sigmas) for name, one in histories.items()}
    said = verdict(summaries)
    report = {
        "settings": dataclasses.asdict(given) | {"out": str(folder), "sigmas": sigmas},
        "environment": run_folder.environment(),
        "seconds": round(seconds, 1),
        "methods": {
            name: {"weighting": METHODS[name][0]}
            | {"options": {k: str(v) for k, v in METHODS[name][1].items()}}
            | one
            for name, one in summaries.items()
        },
        "verdict": said,
    }
    run_folder.write_json(folder / "gradnorm_toy.json", _plain(report))
    write_csv(folder / "gradnorm_toy.csv", histories, sigmas)
    draw(folder / "gradnorm_toy.png", histories, sigmas)
    print(table(summaries))
    print(said)
    print(f"{seconds:.0f} s; CSV, JSON and figure: {folder}")


def summarise(history: toy_problem.History, sigmas: Sequence[float]) -> dict[str, Any]:
    """Sums up a method; what is undefined or not finite is NaN or infinite.

    Args:
        history: from `toy_problem.run`.
        sigmas: scale of each task's targets.

    Returns:
        `ratio_sums` (step -> a sum of L_i(t) / L_i(0) on test data for each seed),
        `weights` at the end (seeds, tasks), `lowest_weight` of all records,
        `norm_spread` (largest over smallest gradient norm of the weighted losses at the
        end) and `spearman` (of weights at the end and sigmas), for each seed.
    """
    end = int(history.steps[-1])
    sums = history.ratios.sum(axis=-1)
    milestones = sorted({_MILESTONE, end}) if end > _MILESTONE else [end]
    norms = np.abs(history.grad_norms[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = norms.max(axis=-1) / norms.min(axis=-1)
    return {
        "ratio_sums": {
            step: sums[np.searchsorted(history.steps, step)].tolist()
            for step in milestones
        },
        "weights": history.weights[-1].tolist(),
        "lowest_weight": float(history.weights.min()),
        "norm_spread": spread.tolist(),
        "spearman": [_spearman(one, sigmas) for one in history.weights[-1]],
    }


def _spearman(weights: np.ndarray, sigmas: Sequence[float]) -> float:
    if not np.isfinite(weights).all() or np.ptp(weights) == 0:
        return math.nan
    return float(stats.spearmanr(weights, sigmas).statistic)


def verdict(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Says whether the paper's findings held at the end, in one line.

    Args:
        summaries: by method, from `summarise`.
    """
    if missing := [name for name in _JUDGED if name not in summaries]:
        return f"the paper's ordering was not judged without {', '.join(missing)}"
    ends = [
        float(np.mean(list(summaries[name]["ratio_sums"].values())[-1]))
        for name in _JUDGED
    ]
    worst = float(np.max(summaries["gradnorm"]["spearman"]))

    def held(claim: bool) -> str:
        return "held" if claim else "DID NOT HOLD"

    return (
        "GradNorm < equal < uncertainty: "
        f"{held(ends[0] < ends[1] < ends[2])} ({', '.join(f'{x:.3f}' for x in ends)}; "
        f"GradNorm / equal {ends[0] / ends[1]:.3f}); "
        f"Spearman(w, sigma) <= -0.9 with GradNorm in every seed: "
        f"{held(worst <= -0.9)} (highest {worst:.3f})"
    )


def table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats summaries, a line for each method: means over seeds, +- their sd."""
    milestones = next(iter(summaries.values()))["ratio_sums"]
    rows = [
        [
            "method",
            *(f"sum L/L0 @{step:,}" for step in milestones),
            "weights at end",
            "lowest weight",
            "max/min norm",
            "Spearman",
        ]
    ]
    for name, summary in summaries.items():
        weights = np.mean(summary["weights"], axis=0)
        shown = [f"{w:.4g}" for w in sorted(weights)]
        rows.append(
            [
                name,
                *(_mean(sums, 3) for sums in summary["ratio_sums"].values()),
                ", ".join(f"{w:.4g}" for w in weights)
                if len(weights) == 2
                else f"{shown[0]} ... {shown[-1]} (sum {weights.sum():.4g})",
                f"{summary['lowest_weight']:.3g}",
                _mean(summary["norm_spread"], 2),
                "-"
                if np.isnan(summary["spearman"]).any()
                else f"{np.mean(summary['spearman']):.3f}",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def _mean(values: Sequence[float], digits: int) -> str:
    good = int(np.isfinite(values).sum())
    if good < len(values):
        return f"not finite in {len(values) - good} of {len(values)}"
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" +- {np.std(values, ddof=1):.{digits}f}"
    return text


def _plain(value: Any) -> Any:
    """Makes JSON of it, null of what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_csv(
    path: pathlib.Path,
    histories: Mapping[str, toy_problem.History],
    sigmas: Sequence[float],
) -> None:
    """Writes every record, atomically.

    Args:
        path: of the file.
        histories: by method.
        sigmas: scale of each task's targets.
    """
    header = "method seed step task sigma weight test_ratio grad_norm".split()
    rows = []
    for method, history in histories.items():
        _, seeds, tasks = history.weights.shape
        for seed in range(seeds):
            for record, step in enumerate(history.steps):
                for task in range(tasks):
                    at = record, seed, task
                    values = (
                        history.weights[at],
                        history.ratios[at],
                        history.grad_norms[at],
                    )
                    rows.append(
                        [method, seed, step, task, sigmas[task]]
                        + [f"{value:.7g}" for value in values]
                    )
    output.write(path, output.table(header, rows))


def draw(
    path: pathlib.Path,
    histories: Mapping[str, toy_problem.History],
    sigmas: Sequence[float],
) -> None:
    """Draws test losses and weights over time, atomically.

    Args:
        path: of the PNG.
        histories: by method.
        sigmas: scale of each task's targets.
    """
    import matplotlib  # Of the extra `studies`.
    from matplotlib import colors, figure

    figure_ = figure.Figure(figsize=(3.2 * len(histories) + 1.5, 7.5))
    above, below = figure_.subfigures(2, 1, height_ratios=(1.2, 1))
    axes = above.subplots()
    for name, history in histories.items():
        sums = history.ratios.sum(axis=-1)  # (R, S)
        (line,) = axes.plot(history.steps, sums.mean(axis=1), label=name, linewidth=2)
        axes.plot(history.steps, sums, color=line.get_color(), linewidth=0.5)
    # A method that diverges would hide the others.
    axes.set_ylim(0, min(axes.get_ylim()[1], 2 * len(sigmas)))
    axes.set(
        xlabel="step",
        ylabel="sum of L / L(0) on test data",
        title=f"{len(sigmas)} tasks; thick: mean of seeds, thin: each seed; "
        "cut off above twice the start",
    )
    axes.legend(loc="upper right")

    shade = matplotlib.colormaps["viridis"]
    scale = colors.LogNorm(min(sigmas), max(sigmas))
    panels = below.subplots(1, len(histories), sharey=True, squeeze=False)[0]
    for panel, (name, history) in zip(panels, histories.items(), strict=True):
        for task in np.argsort(sigmas):
            color = shade(scale(sigmas[task]))
            weights = history.weights[:, :, task]  # (R, S)
            panel.plot(history.steps, weights.mean(axis=1), color=color)
            panel.plot(history.steps, weights, color=color, linewidth=0.5)
        panel.set(title=name, xlabel="step")
        # Linear below 0.001, since Algorithm 1 to the letter may leave w > 0.
        panel.set_yscale("symlog", linthresh=1e-3)
    panels[0].set_ylabel("weight")
    below.colorbar(
        matplotlib.cm.ScalarMappable(scale, shade), ax=panels, label="sigma of the task"
    )
    part = path.with_name(path.name + ".part")
    figure_.savefig(part, format="png", dpi=120, bbox_inches="tight")
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(main())
