"""Names the backends that are networks: what they see, and whose weights they take.

The one thing to know: a network runs in two stages. The processes that decode clips
only cut out what it will see (`ClipFeatures.pending`); `extract.device` then runs it,
on batches over many clips, in the one process that owns the device. This module is the
light part, which every process imports; it imports no JAX.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from extract import crops
from extract.networks import weights
from tqa_jax import schema

_SEPARATOR = ", "  # between a version and what the network computed in


@dataclasses.dataclass(frozen=True)
class Kind:
    """A backend that is a network.

    Attributes:
        modality: what it measures.
        version: of everything but the weights: crops, preprocessing, resampling.
        source: the weights that it takes unless others are given.
        width: features a row, from the `config.json` of the weights.
        description: one line for people.
        settings: what `preprocessor_config.json` must say, where it says anything.
        kind: what `config.json` must call the network, where it says anything.
    """

    modality: str
    version: str
    source: weights.Source
    width: Callable[[Mapping[str, Any]], Any]
    description: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: str = ""


def _last_size(config: Mapping[str, Any]) -> Any:
    sizes = config.get("hidden_sizes")
    return sizes[-1] if isinstance(sizes, list) and sizes else sizes


_SPEECH = {"do_normalize": True, "sampling_rate": 16000}
LOCAL = "weights: local"
"""In the description of features whose weights no hub has."""

KINDS: Mapping[str, Kind] = {
    "resnet101": Kind(
        modality="visual",
        version=f"1.{crops.VERSION}",
        source=weights.RESNET101,
        width=_last_size,
        description="ResNet of the aligned face, mean over positions",
        kind="resnet",
        settings={
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    ),
    "clip": Kind(
        modality="visual",
        version=f"1.{crops.VERSION}",
        source=weights.CLIP,
        width=lambda config: config.get("projection_dim", 512),
        description="CLIP's image embedding of the aligned face",
    ),
    "hubert": Kind(
        modality="audio",
        version="1",
        source=weights.HUBERT,
        width=lambda config: config.get("hidden_size", 768),
        description="HuBERT's last hidden state, from 50 Hz to the rows' instants",
        kind="hubert",
        settings=_SPEECH,
    ),
    "wav2vec2": Kind(
        modality="audio",
        version="1",
        source=weights.WAV2VEC2,
        width=lambda config: config.get("hidden_size", 768),
        description="Wav2Vec2's last hidden state, from 50 Hz to the rows' instants",
        kind="wav2vec2",
        settings=_SPEECH,
    ),
    "syncnet": Kind(
        modality="sync",
        version="1",
        source=weights.SYNCNET,
        width=lambda config: 4,
        description=(
            "SyncNet over about 2 s around the row: LSE-D, LSE-C, lag in frames "
            "(positive: audio late) and 1 where there was anything to compare"
        ),
    ),
}
"""Backends by name."""


def names(modality: str) -> tuple[str, ...]:
    """Returns the backends of a modality."""
    return tuple(name for name, kind in KINDS.items() if kind.modality == modality)


def find(name: str, given: str | pathlib.Path | None) -> weights.Found:
    """Finds a network's weights.

    Args:
        name: of `KINDS`.
        given: file, folder or `owner/name@revision`; None takes the kind's own.

    Raises:
        schema.InputError: they are not there, and the line says how to get them; or
            what is beside them asks for another preparation.
    """
    kind = KINDS[name]
    found = weights.find(kind.source, given)
    if weights.CONFIG in kind.source.settings and not found.config:
        raise schema.InputError(
            f"{name} needs {weights.CONFIG} beside its weights, which {found.origin} "
            "lacks; give a folder in the hub's format"
        )
    called = found.config.get("model_type", kind.kind)
    if kind.kind and called != kind.kind:
        raise schema.InputError(
            f"{found.origin} is of kind {called!r} by its {weights.CONFIG}; the "
            f"backend {name} expects {kind.kind!r}"
        )
    for key, value in kind.settings.items():
        given_value = found.preprocessor.get(key, value)
        if given_value != value:
            raise schema.InputError(
                f"{weights.PREPROCESSOR} of {found.origin} has {key} {given_value!r}; "
                f"the backend {name} prepares its input with {value!r}"
            )
    return found


def describe(name: str, found: weights.Found, dtype: str) -> schema.Modality:
    """Describes what a network measures, for the data set.

    Args:
        name: of `KINDS`.
        found: its weights.
        dtype: what it computes in; other than float32 it is part of the version.
    """
    kind = KINDS[name]
    width = kind.width(found.config)
    if not isinstance(width, int) or width < 1:
        raise schema.InputError(
            f"{weights.CONFIG} of {found.origin} has no usable width: {width!r}"
        )
    low = "" if dtype == "float32" else _SEPARATOR + dtype
    return schema.Modality(
        name=kind.modality,
        width=width,
        backend=name,
        version=kind.version + low,
        checksum=found.checksum,
        description=f"{kind.description}; weights: {found.origin}",
    )


def dtype(version: str) -> str:
    """Returns what the network computed in that measured a modality."""
    return version.partition(_SEPARATOR)[2] or "float32"
