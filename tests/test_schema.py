"""Names of tasks and modalities share no namespace with ours, whoever gives them."""

import json
import os
import pathlib

import numpy as np
import pytest

from extract import labels
from tests import small
from tqa_jax import run_folder, schema, score

ODD = pathlib.Path(os.environ.get("TQA_SHARED", "../shared")) / "data" / "odd"


@pytest.mark.parametrize(
    "names, message",
    [
        (["total"], "'total' is taken: tables and logs have it for something else"),
        (["Consistency"], "'Consistency' is taken"),
        (["overall", "seconds"], "'seconds' is taken"),
        (["error"], "'error' is taken"),
        (["warnings"], "'warnings' is taken"),
        (["clip"], "'clip' is taken"),
        (["source"], "'source' is taken"),
        (["average"], "'average' is taken"),
        (["ｔｏｔａｌ"], "is taken"),  # full width: the same letters to Python
        (["overall_low", "overall"], "'overall_low' is taken: tables have '_low' beh"),
        (["mos", "MOS_sd"], "'MOS_sd' is taken: tables have '_sd' behind 'mos'"),
        (["a", "a_score"], "'a_score' is taken"),
        (["overall", "Overall"], "'overall' and 'Overall' differ in case only"),
        (["overall", "overall"], "'overall' is listed twice"),
        (["lip/sync"], "'lip/sync' must be letters, digits and underscores"),
        (["lip.sync"], "must be letters"),
        (["over all"], "must be letters"),
        (["=1"], "must be letters"),
        ([""], "must be letters"),
    ],
)
def test_names_that_would_be_mistaken_for_ours_are_refused(names, message):
    with pytest.raises(schema.InputError, match=f"^[^\n]*{message}[^\n]*$"):
        schema.Schema(
            (schema.Modality("visual", 1),), tuple(schema.Task(name) for name in names)
        )


def test_names_that_nothing_else_has_are_taken():
    tasks = ("label", "audio", "window", "overall_low", "score", "items", "humour_2")
    of = schema.Schema(
        tuple(schema.Modality(name, 1) for name in ("audio", "clip", "total")),
        tuple(schema.Task(name) for name in tasks),
    )
    assert schema.Schema.from_json(json.loads(json.dumps(of.to_json()))) == of


def test_modalities_that_differ_in_case_only_are_refused():
    with pytest.raises(schema.InputError, match="modality names 'a' and 'A' differ"):
        schema.Schema(
            (schema.Modality("a", 1), schema.Modality("A", 1)), (schema.Task("t"),)
        )


def test_every_column_of_ours_is_a_name_that_no_task_can_have():
    header = score._header(["t"])
    own = [name for name in header if name != "t" and not name.startswith("t_")]
    metrics = dict.fromkeys(("loss", "weight", "coefficient"), np.zeros(1))
    metrics |= dict.fromkeys(("task_grad_norm", "labels"), np.zeros(1))
    ours = ("total", "consistency", "grad_norm", "lr", "loss_scale", "skipped")
    line = run_folder.step_line(metrics | dict.fromkeys(ours, 0.0), ["t"], [1.0])
    own += [name.split("/")[1] for name in line if "/" in name and name[-2:] != "/t"]
    assert {"clip", "seconds", "warnings", "error", "total", "consistency"} == set(own)
    for name in own:
        with pytest.raises(schema.InputError, match="is taken"):
            schema.check_names("task", [name])


def test_a_labels_file_with_such_a_column_is_refused(tmp_path):
    (tmp_path / "a.mp4").touch()
    path = tmp_path / "labels.csv"
    path.write_text("clip,overall,Seconds\na,3,2\n")
    with pytest.raises(schema.InputError, match="column of .*labels.csv: .*'Seconds'"):
        labels.read(path, tmp_path)


def test_the_labels_whose_tasks_hid_the_losses_are_refused(tmp_path):
    path = ODD / "10_labels_tasks_total_consistency.csv"
    if not path.is_file():
        pytest.skip(f"no {path}: set TQA_SHARED")
    with pytest.raises(schema.InputError, match="'total' is taken"):
        labels.read(path, tmp_path)


def test_a_data_set_of_others_with_such_a_task_is_refused(tmp_path):
    small.write(tmp_path / "set", clips=15)
    file = tmp_path / "set" / "dataset.json"
    described = json.loads(file.read_text())
    described["tasks"][0]["name"] = "total"
    file.write_text(json.dumps(described))
    with pytest.raises(schema.InputError, match="'total' is taken"):
        schema.load(tmp_path / "set")
