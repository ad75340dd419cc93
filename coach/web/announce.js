// What those who hear the page are told: politely, and never faster than it can be read out.

const GAP_MS = 3_000;

export class Announcer {
  #element;
  #waiting = new Map(); // by topic, in order of their first mention
  #timer = 0;

  /** @param {HTMLElement} element a live region */
  constructor(element) {
    this.#element = element;
  }

  /** Say `words`; they replace what still waits to be said about the same `topic`. */
  say(words, topic = words) {
    this.#waiting.set(topic, words);
    if (!this.#timer) this.#speak();
  }

  #speak() {
    this.#timer = 0;
    if (this.#waiting.size === 0) return;
    this.#element.textContent = [...this.#waiting.values()].join(" ");
    this.#waiting.clear();
    this.#timer = setTimeout(() => this.#speak(), GAP_MS);
  }
}
