import csv
import importlib.util

import numpy as np
import pytest

from extract import action_units, compare_units, openface
from tests import media


def _walk(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).cumsum(axis=0)


def test_correlations_are_of_the_rows_that_all_backends_measured():
    rows = {
        "openface": _walk((40, 17), 0),
        "blendshapes": _walk((40, 17), 1),
        "geometry": _walk((40, 17), 2),
    }
    rows["openface"][:5] = np.nan
    rows["geometry"][30, 3] = np.nan
    found = compare_units.compare("a", rows)
    keep = np.array([row for row in range(5, 40) if row != 30])
    np.testing.assert_allclose(found.seconds, keep / 25)
    for (one, other), values in found.correlations.items():
        shared = 17 if other == "blendshapes" else 16  # geometry has AU28, not AU45
        assert len(values) == shared
        for unit, value in values.items():
            order = {name: openface.UNITS for name in rows}
            order["geometry"] = action_units.GEOMETRY_UNITS
            first = rows[one][keep, order[one].index(unit)]
            second = rows[other][keep, order[other].index(unit)]
            assert value == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-9)
    assert len(found.correlations) == 3


def test_a_unit_that_does_not_vary_has_no_correlation():
    rows = {"openface": _walk((20, 17), 0), "blendshapes": _walk((20, 17), 1)}
    rows["openface"][:, 0] = 0
    rows["openface"][:, 1] = 3 + 1e-7 * rows["openface"][:, 1]
    values = compare_units.compare("a", rows).correlations["openface", "blendshapes"]
    assert values[1] is None and values[2] is None and values[4] is not None


def test_any_name_can_be_drawn():
    rows = {"blendshapes": _walk((20, 17), 0), "geometry": _walk((20, 17), 1)}
    name = "$x_ \u8138.mp4\n\udcff"
    assert compare_units.draw(compare_units.compare(name, rows))[:4] == b"\x89PNG"


def _table(path, rows: int, step: float, unit) -> None:
    """Writes a table in which every unit is a function of time."""
    names = [f"{name}_r" for name in openface.FEATURES]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", " timestamp", *names])
        for row in range(rows):
            writer.writerow([row + 1, row * step, *[unit(row * step)] * len(names)])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return media.face(tmp_path_factory.mktemp("units") / "a.mp4", 1.2)


def test_the_command_draws_and_writes_what_it_prints(tmp_path, capsys, clip):
    table = tmp_path / "a.csv"
    _table(table, 60, 1 / 50, lambda seconds: 2 + np.sin(6 * seconds))
    out = tmp_path / "a.png"
    command = [f"--clip={clip}", f"--openface={table}", f"--out={out}"]
    assert compare_units.main(command) == 0
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and out.stat().st_size > 20_000
    with (tmp_path / "a_correlations.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["unit"] for line in lines][-2:] == ["AU28", "AU45"] and len(
        lines
    ) == 18
    assert {line["rows"] for line in lines} == {"30"}
    lips = next(line for line in lines if line["unit"] == "AU25")
    printed = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("AU25")
    )
    shown = [f"{float(lips[name]):.2f}" for name in list(lips)[3:] if lips[name]]
    assert printed.split()[3:] == [*shown]


def test_a_folder_of_clips_becomes_a_folder_of_figures(tmp_path, capsys, clip):
    folder = tmp_path / "clips"
    (folder / "in").mkdir(parents=True)
    (folder / "a.mp4").write_bytes(clip.read_bytes())
    (folder / "in" / "b.mp4").write_bytes(clip.read_bytes())
    (folder / "c.mp4").write_bytes(b"no video")
    tables = tmp_path / "tables"
    tables.mkdir()
    _table(tables / "a.csv", 30, 1 / 25, lambda seconds: 2 + np.sin(6 * seconds))
    out = tmp_path / "out"
    command = [f"--clip={folder}", f"--openface={tables}", f"--out={out}"]
    assert compare_units.main(command) == 3
    names = ["a.mp4.png", "correlations.csv", "in__b.mp4.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    with (out / "correlations.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["unit"] == "AU25"]
    assert [line["clip"] for line in lines] == ["a.mp4", "in/b.mp4"]
    assert not lines[1]["openface_geometry"] and lines[1]["blendshapes_geometry"]
    assert lines[0]["blendshapes_geometry"] == lines[1]["blendshapes_geometry"]
    text = capsys.readouterr().out
    assert "rejected c.mp4" in text and "note on b.mp4: no OpenFace table" in text


@pytest.mark.parametrize(
    "clip, table, out, message",
    [
        ("none.mp4", None, "b.png", "no clip at"),
        ("c.mp4", "none.csv", "b.png", "no OpenFace table at"),
        ("c.mp4", None, "b.jpg", "expected a name that ends in .png"),
        ("c.mp4", None, "b.png", "c.mp4: "),
        ("empty", None, "out", "no clips in"),
        ("full", "none", "out", "no folder of OpenFace tables"),
        ("full", None, "c.mp4/out", "Not a directory"),
        ("full", None, "out", "none of 1 clips in"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path, capsys, monkeypatch, clip, table, out, message
):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "full"):
        (tmp_path / folder).mkdir()
    for name in ("c.mp4", "full/c.mp4"):
        (tmp_path / name).write_bytes(b"no video")
    command = [f"--clip={clip}", f"--out={out}"]
    assert compare_units.main(command + ([f"--openface={table}"] if table else [])) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and message in text


def test_without_matplotlib_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert compare_units.main(["--clip=a.mp4", "--out=b.png"]) == 2
    assert "'.[studies]'" in capsys.readouterr().err
