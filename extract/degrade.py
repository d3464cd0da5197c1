r"""Plants known flaws into clips: a labelled set out of clips that nobody rated.

    python -m extract.degrade --clips=my_clips/ --out=planted/
    python -m extract.run --clips=planted/ --labels=planted/labels.csv --out=data/x

Labels are computed from the strengths of the planted flaws
(`flaws.labels`), never rated by people, and `provenance.json` says so
(`kind: degradation`). The folder has `labels.csv`, and in `flaws.csv` what was planted
in each copy and what was measured on the finished file.

Exit status 0 means that all copies are there, 3 that some clips or copies were rejected
(`rejected.csv` says which and why), 2 that the input cannot be used. The folder appears
complete at the end. Until then sound and finished copies are in `<out>.partial/` under
digests of all that they depend on, and the same command goes on after a stop.
"""

import csv
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import tqa_jax
from tqa_jax import cli, output, schema

with cli.imports():
    from extract import clip, encode, files, folds, jobs, labels, landmarks, measure
    from extract.build import Item
    from extract.degrading import FPS, RATE, degrade_plan, flaws, planting
    from extract.degrading.degrade_plan import Copy

_SILENT = 1e-3  # of full scale; a clip that never exceeds it has no speech


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(clip.Given):
    """The command line."""

    clips: pathlib.Path
    """Folder of video files, at any depth."""
    out: pathlib.Path
    """Folder to make."""
    labels: pathlib.Path | None = None
    """Labels file of the clips as for extract.run, whose sources and splits are kept
    and whose scores are not used (default: each clip is a source of its own, splits are
    drawn)."""
    per_clip: int = 6
    """Copies of each clip, the first one flawless."""
    flaws: str = ",".join(degrade_plan.FLAWS)
    """Flaws to plant, separated by commas."""
    seed: int = 0
    """Another seed gives other flaws."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return cli.main(_run, Options, arguments, stopped=jobs.STOPPED)


def _run(given: Options) -> int:
    chosen = _check(given)
    model = landmarks.find_model(given.landmarker)
    clips, out = given.clips.absolute(), given.out.absolute()
    if out.is_relative_to(clips):
        raise schema.InputError(
            f"{out} is in the folder of the clips; copies there would be taken for "
            "clips the next time: choose another --out"
        )
    items = _items(clips, given.labels)
    contents, rejected = {}, {}  # digests and reasons by clip
    for item in items:
        try:
            with item.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
            contents[item.clip] = digest.hexdigest()
        except OSError as error:
            rejected[item.clip] = f"cannot be read: {error.strerror}"
    listed = [
        (item.clip, item.source, item.split, contents[item.clip])
        for item in items
        if item.clip in contents
    ]
    version = [degrade_plan.VERSION, degrade_plan.CODEC]
    asked = [*version, listed, given.per_clip, sorted(chosen), given.seed]
    request = measure.digest([measure.digest(asked), given.max_seconds, list(rejected)])
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        about = degrade_plan.provenance(out / "labels.csv")
        if about is None or about.get("request") != request:
            raise schema.InputError(
                f"{out} is there and was not made from these clips and options; choose "
                "another --out or remove it"
            )
        return _report(given.out)
    if any(flaws.FLAWS[flaw].kind == "face" for flaw in chosen):
        landmarks.check_library(model)
    folder = out.with_name(out.name + ".partial")
    marker = folder / ".degrade"
    if folder.exists() and not marker.exists() and any(folder.iterdir()):
        raise schema.InputError(
            f"{folder} is where work is kept, and holds other files; move them or "
            "choose another --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
        # Of this request: one that was stopped here has moved some copies already.
        ready = folder / f"ready-{request[:16]}"
        ready.mkdir(exist_ok=True)
        copies, rejected = _plant(
            items, contents, rejected, chosen, folder, ready, model, given
        )
        if not copies:
            shutil.rmtree(folder)
            reasons = [f"{name}: {reason}" for name, reason in rejected.items()]
            raise schema.InputError(
                f"none of {len(items)} clips can be used, nothing is made "
                f"({'; '.join(reasons[:3])})"
            )
        # Tables first: after them nothing needs room on the disk any more.
        about = _provenance(request, chosen, given)
        _write_tables(copies, rejected, about, folder, ready)
        for name, copy in copies.items():
            if not (ready / f"{name}.mp4").is_file():
                (folder / f"{copy.key}.mp4").rename(ready / f"{name}.mp4")
        if out.exists():
            out.rmdir()
        ready.rename(out)
        shutil.rmtree(folder)
    except OSError as error:
        raise schema.InputError(
            f"{out} cannot be written: {error.strerror or error}; the same command "
            "goes on with the copies made so far"
        ) from error
    return _report(given.out)


def _check(given: Options) -> list[str]:
    """Refuses useless options; returns the flaws that are asked for, in any order."""
    chosen = [name.strip() for name in given.flaws.split(",")]
    known = degrade_plan.FLAWS
    if unknown := [flaw for flaw in chosen if flaw not in known]:
        raise schema.InputError(
            f"unknown flaw {unknown[0]!r}; available: {', '.join(known)}"
        )
    if len(set(chosen)) < len(chosen):
        raise schema.InputError(f"a flaw is asked for twice: {','.join(chosen)}")
    if given.per_clip < 2:
        raise schema.InputError(
            f"{given.per_clip} copies of a clip; expected at least 2, the first is "
            "flawless"
        )
    if given.seed < 0:
        raise schema.InputError(f"seed is {given.seed}; expected 0 or more")
    if not given.max_seconds > 0:
        raise schema.InputError(
            f"max_seconds is {given.max_seconds}; expected a positive number"
        )
    return [flaw for flaw in known if flaw in chosen]


def _items(clips: pathlib.Path, rated: pathlib.Path | None) -> Sequence[Item]:
    """Lists the clips with sources and splits."""
    if rated is not None:
        return labels.read(rated, clips, scored=False).items
    if not clips.is_dir():
        raise schema.InputError(f"no folder of clips at {clips}")
    paths = files.videos(clips)
    if not paths:
        raise schema.InputError(
            f"no clip in {clips}; expected files such as {clips / 'clip.mp4'}"
        )
    names = files.ids(paths, clips)
    splits = dict.fromkeys(names, "train")
    if len(names) >= len(folds.SPLIT_SHARES):
        splits = folds.draw_splits(dict.fromkeys(names, 1), seed=0, path=clips)
    return [
        Item(path, name, name, splits[name], {})
        for path, name in zip(paths, names, strict=True)
    ]


def _plant(
    items: Sequence[Item],
    contents: Mapping[str, str],
    rejected: Mapping[str, str],
    chosen: Sequence[str],
    folder: pathlib.Path,
    ready: pathlib.Path,
    model: pathlib.Path,
    given: Options,
) -> tuple[dict[str, Copy], dict[str, str]]:
    """Hears all clips and plants the flaws, `<key>.mp4` and `<key>.json` in the folder.

    Copies whose `.mp4` is neither there nor under its name in `ready` are made again.

    Returns:
        The copies by name, and the reasons of rejected clips and copies.
    """
    limit = given.max_seconds
    run = functools.partial(
        jobs.make_files,
        num_workers=given.num_workers,
        timeout_seconds=60 + 20 * limit,
    )
    rejected = dict(rejected)
    items = [item for item in items if item.clip not in rejected]
    # Another limit may reject other clips.
    sounds = {text: folder / f"{text}-{limit:g}.npy" for text in contents.values()}
    useless = run(
        {contents[item.clip]: (item.path, limit) for item in items},
        planting.keep_sound,
        sounds,
        what="reading",
    )
    for item in items:
        content = contents[item.clip]
        if content in useless:
            rejected[item.clip] = useless[content]
        elif any(flaw in flaws.SOUND for flaw in chosen):
            if np.max(np.abs(np.load(sounds[content]))) < _SILENT:
                rejected[item.clip] = (
                    "the sound is silent, so that flaws of the sound have no effect"
                )
    items = [item for item in items if item.clip not in rejected]
    if "swap" in chosen:
        alone = [i for i in items if not degrade_plan.others(i, items, contents)]
        if alone:
            print(
                f"no sound is swapped into {len(alone)} clips: no other clip in their "
                "split"
            )
    copies = degrade_plan.draw(items, contents, given.per_clip, chosen, given.seed)
    work = {}
    for copy in copies:
        foreign = copy.other and sounds[contents[copy.other.clip]]
        heard = sounds[contents[copy.original.clip]]
        work[copy.key] = (copy, heard, foreign, limit, model)
    results = {key: folder / f"{key}.json" for key in work}
    named = _named(copies)
    for name, copy in named.items():
        places = (folder / f"{copy.key}.mp4", ready / f"{name}.mp4")
        if not any(place.is_file() for place in places):
            results[copy.key].unlink(missing_ok=True)
    failed = run(work, planting.plant, results, what="planting")
    rejected |= {n: failed[c.key] for n, c in named.items() if c.key in failed}
    return {n: c for n, c in named.items() if c.key not in failed}, rejected


def _named(copies: Sequence[Copy]) -> dict[str, Copy]:
    """Returns copies by a file name that any file system and table can hold."""
    plain: dict[str, str] = {}
    for name in dict.fromkeys(copy.original.clip for copy in copies):
        safe = re.sub(r"[^\w.-]+", "_", name).strip("_.")[:100] or "clip"
        number = 1
        while (free := safe if number == 1 else f"{safe}-{number}") in plain.values():
            number += 1
        plain[name] = free
    return {f"{plain[copy.original.clip]}__{copy.number:02d}": copy for copy in copies}


def _provenance(request: str, chosen: Sequence[str], given: Options) -> dict[str, Any]:
    """Says what the copies are, what each flaw means and how labels follow."""
    return {
        "kind": "degradation",
        "description": "clips with planted flaws; the labels are functions of the "
        "flaws' strengths, not opinions of people",
        "tool": "extract.degrade",
        "tool_version": tqa_jax.__version__,
        "degrade_version": degrade_plan.VERSION,
        "per_clip": given.per_clip,
        "seed": given.seed,
        **flaws.described(chosen),
        "video_codec": {"name": "libx264", "pixels": "yuv420p", "fps": FPS}
        | encode.VIDEO
        | {"x264-params": encode.SAME_BYTES},
        "audio_codec": {"name": "flac", "rate": RATE, "channels": 1, "bits": 16},
        "request": request,
    }


def _write_tables(
    copies: Mapping[str, Copy],
    rejected: Mapping[str, str],
    about: Mapping[str, Any],
    folder: pathlib.Path,
    out: pathlib.Path,
) -> None:
    """Writes labels and their origin, flaws and rejected clips."""
    scores, rows = [], []
    for name, copy in copies.items():
        original = copy.original
        cells = [f"{value:.4f}" for value in flaws.labels(copy.strengths).values()]
        scores.append([f"{name}.mp4", original.source, original.split, *cells])
        for row in json.loads((folder / f"{copy.key}.json").read_text()):
            row["strength"] = f"{row['strength']:.4f}"
            row |= {k: f"{row[k]:.4g}" for k in ("planted", "measured")}
            row["agrees"] = {True: "yes", False: "no", None: ""}[row["agrees"]]
            other = copy.other.clip if row["flaw"] == "swap" else ""
            rows.append([f"{name}.mp4", original.clip, other, *row.values()])
    tasks = [task.name for task in schema.TASKS]
    text = output.table(["clip", "source", "split", *tasks], scores)
    about = {
        **about,
        "labels_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "landmarker_sha256": landmarks.SHA256,
    }
    header = ["clip", "original", "other", *planting.COLUMNS]
    for file, content in {
        "labels.csv": text,
        "flaws.csv": output.table(header, rows),
        "rejected.csv": output.table(["clip", "reason"], rejected.items()),
        degrade_plan.FILE: json.dumps(about, indent=1) + "\n",
    }.items():
        (out / file).write_text(content, encoding="utf-8", newline="")


def _report(out: pathlib.Path) -> int:
    """Says what is in a finished folder; returns the exit status."""
    rejected, rows = [], []
    for name, table in (("rejected", rejected), ("flaws", rows)):
        with (out / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            table += csv.DictReader(file)
    for row in rejected:
        print(f"rejected {row['clip']}: {row['reason']}")
    for row in rows:
        if row["agrees"] == "no":
            print(
                f"note on {row['clip']}: {row['flaw']} was planted as {row['planted']} "
                f"{row['unit']} and measured as {row['measured']}"
            )
    agrees = [row["agrees"] for row in rows]
    print(
        f"{len(list(out.glob('*.mp4')))} clips, {len(rejected)} rejected; of "
        f"{len(rows)} planted flaws {agrees.count('yes')} were measured as planted, "
        f"{agrees.count('no')} were not, {agrees.count('')} have no value to agree with"
    )
    print(f"clips: {out}")
    return 3 if rejected else 0


if __name__ == "__main__":
    sys.exit(main())
