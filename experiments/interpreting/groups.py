"""Groups of a modality's features that mean something together.

The one thing to know: groups are made of the names that the extractor gives its
features, and every feature is in exactly one of them. Where the extractor is not ours,
or of another version, groups are single columns or blocks of neighbours, and say so.
"""

from typing import NamedTuple

import numpy as np

from tqa_jax import schema

_SINGLE = 24  # Columns up to which each is a group where names are not known.
_BLOCKS = 8


class Group(NamedTuple):
    """Columns of a modality under one name."""

    name: str
    columns: np.ndarray


def of(modality: schema.Modality) -> tuple[list[Group], bool]:
    """Groups the features of a modality.

    Args:
        modality: of a data set.

    Returns:
        The groups, and whether they are those of a known extractor.

    Raises:
        InputError: when the extractor is ours and cannot be loaded.
    """
    groups = _groups_of_features(modality)
    if groups is None:
        return _unnamed(modality.width), False
    found: dict[str, list[int]] = {}
    for column, name in enumerate(groups):
        found.setdefault(name, []).append(column)
    return [Group(name, np.array(columns)) for name, columns in found.items()], True


def _groups_of_features(modality: schema.Modality) -> list[str] | None:
    """Names the group of each feature, for backends of this version."""
    try:
        from extract import backends
    except ImportError as error:
        raise schema.InputError(
            f"the names of {modality.name} ({modality.backend}) need its extractor: "
            f"pip install 'tqa_jax[extract]' ({error})"
        ) from error
    groups: list[str] = []
    joined = zip(modality.backend.split("+"), modality.version.split("+"), strict=False)
    for backend, version in joined:
        module = backends.load(backend) if backend in backends.names() else None
        if module is None or module.VERSION != version:
            return None
        name_of = getattr(module, "group", str)
        groups += [name_of(feature) for feature in getattr(module, "FEATURES", ())]
    return groups if len(groups) == modality.width else None


def _unnamed(width: int) -> list[Group]:
    if width <= _SINGLE:
        return [Group(f"column {i}", np.array([i])) for i in range(width)]
    blocks = np.array_split(np.arange(width), _BLOCKS)
    return [Group(f"columns {b[0]} to {b[-1]}", b) for b in blocks]
