"""Builds a data set out of clips: worker processes, resumable, rejected clips listed.

The one thing to know: each finished clip is saved in `<out>.partial/` at once, under a
name made of its content and the options; the data set itself appears complete at the
end. Whatever stops the job in between, the same command goes on where it was.
"""

import collections
import contextlib
import csv
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from extract import backends, landmarks, pool
from extract import clip as clips
from tqa_jax import machine, output, records, schema


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
        progress: what was measured now; the other clips were measured earlier.
    """

    info: schema.DatasetInfo
    rejected: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...] = ()
    progress: pool.Progress = dataclasses.field(default_factory=pool.Progress)

    def line(self) -> str:
        """Returns the summary in one line for people."""
        count = sum(split.clips for split in self.info.splits.values())
        parts = [f"{count} clips in the set, {len(self.rejected)} rejected"]
        done = self.progress
        if done.measured:
            speed = done.video_seconds / max(done.wall_seconds, 1e-9)
            parts.append(
                f"measured {done.measured} clips, {done.video_seconds / 60:.1f} "
                f"minutes of video, {speed:.1f} times faster than real time"
            )
            rates = ", ".join(f"{k} {v:,.0f}" for k, v in done.rates().items())
            parts.append(f"rows a second: {rates}; limited by {done.limit()}")
        else:
            parts.append("nothing had to be measured")
        return "; ".join(parts)


def build(
    items: Sequence[Item],
    out: str | pathlib.Path,
    *,
    tasks: Sequence[schema.Task],
    name: str,
    provenance: Mapping[str, Any],
    options: backends.Options | None = None,
    num_workers: int | None = None,
    dtype: str = "float16",
    timeout_seconds: float | None = None,
    measure: Callable[..., pool.Progress] = pool.measure,
) -> Summary:
    """Measures clips and writes them as a data set.

    Args:
        items: the clips, in the order in which the set holds them.
        out: the folder to make.
        tasks: the set's tasks; the items' labels are scores of them.
        name: the set's name, letters, digits and underscores.
        provenance: who made the set and how; the extractor adds its part.
        options: how clips are measured.
        num_workers: processes; None takes one for each CPU core.
        dtype: how features are stored, `float16` or `float32`.
        timeout_seconds: a clip that takes longer is rejected; None takes one minute
            and five times `options.max_seconds`.
        measure: runs the measuring, as `pool.measure` does.

    Returns:
        What was done. The folder holds `rejected.csv` and `notes.csv` as well.

    Raises:
        schema.InputError: for unusable arguments, a folder that holds another set,
            no usable clip, or no usable clip for training.
    """
    options = options or backends.options()
    out = pathlib.Path(out).absolute()
    model = clips.check(options)
    of = schema.Schema(modalities=backends.describe(options), tasks=tuple(tasks))
    _check_items(items, of, name, dtype)
    for setting in options.settings:
        if hasattr(setting.module, "file"):
            _check_files(items, setting)
    keys = [pool.fingerprint(item.path, options) for item in items]
    request = _request(items, keys, of, name, dtype)
    if out.exists() and not _is_empty(out):
        return _finished(out, request)
    landmarks.check_library(model)
    partial = out.with_name(out.name + ".partial")
    with _writing(out):
        partial.mkdir(parents=True, exist_ok=True)
        if out.exists():
            out.rmdir()
    with output.lock(partial / ".lock"):
        return _build(
            items,
            keys,
            out,
            partial,
            of,
            request,
            name=name,
            provenance=provenance,
            options=options,
            dtype=dtype,
            measure=functools.partial(
                measure,
                num_workers=num_workers or machine.cores(),
                timeout_seconds=timeout_seconds or 60 + 5 * options.max_seconds,
            ),
        )


def _build(
    items: Sequence[Item],
    keys: Sequence[str],
    out: pathlib.Path,
    partial: pathlib.Path,
    of: schema.Schema,
    request: str,
    *,
    name: str,
    provenance: Mapping[str, Any],
    options: backends.Options,
    dtype: str,
    measure: Callable[..., pool.Progress],
) -> Summary:
    """Builds what `build` has checked."""
    pairs = list(zip(keys, items, strict=True))
    done = measure(
        {key: item.path for key, item in pairs},
        partial,
        options,
    )
    rejected = tuple(
        (item.clip, done.rejected[key]) for key, item in pairs if key in done.rejected
    )
    usable = [(key, item) for key, item in pairs if key not in done.rejected]
    _check_usable(usable, rejected, partial, keys)
    notes: list[tuple[str, str]] = []
    for key, item in usable:
        notes += [(item.clip, note) for note in pool.load(partial, key).notes]
    with _writing(out):
        info = records.write_dataset(
            out,
            _records(usable, partial, of),
            name=name,
            schema=of,
            provenance={
                **provenance,
                "extraction": {
                    "options": pool.public(options),
                    "request": request,
                    "rejected": len(rejected),
                },
            },
            dtype=dtype,
            files={
                "rejected.csv": output.table(("clip", "reason"), rejected),
                "notes.csv": output.table(("clip", "note"), notes),
            },
        )
    pool.clear(partial)
    return Summary(
        info=info,
        rejected=rejected,
        notes=tuple(notes),
        progress=done,
    )


def _check_items(
    items: Sequence[Item], of: schema.Schema, name: str, dtype: str
) -> None:
    """Refuses before hours of work what writing would refuse after them."""
    if not name.isidentifier():
        raise schema.InputError(
            f"data set name {name!r} must be letters, digits and underscores"
        )
    if dtype not in records.DTYPES:
        raise schema.InputError(
            f"unknown storage dtype {dtype!r}; available: {', '.join(records.DTYPES)}"
        )
    if not items:
        raise schema.InputError("a data set needs at least one clip; got none")
    repeated = collections.Counter(item.clip for item in items).most_common(1)[0]
    if repeated[1] > 1:
        raise schema.InputError(f"clip {repeated[0]!r} comes twice")
    sources: dict[str, set[str]] = collections.defaultdict(set)
    for item in items:
        sources[item.split].add(item.source)
        unknown = set(item.labels) - set(of.task_names)
        if unknown:
            raise schema.InputError(
                f"clip {item.clip!r} has a label for {min(unknown)!r}; "
                f"tasks: {', '.join(of.task_names)}"
            )
        for task in of.tasks:
            value = item.labels.get(task.name, math.nan)
            if not (math.isnan(value) or task.low <= value <= task.high):
                raise schema.InputError(
                    f"clip {item.clip!r}: {task.name} is {value:g}; "
                    f"expected {task.low:g} to {task.high:g}"
                )
        if not set(item.absent) < set(of.widths):
            raise schema.InputError(
                f"clip {item.clip!r} leaves out {', '.join(item.absent)}; expected "
                f"some, not all, of {', '.join(of.widths)}"
            )
    schema.check_splits({split: tuple(names) for split, names in sources.items()})
    if not any(item.split == "train" for item in items):
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


def _check_usable(
    usable: Sequence[tuple[str, Item]],
    rejected: Sequence[tuple[str, str]],
    partial: pathlib.Path,
    keys: Sequence[str],
) -> None:
    reasons = "; ".join(f"{clip}: {reason}" for clip, reason in rejected[:3])
    if len(rejected) > 3:
        reasons += f"; and {len(rejected) - 3} more"
    if not usable:
        pool.clear(partial, keys)
        raise schema.InputError(
            f"none of {len(rejected)} clips can be used, no data set is made "
            f"({reasons})"
        )
    if not any(item.split == "train" for _, item in usable):
        raise schema.InputError(
            "no clip of the train split can be used, no data set is made; move clips "
            f"there in the labels file ({reasons})"
        )


def _records(
    usable: Sequence[tuple[str, Item]], partial: pathlib.Path, of: schema.Schema
) -> Iterator[tuple[str, records.Clip]]:
    """Yields split and clip, one in memory at a time."""
    for key, item in usable:
        measured = pool.load(partial, key)
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


def _request(items, keys, of: schema.Schema, name: str, dtype: str) -> str:
    """Returns a digest of everything that the content of the set depends on."""
    listed = [
        (key, item.clip, item.source, item.split, dict(item.labels), item.absent)
        for key, item in zip(keys, items, strict=True)
    ]
    return pool.digest([listed, of.to_json(), name, dtype])


@contextlib.contextmanager
def _writing(out: pathlib.Path) -> Iterator[None]:
    """Turns what the disk refuses into a line that says so."""
    try:
        yield
    except OSError as error:
        raise schema.InputError(
            f"{out} cannot be written: {error.strerror}; the same command goes on "
            "with the clips measured so far"
        ) from error


def _is_empty(out: pathlib.Path) -> bool:
    return out.is_dir() and not any(out.iterdir())


def _finished(out: pathlib.Path, request: str) -> Summary:
    """Returns the summary of the set that is there, if it is the one asked for."""
    if not (out / "dataset.json").is_file():
        raise schema.InputError(f"{out} is there and no data set; choose another --out")
    info = schema.load(out)
    made = info.provenance.get("extraction", {}).get("request")
    if made != request:
        raise schema.InputError(
            f"{out} holds a data set made from other clips, labels or options; "
            "choose another --out or remove it"
        )
    with (out / "rejected.csv").open(newline="", encoding="utf-8") as file:
        rejected = tuple((row["clip"], row["reason"]) for row in csv.DictReader(file))
    return Summary(info=info, rejected=rejected)
