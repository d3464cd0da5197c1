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
    """A bar over steps, or a line now and then without a terminal."""

    def __init__(self, total: int, taken: int = 0, *, shown: bool = True) -> None:
        """Starts.

        Args:
            total: steps.
            taken: of them, before.
            shown: False shows nothing.
        """
        self.bar = tqdm.tqdm(
            total=total,
            initial=taken,
            unit="step",
            disable=not shown or not sys.stderr.isatty(),
        )
        self._shown, self._taken, self._left = shown, 0, total - taken
        self._started: float | None = None
        self._last = 0.0

    def skip(self, steps: int) -> None:
        """Notes steps that need not be taken."""
        self._left -= steps
        self.bar.total -= steps
        self.bar.refresh()

    def update(self, steps: int, text: str) -> None:
        """Notes steps that were taken.

        Args:
            steps: how many.
            text: shown beside them.
        """
        self._left -= steps
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(steps)
        now = time.monotonic()
        if self._started is None:  # The first steps waited for the compiler.
            self._started = self._last = now
            return
        self._taken += steps
        late = now - self._last >= _SECONDS_BETWEEN_LINES
        if self.bar.disable and self._shown and self._taken and late:
            self._last = now
            rate = self._taken / (now - self._started)
            _logger.info(
                "%d steps left, %.1f steps/s, about %.0f s; %s",
                self._left,
                rate,
                self._left / rate,
                text,
            )

    def close(self) -> None:
        """Leaves the bar where it is."""
        self.bar.close()
