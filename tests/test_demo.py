import dataclasses
import pathlib
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from scipy import signal

from extract import decode, demo, encode, sound
from extract.degrading import FRAME, sound_flaws
from extract.rendering import demo_plan
from tqa_jax import records, schema


def test_a_written_clip_keeps_its_pictures_and_its_sound_in_step(tmp_path):
    item = dataclasses.replace(
        demo_plan.plan(24)[0], strengths={"offset": 0.5}, covered=None
    )
    frames, audio = demo.make_clip(item)
    file = tmp_path / "clip.mp4"
    encode.write(file, frames, audio)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    with av.open(str(file)) as container:
        assert container.streams.video[0].average_rate == 25
        assert container.streams.audio[0].rate == 16_000
    media = decode.Media()
    decoded = np.stack(list(decode.frames(file, media)))
    assert decoded.shape == frames.shape == (80, 256, 256, 3)
    assert np.abs(decoded.astype(float) - frames).mean() < 4
    samples, present = sound.track(media.chunks, media.rows)
    assert present.all()
    lags = signal.correlation_lags(len(samples), len(audio))
    lag = lags[np.argmax(signal.correlate(samples, audio))]
    assert abs(lag) <= 16  # samples, 1 ms


@pytest.mark.parametrize("index", range(4))
def test_an_offset_brings_in_speech_from_beyond_the_clip(index):
    plain = dataclasses.replace(demo_plan.plan(24)[index], strengths={}, covered=None)
    late = dataclasses.replace(plain, strengths={"offset": 1.0})
    still, moved = demo.make_clip(plain), demo.make_clip(late)
    np.testing.assert_array_equal(still[0], moved[0])
    shift = sound_flaws.offset_frames(1.0, plain.seed) * FRAME
    kept = slice(max(shift, 0), len(moved[1]) + min(shift, 0))
    rolled = np.roll(still[1], shift)
    np.testing.assert_array_equal(moved[1][kept], rolled[kept])
    new, old = (np.delete(sound, np.r_[kept]) for sound in (moved[1], rolled))
    assert len(new) == abs(shift)
    assert np.corrcoef(new, old)[0, 1] == pytest.approx(0, abs=0.3)
    assert np.sqrt(np.mean(new**2)) > 10 ** (-45 / 20)  # speech, not the room


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's process table")
def test_a_killed_build_leaves_no_process_and_goes_on_where_it_was(tmp_path):
    command = [sys.executable, "-m", "extract.demo", "--clips=8", "--num_workers=2"]
    process = subprocess.Popen([*command, f"--out={tmp_path}"])
    while not (done := list(tmp_path.glob("*.work/*.mp4"))):
        assert process.poll() is None
        time.sleep(0.05)
    children = _children(process.pid)
    process.kill()
    process.wait()
    stamps = {file.name: file.stat().st_mtime_ns for file in done}
    assert not list(tmp_path.glob("*/dataset.json"))
    end = time.monotonic() + 20
    while any(map(_alive, children)) and time.monotonic() < end:
        time.sleep(0.05)
    assert children and not any(map(_alive, children))
    work = done[0].parent
    demo._render_all(demo_plan.plan(8), work, 2)
    assert len(list(work.glob("*.mp4"))) == 8
    for name, stamp in stamps.items():
        assert (work / name).stat().st_mtime_ns == stamp


def _children(parent):
    """Returns the ids of a process's children, by Linux's process table."""
    found = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(child) for child in found.split()]


def _alive(process):
    try:
        status = pathlib.Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_a_small_set_is_built_and_found_again(tmp_path):
    path = demo.build(tmp_path, clips=8, num_workers=2)
    info = schema.load(path)
    assert info.provenance["kind"] == "degradation"
    assert info.provenance["penalties"]["offset"]["lip_sync"] == 0.95
    plans = {item.clip: item for item in demo_plan.plan(8)}
    found = 0
    for split in schema.SPLITS:
        for clip in records.read_split(path, info, split):
            item = plans[clip.clip]
            found += 1
            assert (item.split, item.source) == (split, clip.source)
            expected = [item.labels.get(task.name, np.nan) for task in schema.TASKS]
            np.testing.assert_allclose(clip.labels, expected, rtol=1e-6)
            for name, mask in clip.frame_mask.items():
                assert mask.shape == (80,)
                if name in item.absent:
                    assert not mask.any()
                elif name == "visual" and item.covered is None:
                    assert mask.mean() > 0.95
    assert found == 8
    assert any(item.absent for item in plans.values())
    examples = path.with_name(path.name + "-examples")
    assert list(examples.glob("*.mp4")) and (examples / "clips.csv").is_file()
    assert not path.with_name(path.name + ".work").exists()

    before = (path / "dataset.json").stat().st_mtime_ns
    assert demo.build(tmp_path, clips=8, num_workers=2) == path
    assert (path / "dataset.json").stat().st_mtime_ns == before


def test_a_command_line_that_cannot_work_is_one_line_and_status_2(tmp_path, capsys):
    assert demo.main(["--clips=2", f"--out={tmp_path}"]) == 2
    assert demo.main(["--num_workers=0", f"--out={tmp_path}"]) == 2
    (tmp_path / "file").touch()
    assert demo.main([f"--out={tmp_path}/file"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.startswith("error: ") for line in errors)


# What is planned.


@pytest.mark.parametrize("clips", [3, 8, 24, 240])
def test_splits_share_no_identity_and_none_is_empty(clips):
    plans = demo_plan.plan(clips)
    people = {
        split: {item.source for item in plans if item.split == split}
        for split in schema.SPLITS
    }
    assert len(plans) == clips
    assert sum(map(len, people.values())) == len(set.union(*people.values()))
    assert min(map(len, people.values())) >= (3 if clips >= 9 else 1)
    seeds = {item.source: item.identity_seed for item in plans}
    assert len(set(seeds.values())) == len(seeds)


def test_the_full_set_has_the_sizes_it_promises():
    plans = demo_plan.plan(240)
    people = [
        len({item.source for item in plans if item.split == split})
        for split in schema.SPLITS
    ]
    assert people == [26, 6, 8]
    missing = 1 - sum(len(item.labels) for item in plans) / (5 * 240)
    assert missing == pytest.approx(0.08, abs=0.001)
    assert sum(bool(item.absent) for item in plans) == 10
    assert sum(item.covered is not None for item in plans) == 15
    assert {len(item.strengths) for item in plans} == {0, 1, 2, 3}
