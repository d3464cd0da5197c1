"""Makes degraded copies of a folder of clips: worker processes, resumable, checked.

The one thing to know: sound and finished copies are kept in `<out>.partial/` under
digests of everything they depend on; `<out>` itself appears complete at the end.
Whatever stops the job in between, the same call goes on where it was.
"""

import csv
import dataclasses
import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence

import numpy as np

from extract import decode, files, folds, jobs, labels, landmarks, measure
from extract.degrading import degrade_plan, planted, planting
from extract.degrading.degrade_plan import Copy, Original
from extract.rendering import demo_plan
from tqa_jax import output, schema

_HEADER = "clip,original,other,flaw,strength,unit,planted,measured,agrees".split(",")


@dataclasses.dataclass(frozen=True)
class Summary:
    """What planting did.

    Attributes:
        copies: how many are in the folder.
        rejected: clip or copy and reason.
        rows: of `flaws.csv`, as text by column.
        notes: what a person should know.
    """

    copies: int
    rejected: tuple[tuple[str, str], ...]
    rows: tuple[Mapping[str, str], ...]
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        """Returns the summary in one line for people."""
        found = [row["agrees"] for row in self.rows]
        known = [text for text in found if text]
        return (
            f"{self.copies} clips, {len(self.rejected)} rejected; of {len(found)} "
            f"planted flaws {known.count('yes')} were measured as planted, "
            f"{known.count('no')} were not, {found.count('')} have no value to agree "
            "with"
        )


def build(
    clips: pathlib.Path,
    out: pathlib.Path,
    *,
    rated: pathlib.Path | None = None,
    per_clip: int = 6,
    chosen: Sequence[str] = degrade_plan.FLAWS,
    seed: int = 0,
    num_workers: int | None = None,
    max_seconds: float = 120.0,
    landmarker: str | None = None,
) -> Summary:
    """Makes degraded copies of all clips in a folder.

    Args:
        clips: folder of video files, at any depth.
        out: the folder to make.
        rated: labels file of the clips, whose sources and splits are kept; None takes
            each clip for a source of its own.
        per_clip: copies of each clip, the flawless one among them.
        chosen: flaws to plant.
        seed: of everything that is drawn.
        num_workers: processes; None takes as many as cores and memory allow.
        max_seconds: longer clips are rejected.
        landmarker: path of `face_landmarker.task`; None finds the packaged one.

    Raises:
        schema.InputError: for unusable arguments, a folder that holds something else,
            or no usable clip.
    """
    degrade_plan.check(per_clip, chosen, seed)
    chosen = [flaw for flaw in degrade_plan.FLAWS if flaw in chosen]  # in any order
    if not max_seconds > 0:
        raise schema.InputError(
            f"max_seconds is {max_seconds}; expected a positive number"
        )
    model = landmarks.find_model(landmarker)
    clips, out = pathlib.Path(clips).absolute(), pathlib.Path(out).absolute()
    if out.is_relative_to(clips):
        raise schema.InputError(
            f"{out} is in the folder of the clips; copies there would be taken for "
            "clips the next time: choose another --out"
        )
    originals, unreadable = _originals(clips, rated)
    request = measure.digest(
        [degrade_plan.request(originals, per_clip, chosen, seed), max_seconds]
        + [[name for name, _ in unreadable]]
    )
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        return _finished(out, request)
    if "damping" in chosen:
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
        return _make(
            originals,
            unreadable,
            folder,
            out,
            per_clip=per_clip,
            chosen=chosen,
            seed=seed,
            num_workers=num_workers,
            max_seconds=max_seconds,
            model=model,
            request=request,
        )
    except OSError as error:
        raise schema.InputError(
            f"{out} cannot be written: {error.strerror or error}; the same command "
            "goes on with the copies made so far"
        ) from error


def _originals(
    clips: pathlib.Path, rated: pathlib.Path | None
) -> tuple[list[Original], list[tuple[str, str]]]:
    """Lists the clips with sources and splits, and those that cannot be read."""
    if rated is not None:
        table = labels.read(rated, clips, scored=False)
        listed = [
            (item.path, item.clip, item.source, item.split) for item in table.items
        ]
    else:
        if not clips.is_dir():
            raise schema.InputError(f"no folder of clips at {clips}")
        paths = files.videos(clips)
        if not paths:
            raise schema.InputError(
                f"no clip in {clips}; expected files such as {clips / 'clip.mp4'}"
            )
        ids = files.ids(paths, clips)
        if len(ids) < len(folds.SPLIT_SHARES):
            split_of = dict.fromkeys(ids, "train")
        else:
            split_of = folds.draw_splits(dict.fromkeys(ids, 1), seed=0, path=clips)
        listed = [
            (path, name, name, split_of[name])
            for path, name in zip(paths, ids, strict=True)
        ]
    originals, unreadable = [], []
    for path, name, source, split in listed:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            unreadable.append((name, f"cannot be read: {error.strerror}"))
            continue
        originals.append(Original(path, name, source, split, content))
    return originals, unreadable


def _make(
    originals: Sequence[Original],
    unreadable: Sequence[tuple[str, str]],
    folder: pathlib.Path,
    out: pathlib.Path,
    *,
    per_clip: int,
    chosen: Sequence[str],
    seed: int,
    num_workers: int | None,
    max_seconds: float,
    model: pathlib.Path,
    request: str,
) -> Summary:
    """Hears all clips, plants the flaws, and puts the folder together."""
    timeout = 60 + 20 * max_seconds
    of_sound = any(flaw in degrade_plan.SOUND for flaw in chosen)
    # Another limit may reject other clips.
    sounds = {
        item.content: folder / f"{item.content}-{max_seconds:g}.npy"
        for item in originals
    }
    useless = jobs.make_files(
        {item.content: (item.path, max_seconds) for item in originals},
        _hear,
        sounds,
        num_workers=num_workers,
        timeout_seconds=timeout,
        what="reading",
    )
    rejected, usable = list(unreadable), []
    for item in originals:
        reason = useless.get(item.content)
        if reason is None and of_sound and _silent(sounds[item.content]):
            reason = "the sound is silent, so that flaws of the sound have no effect"
        if reason is None:
            usable.append(item)
        else:
            rejected.append((item.clip, reason))
    copies = degrade_plan.draw(usable, per_clip, chosen, seed)
    failed = jobs.make_files(
        {
            copy.key: (
                copy,
                sounds[copy.original.content],
                copy.other and sounds[copy.other.content],
                max_seconds,
                model,
            )
            for copy in copies
        },
        _plant,
        {copy.key: folder / f"{copy.key}.json" for copy in copies},
        num_workers=num_workers,
        timeout_seconds=timeout,
        what="planting",
    )
    names = _names(copies)
    good = [copy for copy in copies if copy.key not in failed]
    rejected += [(names[c.key], failed[c.key]) for c in copies if c.key in failed]
    if not good:
        shutil.rmtree(folder)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected[:3])
        raise schema.InputError(
            f"none of {len(originals) + len(unreadable)} clips can be used, nothing is "
            f"made ({reasons})"
        )
    notes = []
    if "swap" in chosen:
        alone = sum(_is_alone(item, usable) for item in usable)
        if alone:
            notes.append(
                f"no sound is swapped into {alone} clips: no other clip in their split"
            )
    rows = _rows(good, names, folder)
    text = _labels(good, names)
    about = degrade_plan.describe(
        request, text, per_clip=per_clip, chosen=chosen, seed=seed
    )
    about["landmarker_sha256"] = landmarks.SHA256
    # Tables first: after them nothing needs room on the disk any more.
    ready = folder / "ready"
    if ready.exists():
        shutil.rmtree(ready)
    ready.mkdir()
    _write(ready / degrade_plan.LABELS, text)
    _write(
        ready / "flaws.csv", output.table(_HEADER, [list(row.values()) for row in rows])
    )
    _write(ready / "rejected.csv", output.table(["clip", "reason"], rejected))
    _write(ready / degrade_plan.FILE, json.dumps(about, indent=1) + "\n")
    for copy in good:
        (folder / f"{copy.key}.mp4").rename(ready / f"{names[copy.key]}.mp4")
    if out.exists():
        out.rmdir()
    ready.rename(out)
    shutil.rmtree(folder)
    return Summary(len(good), tuple(rejected), tuple(rows), tuple(notes))


def _hear(path: pathlib.Path, max_seconds: float, result: pathlib.Path) -> None:
    """Keeps the sound of a clip, in a worker."""
    samples = planting.hear(path, max_seconds)
    with output.atomic(result) as part, part.open("wb") as file:
        np.save(file, samples)


def _plant(
    copy: Copy,
    heard: pathlib.Path,
    foreign: pathlib.Path | None,
    max_seconds: float,
    model: pathlib.Path,
    result: pathlib.Path,
) -> None:
    """Makes a copy and measures it, in a worker."""
    samples = np.load(heard)
    other = None if foreign is None else np.load(foreign)
    faces = None
    if "damping" in copy.strengths:
        faces = planting.find_faces(copy.original.path, model, max_seconds)
    path = result.with_suffix(".mp4")
    planting.plant(copy, samples, other, path, max_seconds=max_seconds, faces=faces)
    try:
        found = planted.measure(
            copy, samples, path, max_seconds=max_seconds, faces=faces, model=model
        )
    except decode.ClipError:
        path.unlink()
        raise
    with output.atomic(result) as part:
        part.write_text(json.dumps([dataclasses.asdict(item) for item in found]))


def _silent(path: pathlib.Path) -> bool:
    return planting.is_silent(np.load(path))


def _is_alone(item: Original, usable: Sequence[Original]) -> bool:
    return not any(
        other.split == item.split and other.content != item.content for other in usable
    )


def _names(copies: Sequence[Copy]) -> dict[str, str]:
    """Returns a file name for each copy that any file system and table can hold."""
    ids = list(dict.fromkeys(copy.original.clip for copy in copies))
    plain, taken = {}, set()
    for name in ids:
        safe = re.sub(r"[^\w.-]+", "_", name).strip("_.")[:100] or "clip"
        number = 1
        while (free := safe if number == 1 else f"{safe}-{number}") in taken:
            number += 1
        taken.add(free)
        plain[name] = free
    return {
        copy.key: f"{plain[copy.original.clip]}__{copy.number:02d}" for copy in copies
    }


def _labels(copies: Sequence[Copy], names: Mapping[str, str]) -> str:
    tasks = [task.name for task in schema.TASKS]
    rows = []
    for copy in copies:
        scores = demo_plan.labels(copy.strengths)
        rows.append(
            [f"{names[copy.key]}.mp4", copy.original.source, copy.original.split]
            + [f"{scores[task]:.4f}" for task in tasks]
        )
    return output.table(["clip", "source", "split", *tasks], rows)


def _rows(
    copies: Sequence[Copy], names: Mapping[str, str], folder: pathlib.Path
) -> list[dict[str, str]]:
    """Returns the rows of `flaws.csv`."""
    agrees = {True: "yes", False: "no", None: ""}
    rows = []
    for copy in copies:
        for found in json.loads((folder / f"{copy.key}.json").read_text()):
            swapped = copy.other.clip if found["flaw"] == "swap" else ""
            cells = [f"{names[copy.key]}.mp4", copy.original.clip, swapped]
            cells += [found["flaw"], f"{found['strength']:.4f}"]
            cells += [found["unit"]]
            cells += [f"{found[name]:.4g}" for name in ("planted", "measured")]
            cells += [agrees[found["agrees"]]]
            rows.append(dict(zip(_HEADER, cells, strict=True)))
    return rows


def _finished(out: pathlib.Path, request: str) -> Summary:
    """Returns the summary of the folder that is there, if it is the one asked for."""
    about = None
    if (out / degrade_plan.LABELS).is_file():
        about = degrade_plan.provenance(out / degrade_plan.LABELS)
    if about is None or about.get("request") != request:
        raise schema.InputError(
            f"{out} is there and was not made from these clips and options; choose "
            "another --out or remove it"
        )
    with (out / "rejected.csv").open(newline="", encoding="utf-8") as file:
        rejected = tuple((row["clip"], row["reason"]) for row in csv.DictReader(file))
    with (out / "flaws.csv").open(newline="", encoding="utf-8") as file:
        rows = tuple(csv.DictReader(file))
    return Summary(len(list(out.glob("*.mp4"))), rejected, rows)


def _write(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")
