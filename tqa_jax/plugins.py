"""Components that are found by name: one file each in a package's folder.

The one thing to know: a package's `available` and `make` are these two functions with
its own name and folder filled in, so a new file needs no registration.
"""

import importlib
import inspect
import pkgutil
import sys
from typing import Any

from tqa_jax import schema


def names(package: str) -> list[str]:
    """Names of the components in a package's folder; `_shared.py` is none."""
    modules = pkgutil.iter_modules(sys.modules[package].__path__)
    return sorted(module.name for module in modules if module.name[0] != "_")


def make(package: str, name: str, **options: Any) -> Any:
    """Calls `make` of the component of a name.

    Args:
        package: dotted name of the package, which is imported.
        name: a file of its folder, without `.py`.
        **options: see the file.

    Raises:
        InputError: for an unknown name or option, or one that is missing.
    """
    kind = package.rpartition(".")[2]
    if name not in names(package):
        raise schema.InputError(
            f"unknown {kind} {name!r}; available: {', '.join(names(package))}"
        )
    factory = importlib.import_module(f"{package}.{name}").make
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise schema.InputError(f"{kind}.{name}: {error}") from error
    return factory(**options)


def takes(package: str, name: str, option: str) -> bool:
    """Whether `make` of a component has an option of that name."""
    factory = importlib.import_module(f"{package}.{name}").make
    return option in inspect.signature(factory).parameters
