"""Feature backends: whatever measures a modality is one file here, found by its name.

A backend is a module in this folder, or in a folder `extract/backends` anywhere on
Python's path. It says

    MODALITY = "energy"        what it measures; a new word is a new modality, None
                               one that its option names
    VERSION = "1"              changes when its numbers do
    DESCRIPTION = "..."        one line for people
    FEATURES = ("energy_db",)  names of its features
    make(setting)              what measures one clip: a `Measurer`

and, where it applies,

    DEFAULT = True             measures its modality unless another is asked for
    NEEDS = ("face",)          its numbers depend on the face landmarker; or on
                               "native_sound", sound at the file's own rate
    OPTION = Option(...)       a command-line option; check(setting) refuses bad values
    find(given)                weights, by `--<modality>_weights`: `weights.Found`
    network(found, dtype)      a second stage, on batches over clips: a `Network`
    width(setting)             in place of FEATURES, where weights or a file decide
    file(path, setting)        a file beside a clip that its numbers come from
    group(name)                of a feature: what it is compared under in studies
    DTYPES = ("float32",)      of a network that computes in nothing else

Commands, data sets and scorers take modalities, options, widths, versions and
checksums from here. Backends of one modality join: `--audio=logmel+hubert` puts their
features side by side.
"""

import dataclasses
import functools
import importlib
import pathlib
import pkgutil
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from extract import landmarks
from extract.networks import weights
from tqa_jax import cli, schema

__path__ = pkgutil.extend_path(__path__, __name__)

ORDER = ("visual", "audio", "keypoints", "action_units", "sync")
"""Modalities that stand first in a data set; others follow by name."""
DTYPES = ("float32", "bfloat16")
"""What networks may compute in."""

_JOIN = "+"
_SEPARATOR = ", "  # between a version and what the network computed in


class Sound(NamedTuple):
    """Sound at the file's own rate.

    Attributes:
        samples: (N,) mono; sample 0 is the instant of row 0.
        present: (N,) where the file has sound.
        rate: samples a second.
    """

    samples: np.ndarray
    present: np.ndarray
    rate: int


@dataclasses.dataclass
class Clip:
    """What backends see of a clip of T rows, 25 a second.

    Attributes:
        path: the file.
        rows: T.
        frame_seconds: time of each frame of the file, after the first.
        points: (T, 478, 3) mesh points in picture widths and heights, NaN without face.
        blendshapes: (T, 52) activations, in the order of `landmarks.BLENDSHAPES`.
        seen: (T,) True in rows with a face.
        aspect: picture width over height.
        samples: (N,) mono at 16 kHz, 640 a row; sample 0 is the instant of row 0.
        present: (N,) where the file has sound.
        notes: what a person should know of the clip, one line each.
        native: the sound at the file's own rate, where a backend needs it; else None.
    """

    path: Any
    rows: int
    frame_seconds: Sequence[float]
    points: np.ndarray
    blendshapes: np.ndarray
    seen: np.ndarray
    aspect: float
    samples: np.ndarray
    present: np.ndarray
    notes: list[str]
    native: Sound | None = None


class Measurer(NamedTuple):
    """Measures one clip.

    Attributes:
        finish: from the clip, when its last picture has been seen, to features
            (T, D) and mask (T,); of a network to what it will see, arrays by name, and
            the mask.
        frame: takes each row's picture, RGB (H, W, 3), and its mesh points (478, 3),
            None without a face; None if the backend needs no pictures.
    """

    finish: Callable[[Clip], tuple[Any, np.ndarray]]
    frame: Callable[[np.ndarray, np.ndarray | None], None] | None = None


class Network(NamedTuple):
    """The second stage of a backend; `extract.network_stage` batches for all.

    Attributes:
        inputs: from what `Measurer.finish` gave to what goes into batches: for each
            stream the arguments of its function, an entry along the first axis for
            each place in a batch.
        run: the function of a batch for each stream; its rows must not mix.
        finish: from what `Measurer.finish` gave, the mask, and the rows that the
            functions gave by stream, to features (T, D) and mask (T,).
        rows: rows of a clip that an entry stands for, given its arguments.
    """

    inputs: Callable[[Mapping[str, np.ndarray]], Mapping[str, tuple]]
    run: Mapping[str, Callable[..., Any]]
    finish: Callable[..., tuple[np.ndarray, np.ndarray]]
    rows: Callable[..., int] = lambda *columns: 1


class Option(NamedTuple):
    """A command-line option: its name, what stands for its value, and what it is.

    One that `repeats` names modalities, `NAME:value`, and may be given again.
    """

    name: str
    metavar: str
    text: str
    repeats: bool = False


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a backend is used.

    Attributes:
        modality: that it measures.
        backend: its name.
        weights_given: where its weights are, as the user says.
        argument: value of its `OPTION`; None without.
        dtype: what it computes in, if it is a network.
    """

    modality: str
    backend: str
    weights_given: str | None = None
    argument: str | None = None
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """`<modality>/<backend>`."""
        return f"{self.modality}/{self.backend}"

    @property
    def module(self) -> types.ModuleType:
        """The backend."""
        return load(self.backend)

    @property
    def weights(self) -> weights.Found | None:
        """Its weights; None if it takes none.

        Raises:
            schema.InputError: they are missing or wrong.
        """
        if not hasattr(self.module, "find"):
            return None
        return self.module.find(self.weights_given)


@dataclasses.dataclass(frozen=True)
class Options:
    """How clips are measured; data sets made with different options don't mix.

    Attributes:
        backends: by modality; several are joined by `+`.
        given: values of the backends' own options by name, `visual_weights` for
            example.
        network_dtype: what networks compute in, of `DTYPES`.
        max_seconds: longer clips are rejected.
        landmarker: path of `face_landmarker.task`; None finds the packaged one.
    """

    backends: Mapping[str, str]
    given: Mapping[str, str]
    network_dtype: str = "float32"
    max_seconds: float = 120.0
    landmarker: str | None = None

    def having(self, **changes: Any) -> "Options":
        """Returns the options with changes, as `options` takes them."""
        fields = dataclasses.asdict(self)
        before = {**fields.pop("backends"), **fields.pop("given"), **fields}
        return options(**{**before, **changes})

    @property
    def settings(self) -> tuple[Setting, ...]:
        """How each backend is used."""
        chosen = []
        for modality, joined in self.backends.items():
            for name in joined.split(_JOIN):
                module = load(name)
                where = self.given.get(f"{modality}_weights")
                argument = self.given.get(_option_name(module, modality))
                dtype = self.network_dtype if computes(module) else "float32"
                chosen.append(Setting(modality, name, where, argument, dtype))
        return tuple(chosen)

    @property
    def networks(self) -> bool:
        """Whether any backend is a network."""
        return any(hasattr(setting.module, "network") for setting in self.settings)


def names() -> list[str]:
    """Returns the names of all backends."""
    modules = pkgutil.iter_modules(__path__)
    return sorted(module.name for module in modules if module.name[0] != "_")


@functools.cache
def load(name: str) -> types.ModuleType:
    """Imports a backend.

    Raises:
        schema.InputError: its file cannot be imported or lacks what it must say.
    """
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ImportError:
        raise  # of a library: commands say which
    except Exception as error:
        raise schema.InputError(
            f"the backend {name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    needed = ("MODALITY", "VERSION", "DESCRIPTION", "make")
    if missing := [word for word in needed if not hasattr(module, word)]:
        raise schema.InputError(f"{module.__file__} says no {', '.join(missing)}")
    if not (hasattr(module, "FEATURES") or hasattr(module, "width")):
        raise schema.InputError(f"{module.__file__} says no FEATURES")
    return module


def named_by_option() -> list[str]:
    """Returns the backends whose option names the modality that they measure."""
    return [name for name in names() if load(name).MODALITY is None]


def available() -> dict[str, list[str]]:
    """Returns the backends of each modality, the default first."""
    of: dict[str, list[str]] = {name: [] for name in ORDER}
    for name in names():
        if load(name).MODALITY is not None:
            of.setdefault(load(name).MODALITY, []).append(name)
    for listed in of.values():
        listed.sort(key=lambda name: not getattr(load(name), "DEFAULT", False))
    return of


def _option_name(module: types.ModuleType, modality: str) -> str:
    """Returns the key of `Options.given` for a backend's option; "" without one."""
    if not hasattr(module, "OPTION"):
        return ""
    return module.OPTION.name if module.MODALITY else f"{modality} {module.OPTION.name}"


def computes(module: types.ModuleType) -> bool:
    """Whether a backend computes in the dtype of the options."""
    dtypes = getattr(module, "DTYPES", DTYPES)
    return hasattr(module, "network") and dtypes == DTYPES


def options(
    *,
    network_dtype: str = "float32",
    max_seconds: float = 120.0,
    landmarker: str | None = None,
    **values: str | Sequence[str] | None,
) -> Options:
    """Makes options.

    Args:
        network_dtype: see `Options`.
        max_seconds: likewise.
        landmarker: likewise.
        **values: `<modality>="backend+backend"` and options of backends by name.
            Modalities that are not named are measured by their default, if they have
            one; None is as if not given. Where an option names modalities, a list of
            `NAME:value`.

    Raises:
        schema.InputError: a modality is named that another backend measures.
    """
    known = available()
    given = {name: value for name, value in values.items() if value is not None}
    chosen = {}
    for modality, listed in known.items():
        default = getattr(load(listed[0]), "DEFAULT", False)
        if modality in given or default:
            chosen[modality] = given.pop(modality, listed[0])
    for backend in named_by_option():
        option = load(backend).OPTION.name
        for text in given.pop(option, ()):
            modality, _, value = text.partition(":")
            if modality in known or modality in chosen:
                raise schema.InputError(
                    f"--{option}={text}: {modality!r} is measured already; choose "
                    "another name"
                )
            chosen[modality] = backend
            given[f"{modality} {option}"] = value
    return Options(chosen, given, network_dtype, max_seconds, landmarker)


def command_line(of: type, *, choices: bool = True) -> type:
    """Returns the options of a command with those of all backends.

    Args:
        of: dataclass, see `cli.main`.
        choices: whether to add those that choose a modality's backends, too.
    """
    fields = []
    for option in _command_options(choices):
        kind = str | None
        if option.metavar in ("DIR", "FILE", "WHERE"):
            kind = pathlib.Path | None
        about = {"help": option.text, "metavar": option.metavar}
        default: Any = None
        if option.repeats:
            kind, default = cli.Repeated[tuple[str, ...]], ()
        field = dataclasses.field(default=default, metadata=about)
        fields.append((option.name, kind, field))
    return dataclasses.make_dataclass(
        of.__name__, fields, bases=(of,), frozen=True, kw_only=True
    )


def given(options: Any) -> dict[str, Any]:
    """Returns what the user gave of the backends' options, by name.

    Args:
        options: of a dataclass from `command_line`.
    """
    names = [option.name for option in _command_options(choices=True)]
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def _command_options(choices: bool) -> list[Option]:
    """Returns the command-line options of all backends."""
    of_modalities, more = [], []
    for modality, listed in available().items():
        default = getattr(load(listed[0]), "DEFAULT", False)
        text = ", ".join(listed)
        default = f"default: {listed[0]}" if default else "default: not measured"
        of_modalities.append(
            Option(
                modality, "BACKEND", f"Backend, or several by +: {text} ({default})."
            )
        )
        weighted = [name for name in listed if hasattr(load(name), "find")]
        if weighted:
            text = (
                f"For --{modality}={'|'.join(weighted)}: a file, a folder in the hub's "
                "format, or owner/name@revision (default: the backend's own)."
            )
            more.append(Option(f"{modality}_weights", "WHERE", text))
    more += [load(name).OPTION for name in names() if hasattr(load(name), "OPTION")]
    return of_modalities + more if choices else more


def check(options: Options) -> tuple[schema.Modality, ...]:
    """Checks options before any work; see `describe` for what is returned.

    Raises:
        schema.InputError: for an unknown or repeated backend, missing or wrong
            weights, an option that is missing or that nothing reads.
    """
    known = available()
    read = set()
    for modality, joined in options.backends.items():
        parts = joined.split(_JOIN)
        valid = known.get(modality, named_by_option())
        for name in parts:
            if name not in valid:
                raise schema.InputError(
                    f"unknown {modality} backend {name!r}; available: "
                    f"{', '.join(valid)}"
                )
        if len(set(parts)) < len(parts):
            raise schema.InputError(f"--{modality}={joined} names a backend twice")
        weighted = [name for name in parts if hasattr(load(name), "find")]
        if weighted:
            read.add(f"{modality}_weights")
        if len(weighted) > 1 and f"{modality}_weights" in options.given:
            raise schema.InputError(
                f"--{modality}_weights is given, but {' and '.join(weighted)} take "
                "weights; put theirs where they look by themselves, or use one of them"
            )
        for name in parts:
            needed = _option_name(load(name), modality)
            if needed and needed not in options.given:
                option = load(name).OPTION
                raise schema.InputError(
                    f"{modality} of {name} needs --{option.name}={option.metavar}, "
                    f"{option.text}"
                )
            read.add(needed)
    for name in options.given:
        if name not in read:
            raise schema.InputError(_useless(name, options))
    if options.network_dtype not in DTYPES:
        raise schema.InputError(
            f"unknown network dtype {options.network_dtype!r}; available: "
            f"{', '.join(DTYPES)}"
        )
    settings = options.settings
    if options.network_dtype != "float32" and not any(
        computes(setting.module) for setting in settings
    ):
        raise schema.InputError(
            f"--network_dtype={options.network_dtype} is given, but no backend is a "
            "network that computes in it"
        )
    if not options.max_seconds > 0:
        raise schema.InputError(
            f"max_seconds is {options.max_seconds}; expected a positive number"
        )
    for setting in settings:
        if hasattr(setting.module, "check"):
            setting.module.check(setting)
    return describe(options)


def _useless(name: str, options: Options) -> str:
    """Says which backend would read an option that none reads."""
    for modality, listed in available().items():
        readers = [
            backend
            for backend in listed
            if name == f"{modality}_weights"
            and hasattr(load(backend), "find")
            or getattr(load(backend), "OPTION", ("",))[0] == name
        ]
        if readers:
            return (
                f"--{name} is given, but the {modality} backend "
                f"{options.backends.get(modality, 'none')!r} does not read it; choose "
                f"--{modality}=BACKEND of {', '.join(readers)}"
            )
    return f"no backend has an option --{name}"


def describe(options: Options) -> tuple[schema.Modality, ...]:
    """Describes what is measured with these options, for the data set.

    Raises:
        schema.InputError: weights are missing or wrong.
    """
    parts: dict[str, list[schema.Modality]] = {}
    for setting in options.settings:
        parts.setdefault(setting.modality, []).append(part(setting))
    return tuple(
        schema.Modality(
            name=name,
            width=sum(part.width for part in joined),
            features=tuple(
                feature
                for part in joined
                for feature in part.features or ("",) * part.width
            )
            if any(part.features for part in joined)
            else (),
            **{
                field: separator.join(getattr(part, field) for part in joined)
                for field, separator in (
                    ("backend", _JOIN),
                    ("version", _JOIN),
                    ("checksum", _JOIN),
                    ("description", "; "),
                )
            },
        )
        for name, joined in parts.items()
    )


def part(setting: Setting) -> schema.Modality:
    """Describes what one backend measures."""
    module, found = setting.module, setting.weights
    checksum = landmarks.SHA256 if "face" in getattr(module, "NEEDS", ()) else ""
    description = module.DESCRIPTION
    if found is not None:
        checksum = found.checksum
        description += f"; weights: {found.origin}" if found.origin else ""
    low = "" if setting.dtype == "float32" else _SEPARATOR + setting.dtype
    return schema.Modality(
        name=setting.modality,
        width=width(setting),
        backend=setting.backend,
        version=module.VERSION + low,
        checksum=checksum,
        description=description,
        features=() if hasattr(module, "width") else tuple(module.FEATURES),
    )


def width(setting: Setting) -> int:
    """Returns the number of features of one backend."""
    module = setting.module
    return module.width(setting) if hasattr(module, "width") else len(module.FEATURES)


def dtype(version: str) -> str:
    """Returns what the networks computed in that measured a modality."""
    low = [name for name in DTYPES if _SEPARATOR + name in version]
    return low[0] if low else "float32"
