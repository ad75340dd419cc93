// The grade: a score, and for each criterion the band, the evidence and the reason.

import { locate } from "./editor.js";
import { inkOf } from "./feedback.js";

/** Say that the essay is with the grader. `position` is its place in the queue, where known. */
export function showGrading(element, position) {
  element.hidden = false;
  element.replaceChildren(
    make("p", "grading", position ? `Queued, position ${position}` : "Grading…"),
    make("p", "grading-note", "Your essay is handed in and safe. This takes a few seconds."),
  );
}

/**
 * Show a grade.
 *
 * @param {HTMLElement} element
 * @param {object} grade the protocol's `grade` message
 * @param {string} text the essay as it was handed in
 * @param {(quote: string) => void} onEvidence a piece of evidence was asked for
 */
export function showGrade(element, grade, text, onEvidence) {
  element.hidden = false;
  const score = make("p", "score");
  score.append(make("strong", "", String(grade.score)), make("span", "", "of 100"));
  const criteria = make("ul", "criteria");
  criteria.append(...grade.criteria.map((criterion) => row(criterion, text, onEvidence)));
  element.replaceChildren(score);
  if (grade.degraded) {
    element.append(
      make("p", "degraded", "One of the judges could not answer in time; the others agreed on this."),
    );
  }
  element.append(criteria);
  if (grade.feedback) {
    const first = make("p", "improve");
    first.append(make("span", "improve-label", "Improve first"), ` ${grade.feedback}`);
    element.append(first);
  }
  element.append(
    make("p", "judges", grade.judges === 1 ? "Read by one judge." : `Read by ${grade.judges} judges.`),
  );
}

/** The grade in one sentence, for those who hear the page. */
export function gradeInWords(grade) {
  const bands = grade.criteria.map(({ label, band, band_max: max }) => `${label} ${band} of ${max}`);
  return `Graded: ${grade.score} of 100. ${bands.join(", ")}.`;
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
  item.append(head, make("p", "reason", reason));
  if (evidence) {
    const quote = make("button", "quote", evidence);
    quote.type = "button";
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
