import re

import pytest

from extract import labels
from tqa_jax import schema


@pytest.fixture
def folder(tmp_path):
    clips = tmp_path / "clips"
    (clips / "sub").mkdir(parents=True)
    for name in ("a.mp4", "b.mkv", "c.mpg", "sub/d.mp4", "sub/a.mov", "notes.txt"):
        (clips / name).write_bytes(b"x")
    return clips


def _read(folder, text, **more):
    path = folder.parent / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return labels.read(path, folder, **more)


def test_rows_become_items(folder):
    table = _read(
        folder,
        "\ufeffclip, source ,split,overall,humour\n"
        "a.mp4,anna,train,4.5,\n"
        "b,ben,val,1,5\n"
        "sub/d,cleo,test,,2\n",
    )
    assert [task.name for task in table.tasks] == ["overall", "humour"]
    assert table.tasks[0] == schema.TASKS[4] and table.tasks[1].description == ""
    assert [(i.clip, i.source, i.split, dict(i.labels)) for i in table.items] == [
        ("a", "anna", "train", {"overall": 4.5}),
        ("b", "ben", "validation", {"overall": 1.0, "humour": 5.0}),
        ("sub/d", "cleo", "test", {"humour": 2.0}),
    ]
    assert [path.name for path in table.left_out] == ["c.mpg", "a.mov"]
    assert not table.drawn


def test_minus_one_is_missing_only_outside_the_range(folder):
    text = "clip,split,overall\na.mp4,train,-1\nb,train,0.5\n"
    table = _read(folder, text, low=0, high=5)
    assert [dict(item.labels) for item in table.items] == [{}, {"overall": 0.5}]
    table = _read(folder, text, low=-1, high=1)
    assert dict(table.items[0].labels) == {"overall": -1.0}


def test_every_problem_is_named_at_once(folder):
    text = (
        "clip,source,split,overall\n"
        "a.mp4,anna,train,9\n"
        "b,anna,test,good\n"
        "b.mkv,ben,holdout,2\n"
        "zz,zoe,train,3\n"
        "d,dan,train,nan\n"
        ",x,train,3\n"
    )
    with pytest.raises(schema.InputError) as caught:
        _read(folder, text)
    first, *lines = re.split(r"(?:; |: )(?=line \d+: )", str(caught.value))
    assert first.endswith("labels.csv cannot be used") and "\n" not in first
    expected = [
        "line 4: clip 'b.mkv' has a row already, line 3; average the ratings",
        "line 2: overall is 9; expected 1 to 5",
        "line 3: source 'anna' is in 'test' and, line 2, in 'train'",
        "line 3: overall is 'good'; expected a number",
        "line 4: unknown split 'holdout'; available: train, validation, test",
        "line 5: clip 'zz' is not in",
        "line 6: overall is 'nan'",
        "line 7: the clip is empty",
    ]
    for line, part in zip(lines, expected, strict=True):
        assert part in line


def test_rows_of_raters_get_one_line_that_says_what_to_do(folder):
    rows = [f"{clip},{name},3\n" for name in ("anna", "ben", "cleo") for clip in "bc"]
    with pytest.raises(schema.InputError) as caught:
        _read(folder, "clip,rater,overall\n" + "".join(rows))
    assert (
        "labels.csv cannot be used: line 4: clip 'b' has a row already, line 2 (and so "
        "have 3 more); average the ratings of a clip first, or give those of each "
        "rater to `python -m experiments.subjective analyse`, which writes labels.csv; "
    ) in str(caught.value)
    assert str(caught.value).count("has a row already") == 1


@pytest.mark.parametrize("cell", ["", "-1", "NA"])
def test_a_file_without_any_score_is_refused(folder, cell):
    text = f"clip,split,overall,humour\na.mp4,train,{cell},\nb,test,,{cell}\n"
    with pytest.raises(schema.InputError, match="no score at all: .*overall, humour"):
        _read(folder, text, empty="NA")
    assert [item.labels for item in _read(folder, text, scored=False).items] == [{}, {}]


def test_what_stands_for_an_empty_cell_is_said(folder):
    text = "clip,split,overall,humour\na.mp4,train,NA,1\nb,train,2,\n"
    items = _read(folder, text, empty="NA").items
    assert [i.labels for i in items] == [{"humour": 1.0}, {"overall": 2.0}]
    for empty, message in {
        "": "'NA'; .* empty cell .--empty=NA", "n/a": "overall is 'NA'"
    }.items():  # fmt: skip
        with pytest.raises(schema.InputError, match=message):
            _read(folder, text, empty=empty)


def test_problems_without_end_are_cut(folder):
    text = "clip,overall\n" + "".join(f"none{i},3\n" for i in range(100))
    with pytest.raises(schema.InputError, match="and 80 more") as caught:
        _read(folder, text)
    assert str(caught.value).count("is not in") == 20


@pytest.mark.parametrize(
    "text, message",
    [
        ("name,overall\na.mp4,3\n", "no column 'clip'; expected the header"),
        ("clip;overall\na.mp4;3\n", "separated by semicolons"),
        ("clip,source,split\na.mp4,s,train\n", "no task column"),
        ("clip,overall,overall\na.mp4,3,3\n", "'overall' twice"),
        (
            "clip,over all\na.mp4,3\n",
            "column of .*labels.csv: task name 'over all' must be letters",
        ),
        ("clip,overall\n", "no rows"),
        ("clip,overall\na.mp4\n", "line 2 has 1 cells; its header has 2"),
        ("clip,overall\na,3\n", "'a' may be a.mp4 or sub/a.mov; give"),
        ("clip,overall\n../labels,3\n", "is not in"),
        ("clip,overall\na.mp4,3\nb,4\n", "only 2 sources"),
    ],
)
def test_an_unusable_file_says_why(folder, text, message):
    with pytest.raises(schema.InputError, match=message):
        _read(folder, text)


def test_a_missing_file_or_folder_says_so(folder):
    with pytest.raises(schema.InputError, match="no labels file at .*none.csv"):
        labels.read(folder / "none.csv", folder)
    with pytest.raises(schema.InputError, match="no folder of clips"):
        labels.read(folder / "none.csv", folder / "none")


def test_splits_are_drawn_by_source_when_the_file_has_none(folder):
    table = _read(
        folder,
        "clip,source,overall\na.mp4,s1,1\nb,s2,2\nc,s3,3\nsub/d,s1,4\n",
    )
    assert table.drawn
    of = {item.clip: item.split for item in table.items}
    assert of["sub/d"] == of["a"]
    assert set(of.values()) == set(schema.SPLITS)
