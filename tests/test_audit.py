"""Audit of small data sets: clean ones raise no flag, each defect raises its own."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from tqa_jax import audit, data, records, schema

SCHEMA = schema.Schema(
    modalities=(
        schema.Modality("visual", 6),
        schema.Modality("audio", 4),
        schema.Modality("keypoints", 3),
        schema.Modality(
            "sync",
            4,
            features=("peak", "confidence", "offset_frames", "validity"),
        ),
    ),
    tasks=schema.TASKS,
)
SPLITS = {"train": 15, "validation": 10, "test": 12}
FRAMES = 30


def clean_clips() -> list[tuple[str, records.Clip]]:
    """Independent clips, three to a source; one label and one modality missing."""
    rng = np.random.default_rng(0)
    clips = []
    for split, count in SPLITS.items():
        for index in range(count):
            features = {
                name: rng.normal(size=(FRAMES, width)).astype(np.float32)
                for name, width in SCHEMA.widths.items()
            }
            features["sync"][:, 2] = rng.normal(size=FRAMES)
            features["sync"][:, 1] = rng.uniform(0.1, 1, size=FRAMES)
            features["sync"][:, 3] = 1
            mask = {name: np.ones(FRAMES, bool) for name in SCHEMA.widths}
            mask["visual"][10:13] = False  # a face lost for a moment
            if index == 2:
                mask["audio"][:] = False
            labels = rng.uniform(1, 5, size=len(SCHEMA.tasks)).astype(np.float32)
            if index == 1:
                labels[3] = np.nan
            clip = records.Clip(
                clip=f"{split}_{index}",
                source=f"{split}_speaker{index // 3}",
                features=features,
                frame_mask=mask,
                labels=labels,
            )
            clips.append((split, clip))
    return clips


def flags_of(tmp_path, clips, name="set") -> list[str]:
    write(tmp_path / name, clips)
    return audit.audit(tmp_path / name)["flags"]


def write(path, clips) -> None:
    records.write_dataset(
        path, clips, name="small", schema=SCHEMA, provenance={"kind": "ratings"}
    )


def of_split(clips, split):
    return [clip for name, clip in clips if name == split]


def test_clean_set_has_no_flags(tmp_path):
    assert flags_of(tmp_path, clean_clips()) == []


def test_label_statistics_equal_numpy(tmp_path):
    clips = clean_clips()
    train = of_split(clips, "train")
    for clip in train[:4]:
        clip.labels[0] = 2.0
    write(tmp_path / "set", clips)
    report = audit.audit(tmp_path / "set")
    labels = np.array([clip.labels for clip in train], float)
    row = report["tasks"]["lip_sync"]["train"]
    assert row["n"] == 15
    assert row["mean"] == pytest.approx(labels[:, 0].mean(), rel=1e-12)
    assert row["sd"] == pytest.approx(stats.tstd(labels[:, 0]), rel=1e-12)
    assert (row["low"], row["high"]) == (labels[:, 0].min(), labels[:, 0].max())
    assert row["ties"] == pytest.approx(6 / 105)  # pairs among 4 of 15 clips
    assert report["tasks"]["cross_modal"]["train"]["n"] == 14
    known = ~np.isnan(labels[:, 3])
    expected = stats.pearsonr(labels[known, 0], labels[known, 3]).statistic
    assert report["correlation"]["lip_sync"]["cross_modal"] == pytest.approx(expected)
    assert report["correlation"]["cross_modal"]["lip_sync"] == pytest.approx(expected)
    assert report["clips"] == SPLITS
    assert report["sources"] == {"train": 5, "validation": 4, "test": 4}


def test_modality_statistics_are_counted(tmp_path):
    clips = clean_clips()
    train = of_split(clips, "train")
    train[0].features["keypoints"][:5, 0] = np.nan
    for _, clip in clips:
        clip.features["keypoints"][:, 1] = 0.25
    write(tmp_path / "set", clips)
    report = audit.audit(tmp_path / "set")
    assert report["flags"] == []
    assert report["modalities"]["visual"]["train"] == {
        "clips": 15,
        "clips_without": 0,
        "rows": 450,
        "masked": 0.1,
        "missing": 0.0,
        "constant_features": 0,
        "misaligned_clips": 0.0,
        "zero_padded_clips": 0.0,
    }
    assert report["modalities"]["audio"]["train"]["clips_without"] == 1
    keypoints = report["modalities"]["keypoints"]["train"]
    assert keypoints["missing"] == pytest.approx(5 / (450 * 3))
    assert keypoints["constant_features"] == 1


def test_constant_task_is_flagged(tmp_path):
    clips = clean_clips()
    for _, clip in clips:
        clip.labels[0] = 4.762870634
    assert flags_of(tmp_path, clips) == [
        "task 'lip_sync' is constant (4.76287) in 'train': it cannot be learned there",
        "task 'lip_sync' is constant (4.76287) in 'validation': "
        "it cannot be evaluated there",
        "task 'lip_sync' is constant (4.76287) in 'test': it cannot be evaluated there",
    ]


def test_task_without_training_label_is_flagged(tmp_path):
    clips = clean_clips()
    for clip in of_split(clips, "train"):
        clip.labels[1] = np.nan
    assert flags_of(tmp_path, clips) == [
        "task 'expression' has no training label: it cannot be learned"
    ]


def test_too_few_test_labels_are_flagged(tmp_path):
    clips = clean_clips()
    for clip in of_split(clips, "test")[:3]:
        clip.labels[2] = np.nan
    assert flags_of(tmp_path, clips) == [
        "task 'audio_quality' has 9 valid test labels; "
        "10 are the least for an evaluation"
    ]


def test_identical_tasks_are_flagged(tmp_path):
    clips = clean_clips()
    for _, clip in clips:
        clip.labels[4] = clip.labels[3]
    assert flags_of(tmp_path, clips) == [
        "tasks 'cross_modal' and 'overall' have the same 14 training labels"
    ]


@pytest.mark.parametrize("direction", [1, -1])
def test_nearly_identical_tasks_are_flagged(tmp_path, direction):
    clips = clean_clips()
    for _, clip in clips:
        noise = 0.01 * np.sin(7 * clip.labels[2])
        clip.labels[1] = 3 + direction * 0.9 * (clip.labels[0] - 3) + noise
    (flag,) = flags_of(tmp_path, clips)
    sign = "" if direction > 0 else "-"
    start = "tasks 'lip_sync' and 'expression' are one and the same: r = "
    assert flag.startswith(start + sign) and "on 15 clips" in flag


def test_source_in_two_splits_is_flagged():
    # `write_dataset` refuses such a set, so the clips are given directly.
    clips = clean_clips()
    split, clip = clips[-1]
    clips[-1] = split, dataclasses.replace(clip, source="train_speaker0")
    info = schema.DatasetInfo("small", SCHEMA, {}, "float16", {}, {})
    assert audit.examine(info, clips)["flags"] == [
        "sources in both 'train' and 'test': 1, for example 'train_speaker0'; "
        "results will be too good"
    ]


def test_missing_split_is_flagged(tmp_path):
    clips = [(split, clip) for split, clip in clean_clips() if split != "validation"]
    assert flags_of(tmp_path, clips) == ["split 'validation' has no clips"]


def test_constant_modality_is_flagged(tmp_path):
    clips = clean_clips()
    for _, clip in clips:
        clip.features["audio"][:] = [0.1, 2.0, -3.0, 0.0]
    assert flags_of(tmp_path, clips) == [
        "modality 'audio' is constant in 'train', 'validation', 'test'"
    ]


def test_modality_never_measured_is_flagged(tmp_path):
    clips = clean_clips()
    for clip in of_split(clips, "test"):
        clip.frame_mask["keypoints"][:] = False
    assert flags_of(tmp_path, clips) == [
        "modality 'keypoints' was never measured in 'test'"
    ]


def test_mostly_missing_modality_is_flagged(tmp_path):
    clips = clean_clips()
    for clip in of_split(clips, "train"):
        clip.features["keypoints"][:, :2] = np.nan
    assert flags_of(tmp_path, clips) == [
        "modality 'keypoints' is mostly NaN or infinite: train 67%",
    ]


def test_mostly_masked_modality_is_flagged(tmp_path):
    clips = clean_clips()
    for clip in of_split(clips, "train"):
        clip.frame_mask["keypoints"][1:-1] = False
    assert flags_of(tmp_path, clips) == [
        "modality 'keypoints' is mostly masked (rows without a measurement): train 93%"
    ]


def test_modality_that_runs_past_the_others_is_flagged(tmp_path):
    clips = clean_clips()
    for clip in of_split(clips, "train"):
        for name in ("visual", "keypoints", "sync"):
            clip.frame_mask[name][-8:] = False
    (flag,) = flags_of(tmp_path, clips)
    assert flag.startswith("modality 'audio' is misaligned in time")
    assert flag.endswith("(clips): train 100%")


def test_a_face_that_appears_late_in_a_few_clips_is_no_misalignment(tmp_path):
    clips = clean_clips()
    for clip in of_split(clips, "train")[:5]:
        clip.frame_mask["visual"][:8] = False
    assert flags_of(tmp_path, clips) == []


def test_unmasked_padding_is_flagged(tmp_path):
    clips = clean_clips()
    for clip in of_split(clips, "train")[:3]:
        clip.features["visual"][-10:] = 0
    assert flags_of(tmp_path, clips) == [
        "modality 'visual' ends in rows of zeros that are not masked (clips): train 20%"
    ]


@pytest.mark.parametrize("shift", [-3, 2])
def test_systematic_audio_video_offset_is_flagged(tmp_path, shift):
    clips = clean_clips()
    for clip in of_split(clips, "train"):
        clip.features["sync"][:, 2] = shift
        clip.features["sync"][:20, 2] = 9
        clip.features["sync"][:10, 3] = 0  # nothing to compare in these rows
        clip.features["sync"][10:20, 1] = 1e-3  # and no confidence in those
    (flag,) = flags_of(tmp_path, clips)
    assert flag.startswith(f"audio and video are {shift:+.1f} frames apart")
    assert "of 15 training clips" in flag


def test_offsets_that_scatter_are_no_systematic_offset(tmp_path):
    clips = clean_clips()
    scatter = (-14, -9, -3, -1, 0, 1, 3, 4, 5, 6, 8, 10, 11, 13, 15)
    for offset, clip in zip(scatter, of_split(clips, "train"), strict=True):
        clip.features["sync"][:, 2] = offset
        clip.features["sync"][:, 1] = 0.5
    write(tmp_path / "set", clips)
    report = audit.audit(tmp_path / "set")
    expected = stats.binomtest(10, 15, alternative="greater").pvalue
    assert report["sync_offset_frames"] == {
        "clips": 15,
        "median": 4.0,
        "chance": pytest.approx(expected),
    }
    assert report["flags"] == []


def test_offsets_on_both_sides_are_no_systematic_offset(tmp_path):
    clips = clean_clips()
    for index, clip in enumerate(of_split(clips, "train")):
        clip.features["sync"][:, 2] = (-5, 0, 5)[index % 3]
    assert flags_of(tmp_path, clips) == []


def test_same_clip_in_two_splits_is_flagged(tmp_path):
    clips = clean_clips()
    split, clip = clips[-1]
    original = clips[0][1]
    copy = dataclasses.replace(
        clip, features=original.features, frame_mask=original.frame_mask
    )
    clips[-1] = split, copy
    assert flags_of(tmp_path, clips) == [
        "clips with the same features as a clip of another split: 1, "
        "for example 'train train_0' and 'test test_11'"
    ]


def test_same_audio_in_two_splits_is_flagged(tmp_path):
    clips = clean_clips()
    clips[-1][1].features["audio"][:] = clips[0][1].features["audio"]
    assert flags_of(tmp_path, clips) == [
        "clips with the same audio features as a clip of another split: 1, "
        "for example 'train train_0' and 'test test_11'"
    ]


def test_repeated_clip_within_a_split_is_no_leak(tmp_path):
    clips = clean_clips()
    train = of_split(clips, "train")
    for name, rows in train[0].features.items():
        train[3].features[name][:] = rows
    assert flags_of(tmp_path, clips) == []


def test_report_is_json_and_its_text_shows_flags(tmp_path, capsys):
    clips = clean_clips()
    for _, clip in clips:
        clip.labels[0] = 4.0
        clip.labels[1] = np.nan
    write(tmp_path / "set", clips)
    assert data.main(["audit", str(tmp_path / "set"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == audit.audit(tmp_path / "set")
    assert report["correlation"]["lip_sync"]["overall"] is None
    assert report["tasks"]["expression"]["train"]["mean"] is None
    assert data.main(["audit", str(tmp_path / "set")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{len(report['flags'])} flags" in lines
    assert lines[-len(report["flags"]) :] == [f"- {flag}" for flag in report["flags"]]
    assert all(len(line) <= 100 for line in lines[: -len(report["flags"])])


def test_unreadable_set_is_one_line_and_status_2(tmp_path, capsys):
    assert data.main(["audit", str(tmp_path / "nothing")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    write(tmp_path / "set", clean_clips())
    (shard,) = (tmp_path / "set").glob("test-*.tfrecord")
    shard.write_bytes(shard.read_bytes()[:-20])
    assert data.main(["audit", str(tmp_path / "set")]) == 2
    assert shard.name in capsys.readouterr().err


def test_command_runs_and_explains_itself(tmp_path):
    write(tmp_path / "set", clean_clips())
    command = [sys.executable, "-m", "tqa_jax.data", "audit"]
    found = subprocess.run(
        [*command, str(tmp_path / "set")], capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.endswith("no flags\n")
    found = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert found.returncode == 0 and "Exit status" in found.stdout
