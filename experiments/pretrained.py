r"""Makes the packaged sync head and scorer out of clips of people who talk.

    python -m experiments.pretrained --clips=clips/ --labels=clips/labels.csv \
        --out=made/

The labels file has the columns `clip` and `source`, the person; nobody rates anything.
Steps, each of which goes on where it was stopped: a sync head from the untouched clips;
copies with known flaws, and with changes that nobody minds (`extract.degrade`);
features; an ensemble for each fold of people, which scores the people that it never
saw; and one on nearly all of them, which is exported.

What is measured, on people left out (their copies are only in the fit of the sync
head, which sees no label):

`pairs.csv`: how often a copy with a flaw scores lower than its own original.
`single.csv`: rank correlation with the labels, of the score and of the single feature
that is best on the training people.

The scorer takes from there the errors for its intervals, and the scores of the
untouched clips, among which `tqa_jax.score` places others.
"""

import csv
import dataclasses
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from experiments.studying import derived
from tqa_jax import (
    cli,
    config_files,
    conformal,
    export,
    output,
    records,
    schema,
    statistics,
    train,
)
from tqa_jax import run as run_lib

with cli.imports():
    from extract import degrade, folds, train_sync
    from extract import run as extract_run

BACKENDS = {
    "visual": "nss",
    "audio": "logmel",
    "keypoints": "motion",
    "action_units": "blendshapes",
    "sync": "head",
}
"""What the packaged scorer reads."""
PAIRS = {
    "lip_sync": ("offset", "swap", "mumble", "mouth_jitter"),
    "expression": ("damping", "freeze"),
    "audio_quality": ("noise", "band_limit", "codec", "vocoder", "clipping"),
    "cross_modal": ("swap",),
    "overall": ("blur", "compression", "freeze", "mouth_blur", "mouth_jitter"),
}
"""Flaws that must lower a task's score."""
_LEAST_OFFSET = 3 / 12  # strength of 3 frames
_LEAST_SHARE = 0.5  # of a clip whose sound is foreign
_FOLDS = 5  # of people; one to test on, one to choose the best epoch
_FINAL_FOLDS = 8  # likewise for the scorer that is exported


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    clips: pathlib.Path
    """Folder of the clips."""
    labels: pathlib.Path
    """Their people: a CSV with the columns clip and source."""
    out: pathlib.Path
    """Folder to make."""
    per_clip: cli.Count = 12
    """Copies of each clip, the first one flawless."""
    config: str = "pretrained"
    """Configuration of the networks: a .py file, or a name in configs/."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    stopped = "stopped; the same command goes on"
    return cli.main(_run, Options, arguments, stopped=stopped)


def _run(options: Options) -> None:
    cli.prepare_jax()
    options.out.mkdir(parents=True, exist_ok=True)
    data = _data(options)
    config = config_files.load(options.config)
    info = schema.load(data)
    people = dict.fromkeys((clip.source for _, clip in derived.pairs(data)), 1)
    runs = []
    for number in range(_FOLDS):
        split_of = folds.draw(people, folds=_FOLDS, fold=number)
        place = options.out / f"fold{number}"
        runs.append(_train(config, _resplit(data, place / "data", split_of), place))
    scored = [run.predictions().of("test") for run in runs]
    flaws = _flaws(options.out / "planted" / "flaws.csv")
    rows = pairs(scored, flaws, info.schema.task_names)
    _write(options.out / "pairs.csv", rows)
    rows = single(data, scored, info.schema)
    _write(options.out / "single.csv", rows)
    final = _train(
        config,
        _resplit(
            data,
            options.out / "final" / "data",
            folds.draw(people, folds=_FINAL_FOLDS, fold=0),
        ),
        options.out / "final",
    )
    content = pack(final, scored, flaws)
    output.write(options.out / "default.npz", content)
    print(f"{options.out / 'default.npz'}: {len(content) / 1e6:.2f} MB")


def _data(options: Options) -> pathlib.Path:
    """Makes head, copies and features; returns the data set's folder.

    Raises:
        InputError: when a step could not be done.
    """
    head, planted, data = (
        options.out / name for name in ("sync_head.npz", "planted", "data")
    )
    if not (data / "dataset.json").is_file():
        _step(
            train_sync.main, f"--clips={options.clips}", f"--out={head}", "--evaluate"
        )
        _step(
            degrade.main,
            f"--clips={options.clips}",
            f"--labels={options.labels}",
            f"--out={planted}",
            f"--per_clip={options.per_clip}",
        )
        _step(
            extract_run.main,
            f"--clips={planted}",
            f"--labels={planted / 'labels.csv'}",
            f"--out={data}",
            *(f"--{name}={backend}" for name, backend in BACKENDS.items()),
            f"--sync_weights={head}",
        )
    return data


def _step(command, *arguments: str) -> None:
    status = command(list(arguments))
    if status not in (0, 3):  # 3: some clips could not be used
        raise schema.InputError(f"{command.__module__} ended with status {status}")


def _resplit(
    data: pathlib.Path, out: pathlib.Path, split_of: Mapping[str, str]
) -> pathlib.Path:
    def moved(split: str, clip: records.Clip) -> derived.Pair:
        return split_of[clip.source], clip

    return derived.make(
        data,
        out,
        moved,
        description="other people in each split",
        content=repr(sorted(split_of.items())).encode(),
    )


def _train(config, data: pathlib.Path, place: pathlib.Path) -> run_lib.Run:
    config = config.copy_and_resolve_references()
    config.data.path = str(data)
    folder = place / "run"
    if not (folder / "results.json").is_file():
        train.run(config, data_path=data, workdir=folder)
    return run_lib.Run.load(folder)


def _flaws(path: pathlib.Path) -> dict[str, dict[str, float]]:
    """Reads the strength of each flaw by copy; an untouched copy has none."""
    found: dict[str, dict[str, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            strength = float(row["strength"])
            found.setdefault(_name(row["clip"]), {})[row["flaw"]] = strength
    return found


def _name(clip: str) -> str:
    return pathlib.PurePath(clip).stem


def original(clip: str) -> str:
    """Returns the name of the untouched copy of the same clip."""
    return _name(clip).rpartition("__")[0] + "__00"


def pairs(
    scored: Sequence, flaws: Mapping[str, Mapping[str, float]], tasks: Sequence[str]
) -> list[dict]:
    """Counts how often a copy with a flaw scores lower than its own original.

    Args:
        scored: `evaluate.Predictions` of people left out.
        flaws: strengths by copy.
        tasks: of the data set.

    Returns:
        A row for each task and flaw: `pairs`, `lower` (share) with its 95 % interval
        over people, and `change`, the mean difference of scores.
    """
    counted: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for one in scored:
        at = {_name(clip): number for number, clip in enumerate(one.clips)}
        for name, number in at.items():
            before = at.get(original(name))
            for task in tasks if before is not None else ():
                k = one.tasks.index(task)
                change = float(one.scores[number, k] - one.scores[before, k])
                for flaw in PAIRS.get(task, ()):
                    strength = flaws.get(name, {}).get(flaw, 0.0)
                    least = {"offset": _LEAST_OFFSET, "swap": _LEAST_SHARE}
                    if strength >= least.get(flaw, 1e-9):
                        row = (str(one.sources[number]), change)
                        counted.setdefault((task, flaw), []).append(row)
                        counted.setdefault((task, "all"), []).append(row)
    rows = []
    for (task, flaw), found in sorted(counted.items()):
        sources, changes = zip(*found, strict=True)
        lower = np.less(changes, 0).astype(float)
        counts = statistics.resample_sources(sources)
        shares = counts @ lower / counts.sum(axis=1)
        low, high = statistics.interval(shares[1:]) if len(shares) > 1 else (None, None)
        rows.append(
            {
                "task": task,
                "flaw": flaw,
                "pairs": len(found),
                "lower": float(lower.mean()),
                "low": low,
                "high": high,
                "change": float(np.mean(changes)),
            }
        )
    return rows


def single(
    data: pathlib.Path, scored: Sequence, described: schema.Schema
) -> list[dict]:
    """Compares the scores with the best single feature, on people left out.

    A feature is its mean over a clip's rows. Which one is best, and its sign, is told
    by the people of the other folds.

    Returns:
        A row for each task: SRCC over all copies of the `score` and of the `feature`,
        and the feature's name.
    """
    means, names = (
        {},
        [
            f"{one.name}:{feature}"
            for one in described.modalities
            for feature in one.features or [str(n) for n in range(one.width)]
        ],
    )
    for _, clip in derived.pairs(data):
        means[clip.clip] = np.concatenate(
            [
                np.nanmean(clip.features[one.name][clip.frame_mask[one.name]], axis=0)
                if clip.frame_mask[one.name].any()
                else np.full(one.width, np.nan)
                for one in described.modalities
            ]
        )
    rows = []
    for k, task in enumerate(described.task_names):
        values, scores, labels, chosen = [], [], [], []
        for out in range(len(scored)):
            rest = [one for n, one in enumerate(scored) if n != out]
            known = np.array([means[clip] for one in rest for clip in one.clips])
            wanted = np.concatenate([one.labels[:, k] for one in rest])
            fits = [_rank(column, wanted) for column in known.T]
            best = int(np.nanargmax(np.abs(fits)))
            chosen.append(names[best])
            here = np.array([means[clip][best] for clip in scored[out].clips])
            values.append(np.sign(fits[best]) * _ranked(here, known[:, best]))
            scores.append(scored[out].scores[:, k])
            labels.append(scored[out].labels[:, k])
        rows.append(
            {
                "task": task,
                "score": _rank(np.concatenate(scores), np.concatenate(labels)),
                "feature": _rank(np.concatenate(values), np.concatenate(labels)),
                "name": ", ".join(sorted(set(chosen))),
            }
        )
    return rows


def _ranked(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Places values among others, so that features of several folds compare."""
    return np.searchsorted(np.sort(among), values) / len(among)


def _rank(values: np.ndarray, labels: np.ndarray) -> float:
    known = np.isfinite(values) & np.isfinite(labels)
    if known.sum() < 3 or np.ptp(values[known]) == 0:
        return math.nan
    return float(stats.spearmanr(values[known], labels[known]).statistic)


def pack(
    final: run_lib.Run, scored: Sequence, flaws: Mapping[str, Mapping[str, float]]
) -> bytes:
    """Makes the scorer's file.

    Args:
        final: the run that is exported.
        scored: predictions for people left out, for intervals and places.
        flaws: strengths by copy.
    """
    reference = output.read_arrays(final.folder / "reference.npz")
    names = dict.fromkeys(name.split("/")[0] for name in reference)
    description = export.describe(final, dtype="float16", reference=list(names))
    tasks = {}
    for k, task in enumerate(final.schema.task_names):
        errors, real = [], []
        for one in scored:
            errors.append(np.abs(one.scores[:, k] - one.labels[:, k]))
            untouched = [not flaws.get(_name(clip)) for clip in one.clips]
            real += one.scores[untouched, k].tolist()
        tasks[task] = {
            "half_width": conformal.half_width(np.concatenate(errors)),
            "real": sorted(round(value, 3) for value in real),
        }
    description["confidence"] = {"level": conformal.LEVEL, "tasks": tasks}
    return export.pack(description, export.collect(final, reference))


def _write(path: pathlib.Path, rows: Sequence[Mapping]) -> None:
    """Writes a table, and prints it."""
    header = list(rows[0])
    cells = [["" if v is None else _text(v) for v in row.values()] for row in rows]
    output.write(path, output.table(header, cells).encode())
    for line in [header, *cells]:
        print("  ".join(f"{cell:14}" for cell in line).rstrip())


def _text(value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
