import csv
import os
import pathlib

import numpy as np
import pytest

from extract.backends import openface
from tqa_jax import schema

SHARED = pathlib.Path(os.environ.get("TQA_SHARED", "../shared"))


def _table(path, *, header=None, rows=10, **columns) -> pathlib.Path:
    """Writes an OpenFace table whose unit j of line i is (i + j) / 10."""
    names = [f"{name}_r" for name in openface.FEATURES]
    lines = [", ".join([*columns, *names] if header is None else header)]
    for row in range(rows):
        units = [f"{(row + j) / 10:.3f}" for j in range(len(names))]
        lines.append(", ".join([*(str(c[row]) for c in columns.values()), *units]))
    path.write_text("\n".join(lines) + "\n")
    return path


def _times(rows: int, step: float) -> list[float]:
    return [round(step * row, 4) for row in range(rows)]


def test_lines_are_placed_by_their_time_and_interpolated(tmp_path):
    path = _table(tmp_path / "a.csv", timestamp=_times(10, 1 / 30))
    values, mask = openface.read(path, 12, [])
    rows = np.arange(12) / 25
    np.testing.assert_array_equal(mask, rows <= 0.3 + 0.5 / 25)
    expected = np.minimum(rows * 30, 9)[mask] / 10  # a line's unit 0 is its number / 10
    np.testing.assert_allclose(values[mask, 0], expected, atol=1e-4)
    np.testing.assert_allclose(values[mask, 16], expected + 1.6, atol=1e-4)
    assert np.isnan(values[~mask]).all()


def test_beside_a_missing_line_the_nearest_is_taken(tmp_path):
    success = [1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    path = _table(tmp_path / "a.csv", timestamp=_times(10, 1 / 30), success=success)
    values, mask = openface.read(path, 8, [])
    # Rows 2 and 3 lie at lines 2.4 and 3.6; line 3 is missing.
    assert mask.all()
    expected = [0, 0.12, 0.2, 0.4, 0.48, 0.6, 0.72, 0.84]
    np.testing.assert_allclose(values[mask, 0], expected, atol=2e-4)


def test_no_value_is_made_up_across_a_gap(tmp_path):
    times = [0.0, 0.04, 0.08, *(round(0.4 + 0.04 * row, 2) for row in range(7))]
    values, mask = openface.read(_table(tmp_path / "a.csv", timestamp=times), 17, [])
    np.testing.assert_array_equal(np.flatnonzero(~mask), np.arange(3, 10))
    np.testing.assert_allclose(values[10, 0], 0.3, atol=1e-6)


def test_lines_without_a_time_are_the_frames_of_the_clip(tmp_path):
    times = _times(10, 0.08)
    for columns in ({}, {"timestamp": _times(10, 0.001)}):
        path = _table(tmp_path / "a.csv", frame=range(1, 11), **columns)
        values, mask = openface.read(path, 19, times)
        assert mask.all()
        np.testing.assert_allclose(values[::2, 0], np.arange(10) / 10, atol=1e-6)


def test_failed_uncertain_and_other_faces_are_missing(tmp_path):
    path = _table(
        tmp_path / "a.csv",
        timestamp=[0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.2, 0.24, 0.28, 0.32],
        success=[1, 1, 0, 0, 0, 1, 1, 1, 1, 1],
        confidence=[0.9] * 8 + [0.2] * 2,
        face_id=[0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
    )
    values, mask = openface.read(path, 9, [])
    np.testing.assert_array_equal(mask, [1, 1, 0, 0, 0, 1, 1, 0, 0])
    assert values[5, 0] == pytest.approx(0.5)


def test_a_useless_table_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("")
    with pytest.raises(schema.InputError, match="^a.csv has no column 'AU01_r'; exp"):
        openface.read(path, 5, [])
    path.write_text("frame,AU01_r\n1,2\n")
    with pytest.raises(schema.InputError, match="'AU02_r'; expected an OpenFace table"):
        openface.read(path, 5, [])
    with pytest.raises(schema.InputError, match="neither a usable timestamp nor"):
        openface.read(_table(path), 5, [])
    _table(path, timestamp=[0, "x", *_times(8, 0.04)])
    with pytest.raises(schema.InputError, match="line 3: timestamp is 'x'"):
        openface.read(path, 5, [])


def _with_cells(path, changes) -> pathlib.Path:
    """Writes a table of ten good lines at 25 a second with some cells replaced."""
    _table(path, timestamp=_times(10, 0.04), confidence=[0.9] * 10, success=[1] * 10)
    lines = [line.split(", ") for line in path.read_text().splitlines()]
    for (line, name), cell in changes.items():
        lines[line][lines[0].index(name)] = cell
    path.write_text("\n".join(", ".join(line) for line in lines) + "\n")
    return path


@pytest.mark.parametrize(
    "cell",
    ["-nan(ind)", "nan", "-nan", "nan(snan)", "NaN", "1.#IND", "-1.#IND00", "1.#QNAN"]
    + ["1.#INF", "inf", "-inf", "1e999", "", " "],
)
@pytest.mark.parametrize("success", ["0", "1"])
def test_a_line_without_an_intensity_is_missing(tmp_path, cell, success):
    changes = {(5, "AU12_r"): cell, (5, "success"): success}
    values, mask = openface.read(_with_cells(tmp_path / "a.csv", changes), 10, [])
    np.testing.assert_array_equal(np.flatnonzero(~mask), [4])
    np.testing.assert_allclose(values[mask, 0], np.arange(10)[mask] / 10, atol=1e-6)


def test_any_word_may_stand_where_openface_failed(tmp_path):
    changes = {(5, "success"): "0", (5, "AU01_r"): "#VALUE!"}
    path = _with_cells(tmp_path / "a.csv", changes)
    _, mask = openface.read(path, 10, [])
    np.testing.assert_array_equal(np.flatnonzero(~mask), [4])
    path.write_text(path.read_text()[:-60])  # The last line is cut off.
    _, mask = openface.read(path, 10, [])
    np.testing.assert_array_equal(np.flatnonzero(~mask), [4, 9])
    changes = {(5, "AU01_r"): "#VALUE!"}
    with pytest.raises(schema.InputError, match="line 6: AU01_r is '#VALUE!'"):
        openface.read(_with_cells(tmp_path / "b.csv", changes), 10, [])


def _shared(*parts: str) -> pathlib.Path:
    path = SHARED.joinpath("data", *parts)
    if not path.is_file():
        pytest.skip(f"no {path}: set TQA_SHARED")
    return path


def test_a_table_of_a_windows_build_is_read():
    path = _shared("odd", "09_openface_nan_ind.csv")
    values, mask = openface.read(path, 80, np.arange(80) / 25)
    np.testing.assert_array_equal(np.flatnonzero(~mask), [20, 21, 22, 23])
    np.testing.assert_allclose(values[mask], 0.5)


@pytest.mark.parametrize(
    "name, lines", [("facsvatar_raw_demo.csv", 490), ("pyfeat_OpenFace_Test.csv", 100)]
)
def test_interpolation_beats_the_nearest_line_on_real_tables(tmp_path, name, lines):
    path = _shared("openface", name)
    truth, mask = openface.read(path, lines + 50, np.arange(lines) / 25)
    assert mask.sum() == lines and mask[:lines].all()
    truth = truth[:lines]
    assert truth.min() >= 0 and truth.max() <= 5
    with path.open(newline="") as file:
        header, *cells = csv.reader(file)
    when = [name.strip() for name in header].index("timestamp")
    for number, line in enumerate(cells):
        line[when] = f"{number / 25:.2f}"  # the second table has 1 ms steps
    thin = tmp_path / "thin.csv"
    with thin.open("w", newline="") as file:
        csv.writer(file).writerows([header, *cells[::2]])
    found, mask = openface.read(thin, lines, [])
    left_out = np.arange(1, lines - 1, 2)
    spread = truth.std(axis=0)
    moving = spread > 0.02

    def error(values):
        off = np.square(values - truth[left_out]).mean(axis=0)
        return (np.sqrt(off)[moving] / spread[moving]).mean()

    assert mask[left_out].all() and np.median(spread) > 0.02
    assert error(found[left_out]) < 0.65 * error(truth[left_out - 1])
