// The writer's page: puts the text, the link to coach, the margin and the grade together.

import { countWords, DraftSync, isMeaningful, locate, underline } from "./editor.js";
import { Notes } from "./feedback.js";
import { gradeInWords, showGrade, showGrading } from "./grade.js";
import { Link } from "./protocol.js";
import { freshId, keep, recall } from "./storage.js";

const PAUSE_MS = 2_000;
const EDIT_MS = 300;
const KEEP_MS = 400;
const ASK_GAP_MS = 4_000;
const RETRY_MS = 5_000;
const SHOW_MS = 2_500;

const ASSIGNMENTS = [
  {
    id: "free",
    title: "Whatever you like",
    task: "Write about something that matters to you, in any form that suits it.",
  },
];

const LINK_WORDS = {
  connecting: "connecting…",
  online: "connected",
  reconnecting: "reconnecting…",
  offline: "offline – your text is kept here",
  refused: "please come in through your school's page",
};

const at = (id) => document.getElementById(id);
const page = {
  link: at("link"), linkText: at("link-text"), assignment: at("assignment"), task: at("task"),
  draft: at("draft"), underlines: at("underlines"), margin: at("margin"), turn: at("turn"),
  trouble: at("trouble"), grade: at("grade"), notes: at("notes"), hint: at("hint"),
  words: at("words"), wordsUnit: at("words-unit"), kept: at("kept"), toNotes: at("to-notes"),
  ask: at("ask"), handIn: at("hand-in"), announce: at("announce"),
};

let assignments = ASSIGNMENTS;
let online = false;
let turn = null; // {id, text}: the running request and its answer so far
let lastRead = ""; // the draft as the last request saw it
let askedAt = 0;
let submission = null; // {id, assignment, text}: handed in, not graded yet
let composing = false; // an input method is at work: half a character is no edit
let shown = null; // [start, end): words the student asked to see
const timers = {};

const link = new Link({ onState: showLink, onWelcome: welcome, onMessage: receive });
const sync = new DraftSync((message) => link.send(message));
const notes = new Notes(page.notes, page.announce, showInText);

// -- the link --------------------------------------------------------------------------------

function showLink(state) {
  online = state === "online";
  page.link.dataset.state = state;
  if (page.linkText.textContent !== LINK_WORDS[state]) page.linkText.textContent = LINK_WORDS[state];
  refresh();
}

function welcome(resumed) {
  // An edit may have been lost with the old socket: the whole draft says it all again.
  sync.resend(page.draft.value);
  if (submission) sendSubmission();
  if (turn && (!resumed || turn.text === "")) ask();
  else if (!turn) consider();
}

function receive(message) {
  if (message.submission) receiveAboutSubmission(message);
  else if (message.request) receiveAboutTurn(message);
  else if (message.type === "error") receiveError(message);
}

function receiveAboutTurn(message) {
  if (message.request !== turn?.id) return; // a newer turn has replaced it
  switch (message.type) {
    case "queued":
      say(`queued, position ${message.position}${eta(message.eta_ms)}`);
      break;
    case "started":
      say("reading…");
      break;
    case "restarted":
      turn.text = "";
      notes.age();
      say("starting again…");
      break;
    case "delta":
      if (turn.text === "") say("writing…");
      turn.text += message.text;
      later("draw", 0, draw);
      break;
    case "done":
      endTurn();
      break;
    case "error":
      failTurn(message);
      break;
    default: // later versions of the protocol may say more
  }
}

function receiveError(message) {
  if (message.code === "conflict") sync.resend(page.draft.value);
  else trouble(inKindWords(message));
}

// -- feedback --------------------------------------------------------------------------------

/** Ask for feedback once the student has paused, if there is something new to read. */
function consider() {
  const text = page.draft.value;
  if (!online || submission || !isMeaningful(lastRead, text)) return;
  later("ask", Math.max(PAUSE_MS, askedAt + ASK_GAP_MS - Date.now()), ask);
}

function ask() {
  const text = page.draft.value;
  clearTimeout(timers.ask);
  if (!online || !text.trim()) return;
  sync.flush(text);
  turn = { id: freshId("f"), text: "" };
  lastRead = text;
  askedAt = Date.now();
  link.send({
    type: "feedback",
    request: turn.id,
    draft: sync.draft,
    assignment: page.assignment.value,
  });
  trouble("");
  notes.age();
  say("reading…");
  refresh();
}

function draw() {
  if (!turn) return;
  notes.show(turn.text, false, page.draft.value);
  redrawUnderlines();
  refresh();
}

function endTurn() {
  clearTimeout(timers.draw);
  notes.show(turn.text, true, page.draft.value);
  turn = null;
  say("");
  redrawUnderlines();
  refresh();
}

function failTurn(message) {
  const ended = turn;
  turn = null;
  say("");
  if (ended.text) notes.show(ended.text, true, page.draft.value);
  if (message.code !== "cancelled") {
    lastRead = ""; // it was not read after all
    trouble(inKindWords(message));
    later("ask", (message.retry_after_ms ?? RETRY_MS) + Math.random() * 1_000, ask);
  }
  refresh();
}

// -- handing in ------------------------------------------------------------------------------

function handIn() {
  const text = page.draft.value;
  if (!online || submission || !text.trim()) return;
  clearTimeout(timers.ask);
  submission = { id: freshId("e"), assignment: page.assignment.value, text };
  keep("submission", submission);
  showGrading(page.grade, 0);
  page.announce.textContent = "Handed in. Grading.";
  trouble("");
  sendSubmission();
  refresh();
  page.margin.scrollTop = 0;
  if (isNarrow()) page.margin.scrollIntoView({ behavior: motion(), block: "start" });
}

function sendSubmission() {
  link.send({
    type: "submit",
    submission: submission.id,
    assignment: submission.assignment,
    text: submission.text,
  });
}

function receiveAboutSubmission(message) {
  if (message.submission !== submission?.id) return;
  if (message.type === "queued") showGrading(page.grade, message.position);
  else if (message.type === "grading") showGrading(page.grade, 0);
  else if (message.type === "grade") {
    showGrade(page.grade, message, submission.text, showQuoteInText);
    page.announce.textContent = gradeInWords(message);
    forgetSubmission();
  } else if (message.type === "error" && message.retry_after_ms) {
    trouble(inKindWords(message));
    later("submit", message.retry_after_ms, () => submission && sendSubmission());
  } else if (message.type === "error") {
    page.grade.hidden = true;
    trouble(inKindWords(message));
    forgetSubmission();
  }
  refresh();
}

function forgetSubmission() {
  submission = null;
  keep("submission", null);
}

// -- the text --------------------------------------------------------------------------------

function typed() {
  const text = page.draft.value;
  shown = null;
  notes.follow(text);
  redrawUnderlines();
  if (!timers.edit) later("edit", EDIT_MS, sendEdit);
  later("keep", KEEP_MS, keepText);
  page.kept.textContent = "";
  clearTimeout(timers.ask);
  consider();
  refresh();
}

function sendEdit() {
  timers.edit = 0;
  if (!composing) sync.flush(page.draft.value);
}

function keepText() {
  const kept = keep(`draft.${page.assignment.value}`, page.draft.value);
  page.kept.textContent = kept ? "kept" : "not kept on this device";
}

function redrawUnderlines() {
  const ranges = notes.ranges();
  if (shown) ranges.unshift({ start: shown[0], end: shown[1], ink: "shown", key: "shown" });
  const free = shown
    ? ranges.filter((range) => range.key === "shown" || range.end <= shown[0] || range.start >= shown[1])
    : ranges;
  underline(page.underlines, page.draft.value, free);
}

function showInText({ start, end }) {
  shown = [start, end];
  redrawUnderlines();
  page.draft.focus({ preventScroll: true });
  page.draft.setSelectionRange(end, end);
  const mark = page.underlines.querySelector('[data-key="shown"]');
  mark?.scrollIntoView({ behavior: motion(), block: "center" });
  later("shown", SHOW_MS, () => {
    shown = null;
    redrawUnderlines();
  });
}

function showQuoteInText(quote) {
  const range = locate(quote, page.draft.value);
  if (range) showInText({ start: range[0], end: range[1] });
  else trouble("Those words have changed since you handed it in.");
}

function chooseAssignment() {
  const chosen = assignments.find(({ id }) => id === page.assignment.value) ?? assignments[0];
  page.task.textContent = chosen.task;
  page.draft.value = recall(`draft.${chosen.id}`, "");
  keep("assignment", chosen.id);
  turn = null;
  lastRead = "";
  say("");
  trouble("");
  notes.clear();
  if (!submission) page.grade.hidden = true;
  sync.switchTo(`d.${chosen.id}`, page.draft.value);
  redrawUnderlines();
  consider();
  refresh();
}

// -- what the page says ----------------------------------------------------------------------

function refresh() {
  const words = countWords(page.draft.value);
  page.words.textContent = String(words);
  page.wordsUnit.textContent = words === 1 ? "word" : "words";
  page.ask.disabled = !online || words === 0;
  page.handIn.disabled = !online || words === 0 || submission !== null;
  page.handIn.textContent = submission ? "Handed in" : "Hand in";
  page.assignment.disabled = submission !== null;
  page.hint.hidden = notes.count > 0 || !page.grade.hidden;
  page.toNotes.hidden = notes.count === 0;
  page.toNotes.textContent = notes.count === 1 ? "1 note" : `${notes.count} notes`;
}

function say(words) {
  if (page.turn.textContent !== words) page.turn.textContent = words;
  page.turn.classList.toggle("busy", words !== "");
}

function trouble(words) {
  page.trouble.textContent = words;
  page.trouble.hidden = words === "";
}

function inKindWords({ code, message, retry_after_ms: retryMs }) {
  const when = retryMs ? ` Trying again${eta(retryMs)}.` : "";
  switch (code) {
    case "rate_limited":
      return `That was a lot of reading in a short time: a little pause.${when}`;
    case "overloaded":
      return `Many students are writing just now; your text is safe.${when}`;
    case "provider_unavailable":
      return `The reader is not answering at the moment; your text is safe.${when}`;
    case "interrupted":
      return `The reader was interrupted.${when || " Asking again in a moment."}`;
    case "too_large":
      return "This text is longer than coach can read in one piece.";
    case "conflict":
      return "This essay was handed in before with other words. Please hand it in again.";
    default:
      return `Something went wrong: ${message}`;
  }
}

function eta(ms) {
  if (!ms) return "";
  const seconds = Math.max(1, Math.round(ms / 1_000));
  return seconds < 90 ? `, in about ${seconds} s` : `, in about ${Math.round(seconds / 60)} min`;
}

function motion() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
}

function isNarrow() {
  return matchMedia("(max-width: 60rem)").matches;
}

function later(name, ms, act) {
  clearTimeout(timers[name]);
  timers[name] = setTimeout(act, ms);
}

// -- the beginning ---------------------------------------------------------------------------

async function loadAssignments() {
  try {
    const response = await fetch("/api/assignments");
    if (!response.ok) return;
    const offered = await response.json();
    if (offered.length > 0) assignments = offered;
  } catch {
    // the built-in one serves
  }
}

async function begin() {
  await loadAssignments();
  page.assignment.replaceChildren(
    ...assignments.map(({ id, title }) => new Option(title, id)),
  );
  submission = recall("submission");
  const last = submission?.assignment ?? recall("assignment");
  if (assignments.some(({ id }) => id === last)) page.assignment.value = last;
  chooseAssignment();
  if (submission) showGrading(page.grade, 0);

  page.draft.addEventListener("input", typed);
  page.draft.addEventListener("compositionstart", () => {
    composing = true;
  });
  page.draft.addEventListener("compositionend", () => {
    composing = false;
    typed();
  });
  page.assignment.addEventListener("change", chooseAssignment);
  page.ask.addEventListener("click", ask);
  page.handIn.addEventListener("click", handIn);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !page.ask.disabled) ask();
  });
  document.addEventListener("selectionchange", () => {
    if (document.activeElement !== page.draft) return;
    const key = notes.pointAt(page.draft.selectionStart);
    for (const mark of page.underlines.children) {
      mark.classList.toggle("here", mark.dataset.key === key);
    }
  });
  window.addEventListener("pagehide", keepText);
  link.open();
  refresh();
}

begin();
