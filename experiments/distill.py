"""Distils an ensemble into small networks: size, speed and what it costs in accuracy.

    python -m experiments.distill --data=data/mine --seeds=5 --out=studies/distill

The teacher is an ensemble of the base configuration. Students have half and a quarter
of its width and are trained on the labels alone; on labels and the teacher's scores;
and also on the first principal components of its `final_features`, those of all members
side by side. Scores and components are further tasks of a derived data set, with heads
of their own, weights that are tuned, and no say in which epoch is best; the scorer that
is measured, and written to `--out`, has the real tasks only. The teacher scores the
clips that it was trained on, so its scores there are nearer to the labels than
elsewhere. A student is compared with the one of its width that has labels alone; the
last column is against the teacher. Times are of the NumPy scorer, side by side in one
process: read them as ratios.
"""

import itertools
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments import timing
from experiments.studying import by_seed, command, results, teacher, trials
from tqa_jax import export, output, records, schema, scorer
from tqa_jax import run as run_lib
from tqa_jax.models import presets

_TEACHER, _LABELS = "teacher", "labels"
_SCORES, _FEATURES = "labels, scores", "labels, scores, features"
_MEMBERS = 5
_COMPONENTS = 4
_TIMED_CLIPS = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(_run, arguments=arguments)


def _run(options: command.Options) -> None:
    tasks = options.info.schema.task_names
    widths = student_widths(options.base)
    ensemble = trials.tuned_fixed(options).but(
        {"train.members": 2 if options.quick else _MEMBERS}
    )
    tuned, found = by_seed.study(
        options, lambda seed: {_TEACHER: ensemble}, folder="teacher"
    )
    runs = {run.seed: run.folder for run in found[_TEACHER]}
    if options.draws > 1:
        (run,) = trials.run(
            options.base,
            {_TEACHER: {**ensemble.changes, **tuned[_TEACHER]}},
            seeds=(by_seed.TUNING,),
            folder=options.out / "teacher" / "tuned",
            traced=trials.traced({_TEACHER: ensemble}),
        )[_TEACHER]
        runs[by_seed.TUNING] = run.folder
    data = {
        seed: _sets(options, teacher.view(folder, options.data), seed)
        for seed, folder in runs.items()
    }

    def students(seed: int) -> Mapping[str, trials.Case]:
        return {
            f"width {width}: {kind}": _student(options, width, data[seed][kind])
            for width in widths
            for kind in (_LABELS, _SCORES, _FEATURES)
        }

    more_tuned, more = by_seed.study(options, students, folder="students")
    found = found | more
    outcomes = {
        name: [teacher.real(one, options.info.schema.tasks) for one in some]
        for name, some in trials.outcomes(found).items()
    }
    references = {
        f"width {width}: {kind}": f"width {width}: {_LABELS}"
        for width in widths
        for kind in (_SCORES, _FEATURES)
    }
    rows = by_seed.compare(outcomes, references)
    everyone = dict.fromkeys([name for name in outcomes if name != _TEACHER], _TEACHER)
    by_seed.add(rows, outcomes, everyone, "to the teacher")
    cost = measure(options, {name: some[0].folder for name, some in found.items()})
    for row, one in zip(rows, cost, strict=True):
        row |= {key: value for key, value in one.items() if key != "case"}
    results.write(
        options,
        "distill",
        rows,
        table=by_seed.table(rows, "to the teacher")
        + "\n\nScorers of the first seed, with the real tasks only:\n\n"
        + results.markdown(cost),
        said=by_seed.said(options, rows)
        + [
            f"The teacher has {2 if options.quick else _MEMBERS} members and is tuned "
            "with as many tries. `time` is a clip's over the teacher's, the median "
            "over rounds with quartiles; scorers are in --out, tasks: "
            f"{', '.join(tasks)}."
        ],
        more={"tuned": tuned | more_tuned},
        figure=by_seed.figure(rows, outcomes, "Distillation"),
    )


def student_widths(base: Any) -> tuple[int, int]:
    """Half and a quarter of the base's width.

    Raises:
        InputError: when attention heads don't divide them.
    """
    given = presets.PRESETS[base.model.preset] | {
        name: value for name, value in base.model.items() if value is not None
    }
    heads = math.lcm(given["temporal_heads"], given["fusion_heads"])
    width = given["width"]
    if width % (4 * heads) and width // 4 % heads:
        raise schema.InputError(
            f"model.width is {width} with {heads} attention heads; a student of a "
            f"quarter of the width needs a multiple of {4 * heads}"
        )
    return width // 2, width // 4


def _student(options: command.Options, width: int, data: pathlib.Path) -> trials.Case:
    """A student's case; its further tasks are tuned in weight and select nothing."""
    real_tasks = options.info.schema.task_names
    more = [n for n in schema.load(data).schema.task_names if n not in real_tasks]
    changes = {
        "data.path": str(data),
        "model.width": width,
        "model.fusion_ffn": 2 * width,
        "model.head_hidden": (width,),
        **{f"train.select_weights.{name}": 1.0 for name in real_tasks},
        **{f"weighting.fixed.values.{name}": 1.0 for name in more},
        "consistency.exclude": (*options.base.consistency.exclude, *more),
    }
    ranges = {f"weighting.fixed.values.{name}": ("log", 0.1, 4.0) for name in more}
    return trials.tuned_fixed(options).but(changes, ranges)


def _sets(
    options: command.Options, seen: teacher.View, seed: int
) -> dict[str, pathlib.Path]:
    """Makes the data sets of the students of a seed."""
    tasks = options.info.schema.tasks
    low = np.array([task.low for task in tasks])
    high = np.array([task.high for task in tasks])
    scores = np.clip(seen.scores, low, high)
    mine = [schema.Task(f"teacher_{task.name}", task.low, task.high) for task in tasks]
    features = teacher.components(seen.features, _COMPONENTS)
    theirs = [
        schema.Task(f"feature_{n}", *teacher.RANGE) for n in range(features.shape[1])
    ]
    place = options.out / "data"
    return {
        _LABELS: options.data,
        _SCORES: teacher.widen(
            options.data, place / f"scores-{seed}", mine, scores, seen.clips
        ),
        _FEATURES: teacher.widen(
            options.data,
            place / f"features-{seed}",
            [*mine, *theirs],
            np.concatenate([scores, features], axis=1),
            seen.clips,
        ),
    }


def measure(
    options: command.Options, folders: Mapping[str, pathlib.Path]
) -> list[results.Row]:
    """Writes a scorer of each run, and measures size and time side by side.

    Returns:
        For each: `parameters` of the network, of all members; `file_kb`; `time`, a
        clip's over the first run's, with quartiles `time_low` and `time_high`; and
        `ms` a clip on this machine.
    """
    test = records.read_split(options.data, options.info, "test")
    clips = [
        (clip.features, clip.frame_mask)
        for clip in itertools.islice(test, _TIMED_CLIPS)
    ]
    cases, rows = {}, []
    for number, (name, folder) in enumerate(folders.items()):
        run = teacher.only(run_lib.Run.load(folder), options.info.schema.tasks)
        data = export.pack(export.describe(run), export.collect(run))
        path = options.out / f"scorer{number}.npz"
        output.write(path, data)
        judge = scorer.load(path)

        def score(judge: scorer.Scorer = judge) -> None:
            for features, masks in clips:
                judge.score(features, masks)

        cases[name] = score
        leaves = jax.tree.leaves(run.members)
        rows.append(
            {
                "case": name,
                "scorer": path.name,
                "parameters": sum(np.size(leaf) for leaf in leaves),
                "file_kb": len(data) / 1e3,
            }
        )
    seconds = timing.interleave(cases, 3 if options.quick else 15)
    first = seconds[next(iter(cases))]
    for row in rows:
        mine = seconds[row["case"]]
        row["time"], row["time_low"], row["time_high"] = timing.ratio(mine, first)
        row["ms"] = 1000 * float(np.median(mine)) / len(clips)
    return rows


if __name__ == "__main__":
    sys.exit(main())
