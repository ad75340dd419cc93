// How essays are graded, at hand while one writes.

import { inkOf } from "./feedback.js";
import { keep, recall } from "./storage.js";

const ANSWER_MS_MAX = 10_000;

export class Rubric {
  #element;
  #criteria = [];

  /** @param {HTMLDetailsElement} element where it can be unfolded */
  constructor(element) {
    this.#element = element;
    this.#show(recall("rubric", []));
  }

  /** What essays are graded on, in the students' words. */
  get labels() {
    return this.#criteria.map(({ label }) => label);
  }

  /** Ask the server; what is kept on this device serves until it has answered. */
  async load() {
    try {
      const response = await fetch("/api/rubric", { signal: AbortSignal.timeout?.(ANSWER_MS_MAX) });
      if (!response.ok) return;
      const { criteria } = await response.json();
      if (!criteria?.length) return;
      keep("rubric", criteria);
      this.#show(criteria);
    } catch {
      // what is kept serves
    }
  }

  #show(criteria) {
    this.#criteria = criteria;
    this.#element.hidden = criteria.length === 0;
    this.#element.querySelector(".rubric-criteria").replaceChildren(...criteria.map(item));
  }
}

/** A criterion, its share of the score, and what is said of each band, the best first. */
function item({ name, label, weight, bands }) {
  const element = document.createElement("details");
  element.dataset.ink = inkOf(`${name} ${label}`);
  const head = document.createElement("summary");
  const criterion = document.createElement("span");
  criterion.className = "criterion";
  criterion.textContent = label;
  head.append(criterion, ` ${weight} %`);
  const list = document.createElement("ol");
  list.reversed = true;
  list.start = bands.length - 1;
  list.append(
    ...[...bands].reverse().map((anchor) => {
      const line = document.createElement("li");
      line.textContent = anchor;
      return line;
    }),
  );
  element.append(head, list);
  return element;
}
