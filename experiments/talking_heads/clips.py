r"""The clips of THQA: ratings, features, and the data set that the importer makes.

The one thing to know: the data set has the five tasks of the default schema, and of
four of them no clip has a label. Only `overall` was rated.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from extract import csv_file, tables
from tqa_jax import output, records, schema

TASKS = ("lip_sync", "expression", "audio_quality", "cross_modal", "overall")
RATED = "overall"
LOW, HIGH = 0.0, 5.0
"""Ends of the scale of the ratings."""
SCORES, FRAMES = "vvmf_results_a01.csv", "lib_c.csv"

_CLIP, _SCORE = "Image", "Score"
_NAME = re.compile(r"(\d+)_.*_([^_]+)")
_SUMMARY = "brisque:confi"
_QUALITY = "brisque:buffalo"


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips in the order of the table.

    Attributes:
        names: ids, as `1_voice_en_35042678_dinet`.
        faces: who is shown, the first part of the id.
        generators: what made the clip, the last part.
        labels: mean opinion scores.
        means: (N, D) features of a clip.
        spreads: (N, F) log standard deviation of each feature over key frames.
        frames: key frames of each clip as the importer stored them.
        schema: of the data set.
    """

    names: tuple[str, ...]
    faces: np.ndarray
    generators: np.ndarray
    labels: np.ndarray
    means: np.ndarray
    spreads: np.ndarray
    frames: tuple[records.Clip, ...]
    schema: schema.Schema

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.names)

    def features(self, kind: str) -> np.ndarray:
        """Features of a clip: its `means`, or `means and spreads`."""
        if kind == "means":
            return self.means
        return np.concatenate([self.means, self.spreads], axis=-1)


def load(folder: pathlib.Path, out: pathlib.Path) -> Clips:
    """Reads the two tables and makes the data set, unless it is there.

    Args:
        folder: that has `SCORES` and `FRAMES`.
        out: folder for the data set.

    Raises:
        InputError: for a table that is missing or does not fit, or a data set in `out`
            that was made from other tables.
    """
    scores = csv_file.read(folder / SCORES, _CLIP)
    lines = [rows[0] for rows in scores.by(_CLIP).values()]
    names = [row.cells[_CLIP] for row in lines]
    parsed = [_parse(name) for name in names]
    columns = [scores.need(_SCORE), *scores.columns(_SUMMARY)]
    rows = scores.numbers(lines, columns)
    for row, column in np.argwhere(np.isnan(rows))[:1]:
        raise schema.InputError(
            f"{scores.name}: {columns[column]} of {names[row]} is no number; expected "
            "all of them"
        )
    info = _dataset(folder, scores, out)
    found = {
        clip.clip: clip
        for split in info.splits
        for clip in records.read_split(out, info, split)
    }
    frames = tuple(found[name] for name in names)
    spreads = [np.nanstd(clip.features["visual"], axis=0) for clip in frames]
    return Clips(
        tuple(names),
        np.array([face for face, _ in parsed]),
        np.array([generator for _, generator in parsed]),
        rows[:, 0],
        rows[:, 1:],
        np.log(np.array(spreads, np.float64) + 1e-6),
        frames,
        info.schema,
    )


def _parse(name: str) -> Sequence[str]:
    found = _NAME.fullmatch(name)
    if found is None:
        raise schema.InputError(
            f"clip {name!r} names no face and generator; expected "
            "<face>_..._<generator>, as 1_voice_en_35042678_dinet"
        )
    return found.groups()


def _dataset(
    folder: pathlib.Path, scores: csv_file.Table, out: pathlib.Path
) -> schema.DatasetInfo:
    """Makes the data set from the tables, with a column without cells a missing task.

    The importer splits by face. The study draws its own folds and reads all clips.
    """
    if out.exists():
        return _same_tables(schema.load(out), scores, folder)
    absent = [task for task in TASKS if task != RATED]
    rows = [[*row.cells.values(), *[""] * len(absent)] for row in scores.rows]
    extended = out.with_name(out.name + ".csv")
    output.write(extended, output.table([*scores.header, *absent], rows))
    tables.convert(
        tables.Options(
            table=extended,
            frames=folder / FRAMES,
            out=out,
            name="thqa",
            clip=_CLIP,
            source=r"(\d+)_",
            task=tuple(f"{t}={_SCORE if t == RATED else t}" for t in TASKS),
            score_range=f"{LOW},{HIGH}",
            modality=(f"summary={_SUMMARY}",),
            frame_modality=(f"visual={_QUALITY}",),
        )
    )
    return schema.load(out)


def _same_tables(
    info: schema.DatasetInfo, scores: csv_file.Table, folder: pathlib.Path
) -> schema.DatasetInfo:
    """Refuses a data set of other clips; the study's settings check the checksums."""
    count = sum(split.clips for split in info.splits.values())
    if count != len(scores.rows):
        raise schema.InputError(
            f"the data set of --out has {count} clips and {folder} has "
            f"{len(scores.rows)}; give another --out"
        )
    return info
