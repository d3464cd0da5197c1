"""The runs of a group trained together, each as if it were alone.

The one thing to know: runs take the same number of steps at a time, and between these
segments each decides for itself (`trial`). How many go through the program of a device
side by side is measured while they train: all of them use a wide machine better, one
after another keeps its data in the cache of a small one.
"""

import collections
import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tqa_jax import evaluate, fleet, pipeline, trial

# Compiling another program pays if what is left takes this many times longer, since
# what it saves is a part of that.
_WORTH = 4.0
# Places of a device unless more are asked for. Memory grows with each, and the first
# program has to fit before anything is measured.
_MOST = 16


class Report(NamedTuple):
    """What is said after each round of segments.

    Attributes:
        before: steps that all runs together had taken before the first round; 0 later.
        steps: taken by all runs together.
        ended: runs that need no more steps, with what ended them before their time,
            or None.
        seconds: of each run's share of the device.
        said: the latest validation of one of them, in a few words.
    """

    before: int
    steps: int
    ended: Mapping[int, str | None]
    seconds: Mapping[int, float]
    said: str


def train(
    trials: Mapping[int, trial.Trial],
    group: fleet.Fleet,
    *,
    clips: pipeline.Clips,
    at_once: int,
    report: Callable[[Report], None],
    stop: Callable[[], bool],
) -> bool:
    """Trains runs until all have ended.

    Args:
        trials: of the runs, by number in the group, not started.
        group: of the runs.
        clips: of the validation split.
        at_once: runs that a device works on side by side; 0 measures, up to 16.
        report: called after each round; finishes what has ended.
        stop: says whether to save everything and leave.

    Returns:
        Whether all runs have ended.
    """
    pace = _Pace(len(group.devices), at_once)
    group.load(
        {
            run: one.start(group.first_state(run), functools.partial(group.fetch, run))
            for run, one in trials.items()
        },
        at_once=pace.most(len(trials)),
    )
    # Those that had ended, but were not evaluated, when an earlier process died.
    ended = {run: None for run, one in trials.items() if one.done}
    report(Report(sum(one.step for one in trials.values()), 0, ended, {}, ""))
    while _arrange(trials, group, pace, ended):
        found = _round(trials, group, clips, pace)
        report(found)
        ended = found.ended
        if stop():
            for _, run in _live(group):
                if run not in ended:
                    trials[run].save()
            return False
    return True


def _live(group: fleet.Fleet) -> list[tuple[int, int]]:
    return [place for lane in group.lanes for place in lane.live]


def _round(
    trials: Mapping[int, trial.Trial],
    group: fleet.Fleet,
    clips: pipeline.Clips,
    pace: "_Pace",
) -> Report:
    """Takes a segment with the runs that are behind, which usually are all."""
    step = min(trials[run].step for _, run in _live(group))
    lanes = [lane for lane in group.lanes if trials[lane.live[0][1]].step == step]
    started, programs = time.monotonic(), len(group.compile_seconds)
    waiting = [
        group.run(lane, {run: trials[run].next_rows() for _, run in lane.live})
        for lane in lanes
    ]
    results = [wait() for wait in waiting]
    compiled = group.compile_seconds[programs:]
    seconds = time.monotonic() - started - sum(compiled)
    live = sum(len(lane.live) for lane in lanes)
    ended: dict[int, str | None] = {}
    for lane, result in zip(lanes, results, strict=True):
        _decide(trials, group, lane, result, clips, ended)
    _, (_, metrics) = results[0].popitem()
    steps = len(metrics["total"])
    pace.saw(sum(len(lane.runs) for lane in lanes) * steps, seconds, bool(compiled))
    shares = {run: seconds / live for lane in lanes for _, run in lane.live}
    said = next((trials[run].said for run in shares if trials[run].said), "")
    return Report(0, live * steps, ended, shares, said)


def _decide(
    trials: Mapping[int, trial.Trial],
    group: fleet.Fleet,
    lane: fleet.Lane,
    result: Mapping[int, Any],
    clips: pipeline.Clips,
    ended: dict[int, str | None],
) -> None:
    """Lets each run of a lane decide what comes next; adds those that ended."""
    whole = False
    for run, (state, metrics) in result.items():
        try:
            whole |= trials[run].took(state, metrics)
        except trial.Stopped as error:
            ended[run] = str(error)
    runs = [run for run in result if run not in ended]
    if whole and runs:
        for run, scores in group.scores(lane).items():
            if run in runs:
                mine = evaluate.pooled(scores, clips).mean(axis=0)
                trials[run].validated(mine, group.temp_bytes)
        group.validated(
            lane,
            {run: trials[run].state.progress for run in runs},
            {run for run in runs if trials[run].improved},
        )
    for run in runs:
        trials[run].save_if_due()
        if trials[run].done:
            ended[run] = None


def _arrange(
    trials: Mapping[int, trial.Trial],
    group: fleet.Fleet,
    pace: "_Pace",
    ended: Iterable[int],
) -> bool:
    """Drops what has ended and moves the rest together; False when nothing is left."""
    for run in ended:
        group.drop(run)
    runs = [run for _, run in _live(group)]
    if not runs:
        return False
    left = sum(trials[run].total_steps - trials[run].step for run in runs)
    at_once = pace.choose(len(runs), left, group.compile_seconds)
    width = at_once * len(group.devices)
    steps = collections.Counter(trials[run].step for run in runs)
    lanes = sum(-(-count // width) for count in steps.values())
    if width != len(group.lanes[0].runs) or lanes < len(group.lanes):
        group.load({run: group.fetch(run) for run in runs}, at_once=at_once)
    return True


class _Pace:
    """How many runs a device works on side by side, by what was measured so far."""

    def __init__(self, devices: int, at_once: int) -> None:
        self._devices = devices
        self._fixed = at_once
        self._now = 0
        # Seconds that a step takes in each place of a program, by places a device.
        self._seconds: dict[int, float] = {}
        self._warm: set[int] = set()

    def saw(self, steps: int, seconds: float, compiled: bool) -> None:
        """Notes a round; the first of a program warms up and does not count.

        Args:
            steps: of all places together.
            seconds: that they took, without compiling.
            compiled: whether a program was new.
        """
        if self._now in self._warm and not compiled:
            before = self._seconds.get(self._now, math.inf)
            self._seconds[self._now] = min(before, seconds / steps)
        self._warm.add(self._now)

    def most(self, runs: int) -> int:
        """Places of a device that runs can use, as far as it may have them."""
        return min(-(-runs // self._devices), self._fixed or _MOST)

    def choose(self, runs: int, left: int, compiled: Sequence[float]) -> int:
        """Chooses for the next round.

        Args:
            runs: that still train.
            left: steps of all of them, unless they stop early.
            compiled: seconds that each program took to compile.
        """
        most = self.most(runs)
        if not self._now:
            self._now = most
            return most
        if self._now not in self._seconds:
            return self._now
        new = max(compiled)
        untried = self._now > 1 and 1 not in self._warm and not self._fixed
        if untried and self._expected(self._now, runs, left) > _WORTH * new:
            self._now = 1
            return 1
        cost = {
            places: self._expected(places, runs, left)
            + (0 if places in self._warm else new)
            for places in {self._now, most, *self._seconds}
        }
        self._now = min(cost, key=cost.get)
        return self._now

    def _expected(self, places: int, runs: int, left: int) -> float:
        """Seconds for what is left, idle places included."""
        # A program that was never run is as fast as the next larger one.
        larger = [known for known in self._seconds if known >= places]
        like = min(larger, default=max(self._seconds))
        width = places * self._devices
        idle = -(-runs // width) * width / runs
        return left * idle * self._seconds[like]
