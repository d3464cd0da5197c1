r"""Makes a study with human raters: a page that shows pairs of clips and asks.

    python -m experiments.subjective make --clips=my_clips --pairs=pairs.csv --out=study
    python -m experiments.subjective make --clips=my_clips --list=clips.csv --out=study

The folder is the whole study. It needs no server: raters open `index.html` from a disk
or any web host, with their own address from `raters.csv`, and send back the CSV that
the page gives them. Nothing leaves their browser otherwise.

Pairs come from a table `item_id,video_a,video_b`, optionally with `kind` (training,
practice, trial or control), `condition_a`, `condition_b`, `source` and `feedback`,
which is shown after a training pair and in which {A} and {B} become the numbers that
the videos have on the page. Or they are made from a list `clip`, optionally with
`source`, `condition` and `kind`: clips of one source are compared under different
conditions.

Equal input and seed give equal files.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.subjective import design, material, page
from experiments.subjective import questions as questions_lib
from tqa_jax import output, schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    clips: pathlib.Path
    """Folder of the clips."""
    out: pathlib.Path
    """Folder to make."""
    pairs: pathlib.Path | None = None
    """CSV with a table of pairs; this or --list is given."""
    list: pathlib.Path | None = None
    """CSV with a table of clips."""
    partners: int = 4
    """With --list: with how many others of its source a clip is compared, an even
    number."""
    raters: int = 30
    """Most raters that may take part."""
    trials: int | None = None
    """Pairs that a rater compares; with fewer than there are, raters see different ones
    (default: all)."""
    repeats: int | None = None
    """Pairs that a rater sees again with sides swapped (default: one for every ten
    trials)."""
    controls: int = 1
    """Pairs of one clip with itself that a rater sees."""
    tasks: str = ",".join(question.task for question in questions_lib.DEFAULTS)
    """What is rated from 1 to 5: names of the default tasks, or a CSV
    task,title,question,anchor_1,anchor_3,anchor_5; empty for preferences only."""
    optional: str = ""
    """Tasks that may be left out, with commas between."""
    title: str = "Which talking face is better?"
    """Title of the page."""
    instructions: pathlib.Path | None = None
    """Plain text that raters read and agree to, paragraphs between empty lines
    (default: a short text in English)."""
    break_every: int = 15
    """Trials between two breaks, 0 for none."""
    seed: int = 0
    """Seed of the design."""


def run(options: Options) -> None:
    """Makes the folder."""
    plan = make_plan(options)
    write(plan, options.clips, options.out)
    trials = [pair for pair in plan["pairs"] if pair["kind"] == "trial"]
    session = plan["orders"][0]["showings"]
    kinds = Counter(showing["kind"] for showing in session)
    seen = Counter(
        showing["item_id"]
        for order in plan["orders"]
        for showing in order["showings"]
        if showing["kind"] == "trial"
    )
    print(
        f"study {plan['study']}: {len(plan['clips'])} clips, {len(trials)} pairs, "
        f"{len(plan['orders'])} raters"
    )
    print(
        "each rater sees "
        + ", ".join(
            f"{kinds[kind]} {kind}"
            for kind in ("training", "trial", "repeat", "control")
        )
    )
    print(f"each pair is seen by {min(seen.values())} to {max(seen.values())} raters")
    print(f"page: {options.out / 'index.html'}")
    print(f"addresses for the raters: {options.out / 'raters.csv'}")


def make_plan(options: Options) -> dict[str, Any]:
    """Makes the plan of a study: all that the page and the analysis need to know.

    Args:
        options: of the command.

    Returns:
        The content of `plan.json`. `study` is a hash of everything else in it, the
        bytes of the clips included.

    Raises:
        InputError: when a table, a clip or an option cannot be used.
    """
    if (options.pairs is None) == (options.list is None):
        raise schema.InputError("give either --pairs or --list; see --help")
    questions = questions_lib.choose(options.tasks, options.optional)
    if options.pairs is not None:
        pairs = material.pairs(options.pairs, options.clips)
    else:
        pairs = material.pairs_of_clips(
            options.list, options.clips, partners=options.partners, seed=options.seed
        )
    count = sum(pair.kind == "trial" for pair in pairs)
    shown = count if options.trials is None else options.trials
    repeats = options.repeats
    if repeats is None:
        repeats = min(-(-shown // 10), shown // 2)
    _check(options, count=count, shown=shown, repeats=repeats)
    if options.controls and not any(pair.kind == "control" for pair in pairs):
        pairs += _controls(pairs)
    place = {
        kind: [k for k, pair in enumerate(pairs) if pair.kind == kind]
        for kind in material.KINDS
    }
    showings = design.orders(
        training=place["training"] + place["practice"],
        trials=place["trial"],
        controls=place["control"],
        raters=options.raters,
        shown=shown,
        repeats=repeats,
        shown_controls=options.controls,
        seed=options.seed,
    )
    digits = max(3, len(str(options.raters)))
    plan = {
        "version": 1,
        "title": options.title,
        "instructions": _paragraphs(options.instructions, len(questions)),
        "seed": options.seed,
        "break_every": options.break_every,
        "tasks": [vars(question) for question in questions],
        "clips": {
            name: {"sha256": _digest(options.clips / name)}
            for name in sorted({n for p in pairs for n in (p.video_a, p.video_b)})
        },
        "pairs": [vars(pair) for pair in pairs],
        "orders": [
            {
                "rater_id": f"P{rater + 1:0{digits}d}",
                "showings": [
                    {
                        "item_id": pairs[showing.item].item_id,
                        "kind": showing.kind,
                        "left": showing.left,
                    }
                    for showing in session
                ],
            }
            for rater, session in enumerate(showings)
        ],
    }
    study = hashlib.sha256(page.compact(plan).encode("utf-8", "replace")).hexdigest()[
        :12
    ]
    return {"study": study} | plan


def write(plan: Mapping[str, Any], clips: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the folder of a study; `index.html` comes last.

    Args:
        plan: from `make_plan`.
        clips: folder of the clips.
        out: folder to make; one without an `index.html` is finished.

    Raises:
        InputError: when a study is there already, or something cannot be written.
    """
    if (out / "index.html").exists():
        raise schema.InputError(
            f"{out} has a page already; expected a new folder, since answers to one "
            "study do not fit another"
        )
    for name in plan["clips"]:
        target = out / "clips" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with output.atomic(target) as part:
            shutil.copyfile(clips / name, part)
    rows = [
        (order["rater_id"], f"index.html#{order['rater_id']}")
        for order in plan["orders"]
    ]
    output.write(out / "raters.csv", output.table(("rater_id", "page"), rows))
    output.write(out / "plan.json", json.dumps(plan, indent=1, ensure_ascii=False))
    output.write(out / "index.html", page.render(plan))


def _check(options: Options, *, count: int, shown: int, repeats: int) -> None:
    """Refuses numbers that no design has."""
    limits = {
        "raters": (options.raters, 1, 9999),
        "trials": (shown, 1, count),
        "repeats": (repeats, 0, shown // 2),
        "controls": (options.controls, 0, shown),
        "break_every": (options.break_every, 0, 9999),
        "seed": (options.seed, 0, 2**63 - 1),
    }
    if not count:
        raise schema.InputError(
            f"{options.pairs or options.list} makes no pair to compare; expected at "
            "least two clips of one source under different conditions"
        )
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise schema.InputError(
                f"--{name} is {value}; expected {low} to {high} ({count} pairs, "
                f"{shown} trials a rater)"
            )
    if options.raters * shown < count:
        raise schema.InputError(
            f"{options.raters} raters with {shown} trials each cannot see all {count} "
            "pairs; expected more --raters, more --trials or fewer --partners"
        )


def _controls(pairs: Sequence[material.Pair]) -> list[material.Pair]:
    """Makes a pair of each clip with itself."""
    conditions: dict[str, tuple[str, str]] = {}
    for pair in pairs:
        if pair.kind == "trial":
            conditions[pair.video_a] = (pair.condition_a, pair.source)
            conditions[pair.video_b] = (pair.condition_b, pair.source)
    taken = {pair.item_id for pair in pairs}
    names = (f"control_{k:04d}" for k in range(1, 10**9))
    free = (name for name in names if name not in taken)
    return [
        material.Pair(next(free), "control", clip, clip, condition, condition, source)
        for clip, (condition, source) in conditions.items()
    ]


def _paragraphs(path: pathlib.Path | None, questions: int) -> list[str]:
    if path is None:
        rating = (
            "Then rate both videos from 1 to 5 and say which one is better."
            if questions
            else "Then say which one is better."
        )
        return [
            "You will see pairs of short videos of talking faces. Watch and listen to "
            f"both videos to the end, as often as you like. {rating} There are no "
            "right or wrong answers: your own impression counts.",
            "Please use headphones, sit in a quiet place, and set the volume during "
            "the first pair. You may pause at any time; your answers are kept in this "
            "browser, and you can go on later on the same device.",
            "At the end you download a file with your answers and send it to whoever "
            "invited you. Nothing is sent by this page. You may stop at any time "
            "without giving a reason.",
        ]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise schema.InputError(f"{path} cannot be read: {error}") from error
    found = [part.strip() for part in text.replace("\r\n", "\n").split("\n\n")]
    found = [part for part in found if part]
    if not found:
        raise schema.InputError(f"{path} is empty; expected instructions for raters")
    return found


def _digest(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise schema.InputError(f"{path} cannot be read: {error.strerror}") from error
