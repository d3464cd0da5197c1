import csv
import os
import pathlib
import re

import numpy as np
import pytest

from extract import tables
from tqa_jax import audit, records, schema

SHARED = pathlib.Path(os.environ.get("TQA_SHARED", "../shared"))
CLIPS = [f"{face}_{number}_gen{number}" for face in "abcde" for number in range(2)]


def _write(path: pathlib.Path, header: list[str], rows: list[list]) -> pathlib.Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def _scores(tmp_path, **changes) -> pathlib.Path:
    """A row a clip; `changes` replaces cells, named `<column>_<row>`."""
    header = ["Image", "loud", "offset", "MOS"]
    rows = [[clip, i, -i, i / 2] for i, clip in enumerate(CLIPS)]
    for name, value in changes.items():
        column, row = name.rsplit("_", 1)
        rows[int(row)][header.index(column)] = value
    return _write(tmp_path / "scores.csv", header, rows)


def _frames(tmp_path, *, without: str = "") -> pathlib.Path:
    """Clip i has 1 + i % 3 rows, in another order than the scores."""
    rows = [
        [clip, f"{row}.png", 10 * i + row, 0.5]
        for i, clip in reversed(list(enumerate(CLIPS)))
        for row in range(1 + i % 3)
        if clip != without
    ]
    return _write(tmp_path / "frames.csv", ["Image", "png", "sharp", "bright"], rows)


def _command(tmp_path, *more: str, frames: bool = True) -> list[str]:
    found = [
        f"--table={tmp_path / 'scores.csv'}",
        f"--out={tmp_path / 'set'}",
        "--clip=Image",
        r"--source=(\w)_",
        "--task=overall=MOS",
        "--score_range=0,5",
        "--modality=sound=loud,offset",
    ]
    if frames:
        found += [
            f"--frames={tmp_path / 'frames.csv'}",
            "--frame_modality=visual=sharp:bright",
        ]
    return [*found, *more]


def _clips(path) -> dict[str, tuple[str, records.Clip]]:
    info = schema.load(path)
    return {
        clip.clip: (split, clip)
        for split in info.splits
        for clip in records.read_split(path, info, split)
    }


def test_tables_become_a_set_with_equal_rows_for_all_modalities(tmp_path):
    _scores(tmp_path)
    _frames(tmp_path)
    assert tables.main(_command(tmp_path, "--name=mine")) == 0
    info = schema.load(tmp_path / "set")
    assert info.schema.widths == {"visual": 2, "sound": 2}
    assert info.schema.tasks == (schema.Task("overall", 0, 5),)
    assert info.name == "mine"
    found = _clips(tmp_path / "set")
    assert set(found) == set(CLIPS)
    for i, name in enumerate(CLIPS):
        _, clip = found[name]
        assert clip.source == name[0] and clip.labels == [i / 2]
        sharp = [10 * i + row for row in range(1 + i % 3)]
        np.testing.assert_array_equal(clip.features["visual"][:, 0], sharp)
        np.testing.assert_array_equal(
            clip.features["sound"], np.tile([i, -i], (1 + i % 3, 1))
        )
        assert all(mask.all() for mask in clip.frame_mask.values())


def test_without_frames_a_clip_is_one_row_and_empty_cells_are_missing(tmp_path):
    _scores(tmp_path, loud_0="", offset_0="", loud_1="", MOS_1="")
    assert tables.main(_command(tmp_path, frames=False)) == 0
    found = {name: clip for name, (_, clip) in _clips(tmp_path / "set").items()}
    assert {clip.frames for clip in found.values()} == {1}
    assert not found[CLIPS[0]].frame_mask["sound"].any()
    assert found[CLIPS[1]].frame_mask["sound"].all()
    np.testing.assert_array_equal(found[CLIPS[1]].features["sound"], [[np.nan, -1]])
    assert np.isnan(found[CLIPS[1]].labels).all()


def test_every_source_is_tested_in_one_fold_and_validated_in_another(tmp_path):
    _scores(tmp_path)
    seen: dict[str, list[tuple[str, ...]]] = {"test": [], "validation": []}
    for fold in range(5):
        out = tmp_path / f"fold{fold}"
        command = _command(tmp_path, f"--fold={fold}", f"--out={out}", frames=False)
        assert tables.main(command) == 0
        splits = schema.load(out).splits
        assert len(splits["train"].sources) == 3
        for name in seen:
            seen[name].append(splits[name].sources)
    assert sorted(seen["test"]) == [(face,) for face in "abcde"]
    assert seen["validation"] == [*seen["test"][1:], seen["test"][0]]


@pytest.mark.parametrize(
    "changes, more, message",
    [
        ({}, ["--clip=name"], "scores.csv has no column 'name'; it has Image, loud"),
        ({}, ["--frame_modality=eyes=sharp,shut"], "frames.csv has no column 'shut'"),
        ({}, ["--frame_modality=eyes=bright:sharp"], "in the other order"),
        ({}, ["--modality=visual=loud"], "modality 'visual' is listed twice"),
        ({}, ["--modality=sound=loud"], "'sound' is given twice"),
        ({}, ["--modality=sound"], "expected NAME=COLUMNS"),
        ({}, ["--modality=v=loud,MOS"], "--modality=v holds MOS, which is a task's"),
        ({}, ["--score_range=0,3"], "line 9: overall is 3.5; expected 0 to 3"),
        ({}, ["--source=("], "expected a regular expression"),
        ({}, ["--source=(x)"], "finds no source in 'a_0_gen0'"),
        ({}, ["--folds=6"], "6 folds by source need as many sources; got 5"),
        ({}, ["--fold=5"], "--fold is 5; expected 0 to 4"),
        ({"loud_2": "much"}, [], "line 4: loud is 'much'; expected a number"),
        ({"MOS_2": "-1"}, [], "line 4: overall is -1; expected 0 to 5"),
        ({"Image_2": ""}, [], "line 4: the Image is empty"),
        ({"Image_2": "x"}, [], "frames.csv has no frames of 1 clips"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, changes, more, message):
    _scores(tmp_path, **changes)
    _frames(tmp_path)
    assert tables.main(_command(tmp_path, *more)) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and message in text
    assert not (tmp_path / "set").exists()


def test_rows_of_a_clip_that_differ_and_clips_of_one_table_are_refused(
    tmp_path, capsys
):
    rows = [[clip, 0.5 + row, 1 + row] for clip in CLIPS for row in range(2)]
    path = _write(tmp_path / "scores.csv", ["Image", "sharp", "MOS"], rows)
    command = [f"--table={path}", f"--out={tmp_path / 'set'}", "--clip=Image"]
    command += ["--task=overall=MOS", "--modality=visual=sharp"]
    for frames in ([], [f"--frames={path}"]):
        assert tables.main([*command, *frames]) == 2
        text = capsys.readouterr().err
        assert "line 3: sharp differs within clip, from line 2; a table with" in text
    _scores(tmp_path)
    _frames(tmp_path, without="b_1_gen1")
    assert tables.main(_command(tmp_path)) == 2
    text = capsys.readouterr().err
    assert "frames.csv has no frames of 1 clips, for example 'b_1_gen1'" in text


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "has no column 'clip'"),
        ("clip,a\n", "a header and no rows"),
        ("clip,a,a\nx,1,2\n", "the column 'a' twice"),
        ("clip,a\nx,1,2\n", "line 2 has 3 cells; its header has 2"),
        ("clip,a\nx\x00,\xff\n", "cannot be read|line"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_a_useless_file_is_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "a.csv"
    if text is not None:
        path.write_bytes(text.encode("latin1"))
    command = [f"--table={path}", f"--out={tmp_path / 'set'}", "--task=overall=a"]
    assert tables.main([*command, "--modality=m=a"]) == 2
    assert re.search(message, capsys.readouterr().err)


def _thqa(tmp_path, *more: str) -> pathlib.Path:
    folder = SHARED / "data" / "thqa"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set TQA_SHARED")
    out = tmp_path / "thqa"
    command = [
        f"--table={folder / 'vvmf_results_a01.csv'}",
        f"--frames={folder / 'lib_c.csv'}",
        f"--out={out}",
        "--clip=Image",
        r"--source=(\d+)_",
        "--task=overall=Score",
        "--score_range=0,5",
        "--frame_modality=visual=brisque:buffalo",
        "--modality=sync=avset:confi",
        *more,
    ]
    assert tables.main(command) == 0
    return out


def test_thqa_is_imported_by_face(tmp_path):
    out = _thqa(tmp_path)
    info = schema.load(out)
    assert info.schema.widths == {"visual": 21, "sync": 3}
    sizes = {split: (s.clips, len(s.sources)) for split, s in info.splits.items()}
    assert sizes == {"train": (480, 12), "validation": (160, 4), "test": (160, 4)}
    found = _clips(out)
    _, clip = found["1_voice_en_35042678_ahead"]
    assert clip.source == "1" and clip.labels == [np.float32(0.6)]
    np.testing.assert_allclose(clip.features["visual"][1, 0], 42.22137451, rtol=1e-6)
    np.testing.assert_allclose(
        clip.features["sync"], [[1, 5.09995842, 0.876270294]] * 6, rtol=1e-6
    )
    assert {clip.frames for _, clip in found.values()} == set(range(3, 11))
    assert audit.audit(out)["flags"] == []


def test_thqa_leaves_a_generator_out(tmp_path):
    out = _thqa(tmp_path, r"--source=.*_(\w+)", "--folds=8", "--fold=3")
    splits = schema.load(out).splits
    assert [len(split.sources) for split in splits.values()] == [6, 1, 1]
    held = set(splits["test"].sources)
    assert {
        clip.clip.rsplit("_", 1)[1]
        for split, clip in _clips(out).values()
        if split == "test"
    } == held
