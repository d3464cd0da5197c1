"""Builds a data set out of clips: worker processes, resumable, rejected clips listed.

What is measured is kept in `<out>.features/` at once, by clip content and backend; the
data set itself appears complete at the end. So a stopped command goes on where it was,
and a data set made again with other clips, labels, splits or backends measures only
what is new.
"""

import collections
import csv
import dataclasses
import logging
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from extract import backends, jobs, landmarks, measure
from extract import clip as clips
from tqa_jax import output, records, schema

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Item:
    """One clip to measure.

    Attributes:
        path: the video file.
        clip: id, unique in the set.
        source: the speaker or source video.
        split: of `schema.SPLITS`.
        labels: scores by task; a task that is not there has no label.
        absent: modalities that are left out of this clip on purpose.
    """

    path: pathlib.Path
    clip: str
    source: str
    split: str
    labels: Mapping[str, float]
    absent: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Summary:
    """What building a set did.

    Attributes:
        info: the data set's description.
        rejected: clip and reason of each clip that could not be used.
        notes: clip and note, for clips that are in the set.
        tally: what was measured now, not earlier.
    """

    info: schema.DatasetInfo
    rejected: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...] = ()
    tally: measure.Tally = dataclasses.field(default_factory=measure.Tally)

    def line(self) -> str:
        """Returns the summary in one line for people."""
        count = sum(split.clips for split in self.info.splits.values())
        return (
            f"{count} clips in the set, {len(self.rejected)} rejected; "
            f"{self.tally.line()}"
        )


def local(
    work: Mapping[str, measure.Job],
    store: measure.Store,
    keys: Mapping[str, measure.Fingerprint],
    options: backends.Options,
    tally: measure.Tally,
    **how: Any,
) -> dict[str, str]:
    """Measures clips on this machine and keeps them.

    Args:
        work: clips to measure, see `measure.measured`.
        store: where results are kept.
        keys: fingerprints of the clips.
        options: how clips are measured.
        tally: gets what was done.
        **how: further arguments of `measure.measured`.

    Returns:
        Reasons of the clips that could not be used.
    """
    reasons = {}
    for key, clip in measure.measured(work, options, tally, **how):
        store.keep(keys[key], clip)
        if isinstance(clip, jobs.Failure):
            reasons[key] = clip.reason
    return reasons


def build(
    items: Sequence[Item],
    out: str | pathlib.Path,
    *,
    tasks: Sequence[schema.Task],
    name: str,
    provenance: Mapping[str, Any],
    options: backends.Options | None = None,
    features: pathlib.Path | None = None,
    num_workers: int | None = None,
    dtype: str = "float16",
    timeout_seconds: float | None = None,
    device_batch: int | None = None,
    run: Callable[..., dict[str, str]] = local,
) -> Summary:
    """Measures clips and writes them as a data set.

    Args:
        items: the clips, in the order in which the set holds them.
        out: the folder to make; another set that this function made is replaced.
        tasks: scored by the items' labels.
        name: letters, digits and underscores.
        provenance: who made the set and how; the extractor adds its part.
        options: how clips are measured.
        features: folder where what is measured is kept; None takes `<out>.features`.
        num_workers: see `measure.measured`.
        dtype: how features are stored, of `records.DTYPES`.
        timeout_seconds: see `measure.measured`.
        device_batch: see `measure.measured`.
        run: measures, as `local` does.

    Returns:
        What was done. The folder holds `rejected.csv` and `notes.csv` as well.

    Raises:
        schema.InputError: there is something else in the folder, no usable clip, or
            none for training.
    """
    options = options or backends.options()
    out = pathlib.Path(out).absolute()
    model = clips.check(options)
    of = schema.Schema(modalities=backends.describe(options), tasks=tuple(tasks))
    _check_items(items, name)
    for setting in options.settings:
        if hasattr(setting.module, "file"):
            _check_files(items, setting)
    keys = {item.clip: measure.fingerprint(item.path, options) for item in items}
    listed = [
        (keys[i.clip].clip, i.clip, i.source, i.split, dict(i.labels), i.absent)
        for i in items
    ]
    # Of everything that the content of the set depends on.
    request = measure.digest([listed, of.to_json(), name, dtype])
    if there := _there(out, of, request):
        return there
    landmarks.check_library(model)
    store = measure.Store(features or out.with_name(out.name + ".features"))
    tally = measure.Tally()
    with jobs.writing(out):
        store.folder.mkdir(parents=True, exist_ok=True)
    with output.lock(store.folder / ".lock"):
        reasons: dict[str, str] = {}  # by digest: clips may have the same content
        work, wanted = {}, {}
        for item in items:
            key = keys[item.clip]
            if (reason := store.reason(key)) is not None:
                reasons[key.clip] = reason
            elif missing := store.missing(key, options.max_seconds):
                work[key.clip] = measure.Job(item.path, tuple(missing))
                wanted[key.clip] = key
        reasons |= run(
            work,
            store,
            wanted,
            options=options,
            tally=tally,
            num_workers=num_workers,
            timeout_seconds=timeout_seconds,
            device_batch=device_batch,
        )
        rejected = {
            item.clip: reasons[keys[item.clip].clip]
            for item in items
            if keys[item.clip].clip in reasons
        }
        usable = [item for item in items if item.clip not in rejected]
        _check_usable(usable, rejected)
        notes: list[tuple[str, str]] = []
        for item in usable:
            notes += [(item.clip, note) for note in store.load(keys[item.clip]).notes]
        with jobs.writing(out):
            info = records.write_dataset(
                out,
                _records(usable, keys, store, of),
                name=name,
                schema=of,
                provenance={
                    **provenance,
                    "extraction": {
                        "options": measure.public(options),
                        "request": request,
                        "rejected": len(rejected),
                    },
                },
                dtype=dtype,
                files={
                    "rejected.csv": output.table(("clip", "reason"), rejected.items()),
                    "notes.csv": output.table(("clip", "note"), notes),
                },
                replace=True,
            )
    return Summary(info, tuple(rejected.items()), tuple(notes), tally)


def _check_items(items: Sequence[Item], name: str) -> None:
    """Refuses before hours of work what writing would refuse after them."""
    schema.check_names("data set", [name])
    sources: dict[str, list[str]] = collections.defaultdict(list)
    for item in items:
        sources[item.split].append(item.source)
    schema.check_splits(sources)
    if "train" not in sources:
        raise schema.InputError("no clip is in the train split; expected at least one")


def _check_files(items: Sequence[Item], setting: backends.Setting) -> None:
    """Refuses clips that share a file beside them, and clips of which none has one."""
    taken: dict[pathlib.Path, str] = {}
    for item in items:
        file = setting.module.file(item.path, setting)
        if taken.setdefault(file, item.clip) != item.clip:
            raise schema.InputError(
                f"clips {taken[file]!r} and {item.clip!r} would both take the file "
                f"{file.name} of {setting.name}; give their files different names"
            )
    if not any(file.is_file() for file in taken):
        first = min(taken)
        raise schema.InputError(
            f"{first.parent} has no file of any clip for {setting.name}; expected "
            f"<clip>{first.suffix}, for example {first.name}"
        )


def _check_usable(usable: Sequence[Item], rejected: Mapping[str, str]) -> None:
    reasons = "; ".join(f"{clip}: {why}" for clip, why in list(rejected.items())[:3])
    if len(rejected) > 3:
        reasons += f"; and {len(rejected) - 3} more"
    if not usable:
        raise schema.InputError(
            f"none of {len(rejected)} clips can be used, no data set is made "
            f"({reasons})"
        )
    if not any(item.split == "train" for item in usable):
        raise schema.InputError(
            "no clip of the train split can be used, no data set is made; move clips "
            f"there in the labels file ({reasons})"
        )


def _records(
    usable: Sequence[Item],
    keys: Mapping[str, measure.Fingerprint],
    store: measure.Store,
    of: schema.Schema,
) -> Iterator[tuple[str, records.Clip]]:
    """Yields split and clip, one in memory at a time."""
    for item in usable:
        measured = store.load(keys[item.clip])
        features, masks = dict(measured.features), dict(measured.frame_mask)
        for name in item.absent:
            features[name] = np.full_like(features[name], np.nan)
            masks[name] = np.zeros_like(masks[name])
        labels = [item.labels.get(name, math.nan) for name in of.task_names]
        yield (
            item.split,
            records.Clip(
                clip=item.clip,
                source=item.source,
                features=features,
                frame_mask=masks,
                labels=np.array(labels, np.float32),
            ),
        )


def _there(out: pathlib.Path, of: schema.Schema, request: str) -> Summary | None:
    """Returns the summary of the set that is there, if it is the one asked for.

    Raises:
        schema.InputError: there is something that this module has not made.
    """
    if not out.exists() or out.is_dir() and not any(out.iterdir()):
        return None
    if not (out / "dataset.json").is_file():
        raise schema.InputError(f"{out} is there and no data set; choose another --out")
    info = schema.load(out)
    made = info.provenance.get("extraction", {}).get("request")
    if made is None:
        raise schema.InputError(
            f"{out} holds a data set that was not measured from clips; choose another "
            "--out or remove it"
        )
    if made != request:
        now = {modality.name for modality in of.modalities}
        gone = [one.name for one in info.schema.modalities if one.name not in now]
        _logger.info(
            "%s was made of other labels, clips, splits or backends%s; it will be "
            "replaced",
            out,
            f" and has {', '.join(gone)}, which is not asked for now" if gone else "",
        )
        return None
    with (out / "rejected.csv").open(newline="", encoding="utf-8") as file:
        rejected = tuple((row["clip"], row["reason"]) for row in csv.DictReader(file))
    return Summary(info=info, rejected=rejected)
