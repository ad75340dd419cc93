// Reviews: which grades a person should look at, what each judge said, and what people give.

import { countWords, locate, Underlines } from "./editor.js";
import { inkOf } from "./feedback.js";
import { ask, askAtTheDoor, at, link, make, openDoor, say, write } from "./staff.js";
import { keep, recall } from "./storage.js";
import { counted, when } from "./words.js";

const REFRESH_MS = 30_000;
const RETRY_MS = 2_000;
const SECOND = "second panel";

const page = Object.fromEntries(
  [
    "review", "assignment", "blind", "list", "list-title", "view-reviews", "view-all", "spread",
    "spread-title", "bins", "download", "download-grades", "essay", "none", "open", "essay-title",
    "essay-note", "task", "scoring", "score", "withdraw", "done", "people", "hidden-grade", "show",
    "grade", "given", "given-note", "judges", "text",
  ].map((id) => [id, at(id)]),
);

let titles = new Map(); // of assignments, by id
let reviews = [];
let handedIn = { total: 0, submissions: [] }; // of the chosen assignment
let showsAll = false; // the list is of all that were handed in, not of what to look at
let essay = null; // the one that is open: what /api/readings says of it
let seen = new Set(); // essays whose grade was shown here
let underlines = null; // of the open essay's text
let timer = 0;

// -- the list --------------------------------------------------------------------------------

/** Read the list, and again from time to time; another educator may be at it too. */
async function watch() {
  clearTimeout(timer);
  let wait = REFRESH_MS;
  try {
    const response = await ask("/api/reviews");
    if (response.status === 401 || response.status === 403) {
      askAtTheDoor((await response.json()).message);
      return;
    }
    if (!response.ok) throw new Error(response.status);
    reviews = await response.json();
    if (showsAll) await loadHandedIn();
    page.review.hidden = false;
    link("online", "connected");
    showList();
  } catch {
    link("reconnecting", "reconnecting…");
    wait = RETRY_MS;
  }
  timer = setTimeout(watch, wait);
}

/** Furthest apart first; of those alike the newest. */
function byDisagreement(a, b) {
  return (
    (b.bands_apart ?? -1) - (a.bands_apart ?? -1) ||
    (b.points_apart ?? -1) - (a.points_apart ?? -1) ||
    b.at - a.at
  );
}

async function loadHandedIn() {
  const chosen = page.assignment.value;
  if (!chosen) {
    handedIn = { total: 0, submissions: [] };
    return;
  }
  const response = await ask(`/api/assignments/${encodeURIComponent(chosen)}/submissions`);
  if (!response.ok) throw new Error(response.status);
  const found = await response.json();
  if (page.assignment.value === chosen) handedIn = found;
}

/** What to look at, or all that were handed in for an assignment. */
function choose(all) {
  showsAll = all;
  page["view-reviews"].setAttribute("aria-pressed", String(!all));
  page["view-all"].setAttribute("aria-pressed", String(all));
  write(page["list-title"], all ? "All handed in" : "To look at");
  showList();
  watch();
}

/** An essay of an assignment as the list shows it: a review in most of its fields. */
function asListed({ submission, user, submitted_at: moment, status, score, degraded, review, scores }) {
  const marks = [degraded && "degraded", review && "to look at"].filter(Boolean);
  if (status !== "graded") marks.push(status === "failed" ? "could not be graded" : "no grade yet");
  return {
    submission, user, scores, marks, at: moment, grade: score === null ? null : { score }, is_kept: true,
  };
}

function showList() {
  const chosen = page.assignment.value;
  const shown = showsAll
    ? handedIn.submissions.map(asListed)
    : reviews.filter(({ assignment }) => !chosen || assignment === chosen).sort(byDisagreement);
  showSpread();
  page["download-grades"].hidden = !showsAll || !chosen;
  const nothing = !showsAll ? "Nothing wants you." : chosen ? "Nothing was handed in." : "Choose an assignment.";
  const focused = document.activeElement?.closest("#list [data-id]")?.dataset.id;
  page.list.replaceChildren(
    ...(shown.length > 0 ? shown.map(listItem) : [make("li", "none", nothing)]),
  );
  page.list.querySelector(`[data-id="${CSS.escape(focused ?? "")}"]`)?.focus({ preventScroll: true });
}

function listItem(review) {
  const item = make("li");
  const button = make("button");
  button.type = "button";
  button.dataset.id = review.submission;
  button.setAttribute("aria-current", String(review.submission === essay?.submission));
  const hides = page.blind.checked && !isOpenTo(review);
  button.append(
    make("span", "who", review.user ?? review.submission),
    make("span", "grade", hides || !review.grade ? "" : String(review.grade.score)),
    make("span", "about", [titleOf(review.assignment), when(review.at * 1_000)].filter(Boolean).join(" · ")),
  );
  const about = button.lastChild;
  for (const mark of review.marks ?? []) about.append(` · ${mark}`);
  if (!review.grade && !review.is_kept) about.append(" · no longer kept");
  else if (!hides && review.bands_apart > 0) {
    about.append(" · ", make("span", "apart", `${counted(review.bands_apart, "band")} apart`));
  }
  if (review.reason === "sample") about.append(" · sample");
  const people = (review.scores ?? []).map(({ by, score }) => (hides ? by : `${by} ${score}`));
  if (people.length > 0) about.append(` · scored: ${people.join(", ")}`);
  button.addEventListener("click", () => open(review.submission));
  item.append(button);
  return item;
}

const BINS = 10;

/** How grades, and people's scores where there are any, are spread over 0 to 100. */
function showSpread() {
  const grades = handedIn.submissions.filter(({ score }) => score !== null).map(({ score }) => score);
  page.spread.hidden = !showsAll || grades.length === 0;
  if (page.spread.hidden) return;
  const people = handedIn.submissions.flatMap(({ scores }) => scores.map(({ score }) => score));
  const [ours, theirs] = [grades, people].map(binned);
  const most = Math.max(...ours, ...theirs);
  const shown = handedIn.submissions.length;
  write(
    page["spread-title"],
    `${counted(grades.length, "grade")}, mean ${mean(grades)}` +
      (people.length > 0 ? `; ${counted(people.length, "score")} by people, mean ${mean(people)}` : "") +
      (handedIn.total > shown ? `; the newest ${shown} of ${handedIn.total}` : ""),
  );
  page.bins.replaceChildren(
    ...ours.map((count, bin) => {
      const low = bin * BINS;
      const high = bin === BINS - 1 ? 100 : low + 9;
      const item = make("li");
      const column = make("div", "column");
      column.setAttribute("role", "img");
      const told = people.length > 0 ? `, ${counted(theirs[bin], "score")} by people` : "";
      column.setAttribute("aria-label", `${low} to ${high}: ${counted(count, "grade")}${told}`);
      column.title = column.getAttribute("aria-label");
      column.append(columnBar("bar", count / most));
      if (people.length > 0) column.append(columnBar("bar people", theirs[bin] / most));
      const label = make("span", "at", String(low));
      label.setAttribute("aria-hidden", "true");
      item.append(column, label);
      return item;
    }),
  );
}

function binned(scores) {
  const counts = new Array(BINS).fill(0);
  for (const score of scores) counts[Math.min(BINS - 1, Math.floor(score / BINS))] += 1;
  return counts;
}

function mean(scores) {
  return (scores.reduce((total, score) => total + score, 0) / scores.length).toFixed(1);
}

function columnBar(className, share) {
  const bar = make("div", className);
  bar.style.blockSize = `${100 * share}%`;
  return bar;
}

function titleOf(assignment) {
  return titles.get(assignment) ?? assignment ?? "";
}

async function loadAssignments() {
  try {
    const offered = await (await ask("/api/assignments")).json();
    titles = new Map(offered.map(({ id, title }) => [id, title]));
  } catch {
    return; // ids serve
  }
  page.assignment.append(...[...titles].map(([id, title]) => new Option(title, id)));
  page.assignment.value = recall("review.assignment", "");
  if (page.assignment.selectedIndex < 0) page.assignment.value = "";
  showList();
}

// -- one essay -------------------------------------------------------------------------------

/** Whether the educator may see its grade: scored already, or asked for it. */
function isOpenTo({ submission, scores }) {
  return seen.has(submission) || (scores ?? []).some(({ by }) => by === recall("review.me"));
}

async function open(submission) {
  const found = await tell(() => ask(`/api/readings/${encodeURIComponent(submission)}`));
  if (!found) {
    offerDone(submission); // its time is over: all one can do is to take it off the list
    return;
  }
  essay = found;
  keep("review.me", essay.you);
  page.none.hidden = true;
  page.open.hidden = false;
  write(page["essay-title"], `${essay.user} · ${titleOf(essay.assignment)}`);
  const words = counted(countWords(essay.text), "word");
  write(page["essay-note"], `Handed in ${when(essay.submitted_at * 1_000)} with ${words}.`);
  write(page.task, essay.task);
  page.text.replaceChildren();
  underlines = new Underlines(page.text);
  showScores();
  showGrade();
  showList();
  page.essay.focus({ preventScroll: true });
  if (isNarrow()) page.essay.scrollIntoView({ behavior: motion(), block: "start" });
}

function offerDone(submission) {
  const review = reviews.find((each) => each.submission === submission);
  if (review && !review.grade && !showsAll) finish(submission);
}

function showScores() {
  const mine = essay.scores.find(({ by }) => by === essay.you);
  page.score.value = mine ? mine.score : "";
  page.withdraw.hidden = !mine;
  page.done.hidden = !reviews.some(({ submission }) => submission === essay.submission);
  const hides = page.blind.checked && !isOpenTo(essay);
  page.people.replaceChildren(
    ...essay.scores.map(({ by, score, blind, at: moment }) => {
      const item = make("li", "", `${by === essay.you ? "You" : by}: `);
      item.append(make("strong", "", hides ? "hidden" : String(score)));
      item.append(`, ${when(moment * 1_000)}${blind ? ", before seeing the grade" : ""}`);
      return item;
    }),
  );
}

function showGrade() {
  const hides = page.blind.checked && !isOpenTo(essay);
  page["hidden-grade"].hidden = !hides;
  page.grade.hidden = hides;
  if (!hides) {
    seen.add(essay.submission);
    showGiven();
    showJudges();
  }
  drawText(null);
}

function showGiven() {
  const { grade, second } = essay;
  page.given.replaceChildren();
  if (!grade) {
    write(page["given-note"], "It has no grade yet.");
    return;
  }
  page.given.append("Grade ", make("strong", "", String(grade.score)), " of 100");
  const notes = [counted(grade.judges, "judge")];
  if (grade.interval) {
    notes.push(`${grade.interval.join(" to ")} in ${Math.round(grade.coverage * 100)} of 100 cases`);
  }
  if (grade.degraded) notes.push(`degraded: ${grade.degraded_reason || "a judge is missing"}`);
  if (second) notes.push(`${SECOND}: ${second.score}`);
  if (grade.calibration) notes.push(`calibration ${grade.calibration}`);
  write(page["given-note"], notes.join(" · "));
}

/** A row for each criterion, a column for each judge; the second panel stands behind the first. */
function showJudges() {
  const columns = [
    ...essay.judges.map((judge) => ({ ...judge, panel: "" })),
    ...essay.second_judges.map((judge) => ({ ...judge, panel: SECOND })),
  ];
  const head = make("tr");
  head.append(make("td"));
  for (const { judge, panel, provider, model, score } of columns) {
    const cell = make("th", "", `${judge}: ${score}`);
    cell.scope = "col";
    cell.append(make("span", "note", [panel, provider, model].filter(Boolean).join(" · ")));
    head.append(cell);
  }
  const body = make("tbody");
  body.append(...essay.criteria.map((criterion) => judgesRow(criterion, columns)));
  const table = make("thead");
  table.append(head);
  page.judges.replaceChildren(table, body);
  page.judges.parentElement.hidden = columns.length === 0;
  if (columns.length === 0 && essay.grade) {
    page["given-note"].append(" · the judges' own answers were not kept");
  }
}

function judgesRow({ name, label, bands, weight }, columns) {
  const row = make("tr");
  row.dataset.ink = inkOf(`${name} ${label}`);
  const head = make("th", "", label);
  head.scope = "row";
  head.append(make("span", "note", ` ${weight} %`));
  row.append(head);
  const given = columns.filter(({ panel }) => !panel).map(({ criteria }) => criteria[name].band);
  const far = Math.max(...given) - Math.min(...given) > 2;
  for (const { criteria } of columns) {
    const { band, evidence, reason } = criteria[name];
    const cell = make("td");
    const place = make("p", far ? "band apart" : "band", `${band} of ${bands.length - 1}`);
    place.title = bands[band];
    const quote = make("button", "quote", evidence);
    quote.type = "button";
    quote.dir = "auto";
    quote.title = "Show it in the text";
    quote.disabled = !locate(evidence, essay.text);
    quote.addEventListener("click", () => showInText(evidence));
    cell.append(place, make("p", "reason", reason), quote);
    row.append(cell);
  }
  return row;
}

/** The text, with what the judges quote underlined; `shown` stands out. */
function drawText(shown) {
  const ranges = [];
  if (shown) ranges.push({ start: shown[0], end: shown[1], ink: "shown", key: "shown" });
  for (const { criteria } of page.grade.hidden ? [] : essay.judges) {
    for (const [name, { evidence }] of Object.entries(criteria)) {
      const range = locate(evidence, essay.text);
      if (!range || (shown && range[0] < shown[1] && shown[0] < range[1])) continue;
      ranges.push({ start: range[0], end: range[1], ink: inkOf(name), key: name });
    }
  }
  underlines.draw(essay.text, ranges);
}

function showInText(quote) {
  drawText(locate(quote, essay.text));
  page.text.querySelector('[data-key="shown"]').scrollIntoView({ behavior: motion(), block: "center" });
}

// -- what educators do -----------------------------------------------------------------------

/** Ask coach for something; null, and it is said why, where it does not work. */
async function tell(asking) {
  try {
    const response = await asking();
    const answer = await response.json();
    if (response.ok) return answer;
    say(answer.message);
  } catch {
    say("coach does not answer: try again");
  }
  return null;
}

async function enter(score) {
  const { submission } = essay;
  const body = JSON.stringify({ score, blind: score !== null && !seen.has(submission) });
  const path = `/api/readings/${encodeURIComponent(submission)}/score`;
  const answer = await tell(() => ask(path, { method: "PUT", body }));
  if (!answer) return;
  say(score === null ? "taken back" : `kept: ${score} of 100`);
  if (score !== null) seen.add(submission);
  if (essay.submission === submission) {
    essay.scores = answer.scores;
    showScores();
    showGrade();
  }
  await watch();
}

async function finish(submission) {
  const path = `/api/reviews/${encodeURIComponent(submission)}`;
  if (!(await tell(() => ask(path, { method: "DELETE" })))) return;
  say("off the list");
  page.done.hidden = true;
  await watch();
}

function downloadScores() {
  const chosen = page.assignment.value;
  const query = chosen ? `?assignment=${encodeURIComponent(chosen)}` : "";
  download(`/api/scores.csv${query}`, `scores${chosen && `-${chosen}`}.csv`);
}

function downloadGrades() {
  const chosen = page.assignment.value;
  download(`/api/assignments/${encodeURIComponent(chosen)}/grades.csv`, `grades-${chosen}.csv`);
}

async function download(path, name) {
  try {
    const response = await ask(path);
    if (!response.ok) throw new Error(response.status);
    const url = URL.createObjectURL(await response.blob());
    const anchor = make("a");
    Object.assign(anchor, { href: url, download: name });
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(url), RETRY_MS);
  } catch {
    say("coach does not answer: try again");
  }
}

function motion() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
}

function isNarrow() {
  return matchMedia("(max-width: 60rem)").matches;
}

// -- the beginning ---------------------------------------------------------------------------

page.blind.checked = recall("review.blind", true);
page.blind.addEventListener("change", () => {
  keep("review.blind", page.blind.checked);
  showList();
  if (essay) {
    showScores();
    showGrade();
  }
});
page.assignment.addEventListener("change", () => {
  keep("review.assignment", page.assignment.value);
  handedIn = { total: 0, submissions: [] };
  showList();
  if (showsAll) watch();
});
page.scoring.addEventListener("submit", (event) => {
  event.preventDefault();
  enter(page.score.valueAsNumber);
});
page.withdraw.addEventListener("click", () => enter(null));
page.done.addEventListener("click", () => finish(essay.submission));
page.show.addEventListener("click", () => {
  seen.add(essay.submission);
  showScores();
  showGrade();
  showList();
});
page.download.addEventListener("click", downloadScores);
page["download-grades"].addEventListener("click", downloadGrades);
page["view-reviews"].addEventListener("click", () => choose(false));
page["view-all"].addEventListener("click", () => choose(true));
loadAssignments();
openDoor(watch);
