// The student's text: what changed since the server last heard, and the underlines beneath it.

/** Replace lone surrogates, which no UTF-8 can carry; the length stays the same. */
export function wellFormed(text) {
  return text.replace(/\p{Surrogate}/gu, "\ufffd");
}

/**
 * The smallest single splice [at, delete, insert] that makes `after` of `before`, in UTF-16 units;
 * null when they are equal. Never cuts a surrogate pair in two.
 */
export function splice(before, after) {
  if (before === after) return null;
  const shorter = Math.min(before.length, after.length);
  let head = 0;
  while (head < shorter && before[head] === after[head]) head += 1;
  if (isHighSurrogate(before, head - 1)) head -= 1;
  let tail = 0;
  while (
    tail < shorter - head &&
    before[before.length - 1 - tail] === after[after.length - 1 - tail]
  ) {
    tail += 1;
  }
  if (isLowSurrogate(before, before.length - tail)) tail -= 1;
  return [head, before.length - head - tail, after.slice(head, after.length - tail)];
}

function isHighSurrogate(text, at) {
  const unit = text.charCodeAt(at);
  return unit >= 0xd800 && unit <= 0xdbff;
}

function isLowSurrogate(text, at) {
  const unit = text.charCodeAt(at);
  return unit >= 0xdc00 && unit <= 0xdfff;
}

/** Words as a student counts them. */
export function countWords(text) {
  return text.match(/[\p{L}\p{N}][\p{L}\p{N}\p{M}'’-]*/gu)?.length ?? 0;
}

const WORDS_MIN = 8;
const UNITS_MIN = 24;

/** Whether a reader would have something new to say about `after`, having read `before`. */
export function isMeaningful(before, after) {
  const change = splice(before.trim(), after.trim());
  if (!change || countWords(after) < WORDS_MIN) return false;
  const [, deleted, inserted] = change;
  return deleted + inserted.length >= UNITS_MIN || /[.!?…]["'”’)]*$/.test(inserted.trim());
}

/** Tells the server about edits: one splice for all typing since the last one. */
export class DraftSync {
  #sent = "";
  #rev = 0;

  /** @param {(message: object) => boolean} send */
  constructor(send) {
    this.send = send;
    this.draft = "";
  }

  /** Whether the server has everything in `text`. */
  has(text) {
    return this.#sent === wellFormed(text);
  }

  /** Send the whole text, as after a reconnect or when server and page disagree. */
  resend(text) {
    const whole = wellFormed(text);
    const message = { type: "draft", draft: this.draft, rev: this.#rev + 1, text: whole };
    if (!this.send(message)) return;
    this.#rev += 1;
    this.#sent = whole;
  }

  /** Send what changed since the last time, if anything did. */
  flush(text) {
    const now = wellFormed(text);
    const change = splice(this.#sent, now);
    if (!change) return;
    const edit = { type: "edit", draft: this.draft, rev: this.#rev + 1, splices: [change] };
    if (!this.send(edit)) return;
    this.#rev += 1;
    this.#sent = now;
  }

  /** Go on with another draft, of which the server has nothing yet. */
  switchTo(draft, text) {
    this.draft = draft;
    this.#sent = "";
    this.resend(text);
  }
}

/**
 * Where `quote` stands in `text`: [start, end) or null. White space and the shapes of quotation
 * marks and dashes may differ, as models write them differently.
 */
export function locate(quote, text) {
  const trimmed = quote.trim().replace(/(?:\.\.\.|…)$/, "").trim();
  if (trimmed.length < 2) return null;
  const exact = text.indexOf(trimmed);
  if (exact >= 0) return [exact, exact + trimmed.length];
  const pattern = trimmed
    .replace(/[.*+?^${}()|[\]\\]/g, "\\$&")
    .replace(/\s+/g, "\\s+")
    .replace(/['‘’‛`´]/g, "['‘’‛`´]")
    .replace(/["“”„«»]/g, '["“”„«»]')
    .replace(/[-‐–—]/g, "[-‐–—]");
  const found = new RegExp(pattern, "iu").exec(text);
  return found ? [found.index, found.index + found[0].length] : null;
}

/**
 * Draw underlines beneath the text area: the same text again, transparent, with marks.
 *
 * @param {HTMLElement} element lies exactly below the text area and gives it its height
 * @param {{start: number, end: number, ink: string, key: string}[]} ranges may overlap; the
 *   earlier one wins
 */
export function underline(element, text, ranges) {
  const sorted = [...ranges].sort((a, b) => a.start - b.start);
  const pieces = [];
  let at = 0;
  for (const range of sorted) {
    if (range.start < at) continue;
    pieces.push(text.slice(at, range.start));
    const mark = document.createElement("mark");
    mark.dataset.ink = range.ink;
    mark.dataset.key = range.key;
    mark.textContent = text.slice(range.start, range.end);
    pieces.push(mark);
    at = range.end;
  }
  // The last line needs something on it to have a height.
  element.replaceChildren(...pieces, text.slice(at) + "\u200b");
}
