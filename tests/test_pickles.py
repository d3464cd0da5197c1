import pickle

import numpy as np
import pytest

from extract import pickles
from extract.backends import geometry
from tqa_jax import records, schema

WIDTHS = {"visual": 163, "audio": 768, "keypoint": 1404, "au": 17}
ROWS = 12


def _sample(number: int, source: int, *, dtype=np.float32) -> dict:
    """A clip of 8 rows of video and 10 of sound, padded with zeros to 12."""
    rng = np.random.default_rng(number)
    features = {name: np.zeros((ROWS, width), dtype) for name, width in WIDTHS.items()}
    for name, rows in features.items():
        count = 10 if name == "audio" else 8
        rows[:count] = rng.normal(50, 1, (count, rows.shape[-1]))
    units = _units(number)
    features["au"][:8] = units / units.max(axis=-1, keepdims=True)
    features["visual"][3] = np.nan  # a picture without a face
    features["audio"] = np.asfortranarray(features["audio"])
    features["keypoint"] = features["keypoint"].astype(">f4")
    features["syncnet"] = np.array([4.76, number], dtype)
    features["consistency"] = np.array([0.1], dtype)
    labels = {
        "lip_sync_score": 4.762870634,
        "expression_score": 0.25,
        "audio_quality_score": -1.0,
        "cross_modal_score": -0.5,
        "overall_score": 0.5,
    }
    return {
        "video_id": f"video_{source:04d}_{number:05d}",
        "features": features,
        "labels": labels,
    }


def _units(number: int) -> np.ndarray:
    """Distances of a sample, before the older system divided them."""
    points = np.random.default_rng(number).uniform(0.3, 0.7, (8, 478, 3))
    return geometry.from_geometry(points)


def _l0(dtype=np.float32) -> list[dict]:
    splits = ["train"] * 4 + ["valid"] * 2 + ["test"] * 2
    return [
        _sample(number, number // 2, dtype=dtype) | {"split": split}
        for number, split in enumerate(splits)
    ]


def _l1(dtype=np.float32) -> dict[str, list[dict]]:
    samples = _l0(dtype)
    return {"train": samples[:4], "val": samples[4:6], "test": samples[6:]}


def _l2(*, ids: bool = True, new_sync: bool = True) -> dict:
    """Standardised by split, labels scaled to 0..1, as the older system did."""
    result = {}
    for split, samples in _l1().items():
        features = {}
        for name in [*WIDTHS, "syncnet", "consistency"]:
            rows = np.stack([np.nan_to_num(s["features"][name]) for s in samples])
            axes = tuple(range(rows.ndim - 1))
            spread = rows.std(axis=axes) + 1e-6
            features[name] = ((rows - rows.mean(axis=axes)) / spread).astype("f4")
        count = len(samples)
        labels = {
            "lip_sync_score": np.full(count, np.nan),
            "expression_score": np.linspace(0, 1, count),
            "overall_score": np.full(count, -1.0),
        }
        if new_sync:
            labels["lip_sync_score_new"] = np.linspace(0, 5, count)
        masks = {name: np.ones(count, bool) for name in labels}
        masks["expression_score"][0] = False
        result[split] = {"features": features, "labels": labels, "valid_masks": masks}
        if ids:
            result[split]["video_ids"] = [sample["video_id"] for sample in samples]
    return result


def _run(tmp_path, data, *more: str, protocol: int = 4) -> int:
    path = tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps(data, protocol))
    return pickles.main([f"--pickle={path}", f"--out={tmp_path / 'set'}", *more])


def _import(tmp_path, data, *more: str, **options) -> schema.DatasetInfo:
    assert _run(tmp_path, data, *more, **options) == 0
    return schema.load(tmp_path / "set")


def _clips(tmp_path, split: str) -> list[records.Clip]:
    info = schema.load(tmp_path / "set")
    return list(records.read_split(tmp_path / "set", info, split))


def _refusal(tmp_path, capsys, data, *more: str) -> str:
    assert _run(tmp_path, data, *more) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    assert not (tmp_path / "set").exists()
    return text


@pytest.mark.parametrize("layout, protocol", [(_l0, 0), (_l0, 4), (_l1, 2), (_l1, 5)])
def test_samples_become_clips(tmp_path, layout, protocol):
    dtype = np.float64 if layout is _l0 else np.float32
    info = _import(tmp_path, layout(dtype), protocol=protocol)
    assert [split.clips for split in info.splits.values()] == [4, 2, 2]
    assert info.splits["train"].sources == ("video_0000", "video_0001")
    assert list(info.schema.widths.items()) == [
        ("visual", 163), ("audio", 768), ("keypoints", 1404), ("action_units", 17),
        ("sync", 2),
    ]  # fmt: skip
    assert info.schema.task_names == tuple(task.name for task in schema.TASKS)
    assert info.provenance["kind"] == "imported"
    assert info.provenance["layout"] == {"_l0": "L0", "_l1": "L1"}[layout.__name__]
    expected = _sample(1, 0)["features"]
    clip = _clips(tmp_path, "train")[1]
    assert (clip.clip, clip.source) == ("video_0000_00001", "video_0000")
    assert clip.frames == 10  # as long as its sound
    np.testing.assert_allclose(
        clip.features["audio"], expected["audio"][:10], rtol=1e-6
    )
    np.testing.assert_array_equal(clip.features["sync"], [[np.float32(4.76), 1]] * 10)
    seen = np.arange(10) < 8
    for name, mask in {
        "audio": np.ones(10, bool),
        "keypoints": seen,
        "action_units": seen,
        "visual": seen & (np.arange(10) != 3),
    }.items():
        np.testing.assert_array_equal(clip.frame_mask[name], mask)
    assert np.isnan(clip.features["visual"][3]).all()
    modality = info.schema.modalities[3]
    assert (modality.backend, modality.version) == ("geometry", geometry.VERSION)
    units = clip.features["action_units"][:8]
    np.testing.assert_allclose(units, _units(1), rtol=1e-5)


def test_arrays_of_older_numpy_are_read(tmp_path):
    data = pickle.dumps(_l0(), 2)
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "old.pkl").write_bytes(old)
    command = [f"--pickle={tmp_path / 'old.pkl'}", f"--out={tmp_path / 'set'}"]
    assert old != data and pickles.main(command) == 0


def test_other_action_units_are_kept_and_said_to_be(tmp_path, capsys):
    data = _l1()
    data["train"][0]["features"]["au"][:8] *= 2
    info = _import(tmp_path, data)
    assert info.schema.modalities[3].backend == "original"
    assert "kept as they are" in capsys.readouterr().out
    clip = _clips(tmp_path, "train")[0]
    np.testing.assert_array_equal(
        clip.features["action_units"][:8], data["train"][0]["features"]["au"][:8]
    )


def test_minus_one_is_missing_unless_a_given_range_includes_it(tmp_path, capsys):
    data = _l1()
    data["train"][0]["labels"]["overall_score"] = -0.9999999
    data["train"][1]["labels"]["overall_score"] = float("nan")
    info = _import(tmp_path, data)
    assert [(t.low, t.high) for t in info.schema.tasks] == [(0, 5)] + 4 * [(-1, 1)]
    labels = np.array([clip.labels for clip in _clips(tmp_path, "train")])
    np.testing.assert_allclose(labels[2], [4.762870634, 0.25, np.nan, -0.5, 0.5])
    np.testing.assert_allclose(labels[:2, 4], [-1, np.nan], atol=1e-6)
    out = capsys.readouterr().out
    assert "8 labels of audio_quality are -1 and taken as missing" in out
    assert any("8 labels" in note for note in info.provenance["notes"])
    more = ["--score_range=-1,1", "--score_range=lip_sync=0,5", f"--out={tmp_path}/b"]
    assert _run(tmp_path, data, *more) == 0
    clips = records.read_split(tmp_path / "b", schema.load(tmp_path / "b"), "train")
    assert (np.array([clip.labels[2] for clip in clips]) == -1).all()


def test_columns_become_clips(tmp_path):
    info = _import(tmp_path, _l2())
    assert info.provenance["layout"] == "L2"
    assert [(t.name, t.low, t.high) for t in info.schema.tasks] == [
        ("lip_sync", 0, 5),
        ("expression", 0, 1),
        ("overall", 0, 1),
    ]
    assert {m.backend for m in info.schema.modalities} == {"original"}
    assert {m.version for m in info.schema.modalities} == {"standardised"}
    labels = np.array([clip.labels for clip in _clips(tmp_path, "train")])
    np.testing.assert_allclose(labels[:, 0], np.linspace(0, 5, 4), rtol=1e-6)
    np.testing.assert_allclose(labels[:, 1], [np.nan, 1 / 3, 2 / 3, 1], rtol=1e-6)
    assert np.isnan(labels[:, 2]).all()
    clip = _clips(tmp_path, "train")[1]
    assert (clip.clip, clip.source) == ("video_0000_00001", "video_0000")
    seen = np.arange(10) < 8
    np.testing.assert_array_equal(clip.frame_mask["keypoints"], seen)
    np.testing.assert_array_equal(clip.frame_mask["visual"], seen)  # imputed row 3


def test_columns_without_ids_and_the_new_label(tmp_path, capsys):
    data = _l2(ids=False, new_sync=False)
    text = _refusal(tmp_path, capsys, data, "--folds=3")
    assert "cannot be drawn" in text
    info = _import(tmp_path, data)
    assert info.splits["test"].sources == ("test_00000", "test_00001")
    assert "no clip ids" in capsys.readouterr().out
    assert (info.schema.tasks[0].name, info.schema.tasks[0].high) == ("lip_sync", 1)
    assert np.isnan([c.labels[0] for c in _clips(tmp_path, "train")]).all()


def test_a_source_in_two_splits_is_refused_and_folds_draw_anew(tmp_path, capsys):
    data = _l1()
    data["val"][0]["video_id"] = "video_0000_00009"
    for rows in data["train"][2]["features"].values():
        rows[:] = 0
    text = _refusal(tmp_path, capsys, data)
    assert "source 'video_0000' is in both 'train' and 'validation'" in text
    assert "--folds" in text
    info = _import(tmp_path, data, "--folds=3", "--fold=1")
    assert sorted(s for split in info.splits.values() for s in split.sources) == [
        f"video_{source:04d}" for source in range(4)
    ]
    assert sum(split.clips for split in info.splits.values()) == 7
    assert "no measured row: video_0001_00002" in capsys.readouterr().out


def _without(key):
    data = _l0()
    del data[1][key]
    return data


def _with(key, value, where="features"):
    data = _l0()
    data[1][where][key] = value
    return data


def _named(name):
    return [_sample(0, 0) | {"split": "train", "video_id": name}]


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "has no clip"),
        ({"a": 1}, "keys ['a']; expected a list of samples"),
        ([1], "sample 0 is a int, no dict"),
        (_without("features"), "sample 1 has no 'features'"),
        (_without("split"), "sample 1 has no split or an unknown one"),
        (_with("au", [1.0]), "au is no array of numbers with 2 axes"),
        (_with("au", np.zeros(17)), "au is no array of numbers with 2 axes"),
        (_with("visual", np.ones((9, 5))), "visual has shape (10, 5); expected (10,"),
        (_with("overall_score", "good", "labels"), "overall_score is a str, no score"),
        (_with("overall_score", 10**400, "labels"), "overall_score is a int, no score"),
        (_with("overall", 3.0, "labels"), "'overall' and 'overall_score', which would"),
        (_with("total_score", 0.5, "labels"), "task name 'total' is taken"),
        (_with("a\nb", 1.0, "labels"), r"task name 'a\nb' must be"),
        (_named("\udc80_00001"), "not name"),
        (_named("\x1b_00001"), "not name"),
        (_with("overall_score", 3.0, "labels"), "overall of 'video_0000_00001' is 3"),
        (_named("a"), "'a' does not name its source; expected <source>_"),
        ({"train": {"features": {}, "labels": {}}}, "has no features or no"),
        (
            {"train": {"features": {"au": np.ones((2, 3, 17))},
                       "labels": {"overall_score": np.ones(3)}}},
            "unequal numbers of clips",
        ),
    ],
)  # fmt: skip
def test_other_content_is_refused_in_one_line(tmp_path, capsys, data, message):
    assert message in _refusal(tmp_path, capsys, data)
