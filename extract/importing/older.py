"""Features of the older PyTorch system as modalities of a data set.

The files hold no lengths and no time stamps. Rows that cannot have been measured become
NaN, the others are kept as they are, row t of one modality at another time than row t
of the next.

A row of zeros is padding (no modality measures exact zeros throughout), a row of NaN a
picture without a face. In standardised files zeros became some constant: there the
rows at the end that equal each other are padding, and imputed rows cannot be found.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from extract import importing
from extract.backends import geometry as distances
from tqa_jax import schema

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


def modalities(
    samples: Sequence[importing.Sample], geometry: bool, standardised: bool
) -> tuple[schema.Modality, ...]:
    """Describes the modalities that any sample has, in our order.

    Args:
        samples: as in the file.
        geometry: whether the units' division by their maximum is undone.
        standardised: whether the file is.
    """
    made = []
    for key, (name, text) in MODALITIES.items():
        backend, version = "original", "standardised" if standardised else "raw"
        if standardised:
            text += "; imputed and standardised with statistics of each split"
        if key == "au" and geometry:
            backend, version = "geometry", distances.VERSION
            text = distances.DESCRIPTION + "; mesh of Face Mesh"
        for sample in samples:
            if key in sample.features:
                width = sample.features[key].shape[-1]
                made.append(
                    schema.Modality(name, width, backend, version, description=text)
                )
                break
    return tuple(made)


def is_geometry(samples: Sequence[importing.Sample]) -> bool:
    """Whether every measured row of the action units was divided by its maximum."""
    for sample in samples:
        if "au" in sample.features:
            rows = sample.features["au"]
            rows = rows[measured(rows, False)]
            width = len(distances.UNITS)
            if rows.shape[-1] != width or not distances.undo_scaling(rows)[1].all():
                return False
    return True


def measured(
    rows: Float[np.ndarray, "T D"], standardised: bool
) -> Bool[np.ndarray, " T"]:
    """Returns True for rows that were measured."""
    mask = np.isfinite(rows).any(axis=-1)
    if not standardised:
        return mask & (np.nan_to_num(rows) != 0).any(axis=-1)
    same = (rows == rows[-1:]).all(axis=-1)  # zeros that the scaling moved
    padded = len(rows) if same.all() else int(np.argmin(same[::-1]))
    if padded > 1:
        mask[-padded:] = False
    return mask


def has_rows(sample: importing.Sample, standardised: bool) -> bool:
    """Whether any row was measured; `syncnet` has none of its own."""
    streams = (rows for key, rows in sample.features.items() if key != "syncnet")
    return any(measured(rows, standardised).any() for rows in streams)


def features(
    sample: importing.Sample, geometry: bool, standardised: bool
) -> dict[str, np.ndarray]:
    """Returns a sample's features by our names, without padding.

    Args:
        sample: one that `has_rows`, as in the file.
        geometry: as given to `modalities`.
        standardised: whether the file is.

    Returns:
        Rows up to the last that was measured, NaN in those that were not.
    """
    found = {}
    for key, rows in sample.features.items():
        if key != "syncnet":
            mask = measured(rows, standardised)
            rows = np.where(mask[:, None], rows, np.nan)
            if key == "au" and geometry:
                rows, _ = distances.undo_scaling(rows)
            found[MODALITIES[key][0]] = rows[
                : np.max(np.flatnonzero(mask) + 1, initial=0)
            ]
    if "syncnet" in sample.features:
        count = max(map(len, found.values()))
        found["sync"] = np.tile(sample.features["syncnet"], (count, 1))
    return found
