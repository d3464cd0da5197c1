"""Analyses the answers of the raters of a study.

    python -m experiments.subjective analyse --ratings=answers/ --out=found/
    python -m experiments.subjective analyse --ratings a.csv b.csv --out=found/ \
        --scores=scores.csv

It reads what the page exports, one file a rater, a folder of them, or all in one file,
the files of the older system's two tools, and tables `clip,rater,<task>,...` with a
line for each rater and clip. Into --out go `analysis.json`, `clips.csv`, `raters.csv`,
`analysis.png` and `summary.md`; and, where clips were rated, `labels.csv` with their
mean opinion scores, which `extract.run --labels=labels.csv` reads. Preferences alone
make no labels: Bradley-Terry scores say how the clips of one study differ, not how good
they are on a scale.
"""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.subjective import findings, model_agreement, ratings, summary
from tqa_jax import cli, output, run_folder, schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    ratings: tuple[pathlib.Path, ...]
    """CSV files of answers, folders of them, or what `simulate` made."""
    out: pathlib.Path
    """Folder for the results."""
    scores: tuple[pathlib.Path, ...] = ()
    """CSV files with scores of models, with columns clip and task, as
    python -m tqa_jax.score prints them, or predictions.csv of a run; several are
    compared with the first."""


def run(options: Options) -> None:
    """Runs the command.

    Raises:
        schema.InputError: a file cannot be used.
    """
    cli.need("matplotlib")
    answers = ratings.read(options.ratings)
    models: dict[str, dict[str, Any]] = {}
    for path in options.scores:
        if str(path) in models:
            raise schema.InputError(f"--scores names {path} twice")
        models[str(path)] = model_agreement.read_scores(
            path, answers.clips, answers.tasks
        )
    found = findings.analyse(answers, models)
    page = summary.page(found)
    write(options.out, found, page)
    print(page)
    print(f"written to {options.out}")
    print(write_labels(options.out / "labels.csv", found, answers))


def write_labels(
    path: pathlib.Path, found: Mapping[str, Any], answers: ratings.Ratings
) -> str:
    """Writes the mean opinion scores of the rated clips as `extract.run` reads them.

    Args:
        path: of the file; an earlier one is removed where nothing was rated.
        found: from `findings.analyse`.
        answers: that were analysed.

    Returns:
        A line that says what is in it.

    Raises:
        schema.InputError: it cannot be written.
    """
    tasks = found["study"]["tasks"]
    source_of = dict(zip(answers.clips, answers.sources, strict=True))
    rows = []
    for row in found["clips"]:
        means = [row[f"{task}_mos"] for task in tasks]
        if any(mean is not None for mean in means):
            cells = ["" if mean is None else f"{mean:.6g}" for mean in means]
            rows.append([row["clip"], source_of[row["clip"]], *cells])
    if not rows:
        path.unlink(missing_ok=True)
        return "no labels.csv: no clip was rated, and preferences make no labels"
    output.write(path, output.table(["clip", "source", *tasks], rows))
    line = f"labels of {len(rows)} clips: {path}"
    unknown = sum(not row[1] for row in rows)
    if unknown:
        line += (
            f"; {unknown} have no source: fill in who speaks, or clips of one speaker "
            "come into several splits"
        )
    return line


def write(out: pathlib.Path, found: Mapping[str, Any], page: str) -> None:
    """Writes the files of an analysis.

    Args:
        out: folder, made if it is not there.
        found: from `findings.analyse`.
        page: from `summary.page`.

    Raises:
        schema.InputError: it cannot be written.
    """
    from matplotlib import pyplot

    out.mkdir(parents=True, exist_ok=True)
    for name in ("clips", "raters"):
        output.write(out / f"{name}.csv", output.table_of(found[name]))
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    whole = dict(found) | {"date": date, "environment": run_folder.environment()}
    output.write(
        out / "analysis.json", json.dumps(whole, indent=1, allow_nan=False) + "\n"
    )
    output.write(out / "summary.md", page)
    figure = summary.figure(found)
    with output.atomic(out / "analysis.png") as part:
        figure.savefig(part, dpi=150, format="png")
    pyplot.close(figure)
