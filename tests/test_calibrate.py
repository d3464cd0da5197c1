"""Fitting a scorer to a few ratings: what is fitted, what becomes of scores."""

import numpy as np
import pytest

from tests import media, test_score
from tqa_jax import calibrate, export, scorer

TASKS = ("lip_sync", "expression", "audio_quality", "cross_modal", "overall")


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """A folder of copies of one clip, a scorer, and that clip's score of `overall`."""
    folder = tmp_path_factory.mktemp("rated")
    media.face(folder / "clip00.mp4", 1.0)
    for number in range(1, 21):
        content = (folder / "clip00.mp4").read_bytes()
        (folder / f"clip{number:02d}.mp4").write_bytes(content)
    path = test_score.make_scorer(folder / "scorer.npz", folder / "clip00.mp4")
    judge = scorer.load(path)
    measured = test_score.measure(folder / "clip00.mp4")
    return folder, path, judge, measured


def _labels(folder, ratings, task="overall"):
    rows = [f"clip{n:02d}.mp4,p{n % 5},{rating}" for n, rating in enumerate(ratings)]
    (folder / "labels.csv").write_text("\n".join([f"clip,source,{task}", *rows]) + "\n")
    return folder / "labels.csv"


def _run(folder, path, out, labels, *more):
    return calibrate.main(
        [f"--clips={folder}", f"--labels={labels}", f"--out={out}", f"--scorer={path}"]
        + ["--num_workers=1", *more]
    )


def test_scores_become_the_raters_mean_where_clips_are_alike(rated, tmp_path, capsys):
    folder, path, judge, measured = rated
    ratings = [3 + 0.5 * (-1) ** n for n in range(20)]
    out = tmp_path / "mine.npz"
    assert _run(folder, path, out, _labels(folder, ratings)) == 3  # four tasks unrated
    told = capsys.readouterr().out
    assert "overall: 20 clips of 5 sources" in told
    assert "lip_sync: 0 rated clips, 20 are needed; left as it is" in told
    after = scorer.load(out)
    before = judge.score(measured.features, measured.frame_mask)
    scores = after.score(measured.features, measured.frame_mask)
    assert scores["overall"] == pytest.approx(3.0, abs=1e-6)
    assert {n: scores[n] for n in TASKS[:4]} == {n: before[n] for n in TASKS[:4]}
    width = after.confidence["tasks"]["overall"]["half_width"]
    assert width == pytest.approx(0.625, abs=0.13)  # of 0.5 and the folds' means


def test_a_line_rises_or_is_flat():
    scores = np.array([1.0, 2.0, 3.0, 4.0])
    assert calibrate.line(scores, 0.5 + 0.7 * scores) == pytest.approx((0.5, 0.7))
    assert calibrate.line(scores, 5 - scores) == (2.5, 0.0)


def test_a_second_fit_goes_on_from_the_first():
    description = {"confidence": {"tasks": {"overall": {"real": [2.0, 4.0]}}}}
    task = {"name": "overall", "low": 1.0, "high": 5.0}
    for offset, slope in ((1.0, 0.5), (-0.5, 1.0)):
        fit = calibrate.Fit(20, 5, offset, slope, 1.0, 0.5, 0.9)
        calibrate._apply(description, task, fit)
    told = description["confidence"]["tasks"]["overall"]
    start, end = told["map"]
    assert np.interp([1, 2, 4, 5], start, end) == pytest.approx([1.0, 1.5, 2.5, 3.0])
    assert told["real"] == [1.5, 2.5] and told["half_width"] == 0.9


@pytest.mark.parametrize(
    ("count", "out", "message"),
    [
        (19, "mine.npz", "rates at most 19 clips"),
        (20, "mine.txt", "ends in .npz"),
        (20, "no/such/mine.npz", "a folder that is there"),
    ],
)
def test_useless_input_is_one_line(rated, tmp_path, capsys, count, out, message):
    folder, path, *_ = rated
    labels = _labels(folder, [3] * count)
    assert _run(folder, path, tmp_path / out, labels) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "wrong", ["abc", [[1, 2]], [[1, 2], [1]], [[2, 1], [1, 2]], [[1, 2], [1, None]]]
)
def test_a_map_that_is_none_is_refused(rated, tmp_path, wrong):
    _, _, judge, _ = rated
    confidence = {"tasks": {"overall": {"map": wrong}}}
    content = export.pack(judge.description | {"confidence": confidence}, judge.arrays)
    (tmp_path / "scorer.npz").write_bytes(content)
    with pytest.raises(scorer.ScorerError, match="a map in its confidence is none"):
        scorer.load(tmp_path / "scorer.npz")
