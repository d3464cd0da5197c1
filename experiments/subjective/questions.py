"""What raters are asked about each clip: ratings from 1 to 5 with anchors.

The one thing to know: a question is for one task, whose columns in the answers are
`left_<task>` and `right_<task>`. 1, 3 and 5 have words; nothing is chosen beforehand.
"""

import dataclasses
import re

from extract import csv_file
from tqa_jax import cli, schema


@dataclasses.dataclass(frozen=True)
class Question:
    """A rating from 1 to 5 of each clip.

    Attributes:
        task: name of its columns, such as `lip_sync`.
        title: as raters see it.
        question: what raters are asked.
        anchors: what 1, 3 and 5 mean.
        required: whether a rater must answer to go on.
    """

    task: str
    title: str
    question: str
    anchors: tuple[str, str, str]
    required: bool = True


DEFAULTS = (
    Question(
        "lip_sync",
        "Lip movement",
        "Do the lips move with the speech?",
        ("not at all", "partly", "perfectly"),
    ),
    Question(
        "expression",
        "Expression",
        "Is the facial expression natural and alive?",
        ("stiff or distorted", "acceptable", "like a real person"),
    ),
    Question(
        "audio_quality",
        "Sound",
        "Is the speech clean and undistorted?",
        ("hard to listen to", "acceptable", "perfectly clean"),
    ),
    Question(
        "cross_modal",
        "Face and voice",
        "Do face and voice belong to each other?",
        ("not at all", "partly", "entirely"),
    ),
    Question(
        "overall",
        "Overall",
        "How good is the clip as a whole?",
        ("bad", "fair", "excellent"),
    ),
)
"""The default questions, one for each default task."""


def choose(text: str, optional: str) -> list[Question]:
    """Returns the questions of a study.

    Args:
        text: names of default tasks between commas, or the path of a CSV
            `task,title,question,anchor_1,anchor_3,anchor_5`; empty for none.
        optional: names of tasks that a rater may leave out, between commas.

    Raises:
        InputError: for an unknown name or a table that cannot be read.
    """
    if text.lower().endswith(".csv"):
        path = cli.path(text)
        columns = ("task", "title", "question", "anchor_1", "anchor_3", "anchor_5")
        lines = csv_file.read(path, *columns).rows
        found = [
            Question(
                row["task"],
                row["title"],
                row["question"],
                tuple(map(row.get, columns[3:])),
            )
            for _, row in lines
        ]
        for question in found:
            if not re.fullmatch(r"[A-Za-z_]\w*", question.task, re.ASCII):
                raise schema.InputError(
                    f"{path}: {question.task!r} cannot be a task's name; "
                    "expected letters, digits and underscores"
                )
    else:
        known = {question.task: question for question in DEFAULTS}
        names = [name.strip() for name in text.split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise schema.InputError(
                    f"unknown task {name!r} in --tasks; available: {', '.join(known)}, "
                    "or the path of a CSV with questions of your own"
                )
        found = [known[name] for name in names]
    tasks = [question.task for question in found]
    schema.check_names("task", tasks)
    if {"label", "path"} & set(tasks):  # left_label and left_path are of the page
        raise schema.InputError("no task can be called label or path; rename it")
    may = {name.strip() for name in optional.split(",") if name.strip()}
    if may - set(tasks):
        raise schema.InputError(
            f"--optional has {', '.join(sorted(may - set(tasks)))}, which --tasks has "
            f"not; expected some of {', '.join(tasks)}"
        )
    return [
        dataclasses.replace(question, required=question.task not in may)
        for question in found
    ]
