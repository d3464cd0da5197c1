"""Configurations by name or path, and settings of their keys.

A shipped configuration is found by its name from any folder, and imports from
`configs` mean the shipped ones even where another package has that name.
"""

import ast
import contextlib
import difflib
import importlib.machinery
import importlib.util
import pathlib
import re
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from tqa_jax import cli, hyperparameters, schema

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "configs"
# Their keys are names of a data set, so a configuration need not have them.
_OPEN = re.compile(
    r"(base\.)?(optim\.task_factors|preprocess\.pca|train\.select_weights"
    r"|weighting\.fixed\.values)"
)
# Of a sweep: replaced by a dict that is given for them.
_WHOLE = re.compile(r"grid|random\.ranges")


def available() -> list[str]:
    """Names of the shipped configurations; those of sweeps begin with `sweeps/`."""
    files = FOLDER.rglob("[!_]*.py")
    return sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in files)


def find(text: str) -> pathlib.Path:
    """Finds a configuration: a file, or a shipped one by its name.

    Args:
        text: a path, or a name as `gradnorm`, `gradnorm.py`, `configs/gradnorm.py`,
            `sweeps/weighting` or `weighting`.

    Raises:
        InputError: with the names of those that there are.
    """
    file = cli.path(text)
    if file.suffix == ".py" and file.is_file():
        return file.absolute()
    name = file.as_posix().removesuffix(".py").removeprefix("configs/")
    for shipped in (name, f"sweeps/{name}"):
        if shipped in available():
            return FOLDER / f"{shipped}.py"
    raise schema.InputError(
        f"no configuration {text}; expected a .py file, or one of "
        f"{', '.join(available())}"
    )


def load(text: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Reads a configuration and changes some of its keys.

    Args:
        text: see `find`.
        overrides: arguments of the command line, as `--config.train.epochs=5`.

    Raises:
        InputError: for a file that is none or cannot be read, or a wrong override.
    """
    file = find(text)
    with _configs_of(file):
        loader = importlib.machinery.SourceFileLoader(f"config_{file.stem}", str(file))
        spec = importlib.util.spec_from_loader(loader.name, loader)
        module = importlib.util.module_from_spec(spec)
        try:
            loader.exec_module(module)
            config = module.get_config()
        except Exception as error:  # Whatever a user's file may raise.
            raise schema.InputError(
                f"{file} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise schema.InputError(f"get_config of {file} returns no ConfigDict")
    keys = set()
    for argument in overrides:
        matched = re.fullmatch(r"--?(no)?config\.([^=]+)(?:=(.*))?", argument, re.S)
        if matched is None:
            raise schema.InputError(f"{argument} is no override; see --help")
        negated, key, text = matched.groups()
        if key in keys:
            raise schema.InputError(f"--config.{key} is given twice")
        keys.add(key)
        if text is None:
            text = "false" if negated else "true"
        _override(config, key, text)
    return config.lock()


def put(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
    """Sets a key of a configuration, as `optim.beta1`.

    Raises:
        InputError: for a key that it does not have or a value of another type.
    """
    section, name = _section(config, key)
    if name not in section and not isinstance(value, int | float):
        raise schema.InputError(f"{key} is {value!r}; expected a number")
    try:
        with section.unlocked():
            section[name] = value
    except (TypeError, ValueError) as error:
        kind = section.get_type(name).__name__
        raise schema.InputError(f"{key} is {value!r}; expected {kind}") from error


def _section(
    config: ml_collections.ConfigDict, key: str
) -> tuple[ml_collections.ConfigDict, str]:
    """The section that holds a key, and the key's last part."""
    *path, last = key.split(".")
    section = config
    for number, name in enumerate([*path, last]):
        above = ".".join(path[:number])
        if not isinstance(section, ml_collections.ConfigDict):
            raise schema.InputError(f"unknown config key {key}; {above} has no keys")
        if name not in section and not (number == len(path) and _OPEN.fullmatch(above)):
            before = f"{above}." if above else ""
            hint = f"available: {', '.join(section) or 'none'}"
            for close in difflib.get_close_matches(name, section, 1):
                hint = f"did you mean {before}{close}?"
            raise schema.InputError(f"unknown config key {before}{name}; {hint}")
        if number < len(path):
            section = section[name]
    return section, last


def _override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    """Sets a key to what was written for it, read as its type."""
    section, name = _section(config, key)
    new = int if "preprocess.pca" in key else float
    kind = section.get_type(name) if name in section else new
    try:
        value = _read(text, kind)
    except (LookupError, TypeError, ValueError, SyntaxError) as error:
        expected = kind.__name__
        if kind is ml_collections.ConfigDict:
            expected = f"a value for one of its keys, as --config.{key}.KEY=VALUE"
        raise schema.InputError(
            f"--config.{key} is {text!r}; expected {expected}"
        ) from error
    if isinstance(value, dict) and not _WHOLE.fullmatch(key):
        if _OPEN.fullmatch(key):
            put(config, key, ml_collections.ConfigDict())
        for inner, setting in hyperparameters.flatten(value):
            put(config, f"{key}.{inner}", setting)
    else:
        put(config, key, value)


def _read(text: str, kind: type) -> Any:
    """Reads a value of a type."""
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kind in (int, float, str):
        return kind(text)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if kind is not tuple or not re.fullmatch(r"[\w., /-]+", text):
            raise
        return tuple(part.strip() for part in text.split(","))  # Names without quotes.
    if kind is tuple:
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is no dict")
    return value


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes the overrides out of a command line.

    Args:
        arguments: of the command line.

    Returns:
        Overrides, each as one argument, and all other arguments.
    """
    overrides, others, left = [], [], list(arguments)
    while left:
        argument = left.pop(0)
        if not re.match(r"--?(no)?config\.", argument):
            others.append(argument)
            continue
        bare = "=" not in argument and "noconfig." not in argument
        if bare and left and not re.match(r"--?[A-Za-z]", left[0]):
            argument += f"={left.pop(0)}"
        overrides.append(argument)
    return overrides, others


@contextlib.contextmanager
def _configs_of(file: pathlib.Path) -> Iterator[None]:
    """Makes the package `configs` that which a file means.

    It means the folder that it lies in, if that is called so, else the shipped one; a
    name that this does not have is looked for in others on the path.
    """
    folders = [file.parent] if file.parent.name == "configs" else []
    folders += [FOLDER, *(pathlib.Path(place, "configs") for place in sys.path)]
    package = types.ModuleType("configs")
    package.__path__ = [str(folder) for folder in dict.fromkeys(folders)]
    before = _forget_configs()
    sys.modules["configs"] = package
    try:
        yield
    finally:
        _forget_configs()
        sys.modules.update(before)


def _forget_configs() -> dict[str, types.ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] == "configs"]
    return {name: sys.modules.pop(name) for name in names}
