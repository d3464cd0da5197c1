"""Lines and bars share a terminal; what takes long says that it goes on."""

import io
import logging
import re
import sys
import threading

import pytest

from tqa_jax import cli, display


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def rows(self):
        """What a person sees: a carriage return goes back and overwrites."""
        rows = []
        for text in self.getvalue().split("\n"):
            row = ""
            for part in text.split("\r"):
                row = part + row[len(part) :]
            rows.append(row.rstrip())
        return rows


@pytest.fixture
def loggers():
    """Takes away what a test has changed."""
    loggers = [logging.getLogger(name) for name in ("", "tqa_jax", "extract")]
    before = [(logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers = handlers
        logger.setLevel(level)


def test_the_bar_swallows_no_line(monkeypatch, loggers):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    logging.root.handlers = [logging.StreamHandler()]
    cli.log(logging.INFO)
    progress = display.Progress(100)
    progress.update(10, "validation srcc 0.500")
    for name in ("tqa_jax.trial", "extract.build"):
        logging.getLogger(name).warning("a line of %s", name)
        progress.update(10, "validation srcc 0.600")
    progress.close()
    rows = terminal.rows()
    assert "a line of tqa_jax.trial" in rows and "a line of extract.build" in rows
    assert any("30/100" in row for row in rows)


def test_a_stage_is_said_and_said_again_until_it_ends(monkeypatch, caplog):
    monkeypatch.setattr(display, "_SECONDS_BETWEEN_LINES", 0.01)
    again = threading.Event()

    class Watch(logging.Handler):
        def emit(self, record):
            if "so far" in record.getMessage():
                again.set()

    caplog.set_level(logging.INFO, display.__name__)
    watch = Watch()
    logging.getLogger(display.__name__).addHandler(watch)
    try:
        with display.stage("compiling", after=0):
            assert again.wait(10)
    finally:
        logging.getLogger(display.__name__).removeHandler(watch)
    assert caplog.messages[0] == "compiling"
    assert caplog.messages[1].startswith("compiling: 0 s so far")
    count = len(caplog.messages)
    with display.stage("reading", after=60):
        pass
    assert len(caplog.messages) == count  # What is done at once says nothing.


def test_without_a_terminal_a_line_says_how_far_it_is(monkeypatch, caplog):
    monkeypatch.setattr(display, "_SECONDS_BETWEEN_LINES", 0)
    caplog.set_level(logging.INFO, display.__name__)
    progress = display.Progress(100, 40)
    for _ in range(2):
        progress.update(10, "group 1 of 2")
    progress.close()
    (line,) = caplog.messages
    assert re.fullmatch(
        r"60 of 100 steps, [\d.]+ a minute, 00:00 left; group 1 of 2", line
    )
    display.Progress(8, 3, what="measured", unit="clip").close()
    assert caplog.messages[1] == "measured: 3 of 8 clips"
