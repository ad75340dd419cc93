// The grade: a score, and for each criterion the band, the evidence and the reason.

import { countWords, locate } from "./editor.js";
import { inkOf } from "./feedback.js";
import { counted, when } from "./words.js";

const SAFE = "Your essay has arrived and is safe. You may close this page: the grade will be here.";
const APART_MAX = 2; // bands; beyond them a person is asked to look
const DEGRADED = "Not every judge could answer: this is a grade to be less sure of.";

/**
 * Say how far the essay has come.
 *
 * @param {HTMLElement} element
 * @param {"on-its-way" | "queued" | "grading" | "at-once" | "delayed"} stage
 * @param {number} position in the queue, 1 is next
 */
export function showGrading(element, stage, position = 0) {
  const [title, note] = {
    "on-its-way": ["Handing in…", "It is kept here, and is sent until it has arrived."],
    queued: [`Queued, position ${position}`, SAFE],
    grading: ["Grading…", `${SAFE} This takes a few seconds.`],
    "at-once": ["Grading…", "This takes a few seconds. Keep this page open until it is done."],
    delayed: ["Still grading…", `${SAFE} It takes longer than usual.`],
  }[stage];
  element.hidden = false;
  element.replaceChildren(make("p", "grading", title), make("p", "grading-note", note));
}

/**
 * Show a grade.
 *
 * @param {HTMLElement} element
 * @param {object} grade the protocol's `grade` message
 * @param {string} text the essay as it was handed in
 * @param {number} handedInAt when, in ms since 1970
 * @param {(quote: string) => void} onEvidence a piece of evidence was asked for
 */
export function showGrade(element, grade, text, handedInAt, onEvidence) {
  element.hidden = false;
  const score = make("p", "score");
  score.append(make("strong", "", String(grade.score)), make("span", "", "of 100"));
  const criteria = make("ul", "criteria");
  criteria.append(...grade.criteria.map((criterion) => row(criterion, text, onEvidence)));
  element.replaceChildren(score);
  const agreement = agreementInWords(grade);
  if (agreement) element.append(make("p", "agreement", agreement));
  if (grade.interval) {
    element.append(make("p", "interval", intervalInWords(grade)));
  }
  if (grade.degraded) {
    element.append(make("p", "degraded", DEGRADED));
  }
  element.append(criteria);
  if (grade.feedback) {
    const first = make("p", "improve");
    first.append(make("span", "improve-label", "Improve first"), ` ${grade.feedback}`);
    element.append(first);
  }
  element.append(
    make(
      "p",
      "judges",
      `Handed in ${when(handedInAt)} with ${counted(countWords(text), "word")}, ` +
        `read by ${counted(grade.judges, "judge")}.`,
    ),
  );
}

/** The grade in one sentence, for those who hear the page. */
export function gradeInWords(grade) {
  const bands = grade.criteria.map(({ label, band, band_max: max }) => `${label} ${band} of ${max}`);
  const parts = [`Graded: ${grade.score} of 100.`, `${bands.join(", ")}.`, agreementInWords(grade)];
  if (grade.degraded) parts.push(DEGRADED);
  return parts.filter(Boolean).join(" ");
}

/** How far the judges agree; nothing where it was one alone. */
function agreementInWords({ judges, bands_apart: apart }) {
  if (apart === undefined) return "";
  if (apart === 0) {
    return `${judges === 2 ? "Both" : `All ${judges}`} judges agree on every criterion.`;
  }
  if (apart === 1) return "The judges are never more than one band apart.";
  const rough = apart > APART_MAX ? ": take the score as a rough one" : "";
  return `The judges are up to ${apart} bands apart${rough}.`;
}

/** How sure the score is, in words that promise no more than was measured. */
function intervalInWords({ interval: [low, high], coverage }) {
  const often = Math.round(coverage * 100);
  return `In ${often} of 100 cases a teacher's score lies between ${low} and ${high}.`;
}

function row({ label, name, band, band_max: max, evidence, reason }, text, onEvidence) {
  const item = make("li", "criterion-row");
  item.dataset.ink = inkOf(`${name} ${label}`);
  const head = make("div", "criterion-head");
  const bar = make("span", "band");
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", `band ${band} of ${max}`);
  for (let step = 1; step <= max; step += 1) bar.append(make("i", step <= band ? "on" : ""));
  head.append(make("h3", "criterion", label), bar);
  const why = make("p", "reason", reason);
  why.dir = "auto";
  item.append(head, why);
  if (evidence) {
    const quote = make("button", "quote", evidence);
    quote.type = "button";
    quote.dir = "auto";
    quote.title = "Show it in the text";
    quote.disabled = !locate(evidence, text);
    quote.addEventListener("click", () => onEvidence(evidence));
    item.append(quote);
  }
  return item;
}

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}
