// What was said earlier: the finished readings of an assignment, kept on this device.

import { countWords, locate } from "./editor.js";
import { inkOf, parseFeedback } from "./feedback.js";
import { keep, recall } from "./storage.js";
import { counted, when } from "./words.js";

const TURNS_MAX = 20;

/** Earlier readings, folded away under the notes; the newest one is the notes themselves. */
export class History {
  #element;
  #onQuote;
  #turns = [];
  #text = () => "";

  /**
   * @param {HTMLDetailsElement} element
   * @param {() => string} text the student's, as it is now
   * @param {(quote: string) => void} onQuote a quote was asked for
   */
  constructor(element, text, onQuote) {
    this.#element = element;
    this.#text = text;
    this.#onQuote = onQuote;
    element.addEventListener("toggle", () => this.#draw());
  }

  /** Lay out those of an assignment. */
  take(assignment) {
    this.#turns = recall(`turns.${assignment}`, []);
    this.#element.open = false;
    this.#draw();
  }

  /** A reading has ended. */
  add(assignment, { feedback, read }) {
    if (!feedback.trim()) return;
    this.#turns = [...this.#turns, { at: Date.now(), feedback, words: countWords(read) }].slice(-TURNS_MAX);
    keep(`turns.${assignment}`, this.#turns);
    this.#draw();
  }

  #draw() {
    const earlier = this.#turns.slice(0, -1).reverse();
    this.#element.hidden = earlier.length === 0;
    const [summary, list] = this.#element.children;
    summary.textContent = counted(earlier.length, "earlier reading");
    list.replaceChildren(...(this.#element.open ? earlier.map((turn) => this.#item(turn)) : []));
  }

  #item({ at, feedback, words }) {
    const item = document.createElement("li");
    const head = document.createElement("h3");
    const moment = when(at);
    head.textContent = `${moment[0].toUpperCase()}${moment.slice(1)}, ${counted(words, "word")}`;
    const notes = document.createElement("ul");
    notes.append(...parseFeedback(feedback, true).map((note) => this.#note(note)));
    item.append(head, notes);
    return item;
  }

  #note({ criterion, quote, comment }) {
    const item = document.createElement("li");
    item.dataset.ink = inkOf(criterion);
    item.dir = "auto";
    const name = document.createElement("span");
    name.className = "criterion";
    name.textContent = criterion || "Note";
    item.append(name, " ");
    if (quote) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "quote";
      button.dir = "auto";
      button.title = "Show it in the text";
      button.textContent = quote;
      button.disabled = !locate(quote, this.#text());
      button.addEventListener("click", () => this.#onQuote(quote));
      item.append(button, " ");
    }
    item.append(comment);
    return item;
  }
}
