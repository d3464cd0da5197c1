"""The benchmark command, its tables, and sides in processes of their own."""

import importlib
import inspect
import json
import os
import pathlib

import numpy as np
import pytest

from experiments import bench, benches, sides, timing
from tqa_jax import plugins

ROOT = pathlib.Path(__file__).resolve().parent.parent
FAKE = """
from experiments import timing
from tqa_jax import schema

def run(rounds, *, quick):
    if quick:
        raise schema.InputError("no quick size")
    return [timing.Table("one", [{"case": "a", "ratio": rounds / 2}], "said")]
"""


def test_every_file_is_a_bench():
    names = plugins.names(benches.__name__)
    assert {"scorer", "train", "weighting"} <= set(names)
    for name in names:
        module = importlib.import_module(f"{benches.__name__}.{name}")
        inspect.signature(module.run).bind(3, quick=True)


def test_compare_takes_ratios_round_by_round():
    # Rounds drift by a factor of ten; within a round, a takes half of b.
    seconds = {"a": np.array([1.0, 10.0, 3.0]), "b": np.array([2.0, 20.0, 12.0])}
    table = timing.compare("title", seconds, "b", "Said.")
    first, second = table.rows
    assert first == {
        "case": "a",
        "ratio": 0.5,
        "low": 0.375,
        "high": 0.5,
        "median_ms": 3000.0,
    }
    assert second["ratio"] == second["low"] == second["high"] == 1.0
    assert table.note == "Ratios are to b. Said."


def test_interleave_rotates_and_leaves_out_the_warm_up():
    order = []
    clock = iter(range(100))

    def case(name):
        def once():
            order.append(name)
            return float(next(clock))

        return once

    seconds = timing.interleave({name: case(name) for name in "abc"}, 3)
    assert "".join(order) == "abcbcacababc"
    np.testing.assert_array_equal(seconds["a"], [5, 7, 9])
    np.testing.assert_array_equal(seconds["b"], [3, 8, 10])
    np.testing.assert_array_equal(seconds["c"], [4, 6, 11])


def test_markdown_has_a_column_a_key():
    rows = [
        {"case": "a", "ratio": 0.123456, "n": 7, "gone": None},
        {"case": "b", "ratio": 12345.6, "n": 123456, "gone": "x"},
    ]
    assert timing.markdown(timing.Table("t", rows, "n.")).splitlines() == [
        "### t",
        "",
        "| case | ratio | n | gone |",
        "|---|---|---|---|",
        "| a | 0.1235 | 7 |  |",
        "| b | 12346 | 123456 | x |",
        "",
        "n.",
    ]


def test_markdown_refuses_rows_that_differ():
    table = timing.Table("t", [{"case": "a"}, {"ratio": 1.0}])
    with pytest.raises(ValueError, match=r"row \['ratio'\] of 't'; expected \['case'"):
        timing.markdown(table)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A bench named `fake`: a file is all that it takes."""
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.setattr(benches, "__path__", [*benches.__path__, str(tmp_path)])


def test_the_command_writes_what_it_prints(fake, tmp_path, capsys):
    file = tmp_path / "found.json"
    assert bench.main(["fake", "--rounds=3", f"--json={file}"]) == 0
    printed = capsys.readouterr().out
    assert "| a | 1.5 |" in printed
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["tables"] == [
        {"title": "one", "rows": [{"case": "a", "ratio": 1.5}], "note": "said"}
    ]
    assert found["rounds"] == 3 and found["bench"] == "fake"
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["machine"]["devices"] >= 1
    first = printed.splitlines()[0]
    assert found["machine"]["device"] in first and found["date"] in first


def test_the_command_says_what_is_wrong_in_a_line(fake, tmp_path, capsys):
    assert bench.main(["fake", "--quick"]) == 2
    assert capsys.readouterr().err.endswith("error: no quick size\n")
    for arguments, said in (
        (["none"], "unknown benchmark 'none'; available: attention"),
        (["fake", "--rounds=0"], "--rounds is 0; expected at least 1"),
        (["fake", f"--json={tmp_path}/no/x.json"], "is no folder; make it first"),
    ):
        assert bench.main(arguments) == 2
        assert said in capsys.readouterr().err


def counting(start, fail):
    """A side of the tests, called in another process."""
    if fail:
        raise OSError("no such thing")
    print("this is no answer")
    kept = [start]

    def once():
        kept[0] += 1
        if kept[0] == 3:
            np.ones(2**23).sum()  # 64 MiB

    def check():
        return {"pid": os.getpid(), "calls": kept[0], "threads": limits()}

    return sides.Work(once, check)


def limits():
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
    return [os.environ.get(name) for name in names]


def side(**options):
    arguments = {"start": 0, "fail": False} | options
    return sides.Side(f"{__name__}:counting", arguments, threads=3, times=2)


def test_a_side_has_a_process_and_threads_of_its_own(monkeypatch):
    monkeypatch.chdir(ROOT)
    with sides.start(side()) as one, sides.start(side(start=5)) as two:
        first, second = one.check(), two.check()
        assert len({first["pid"], second["pid"], os.getpid()}) == 3
        assert first["threads"] == second["threads"] == ["3"] * 4
        assert (first["calls"], second["calls"]) == (0, 5)
        seconds = sides.interleave({"one": one}, rounds=1)
        # Two calls a turn, in the warm-up and in the round.
        assert one.check()["calls"] == 4 and two.check()["calls"] == 5
        assert 0 < seconds["one"][0] < 1
        assert one.peak_mib() > two.peak_mib() + 60


def test_sides_can_work_at_the_same_time(monkeypatch):
    monkeypatch.chdir(ROOT)
    with sides.start(side()) as one, sides.start(side()) as two:
        assert sides.together([one, two]) > 0
        assert one.check()["calls"] == two.check()["calls"] == 2


def test_a_side_that_fails_says_why(monkeypatch):
    monkeypatch.chdir(ROOT)
    with (
        sides.start(side(fail=True)) as one,
        pytest.raises(sides.Failed, match="status 1: OSError: no such thing") as error,
    ):
        one.check()
    assert "Traceback" in error.value.__notes__[0]
