import numpy as np
import pytest

from experiments.subjective import ratings, simulation, truth
from tqa_jax import schema

HEADER = (
    "timestamp,study,rater_id,item_id,trial_index,kind,left_label,right_label,"
    "left_path,right_path,left_overall,right_overall,left_lip_sync,right_lip_sync,"
    "preference,seconds,plays_left,plays_right,comments"
)
LINE = 't,s,ann,p1,0,trial,B,A,x.mp4,y.mp4,4,2,,3.5,left,12.5,1,2,"a, ""b"""'


def write(path, *lines, header=HEADER):
    path.write_text("\ufeff" + "\r\n".join([header, *lines]) + "\r\n", "utf-8")
    return path


def test_page_is_read(tmp_path):
    second = LINE.replace("ann", "bob").replace(",left,", ",equal,")
    write(tmp_path / "a.csv", LINE)
    write(tmp_path / "b.csv", second)
    found = ratings.read([tmp_path])
    assert found.raters == ("ann", "bob") and found.clips == ("x.mp4", "y.mp4")
    assert found.tasks == ("overall", "lip_sync")
    np.testing.assert_array_equal(found.opinions[0], [[4, np.nan], [2, 3.5]])
    assert found.preference.tolist() == [1, 0] and found.plays.tolist() == [1, 1]
    assert found.a_left.tolist() == [False, False] and not found.derived
    assert found.seconds.tolist() == [12.5, 12.5]


def test_what_is_written_is_read_back(tmp_path):
    _, answers = truth.simulate(truth.Settings(raters=4), np.random.default_rng(0))
    write_to = tmp_path / "one.csv"
    write_to.write_text(simulation.to_csv(answers), "utf-8")
    found = ratings.read([write_to])
    assert found.raters == answers.raters and found.tasks == answers.tasks
    for name in (
        "opinions",
        "preference",
        "seconds",
        "plays",
        "a_left",
        "item",
        "kind",
    ):
        np.testing.assert_array_equal(getattr(found, name), getattr(answers, name))
    here = [found.clips[n] for n in found.left]
    assert here == [answers.clips[n] for n in answers.left]


def test_what_the_page_keeps_from_spreadsheets_is_read_as_it_was(tmp_path):
    write(tmp_path / "a.csv", LINE.replace("x.mp4,y.mp4", "'-7TM.mp4,'=y.mp4"))
    (tmp_path / "._a.csv").write_bytes(b"\0\5\x16\7")  # macOS puts it beside the other
    assert ratings.read([tmp_path]).clips == ("-7TM.mp4", "=y.mp4")


def test_copies_count_once_and_contradictions_are_refused(tmp_path):
    write(tmp_path / "a.csv", LINE)
    write(tmp_path / "b.csv", LINE, LINE.replace(",0,trial", ",1,trial"))
    found = ratings.read([tmp_path])
    assert len(found.rater) == 2 and "1 answers are there twice" in found.notes[-1]
    write(tmp_path / "c.csv", LINE.replace(",left,", ",right,"))
    with pytest.raises(schema.InputError, match="'ann' has another answer to trial 0"):
        ratings.read([tmp_path])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",trial,", ",trail,", "kind is 'trail'; expected training"),
        (",left,", ",both,", "line 2: preference is 'both'"),
        (",4,2,", ",four,2,", "left_overall is 'four'; expected a number"),
        (",4,2,", ",inf,2,", "left_overall is 'inf'"),
        (",ann,", ",,", "rater_id is empty"),
        (",B,A,", ",C,A,", "left_label is 'C'"),
        ("t,s,", "t,", "line 2 has 18 cells; its header has 19"),
    ],
)
def test_bad_cells_are_named(tmp_path, old, new, message):
    with pytest.raises(schema.InputError, match=message):
        ratings.read([write(tmp_path / "a.csv", LINE.replace(old, new, 1))])


def test_bad_files_are_named(tmp_path):
    with pytest.raises(schema.InputError, match="holds no CSV"):
        ratings.read([tmp_path])
    with pytest.raises(schema.InputError, match="cannot be read"):
        ratings.read([tmp_path / "none.csv"])
    write(tmp_path / "a.csv", "1,2", header="a,b")
    with pytest.raises(schema.InputError, match="is no file of ratings"):
        ratings.read([tmp_path])
    write(tmp_path / "a.csv")
    with pytest.raises(schema.InputError, match="no answers"):
        ratings.read([tmp_path])
    write(tmp_path / "a.csv", LINE, LINE.replace("t,s,ann", "t,other,bob"))
    with pytest.raises(schema.InputError, match="several studies"):
        ratings.read([tmp_path])


def test_older_form_is_read_and_its_defaults_are_noted(tmp_path):
    header = (
        "timestamp,rater_id,item_id,left_label,right_label,left_path,right_path,"
        "left_lip_sync,right_lip_sync,left_overall,right_overall,comments"
    )
    write(
        tmp_path / "ab_eval_results.csv",
        "1,ann,p,B,A,x,y,1.0,5.0,3.6,3.5,",
        "2,ann,q,A,B,x,z,3.0,3.0,3.0,3.0,fine",
        header=header,
    )
    found = ratings.read([tmp_path])
    assert found.derived and found.preference.tolist() == [1, 0]
    assert found.tasks == ("lip_sync", "overall")
    assert found.opinions[0].tolist() == [[1, 3.6], [5, 3.5]]
    assert found.a_left.tolist() == [False, True]
    notes = " ".join(found.notes)
    assert "1 of 2 answers are 3.0 throughout" in notes and "no preference" in notes


def test_older_study_is_read(tmp_path):
    header = (
        "participant_id,trial_id,trial_index,timestamp,video_index,lip_sync_A,"
        "lip_sync_B,overall_A,overall_B,preference,comments"
    )
    write(
        tmp_path / "evaluation_results.csv",
        "P_1,t0,0,x,7,1,2,3,4,B,",
        "P_1,t1,1,x,8,1,2,3,4,equal,",
        header=header,
    )
    found = ratings.read([tmp_path])
    assert found.clips == ("7/A", "7/B", "8/A", "8/B") and not found.derived
    assert found.preference.tolist() == [-1, 0]
    assert found.opinions[0].tolist() == [[1, 3], [2, 4]]
    assert "recorded neither sides nor files" in " ".join(found.notes)
    write(tmp_path / "evaluation_results.csv", "P,t,0,x,7,1,2,3,4,C,", header=header)
    with pytest.raises(schema.InputError, match="expected A, B or equal"):
        ratings.read([tmp_path])
