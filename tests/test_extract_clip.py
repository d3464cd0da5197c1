import pickle

import numpy as np
import pytest

from extract import backends, clip, decode
from tests import media
from tqa_jax import schema


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = media.face(tmp_path_factory.mktemp("clip") / "a.mp4", 2.0)
    return clip.observe(path, backends.options())


def test_all_modalities_share_rows_and_fit_the_schema(measured):
    described = backends.describe(backends.options())
    assert [m.name for m in described] == list(measured.features)
    assert [m.width for m in described] == [116, 145, 1404, 17, 4]
    for modality in described:
        values = measured.features[modality.name]
        mask = measured.frame_mask[modality.name]
        assert values.shape == (50, modality.width) and values.dtype == np.float32
        assert mask.shape == (50,) and mask.dtype == bool and mask.all()
        assert np.isfinite(values).all() and np.abs(values).max() < 65504
    assert measured.notes == ()
    assert set(measured.seconds) == {"decode", "landmarks", *backends.ORDER}
    assert all(value > 0 for value in measured.seconds.values())


def test_measuring_again_gives_the_same_bits(tmp_path, measured):
    again = clip.observe(media.face(tmp_path / "b.mp4", 2.0), backends.options())
    for name, values in measured.features.items():
        np.testing.assert_array_equal(again.features[name], values)


def test_options_and_results_can_be_sent_to_processes(measured):
    assert pickle.loads(pickle.dumps(backends.options())) == backends.options()
    copy = pickle.loads(pickle.dumps(measured))
    np.testing.assert_array_equal(copy.features["sync"], measured.features["sync"])


def test_frames_without_a_face_are_masked_not_dropped(tmp_path):
    talking = media.talking()

    def picture(time):
        return (
            np.full((256, 256, 3), 90, np.uint8) if 0.4 <= time < 0.8 else talking(time)
        )

    path = media.face(tmp_path / "a.mp4", 1.6, picture=picture)
    found = clip.observe(path, backends.options())
    away = np.arange(10, 20)
    for name in ("visual", "keypoints", "action_units", "sync"):
        mask = found.frame_mask[name]
        assert mask.shape == (40,)
        assert not mask[away].any() and mask[:10].all() and mask[21:].all()
        assert np.isnan(found.features[name][~mask]).all()
        assert np.isfinite(found.features[name][mask]).all()
    assert found.frame_mask["audio"].all()
    assert any(note.startswith("no face in 1") for note in found.notes)


def test_a_rotated_clip_is_measured_upright(tmp_path, measured):
    def turned(time):
        return np.ascontiguousarray(np.rot90(media.talking()(time), -1))

    path = media.face(tmp_path / "a.mp4", 0.4, picture=turned, rotation=90)
    found = clip.observe(path, backends.options())
    assert "rotated or mirrored as the file asks" in found.notes
    np.testing.assert_allclose(
        found.features["keypoints"][3], measured.features["keypoints"][3], atol=0.02
    )


def test_late_sound_is_masked_in_the_audio_alone(tmp_path):
    path = media.face(tmp_path / "a.mkv", 2.0, sound_start=0.6, sound_codec="pcm_s16le")
    found = clip.observe(path, backends.options())
    np.testing.assert_array_equal(found.frame_mask["audio"], np.arange(50) >= 15)
    assert found.frame_mask["visual"].all()
    assert "no sound in 15 of 50 rows" in found.notes


def test_silence_is_noted_and_not_rejected(tmp_path):
    path = media.face(tmp_path / "a.mp4", 1.0, sound=np.zeros(48000, np.float32))
    found = clip.observe(path, backends.options())
    assert found.notes == ("the sound is silent",)
    assert found.frame_mask["audio"].all() and found.frame_mask["sync"].all()
    np.testing.assert_array_equal(found.features["sync"], 0)


def test_a_clip_without_a_face_is_refused(tmp_path):
    path = media.simple(tmp_path / "a.mp4")
    with pytest.raises(decode.ClipError, match="no face found in 25 frames"):
        clip.observe(path, backends.options())


def test_openface_tables_replace_blendshapes(tmp_path):
    path = media.face(tmp_path / "a.mp4", 0.4)
    tables = tmp_path / "tables"
    tables.mkdir()
    options = backends.options(action_units="openface", openface=str(tables))
    found = clip.observe(path, options)
    assert not found.frame_mask["action_units"].any()
    assert np.isnan(found.features["action_units"]).all()
    assert found.notes == ("no OpenFace table a.csv: action units are missing",)
    units = [f"AU{u:02d}_r" for u in (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23)]
    names = ["timestamp", *units, "AU25_r", "AU26_r", "AU45_r"]
    lines = [", ".join(names)]
    lines += [", ".join([f"{i / 25}", *["1.5"] * 17]) for i in range(8)]
    (tables / "a.csv").write_text("\n".join(lines))
    found = clip.observe(path, options)
    np.testing.assert_array_equal(found.frame_mask["action_units"], np.arange(10) < 8)
    np.testing.assert_array_equal(found.features["action_units"][:8], 1.5)
    assert found.notes == ("the OpenFace table covers 8 of 10 rows",)
    lines += [", ".join([f"{i / 25}", *["1.5"] * 17]) for i in range(8, 60)]
    (tables / "a.csv").write_text("\n".join(lines))
    found = clip.observe(path, options)
    assert found.frame_mask["action_units"].all()
    assert found.notes == (
        "the OpenFace table goes on for 2.0 s after the clip: is it of another video?",
    )
    described = {m.name: m for m in backends.describe(options)}
    assert described["action_units"].backend == "openface"
    assert described["action_units"].checksum == ""


@pytest.mark.parametrize(
    "options, message",
    [
        ({"visual": "cnn"}, "unknown visual backend 'cnn'; available: nss, clip"),
        (
            {"audio": "mfcc"},
            "unknown audio backend 'mfcc'; available: logmel, .*hubert",
        ),
        ({"action_units": "openface"}, "--openface=DIR"),
        ({"openface": "/none"}, "choose --action_units=BACKEND of openface"),
        ({"action_units": "openface", "openface": "/none"}, "no folder of OpenFace"),
        ({"max_seconds": 0}, "max_seconds is 0"),
        ({"max_seconds": float("nan")}, "max_seconds is nan"),
        ({"landmarker": "/none.task"}, "no face landmarker at /none.task"),
    ],
)
def test_bad_options_are_one_clear_line(options, message):
    with pytest.raises(schema.InputError, match=message) as caught:
        clip.check(backends.options(**options))
    assert "\n" not in str(caught.value)
