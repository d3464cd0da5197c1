"""What a person sees of long work: log lines, a bar, and that nothing hangs.

Log lines are written above the bars, see `cli.log`.
"""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator

import tqdm

_logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 20.0


@contextlib.contextmanager
def stage(what: str, *, after: float = 0.5) -> Iterator[None]:
    """Says what is being done if it takes time, and now and then that it still is.

    Args:
        what: as "compiling the training step".
        after: seconds after which it is said first.
    """
    started, done = time.monotonic(), threading.Event()

    def remind() -> None:
        wait, text = after, "%s"
        while not done.wait(wait):
            _logger.info(text, what)
            wait = _SECONDS_BETWEEN_LINES
            text = f"%s: {time.monotonic() - started + wait:.0f} s so far"

    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    finally:
        done.set()
        reminder.join()


class Progress:
    """A bar over steps or clips, or a line now and then without a terminal."""

    def __init__(
        self,
        total: int,
        taken: int = 0,
        *,
        what: str = "",
        unit: str = "step",
        shown: bool = True,
    ) -> None:
        """Starts.

        Args:
            total: units.
            taken: of them, before.
            what: is done with them; said at the start.
            unit: one of what is counted.
            shown: False shows nothing.
        """
        self.bar = tqdm.tqdm(
            total=total,
            initial=taken,
            unit=unit,
            desc=what or None,
            disable=not shown or not sys.stderr.isatty(),
        )
        self._what, self._unit = f"{what}: " if what else "", unit
        self._lines = shown and self.bar.disable
        self._total, self._done, self._first = total, taken, taken
        self._started: float | None = None
        self._last = 0.0
        if what and self._lines:
            _logger.info("%s%d of %d %ss", self._what, taken, total, unit)

    def skip(self, count: int) -> None:
        """Notes units that need not be taken."""
        self._total -= count
        self.bar.total -= count
        self.bar.refresh()

    def update(self, count: int, text: str) -> None:
        """Notes units that were taken.

        Args:
            count: how many.
            text: shown beside them.
        """
        self._done += count
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(count)
        now = time.monotonic()
        if self._started is None:  # The first waited for the compiler, or for workers.
            self._started, self._last, self._first = now, now, self._done
            return
        if self._lines and now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            rate = (self._done - self._first) / (now - self._started)
            left = tqdm.tqdm.format_interval((self._total - self._done) / rate)
            _logger.info(
                "%s%d of %d %ss, %.1f a minute, %s left%s",
                self._what,
                self._done,
                self._total,
                self._unit,
                60 * rate,
                left,
                f"; {text}" if text else "",
            )

    def close(self) -> None:
        """Leaves the bar where it is."""
        self.bar.close()
