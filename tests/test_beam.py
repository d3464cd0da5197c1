import json

import pytest

from extract import backends, clip, pool, run
from tests import media
from tqa_jax import schema

beam = pytest.importorskip("apache_beam", reason="needs the beam extra")
from extract import beam as command  # noqa: E402

COUNT = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    clips = tmp_path_factory.mktemp("beam") / "clips"
    clips.mkdir()
    for index in range(COUNT):
        path = clips / f"good {index}.mp4"
        media.face(path, 0.4, picture=media.talking(index + 1))
    media.face(clips / "deaf.mp4", 0.4, sound=None)
    rows = [f"good {i},train,{1 + i}\n" for i in range(COUNT)]
    text = "clip,split,overall\n" + "".join(rows) + "deaf,train,3\n"
    (clips.parent / "labels.csv").write_text(text)
    return clips


def _arguments(folder, out):
    labels = folder.parent / "labels.csv"
    return [f"--clips={folder}", f"--labels={labels}", f"--out={out}", "--name=same"]


def _shards(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.tfrecord"))}


@pytest.mark.slow
def test_several_workers_write_the_same_bytes_as_one_machine(folder, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    assert run.main(_arguments(folder, one)) == 3
    assert command.main([*_arguments(folder, other), "--num_workers=2"]) == 3
    assert _shards(one) == _shards(other) != {}
    assert (one / "rejected.csv").read_text() == (other / "rejected.csv").read_text()
    found = schema.load(other)
    assert found.splits == schema.load(one).splits
    assert found.provenance["tool"] == "extract.beam"
    assert not list(tmp_path.glob("*.partial"))


def _measure(work, folder, **more):
    given = {"num_workers": 1, "timeout_seconds": 60}
    given["pipeline"] = ["--direct_running_mode=in_memory"]
    return command.measure(work, folder, backends.options(), **{**given, **more})


def test_finished_clips_are_not_measured_again(folder, tmp_path):
    paths = {f"key{i}": folder / f"good {i}.mp4" for i in range(2)}
    pool.save(tmp_path, "key0", clip.observe(paths["key0"], backends.options()))
    (tmp_path / "key9.rejected").write_text("for a reason")
    done = _measure({**paths, "key9": folder / "deaf.mp4"}, tmp_path)
    assert done.measured == 1 and done.rejected == {"key9": "for a reason"}
    assert (tmp_path / "key1.npz").is_file() and done.stage_seconds["landmarks"] > 0
    assert not (tmp_path / "outcomes").exists()
    again = _measure(paths, tmp_path)
    assert again.measured == 0 and again.wall_seconds == 0


def test_a_crash_of_the_decoder_costs_one_clip(folder, tmp_path):
    step = command.Measure(tmp_path, backends.options(), 60, None)
    step.setup()
    work = {"crash": media.Fatal(), "good": str(folder / "good 0.mp4")}
    came = [json.loads(one) for item in work.items() for one in step.process(item)]
    step.teardown()
    assert [one[0] for one in came] == ["crash", "good"]
    assert "process that worked on it died" in came[0][2]
    assert came[1][2] is None and (tmp_path / "good.npz").is_file()


def test_a_folder_that_cannot_be_written_ends_the_job(folder, tmp_path):
    (tmp_path / "full").mkdir()
    work = {"no/such/folder": folder / "good 0.mp4"}
    with pytest.raises(schema.InputError, match="cannot be written"):
        _measure(work, tmp_path / "full")


@pytest.mark.parametrize(
    "more, message",
    [
        ("--visul=resnet101", "unknown option --visul=resnet101; neither extract.run"),
        ("--runner=Nope", "--runner=Nope"),
    ],
)
def test_options_that_nobody_has_are_refused(folder, tmp_path, capsys, more, message):
    assert command.main([*_arguments(folder, tmp_path / "set"), more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
