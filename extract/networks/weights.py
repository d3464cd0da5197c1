"""Finds and reads the weights of networks: local files, or the hub at a fixed revision.

The one thing to know: a backend's default is pinned by the revision of its repository
and, where it is known, by the SHA-256 of the file, so the same command computes the
same features next year.

A pinned file that is in the hub's local cache is used without any look at the network.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from extract.networks import tensor_file
from tqa_jax import cli, schema

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weights in the hub's format, the preferred one first."""

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a backend's weights come from when no others are given.

    Attributes:
        backend: its name, for messages.
        option: how a user gives other weights, for example `--visual_weights`.
        instead: what to choose without weights, for example `--visual=nss`.
        file: name of the weights.
        repository: on the hub, `owner/name`; empty when it has to be fetched by hand.
        revision: commit of the repository, 40 hexadecimal digits.
        sha256: of the file; empty when it is not known for certain.
        page: address of the file when there is no repository.
        settings: files beside the weights that the repository has.
    """

    backend: str
    option: str
    instead: str
    file: str = FILES[0]
    repository: str = ""
    revision: str = ""
    sha256: str = ""
    page: str = ""
    settings: tuple[str, ...] = (CONFIG, PREPROCESSOR)


@dataclasses.dataclass(frozen=True)
class Found:
    """Weights on this machine.

    Attributes:
        file: the weights.
        config: what `config.json` beside them says, empty without one.
        preprocessor: likewise `preprocessor_config.json`.
        sha256: of the weights, in hexadecimal digits.
        origin: repository, revision and file, or the name of a local file; never a
            path. For `dataset.json`, with the checksum.
    """

    file: pathlib.Path
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    sha256: str
    origin: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the weights and of the settings that go with them."""
        if not self.config and not self.preprocessor:
            return self.sha256
        parts = [self.sha256, dict(self.config), dict(self.preprocessor)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def find(source: Source, given: str | pathlib.Path | None = None) -> Found:
    """Finds the weights of a backend, on this machine or on the hub.

    Args:
        source: the backend's default.
        given: other weights: a local file, a local folder in the hub's format
            (`config.json` and `model.safetensors` or `pytorch_model.bin`), or a
            repository at a fixed revision, `owner/name@<40 digits>`.

    Raises:
        schema.InputError: there are none, or another file than the pinned one.
    """
    if given is None and not source.repository:
        raise schema.InputError(
            f"{source.backend} needs weights: download {source.page} (SHA-256 "
            f"{source.sha256}), and give the file by {source.option}; or choose "
            f"{source.instead}, which needs none"
        )
    if given is None:
        return _from_hub(source, source.repository, source.revision, [source.file])
    path = cli.path(str(given))
    if path.exists():
        return _from_disk(source, path)
    match = _REPOSITORY.fullmatch(str(given))
    if match is None:
        raise schema.InputError(
            f"{source.option} is {str(given)!r}; expected a local file, a local folder "
            f"with {FILES[0]} or {FILES[1]}, or owner/name@REVISION with the 40 digits "
            "of a commit of the hub"
        )
    names = dict.fromkeys([source.file, *FILES])
    return _from_hub(source, match[1], match[2], list(names))


def of_network(
    source: Source,
    given: str | None,
    *,
    kind: str = "",
    preparation: Mapping[str, Any] | None = None,
) -> Found:
    """Finds the weights of a network and checks the settings beside them.

    Args:
        source: the backend's default.
        given: see `find`.
        kind: what `config.json` must call the network, where it says anything.
        preparation: what `preprocessor_config.json` must say, likewise.

    Raises:
        schema.InputError: they are not there, and the line says how to get them; or
            what is beside them asks for another network or preparation.
    """
    found = find(source, given)
    if CONFIG in source.settings and not found.config:
        raise schema.InputError(
            f"{source.backend} needs {CONFIG} beside its weights, which {found.origin} "
            "lacks; give a folder in the hub's format"
        )
    called = found.config.get("model_type", kind)
    if kind and called != kind:
        raise schema.InputError(
            f"{found.origin} is of kind {called!r} by its {CONFIG}; the backend "
            f"{source.backend} expects {kind!r}"
        )
    for key, value in (preparation or {}).items():
        if found.preprocessor.get(key, value) != value:
            raise schema.InputError(
                f"{PREPROCESSOR} of {found.origin} has {key} "
                f"{found.preprocessor[key]!r}; the backend {source.backend} prepares "
                f"its input with {value!r}"
            )
    return found


def width(found: Found, stated: Any) -> int:
    """Returns the number of features that `config.json` states.

    Raises:
        schema.InputError: it is no number of features.
    """
    if not isinstance(stated, int) or stated < 1:
        raise schema.InputError(
            f"{CONFIG} of {found.origin} has no usable width: {stated!r}"
        )
    return stated


def sha256(path: str | pathlib.Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits.

    Raises:
        schema.InputError: it cannot be read.
    """
    path = pathlib.Path(path)
    try:
        stat = path.stat()
        return _digest(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise schema.InputError(f"{path} cannot be read: {error.strerror}") from error


def _from_disk(source: Source, path: pathlib.Path) -> Found:
    """Takes a local file, or the weights of a local folder."""
    file = path
    if path.is_dir():
        names = dict.fromkeys([*FILES, source.file])
        files = [path / name for name in names if (path / name).is_file()]
        if not files:
            raise schema.InputError(
                f"no weights in the folder {path}; expected {' or '.join(names)}"
            )
        file = files[0]
    settings = {}
    for name in source.settings:
        beside = file.parent / name
        settings[name] = _json(beside) if beside.is_file() else {}
    return _found(file, settings, f"local file {file.name}")


def _from_hub(
    source: Source, repository: str, revision: str, names: Sequence[str]
) -> Found:
    """Takes the first of several files that a repository has."""
    files = (_download(source, repository, revision, name) for name in names)
    file = next((file for file in files if file is not None), None)
    if file is None:
        raise schema.InputError(
            f"{repository} has no {' and no '.join(names)} at revision {revision}"
        )
    settings = {}
    for name in source.settings:
        beside = _download(source, repository, revision, name)
        settings[name] = {} if beside is None else _json(beside)
    found = _found(file, settings, f"{repository}@{revision}/{file.name}")
    pinned = (source.repository, source.revision, source.file, source.sha256)
    if pinned[:3] == (repository, revision, file.name):
        if pinned[3] not in ("", found.sha256):
            raise schema.InputError(
                f"{file.name} of {repository} has SHA-256 {found.sha256}; expected "
                f"{pinned[3]}; delete {file} and run again"
            )
    return found


def _download(
    source: Source, repository: str, revision: str, name: str
) -> pathlib.Path | None:
    """Returns the file in the hub's cache, fetched if needed; None if there is none."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise schema.InputError(
            f"{source.backend} takes its weights from the hub: `pip install "
            f"huggingface_hub`, or {_otherwise(source)}"
        ) from error
    try:
        path = huggingface_hub.hf_hub_download(
            repository, name, revision=revision, local_files_only=not _connected()
        )
    except errors.LocalEntryNotFoundError as error:
        raise _missing(source, repository, revision, name, "no connection") from error
    except errors.EntryNotFoundError:
        return None
    # Errors of the transport have no class of their own in the hub's library.
    except (OSError, errors.HTTPError, errors.HFValidationError) as error:
        raise _missing(
            source, repository, revision, name, tensor_file.one_line(error)
        ) from error
    return pathlib.Path(path)


def _connected() -> bool:
    """Returns whether the hub has an address; without one its library retries long."""
    from huggingface_hub import constants

    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def _missing(
    source: Source, repository: str, revision: str, name: str, reason: str
) -> schema.InputError:
    return schema.InputError(
        f"{source.backend} needs {name} of {repository} at revision {revision}, which "
        f"is not in the hub's local cache and cannot be downloaded ({reason}); get it "
        f"by `hf download {repository} --revision {revision}`, or {_otherwise(source)}"
    )


def _otherwise(source: Source) -> str:
    return (
        f"give a local file or folder by {source.option}, or choose {source.instead}, "
        "which needs no weights"
    )


def _found(file: pathlib.Path, settings: Mapping[str, Any], origin: str) -> Found:
    return Found(
        file=file,
        config=settings.get(CONFIG, {}),
        preprocessor=settings.get(PREPROCESSOR, {}),
        sha256=sha256(file),
        origin=origin,
    )


@functools.lru_cache
def _digest(file: pathlib.Path, modified_ns: int, size: int) -> str:
    """Hashes a file once a process, as long as it does not change."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise schema.InputError(
            f"{path} cannot be read: {tensor_file.one_line(error)}"
        ) from error
    if not isinstance(value, dict):
        raise schema.InputError(f"{path} holds no settings by name")
    return value
