"""A damaged checkpoint costs the steps since the one before, and is said."""

import contextlib
import json
import shutil

import numpy as np
import pytest

from tqa_jax import checkpoint, schema


def saved(number):
    state = {"a": np.full((300, 200), number, np.float32), "b": (np.int32(number),)}
    return checkpoint.Saved(state, {"w": np.arange(9) * number}, np.int32(number))


@pytest.fixture
def folder(tmp_path):
    with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as opened:
        for number in (1, 2, 3):
            opened.save(10 * number, saved(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20", "30"]
    return tmp_path


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def all_files_empty(folder):
    for path in files(folder):
        path.write_bytes(b"")


def largest_cut(folder):
    largest = max(files(folder), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])


def one_bit_turned(folder):
    largest = max(files(folder), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def data_gone(folder):
    shutil.rmtree(folder / "default" / "ocdbt.process_0" / "d")


def description_gone(folder):
    (folder / "default" / "_METADATA").unlink()


KINDS = [
    *(emptied, all_files_empty, largest_cut, one_bit_turned),
    *(data_gone, description_gone),
]


@pytest.mark.parametrize("damage", KINDS)
def test_the_checkpoint_before_a_damaged_one_is_taken(folder, caplog, damage):
    damage(folder / "30")
    with contextlib.closing(checkpoint.Checkpoints(folder)) as opened:
        found = opened.restore(saved(0))
        assert found.best_epoch == found.state["b"][0] == found.state["a"][3, 4] == 2
        (line,) = caplog.messages
        assert "step 30" in line and line.endswith("is damaged: taking that of 20")
        opened.save(30, saved(4))  # The run comes there again.
    with contextlib.closing(checkpoint.Checkpoints(folder)) as opened:
        assert opened.restore(saved(0)).best_epoch == 4


def test_one_that_was_killed_before_its_seal_is_read(folder):
    (folder / "30" / "files.json").unlink()
    with contextlib.closing(checkpoint.Checkpoints(folder)) as opened:
        assert opened.restore(saved(0)).best_epoch == 3


def test_a_run_begins_anew_where_no_checkpoint_is_whole(folder, caplog):
    emptied(folder / "20")
    all_files_empty(folder / "30")
    with contextlib.closing(checkpoint.Checkpoints(folder)) as opened:
        assert opened.restore(saved(0)) is None
    assert "step 20" in caplog.messages[1] and "no other is left" in caplog.text


@pytest.mark.parametrize("sealed", [True, False])
def test_checkpoints_of_another_model_are_refused_and_stay(folder, sealed):
    if not sealed:
        for step in ("20", "30"):
            (folder / step / "files.json").unlink()
    others = [
        saved(0)._replace(state={"c": np.zeros(3)}),
        saved(0)._replace(best={"w": np.arange(8)}),
    ]
    for other in others:
        with contextlib.closing(checkpoint.Checkpoints(folder)) as opened:
            with pytest.raises(schema.InputError, match="of another model"):
                opened.restore(other)
    assert sorted(path.name for path in folder.iterdir()) == ["20", "30"]


def test_the_best_parameters_are_those_of_the_epoch_or_none(folder):
    emptied(folder / "30")
    with contextlib.closing(checkpoint.Checkpoints(folder)) as opened:
        assert opened.best(2)["w"].tolist() == (np.arange(9) * 2).tolist()
        with pytest.raises(schema.InputError, match="no whole checkpoint .* epoch 3"):
            opened.best(3)
    assert (folder / "30").exists()  # Who only reads removes nothing.


def test_a_checkpoint_lists_its_files(folder):
    listed = json.loads((folder / "30" / "files.json").read_text())
    names = {
        path.relative_to(folder / "30").as_posix() for path in files(folder / "30")
    }
    assert names == {*listed, "files.json"} and "default/_METADATA" in names
