"""Features of the older PyTorch system as modalities of a data set.

The one thing to know: the files hold no lengths and no time stamps. Rows that cannot
have been measured are masked, the others are kept as they are, row t of one modality
at another time than row t of the next.

A row of zeros is padding (no modality measures exact zeros throughout), a row of NaN a
picture without a face. In standardised files zeros became some constant: there the
rows at the end that equal each other are padding, and imputed rows cannot be found.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from extract.backends import geometry as distances
from extract.importing import layouts
from tqa_jax import records, schema

MODALITIES: Mapping[str, tuple[str, str]] = {
    "visual": ("visual", "py-feat: units, emotions, points in pixels; row per face"),
    "audio": ("audio", "HuBERT base, last hidden state, 50 rows a second or resampled"),
    "keypoint": ("keypoints", "468 points of MediaPipe Face Mesh, x, y, z as it gave"),
    "au": ("action_units", "distances named after action units, each row over its max"),
    "syncnet": ("sync", "score and offset of the whole clip, repeated on every row"),
}
"""The older system's name of each modality: ours, and what it is."""
TIME_AXIS = (
    "none: rows are those of the file, at a rate that it does not say and that differs "
    "between modalities; fps is nominal"
)


def widths(path, samples: Sequence[layouts.Sample]) -> dict[str, int]:
    """Returns the width of each modality that the file has, in our order.

    Raises:
        schema.InputError: naming two clips with different widths.
    """
    found: dict[str, tuple[int, str]] = {}
    for sample in samples:
        for key, array in sample.features.items():
            width, first = found.setdefault(key, (array.shape[-1], sample.clip))
            if array.shape[-1] != width:
                raise schema.InputError(
                    f"{path}: {key} has {width} features in {first!r} and "
                    f"{array.shape[-1]} in {sample.clip!r}"
                )
    return {key: found[key][0] for key in MODALITIES if key in found}


def modalities(
    widths: Mapping[str, int], geometry: bool, standardised: bool
) -> tuple[schema.Modality, ...]:
    """Describes the modalities.

    Args:
        widths: from `widths`.
        geometry: whether the units' division by their maximum is undone.
        standardised: whether the file is.
    """
    made = []
    for key, width in widths.items():
        name, text = MODALITIES[key]
        backend, version = "original", "standardised" if standardised else "raw"
        if standardised:
            text += "; imputed and standardised with statistics of each split"
        if key == "au" and geometry:
            backend = "geometry"
            version = distances.VERSION
            text = distances.DESCRIPTION + "; mesh of Face Mesh"
        made.append(schema.Modality(name, width, backend, version, description=text))
    return tuple(made)


def is_geometry(samples: Sequence[layouts.Sample]) -> bool:
    """Whether every measured row of the action units was divided by its maximum."""
    for sample in samples:
        if "au" in sample.features:
            rows = sample.features["au"]
            rows = rows[_mask(rows, False)]
            width = len(distances.UNITS)
            if rows.shape[-1] != width or not distances.undo_scaling(rows)[1].all():
                return False
    return True


def _mask(rows: Float[np.ndarray, "T D"], standardised: bool) -> Bool[np.ndarray, " T"]:
    """Returns True for rows that were measured."""
    mask = np.isfinite(rows).any(axis=-1)
    if not standardised:
        return mask & (np.nan_to_num(rows) != 0).any(axis=-1)
    same = (rows == rows[-1:]).all(axis=-1)  # zeros that the scaling moved
    padded = len(rows) if same.all() else int(np.argmin(same[::-1]))
    if padded > 1:
        mask[-padded:] = False
    return mask


def clip(
    sample: layouts.Sample,
    labels: np.ndarray,
    of: schema.Schema,
    geometry: bool,
    standardised: bool,
) -> records.Clip:
    """Returns a clip of the data set, as long as its longest modality.

    Args:
        sample: one that `has_rows`.
        labels: of the schema's tasks, (K,).
        of: the data set's schema.
        geometry: as given to `modalities`.
        standardised: whether the file is.
    """
    features, masks = {}, {}
    with np.errstate(over="ignore"):  # what float32 cannot hold is missing
        streams = {
            key: np.asarray(rows, np.float32)
            for key, rows in sample.features.items()
            if key != "syncnet"
        }
    found = {key: _mask(rows, standardised) for key, rows in streams.items()}
    count = max(
        int(np.flatnonzero(mask)[-1]) + 1 for mask in found.values() if mask.any()
    )
    for key, (name, _) in MODALITIES.items():
        if name not in of.widths:
            continue
        rows = np.full((count, of.widths[name]), np.nan, np.float32)
        mask = np.zeros(count, bool)
        if key in streams:
            length = min(count, len(streams[key]))
            rows[:length] = streams[key][:length]
            mask[:length] = found[key][:length]
            if key == "au" and geometry:
                rows, _ = distances.undo_scaling(rows)
        elif key in sample.features:
            rows[:] = sample.features[key]
            mask[:] = np.isfinite(rows).all()
        rows[~mask] = np.nan
        features[name], masks[name] = rows, mask
    source = sample.source or sample.clip
    return records.Clip(sample.clip, source, features, masks, labels)


def has_rows(sample: layouts.Sample, standardised: bool) -> bool:
    """Whether any row was measured; `syncnet` has none of its own."""
    return any(
        _mask(rows, standardised).any()
        for key, rows in sample.features.items()
        if key != "syncnet"
    )
