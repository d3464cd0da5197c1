"""The report: figures, numbers and text of a page, for any run, in a real browser."""

import base64
import csv
import hashlib
import html.parser
import json
import re
import shutil
import sys

import numpy as np
import pytest

from tests import browser as browsers
from tests import media, small
from tqa_jax import schema, train
from tqa_jax.report import __main__ as command
from tqa_jax.report import charts, errors, projection, record
from tqa_jax.report import page as page_lib

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-->]]></style></svg><b>{{ 7 * 7 }}{% raw %}",
    "\N{RIGHT-TO-LEFT OVERRIDE}\N{SNOWMAN} &amp; &#60;\\",
    "x" * 200,
)
METRICS = ("plcc", "srcc", "rmse", "mae", "qwk")
# Charts of each section for three tasks with surgery, when nothing is missing.
CHARTS = {
    "results": 2,
    "agreement": 6,
    "groups": 1,
    "confidence": 4,
    "curves": 4,
    "balance": 3,
    "composition": 1,
    "correlations": 5,
    "map": 4,
    "interpretation": 7,
}


class Page(html.parser.HTMLParser):
    """What a page holds: tags with attributes, text, and what stands in a section."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.charts, self.data = [], "", {}, []
        self._section = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "section":
            self._section = attributes["id"]
        elif tag == "svg" and attributes.get("role") == "img":
            assert attributes["aria-label"]
            self.charts[self._section] = self.charts.get(self._section, 0) + 1
        elif tag == "data":
            self.data.append((self._section, attributes["value"]))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny finished run, the one of `test_train`: its programs are compiled once."""
    folder = tmp_path_factory.mktemp("run")
    small.write(folder / "data")
    train.run(small.config(), data_path=folder / "data", workdir=folder / "run")
    return folder / "run"


def charts_of(folder):
    """Charts of each section of the finished run, which has no surgery.

    It has too few validation clips for intervals, so no chart of their coverage.
    """
    best = json.loads((folder / "results.json").read_text())["selected"]["epoch"]
    matrices = 1 + len({1, best, 4})
    found = CHARTS | {"balance": 2, "confidence": 3, "correlations": 1 + matrices}
    del found["interpretation"]  # Nobody asked for it.
    return found


def numbers(rng, *, null):
    """A metric's entry of `results.json`."""
    if null:
        return {"value": None, "reason": "labels are constant"}
    value = float(rng.uniform(0, 0.8))
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def write_run(
    folder,
    *,
    tasks=("lip_sync", "overall"),
    clips=40,
    names=("a",),
    null=False,
    low=1.0,
):
    """Writes a run folder without training.

    Args:
        folder: to write.
        tasks: names.
        clips: of validation and test.
        names: that clips, sources, settings and the rest are called by in turn.
        null: whether all that may be null is.
        low: of the score range, up to 5.
    """
    rng = np.random.default_rng(0)
    folder.mkdir()
    steps, epochs = 30, 3

    def one(value):
        return None if null else float(value)

    def name(number):
        return names[number % len(names)]

    def save(file, value):
        (folder / file).write_text(json.dumps(value), encoding="utf-8")

    described = schema.Schema(
        modalities=(schema.Modality("visual", 3, name(0), name(1), "", name(2)),),
        tasks=tuple(schema.Task(task, low, 5.0, name(1)) for task in tasks),
    )
    save(
        "config.json",
        {
            "config": {
                "seed": 0,
                "data": {"path": name(0)},
                "weighting": {"name": name(1), name(2): name(3)},
            },
            "data": {"path": name(0), "sha256": "", "schema": described.to_json()},
        },
    )
    entries = {m: numbers(rng, null=null) for m in METRICS}
    if null:
        entries["mae"]["reason"] = name(0)
    curve = [{"coverage": c, "rmse": c / 2} for c in (0.5, 1.0)]
    coverage = {
        "value": 0.9,
        "low": None if null else 0.8,
        "high": None if null else 1.0,
    }
    sure = {"half_width": one(0.5), "calibration_clips": 30, "coverage": coverage}
    sure |= {"risk_coverage": curve, "mean_spread": 0.1}
    unsure = {"half_width": None, "calibration_clips": 3, "reason": name(0)}
    save(
        "results.json",
        {
            "tasks": {task: {"n": clips // 2, **entries} for task in tasks},
            "average": {m: {"value": one(0.5), "tasks": 1} for m in METRICS},
            "intervals": {"resamples": 200, "sources": 5, "seed": 0},
            "selected": {"epoch": 2, "metric": "srcc", "value": one(0.5)},
            "confidence": {
                **{"level": 0.95, "spread_over": None if null else name(0)},
                "tasks": dict.fromkeys(tasks, unsure if null else sure),
            },
        },
    )
    save("environment.json", {"command": [name(0), name(1)], "commit": name(2)})
    statistics = dict.fromkeys(("mean", "sd", "low", "high", "ties"), one(0.5))
    shares = dict.fromkeys(("masked", "missing", "misaligned_clips"), one(0.01))
    save(
        "audit.json",
        {
            "name": name(0),
            "provenance": {
                "kind": name(0),
                "description": name(1),
                "x": {"y": name(2)},
            },
            "clips": {"train": 5, "validation": clips // 2, "test": clips // 2},
            "sources": {"train": 1, "validation": 1, "test": 5},
            "tasks": {t: {"test": {"n": 5, **statistics}} for t in tasks},
            "correlation": {},
            "modalities": {
                "visual": {
                    "test": {
                        **{"clips": 5, "clips_without": 0, "constant_features": 0},
                        **shares,
                    }
                }
            },
            "sync_offset_frames": {"clips": 5, "median": one(0.1)},
            "flags": [name(i) for i in range(len(names))],
        },
    )
    lines = []
    for step in range(1, steps + 1):
        fields = {
            f"{kind}/{task}": one(1 / step)
            for kind in ("loss", "weight", "grad_norm", "coefficient")
            for task in tasks
        }
        fields |= {
            "loss/total": one(3 / step),
            "loss/consistency": one(0),
            "lr": one(1),
        }
        epoch = (step - 1) * epochs // steps + 1
        lines.append({"step": step, "epoch": epoch, "split": "train", **fields})
        if step * epochs % steps == 0:
            fields = {
                f"{kind}/{task}": one(0.5)
                for kind in ("loss", "srcc")
                for task in tasks
            }
            matrix = np.full((len(tasks), len(tasks)), None if null else 0.5).tolist()
            fields["correlation"] = {"predictions": matrix, "labels": matrix}
            head = {"step": step, "epoch": epoch, "split": "validation"}
            lines.append({**head, "selection": one(0.5), **fields})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    splits = ["validation"] * (clips // 2) + ["test"] * (clips - clips // 2)
    labels = rng.uniform(low, 5, (clips, len(tasks)))
    scores = np.clip(labels + rng.normal(0, 0.3, labels.shape), low, 5)
    clip_names = [f"{name(i)}{i}" if i >= len(names) else name(i) for i in range(clips)]
    clip_names.reverse()  # Bare names belong to test clips.
    with (folder / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        columns = [
            f"{t}_{kind}" for t in tasks for kind in ("score", "label", "spread")
        ]
        writer.writerow(["clip", "source", "split", *columns])
        for i in range(clips):
            cells = [
                cell
                for k in range(len(tasks))
                for cell in (scores[i, k], "" if null else labels[i, k], "")
            ]
            writer.writerow([clip_names[i], name(i // 4), splits[i], *cells])
    features = np.full((clips, 4), np.nan) if null else rng.normal(size=(clips, 4))
    np.savez(
        folder / "representation.npz",
        **{"clip": np.array(clip_names), "split": np.array(splits)},
        features=features.astype(np.float32),
    )
    write_interpretation(folder, tasks, names, null=null)
    return folder


def write_interpretation(folder, tasks, names, *, null=False):
    """Writes what `experiments.interpret` would: one modality, two clips over time."""
    rng = np.random.default_rng(1)
    entry = numbers(rng, null=null)
    parts = [("permuted", "", 3), ("hidden", "", 3), ("group", names[0], 2)]
    predictions = (folder / "predictions.csv").read_bytes()
    clips = [
        {
            **{"kind": kind, "clip": name, "source": name, "task": tasks[0]},
            **{"score": 2.0, "label": 4.0, "fps": 25.0, "hidden_seconds": 0.4},
            "attention": {"visual": [0.3, 0.7, 1.5, 3.0, 9.0, None]},
            "seconds": [0.04, 0.12],
            "change": {"all modalities": [0.1, -0.4], "visual": [None, 0.0]},
        }
        for kind, name in (("worst", names[0]), ("right", names[-1]))
    ]
    found = {
        "format": "tqa_jax.interpretation/1",
        "run": {
            "predictions_sha256": hashlib.sha256(predictions).hexdigest(),
            **{"split": "test", "clips": 20, "sources": 5},
        },
        "settings": {"repetitions": 10, "resamples": 2000, "seed": 0},
        "named_features": {"visual": False},
        "modality_dropout": 0.1,
        "importance": [
            {
                **{"kind": kind, "modality": "visual", "group": group},
                "features": features,
                "tasks": {task: {"srcc": entry} for task in tasks},
            }
            for kind, group, features in parts
        ],
        "attention": {
            "visual": dict.fromkeys(("evenness", "strongest", "agreement"), entry)
        },
        "clips": [] if null else clips,
    }
    (folder / "interpretation.json").write_text(json.dumps(found), encoding="utf-8")


def test_page_of_a_finished_run_has_every_chart_and_fits_a_mail(finished):
    text = page_lib.build(finished)
    page = Page(text)
    assert page.charts == charts_of(finished)
    assert len(text) < 3e6
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) >= 13
    assert "missing" not in [a.get("class") for _, a in page.tags]
    linked = {a["href"] for tag, a in page.tags if tag == "a"}
    assert linked == {f"#{one}" for one in ids}


def test_numbers_are_those_of_results_json(finished):
    results = json.loads((finished / "results.json").read_text())
    page = Page(page_lib.build(finished))
    shown = [value for section, value in page.data if section == "results"]
    main = [
        results["tasks"][task][metric]["value"]
        for task in results["tasks"]
        for metric in ("srcc", "plcc", "rmse")
    ]
    assert shown[: len(main)] == [str(value) for value in main]
    for row in (*results["tasks"].values(), results["average"]):
        for metric, entry in row.items():
            if metric != "n" and entry["value"] is not None:
                assert str(entry["value"]) in shown, metric
    value = results["tasks"]["overall"]["srcc"]
    interval = f"{value['value']:.2f} [{value['low']:.2f},\xa0{value['high']:.2f}]"
    assert interval.replace("-", "\N{MINUS SIGN}") in page.text
    for one in results["confidence"]["tasks"].values():
        assert one["reason"] in page.text and f"{one['mean_spread']:.2f}" in page.text
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["commit"] in page.text
    assert environment["packages"]["jax"] in page.text


def test_intervals_of_scores_are_shown_with_their_coverage(tmp_path):
    text = Page(page_lib.build(write_run(tmp_path / "run"))).text
    assert "lip_sync0.503090\xa0% [80\xa0%, 100\xa0%]0.10" in text
    assert "hold 95\xa0% of labels" in text


def test_page_asks_for_nothing_and_runs_nothing(finished):
    text = page_lib.build(finished)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "srcset", "data", "action", "poster"}:
                assert value.startswith(("#", "data:")), value
    assert not re.search(r"url\(|@import|https?://", text)
    (policy,) = [a["content"] for _, a in page.tags if "http-equiv" in a]
    assert "default-src 'none'" in policy


def test_markup_in_names_stays_text(tmp_path):
    page = Page(page_lib.build(write_run(tmp_path / "run", names=HOSTILE)))
    plain = Page(page_lib.build(write_run(tmp_path / "plain", names=tuple("abcde"))))
    known = {(tag, name) for tag, attributes in plain.tags for name in attributes}
    found = {(tag, name) for tag, attributes in page.tags for name in attributes}
    assert found <= known
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    for name in HOSTILE:
        assert page.text.count(name) >= 3, name
    assert "49" not in re.findall(r"<b>(\d+)", page.text)


def test_planted_labels_are_said_to_be_no_opinions(tmp_path):
    folder = write_run(tmp_path / "run")
    audit = json.loads((folder / "audit.json").read_text())
    for kind, said in (
        ("degradation", "The labels are no opinion scores."),
        ("ratings", "Labels are ratings that people gave."),
        (None, "It is not known who made the labels."),
    ):
        audit["provenance"] = {"kind": kind} if kind else {}
        (folder / "audit.json").write_text(json.dumps(audit))
        text = Page(page_lib.build(folder)).text
        assert said in text
        assert ("No person rated these clips" in text) == (kind == "degradation")


def test_nulls_everywhere_leave_sections_that_say_so(tmp_path):
    text = page_lib.build(write_run(tmp_path / "run", null=True))
    page = Page(text)
    assert page.charts == {"correlations": 4}
    for said in (
        "No correlation is defined for any task.",
        "No test clip has both a score and a label.",
        "There is neither an interval nor a spread to draw.",
        "metrics.jsonl holds no finite value to draw.",
        "lip_sync, overall: labels are constant (PLCC, SRCC, RMSE",
    ):
        assert said in page.text, said
    assert not re.search(r"\b(nan|None|inf)\b", page.text)


def test_missing_files_are_named_in_their_sections(tmp_path):
    folder = write_run(tmp_path / "run")
    gone = ("predictions.csv", "metrics.jsonl", "audit.json", "environment.json")
    for file in (*gone, "representation.npz"):
        (folder / file).unlink()
    page = Page(page_lib.build(folder))
    assert page.charts == {"results": 2, "confidence": 3}
    for file in (*gone, "representation.npz"):
        assert f"The run folder has no {file}." in page.text, file
    assert "reference.npz" not in page.text


@pytest.mark.parametrize("tasks", [1, 12])
def test_any_number_of_tasks_has_its_charts(tmp_path, tasks):
    names = tuple(f"task_{i}" for i in range(tasks))
    page = Page(page_lib.build(write_run(tmp_path / "run", tasks=names)))
    expected = CHARTS | {"agreement": 2 * tasks, "confidence": 1 + tasks}
    # One task has no pair whose correlation could be followed.
    expected |= {"interpretation": tasks + 4, "correlations": 4 + (tasks > 1)}
    # All matrices are of the epochs 1 to 3, of which the second is the best.
    assert page.charts == expected


def test_thousands_of_predictions_make_a_small_page(tmp_path):
    names = tuple(f"task{i}" for i in range(12))
    folder = write_run(
        tmp_path / "run", tasks=names, clips=5000, names=[f"n{i}" for i in range(300)]
    )
    text = page_lib.build(folder)
    assert len(text) < 1e6
    page = Page(text)
    assert "t-SNE is left out: it is drawn for 10 to 500 clips" in page.text
    assert "the worst 25 of 300 sources" in page.text


def test_folder_without_a_run_or_unfinished_is_one_clear_line(tmp_path, capsys):
    for folder, message in (
        (tmp_path, "holds no run; make one with"),
        (write_run(tmp_path / "run"), "not finished; the command that started it"),
    ):
        (folder / "results.json").unlink(missing_ok=True)
        assert command.main([f"--workdir={folder}"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert message in error
        assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "Expecting property name"),
        ("config.json", '{"config": {}}', "no 'data'"),
        ("config.json", "[]", "expected an object"),
        ("results.json", '{"tasks": {}}', "no 'lip_sync'"),
        ("results.json", '{"tasks": NaN}', "NaN is no JSON number"),
        ("results.json", "[" * 100_000, "recursion"),
        ("predictions.csv", "clip,source,split\na,b,test\n", "no 'lip_sync_score'"),
        ("predictions.csv", "clip,source\na\n", "row 2 has another number of cells"),
        ("metrics.jsonl", '{"step": 1, "epo', "line 1: Unterminated string"),
        ("metrics.jsonl", '{"step": 1, "epoch": 1, "split": "x"}', "line 1: 'x'"),
        (
            "metrics.jsonl",
            '{"step": 2, "epoch": 1, "split": "train"}\n' * 2,
            "line 2: step 2 after step 2",
        ),
        ("audit.json", '{"name": 1}', "no 'sync_offset_frames'"),
        ("environment.json", "\x00", "Expecting value"),
        ("interpretation.json", '{"format": "b"}', "format 'b'; expected 'tqa_jax"),
        ("representation.npz", "PK\x03\x04 no archive", "zip file"),
        ("representation.npz", "", "No data left in file"),
        ("predictions.csv", "", "it is empty"),
        ("metrics.jsonl", "", "it is empty"),
    ],
)
def test_damaged_file_is_named(tmp_path, file, content, message):
    folder = write_run(tmp_path / "run")
    (folder / file).write_text(content)
    with pytest.raises(schema.InputError) as caught:
        page_lib.build(folder)
    assert str(caught.value).startswith(f"{folder / file} is damaged: ")
    assert message in str(caught.value)


def test_objects_in_an_archive_are_refused(tmp_path):
    folder = write_run(tmp_path / "run")
    array = np.array([{"a": 1}], object)
    np.savez(folder / "representation.npz", clip=array, split=array, features=array)
    with pytest.raises(
        schema.InputError, match="representation.npz is damaged: Object"
    ):
        page_lib.build(folder)


def test_flipped_bytes_give_a_page_or_one_clear_error(tmp_path):
    whole = write_run(tmp_path / "whole", clips=9)
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(150):
        folder = tmp_path / "run"
        shutil.copytree(whole, folder)
        files = sorted(folder.iterdir())
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        for place in rng.integers(0, len(data), int(rng.integers(1, 4))):
            data[place] = rng.integers(0, 256)
        file.write_bytes(data[: rng.integers(1, len(data))] if number % 3 else data)
        try:
            assert page_lib.build(folder).endswith("</html>")
        except schema.InputError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            refused += 1
        shutil.rmtree(folder)
    assert 75 < refused < 150


def test_strange_values_give_a_page_or_one_clear_error(tmp_path):
    folder = write_run(tmp_path / "run", clips=9)
    rng = np.random.default_rng(0)
    strange = (None, True, -1, 1e308, 10**400, "<b>", "[]", "{}", '[{"a": 1}]')
    files = ("config.json", "results.json", "audit.json", "environment.json")
    files += ("interpretation.json",)
    pages = 0
    for number in range(200):
        file = folder / files[number % len(files)]
        before = file.read_text()
        whole = json.loads(before)
        node, key, value = {"": whole}, "", whole
        while isinstance(value, dict | list) and value and rng.random() < 0.85:
            keys = list(value) if isinstance(value, dict) else range(len(value))
            node, key = value, keys[rng.integers(len(keys))]
            value = node[key]
        new = strange[rng.integers(len(strange))]
        node[key] = json.loads(new) if isinstance(new, str) and new != "<b>" else new
        file.write_text(json.dumps(whole if key != "" else node[""]))
        try:
            assert page_lib.build(folder).endswith("</html>")
            pages += 1
        except schema.InputError as error:
            # Another schema no longer fits the other files.
            assert file.name == "config.json" or str(file) in str(error)
            assert "\n" not in str(error)
        file.write_text(before)
    assert 20 < pages < 180


def test_interpretation_shows_its_numbers_and_attention(tmp_path):
    folder = write_run(tmp_path / "run")
    found = json.loads((folder / "interpretation.json").read_text())
    text = page_lib.build(folder)
    page = Page(text)
    value = found["importance"][0]["tasks"]["lip_sync"]["srcc"]["value"]
    shown = [number for section, number in page.data if section == "interpretation"]
    # Exchanged and by group in two tasks; what is hidden is in the charts.
    assert shown == [str(value)] * (2 * 2 + 3)
    assert f"visual3{value:.2f}" in re.sub(r"\s+", "", page.text)
    assert "The features of visual have no names" in page.text
    # Six frames of 40 ms on 321 - 42 units, the last of them not measured.
    left, wide = 42, (321 - 42) / 6
    drawn = dict(re.findall(r'class="shade h(\d)" d="M([\d.]+) ', text))
    assert {int(step): float(x) for step, x in drawn.items()} == {
        step: pytest.approx(left + wide * step, abs=0.06) for step in range(5)
    }


def test_interpretation_that_is_absent_or_stale_is_a_line_with_the_command(tmp_path):
    folder = write_run(tmp_path / "a run")
    line = f"python -m experiments.interpret --workdir='{folder}'"
    assert line not in Page(page_lib.build(folder)).text
    with (folder / "predictions.csv").open("a") as file:
        file.write("more,a,test,,,,,,\n")
    page = Page(page_lib.build(folder))
    assert "interpretation" not in page.charts
    assert "interpretation.json is of other predictions" in page.text
    assert line in page.text
    (folder / "interpretation.json").unlink()
    page = Page(page_lib.build(folder))
    assert "Not measured yet" in page.text and line in page.text


def test_worst_clips_carry_a_frame_and_a_name_is_no_path(tmp_path):
    names = ("inside/a", "../secret", "broken", "gone")
    folder = write_run(tmp_path / "run", clips=8, names=names)
    clips = tmp_path / "clips"
    (clips / "inside").mkdir(parents=True)
    media.simple(clips / "inside" / "a.mp4")
    (clips / "inside" / "a.csv").write_text("AU01_r")  # Other files of the clip's.
    (clips / "inside" / "a").mkdir()
    media.simple(tmp_path / "secret.mp4")
    (clips / "broken.mp4").write_bytes(b"no video")
    found = errors.worst(record.load(folder), clips=clips)
    by_clip = {one.clip: one for one in found}
    head, data = by_clip["inside/a"].picture.split(",")
    assert head == "data:image/jpeg;base64"
    cv2 = pytest.importorskip("cv2")
    frame = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), 1)
    # Half a second in, before the flash.
    assert frame.shape == (144, 144, 3) and abs(frame.mean() - 30) < 6
    assert by_clip["../secret"].remark == "not among the clips"
    assert by_clip["gone"].remark == "not among the clips"
    assert by_clip["broken"].remark.startswith("no picture: not a readable video")
    text = page_lib.build(folder, clips=clips)
    assert by_clip["inside/a"].picture in text
    with pytest.raises(schema.InputError, match="no folder of clips at"):
        page_lib.build(folder, clips=tmp_path / "nowhere")


def test_worst_clips_and_groups_are_those_of_a_loop(tmp_path):
    run = record.load(write_run(tmp_path / "run", names=tuple("abc"), low=-5.0))
    kept = run.predictions
    shares = (kept.scores - kept.labels) / 10.0
    test = [i for i in range(len(kept.clips)) if kept.splits[i] == "test"]
    largest = sorted(test, key=lambda i: -abs(shares[i]).max())
    found = errors.worst(run)
    assert [one.clip for one in found] == [kept.clips[i] for i in largest[:10]]
    for one, i in zip(found, largest, strict=False):
        assert abs(one.score - one.label) / 10 == pytest.approx(abs(shares[i]).max())
    for k, (task, three) in enumerate(errors.worst_by_task(run).items()):
        largest = sorted(test, key=lambda i: -abs(shares[i, k]))  # noqa: B023
        assert [one.clip for one in three] == [kept.clips[i] for i in largest[:3]]
        assert {one.task for one in three} == {task}
        assert three[0].label == kept.labels[largest[0], k]
    groups = errors.groups(run, "sources", split="test")
    assert sorted(group.name for group in groups) == ["a", "b", "c"]
    assert [g.error for g in groups] == sorted((g.error for g in groups), reverse=True)
    for group in groups:
        mine = shares[[i for i in test if kept.sources[i] == group.name]]
        assert group.clips == len(mine)
        assert group.error == pytest.approx(np.mean(abs(mine)))
        assert group.bias == pytest.approx(np.mean(mine))
        np.testing.assert_allclose(group.by_task, abs(mine).mean(axis=0))


def test_dots_and_lines_stand_where_their_numbers_say():
    chart = charts.Chart("", (0.0, 10.0), (0.0, 4.0))
    chart.dots(np.array([0.0, 5.0, 10.0, np.nan]), np.array([0.0, 2.0, 9.0, 1.0]), "")
    chart.line(np.arange(4.0), np.array([1.0, np.nan, 3.0, 4.0]), "")
    dots, line = re.findall(r' d="(M[^"]*)"', chart.svg())[-2:]
    left, right, top, bottom = 42, 321, 22, 188
    # The third is above the axis and stays at its edge; NaN is not drawn.
    middle = f"M{(left + right) / 2:.1f} {(top + bottom) / 2:.1f}h0"
    assert dots == f"M{left:.1f} {bottom:.1f}h0{middle}M{right:.1f} {top:.1f}h0"
    assert line.count("M") == 2 and line.count("L") == 1  # A gap at NaN.


def test_histogram_and_matrix_show_their_numbers():
    chart = charts.Chart("", (0.0, 3.0), (0.0, 2.0))
    chart.bars(np.arange(4.0), np.array([1.0, 0.0, 2.0]))
    bars = re.search(r'class="bar" d="([^"]*)"', chart.svg()).group(1)
    assert [float(v) for v in re.findall(r"V([\d.]+)H", bars)] == [105.0, 22.0]
    values = np.array([[1.0, -0.5], [np.nan, 0.001]])
    svg = charts.matrix("", values, ["a", "<b>"])
    cells = re.findall(r'<rect class="(\w+)".*?fill-opacity="([\d.]+)"', svg)
    assert cells == [
        *(("plus", "0.80"), ("minus", "0.40"), ("unknown", "1.00"), ("plus", "0.00"))
    ]
    texts = re.findall(r'class="middle">([^<]*)<', svg)
    assert texts == ["1", "1.00", "\N{MINUS SIGN}.50", "2", "–", ".00"]
    assert "&lt;b&gt;" in svg


@pytest.mark.parametrize("low", [-3.7, 0.0, 1e-7, 5e3])
@pytest.mark.parametrize("size", [1e-6, 0.3, 1.0, 47.0, 1e9])
def test_ticks_are_few_round_and_on_the_axis(low, size):
    found = charts.ticks(low, low + size)
    assert 2 <= len(found) <= 6
    steps = np.diff(found)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    assert f"{steps[0]:.3e}"[:5] in {"1.000", "2.000", "5.000"}
    assert low - 1e-6 * size <= found[0] and found[-1] <= low + 1.000001 * size


def test_binned_curve_is_the_mean_of_what_is_known():
    x, y = np.arange(7.0), np.array([1, 3, np.nan, 5, np.nan, np.nan, 2])
    at, mean = charts.binned(x, y, 4)
    np.testing.assert_allclose(at, [0.5, 2.5, 4.5, 6.0])
    np.testing.assert_allclose(mean, [2.0, 5.0, np.nan, 2.0])


def test_map_is_a_principal_component_analysis(tmp_path):
    decomposition = pytest.importorskip("sklearn.decomposition")
    run = record.load(write_run(tmp_path / "run"))
    figures, _ = projection.draw(run)
    assert [f.title for f in figures][::2] == ["PCA, by overall", "t-SNE, by overall"]
    fitted = decomposition.PCA(2).fit(run.representation.features)
    for share in fitted.explained_variance_ratio_:
        assert f", {100 * share:.0f} %" in figures[0].svg
    places = fitted.transform(run.representation.features)
    drawn = [
        [float(number) for number in pair]
        for pair in re.findall(r"M([\d.]+) ([\d.]+)h0", figures[0].svg)
    ]
    assert len(drawn) == len(places)
    # As far from each other as PCA says, whatever the order and the signs.
    low, high = places.min(axis=0), places.max(axis=0)
    shares = np.sort((places - low) / (high - low), axis=0)
    drawn = np.sort(drawn, axis=0)
    drawn = (drawn - drawn[0]) / (drawn[-1] - drawn[0])
    for k in range(2):
        mirrored = 1 - shares[::-1, k]
        assert min(
            abs(drawn[:, k] - shares[:, k]).max(), abs(drawn[:, k] - mirrored).max()
        ) == pytest.approx(0, abs=2e-3)


def test_missing_libraries_are_said(tmp_path, monkeypatch, capsys):
    folder = write_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn", None)
        page = Page(page_lib.build(folder))
    assert page.charts["map"] == 2
    assert "t-SNE is left out: scikit-learn is not installed." in page.text
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "jinja2", None)
        assert command.main([f"--workdir={folder}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "of the extra report: pip install -e '.[report]'" in line


def test_command_writes_one_file_where_it_is_told(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    assert command.main([f"--workdir={folder}"]) == 0
    assert str(folder / "report.html") in capsys.readouterr().out
    before = (folder / "report.html").read_bytes()
    assert before.startswith(b"<!DOCTYPE html>") and b"\n<html lang" in before
    assert command.main([f"--workdir={folder}", f"--out={tmp_path / 'a.html'}"]) == 0
    assert (tmp_path / "a.html").read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))
    for out in (tmp_path, tmp_path / "nowhere" / "a.html"):
        assert command.main([f"--workdir={folder}", f"--out={out}"]) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_half_a_surrogate_pair_can_be_written(tmp_path):
    folder = write_run(tmp_path / "run")
    audit = json.loads((folder / "audit.json").read_text())
    audit["name"] = "half \ud800"
    (folder / "audit.json").write_text(json.dumps(audit))
    assert command.main([f"--workdir={folder}"]) == 0
    assert "half ?" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if browsers.CHROMIUM is None:
        pytest.skip("no Chromium; `apt-get install chromium` brings one")
    found = browsers.Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


# Charts that are not drawn, and elements that stick out of the page to the right.
LOOK = """(() => {
  const wide = document.documentElement.clientWidth;
  const empty = [...document.querySelectorAll('figure svg[role=img]')].filter(svg => {
    const box = svg.getBoundingClientRect(), ink = svg.getBBox();
    return box.width < 100 || box.height < 50 || ink.width < 50 || ink.height < 20;
  });
  const texts = document.querySelectorAll('figure svg[role=img] text');
  const cut = [...texts].filter(text => {
    const box = text.getBoundingClientRect();
    const svg = text.ownerSVGElement.getBoundingClientRect();
    return box.left < svg.left - 1 || box.right > svg.right + 1;
  });
  const out = [...document.querySelectorAll('body *')].filter(one =>
    !one.closest('.wide, svg') && one.getBoundingClientRect().right > wide + 1);
  const sections = {};
  for (const section of document.querySelectorAll('section')) {
    const charts = section.querySelectorAll('figure svg[role=img]').length;
    if (charts) sections[section.id] = charts;
  }
  const colour = getComputedStyle(document.body).backgroundColor;
  return {empty: empty.length, cut: cut.map(one => one.textContent), colour,
          out: out.map(one => one.outerHTML.slice(0, 200)), sections, wide,
          scroll: document.documentElement.scrollWidth};
})()"""


def assert_quiet(events, page):
    """Nothing was asked for but the page, and nothing was complained about."""
    requests = [e for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [e["params"]["request"]["url"] for e in requests] == [page.as_uri()]
    noise = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}
    assert not [e for e in events if e["method"] in noise]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["finished", "hostile", "many"])
def test_browser_draws_every_chart_at_any_width(browser, finished, tmp_path, kind):
    folder, charts = finished, charts_of(finished)
    if kind == "hostile":
        tasks = ("t" * 200, "überall", "a")
        folder = write_run(tmp_path / "run", tasks=tasks, names=HOSTILE)
        charts = CHARTS
    elif kind == "many":
        tasks = tuple(f"task_{i}" for i in range(12))
        folder = write_run(tmp_path / "run", tasks=tasks, clips=5000)
        charts = CHARTS | {"agreement": 24, "confidence": 13, "map": 2}
        charts["interpretation"] = 12 + 4
    page = tmp_path / "report.html"
    assert command.main([f"--workdir={folder}", f"--out={page}"]) == 0
    for width in (360, 1200):
        browser.size(width=width)
        browser.open(page.as_uri())
        seen = browser.evaluate(LOOK)
        assert seen["sections"] == charts
        assert seen["empty"] == 0 and seen["cut"] == []
        assert seen["wide"] == seen["scroll"] == width and seen["out"] == []
        assert seen["colour"] == "rgb(255, 255, 255)"
        assert_quiet(browser.events, page)
    browser.size(width=360, dark=True)
    browser.open(page.as_uri())
    assert browser.evaluate(LOOK)["colour"] == "rgb(20, 24, 29)"


@pytest.mark.slow
def test_printed_page_is_black_on_white_and_cuts_no_figure(browser, finished, tmp_path):
    page = tmp_path / "report.html"
    assert command.main([f"--workdir={finished}", f"--out={page}"]) == 0
    browser.size(width=700, dark=True)
    browser.open(page.as_uri())
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", media="print", features=[dark])
    seen = browser.evaluate(LOOK)
    assert seen["colour"] == "rgb(255, 255, 255)" and seen["sections"] == charts_of(
        finished
    )
    assert seen["wide"] == seen["scroll"] and seen["empty"] == 0
    rules = browser.evaluate(
        "[...document.querySelectorAll('figure')].map(one => "
        "getComputedStyle(one).breakInside + getComputedStyle(document.body).color)"
    )
    assert set(rules) == {"avoidrgb(0, 0, 0)"}
    printed = browser.call("Page.printToPDF", preferCSSPageSize=True)
    pdf = base64.b64decode(printed["data"])
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert pdf.startswith(b"%PDF") and 6 <= pages <= 16
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    assert_quiet(browser.events, page)
