import os
import pathlib

import numpy as np
import pytest

from extract import action_units, landmarks
from tqa_jax import schema

SHARED = pathlib.Path(os.environ.get("TQA_SHARED", "../shared"))


def _table(path, *, header=None, rows=10, **columns) -> pathlib.Path:
    """Writes an OpenFace table whose unit j of line i is (i + j) / 10."""
    names = [f"{name}_r" for name in action_units.FEATURES]
    lines = [", ".join([*columns, *names] if header is None else header)]
    for row in range(rows):
        units = [f"{(row + j) / 10:.3f}" for j in range(len(names))]
        lines.append(", ".join([*(str(c[row]) for c in columns.values()), *units]))
    path.write_text("\n".join(lines) + "\n")
    return path


def _times(rows: int, step: float) -> list[float]:
    return [round(step * row, 4) for row in range(rows)]


def test_units_are_in_openface_order():
    expected = (
        "AU01 AU02 AU04 AU05 AU06 AU07 AU09 AU10 AU12 AU14 AU15 AU17 AU20 AU23 AU25 "
        "AU26 AU45"
    )
    assert " ".join(action_units.FEATURES) == expected


@pytest.mark.parametrize(
    "shapes, unit, expected",
    [
        ({"browInnerUp": 0.5}, 1, 2.5),
        ({"eyeBlinkLeft": 1.0}, 45, 2.5),
        ({"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0}, 45, 5.0),
        ({"jawOpen": 0.6}, 26, 3.0),
        ({"jawOpen": 0.6, "mouthClose": 0.2}, 25, 2.0),
        ({"mouthClose": 0.4}, 25, 0.0),
        ({"mouthLowerDownLeft": 0.8, "mouthLowerDownRight": 0.4}, 25, 3.0),
    ],
)
def test_blendshapes_map_to_units(shapes, unit, expected):
    activations = np.zeros((2, 52), np.float32)
    for name, value in shapes.items():
        activations[0, landmarks.BLENDSHAPES.index(name)] = value
    found = action_units.from_blendshapes(activations)
    column = action_units.UNITS.index(unit)
    assert found[0, column] == pytest.approx(expected)
    np.testing.assert_array_equal(found[1], 0)
    assert found[0].sum() >= expected and found.max() <= 5


def test_missing_blendshapes_stay_missing():
    assert np.isnan(action_units.from_blendshapes(np.full((1, 52), np.nan))).all()


def test_lines_are_placed_by_their_time(tmp_path):
    path = _table(tmp_path / "a.csv", timestamp=_times(10, 1 / 30))
    values, mask = action_units.read_openface(path, 12, [])
    rows = np.arange(12) / 25
    nearest = np.abs(np.array(_times(10, 1 / 30)) - rows[:, None]).argmin(axis=-1)
    near = rows <= 0.3 + 0.5 / 25
    np.testing.assert_array_equal(mask, near)
    np.testing.assert_allclose(values[mask, 0], nearest[near] / 10, atol=1e-6)
    np.testing.assert_allclose(values[mask, 16], nearest[near] / 10 + 1.6, atol=1e-6)
    assert np.isnan(values[~mask]).all()


def test_lines_without_a_time_are_the_frames_of_the_clip(tmp_path):
    times = _times(10, 0.08)
    for columns in ({}, {"timestamp": _times(10, 0.001)}):
        path = _table(tmp_path / "a.csv", frame=range(1, 11), **columns)
        values, mask = action_units.read_openface(path, 19, times)
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
    values, mask = action_units.read_openface(path, 9, [])
    np.testing.assert_array_equal(mask, [1, 1, 0, 0, 0, 1, 1, 0, 0])
    assert values[5, 0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "lacks the column AU01_r"),
        ("frame,AU01_r\n1,2\n", "lacks the column AU02_r"),
    ],
)
def test_a_useless_table_is_refused(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(schema.InputError, match=message):
        action_units.read_openface(path, 5, [])


def test_a_word_in_a_number_names_line_and_column(tmp_path):
    path = _table(tmp_path / "a.csv", timestamp=[0, "x", *_times(8, 0.04)])
    with pytest.raises(schema.InputError, match="line 3: timestamp is 'x'"):
        action_units.read_openface(path, 5, [])


def test_a_table_without_time_and_frame_is_refused(tmp_path):
    with pytest.raises(schema.InputError, match="neither a usable timestamp nor"):
        action_units.read_openface(_table(tmp_path / "a.csv"), 5, [])


@pytest.mark.parametrize(
    "name, lines", [("facsvatar_raw_demo.csv", 490), ("pyfeat_OpenFace_Test.csv", 100)]
)
def test_real_tables_are_read(name, lines):
    path = SHARED / "data" / "openface" / name
    if not path.is_file():
        pytest.skip(f"no {path}: set TQA_SHARED")
    values, mask = action_units.read_openface(path, lines + 50, np.arange(lines) / 25)
    assert mask.sum() == lines
    known = values[mask]
    assert known.min() >= 0 and known.max() <= 5 and np.median(known.std(axis=0)) > 0.02
