r"""Makes the demo data set: rendered talking faces with planted flaws.

    python -m extract.demo --clips=240

Labels are computed from the strengths of the planted flaws (`flaws.labels`), never
rated by people, and the set says so (`kind: degradation`).
Clips are rendered into `<set>.work/` one file at a time and measured by the real
extractor; whatever stops the job, the same call goes on, and a finished set is used
again.
"""

import dataclasses
import json
import logging
import pathlib
import shutil
import sys
from collections.abc import Sequence

import numpy as np

import tqa_jax
from tqa_jax import cli, output, schema

with cli.imports():
    from extract import backends, encode, jobs, landmarks, measure
    from extract import build as builder
    from extract import clip as extractor
    from extract.degrading import FPS, FRAME, Scene, flaws
    from extract.rendering import demo_plan, portrait, render, speech

_logger = logging.getLogger(__name__)

EXAMPLES = 4
_MARGIN = 20  # frames of speech before and after the clip: more than the largest offset


def make_clip(item: demo_plan.Plan) -> tuple[np.ndarray, np.ndarray]:
    """Renders a clip and plants its flaws.

    Returns:
        RGB frames (T, 256, 256, 3) at 25 Hz and mono audio at 16 kHz.
    """
    strengths = dict(item.strengths)
    voice = speech.draw_voice(item.identity_seed)
    # A clip is cut out of longer speech: speech begins with a pause, and where that is
    # would tell the offset to one who only listens.
    rows = round(demo_plan.SECONDS * FPS)
    seconds = (rows + 2 * _MARGIN) / FPS
    said, other = (
        speech.synthesize(voice, seconds=seconds, arousal=item.arousal, seed=seed)
        for seed in (item.seed, item.seed + 50_000)
    )
    shown = slice(_MARGIN, _MARGIN + rows)
    heard = slice(_MARGIN * FRAME, (_MARGIN + rows) * FRAME)
    # Either way, so that the voice alone does not tell.
    face = item.arousal + strengths.pop("affect", 0.0) * (1 - 2 * item.arousal)
    motion = render.draw_motion(
        said.opening[shown],
        said.spread[shown],
        arousal=face,
        damping=strengths.pop("damping", 0.0),
        seed=item.seed,
    )
    frames = render.render(
        portrait.draw(item.identity_seed, beard_allowed=voice.pitch < 140),
        motion,
        covered=item.covered,
        seed=item.seed,
    )
    scene = Scene(item.seed, rows, other.audio[heard])
    frames = np.stack(list(flaws.plant("picture", iter(frames), strengths, scene)))
    audio = said.audio
    if "offset" in strengths:  # in the longer speech, so that other speech comes in
        offset = {"offset": strengths.pop("offset")}
        audio = flaws.plant("sound", audio, offset, scene)
    return frames, flaws.plant("sound", audio[heard], strengths, scene)


def described() -> schema.Schema:
    """Modalities and tasks of the demo set."""
    return schema.Schema(backends.describe(backends.options()), schema.TASKS)


def build(
    cache: pathlib.Path,
    *,
    clips: int = 240,
    seed: int = 0,
    num_workers: int | None = None,
) -> pathlib.Path:
    """Returns the demo set in a cache, after building it where it is not there.

    Beside the set lies `<set>-examples/`: a few of its clips and `clips.csv`, which
    lists the flaws of all.

    Raises:
        schema.InputError: for unusable arguments, a missing landmarker, or a cache
            that cannot be written.
    """
    options = backends.options()
    model = extractor.check(options)
    plans = demo_plan.plan(clips, seed)
    # Another version of a backend or of the clips is another set, under another name.
    of = [dataclasses.asdict(item) for item in backends.describe(options)]
    drawn = [dataclasses.asdict(item) for item in plans]
    asked = measure.digest([_provenance(clips, seed), drawn, of])
    path = pathlib.Path(cache).absolute() / f"demo-{clips}-{asked[:8]}"
    work = path.with_name(path.name + ".work")
    items = [
        builder.Item(
            work / f"{p.clip}.mp4", p.clip, p.source, p.split, p.labels, p.absent
        )
        for p in plans
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A second process waits, and finds the set.
        with output.lock(path.with_name(path.name + ".lock"), wait=True):
            if not (path / "dataset.json").is_file():
                _logger.info(
                    "building the demo data set of %d clips in %s", clips, path
                )
                landmarks.check_library(model)
                work.mkdir(exist_ok=True)
                _render_all(plans, work, num_workers)
                _keep_examples(plans, work, path.with_name(path.name + "-examples"))
                summary = builder.build(
                    items,
                    path,
                    tasks=schema.TASKS,
                    name="tqa_demo",
                    provenance=_provenance(clips, seed),
                    options=options,
                    features=work / "features",
                    num_workers=num_workers,
                )
                _logger.info("%s", summary.line())
            if work.exists():
                shutil.rmtree(work)
    except OSError as error:
        raise schema.InputError(
            f"the demo data set cannot be kept in {path.parent}: {error}; the same "
            "command goes on, or choose another folder by TQA_CACHE or --out"
        ) from error
    return path


def _provenance(clips: int, seed: int) -> dict:
    """Says what the set is."""
    about = flaws.described(demo_plan.FLAWS)
    about["flaws"] |= demo_plan.MEANINGS
    return {
        "kind": "degradation",
        "description": "rendered talking faces with planted flaws; the labels are "
        "functions of the flaws' strengths, not opinions of people",
        "tool": "extract.demo",
        "tool_version": tqa_jax.__version__,
        "demo_version": demo_plan.VERSION,
        "clips": clips,
        "seed": seed,
        "picture": "skimage.data.astronaut(), public domain (NASA)",
        "speech": "synthetic",
        **about,
        "missing_labels": demo_plan.MISSING_LABELS,
    }


def _render_all(
    plans: Sequence[demo_plan.Plan], work: pathlib.Path, num_workers: int | None
) -> None:
    """Renders the clips that are not there yet."""
    # One identity after the other: a worker keeps the few it has drawn last.
    plans = sorted(plans, key=lambda item: item.identity_seed)
    reasons = jobs.make_files(
        {item.clip: (item,) for item in plans},
        _render_one,
        {item.clip: work / f"{item.clip}.mp4" for item in plans},
        num_workers=num_workers,
        timeout_seconds=600,
        what="rendered",
    )
    for clip, reason in reasons.items():
        raise schema.InputError(
            f"demo clip {clip} cannot be rendered: {reason}; the same command goes on"
        )


def _render_one(item: demo_plan.Plan, file: pathlib.Path) -> None:
    encode.write(file, *make_clip(item))


def _keep_examples(
    plans: Sequence[demo_plan.Plan], work: pathlib.Path, folder: pathlib.Path
) -> None:
    """Copies a flawless clip and clips of different flaws to look at; lists all."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    first = {}  # clip by the only flaw in it, the flawless one before all
    for item in sorted(plans, key=lambda item: len(item.strengths)):
        if len(item.strengths) < 2:
            first.setdefault("".join(item.strengths) or "flawless", item.clip)
    for kind, clip in list(first.items())[:EXAMPLES]:
        shutil.copyfile(work / f"{clip}.mp4", folder / f"{clip}_{kind}.mp4")
    names, rows = [task.name for task in schema.TASKS], []
    for item in plans:
        scores = {name: f"{score:.4f}" for name, score in item.labels.items()}
        strengths = {flaw: round(at, 4) for flaw, at in item.strengths.items()}
        rows.append(
            [item.clip, item.source, item.split, *map(scores.get, names)]
            + [json.dumps(strengths), " ".join(item.absent)]
            + ["-".join(map(str, item.covered or ()))]
        )
    header = ["clip", "source", "split", *names, "flaws", "absent", "covered"]
    output.write(folder / "clips.csv", output.table(header, rows))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(jobs.Given):
    """The command line."""

    out: pathlib.Path | None = None
    """Folder to keep the set in (default: $TQA_CACHE or ~/.cache/tqa_jax)."""
    clips: int = 240
    """Clips of 3.2 s in the set, at least 3."""
    seed: int = 0
    """Another seed gives other people, words and flaws."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return cli.main(_run, Options, arguments, stopped=jobs.STOPPED)


def _run(options: Options) -> None:
    path = build(
        options.out or cli.cache_folder(),
        clips=options.clips,
        seed=options.seed,
        num_workers=options.num_workers,
    )
    print(f"data set: {path}")


if __name__ == "__main__":
    sys.exit(main())
