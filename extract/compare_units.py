r"""Compares action units of the same clips from two or three backends.

    python -m extract.compare_units --clip=a.mp4 --openface=a.csv --out=a.png
    python -m extract.compare_units --clip=clips/ --openface=tables/ --out=compared/

The one thing to know: the backends' scales differ, so curves are standardised and only
their shapes are compared: Pearson correlation over the rows that all backends
measured. A unit that does not vary in a backend has none.

The first form writes the figure and `a.csv` beside it, the second a figure for each
clip and `correlations.csv` with all of them. Without `--openface`, or where a clip has
no table `<clip>.csv`, `blendshapes` and `geometry` are compared. Drawing needs
Matplotlib, of the extra `studies`, and no display.
"""

import argparse
import csv
import dataclasses
import io
import itertools
import pathlib
import statistics
import sys
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from tqa_jax import cli, output, schema

with cli.imports():
    from extract import action_units, decode, labels, landmarks, openface

BACKENDS = ("openface", "blendshapes", "geometry")
PAIRS = tuple(itertools.combinations(BACKENDS, 2))
UNITS = {
    1: "inner brow raiser",
    2: "outer brow raiser",
    4: "brow lowerer",
    5: "upper lid raiser",
    6: "cheek raiser",
    7: "lid tightener",
    9: "nose wrinkler",
    10: "upper lip raiser",
    12: "lip corner puller",
    14: "dimpler",
    15: "lip corner depressor",
    17: "chin raiser",
    20: "lip stretcher",
    23: "lip tightener",
    25: "lips part",
    26: "jaw drop",
    28: "lip suck",
    45: "blink",
}
"""Units that any backend has, and what FACS calls them."""

_MIN_ROWS = 3
_FLAT = 1e-5  # spread, as a share of the largest value, that is none
_COLOURS = {"openface": "black", "blendshapes": "tab:blue", "geometry": "tab:orange"}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The units of one clip.

    Attributes:
        name: of the clip.
        seconds: time of each row that all backends measured.
        values: by backend and unit, a value for each of these rows.
        correlations: by pair of backends and unit; None where it is undefined, and no
            entry where one of the two lacks the unit.
    """

    name: str
    seconds: Float[np.ndarray, " R"]
    values: Mapping[str, Mapping[int, Float[np.ndarray, " R"]]]
    correlations: Mapping[tuple[str, str], Mapping[int, float | None]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 3 when clips were rejected."""
    given = _parse(arguments)
    return cli.run(lambda: _run(given.clip, given.openface, given.out))


def compare(name: str, rows: Mapping[str, Float[np.ndarray, "T 17"]]) -> Comparison:
    """Correlates the units of every pair of backends.

    Args:
        name: of the clip.
        rows: by backend, its features, NaN where missing.
    """
    known = np.logical_and.reduce([np.isfinite(v).all(axis=-1) for v in rows.values()])
    order = {backend: openface.UNITS for backend in rows}
    if "geometry" in rows:
        order["geometry"] = action_units.GEOMETRY_UNITS
    values = {
        backend: dict(zip(order[backend], rows[backend][known].T, strict=True))
        for backend in rows
    }
    return Comparison(
        name,
        np.flatnonzero(known) / schema.FPS,
        values,
        {
            (one, other): {
                unit: _correlation(values[one][unit], values[other][unit])
                for unit in UNITS
                if unit in values[one] and unit in values[other]
            }
            for one, other in PAIRS
            if one in values and other in values
        },
    )


def measure(
    clip: pathlib.Path, table: pathlib.Path | None, model: pathlib.Path
) -> Comparison:
    """Measures a clip with all backends.

    Args:
        clip: the video.
        table: OpenFace's table of it, or None.
        model: from `landmarks.find_model`.

    Raises:
        decode.ClipError: the clip cannot be used.
        schema.InputError: the table cannot be used.
    """
    media = decode.Media()
    points, shapes = [], []
    with landmarks.tracker(model) as find:
        for pixels in decode.frames(clip, media):
            face = find(pixels)
            points.append(np.full((478, 3), np.nan) if face is None else face.points)
            shapes.append(np.full(52, np.nan) if face is None else face.blendshapes)
    rows = {
        "blendshapes": action_units.from_blendshapes(np.stack(shapes)),
        "geometry": action_units.from_geometry(np.stack(points)),
    }
    if table is not None:
        read, _ = openface.read(table, len(points), media.frame_seconds)
        rows = {"openface": read, **rows}
    found = compare(clip.name, rows)
    if len(found.seconds) < _MIN_ROWS:
        raise decode.ClipError(
            f"only {len(found.seconds)} of {len(points)} rows have a face in all "
            f"backends; expected at least {_MIN_ROWS}"
        )
    return found


def draw(found: Comparison) -> bytes:
    """Draws every unit over time, standardised, as a PNG."""
    from matplotlib import figure  # Of the extra `studies`.

    canvas = figure.Figure(figsize=(14, 15), layout="constrained")
    panels = canvas.subplots(6, 3, sharex=True).flat
    for panel, (unit, text) in zip(panels, UNITS.items(), strict=True):
        for backend, units in found.values.items():
            if unit in units:
                panel.plot(
                    found.seconds,
                    _standard(units[unit]),
                    color=_COLOURS[backend],
                    linewidth=0.9,
                    label=backend,
                )
        told = ", ".join(
            _told(values[unit]) for values in found.correlations.values()
            if unit in values
        )  # fmt: skip
        panel.set_title(f"AU{unit:02d} {text}   r {told or 'none'}", fontsize=9)
        panel.tick_params(labelsize=7)
    pairs = "; ".join(f"{one} with {other}" for one, other in found.correlations)
    name = found.name.encode("utf-8", "replace").decode()
    canvas.suptitle(
        f"{name}: standardised action units\nr of {pairs}", parse_math=False
    )
    canvas.supxlabel("seconds")
    lines = {backend: _COLOURS[backend] for backend in found.values}
    first = canvas.axes[0]
    canvas.legend(
        [line for line in first.get_lines() if line.get_label() in lines],
        list(lines),
        loc="outside lower right",
        ncols=len(lines),
    )
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A clip's name may have letters that the font lacks; they become boxes.
        warnings.filterwarnings("ignore", "Glyph")
        canvas.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _run(clip: pathlib.Path, table: pathlib.Path | None, out: pathlib.Path) -> int:
    cli.need("matplotlib")
    model = landmarks.find_model()
    landmarks.check_library(model)
    if not clip.is_dir():
        if out.suffix.lower() != ".png":
            raise schema.InputError(
                f"--out is {out}; expected a name that ends in .png"
            )
        for path, what in ((clip, "clip"), (table, "OpenFace table")):
            if path is not None and not path.is_file():
                raise schema.InputError(f"no {what} at {path}")
        try:
            found = measure(clip, table, model)
        except decode.ClipError as error:
            raise schema.InputError(f"{clip}: {error}") from error
        numbers = out.with_name(f"{out.stem}_correlations.csv")
        if numbers.exists() and table is not None and numbers.samefile(table):
            raise schema.InputError(
                f"{table} would be overwritten; choose another --out"
            )
        output.write(out, draw(found))
        output.write(numbers, _csv([found]))
        print(f"{_text([found])}\n{out}\n{numbers}")
        return 0
    return _run_folder(clip, table, out, model)


def _run_folder(
    folder: pathlib.Path,
    tables: pathlib.Path | None,
    out: pathlib.Path,
    model: pathlib.Path,
) -> int:
    clips = labels.videos(folder)
    if not clips:
        raise schema.InputError(f"no clips in {folder}")
    if tables is not None and not tables.is_dir():
        raise schema.InputError(f"no folder of OpenFace tables at {tables}")
    out.mkdir(parents=True, exist_ok=True)
    done, rejected = [], 0
    for clip in clips:
        table = None if tables is None else tables / f"{clip.stem}.csv"
        if table is not None and not table.is_file():
            print(f"note on {clip.name}: no OpenFace table {table}")
            table = None
        try:
            found = measure(clip, table, model)
        except decode.ClipError as error:
            print(f"rejected {clip.name}: {error}")
            rejected += 1
            continue
        name = clip.relative_to(folder).as_posix()
        done.append(dataclasses.replace(found, name=name))
        output.write(out / f"{name.replace('/', '__')}.png", draw(done[-1]))
    if not done:
        raise schema.InputError(f"none of {len(clips)} clips in {folder} can be used")
    output.write(out / "correlations.csv", _csv(done))
    print(f"{_text(done)}\n{out / 'correlations.csv'}")
    return 3 if rejected else 0


def _correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    if len(one) < _MIN_ROWS or not (one.any() and other.any()):
        return None
    first, second = _standard(one), _standard(other)
    if not (first.any() and second.any()):
        return None
    return float(np.clip((first * second).mean(), -1, 1))


def _standard(values: np.ndarray) -> np.ndarray:
    """Returns z-scores; zeros for what does not vary."""
    values = values.astype(np.float64)
    spread = values.std()
    if spread <= _FLAT * np.abs(values).max(initial=0):
        return np.zeros_like(values)
    return (values - values.mean()) / spread


def _csv(comparisons: Sequence[Comparison]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip", "unit", "rows", *map("_".join, PAIRS)])
    for found in comparisons:
        for unit in UNITS:
            values = [found.correlations.get(pair, {}).get(unit) for pair in PAIRS]
            cells = ["" if value is None else f"{value:.4f}" for value in values]
            writer.writerow([found.name, f"AU{unit:02d}", len(found.seconds), *cells])
    return text.getvalue()


def _text(comparisons: Sequence[Comparison]) -> str:
    """Returns a table of correlations, medians over the clips."""
    pairs = [p for p in PAIRS if any(p in found.correlations for found in comparisons)]
    heads = [f"{one}-{other}" for one, other in pairs]
    lines = [f"{'unit':28}" + "".join(f"{head:>24}" for head in heads)]
    for unit, text in UNITS.items():
        line = f"AU{unit:02d} {text:23}"
        for pair in pairs:
            found = [c.correlations.get(pair, {}).get(unit) for c in comparisons]
            known = [value for value in found if value is not None]
            line += f"{_told(statistics.median(known) if known else None):>24}"
        lines.append(line)
    several = len(comparisons) > 1
    what = f"median of {len(comparisons)} clips" if several else comparisons[0].name
    return "\n".join([f"Pearson correlation over rows, {what}", *lines])


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.parser(
        prog="python -m extract.compare_units",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, required, text in (
        ("clip", True, "video file, or a folder of them"),
        (
            "openface",
            False,
            "OpenFace's table of the clip, or a folder with <clip>.csv",
        ),
        ("out", True, "figure to write (.png), or a folder for those of a folder"),
    ):
        parser.add_argument(
            f"--{name}", help=text, required=required, type=cli.path, metavar="PATH"
        )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
