"""Compares configs/standard.py with configs/optimized.py: what the larger one costs.

    python -m experiments.configs --data=data/mine --seeds=3 --out=studies/configs
    python -m experiments.configs --epochs=3 --seeds=3 --out=studies/configs

Parameters, arithmetic, time and memory of a training step, each compiled alone and
timed side by side, and the accuracy over seeds, paired. Both are as their files say.
--draws tunes the learning rate of each about its own value, with as many tries.

The one thing to know: both are made for an accelerator, the optimized one has 33
million parameters, and on two CPU cores it takes seconds a step. --epochs cuts both
to the same number, and then the comparison is of networks that were trained too
little. A warm-up that is longer than the run is cut to a tenth of it. The output says
both.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import ml_collections

from experiments import timing
from experiments.studying import command, figures, results, steps, trials
from tqa_jax import cli, config_files, hyperparameters

_ROUNDS, _QUICK_ROUNDS = 20, 3
# For --quick: a sixteenth of the width and less of the rest, one still larger.
_QUICK = {
    name: {
        "data.max_frames": 20,
        "model.width": width,
        "model.fusion_ffn": 4 * width,
        "model.fusion_layers": layers,
        "model.temporal_heads": 2,
        "model.fusion_heads": 2,
        "model.depth": 1,
    }
    for name, width, layers in (("standard", 16, 1), ("optimized", 32, 2))
}
_QUICK_EPOCHS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(command.Given):
    """The command line."""

    usual_draws: ClassVar[int] = 1

    draws: cli.Count | None = None
    """Settings tried for each configuration, by validation with two seeds, before they
    are compared; 1 tunes nothing (default: 1; quick: 2)."""
    epochs: int | None = None
    """Epochs of either (default: what each file says; quick: 2)."""
    rounds: cli.Count | None = None
    """Rounds of timing (default: 20; quick: 3)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(_run, Given, arguments)


def _run(options: command.Options) -> None:
    clips = options.info.splits["train"].clips if "train" in options.info.splits else 0
    whole = {name: config_files.load(name) for name in ("standard", "optimized")}
    said = []
    for name, config in whole.items():
        said += adapt(
            config,
            name,
            data=str(options.data),
            clips=clips,
            epochs=options.given.epochs,
            quick=options.quick,
        )
    base = whole["standard"]
    cases = {
        name: trials.Case(difference(base, config), trials.rate_range(config))
        for name, config in whole.items()
    }
    chosen = trials.tune(
        base, cases, draws=options.draws, folder=options.out / "tuning"
    )
    trained = trials.run(base, chosen, seeds=options.seeds, folder=options.out / "runs")
    outcomes = trials.outcomes(trained)
    rows = results.compare(outcomes)
    costs = measure(
        {name: steps.load(runs[0].folder) for name, runs in trained.items()},
        rounds=options.given.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS),
    )
    epochs = {name: [_epochs(one) for one in runs] for name, runs in trained.items()}
    for row in rows:
        row |= costs[row["case"]]
        row["epochs"] = sum(epochs[row["case"]]) / len(epochs[row["case"]])
    results.write(
        options,
        "configs",
        rows,
        table="\n\n".join(
            [
                results.compared(rows),
                results.markdown([{"case": r["case"], **_shown(r)} for r in rows]),
            ]
        ),
        said=results.summary(options, rows) + said + _words(rows),
        more={"chosen": chosen},
        figure=figures.differences(rows, outcomes, "Standard and optimized"),
    )


def adapt(
    config: ml_collections.ConfigDict,
    name: str,
    *,
    data: str,
    clips: int,
    epochs: int | None = None,
    quick: bool = False,
) -> list[str]:
    """Changes a configuration so that it can be run; says how.

    Args:
        config: changed in place.
        name: of it.
        data: folder of the data set.
        clips: of the training split.
        epochs: to train, None for what the configuration says.
        quick: makes it tiny.
    """
    said = []
    config.data.path = data
    config.evaluate.dropout_draws = 0
    if quick:
        config.update_from_flattened_dict(_QUICK[name])
        config.train.batch_size //= 4
        config.train.accumulation = min(config.train.accumulation, 2)
        epochs = epochs or _QUICK_EPOCHS
        said.append(f"{name}: tiny, to see that it works; its figures mean nothing.")
    if epochs and epochs != config.train.epochs:
        said.append(
            f"{name}: {epochs} epochs in place of {config.train.epochs} (--epochs); "
            "what longer training would give is not known."
        )
        config.train.epochs = epochs
    total = config.train.epochs * max(1, clips // config.train.batch_size)
    if config.optim.warmup_steps > total // 2:
        shorter = max(1, total // 10) if total > 1 else 0
        said.append(
            f"{name}: {shorter} steps of warm-up in place of "
            f"{config.optim.warmup_steps}, which are too many for a run of {total}."
        )
        config.optim.warmup_steps = shorter
    return said


def difference(
    base: ml_collections.ConfigDict, other: ml_collections.ConfigDict
) -> dict[str, Any]:
    """What a configuration changes in another, by key."""
    before = dict(hyperparameters.flatten(base.to_dict()))
    return {
        key: value
        for key, value in hyperparameters.flatten(other.to_dict())
        if before[key] != value
    }


def measure(
    found: Mapping[str, steps.Step], *, rounds: int
) -> dict[str, dict[str, float]]:
    """Measures what a step of each case costs.

    Args:
        found: steps by case; the first is what times are compared with.
        rounds: of timing, interleaved.

    Returns:
        By case: parameters, arithmetic for each clip of a batch in training and in
        scoring, bytes, and seconds of a step and of a clip in it.
    """
    seconds = timing.interleave(
        {name: step.runner() for name, step in found.items()}, rounds
    )
    first = next(iter(found))
    costs = {}
    for name, step in found.items():
        size = step.config.train.batch_size
        needed = step.needed
        each = seconds[name] / size
        ratio, low, high = timing.ratio(
            each, seconds[first] / found[first].config.train.batch_size
        )
        costs[name] = {
            "batch_size": size,
            "parameters": step.params,
            "step_gflops": step.flops / 1e9,
            "train_gflops_per_clip": step.flops / size / 1e9,
            "score_gflops_per_clip": step.score_flops / size / 1e9,
            "temp_bytes": needed.temp,
            "resident_bytes": needed.resident,
            "step_seconds": float(sorted(seconds[name])[len(each) // 2]),
            "clip_seconds": float(sorted(each)[len(each) // 2]),
            "clip_ratio": ratio,
            "clip_ratio_low": low,
            "clip_ratio_high": high,
        }
    return costs


def _epochs(one: trials.Trained) -> int:
    """Epochs that a run was trained."""
    lines = (one.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return max(json.loads(line)["epoch"] for line in lines)


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "parameters": f"{row['parameters'] / 1e6:.3g} M",
        "GFLOPs a clip, training": f"{row['train_gflops_per_clip']:.3g}",
        "GFLOPs a clip, scoring": f"{row['score_gflops_per_clip']:.3g}",
        "batch": f"{row['batch_size']}",
        "a step": f"{1000 * row['step_seconds']:.3g} ms",
        "a clip of it": f"{1000 * row['clip_seconds']:.3g} ms",
        "to the first": f"{row['clip_ratio']:.3g} ({row['clip_ratio_low']:.3g} to "
        f"{row['clip_ratio_high']:.3g})",
        "working memory": f"{row['temp_bytes'] / 2**20:.4g} MiB",
        "state and batch": f"{row['resident_bytes'] / 2**20:.4g} MiB",
        "epochs": f"{row['epochs']:.3g}",
    }


def _words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    first, second = rows[0], rows[1]
    more = second["train_gflops_per_clip"] / first["train_gflops_per_clip"]
    return [
        f"{second['case']} has {second['parameters'] / first['parameters']:.1f} times "
        f"the parameters of {first['case']}, {more:.1f} times the arithmetic for a "
        f"clip and {second['clip_ratio']:.1f} times its time. Arithmetic is counted by "
        "XLA before compilation, of a step whose batch is in one piece, since the body "
        "of a scan counts once; micro-batches that compute something again are not in "
        "it. Memory is the compiler's own figure for a step as the file says. Times "
        "are medians of interleaved rounds, quartiles in brackets."
    ]


if __name__ == "__main__":
    sys.exit(main())
