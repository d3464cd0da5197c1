import csv
import os
import pathlib

import numpy as np
import pytest

from extract import backends, clip, landmarks, run
from extract.backends import correlation as sync
from tqa_jax import records, schema

CLIPS = pathlib.Path(os.environ.get("TQA_SHARED", "../shared")) / "data" / "clips"
needs_clips = pytest.mark.skipif(
    not CLIPS.is_dir(), reason=f"no real clips at {CLIPS}: set TQA_SHARED"
)
pytestmark = [needs_clips, pytest.mark.slow]


@pytest.fixture(scope="module")
def measured():
    """Landmarks, aspect and sound of the five short clips of the GRID corpus."""
    model = landmarks.find_model()
    found = [clip.watch(path, model, 9) for path in CLIPS.glob("LipNet__*.mpg")]
    return [(one.points, one.aspect, one.samples, one.present) for one in found]


def _offset(*measured) -> float:
    values, _ = sync.features(*measured)
    return float(np.median(values[values[:, 3] == 1, 2]))


def test_natural_clips_are_in_sync_by_the_median_of_their_rows(measured):
    offsets = [_offset(*item) for item in measured]
    assert np.mean(np.abs(offsets) <= 1) >= 0.8


@pytest.mark.parametrize("late", [-8, -4, 4, 8])
def test_shifting_the_sound_shifts_the_offset(measured, late):
    moved = []
    for points, aspect, samples, present in measured:
        shifted, there = np.roll(samples, 640 * late), np.roll(present, 640 * late)
        cut = slice(0, 640 * late) if late > 0 else slice(640 * late, None)
        shifted[cut], there[cut] = 0, False
        before = _offset(points, aspect, samples, present)
        moved.append(_offset(points, aspect, shifted, there) - before)
    assert np.mean(np.abs(np.array(moved) - late) <= 1) >= 0.8


def test_all_real_clips_become_a_data_set(tmp_path):
    with (CLIPS / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = ["clip,overall,lip_sync"]
    for index, row in enumerate(rows):
        score = "" if index % 3 == 0 else f"{1 + index % 5}"
        lines.append(f"{row['name']},{score},{1 + index % 4}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    status = run.main(
        [
            f"--clips={CLIPS}",
            f"--labels={tmp_path / 'labels.csv'}",
            f"--out={tmp_path / 'set'}",
            "--num_workers=2",
        ]
    )
    assert status == 0
    info = schema.load(tmp_path / "set")
    stored = {
        item.clip: item
        for split in schema.SPLITS
        for item in records.read_split(tmp_path / "set", info, split)
    }
    assert len(stored) == 16
    assert max(info.storage_error.values()) < 0.05  # of a standard deviation
    for row in rows:
        item = stored[pathlib.Path(row["name"]).stem]
        assert abs(item.frames - 25 * float(row["duration_s"])) <= 2
        for name, mask in item.frame_mask.items():
            assert mask.mean() > 0.95
            assert np.isfinite(item.features[name][mask]).all()
    assert set(backends.ORDER) == set(info.schema.widths)
