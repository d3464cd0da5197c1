"""How far a sweep is: a bar, or a line now and then."""

import logging
import sys
import time
from collections.abc import Sequence

import tqdm

_logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """A bar over the steps of all runs, or a line now and then without a terminal.

    Attributes:
        group: which one trains, in words.
    """

    def __init__(self, totals: Sequence[int]) -> None:
        """Starts with the steps of each run, unless it stops early."""
        self.group = ""
        self._runs, self._ended = len(totals), 0
        self._bar = tqdm.tqdm(
            total=sum(totals), unit="step", disable=not sys.stderr.isatty()
        )
        self._taken, self._left = 0, sum(totals)
        self._started = self._said = time.monotonic()

    def skip(self, steps: int) -> None:
        """Notes steps that need not be taken."""
        self._left -= steps
        self._bar.total -= steps
        self._bar.refresh()

    def update(self, steps: int, ended: int, said: str) -> None:
        """Notes steps that were taken, by all runs together, and runs that ended."""
        self._taken += steps
        self._left -= steps
        self._ended += ended
        self._bar.update(steps)
        self._bar.set_postfix_str(f"{self.group}, {said}")
        now = time.monotonic()
        late = now - self._said >= _SECONDS_BETWEEN_LINES
        if self._bar.disable and self._taken and late:
            self._said = now
            rate = self._taken / (now - self._started)
            _logger.info(
                "%s, %d of %d runs ended: %d steps taken, %.1f steps/s, about %.0f s "
                "left; %s",
                self.group,
                self._ended,
                self._runs,
                self._taken,
                rate,
                self._left / rate,
                said,
            )

    def __enter__(self) -> "Progress":
        """Shows the bar."""
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves it where it is."""
        self._bar.close()
