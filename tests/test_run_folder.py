"""A folder belongs to one run; the metrics log is valid JSON whatever happens."""

import copy
import json
import math
import pathlib
import re
import subprocess

import numpy as np
import pytest

from tests import small
from tqa_jax import run_folder, schema


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("run_folder") / "set"
    small.write(path, clips=15)
    return path


def config_of(data, **changes):
    return small.config(data__path=str(data), **changes).to_dict()


def test_a_new_folder_is_claimed_and_the_same_run_goes_on(data, tmp_path):
    folder = tmp_path / "deep" / "run"
    assert run_folder.claim(folder, config_of(data), data) is True
    assert run_folder.claim(folder, config_of(data), data) is False
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert found["config"]["optim"]["learning_rate"] == 1e-2
    assert found["data"]["schema"] == small.SCHEMA.to_json()
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "environment.json",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 7}, "config.seed = 0, not 7"),
        ({"optim__learning_rate": 0.5}, "config.optim.learning_rate = 0.01, not 0.5"),
        ({"model__head_hidden": (4,)}, r"config.model.head_hidden\[0\] = 8, not 4"),
        ({"model__head_hidden": (8, 4)}, r"head_hidden = \[8\], not \[8, 4\]"),
        ({"model__preset": "advanced"}, "config.model.preset = synced, not advanced"),
    ],
)
def test_another_configuration_is_refused_naming_the_difference(
    data, tmp_path, change, said
):
    run_folder.claim(tmp_path / "run", config_of(data), data)
    with pytest.raises(schema.InputError, match=said):
        run_folder.claim(tmp_path / "run", config_of(data, **change), data)


def test_other_data_are_refused(data, tmp_path):
    run_folder.claim(tmp_path / "run", config_of(data), data)
    small.write(tmp_path / "set", clips=18)
    with pytest.raises(schema.InputError, match="data.sha256"):
        run_folder.claim(tmp_path / "run", config_of(data), tmp_path / "set")


def test_data_that_moved_are_the_same_data(data, tmp_path):
    first = tmp_path / "first"
    small.write(first, clips=15)
    run_folder.claim(tmp_path / "run", config_of(first), first)
    moved = first.rename(tmp_path / "second")
    assert run_folder.claim(tmp_path / "run", config_of(moved), moved) is False


def test_a_folder_with_something_else_is_refused(data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(schema.InputError, match="not empty and holds no run"):
        run_folder.claim(tmp_path, config_of(data), data)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("content", ['{"a": 1}', "[]", "{", "", "7", "\0\0\0"])
def test_a_config_json_of_something_else_is_refused(data, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(schema.InputError, match=re.escape(str(tmp_path))):
        run_folder.claim(tmp_path, config_of(data), data)
    assert (tmp_path / "config.json").read_text() == content


def test_a_claim_that_was_killed_can_be_made_again(data, tmp_path, monkeypatch):
    original = run_folder.write_json

    def killed(path, value):
        if path.name == "config.json":
            raise KeyboardInterrupt
        original(path, value)

    monkeypatch.setattr(run_folder, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        run_folder.claim(tmp_path / "run", config_of(data), data)
    monkeypatch.undo()
    assert run_folder.claim(tmp_path / "run", config_of(data), data) is True


def test_a_claim_does_not_change_the_configuration(data, tmp_path):
    config = config_of(data)
    before = copy.deepcopy(config)
    run_folder.claim(tmp_path / "run", config, data)
    run_folder.claim(tmp_path / "run", config, data)
    assert config == before


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    run_folder.write_json(path, {"a": 1.5, "name": "Zoë"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1.5, "name": "Zoë"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        run_folder.write_json(path, {"a": math.nan})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1.5, "name": "Zoë"}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_environment_names_versions_and_is_json():
    found = run_folder.environment()
    assert json.loads(json.dumps(found)) == found
    assert set(found["packages"]) == {
        "tqa_jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
    }
    assert all(found["packages"].values())
    assert found["devices"]


def test_the_commit_is_of_this_source_or_none(tmp_path, monkeypatch):
    found = run_folder.environment()["commit"]
    assert found is None or re.match(r"[0-9a-f]{40}", found)
    # Installed somewhere inside another repository: its commit says nothing of us.
    for command in (
        ["init", "-q"],
        [
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@example.org",
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            "x",
        ],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    file = tmp_path / "venv" / "run_folder.py"
    file.parent.mkdir()
    file.write_text(pathlib.Path(run_folder.__file__).read_text(encoding="utf-8"))
    monkeypatch.setattr(run_folder, "__file__", str(file))
    assert run_folder.environment()["commit"] is None


def lines(folder):
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def open_log(folder, from_step=0):
    return run_folder.MetricsLog(folder, from_step=from_step, tensorboard=False)


def test_a_line_holds_what_was_written_and_null_for_what_is_not_finite(tmp_path):
    log = open_log(tmp_path)
    log.write(
        step=3,
        epoch=1,
        split="train",
        **{"loss/total": 0.5, "loss/overall": math.nan, "lr": math.inf},
        best=True,
        correlation={"labels": [[1.0, math.nan], [None, 1.0]]},
    )
    log.close()
    assert lines(tmp_path) == [
        {
            "step": 3,
            "epoch": 1,
            "split": "train",
            "loss/total": 0.5,
            "loss/overall": None,
            "lr": None,
            "best": True,
            "correlation": {"labels": [[1.0, None], [None, 1.0]]},
        }
    ]


def test_each_line_is_on_disk_when_write_returns(tmp_path):
    log = open_log(tmp_path)
    for step in range(1, 4):
        log.write(step=step, epoch=1, split="train")
        assert [line["step"] for line in lines(tmp_path)] == list(range(1, step + 1))
    log.close()


def write_steps(folder, steps):
    log = open_log(folder)
    for step in steps:
        log.write(step=step, epoch=1, split="train", value=step / 2)
    log.close()


def test_lines_of_a_lost_future_are_dropped_on_resume(tmp_path):
    write_steps(tmp_path, range(1, 8))
    log = open_log(tmp_path, from_step=4)
    log.write(step=5, epoch=1, split="train", value=-1.0)
    log.close()
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5]
    assert found[-1]["value"] == -1.0


WHOLE = '{"step": 5, "epoch": 1, "split": "train", "a": {"b": 1.0}, "c": 2.0}\n'


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_half_a_line_is_dropped_wherever_it_was_cut(tmp_path, length):
    write_steps(tmp_path, range(1, 5))
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(WHOLE[:length])
    log = open_log(tmp_path, from_step=4)
    log.write(step=5, epoch=1, split="train")
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_tensorboard_gets_numbers_whole_numbers_and_matrices(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX import proto
    from tensorboardX.proto import event_pb2  # noqa: F401

    log = run_folder.MetricsLog(
        tmp_path, from_step=0, tensorboard=True, tasks=("lip_sync", "overall")
    )
    log.write(
        step=7,
        epoch=2,
        split="validation",
        **{"loss/overall": 0.5, "memory/temp_bytes": 2048, "memory/peak_bytes": None},
        best=True,
        correlation={
            "labels": [[1.0, 0.25], [0.25, 1.0]],
            "predictions": [[1.0, None], [None, 1.0]],
        },
    )
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    found = {}
    content = file.read_bytes()
    while content:  # Length, its checksum, an event, its checksum.
        size = int.from_bytes(content[:8], "little")
        event = proto.event_pb2.Event.FromString(content[12 : 12 + size])
        content = content[16 + size :]
        for value in event.summary.value:
            found[value.tag] = (event.step, value.simple_value)
    assert found == {
        "validation/epoch": (7, 2),
        "validation/loss/overall": (7, 0.5),
        "validation/memory/temp_bytes": (7, 2048),
        "validation/best": (7, 1),
        "validation/correlation/labels/lip_sync/overall": (7, 0.25),
    }
    assert "correlation" in lines(tmp_path)[0]  # The file has the matrices.


def test_log_variances_and_the_task_of_a_skipped_step_are_named():
    metrics = {
        name: np.float32(value)
        for name, value in {
            "total": math.nan,
            "consistency": 0.0,
            "grad_norm": math.nan,
            "lr": 1e-3,
            "loss_scale": 1.0,
            "skipped": 2.0,
        }.items()
    }
    ones = np.ones(2, np.float32)
    metrics |= dict.fromkeys(
        ("weight", "coefficient", "task_grad_norm", "labels"), ones
    )
    metrics["loss"] = np.array([1.0, np.inf], np.float32)
    metrics["log_variance"] = np.array([0.5, -0.25], np.float32)
    line = run_folder.step_line(metrics, ["a", "b"], [1.0, 1.0])
    assert (line["skipped"], line["skipped/a"], line["skipped/b"]) == (2, 0, 1)
    assert (line["log_variance/a"], line["log_variance/b"]) == (0.5, -0.25)
    metrics["skipped"] = np.float32(0)
    assert run_folder.step_line(metrics, ["a", "b"], [1.0, 1.0])["skipped/b"] == 0


@pytest.mark.parametrize("garbage", [b"\0" * 40, b"7\n", b'{"a": 1}\n', b"\xff\n"])
def test_damaged_lines_of_the_log_are_left_out_and_counted(tmp_path, caplog, garbage):
    write_steps(tmp_path, range(1, 4))
    content = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(garbage.rstrip() + b"\n" + content)
    open_log(tmp_path, from_step=3).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert "metrics.jsonl: 1 damaged lines left out" in caplog.text
