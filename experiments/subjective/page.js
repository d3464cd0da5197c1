"use strict";
// One rater's session. What the rater has done is `session`, which is stored at every
// change; what the screen shows follows from it. No text becomes markup.
const plan = JSON.parse(document.getElementById("plan").textContent);
const pairs = new Map(plan.pairs.map((pair) => [pair.item_id, pair]));
const SIDES = ["left", "right"];
const SECTIONS = ["start", "trial", "pause", "end"];
const COLUMNS = [
  "timestamp", "study", "rater_id", "item_id", "trial_index", "kind", "source",
  "left_label", "right_label", "left_path", "right_path",
  ...plan.tasks.flatMap(({ task }) => SIDES.map((side) => `${side}_${task}`)),
  "preference", "seconds", "plays_left", "plays_right", "comments",
];
const $ = (id) => document.getElementById(id);
const videos = { left: $("video_left"), right: $("video_right") };
const NAMES = { left: "video 1", right: "video 2" };

let session = null; // {rater_id, rows, current, downloaded}
let order = null; // of this rater
let shownAt = 0; // when the clock of this pair last started, in milliseconds
let stored = true; // whether the browser keeps answers
let elsewhere = false; // whether another tab goes on with this session

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

window.addEventListener("error", (event) => {
  if (event.message) notice(`Something went wrong: ${event.message}. Please download ` +
    "your answers and tell whoever invited you.");
});

// Storage.

const key = (rater) => `study ${plan.study} ${rater}`;

function load(rater) {
  try {
    return JSON.parse(localStorage.getItem(key(rater)));
  } catch (error) {
    stored = false; // switched off, or not readable
    return null;
  }
}

function store() {
  if (elsewhere || !session) return;
  const now = performance.now();
  if (session.current) session.current.seconds += (now - shownAt) / 1000;
  shownAt = now;
  try {
    localStorage.setItem(key(session.rater_id), JSON.stringify(session));
    stored = true;
  } catch (error) {
    stored = false; // switched off, or full
  }
  notice(stored ? "" : "This browser does not keep your answers. Please do not close or " +
    "reload this page before you have downloaded them.");
}

window.addEventListener("storage", (event) => {
  if (!session || event.key !== key(session.rater_id)) return;
  elsewhere = true;
  SECTIONS.forEach((id) => { $(id).hidden = true; });
  stop();
  notice("Your session goes on in another tab. Please close this one.");
});
window.addEventListener("pagehide", store);
window.addEventListener("beforeunload", (event) => {
  if (session && !stored && session.rows.length && !session.downloaded) event.preventDefault();
});

// The file with the answers.

function cell(value) {
  let text = value === null || value === undefined ? "" : String(value);
  if (/^[=+\-@\t\r]/.test(text)) text = `'${text}`; // a spreadsheet would compute it
  return /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function download() {
  const rows = session.rows.map((row) => COLUMNS.map((name) => cell(row[name])));
  const text = [COLUMNS, ...rows].map((row) => `${row.join(",")}\r\n`).join("");
  const blob = new Blob(["\ufeff", text], { type: "text/csv;charset=utf-8" });
  const link = element("a", {
    href: URL.createObjectURL(blob),
    download: `ratings_${plan.study}_${session.rater_id}.csv`,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  session.downloaded = true;
  store();
}

// Screens.

function show(id) {
  stop();
  SECTIONS.forEach((name) => { $(name).hidden = name !== id; });
  $("top").hidden = id === "start";
  $("save_now").hidden = id === "end";
  window.scrollTo(0, 0);
}

function stop() {
  SIDES.forEach((side) => videos[side].pause());
}

function raterOf(text) {
  const found = /^P?0*(\d+)$/i.exec(text.trim());
  const number = found ? Number(found[1]) : 0;
  return plan.orders[number - 1] ?? null;
}

function welcome() {
  session = null;
  $("title").textContent = plan.title;
  $("instructions").replaceChildren(
    ...plan.instructions.map((text) => element("p", { textContent: text })));
  const given = raterOf(location.hash.slice(1));
  $("number").value = given ? given.rater_id : "";
  $("number").readOnly = Boolean(given);
  $("consent").checked = false;
  $("begin").disabled = true;
  show("start");
}

function begin() {
  const found = raterOf($("number").value);
  if (!found) {
    const last = plan.orders.at(-1).rater_id;
    $("number_error").textContent =
      `Please enter the number that you were given, from ${plan.orders[0].rater_id} to ${last}.`;
    $("number").focus();
    return;
  }
  $("number_error").textContent = "";
  history.replaceState(null, "", `#${found.rater_id}`); // a reload finds the session
  enter(found, load(found.rater_id));
}

function enter(found, kept) {
  order = found;
  session = kept ??
    { rater_id: found.rater_id, rows: [], current: null, downloaded: false };
  if (session.rows.length >= order.showings.length) finish();
  else open();
}

function finish() {
  session.current = null;
  show("end");
  progress();
  store();
  $("erase").disabled = !session.downloaded;
  $("end_title").focus({ preventScroll: true });
}

function progress() {
  $("who").textContent = `Participant ${session.rater_id}`;
  $("progress").max = order.showings.length;
  $("progress").value = session.rows.length;
}

// One pair.

function showing() {
  const { item_id: id, kind, left } = order.showings[session.rows.length];
  const pair = pairs.get(id);
  const label = { left, right: left === "A" ? "B" : "A" };
  const path = { left: "", right: "" };
  SIDES.forEach((side) => { path[side] = label[side] === "A" ? pair.video_a : pair.video_b; });
  return { pair, kind, label, path };
}

function open() {
  const { pair, kind, path } = showing();
  session.current ??= {
    answers: {}, comments: "", feedback: false, plays: { left: 0, right: 0 }, seconds: 0,
  };
  shownAt = performance.now();
  show("trial");
  const trainings = order.showings.filter((one) => one.kind === "training").length;
  const done = session.rows.length;
  $("heading").textContent = kind === "training"
    ? `Training ${done + 1} of ${trainings}`
    : `Pair ${done - trainings + 1} of ${order.showings.length - trainings}`;
  $("training").hidden = pair.kind !== "training";
  $("training").textContent = "This pair is for training and is not counted. The questions " +
    "below say what to look and listen for.";
  $("broken").hidden = true;
  $("comments").value = session.current.comments;
  $("help").open ||= pair.kind === "training" && done === 0 && matchMedia("(pointer: fine)").matches;
  document.querySelectorAll("#answers input").forEach((input) => {
    input.checked = session.current.answers[input.name] === input.value;
  });
  SIDES.forEach((side) => {
    // As an address: a name may hold spaces, `#` or `%`.
    videos[side].src = `clips/${path[side].split("/").map(encodeURIComponent).join("/")}`;
  });
  update();
  store();
  $("heading").focus({ preventScroll: true });
}

function required() {
  const tasks = plan.tasks.filter((task) => task.required);
  return [...tasks.flatMap(({ task }) => SIDES.map((side) => `${side}_${task}`)), "preference"];
}

// Brings the screen in line with the session.
function update() {
  const { answers, feedback, plays } = session.current;
  const unseen = SIDES.filter((side) => !plays[side]);
  SIDES.forEach((side) => {
    const playing = !videos[side].paused && !videos[side].ended;
    const verb = playing ? "Pause" : plays[side] ? "Replay" : "Play";
    $(`play_${side}`).replaceChildren(
      `${verb} ${NAMES[side]} `, element("kbd", { textContent: side === "left" ? "F" : "S" }));
    $(`played_${side}`).textContent = plays[side] ? `seen ${plays[side]}\u00d7` : "not seen yet";
  });
  $("answers").disabled = unseen.length > 0 || feedback;
  $("locked").hidden = unseen.length === 0;
  const missing = required().filter((name) => !(name in answers)).length;
  $("next").disabled = unseen.length > 0 || missing > 0;
  $("next").textContent = feedback ? "Continue" : "Next";
  $("feedback").hidden = !feedback;
  const { pair, label } = showing();
  const nameOf = (wanted) => NAMES[SIDES.find((side) => label[side] === wanted)];
  $("feedback").textContent =
    pair.feedback.replaceAll("{A}", nameOf("A")).replaceAll("{B}", nameOf("B"));
  const todo = unseen.length
    ? `Play ${unseen.map((side) => NAMES[side]).join(" and ")} to the end.`
    : missing ? `${missing} ${missing === 1 ? "answer" : "answers"} to go.` : "";
  if ($("todo").textContent !== todo) $("todo").textContent = todo;
  progress();
}

function play(side) {
  const video = videos[side];
  if (!video.paused && !video.ended) {
    video.pause();
    return;
  }
  stop();
  video.play().catch((error) => {
    if (error.name !== "AbortError") broken(side); // paused before it began
  });
}

function broken(side) {
  $("broken_text").textContent = `The browser cannot play ${NAMES[side]}. Please load the ` +
    "page again; if that does not help, skip this pair and tell whoever invited you.";
  $("broken").hidden = false;
}

SIDES.forEach((side) => {
  const video = videos[side];
  $(`play_${side}`).addEventListener("click", () => play(side));
  video.addEventListener("click", () => play(side));
  video.addEventListener("contextmenu", (event) => event.preventDefault());
  video.addEventListener("error", () => { if (session?.current) broken(side); });
  for (const name of ["play", "pause"]) {
    video.addEventListener(name, () => { if (session?.current) update(); });
  }
  video.addEventListener("ended", () => {
    if (!session?.current) return;
    session.current.plays[side] += 1;
    store();
    update();
  });
});

function next() {
  const { pair } = showing();
  if (pair.feedback && pair.kind === "training" && !session.current.feedback) {
    session.current.feedback = true;
    store();
    update();
    $("feedback").focus();
    return;
  }
  record(session.current.answers, session.current.comments);
}

function record(answers, comments) {
  const { pair, kind, label, path } = showing();
  store(); // brings the clock up to date
  session.rows.push({
    timestamp: new Date().toISOString(),
    study: plan.study,
    rater_id: session.rater_id,
    item_id: pair.item_id,
    trial_index: session.rows.length + 1,
    kind,
    source: pair.source,
    left_label: label.left,
    right_label: label.right,
    left_path: path.left,
    right_path: path.right,
    ...answers,
    seconds: session.current.seconds.toFixed(1),
    plays_left: session.current.plays.left,
    plays_right: session.current.plays.right,
    comments,
  });
  session.current = null;
  session.downloaded = false;
  store();
  const done = session.rows.length;
  if (done >= order.showings.length) return finish();
  const trials = session.rows.filter((row) => row.kind !== "training").length;
  if (plan.break_every && trials && trials % plan.break_every === 0) {
    show("pause");
    progress();
    $("pause_title").focus({ preventScroll: true });
    return;
  }
  open();
}

// Answers.

function scale(task, side) {
  const name = `${side}_${task.task}`;
  const anchors = { 1: task.anchors[0], 3: task.anchors[1], 5: task.anchors[2] };
  const group = element("div", { className: "row" });
  group.setAttribute("role", "radiogroup");
  group.setAttribute("aria-required", String(task.required));
  group.setAttribute("aria-label", `${task.title}, ${NAMES[side]}. ${task.question}`);
  const choices = element("div", { className: "choices" });
  for (let value = 1; value <= 5; value += 1) {
    const input = element("input", { type: "radio", name, value: String(value) });
    if (anchors[value]) input.setAttribute("aria-label", `${value}, ${anchors[value]}`);
    choices.append(element("label", {}, input, element("span", { textContent: value })));
  }
  const texts = task.anchors.map((text) => element("span", { textContent: text }));
  group.append(
    element("div", { className: "name", textContent: side === "left" ? "Video 1" : "Video 2" }),
    element("div", { className: "anchors", ariaHidden: "true" }, ...texts), choices);
  return group;
}

for (const task of plan.tasks) {
  const optional = task.required ? "" : " (if you can tell)";
  $("questions").append(element("div", { className: "question" },
    element("h2", {}, task.title,
      element("span", { className: "text", textContent: task.question + optional })),
    element("div", { className: "pair" }, ...SIDES.map((side) => scale(task, side)))));
}

$("answers").addEventListener("change", (event) => {
  if (event.target.type !== "radio") return;
  session.current.answers[event.target.name] = event.target.value;
  store();
  update();
});
$("comments").addEventListener("input", () => {
  session.current.comments = $("comments").value;
  store();
});

// Keys.

const rows = [...document.querySelectorAll("#answers .row")];
const inputs = (row) => [...row.querySelectorAll("input")];
const answered = (row) => inputs(row).some((input) => input.checked);

function focusRow(row) {
  const all = inputs(row);
  (all.find((input) => input.checked) ?? all[0]).focus();
  row.scrollIntoView({ block: "nearest" });
}

function answer(value) {
  const row = document.activeElement.closest(".row") ?? rows.find((one) => !answered(one));
  if (!row) return false;
  const wanted = row.id === "preference" ? { 1: "left", 0: "equal", 2: "right" }[value] : value;
  const input = inputs(row).find((one) => one.value === wanted);
  if (!input) return false;
  input.click();
  const after = rows.slice(rows.indexOf(row) + 1).find((one) => !answered(one));
  if (after) focusRow(after);
  else if (!$("next").disabled) $("next").focus();
  else focusRow(rows.find((one) => !answered(one)) ?? row);
  return true;
}

function moveRow(step) {
  const at = rows.indexOf(document.activeElement.closest(".row"));
  const to = at < 0 ? rows[0] : rows[at + step];
  if (to) focusRow(to);
  return at >= 0;
}

// Returns whether a key did something.
function press(event) {
  const on = event.target;
  const open = !$("answers").disabled;
  const lower = event.key.toLowerCase();
  if (lower === "f" || lower === "s") {
    play(lower === "f" ? "left" : "right");
    return true;
  }
  if (open && /^[0-5]$/.test(event.key)) return answer(event.key);
  if (open && event.key === "ArrowDown" && on.closest(".row")) return moveRow(1);
  if (open && event.key === "ArrowUp" && on.closest(".row")) return moveRow(-1);
  if (on.closest("button, summary, input[type=checkbox]")) return false;
  if (event.key === "Enter" && !$("next").disabled) {
    next();
    return true;
  }
  if (event.key === " " && !on.closest("input")) {
    const running = SIDES.find((side) => !videos[side].paused && !videos[side].ended);
    const unseen = SIDES.find((side) => !session.current.plays[side]);
    play(running ?? unseen ?? "left");
    return true;
  }
  return false;
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("textarea, input[type=text]");
  if ($("trial").hidden || typing || !$("shortcuts").checked) return;
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (press(event)) event.preventDefault();
});

// Start.

function ready() {
  $("begin").disabled = !($("consent").checked && $("number").value.trim());
}
$("number").addEventListener("input", ready);
$("consent").addEventListener("change", ready);
$("begin").addEventListener("click", begin);
$("number").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !$("begin").disabled) begin();
});
$("next").addEventListener("click", next);
$("skip").addEventListener("click", () => record({}, "video could not be played"));
$("resume").addEventListener("click", open);
$("save_now").addEventListener("click", download);
$("save").addEventListener("click", () => {
  download();
  $("saved").textContent = "The file is in your downloads. Please send it now.";
  $("erase").disabled = false;
});
$("erase").addEventListener("click", () => {
  if (stored) localStorage.removeItem(key(session.rater_id));
  history.replaceState(null, "", "#");
  $("saved").textContent = "";
  welcome();
});
window.addEventListener("hashchange", () => location.reload());

const known = raterOf(location.hash.slice(1));
const kept = known ? load(known.rater_id) : null;
if (kept) enter(known, kept);
else welcome();
