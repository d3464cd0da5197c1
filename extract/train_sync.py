r"""Trains the sync head on a folder of clips, without labels.

    python -m extract.train_sync --clips=my_clips/ --out=sync_head.npz --evaluate

Most of the clips should be in sync, see `extract.sync_fit`.

`--evaluate` leaves out one clip at a time, trains on the others, shifts the sound of
the one left out by -15 to 15 frames and counts how often 4 s of it show the shift.
Exit status 0: done; 3: done, and some clips could not be used; 2: nothing was made.
"""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from tqa_jax import cli, display, schema

with cli.imports():
    from extract import clip as clip_lib
    from extract import decode, files, jobs, landmarks, sync_fit
    from extract.backends import head as sync_head


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(clip_lib.Given):
    """The command line."""

    clips: pathlib.Path
    """Folder of video files, at any depth."""
    out: pathlib.Path
    """The file to write, .npz."""
    evaluate: bool = False
    """First print how often heads find planted shifts in clips left out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return cli.main(_run, Options, arguments, stopped="stopped; nothing was written")


def _run(options: Options) -> int:
    folder, out = options.clips, options.out
    if not folder.is_dir():
        raise schema.InputError(f"no folder of clips at {folder}")
    if not out.parent.is_dir():
        raise schema.InputError(f"{out} cannot be written: no folder {out.parent}")
    if out.suffix != ".npz" or out.is_dir():
        raise schema.InputError(f"--out is {out}; expected a file that ends in .npz")
    if out.exists():
        sync_head.load(out)  # only another head is replaced
    if not options.max_seconds > 0:
        raise schema.InputError(
            f"--max_seconds is {options.max_seconds}; expected a positive number"
        )
    model = landmarks.find_model(options.landmarker)
    paths = files.videos(folder)
    if not paths:
        raise schema.InputError(
            f"no videos in {folder}; expected files such as .mp4, at any depth"
        )
    _check_length(paths, options.max_seconds, options.evaluate)
    landmarks.check_library(model)
    limit = options.max_seconds
    number = jobs.count(options.num_workers, len(paths))
    names = [path.relative_to(folder).as_posix() for path in paths]
    work = {n: (path, model, limit) for n, path in zip(names, paths, strict=True)}
    found = {}  # faces and sound by name, or why there are none
    with (
        contextlib.closing(jobs.progress_of(len(work), what="faces found")) as progress,
        contextlib.closing(jobs.Workers(number)) as workers,
    ):
        for name, clip in workers.run(
            clip_lib.watch, work, timeout_seconds=60 + 5 * limit
        ):
            found[name] = clip
            progress.update(1, "")
    clips = {}
    for name in names:
        if isinstance(found[name], jobs.Failure):
            print(f"left out {name}: {found[name].reason}")
        else:
            clips[name] = found[name]
    head = sync_fit.fit([sync_fit.described(clip) for clip in clips.values()])
    if options.evaluate:
        with display.stage("testing heads on clips left out"):
            table = sync_fit.evaluate(clips)
        print(table)
    sync_head.save(out, head)
    print(f"sync head of {head.num_clips} clips, {head.seconds:.0f} s: {out}")
    return 3 if len(clips) < len(names) else 0


def _check_length(
    paths: Sequence[pathlib.Path], max_seconds: float, evaluate: bool
) -> None:
    """Refuses clips that are too short together, by their headers and before the work.

    Raises:
        schema.InputError: with the seconds that there are and those that are needed.
    """
    if evaluate and len(paths) < 2:
        raise schema.InputError("one clip: --evaluate needs others to train on")
    total = longest = 0.0
    for path in paths:
        try:
            seconds = decode.stated_seconds(path)
        except decode.ClipError:
            continue  # It will be left out.
        if seconds is None:
            return  # It shows when the clip is decoded.
        if seconds <= max_seconds:
            total, longest = total + seconds, max(longest, seconds)
        if total - evaluate * longest >= sync_fit.MIN_SECONDS:
            return
    less = f", {total - longest:.1f} s without the longest" if evaluate else ""
    raise schema.InputError(
        f"the clips last {total:.1f} s together{less}; {sync_fit.NEEDED}"
    )


if __name__ == "__main__":
    sys.exit(main())
