// The student's text: what changed since the server last heard, and the underlines beneath it.

/** Replace lone surrogates, which no UTF-8 can carry; the length stays the same. */
export function wellFormed(text) {
  return text.toWellFormed?.() ?? text.replace(/\p{Surrogate}/gu, "\ufffd");
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

/**
 * Make of `mine` what it is with another page's change as well, of `before` to `theirs`. Whoever of
 * the two merges comes to the same text. Where both have written at the same place both wordings
 * stay, one behind the other: nobody's words are lost.
 */
export function merged(before, mine, theirs) {
  const [ours, others] = [splice(before, mine), splice(before, theirs)];
  if (!others) return mine;
  if (!ours || mine === theirs) return theirs;
  const [first, second] = [ours, others].sort(byPlace);
  const [firstEnd, secondEnd] = [first, second].map(([at, deleted]) => at + deleted);
  const between = firstEnd <= second[0] ? before.slice(firstEnd, second[0]) : "";
  const end = Math.max(firstEnd, secondEnd);
  return before.slice(0, first[0]) + first[2] + between + second[2] + before.slice(end);
}

function byPlace([at, deleted, inserted], [otherAt, otherDeleted, otherInserted]) {
  return at - otherAt || deleted - otherDeleted || (inserted < otherInserted ? -1 : 1);
}

const WORD = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}]|[\p{L}\p{N}][\p{L}\p{N}\p{M}'’-]*/gu;

let counted = { text: "", words: 0 }; // the last text: several ask about it

/**
 * Words as a student counts them; scripts without spaces count by characters, as is the custom.
 *
 * Of a text that differs from the last one only the words around the change are counted anew.
 */
export function countWords(text) {
  const change = splice(counted.text, text);
  if (!change) return counted.words;
  const [at, deleted, inserted] = change;
  let start = at;
  while (start > 0 && !isGap(text, start - 1)) start -= 1;
  let end = at + inserted.length;
  while (end < text.length && !isGap(text, end)) end += 1;
  const before = counted.text.slice(start, end - inserted.length + deleted);
  const words = counted.words - wordsIn(before) + wordsIn(text.slice(start, end));
  counted = { text, words };
  return words;
}

function wordsIn(text) {
  return text.match(WORD)?.length ?? 0;
}

// Where no word goes on.
function isGap(text, at) {
  return text[at] === " " || text[at] === "\n";
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

// A message holds 262,144 bytes, and JSON may spend six of them on one unit of text.
const PIECE_UNITS_MAX = 40_000;

/** Cut `text` into pieces that fit into a message each; at least one, and no pair cut in two. */
export function pieces(text) {
  const cut = [];
  let at = 0;
  do {
    let end = Math.min(at + PIECE_UNITS_MAX, text.length);
    if (end < text.length && isHighSurrogate(text, end - 1)) end -= 1;
    cut.push(text.slice(at, end));
    at = end;
  } while (at < text.length);
  return cut;
}

/** Tells the server about edits: one splice for all typing since the last one. */
export class DraftSync {
  #sent = "";
  #rev = 0;

  /** @param {(message: object) => boolean} send */
  constructor(send) {
    this.send = send;
    this.draft = "desk"; // one is enough: only what lies on the desk is read
  }

  /** Send the whole text, as after a reconnect or when server and page disagree. */
  resend(text) {
    const [first, ...rest] = pieces(wellFormed(text));
    const message = { type: "draft", draft: this.draft, rev: this.#rev + 1, text: first };
    if (!this.send(message)) return;
    this.#rev += 1;
    this.#sent = first;
    if (rest.length > 0) this.flush(text);
  }

  /** Send what changed since the last time, if anything did. */
  flush(text) {
    const now = wellFormed(text);
    const change = splice(this.#sent, now);
    if (!change) return;
    let [at, remove] = change;
    for (const insert of pieces(change[2])) {
      const splices = [[at, remove, insert]];
      if (!this.send({ type: "edit", draft: this.draft, rev: this.#rev + 1, splices })) return;
      this.#rev += 1;
      at += insert.length;
      remove = 0;
    }
    this.#sent = now;
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
 * Where `range` of the old text stands after one change of it; null if the change touches it.
 *
 * @param {[number, number]} range
 * @param {[number, number, string]} change a splice
 */
export function moved([start, end], [at, remove, insert]) {
  if (end <= at) return [start, end];
  const by = insert.length - remove;
  return start >= at + remove ? [start + by, end + by] : null;
}

/**
 * Underlines beneath the text area: the same text again, transparent, with marks.
 *
 * Each paragraph is a block of its own, and only those that differ are made anew: of a long text a
 * keystroke lays out one paragraph, not all.
 */
export class Underlines {
  #element;
  #drawn = []; // of each paragraph: what was drawn

  /** @param {HTMLElement} element lies exactly below the text area and gives it its height */
  constructor(element) {
    this.#element = element;
  }

  /**
   * @param {{start: number, end: number, ink: string, key: string}[]} ranges may overlap; the
   *   earlier one wins
   */
  draw(text, ranges) {
    const now = paragraphs(text, ranges);
    const before = this.#drawn;
    const shorter = Math.min(before.length, now.length);
    let head = 0;
    while (head < shorter && isSame(before[head], now[head])) head += 1;
    let tail = 0;
    while (
      tail < shorter - head &&
      isSame(before[before.length - 1 - tail], now[now.length - 1 - tail])
    ) {
      tail += 1;
    }
    const blocks = this.#element.children;
    for (let gone = before.length - head - tail; gone > 0; gone -= 1) blocks[head].remove();
    const next = blocks[head] ?? null;
    for (const paragraph of now.slice(head, now.length - tail)) {
      this.#element.insertBefore(block(paragraph), next);
    }
    this.#drawn = now;
  }

  /** The marks on the page; one for each paragraph that a range touches. */
  get marks() {
    return this.#element.querySelectorAll("mark");
  }
}

/** Cut `text` at its line ends, and each range with it. */
function paragraphs(text, ranges) {
  const free = [];
  for (const range of [...ranges].sort((a, b) => a.start - b.start)) {
    if (range.start >= (free.at(-1)?.end ?? 0)) free.push(range);
  }
  const cut = [];
  let at = 0;
  let next = 0;
  for (const line of text.split("\n")) {
    const end = at + line.length;
    const marks = [];
    while (next < free.length && free[next].start < end) {
      const { start, end: stop, ink, key } = free[next];
      if (stop > at) {
        marks.push({ start: Math.max(start, at) - at, end: Math.min(stop, end) - at, ink, key });
      }
      if (stop > end) break; // it goes on in the next paragraph
      next += 1;
    }
    cut.push({ line, marks });
    at = end + 1;
  }
  return cut;
}

function isSame(a, b) {
  return (
    a.line === b.line &&
    a.marks.length === b.marks.length &&
    a.marks.every((mark, index) => {
      const other = b.marks[index];
      return (
        mark.start === other.start && mark.end === other.end &&
        mark.ink === other.ink && mark.key === other.key
      );
    })
  );
}

function block({ line, marks }) {
  const element = document.createElement("p");
  let at = 0;
  for (const { start, end, ink, key } of marks) {
    const mark = document.createElement("mark");
    mark.dataset.ink = ink;
    mark.dataset.key = key;
    mark.textContent = line.slice(start, end);
    mark.classList.toggle("spaced", /\s\s|\t/.test(mark.textContent));
    element.append(line.slice(at, start), mark);
    at = end;
  }
  // An empty line needs something on it to have a height.
  element.append(line.slice(at) || (at === 0 ? "\u200b" : ""));
  return element;
}
