"""A study's design is balanced, and what cannot be used is said."""

import itertools
import json
import pathlib
from collections import Counter

import numpy as np
import pytest

from experiments.subjective import __main__ as command
from experiments.subjective import design, make, material, playable, questions
from tests import media, subjective
from tqa_jax import schema


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return subjective.write_clips(tmp_path_factory.mktemp("clips"))


def many(tmp_path, clips, *, sources=1, conditions=0, copies=8):
    """A list of that many clips, all of them files in a folder."""
    folder = tmp_path / "many"
    folder.mkdir()
    rows = []
    for source, copy in itertools.product(range(sources), range(copies)):
        name = f"s{source}_{copy}.mp4"
        (folder / name).write_bytes((clips / subjective.NAMES[0]).read_bytes())
        rows.append((name, f"s{source}", f"c{copy % conditions}" if conditions else ""))
    return folder, subjective.table(
        tmp_path / "list.csv", ("clip", "source", "condition"), rows
    )


# Design.


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 12])
def test_every_pair_stands_at_every_place_and_after_every_other_equally_often(count):
    square = design.williams(count)
    times = len(square) // count
    for column in square.T:
        assert Counter(column.tolist()) == dict.fromkeys(range(count), times)
    follows = Counter(
        pair for row in square.tolist() for pair in itertools.pairwise(row)
    )
    if count > 1:
        expected = dict.fromkeys(itertools.permutations(range(count), 2), times)
        assert follows == expected if count > 2 else follows == {(0, 1): 1, (1, 0): 1}


@pytest.mark.parametrize("count, shown", [(12, 12), (12, 5), (7, 7), (7, 3)])
def test_raters_see_every_pair_equally_often_and_equally_early(count, shown):
    square = design.williams(count)
    dealt = design.rows(square, shown=shown, raters=2 * len(square))
    assert all(len(set(row)) == shown for row in dealt.tolist())
    for raters in range(1, len(dealt) + 1):
        seen = np.bincount(dealt[:raters].ravel(), minlength=count)
        # As even as whole rows allow when raters stop coming at any moment.
        assert np.ptp(seen) <= (0 if shown == count else 2)
    for part in (dealt[: len(square)], dealt):
        for place in part.T:
            assert np.ptp(np.bincount(place, minlength=count)) == 0
    early = np.bincount(dealt[:2, : shown // 2].ravel(), minlength=count)
    assert early.max() == 1  # The second rater starts with what the first ended with.


def test_sides_are_balanced_for_every_pair_and_for_every_rater():
    sessions = design.orders(
        training=[0, 1],
        trials=list(range(2, 22)),
        controls=[22, 23],
        raters=15,
        shown=12,
        repeats=3,
        shown_controls=2,
        seed=4,
    )
    lead = Counter()
    for session in sessions:
        assert [s.item for s in session[:2]] == [0, 1]
        kinds = Counter(s.kind for s in session)
        assert kinds == {"training": 2, "trial": 12, "repeat": 3, "control": 2}
        trials = [s for s in session if s.kind == "trial"]
        own = sum(1 if s.left == "A" else -1 for s in trials)
        assert abs(own) <= 4
        for showing in session:
            if showing.kind in ("training", "trial"):
                lead[showing.item] += 1 if showing.left == "A" else -1
        assert all(abs(value) <= 1 for value in lead.values())
        first = {s.item: (at, s.left) for at, s in enumerate(session) if s in trials}
        for at, showing in enumerate(session):
            if showing.kind == "repeat":
                before, left = first[showing.item]
                assert at - before > 12 // 2 and showing.left != left
    assert {s.item for session in sessions for s in session if s.kind == "control"} == {
        22,
        23,
    }
    repeated = {s.item for session in sessions for s in session if s.kind == "repeat"}
    assert len(repeated) > 10


@pytest.mark.parametrize("count, partners", [(5, 4), (6, 4), (30, 4), (31, 6), (9, 2)])
def test_every_clip_has_as_many_partners_and_all_are_connected(count, partners):
    found = design.cycle(count, partners)
    degree = Counter(itertools.chain.from_iterable(found))
    assert degree == dict.fromkeys(range(count), min(partners, count - 1))
    assert len(set(found)) == len(found) == sum(degree.values()) // 2
    assert all(i < j for i, j in found)
    (group,) = design.groups([(str(i), str(j)) for i, j in found])
    assert len(group) == count


def test_groups_are_what_pairs_connect():
    edges = [("a", "b"), ("c", "d"), ("e", "f"), ("d", "b")]
    assert design.groups(edges) == [{"a", "b", "c", "d"}, {"e", "f"}]


# What a study is made of.


def test_clips_of_a_source_are_compared_under_different_conditions(tmp_path, clips):
    folder, listed = many(tmp_path, clips, sources=3, conditions=4, copies=5)
    found = material.pairs_of_clips(listed, folder, partners=4, seed=0)
    # Of 10 pairs of a source one has the same condition twice: copies 0 and 4.
    assert len(found) == 3 * 9
    for pair in found:
        assert pair.video_a[:2] == pair.video_b[:2] == pair.source
        assert pair.condition_a < pair.condition_b  # as the list names them
    assert len({frozenset((pair.video_a, pair.video_b)) for pair in found}) == 27


def test_table_of_pairs_says_kinds_conditions_and_controls(tmp_path, clips):
    one, two, three, four = subjective.NAMES
    header = ("item_id", "video_a", "video_b", "kind", "condition_a", "condition_b")
    rows = [
        ("p1", one, two, "", "x", "y"),
        ("p2", three, "sub/plain", "trial", "y", "z"),
        ("p3", one, one, "control", "x", ""),
        ("p4", one, three, "practice", "", ""),
    ]
    listed = subjective.table(tmp_path / "pairs.csv", header, rows)
    found = material.pairs(listed, clips)
    assert [pair.kind for pair in found] == ["trial", "trial", "control", "practice"]
    assert found[1].video_b == four and found[2].condition_b == "x"
    given = subjective.options(clips=clips, pairs=listed, out=tmp_path, raters=2)
    plan = make.make_plan(given)
    assert plan["pairs"] == [vars(pair) for pair in found]  # no controls are added
    for order in plan["orders"]:
        ids = [showing["item_id"] for showing in order["showings"]]
        assert ids[0] == "p4" and len(ids) == 5  # one is repeated
        assert set(ids[1:]) == {"p1", "p2", "p3"}
    rows[1] = ("p2", three, four, "trial", "w", "z")
    subjective.table(listed, header, rows)
    with pytest.raises(schema.InputError, match="one with 'w' and one with 'x'"):
        material.pairs(listed, clips)


def test_pairs_that_nothing_connects_are_refused(tmp_path, clips):
    folder, listed = many(tmp_path, clips, sources=2, copies=3)
    with pytest.raises(schema.InputError, match="2 groups that no pair connects"):
        material.pairs_of_clips(listed, folder, partners=4, seed=0)


GOOD = ("p1", subjective.NAMES[0], subjective.NAMES[1])


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "a header and no rows"),
        ([("p1", subjective.NAMES[0])], "line 2 has 2 cells; its header has 3"),
        ([("p1", subjective.NAMES[0], "none.mp4")], "line 2: no clip 'none.mp4' in"),
        ([("p1", subjective.NAMES[0], subjective.NAMES[0])], "compared with itself"),
        (
            [GOOD, ("p1", subjective.NAMES[2], subjective.NAMES[3])],
            "line 3: item_id 'p1' is there twice",
        ),
        (
            [GOOD, ("p2", subjective.NAMES[1], subjective.NAMES[0])],
            "line 3: the same pair as 'p1'",
        ),
        (
            [("=1+1", subjective.NAMES[0], subjective.NAMES[1])],
            "item_id '=1.1'; expected letters, digits",
        ),
        ([("p1", subjective.NAMES[0], "../x.mp4")], "'../x.mp4' is no path inside"),
        (
            [("p1", subjective.NAMES[0], "old.mp4")],
            "old.mp4: it has pictures in the codec 'mp4v'",
        ),
        ([("p1", subjective.NAMES[0], "a.avi")], "a.avi: it is no .mp4, .m4v, .webm"),
    ],
)
def test_unusable_pairs_are_said_in_one_line(tmp_path, clips, capsys, rows, message):
    folder = tmp_path / "clips"
    for name in subjective.NAMES:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes((clips / name).read_bytes())
    media.simple(folder / "old.mp4", codec="mpeg4")
    (folder / "a.avi").write_bytes(b"RIFF")
    listed = subjective.table(
        tmp_path / "p.csv", ("item_id", "video_a", "video_b"), rows
    )
    given = [
        "make",
        f"--clips={folder}",
        f"--pairs={listed}",
        f"--out={tmp_path / 'o'}",
    ]
    assert command.main(given) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message in said.replace("=1+1", "=1.1")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"tasks": "lip_sinc"}, "unknown task 'lip_sinc'"),
        ({"optional": "warmth"}, "warmth, which --tasks has not"),
        ({"trials": 7}, "--trials is 7; expected 1 to 6"),
        ({"repeats": 4}, "--repeats is 4; expected 0 to 3"),
        ({"raters": 0}, "--raters is 0; expected 1 to"),
        ({"raters": 2, "trials": 2}, "cannot see all 6 pairs"),
        ({"partners": 3}, "expected an even number"),
        ({"instructions": "none.txt"}, "none.txt cannot be read"),
    ],
)
def test_unusable_options_are_refused(tmp_path, clips, given, message):
    listed = subjective.table(
        tmp_path / "l.csv", ("clip",), [(name,) for name in subjective.NAMES]
    )
    with pytest.raises(schema.InputError, match=message):
        make.make_plan(
            subjective.options(clips=clips, list=listed, out=tmp_path, **given)
        )


def test_questions_of_ones_own_come_from_a_table(tmp_path):
    header = ("task", "title", "question", "anchor_1", "anchor_3", "anchor_5")
    path = subjective.table(
        tmp_path / "q.csv", header, [("clarity", "Clear", "Is it?", *"abc")]
    )
    assert questions.choose(str(path), "clarity") == [
        questions.Question(
            "clarity", "Clear", "Is it?", ("a", "b", "c"), required=False
        )
    ]


@pytest.mark.parametrize("task", ["path", "label", "total", "seconds"])
def test_questions_whose_answers_would_be_lost_are_refused(tmp_path, task):
    header = ("task", "title", "question", "anchor_1", "anchor_3", "anchor_5")
    path = subjective.table(tmp_path / "q.csv", header, [(task, "T", "Is it?", *"abc")])
    with pytest.raises(schema.InputError, match="no task can be called|is taken"):
        questions.choose(str(path), "")


def test_codecs_are_read_from_the_file(tmp_path, clips):
    assert playable.problem(clips / subjective.NAMES[0]) == ""
    silent = media.simple(tmp_path / "a.mp4", codec="libx264", sound=None)
    assert playable.problem(silent) == ""
    sound = media.simple(tmp_path / "b.m4v", codec="libx264", sound_codec="ac3")
    assert playable.problem(sound) == "has sound in the codec 'ac-3'"
    web = media.simple(tmp_path / "c.webm", codec="libvpx", sound_codec="libopus")
    assert playable.problem(web) == ""
    whole = (clips / subjective.NAMES[0]).read_bytes()
    for end in range(0, len(whole) - 1, max(1, len(whole) // 50)):
        (tmp_path / "d.mp4").write_bytes(whole[:end])
        assert playable.problem(tmp_path / "d.mp4") == "is no MP4 file with pictures"


# The folder.


def test_equal_input_gives_equal_bytes_and_other_clips_another_study(tmp_path, clips):
    folder, listed = many(tmp_path, clips)
    common = {"clips": folder, "list": listed}
    read = []
    for k in range(2):
        out = tmp_path / f"out{k}"
        make.run(subjective.options(out=out, seed=5, **common))
        read.append(
            {
                path.relative_to(out): path.read_bytes()
                for path in out.rglob("*")
                if path.is_file()
            }
        )
    assert read[0] == read[1]
    assert len(read[0]) == 8 + 3
    plan = json.loads(read[0][pathlib.Path("plan.json")])
    assert len(plan["orders"]) == 30 and len(plan["pairs"]) == 16 + 8
    assert [order["rater_id"] for order in plan["orders"]][::29] == ["P001", "P030"]
    other = make.make_plan(subjective.options(out=tmp_path, seed=6, **common))
    assert other["study"] != plan["study"] and other["orders"] != plan["orders"]
    (folder / "s0_0.mp4").write_bytes((clips / subjective.NAMES[1]).read_bytes())
    changed = make.make_plan(subjective.options(out=tmp_path, seed=5, **common))
    assert changed["study"] != plan["study"] and changed["orders"] == plan["orders"]


def test_a_study_is_never_overwritten_and_half_of_one_is_finished(tmp_path, clips):
    listed = subjective.table(
        tmp_path / "l.csv", ("clip",), [(name,) for name in subjective.NAMES]
    )
    out = tmp_path / "study"
    given = subjective.options(clips=clips, list=listed, out=out)
    (out / "clips").mkdir(parents=True)
    (out / "clips" / subjective.NAMES[0]).write_bytes(b"half")
    make.run(given)
    assert (out / "clips" / subjective.NAMES[0]).read_bytes() == (
        clips / subjective.NAMES[0]
    ).read_bytes()
    assert not list(out.rglob("*.part"))
    with pytest.raises(schema.InputError, match="has a page already"):
        make.run(given)
