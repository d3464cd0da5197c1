"""A rater can click through a study's page, and gets the file of the answers."""

import csv
import itertools
import json
import urllib.parse
from collections import Counter

import pytest

from experiments.subjective import __main__ as command
from experiments.subjective import make, questions
from tests import browser as browser_lib
from tests import subjective

TASKS = [question.task for question in questions.DEFAULTS]
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>${title} {{7*7}}"
)
SIDES = ("left", "right")
COMMENT = '=1+1, "quoted"\nsecond line ü'
# Where a page answers for itself: complaints, and what it asked for.
NOISE = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return subjective.write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if browser_lib.CHROMIUM is None:
        pytest.skip("no Chromium; `apt-get install chromium` brings one")
    found = browser_lib.Browser(tmp_path_factory.mktemp("profile"))
    found.call("Emulation.setTouchEmulationEnabled", enabled=True)
    yield found
    found.close()


@pytest.fixture(scope="module")
def study(clips, tmp_path_factory):
    """A study with training, practice, four trials, a repeat, a control, a break."""
    folder = tmp_path_factory.mktemp("study")
    header = ("item_id", "video_a", "video_b", "kind", "feedback")
    pairs = list(itertools.combinations(subjective.NAMES, 2))
    kinds = ("training", "practice", *4 * ["trial"])
    feedback = f"{{A}} was the first. {HOSTILE}"
    rows = [
        (f"item{k}", *pair, kind, feedback)
        for k, (pair, kind) in enumerate(zip(pairs, kinds, strict=True))
    ]
    (folder / "text.txt").write_text(f"Line one\nline two\n\n{HOSTILE}\n")
    given = subjective.options(
        clips=clips,
        pairs=subjective.table(folder / "pairs.csv", header, rows),
        out=folder / "study",
        title=HOSTILE,
        instructions=folder / "text.txt",
        raters=6,
        break_every=4,
        optional="audio_quality",
        seed=3,
    )
    make.run(given)
    plan = json.loads((folder / "study" / "plan.json").read_text(encoding="utf-8"))
    return plan, folder / "study" / "index.html"


def opinion(path, task):
    """What every rater of these tests thinks of a clip."""
    return 1 + (3 * subjective.NAMES.index(path) + TASKS.index(task)) % 5


def better(left, right):
    by = subjective.NAMES.index(left) - subjective.NAMES.index(right)
    return "equal" if not by else "left" if by > 0 else "right"


class Rater:
    """Goes through a session; knows from the plan what is to be seen."""

    def __init__(self, browser, study, rater_id):
        self.browser, (self.plan, page) = browser, study
        self.address = f"{page.as_uri()}#{rater_id}"
        self.pairs = {pair["item_id"]: pair for pair in self.plan["pairs"]}
        (self.showings,) = (
            order["showings"]
            for order in self.plan["orders"]
            if order["rater_id"] == rater_id
        )

    def paths(self, at):
        pair = self.pairs[self.showings[at]["item_id"]]
        videos = [pair["video_a"], pair["video_b"]]
        return videos if self.showings[at]["left"] == "A" else videos[::-1]

    def shown(self, selector):
        """Whether an element is there for the eye."""
        return self.browser.evaluate(
            f"document.querySelector({json.dumps(selector)}).checkVisibility()"
        )

    def open_to_answers(self):
        return self.browser.evaluate(
            "[!document.querySelector('#answers').disabled,"
            " !document.querySelector('#next').disabled]"
        )

    def checked(self):
        return self.browser.evaluate(
            "Object.fromEntries([...document.querySelectorAll('#answers :checked')]"
            ".map((input) => [input.name, input.value]))"
        )

    def begin(self):
        self.browser.open("about:blank")
        self.browser.open(self.address)
        assert self.browser.evaluate("document.querySelector('#begin').disabled")
        self.browser.click("#consent")
        self.browser.click("#begin")
        assert self.shown("#trial") and not self.shown("#start")

    def play(self, press_left, press_right):
        """Plays both videos; nothing can be answered before both have ended."""
        assert self.open_to_answers() == [False, False]
        press_left()
        self.browser.until("!document.querySelector('#video_left').paused")
        self.browser.until("document.querySelector('#video_left').ended")
        assert self.open_to_answers() == [False, False]
        press_right()
        self.browser.until("document.querySelector('#video_right').ended")
        self.browser.until("!document.querySelector('#answers').disabled")
        assert self.checked() == {}
        assert self.open_to_answers() == [True, False]

    def wanted(self, at, *, optional):
        left, right = self.paths(at)
        answers = {}
        for task in TASKS:
            if task != "audio_quality" or optional:
                answers[f"left_{task}"] = str(opinion(left, task))
                answers[f"right_{task}"] = str(opinion(right, task))
        return answers | {"preference": better(left, right)}

    def click_answers(self, answers, *, touch=False):
        """Clicks all answers; `next` opens with the last one."""
        for name, value in answers.items():
            assert self.open_to_answers()[1] is False
            label = f"input[name={name}][value='{value}'] + span"
            self.browser.click(label, touch=touch)
        assert self.checked() == answers

    def type_answers(self, at):
        """Presses digits alone: each one goes on to the next row."""
        self.browser.evaluate("document.activeElement.blur()")
        for name, value in self.wanted(at, optional=True).items():
            digit = {"left": "1", "equal": "0", "right": "2"}.get(value, value)
            self.browser.press(digit)
            assert self.checked()[name] == value

    def file(self, folder):
        """Downloads the answers and reads them as a spreadsheet would."""
        self.browser.keep_downloads(folder)
        self.browser.click("#save" if self.shown("#save") else "#save_now")
        self.browser.downloaded()
        (path,) = folder.glob("*.csv")
        text = path.read_bytes().decode("utf-8")
        assert text[0] == "\ufeff" and text.count("\r\n") > 1
        return path, list(csv.DictReader(text[1:].splitlines(keepends=True)))


def requests(browser):
    return {
        urllib.parse.unquote(event["params"]["request"]["url"]).partition("#P")[0]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    }


@pytest.fixture(scope="module")
def at_a_desk(browser, study, tmp_path_factory):
    """Rater P001: mouse on even pairs, keys on odd ones, reloads in the middle."""
    browser.size(width=1200)
    rater = Rater(browser, study, "P001")
    rater.begin()
    heading = "document.querySelector('#heading').textContent"
    partial = None
    for at, showing in enumerate(rater.showings):
        if at == 6:  # After four counted pairs.
            assert rater.shown("#pause") and not rater.shown("#trial")
            browser.click("#resume")
        expected = f"Training {at + 1} of 2" if at < 2 else f"Pair {at - 1} of 6"
        assert browser.evaluate(heading) == expected
        if at % 2:
            rater.play(lambda: browser.press("f"), lambda: browser.press(" "))
            rater.type_answers(at)
            assert browser.evaluate("document.activeElement.id") == "next"
            browser.press("Enter")
            continue
        rater.play(*(lambda s=side: browser.click(f"#play_{s}") for side in SIDES))
        answers = rater.wanted(at, optional=False)
        if at == 4:
            kept = dict(list(answers.items())[:3])
            for name, value in kept.items():
                browser.click(f"input[name={name}][value='{value}'] + span")
            browser.click("#comments")
            browser.type(COMMENT)
            partial = rater.file(tmp_path_factory.mktemp("partial"))[1]
            browser.reload()
            assert browser.evaluate(heading) == expected
            assert rater.checked() == kept
            assert rater.open_to_answers() == [True, False]
            assert browser.evaluate("comments.value") == COMMENT
        rater.click_answers(answers)
        browser.click("#next")
        if at == 0:
            name = "video 1" if showing["left"] == "A" else "video 2"
            for _ in range(2):
                assert rater.shown("#feedback")
                text = browser.evaluate(
                    "document.querySelector('#feedback').textContent"
                )
                assert text == f"{name} was the first. {HOSTILE}"
                browser.reload()  # No way around it.
            browser.click("#next")
    assert rater.shown("#end") and not rater.shown("#trial")
    browser.reload()
    assert rater.shown("#end")
    path, rows = rater.file(tmp_path_factory.mktemp("answers"))
    noise = [event for event in browser.events if event["method"] in NOISE]
    return rater, path, rows, partial, requests(browser), noise


def check_rows(rater, rows, *, mouse):
    """Every showing has its row, and every row says what the rater did."""
    assert len(rows) == len(rater.showings)
    for at, (row, showing) in enumerate(zip(rows, rater.showings, strict=True)):
        assert row["study"] == rater.plan["study"]
        assert row["item_id"] == showing["item_id"]
        assert row["trial_index"] == str(at + 1)
        assert row["kind"] == showing["kind"]
        assert row["left_label"] == showing["left"]
        assert row["right_label"] == {"A": "B", "B": "A"}[showing["left"]]
        assert [row["left_path"], row["right_path"]] == rater.paths(at)
        wanted = rater.wanted(at, optional=not mouse(at))
        assert {name: row[name] for name in wanted} == wanted
        if mouse(at):
            assert row["left_audio_quality"] == row["right_audio_quality"] == ""
        assert 2 * subjective.FRAMES / 25 <= float(row["seconds"]) < 60
        assert row["plays_left"] == row["plays_right"] == "1"
        assert row["timestamp"].endswith("Z") and row["timestamp"][4] == "-"
    assert [row["timestamp"] for row in rows] == sorted(
        row["timestamp"] for row in rows
    )


def test_session_with_mouse_and_keys_ends_in_the_file_of_its_answers(at_a_desk):
    rater, path, rows, partial, _, _ = at_a_desk
    assert Counter(row["kind"] for row in rows) == {
        "training": 2,
        "trial": 4,
        "repeat": 1,
        "control": 1,
    }
    check_rows(rater, rows, mouse=lambda at: at % 2 == 0)
    assert list(rows[0]) == [
        *("timestamp", "study", "rater_id", "item_id", "trial_index", "kind"),
        *("source", "left_label", "right_label", "left_path", "right_path"),
        *(f"{side}_{task}" for task in TASKS for side in SIDES),
        *("preference", "seconds", "plays_left", "plays_right", "comments"),
    ]
    assert {row["rater_id"] for row in rows} == {"P001"}
    assert [row["comments"] for row in rows] == [*4 * [""], f"'{COMMENT}", *3 * [""]]
    assert partial == rows[:4]
    assert path.name == f"ratings_{rater.plan['study']}_P001.csv"


def test_page_asks_for_its_videos_only_and_hostile_text_stays_text(
    browser, study, at_a_desk
):
    plan, page = study
    *_, asked, noise = at_a_desk
    allowed = {page.as_uri()} | {
        urllib.parse.unquote((page.parent / "clips" / name).as_uri())
        for name in plan["clips"]
    }
    assert {urllib.parse.unquote(address) for address in asked} <= allowed | {"data:,"}
    assert noise == []
    browser.open("about:blank")
    browser.open(f"{page.as_uri()}#P006")
    text = "document.querySelector('#instructions').innerText"
    assert browser.evaluate(text) == f"Line one\nline two\n\n{HOSTILE}"
    assert browser.evaluate("document.title") == HOSTILE
    assert browser.evaluate("document.querySelectorAll('img, script').length") == 2
    assert "alert(1)</script>" not in page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def on_a_phone(browser, study, tmp_path_factory):
    """Rater P002: touch alone, on a narrow dark screen."""
    browser.size(width=360, height=740, dark=True)
    rater = Rater(browser, study, "P002")
    rater.begin()
    for at in range(len(rater.showings)):
        if rater.shown("#pause"):
            browser.click("#resume", touch=True)
        rater.play(
            *(lambda s=side: browser.click(f"#video_{s}", touch=True) for side in SIDES)
        )
        wide, small = browser.evaluate(
            """[document.documentElement.scrollWidth,
            [...document.querySelectorAll('#trial button, .choices label')].filter(
              (one) => one.checkVisibility() && one.getBoundingClientRect().height < 44
            ).length]"""
        )
        assert wide == 360 and small == 0
        rater.click_answers(rater.wanted(at, optional=False), touch=True)
        browser.click("#next", touch=True)
        if rater.shown("#feedback"):
            browser.click("#next", touch=True)
    assert rater.shown("#end")
    return rater, *rater.file(tmp_path_factory.mktemp("phone"))


@pytest.mark.slow
def test_session_by_touch_ends_in_the_same_file_with_sides_swapped(
    at_a_desk, on_a_phone
):
    rater, _, rows = on_a_phone
    check_rows(rater, rows, mouse=lambda at: True)
    first = {(row["item_id"], row["kind"]): row for row in at_a_desk[2]}
    pairs = [
        (row["left_label"], first[row["item_id"], "trial"]["left_label"])
        for row in rows
        if row["kind"] == "trial"
    ]
    assert len(pairs) == 4 and all(mine != other for mine, other in pairs)


@pytest.mark.slow
def test_files_of_the_page_are_what_the_analysis_reads(at_a_desk, on_a_phone, tmp_path):
    files = [str(found[1]) for found in (at_a_desk, on_a_phone)]
    out = tmp_path / "found"
    assert command.main(["analyse", "--ratings", *files, f"--out={out}"]) == 0
    found = json.loads((out / "analysis.json").read_text(encoding="utf-8"))
    said = {"answers": 8, "left": 4, "equal": 0, "right": 4}
    assert said.items() <= found["preferences"].items()
    by_clip = {row["clip"]: row for row in found["clips"]}
    assert sorted(by_clip) == sorted(subjective.NAMES)
    for clip, row in by_clip.items():
        for task in set(TASKS) - {"audio_quality"}:
            assert row[f"{task}_mos"] == opinion(clip, task)
    # Of the pairs in trials the last clip wins all three, the first two win none.
    wins = [by_clip[name]["preferred"] for name in subjective.NAMES]
    assert wins == [0, 0, 2, 6]
    scores = [by_clip[name]["score"] for name in subjective.NAMES]
    assert scores[3] == max(scores) and scores[2] > scores[1]
    assert found["tasks"]["overall"]["alpha"]["value"] == 1


def test_one_video_plays_at_a_time_and_keys_move_through_the_rows(browser, study):
    browser.size(width=1200)
    rater = Rater(browser, study, "P003")
    rater.begin()
    playing = "SIDES.map((side) => !videos[side].paused && !videos[side].ended)"
    browser.evaluate("SIDES.forEach((side) => { videos[side].playbackRate = 0.1; })")
    browser.press("f")
    browser.until("!videos.left.paused")
    browser.press("s")
    browser.until("!videos.right.paused")
    assert browser.evaluate(playing) == [False, True]
    browser.press(" ")  # Pauses what plays.
    browser.until("videos.right.paused")
    for key in "15":  # Nothing can be rated yet.
        browser.press(key)
    assert rater.checked() == {}
    browser.evaluate("SIDES.forEach((side) => { videos[side].playbackRate = 4; })")
    for side in SIDES:
        browser.click(f"#play_{side}")
        browser.until(f"session.current.plays.{side} === 1")
    focused = "document.activeElement.name"
    browser.press("Tab")
    browser.evaluate("document.activeElement.blur()")
    browser.press("3")
    assert rater.checked() == {"left_lip_sync": "3"}
    assert browser.evaluate(focused) == "right_lip_sync"
    browser.press("ArrowDown")
    browser.press("2")
    browser.press("ArrowUp")
    browser.press("ArrowRight")
    assert rater.checked() == {"left_lip_sync": "3", "left_expression": "3"}
    browser.press("7")
    browser.press("Enter")
    assert browser.evaluate(focused) == "left_expression"
    assert rater.open_to_answers() == [True, False]
    browser.click("#comments")
    for key in "f1":
        browser.press(key)
    assert browser.evaluate("document.querySelector('#comments').value") == "f1"
    assert browser.evaluate(playing) == [False, False]
    browser.click("#help summary") if not rater.shown("#shortcuts") else None
    browser.click("#shortcuts")
    browser.press("Tab")
    browser.press("1")
    assert len(rater.checked()) == 2


def test_start_needs_consent_and_a_number_of_the_plan(browser, study):
    browser.open("about:blank")
    browser.open(study[1].as_uri())
    browser.click("#consent")
    begin = "document.querySelector('#begin').disabled"
    assert browser.evaluate(begin)
    browser.click("#number")
    browser.type("7")
    assert not browser.evaluate(begin)
    browser.press("Enter")
    said = browser.evaluate("document.querySelector('#number_error').textContent")
    assert said.endswith("from P001 to P006.")
    browser.evaluate("document.querySelector('#number').value = ''")
    browser.type(" p4")
    browser.press("Enter")
    assert browser.evaluate("location.hash") == "#P004"
    assert browser.evaluate("document.querySelector('#who').textContent") == (
        "Participant P004"
    )


def test_a_video_that_cannot_be_played_can_be_skipped(browser, study, tmp_path):
    rater = Rater(browser, study, "P005")
    rater.begin()
    browser.evaluate("videos.left.src = 'clips/none.mp4'")
    browser.until("document.querySelector('#broken').checkVisibility()")
    browser.click("#skip")
    assert browser.evaluate("document.querySelector('#heading').textContent") == (
        "Training 2 of 2"
    )
    (row,) = rater.file(tmp_path)[1]
    assert row["comments"] == "video could not be played"
    assert row["preference"] == "" and row["plays_left"] == "0"
    assert all(row[f"{side}_{task}"] == "" for side in SIDES for task in TASKS)


def test_without_storage_the_page_says_so_and_still_gives_the_file(
    browser, study, tmp_path
):
    script = "Object.defineProperty(window, 'localStorage', {get() { throw Error(); }})"
    added = browser.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    rater = Rater(browser, study, "P006")
    rater.begin()
    browser.call("Page.removeScriptToEvaluateOnNewDocument", **added)
    said = browser.evaluate("document.querySelector('#notice').textContent")
    assert said.startswith("This browser does not keep your answers.")
    rater.play(*(lambda s=side: browser.click(f"#play_{s}") for side in SIDES))
    rater.click_answers(rater.wanted(0, optional=False))
    for _ in range(2):
        browser.click("#next")
    assert len(rater.file(tmp_path)[1]) == 1


def test_preferences_alone_can_be_asked_for(browser, clips, tmp_path):
    listed = subjective.table(
        tmp_path / "list.csv", ("clip",), [(name,) for name in subjective.NAMES]
    )
    out = tmp_path / "study"
    make.run(subjective.options(clips=clips, list=listed, out=out, tasks="", raters=2))
    plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    rater = Rater(browser, (plan, out / "index.html"), "P002")
    rater.begin()
    rater.play(lambda: browser.press("f"), lambda: browser.press("s"))
    browser.press("0")
    browser.press("Enter")
    (tmp_path / "answers").mkdir()
    (row,) = rater.file(tmp_path / "answers")[1]
    assert row["preference"] == "equal"
    assert not any(f"left_{task}" in row for task in TASKS)
