"""Finds the weights of networks: local files, or the hub at a fixed revision.

A backend's default is pinned by the revision of its repository and, where it is known,
by the SHA-256 of the file, so the same command computes the same features next year.
A pinned file that is in the hub's local cache is used without any look at the network.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import pathlib
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from tqa_jax import cli, schema

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weights in the hub's format, the preferred one first."""

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


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

    def width(self, key: str, default: int) -> int:
        """Returns the number of features that `config.json` states.

        Args:
            key: of the number, or of a list that ends in it.
            default: where there is no such key.

        Raises:
            schema.InputError: it is no number of features.
        """
        stated = self.config.get(key, default)
        stated = stated[-1] if isinstance(stated, list) and stated else stated
        if type(stated) is not int or stated < 1:
            raise schema.InputError(
                f"{CONFIG} of {self.origin} has no usable width: {key} {stated!r}"
            )
        return stated


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a backend's weights come from when no others are given.

    Attributes:
        backend: its name, for messages.
        option: how a user gives other weights, for example `--visual_weights`.
        instead: what to choose without weights, for example `--visual=nss`.
        file: name of the weights.
        repository: on the hub, `owner/name`; empty when the file is fetched by hand and
            has no settings beside it.
        revision: commit of the repository, 40 hexadecimal digits.
        sha256: of the file; empty when it is not known for certain.
        page: address of the file when there is no repository.
        kind: what `config.json` must call the network, where it says anything.
        preparation: what `preprocessor_config.json` must say, likewise.
    """

    backend: str
    option: str
    instead: str
    file: str = FILES[0]
    repository: str = ""
    revision: str = ""
    sha256: str = ""
    page: str = ""
    kind: str = ""
    preparation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def find(self, given: str | pathlib.Path | None = None) -> Found:
        """Finds the weights of a backend, on this machine or on the hub.

        Args:
            given: other weights: a local file, a local folder in the hub's format
                (`config.json` and `model.safetensors` or `pytorch_model.bin`), or a
                repository at a fixed revision, `owner/name@<40 digits>`.

        Raises:
            schema.InputError: there are none, and the line says how to get them; it is
                another file than the pinned one; or the settings beside it ask for
                another network or preparation.
        """
        if given is None and not self.repository:
            raise schema.InputError(
                f"{self.backend} needs weights: download {self.page} (SHA-256 "
                f"{self.sha256}), and give the file by {self.option}; or choose "
                f"{self.instead}, which needs none"
            )
        where = f"{self.repository}@{self.revision}" if given is None else str(given)
        path, repository = cli.path(where), _REPOSITORY.fullmatch(where)
        if path.exists():
            folder = path if path.is_dir() else path.parent
            get = functools.partial(_local, folder)
            names = [*FILES, self.file] if path.is_dir() else [path.name]
        elif repository is not None:
            get = functools.partial(self._download, *repository.groups())
            names = [self.file, *FILES]
        else:
            raise schema.InputError(
                f"{self.option} is {where!r}; expected a local file, a local folder "
                f"with {FILES[0]} or {FILES[1]}, or owner/name@REVISION with the 40 "
                "digits of a commit of the hub"
            )
        names = list(dict.fromkeys(names))
        file = next(filter(None, map(get, names)), None)
        if file is None:
            raise schema.InputError(
                f"no weights in {where}; expected {' or '.join(names)}"
            )
        origin = f"local file {file.name}" if path.exists() else f"{where}/{file.name}"
        config, preprocessor = (
            _json(get(name) if self.repository else None)
            for name in (CONFIG, PREPROCESSOR)
        )
        found = Found(file, config, preprocessor, sha256(file), origin)
        self._check(found)
        return found

    def _check(self, found: Found) -> None:
        """Checks that weights are the pinned ones, and what is beside them."""
        pinned = f"{self.repository}@{self.revision}/{self.file}"
        if found.origin == pinned and self.sha256 not in ("", found.sha256):
            raise schema.InputError(
                f"{pinned} has SHA-256 {found.sha256}; expected {self.sha256}; delete "
                f"{found.file} and run again"
            )
        if self.repository and not found.config:
            raise schema.InputError(
                f"{self.backend} needs {CONFIG} beside its weights, which "
                f"{found.origin} lacks; give a folder in the hub's format"
            )
        kind = found.config.get("model_type", self.kind)
        if self.kind and kind != self.kind:
            raise schema.InputError(
                f"{found.origin} is of kind {kind!r} by its {CONFIG}; the backend "
                f"{self.backend} expects {self.kind!r}"
            )
        for key, value in self.preparation.items():
            if found.preprocessor.get(key, value) != value:
                raise schema.InputError(
                    f"{PREPROCESSOR} of {found.origin} has {key} "
                    f"{found.preprocessor[key]!r}; the backend {self.backend} prepares "
                    f"its input with {value!r}"
                )

    def _download(
        self, repository: str, revision: str, name: str
    ) -> pathlib.Path | None:
        """Returns a file in the hub's cache, fetched if needed; None if none is."""
        import huggingface_hub
        from huggingface_hub import errors

        try:
            return pathlib.Path(
                huggingface_hub.hf_hub_download(
                    repository,
                    name,
                    revision=revision,
                    local_files_only=not _connected(),
                )
            )
        except errors.LocalEntryNotFoundError:
            reason = "no connection"
        except errors.EntryNotFoundError:
            return None
        # Errors of the transport have no class of their own in the hub's library.
        except (OSError, errors.HTTPError, errors.HFValidationError) as error:
            reason = " ".join(str(error).split())
        raise schema.InputError(
            f"{self.backend} needs {name} of {repository} at revision {revision}, "
            f"which is not in the hub's local cache and cannot be downloaded ({reason})"
            f"; get it by `hf download {repository} --revision {revision}`, give a "
            f"local file or folder by {self.option}, or choose {self.instead}, which "
            "needs no weights"
        )


def packaged(library: str, name: str, digest: str) -> pathlib.Path:
    """Finds a file that a Python package ships, without importing the package.

    Args:
        library: of `cli.EXTRAS`.
        name: of the file in the package's folder.
        digest: the file's SHA-256.

    Raises:
        schema.InputError: the package is missing, or ships another file.
    """
    cli.need(library)
    folder = importlib.util.find_spec(library).submodule_search_locations[0]
    path = pathlib.Path(folder) / name
    if (actual := sha256(path)) != digest:
        raise schema.InputError(
            f"{path} has SHA-256 {actual}; expected {digest}: install the version of "
            f"{library} that the extra {cli.EXTRAS[library]} names"
        )
    return path


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


@functools.lru_cache
def _digest(file: pathlib.Path, modified_ns: int, size: int) -> str:
    """Hashes a file once a process, as long as it does not change."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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


def _local(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    return folder / name if (folder / name).is_file() else None


def _json(path: pathlib.Path | None) -> dict[str, Any]:
    """Reads settings by name; without a file there are none."""
    try:
        value = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise schema.InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise schema.InputError(f"{path} holds no settings by name")
    return value
