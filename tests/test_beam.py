import functools
import json

import pytest

from extract import backends, build, measure, run
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


def _measure(path, store, run, **more):
    options, tally = backends.options(), measure.Tally()
    key = measure.fingerprint(path, options)
    names = tuple(store.missing(key, options.max_seconds))
    work = {key.clip: measure.Job(path, names)} if names else {}
    reasons = run(
        work,
        store,
        {key.clip: key},
        options=options,
        tally=tally,
        num_workers=1,
        timeout_seconds=60,
        **more,
    )
    return key, reasons, tally


def test_beam_takes_up_what_one_machine_has_measured(folder, tmp_path):
    store = measure.Store(tmp_path)
    beamed = functools.partial(
        command.measured, pipeline=["--direct_running_mode=in_memory"]
    )
    key, reasons, tally = _measure(folder / "good 0.mp4", store, beamed)
    assert reasons == {} and tally.measured == 1 and tally.stage_seconds["landmarks"]
    assert store.missing(key, 120) == [] and not (tmp_path / "outcomes").exists()
    _, _, tally = _measure(folder / "good 0.mp4", store, build.local)
    assert tally.measured == 0
    key, reasons, _ = _measure(folder / "deaf.mp4", store, beamed)
    assert reasons == {key.clip: store.reason(key)} != {key.clip: None}


def test_a_crash_of_the_decoder_costs_one_clip(folder, tmp_path):
    options, store = backends.options(), measure.Store(tmp_path)
    names = tuple(setting.name for setting in options.settings)
    good = measure.fingerprint(folder / "good 0.mp4", options)
    step = command.Measure(store, options, names, 60, None)
    step.setup()
    came = [
        json.loads(one)
        for key, path in (
            (measure.Fingerprint("crash", {}), media.Fatal()),
            (good, folder / "good 0.mp4"),
        )
        for one in step.process((key, measure.Job(path, names)))
    ]
    step.teardown()
    assert [one[0] for one in came] == ["crash", good.clip]
    assert "process that worked on it died" in came[0][3]
    assert came[1][3] is None and store.missing(good, 120) == []


def test_a_folder_that_cannot_be_written_ends_the_job(folder, tmp_path):
    options = backends.options()
    key = measure.fingerprint(folder / "good 0.mp4", options)
    key = measure.Fingerprint("key", {name: f"no/{name}" for name in key.parts})
    with pytest.raises(schema.InputError, match="cannot be written"):
        command.measured(
            {"key": measure.Job(folder / "good 0.mp4", tuple(key.parts))},
            measure.Store(tmp_path),
            {"key": key},
            options=options,
            tally=measure.Tally(),
            num_workers=1,
            pipeline=["--direct_running_mode=in_memory"],
        )


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
