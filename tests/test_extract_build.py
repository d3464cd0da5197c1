import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from extract import backends, build, clip, jobs, measure, run
from tests import media
from tqa_jax import output, records, schema

TASKS = schema.TASKS[:2]
NUM_GOOD = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with four good clips and one of each kind of bad one."""
    clips = tmp_path_factory.mktemp("data") / "clips"
    clips.mkdir()
    for index in range(NUM_GOOD):
        media.face(clips / f"good{index}.mp4", 0.4, picture=media.talking(index + 1))
    media.face(clips / "deaf.mp4", 0.4, sound=None)
    media.face(clips / "blind.mp4", 0.4, picture=None)
    media.simple(clips / "faceless.mp4", 0.4)
    (clips / "empty.mp4").write_bytes(b"")
    (clips / "text.mp4").write_text("no video")
    whole = media.face(clips / "cut.mp4", 1.0).read_bytes()
    (clips / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    media.face(clips / "unrated.mp4", 0.4)
    return clips


def _items(folder, splits=("train", "train", "validation", "test")):
    return [
        build.Item(
            folder / f"good{i}.mp4", f"good{i}", f"s{i}", split, {"lip_sync": 1.0 + i}
        )
        for i, split in enumerate(splits)
    ]


def _build(items, out, **more):
    given = {"tasks": TASKS, "name": "test", "provenance": {"kind": "ratings"}}
    return build.build(items, out, **{**given, "num_workers": 1, **more})


@pytest.fixture(scope="module")
def command(folder, tmp_path_factory):
    """Runs the command over good and bad clips once; returns status and set."""
    base = tmp_path_factory.mktemp("command")
    (base / "labels.csv").write_text(
        "clip,split,lip_sync,overall\n"
        "good0,train,1.5,\ngood1.mp4,train,,3\ngood2,val,2,2\ngood3,test,-1,4\n"
        + "".join(
            f"{name},train,3,3\n"
            for name in ("deaf", "blind", "faceless", "empty", "text", "cut")
        )
    )
    arguments = [
        f"--clips={folder}",
        f"--labels={base / 'labels.csv'}",
        f"--out={base / 'set'}",
        "--num_workers=2",
    ]
    return run.main(arguments), base / "set", arguments


def test_the_command_makes_a_set_and_lists_what_it_rejects(command):
    status, out, _ = command
    assert status == 3
    info = schema.load(out)
    assert info.name == "set" and info.provenance["kind"] == "ratings"
    assert info.schema.modalities == backends.describe(backends.options())
    assert info.schema.task_names == ("lip_sync", "overall")
    clips = {
        split: [c.clip for c in records.read_split(out, info, split)]
        for split in schema.SPLITS
    }
    assert clips == {
        "train": ["good0", "good1"],
        "validation": ["good2"],
        "test": ["good3"],
    }
    with (out / "rejected.csv").open(newline="") as file:
        reasons = {row["clip"]: row["reason"] for row in csv.DictReader(file)}
    expected = {
        "deaf": "no audio stream",
        "blind": "no video stream",
        "faceless": "no face found in 10 frames",
        "empty": "0 bytes",
        "text": "not a readable video",
        "cut": "not a readable video",
    }
    assert set(reasons) == set(expected)
    for name, part in expected.items():
        assert part in reasons[name]
    assert not list(out.parent.glob(".set*"))


def test_stored_features_and_labels_are_the_clips(command, folder):
    _, out, _ = command
    info = schema.load(out)
    stored = next(iter(records.read_split(out, info, "test")))
    np.testing.assert_array_equal(stored.labels, np.array([np.nan, 4], np.float32))
    measured = clip.observe(folder / "good3.mp4", backends.options())
    for name, values in measured.features.items():
        np.testing.assert_array_equal(
            stored.frame_mask[name], measured.frame_mask[name]
        )
        np.testing.assert_array_equal(
            stored.features[name], values.astype(np.float16).astype(np.float32)
        )


def test_no_path_of_the_machine_is_stored(command, folder):
    text = (command[1] / "dataset.json").read_text()
    assert str(folder) not in text and "site-packages" not in text


def test_a_finished_set_is_left_as_it_is(command, capsys):
    status, out, arguments = command
    before = (out / "dataset.json").stat().st_mtime_ns
    assert run.main(arguments) == status
    assert "nothing had to be measured" in capsys.readouterr().out
    assert (out / "dataset.json").stat().st_mtime_ns == before


def test_clips_without_a_row_are_counted(command, capsys):
    run.main(command[2])
    assert "1 clips have no row in" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, message",
    [
        (["--score_range=5"], "--score_range is '5'; expected two numbers"),
        (["--score_range=5,1"], "expected two numbers, the lowest score first"),
        (["--score_range=1,inf"], "--score_range is '1,inf'; expected two numbers"),
        (["--score_range=2,5"], "lip_sync is 1.5; expected 2 to 5"),
        (["--visual=cnn"], "unknown visual backend 'cnn'; available: nss, clip"),
        (["--device_batch=0"], "--device_batch is 0; expected at least 1"),
        (["--num_workers=0"], "--num_workers is 0"),
        (["--name=a-b"], "'a-b' must be letters"),
        (["--landmarker=/none"], "no face landmarker at /none"),
        (["--labels=/none.csv"], "no labels file at /none.csv"),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2(command, capsys, more, message):
    assert run.main(command[2] + more) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def _measured(summary):
    """Clips that were measured, and the stages that it took."""
    return summary.tally.measured, set(summary.tally.stage_seconds)


def test_another_set_of_the_clips_measures_only_what_is_new(folder, tmp_path):
    items, out = _items(folder), tmp_path / "set"
    few = [dataclasses.replace(items[0], absent=("audio", "sync")), *items[1:3]]
    out.mkdir()  # an empty folder is as good as none
    first = _build(few, out)
    assert _measured(first)[0] == 3
    (out / "mine.txt").write_text("a note")
    # A clip more, one less on purpose.
    second = _build([few[0], items[2], items[3]], out)
    assert _measured(second)[0] == 1
    one, *others = records.read_split(out, second.info, "train")
    assert others == [] and second.info.splits["test"].clips == 1
    for name in second.info.schema.widths:  # what is absent on purpose is masked
        assert one.frame_mask[name].any() == (name not in ("audio", "sync"))
    assert (out / "mine.txt").read_text() == "a note"
    # Another label, another split, another name, another way to store.
    moved = dataclasses.replace(items[3], labels={"lip_sync": 1.5}, split="train")
    third = _build([*items[:3], moved], out, dtype="float32")
    assert third.tally.measured == 0
    found = {c.clip: c for c in records.read_split(out, third.info, "train")}
    assert set(found) == {"good0", "good1", "good3"}
    assert found["good3"].labels[0] == 1.5
    # The same again touches nothing.
    before = (out / "dataset.json").stat().st_mtime_ns
    assert _build([*items[:3], moved], out, dtype="float32").info == third.info
    assert (out / "dataset.json").stat().st_mtime_ns == before


def test_a_joined_backend_is_measured_alone(folder, tmp_path):
    items, features = _items(folder), tmp_path / "features"
    apart = _build(items, tmp_path / "one", features=features)
    more = backends.options(action_units="blendshapes+geometry", visual="nss")
    both = _build(items, tmp_path / "two", features=features, options=more)
    assert _measured(apart)[0] == _measured(both)[0] == NUM_GOOD
    assert _measured(both)[1] == {"decode", "landmarks", "action_units"}
    fresh = _build(items, tmp_path / "three", options=more)
    assert both.info.splits == fresh.info.splits  # checksums of the shards
    # Less than before needs nothing.
    assert _build(items, tmp_path / "four", features=features).tally.measured == 0


def test_clips_that_are_too_long_now_are_rejected(folder, tmp_path):
    out = tmp_path / "set"
    _build(_items(folder), out)
    with pytest.raises(schema.InputError, match="none of 4 clips can be used"):
        _build(_items(folder), out, options=backends.options(max_seconds=0.2))
    assert schema.load(out).splits["train"].clips == 2  # the old one stays
    assert _build(_items(folder), out).tally.measured == 0


def test_a_folder_with_something_else_is_refused(folder, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("x")
    with pytest.raises(schema.InputError, match="is there and no data set"):
        _build(_items(folder), tmp_path / "set")


def _all_of(work, tally=None, **how):
    options = backends.options()
    names = [setting.name for setting in options.settings]
    work = {key: measure.Job(path, names) for key, path in work.items()}
    given = {"num_workers": 1, "timeout_seconds": 60, **how}
    return dict(measure.measured(work, options, tally or measure.Tally(), **given))


def test_a_crash_and_a_defect_cost_one_clip_each(folder, capsys):
    tally = measure.Tally()
    found = _all_of(
        {
            "crash": media.Fatal(),
            "defect": media.Defective(),
            "good": folder / "good0.mp4",
        },
        tally,
    )
    assert tally.measured == 1 and tally.rejected == 2 and found["good"].rows == 10
    assert "process that worked on it died" in found["crash"].reason
    assert found["defect"] == ("internal error: KeyError: 'a defect'", False)
    assert "KeyError" in capsys.readouterr().err


def test_little_memory_means_few_workers(monkeypatch):
    monkeypatch.setattr(jobs.machine, "cores", lambda: 8)
    for free, count in ((None, 8), (1 << 40, 8), (2 << 30, 3), (1, 1)):
        monkeypatch.setattr(jobs.machine, "free_memory", lambda free=free: free)
        assert jobs.count() == count and jobs.count(5) == 5 and jobs.count(9, 2) == 2


@pytest.mark.slow
def test_a_hanging_decoder_costs_one_clip(folder):
    work = {"hang": media.Endless(), "good": folder / "good0.mp4"}
    found = _all_of(work, timeout_seconds=10)
    assert found["hang"] == ("given up after 10 s", False)
    assert found["good"].rows == 10


def test_a_file_that_cannot_be_read_costs_one_clip(folder, tmp_path):
    items = _items(folder)
    items.append(build.Item(folder / "gone.mp4", "gone", "s9", "train", {}))
    items.append(build.Item(folder / "lost.mp4", "lost", "s8", "train", {}))
    summary = _build(items, tmp_path / "set")
    assert summary.rejected == (("gone", "no such file"), ("lost", "no such file"))
    assert summary.tally.measured == NUM_GOOD


def test_a_file_that_is_not_finished_leaves_nothing(tmp_path):
    with pytest.raises(OSError), output.atomic(tmp_path / "a") as part:
        part.write_text("half")
        raise OSError
    assert list(tmp_path.iterdir()) == []


def test_openface_tables_that_fit_no_clip_or_two_are_refused(folder, tmp_path):
    options = backends.options(action_units="openface", openface=str(tmp_path))
    with pytest.raises(schema.InputError, match="no file of any clip for action_units"):
        _build(_items(folder), tmp_path / "set", options=options)
    twin = build.Item(folder / "other" / "good0.mp4", "other/good0", "o", "train", {})
    with pytest.raises(schema.InputError, match="'good0' and 'other/good0' would both"):
        _build([*_items(folder), twin], tmp_path / "set", options=options)
    assert list(tmp_path.iterdir()) == []


def test_nothing_usable_makes_nothing(folder, tmp_path):
    bad = [build.Item(folder / "deaf.mp4", "deaf", "deaf", "train", {})]
    with pytest.raises(schema.InputError, match="none of 1 clips.*no audio stream"):
        _build(bad, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_set_without_clips_to_train_on_is_not_made(folder, tmp_path):
    items = [build.Item(folder / "deaf.mp4", "deaf", "deaf", "train", {})]
    items += _items(folder)[3:]
    with pytest.raises(schema.InputError, match="no clip of the train split"):
        _build(items, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set.features"]


@pytest.mark.slow
def test_building_twice_gives_the_same_bytes(folder, tmp_path):
    one, two = (_build(_items(folder), tmp_path / name) for name in ("a", "b"))
    assert one.info.splits == two.info.splits  # checksums of the shards


def test_a_fingerprint_follows_the_content_and_the_backend(folder, tmp_path):
    path, copy = folder / "good0.mp4", tmp_path / "copy.mp4"
    one = measure.fingerprint(path, backends.options())
    copy.write_bytes(path.read_bytes())
    assert measure.fingerprint(copy, backends.options()) == one
    short = measure.fingerprint(path, backends.options(max_seconds=9))
    assert short.clip != one.clip and short.parts == one.parts
    copy.write_bytes(path.read_bytes() + b"x")
    other = measure.fingerprint(copy, backends.options())
    assert not set(other.parts.values()) & set(one.parts.values())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"source": "s2"}, "source 's2' is in both"),
        ({"split": "dev"}, "unknown split 'dev'"),
    ],
)
def test_unusable_items_are_refused_before_any_work(folder, tmp_path, change, message):
    items = _items(folder)
    items[0] = dataclasses.replace(items[0], **change)
    with pytest.raises(schema.InputError, match=message):
        _build(items, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(folder, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(schema.InputError, match="cannot be written: Not a directory"):
        _build(_items(folder), tmp_path / "file" / "set")


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(folder, tmp_path):
    rows = "".join(f"good{i},train,{1 + i}\n" for i in range(NUM_GOOD))
    (tmp_path / "labels.csv").write_text("clip,split,overall\n" + rows)
    command = [sys.executable, "-m", "extract.run", f"--clips={folder}"]
    command += [f"--labels={tmp_path / 'labels.csv'}", f"--out={tmp_path / 'set'}"]
    command += ["--num_workers=1"]
    features = tmp_path / "set.features"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    limit, each = time.monotonic() + 60, len(backends.options().settings)
    while len(list(features.glob("*.npz"))) < 2 * each and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(list(features.glob("*.npz"))) // each
    assert kept >= 2 and not (tmp_path / "set").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    left = NUM_GOOD - kept
    said = f"measured {left} clips" if left else "nothing had to be measured"
    assert said in again.stdout
    assert schema.load(tmp_path / "set").splits["train"].clips == NUM_GOOD


def test_a_result_that_a_power_cut_tore_is_measured_again(folder, tmp_path):
    items, out = _items(folder), tmp_path / "set"
    first = _build(items, out)
    torn = next((tmp_path / "set.features").glob("*.npz"))
    data = torn.read_bytes()
    torn.write_bytes(data[: len(data) // 2])
    again = _build(items, out, name="other")
    assert again.tally.measured == 1 and again.info.splits == first.info.splits


def test_a_clip_that_was_gone_is_tried_again(folder, tmp_path):
    path = tmp_path / "late.mp4"
    items = [*_items(folder)[:2], build.Item(path, "late", "s9", "train", {})]
    assert _build(items, tmp_path / "set").rejected == (("late", "no such file"),)
    path.write_bytes((folder / "good3.mp4").read_bytes())
    found = _build(items, tmp_path / "set")
    assert found.tally.measured == 1 and found.rejected == ()


def test_two_jobs_do_not_share_a_folder(folder, tmp_path):
    (tmp_path / "set.features").mkdir()
    with (
        output.lock(tmp_path / "set.features" / ".lock"),
        pytest.raises(schema.InputError, match="another process works in"),
    ):
        _build(_items(folder), tmp_path / "set")
