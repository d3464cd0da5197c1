"""What the features of a data set hold: the modalities' half of `audit`.

The one thing to know: clips pass by once and are reduced to running statistics, so the
memory needed depends on the number of features and clips, not on their length.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from tqa_jax import records, schema

_MOSTLY = 0.5
_EDGE_ROWS = 5  # 0.2 s: how far first and last measured row may be from the others'
_PADDED = 0.1  # share of clips with a tail of zeros from which it is no accident
_CONSTANT = 1e-6  # relative range of a feature without information
_SYNC = ("offset_frames", "confidence", "validity")  # features of a modality
_OFFSET_FRAMES = 2.0
_CHANCE = 0.01  # of an offset that is flagged though the clips scatter around zero


class Features:
    """Statistics of every modality of every split, gathered clip by clip."""

    def __init__(self, of: schema.Schema) -> None:
        """Starts with no clips.

        Args:
            of: the data set's.
        """
        self._widths = widths = of.widths
        self._sync = {
            modality.name: [modality.features.index(name) for name in _SYNC]
            for modality in of.modalities
            if set(_SYNC) <= set(modality.features)
        }
        self._measured: dict[str, dict[str, _Measured]] = {n: {} for n in widths}
        self._offsets: list[tuple[float, float]] = []  # of training clips, see below
        self._duplicates = _Duplicates()

    def add(self, split: str, clip: records.Clip) -> None:
        """Takes a clip of a split into account."""
        for name, width in self._widths.items():
            found = self._measured[name].setdefault(split, _Measured(width))
            found.add(clip.features[name], clip.frame_mask[name])
        self._compare_edges(split, clip)
        self._duplicates.add(split, clip)
        if split == "train":
            for name, columns in self._sync.items():
                self._offsets += _sync_offset(clip, name, columns)

    def modalities(self) -> dict[str, dict[str, Any]]:
        """Returns statistics by modality and split; shares are 0 to 1."""
        return {
            name: {split: found.to_json() for split, found in splits.items()}
            for name, splits in self._measured.items()
        }

    def sync_offset(self) -> dict[str, Any]:
        """Returns the audio-video offset of the training clips.

        Single offsets are often wrong, so medians are weighted by the confidence that
        `sync` gives: over the valid rows of a clip, then over clips.

        Returns:
            `clips` that have an offset; their `median` in frames, positive when the
            audio is late; and `chance`, how likely so many clips would be off to the
            median's side if each side were as likely (sign test).
        """
        if not self._offsets:
            return {"clips": 0, "median": None, "chance": None}
        offsets, weights = np.array(self._offsets).T
        median = _weighted_median(offsets, weights)
        same_side = int((offsets * np.sign(median) > 0).sum())
        test = stats.binomtest(same_side, len(offsets), alternative="greater")
        chance = float(test.pvalue) if median else 1.0
        return {"clips": len(offsets), "median": median, "chance": chance}

    def flags(self) -> list[str]:
        """Returns a line for everything that is wrong with the features."""
        return [
            *_modality_flags(self.modalities(), self._widths),
            *_offset_flags(self.sync_offset()),
            *_duplicate_flags(self._duplicates.pairs),
        ]

    def _compare_edges(self, split: str, clip: records.Clip) -> None:
        """Counts modalities whose measured rows start or end apart from the others'."""
        edges = {
            name: np.flatnonzero(mask)[[0, -1]]
            for name, mask in clip.frame_mask.items()
            if mask.any()
        }
        for name, own in edges.items():
            others = [edge for other, edge in edges.items() if other != name]
            if others:
                apart = np.abs(own - np.median(others, axis=0)).max()
                self._measured[name][split].compared += 1
                self._measured[name][split].off_edge += int(apart > _EDGE_ROWS)


@dataclasses.dataclass
class _Measured:
    """Running statistics of one modality in one split."""

    width: int
    clips: int = 0
    without: int = 0  # clips with no measured row
    rows: int = 0
    masked: int = 0
    missing: int = 0  # values of measured rows that are not finite
    compared: int = 0  # clips in which another modality was measured too
    off_edge: int = 0  # of those, clips whose first or last row is elsewhere
    padded: int = 0

    def __post_init__(self) -> None:
        self.low = np.full(self.width, np.inf)
        self.high = np.full(self.width, -np.inf)

    def add(self, rows: Float[np.ndarray, "T D"], mask: np.ndarray) -> None:
        self.clips += 1
        self.rows += len(mask)
        self.masked += int((~mask).sum())
        rows = rows[mask]
        if not len(rows):
            self.without += 1
            return
        finite = np.isfinite(rows)
        self.missing += int((~finite).sum())
        np.minimum(self.low, np.where(finite, rows, np.inf).min(axis=0), out=self.low)
        np.maximum(
            self.high, np.where(finite, rows, -np.inf).max(axis=0), out=self.high
        )
        tail = rows[-_EDGE_ROWS:]
        self.padded += int(len(rows) > _EDGE_ROWS and not tail.any())

    @property
    def constant_features(self) -> int:
        """Features without any spread; a feature never measured counts as one."""
        scale = np.maximum(np.abs(self.low), np.abs(self.high))
        with np.errstate(invalid="ignore"):
            varies = self.high - self.low > _CONSTANT * scale
        return int((~varies).sum())

    def to_json(self) -> dict[str, Any]:
        values = (self.rows - self.masked) * self.width
        return {
            "clips": self.clips,
            "clips_without": self.without,
            "rows": self.rows,
            "masked": _share(self.masked, self.rows),
            "missing": _share(self.missing, values),
            "constant_features": self.constant_features,
            "misaligned_clips": _share(self.off_edge, self.compared),
            "zero_padded_clips": _share(self.padded, self.clips - self.without),
        }


class _Duplicates:
    """Finds clips of different splits with the same features."""

    def __init__(self) -> None:
        self._first: dict[bytes, tuple[str, str]] = {}
        self.pairs: dict[str, list[tuple[str, str]]] = {}  # of what -> clips

    def add(self, split: str, clip: records.Clip) -> None:
        digests = {}
        for name, rows in clip.features.items():
            rows = np.nan_to_num(rows[clip.frame_mask[name]])
            # Rows that are all alike (a default value, say) are shared by accident.
            if len(rows) and (rows != rows[0]).any():
                data = name.encode() + rows.tobytes()
                digests[name] = hashlib.blake2b(data, digest_size=16).digest()
        if not digests:
            return
        whole = hashlib.blake2b(b"".join(digests.values()), digest_size=16).digest()
        if not self._seen("", whole, split, clip.clip) and len(digests) > 1:
            for name, digest in digests.items():
                self._seen(name, digest, split, clip.clip)

    def _seen(self, what: str, digest: bytes, split: str, clip: str) -> bool:
        other_split, other = self._first.setdefault(digest, (split, clip))
        if other_split == split:
            return False
        pair = (f"{other_split} {other}", f"{split} {clip}")
        self.pairs.setdefault(what, []).append(pair)
        return True


def _sync_offset(
    clip: records.Clip, name: str, columns: Sequence[int]
) -> list[tuple[float, float]]:
    """Returns a clip's offset in frames and its confidence, or nothing."""
    rows = clip.features[name][clip.frame_mask[name]][:, columns]
    offset, confidence, valid = rows[np.isfinite(rows).all(axis=-1)].T
    good = (valid >= 0.5) & (confidence > 0)
    if not good.any():
        return []
    offset, confidence = offset[good], confidence[good]
    return [(_weighted_median(offset, confidence), float(confidence.mean()))]


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(below, below[-1] / 2)])


def _modality_flags(
    modalities: Mapping[str, Mapping[str, Any]], widths: Mapping[str, int]
) -> list[str]:
    flags = []
    for name, splits in modalities.items():
        seen = {
            s: row for s, row in splits.items() if row["clips_without"] < row["clips"]
        }
        never = [split for split in splits if split not in seen]
        if never:
            flags.append(f"modality {name!r} was never measured in {_listed(never)}")
        same = [
            s for s, row in seen.items() if row["constant_features"] == widths[name]
        ]
        if same:
            flags.append(f"modality {name!r} is constant in {_listed(same)}")
        for key, limit, what in (
            ("masked", _MOSTLY, "is mostly masked (rows without a measurement)"),
            ("missing", _MOSTLY, "is mostly NaN or infinite"),
            (
                "misaligned_clips",
                _MOSTLY,
                "is misaligned in time: it starts or ends more than "
                f"{_EDGE_ROWS} rows from the other modalities (clips)",
            ),
            (
                "zero_padded_clips",
                _PADDED,
                "ends in rows of zeros that are not masked (clips)",
            ),
        ):
            above = [
                f"{split} {row[key]:.0%}"
                for split, row in seen.items()
                if row[key] is not None and row[key] > limit
            ]
            if above:
                flags.append(f"modality {name!r} {what}: {', '.join(above)}")
    return flags


def _offset_flags(offset: Mapping[str, Any]) -> list[str]:
    if offset["median"] is None or abs(offset["median"]) < _OFFSET_FRAMES:
        return []
    if offset["chance"] > _CHANCE:
        return []
    return [
        f"audio and video are {offset['median']:+.1f} frames apart in the median of "
        f"{offset['clips']} training clips: clips or extraction are out of step"
    ]


def _duplicate_flags(pairs: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    flags = []
    for what, found in pairs.items():
        kind = f"{what} features" if what else "features"
        flags.append(
            f"clips with the same {kind} as a clip of another split: {len(found)}, "
            f"for example {found[0][0]!r} and {found[0][1]!r}"
        )
    return flags


def _listed(splits: Sequence[str]) -> str:
    return ", ".join(repr(split) for split in splits)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
