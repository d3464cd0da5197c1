"""Groups are found where they are, and differ when they were made to."""

import json
import math
import types

import numpy as np
import pytest

from experiments import subgroups
from experiments.studying import groups
from tests import small
from tqa_jax import run as run_lib
from tqa_jax import schema

INFO = schema.DatasetInfo("x", small.SCHEMA, {}, "float32", {}, {})
THQA = r"(?P<face>\d+)_voice_(?P<language>[a-z]+)_\d+_(?P<generator>\w+)"


def given(**options):
    return types.SimpleNamespace(**({"groups": None, "pattern": None} | options))


def make(number=60, *, shift=None, seed=0):
    """Clips of 15 sources in two groups, scores off by noise and, in one, a shift."""
    rng = np.random.default_rng(seed)
    clips = tuple(f"c{at}" for at in range(number))
    sources = tuple(f"s{at % 15}" for at in range(number))
    labels = rng.uniform(1, 5, number)
    scores = labels + rng.normal(scale=0.3, size=(2, number))
    column = {clip: "ab"[at // 15 % 2] for at, clip in enumerate(clips)}
    if shift:
        scores += shift * np.array([column[clip] == "a" for clip in clips])
    return subgroups.Task("overall", clips, sources, scores, labels), column


def test_names_of_clips_give_groups_and_constant_ones_are_left_out():
    clips = {
        f"{face}_voice_en_{face}5_{kind}": f"face{face}"
        for face in (1, 2)
        for kind in ("dinet", "iplap")
    }
    found, said = groups.read(given(pattern=THQA), INFO, clips)
    assert list(found) == ["source", "generator"]
    assert found["generator"]["1_voice_en_15_dinet"] == "dinet"
    assert said == [
        "Left out face: its groups are the sources.",
        "Left out language: it has one group, 'en'.",
    ]
    assert groups.generator(found) == "generator"
    assert groups.generator({"source": {}}) == "source"
    with pytest.raises(schema.InputError, match="source, generator"):
        groups.generator(found, "language")


def test_table_gives_groups(tmp_path):
    clips = {"a": "s", "b": "s", "c": "t"}
    path = tmp_path / "g.csv"
    path.write_text("clip,split,fps,id\na,x,25,1\nb,x,30,2\nc,x,,3\nz,x,25,4\n")
    found, said = groups.read(given(groups=path), INFO, clips)
    assert found == {"source": clips} and len(said) == 2
    path.write_text("clip,fps\na,25\nb,30\nc,25\n")
    found, said = groups.read(given(groups=path), INFO, clips)
    assert found["fps"] == {"a": "25", "b": "30", "c": "25"} and not said


@pytest.mark.parametrize(
    "options, said",
    [
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": ".*"}, "no named group"),
        ({"pattern": "(?P<x>z)"}, "fits no clip"),
        ({"pattern": "(?P<source>.)"}, "is taken"),
        ({"groups": "clip\na\n"}, "expected clip and one or more others"),
        ({"groups": "clip,x\na,1\na,2\n"}, "'a' twice"),
        ({"groups": "clip,x\nq,1\n"}, "none of the data set's clips"),
    ],
)
def test_unfit_groups_are_refused(tmp_path, options, said):
    if "groups" in options:
        path = tmp_path / "g.csv"
        path.write_text(options["groups"])
        options = {"groups": path}
    with pytest.raises(schema.InputError, match=said):
        groups.read(given(**options), INFO, {"a": "s", "b": "t"})


def test_figures_of_a_group_are_those_of_its_clips():
    task, column = make(shift=1.0)
    rows = {row["group"]: row for row in subgroups.group_rows("g", column, task)}
    mine = [at for at, clip in enumerate(task.clips) if column[clip] == "a"]
    errors = [[float(run[at] - task.labels[at]) for at in mine] for run in task.scores]
    bias = sum(sum(one) / len(one) for one in errors) / 2
    rmse = sum(math.sqrt(sum(e * e for e in one) / len(one)) for one in errors) / 2
    row = rows["a"]
    assert row["n"] == len(mine) == 30 and row["sources"] == 15
    assert row["bias"] == pytest.approx(bias) and row["rmse"] == pytest.approx(rmse)
    assert row["bias_low"] < 1 < row["bias_high"] and not row["reason"]
    assert abs(rows["b"]["bias"]) < 0.2


def test_small_groups_say_why_they_have_no_figure():
    task, _ = make(12)
    column = {clip: clip for clip in task.clips[:2]}
    row = subgroups.group_rows("g", column, task)[0]
    assert row["srcc"] is None and row["bias_low"] is None
    assert "1 of the 3 sources" in row["reason"] and "10 clips" in row["reason"]
    tests = subgroups.heterogeneity("g", column, task)
    assert all(row["p"] is None and "too few" in row["reason"] for row in tests)


def test_groups_that_differ_are_told_from_those_that_do_not():
    task, column = make(shift=0.5)
    bias, size = subgroups.heterogeneity("g", column, task)
    assert bias["permuted"] == "clips within their source"
    assert bias["p"] == 1 / 2001 and size["p"] < 0.05
    errors = (task.scores - task.labels).mean(axis=0)
    total = 0.0
    for group in "ab":
        mine = [errors[at] for at, c in enumerate(task.clips) if column[c] == group]
        total += len(mine) * (np.mean(mine) - errors.mean()) ** 2
    assert bias["spread"] == pytest.approx(math.sqrt(total / 60))
    found = [
        subgroups.heterogeneity("g", *reversed(make(seed=seed)))[0]["p"]
        for seed in range(1, 41)
    ]
    assert np.mean(np.array(found) < 0.05) <= 0.125 and np.mean(found) > 0.35


def test_permutations_keep_what_hangs_together():
    sources = np.repeat(np.arange(8), 4)
    whole = (sources % 2).astype(int)
    what, draws, reason = subgroups.permutations(whole, sources, number=50)
    assert what == "whole sources" and not reason
    for source in range(8):
        assert (np.ptp(draws[:, sources == source], axis=1) == 0).all()
    np.testing.assert_array_equal(draws.sum(axis=1), whole.sum())
    mixed = np.tile([0, 0, 0, 1], 8)
    what, draws, _ = subgroups.permutations(mixed, sources, number=50)
    assert what == "clips within their source"
    assert (draws.reshape(50, 8, 4).sum(axis=-1) == 1).all()
    few = subgroups.permutations(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    assert few[2].startswith("too few: 2 ways")
    own = np.repeat(np.arange(5), 3)
    assert subgroups.permutations(own, own)[2].startswith("each group is one source")


def test_study_of_a_finished_run(tmp_path, capsys, monkeypatch):
    small.write(tmp_path / "data")
    task, column = make(shift=1.0)
    run = tmp_path / "run"
    run.mkdir()
    lines = ["clip,source,split,overall_score,overall_label,overall_spread"]
    for at, clip in enumerate(task.clips):
        numbers = f"{task.scores[0, at]},{task.labels[at]},"
        lines.append(f"{clip},{task.sources[at]},test,{numbers}")
    (run / "predictions.csv").write_text("\n".join(lines) + "\n")
    table = tmp_path / "groups.csv"
    table.write_text("\n".join(["clip,kind"] + [f"{c},{g}" for c, g in column.items()]))
    found = run_lib.Run(run).but(
        data_schema=schema.Schema((schema.Modality("a", 1),), (schema.Task("overall"),))
    )
    monkeypatch.setattr(run_lib.Run, "load", lambda folder: found)
    arguments = [f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'out'}"]
    arguments += [f"--workdir={run}", f"--groups={table}"]
    assert subgroups.main(arguments) == 0
    said = capsys.readouterr().out
    assert "Groups by kind differ in overall (bias)" in said
    assert "No difference between groups by source" in said
    found = json.loads((tmp_path / "out/subgroups.json").read_text())
    assert {row["group"] for row in found["rows"] if row["grouping"] == "kind"} == {
        *"ab"
    }
    assert (tmp_path / "out/subgroups.png").is_file()
