"""Two runs compared on common clips: against loops, and where that has no sense."""

import csv
import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk_metrics

from tqa_jax import compare, intervals, logistic, metrics, output, run, schema

TASKS = (schema.Task("sync", 1, 5), schema.Task("liked", 0, 10))
CLIPS, SOURCES = 60, 12


def clips(seed=0):
    """Labels of both tasks (N, K), some missing."""
    rng = np.random.default_rng(seed)
    labels = rng.uniform(1, 5, size=(CLIPS, 2)) * [1, 2]
    labels[3, 0] = labels[10:13, 1] = np.nan
    return labels


def write(folder, scores, labels, *, names=None, tasks=TASKS, validation=True):
    """Writes what a finished run leaves and `compare` reads."""
    folder.mkdir()
    described = schema.Schema((schema.Modality("visual", 3),), tasks).to_json()
    data = {"path": "data", "sha256": "", "schema": described}
    (folder / "config.json").write_text(json.dumps({"config": {}, "data": data}))
    (folder / "results.json").write_text("{}")
    kinds = ("score", "label", "spread")
    header = [f"{task.name}_{kind}" for task in tasks for kind in kinds]
    rows = []
    for n, name in enumerate(names or [f"c{n}" for n in range(len(scores))]):
        for split in ("validation", "test")[not validation :]:
            cells = [split[0] * (split != "test") + name, f"s{n % SOURCES:02d}", split]
            for score, label in zip(scores[n], labels[n], strict=True):
                cells += [str(score), "" if np.isnan(label) else str(label), ""]
            rows.append(cells)
    text = output.table(["clip", "source", "split", *header], rows)
    (folder / "predictions.csv").write_text(text)
    return folder


@pytest.fixture
def pair(tmp_path):
    """Scores of two runs and their folders."""
    rng, labels = np.random.default_rng(1), clips()
    filled = np.nan_to_num(labels, nan=3.0)
    scores = [filled + noise * rng.normal(size=labels.shape) for noise in (0.5, 1.5)]
    return scores, labels, [
        write(tmp_path / name, each, labels)
        for name, each in zip("ab", scores, strict=True)
    ]  # fmt: skip


def by_key(rows):
    return {(row["metric"], row["task"]): row for row in rows}


PLAIN = {
    "plcc": lambda x, y: stats.pearsonr(x, y).statistic,
    "srcc": lambda x, y: stats.spearmanr(x, y).statistic,
    "krcc": lambda x, y: stats.kendalltau(x, y).statistic,
    "rmse": lambda x, y: np.sqrt(((x - y) ** 2).mean()),
    "medae": lambda x, y: np.median(np.abs(x - y)),
    "r2": lambda x, y: sk_metrics.r2_score(y, x),
}


def test_differences_are_those_of_a_loop_over_resamples(pair):
    (first, second), labels, folders = pair
    said, rows = compare.compare(*folders, resamples=60, seed=5)
    assert "60 and 60, of which 60 are common" in said
    found = by_key(rows)
    assert len(rows) == len(metrics.METRICS) * 3
    names = np.array([f"s{n % SOURCES:02d}" for n in range(CLIPS)])
    shares = np.full(SOURCES, 1 / SOURCES)
    drawn = np.random.default_rng(5).multinomial(SOURCES, shares, size=60)
    for metric, function in PLAIN.items():
        draws = []
        for times in (np.ones(SOURCES, int), *drawn):
            rows_of = np.concatenate(
                [
                    np.tile(np.flatnonzero(names == f"s{n:02d}"), count)
                    for n, count in enumerate(times)
                ]
            )
            each = []
            for k in range(2):
                at = rows_of[~np.isnan(labels[rows_of, k])]
                each.append(
                    function(first[at, k], labels[at, k])
                    - function(second[at, k], labels[at, k])
                )
            draws.append([*each, np.mean(each)])
        plain, draws = draws[0], np.array(draws[1:])
        p = []
        for k, task in enumerate(("sync", "liked", compare.MEAN)):
            row = found[metric, task]
            assert row["clips"] == (59, 57, 60)[k] and not row["reason"]
            assert row["difference"] == pytest.approx(plain[k], abs=1e-9)
            assert row["a"] - row["b"] == pytest.approx(row["difference"])
            ends = np.percentile(draws[:, k], (2.5, 97.5))
            assert (row["low"], row["high"]) == pytest.approx(tuple(ends), abs=1e-9)
            tail = min((draws[:, k] <= 0).sum(), (draws[:, k] >= 0).sum())
            p.append(min(1, 2 * (1 + tail) / 61))
            assert row["p"] == pytest.approx(p[-1])
        smallest, middle, largest = np.sort(p)
        steps = np.maximum.accumulate([3 * smallest, 2 * middle, largest])
        corrected = [
            found[metric, t]["p_holm"] for t in ("sync", "liked", compare.MEAN)
        ]
        np.testing.assert_allclose(np.sort(corrected), np.minimum(steps, 1))


def test_fitted_metrics_map_by_the_validation_clips_of_each_run(pair):
    scores, labels, folders = pair
    found = by_key(compare.compare(*folders, resamples=10)[1])
    known = ~np.isnan(labels[:, 1])
    values = []
    for each in scores:
        params = logistic.fit(each[:, 1], labels[:, 1], low=0, high=10).params
        mapped = logistic.apply(each[known, 1], params)
        values.append(np.sqrt(((mapped - labels[known, 1]) ** 2).mean()))
    row = found["rmse_fit", "liked"]
    assert (row["a"], row["b"]) == pytest.approx(tuple(values))


def test_clips_are_matched_by_name_in_any_order(pair, tmp_path):
    (first, second), labels, folders = pair
    order = np.roll(np.arange(CLIPS), 2 * SOURCES)  # Sources follow the place.
    names = [f"c{n}" for n in order]
    moved = write(
        tmp_path / "moved", second[order], labels[order], names=names, tasks=TASKS
    )
    rows = compare.compare(folders[0], moved, resamples=50)[1]
    expected = compare.compare(*folders, resamples=50)[1]
    for row, wanted in zip(rows, expected, strict=True):
        # Of the logistic fit, the order of clips changes the rounding.
        assert row == (pytest.approx(wanted) if "fit" in row["metric"] else wanted)
    fewer = write(tmp_path / "fewer", second[:36], labels[:36])
    said, rows = compare.compare(folders[0], fewer, resamples=20)
    assert "60 and 36, of which 36 are common" in said
    values = (first[:36], second[:36], labels[:36])
    sources = [f"s{n % SOURCES:02d}" for n in range(36)]
    *_, mean = intervals.paired_differences(
        "ccc", *values, sources, TASKS, resamples=20
    )
    row = by_key(rows)["ccc", compare.MEAN]
    assert (row["difference"], row["low"], row["p"]) == (mean.value, mean.low, mean.p)


def test_a_collapsed_task_has_a_reason_and_counts_as_0_in_the_mean(pair, tmp_path):
    (first, second), labels, folders = pair
    second[:, 0] = 3.0
    second[5, 1] = np.nan
    flat = write(tmp_path / "flat", second, labels)
    found = by_key(compare.compare(folders[0], flat, resamples=20)[1])
    row = found["srcc", "sync"]
    assert row["difference"] is row["p"] is row["p_holm"] is None
    assert row["reason"] == "second run: predictions are constant"
    assert found["rmse", "sync"]["difference"] < 0
    assert "not finite" in found["rmse", "liked"]["reason"]
    known = ~np.isnan(labels[:, 0])
    mean = found["srcc", compare.MEAN]
    assert mean["b"] == 0 and mean["p_holm"] == mean["p"]
    expected = stats.spearmanr(first[known, 0], labels[known, 0]).statistic
    assert mean["a"] == mean["difference"] == pytest.approx(expected)
    assert "sync: second run: predictions are constant (plcc, srcc, krcc)" in (
        compare.table(list(found.values()))
    )


def test_the_command_prints_a_table_and_writes_a_csv(pair, tmp_path, capsys):
    folders = pair[-1]
    out = tmp_path / "c.csv"
    options = [f"--out={out}", "--resamples=30", "--seed=1"]
    assert compare.main([*map(str, folders), *options]) == 0
    text = capsys.readouterr().out
    assert "12 sources; too narrow for so few" in text
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    _, expected = compare.compare(*folders, resamples=30, seed=1)
    assert [row["metric"] for row in rows[::3]] == list(metrics.METRICS)
    for row, wanted in zip(rows, expected, strict=True):
        assert row == {k: "" if v is None else str(v) for k, v in wanted.items()}
        assert f"{row['metric']:<9} {row['task']}" in text


@pytest.mark.parametrize(
    "change, message",
    [
        ({"names": [f"x{n}" for n in range(CLIPS)]}, "no test clip in common"),
        ({"tasks": (TASKS[0], schema.Task("liked", 0, 9))}, "other tasks or ranges"),
        ({"tasks": (TASKS[0], schema.Task("other", 0, 10))}, "other tasks or ranges"),
        ({"labels": 0.5}, "common clips have another label or source"),
    ],
)
def test_runs_that_do_not_fit_are_one_line(pair, tmp_path, capsys, change, message):
    scores, labels, folders = pair
    labels = labels + change.pop("labels", 0)
    other = write(tmp_path / "other", scores[1], labels, **change)
    assert compare.main([str(folders[0]), str(other)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_bad_input_is_one_line(pair, tmp_path, capsys):
    folder = pair[-1][0]
    damaged = write(tmp_path / "damaged", *pair[0][:1], pair[1])
    (damaged / "predictions.csv").write_text("clip,source\na,b\n")
    (tmp_path / "nothing").mkdir()
    for arguments, message in (
        ([tmp_path / "nothing"], "holds no run"),
        ([damaged], "predictions.csv is damaged: no 'split'"),
        ([folder, "--resamples=0"], "--resamples is 0; expected at least 1"),
        ([folder, "--seed=-1"], "--seed is -1; expected 0 or more"),
    ):
        assert compare.main([str(folder), *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert message in error
    (folder / "predictions.csv").unlink()
    with pytest.raises(schema.InputError, match="predictions.csv is missing"):
        run.Run.load(folder).predictions()


def test_two_sources_give_differences_without_intervals(pair, tmp_path):
    scores, labels, _ = pair
    names = [f"c{SOURCES * n}" for n in range(5)]
    few = [
        write(tmp_path / name, each[:2], labels[:2], names=names[:2])
        for name, each in zip("xy", scores, strict=True)
    ]
    row = by_key(compare.compare(*few, resamples=10)[1])["mae", "sync"]
    assert row["difference"] is not None and row["low"] is row["p"] is None
    assert row["reason"] == "no interval: 2 sources; at least 3 needed"
