// Feedback as it streams: lines "[Criterion] «quote» comment" become notes in the margin.

import { locate, moved, splice } from "./editor.js";

const LINE = /^\s*(?:[-*•]\s*)?\[([^\]\n]{1,40})\]\s*(?:[«"“„]([^«»"“”„\n]{1,300})[»"”“]\s*)?(.*)$/;

const KEPT_MAX = 7; // notes of before that stay below new ones

const INKS = [
  ["content", /content|idea|argument|evidence|detail/i],
  ["structure", /structure|organi[sz]|paragraph|coheren|flow/i],
  ["language", /language|style|word|vocab|voice|sentence/i],
  ["mechanics", /spell|grammar|punct|mechanic|convention/i],
  ["next", /next|first|try/i],
];

/** The colour in which a criterion is written. */
export function inkOf(criterion) {
  return INKS.find(([, pattern]) => pattern.test(criterion))?.[0] ?? "general";
}

/**
 * Split feedback that may still be streaming into notes.
 *
 * A line counts as soon as its criterion and its quote are complete; until then it is held back,
 * so that no half bracket flickers on the page.
 *
 * @returns {{criterion: string, quote: string, comment: string, complete: boolean}[]}
 */
export function parseFeedback(text, ended) {
  const lines = text.split("\n");
  const notes = [];
  lines.forEach((line, index) => {
    const complete = ended || index < lines.length - 1;
    if (!line.trim() || (!complete && isHead(line))) return;
    const match = LINE.exec(line);
    if (match) {
      const [, criterion, quote = "", comment] = match;
      notes.push({ criterion: criterion.trim(), quote, comment: comment.trim(), complete });
    } else if (notes.length > 0 && /^\s/.test(line)) {
      notes.at(-1).comment += " " + line.trim();
    } else {
      notes.push({ criterion: "", quote: "", comment: line.trim(), complete });
    }
  });
  return notes;
}

// Whether a line that is still growing could be only the beginning of "[Criterion] «quote»".
function isHead(line) {
  return /^\s*(?:[-*•]\s*)?(?:\[[^\]]*)?$/.test(line) || /^[^\]]*\]\s*(?:[«"“„][^»"”“]*)?$/.test(line);
}

/** The notes on the page. */
export class Notes {
  #list;
  #announcer;
  #onChoose;
  #notes = []; // those of the newest answer, then those of before that stay
  #fresh = 0; // so many are of the newest answer
  #kept = []; // those that stay
  #keptFor = ""; // the request whose answer they stay below
  #text = ""; // in which the quotes were looked for
  #announced = 0;

  /**
   * @param {HTMLElement} list where the notes are shown
   * @param {{say: (words: string) => void}} announcer hears each finished note once
   * @param {(range: {start: number, end: number}) => void} onChoose a note's quote was asked for
   */
  constructor(list, announcer, onChoose) {
    this.#list = list;
    this.#announcer = announcer;
    this.#onChoose = onChoose;
  }

  get count() {
    return this.#notes.length;
  }

  /** A new answer begins: what is shown is old, and goes when the first new note comes. */
  age() {
    this.#list.classList.add("old");
  }

  /**
   * A new answer adds to what is shown: the notes whose words still stand stay, below the new ones.
   * Said again of the same request, its notes go: the answer begins anew.
   */
  stay(request) {
    if (this.#keptFor !== request) {
      this.#kept = this.#notes.filter((note) => note.range).slice(0, KEPT_MAX);
      this.#keptFor = request;
    }
    const items = [...this.#list.children];
    this.#notes.forEach((note, index) => {
      if (!this.#kept.includes(note)) items[index].remove();
    });
    this.#list.classList.remove("old");
    this.#notes = this.#kept;
    this.#fresh = this.#announced = 0;
  }

  /** What is shown, as feedback. */
  get feedback() {
    return this.#notes.map(lineOf).join("\n");
  }

  /** Drop everything. */
  clear() {
    this.#notes = this.#kept = [];
    this.#fresh = this.#announced = 0;
    this.#list.replaceChildren();
    this.#list.classList.remove("old");
  }

  /** Show the answer so far, and where its quotes stand in the student's `text`. */
  show(feedback, ended, text) {
    const notes = parseFeedback(feedback, ended);
    if (notes.length === 0) {
      if (ended) this.#list.classList.remove("old"); // nothing newer has come
      return;
    }
    if (this.#list.classList.contains("old")) this.clear();
    const fresh = notes.map((note, index) => {
      const before = index < this.#fresh ? this.#notes[index] : null;
      const range = before?.quote === note.quote ? before.range : null;
      return { ...note, range, anchored: before?.anchored ?? false };
    });
    for (; this.#fresh < fresh.length; this.#fresh += 1) this.#add(this.#fresh);
    for (; this.#fresh > fresh.length; this.#fresh -= 1) this.#list.children[this.#fresh - 1].remove();
    this.#notes = [...fresh, ...this.#kept];
    this.#notes.forEach((note, index) => this.#draw(note, index));
    this.follow(text);
    this.find();
    for (const note of notes.slice(this.#announced)) {
      if (!note.complete) break;
      this.#announced += 1;
      const about = note.quote ? ` about “${note.quote}”` : "";
      this.#announcer.say(`${note.criterion || "Note"}${about}: ${note.comment}`);
    }
  }

  /** Show what was said earlier, without saying it again. */
  restore(feedback, text) {
    this.clear();
    this.#announced = Infinity;
    this.show(feedback, true, text);
  }

  /**
   * The text has changed: the quotes move along with it. A note whose words were edited away fades;
   * one whose quote never stood in the text is a general one, and its quote is not shown.
   */
  follow(text) {
    const change = splice(this.#text, text);
    this.#text = text;
    if (!change) return;
    for (const note of this.#notes) {
      if (note.range) note.range = moved(note.range, change) ?? locate(note.quote, text);
    }
    this.#mark();
  }

  /** Look for the quotes that stand nowhere: they may have been written again. */
  find() {
    for (const note of this.#notes) {
      if (!note.range && note.quote) note.range = locate(note.quote, this.#text);
    }
    this.#mark();
  }

  #mark() {
    this.#notes.forEach((note, index) => {
      note.anchored ||= note.range !== null;
      const item = this.#list.children[index];
      item.classList.toggle("anchored", note.range !== null);
      item.classList.toggle("gone", note.anchored && note.range === null);
      const quote = item.querySelector(".quote");
      quote.hidden = !note.anchored;
      quote.disabled = note.range === null;
    });
  }

  /** Ranges to underline in the text. */
  ranges() {
    return this.#notes
      .filter((note) => note.range)
      .map((note) => ({
        start: note.range[0],
        end: note.range[1],
        ink: inkOf(note.criterion),
        key: note.key,
      }));
  }

  /** Emphasise the note about the words at `caret`, bring it into view, and return it. */
  pointAt(caret, { reveal }) {
    const here = this.#notes.find(
      (note) => note.range && note.range[0] <= caret && caret <= note.range[1],
    );
    this.#notes.forEach((note, index) => {
      const item = this.#list.children[index];
      const turned = item.classList.toggle("here", note === here);
      if (turned && reveal) item.scrollIntoView({ block: "nearest" });
    });
    return here ?? null;
  }

  /** Write a note's criterion and comment into `item`, in the criterion's colour. */
  write(item, note) {
    item.dataset.ink = inkOf(note.criterion);
    write(item.querySelector(".criterion"), note.criterion || "Note");
    write(item.querySelector(".comment"), note.comment);
  }

  #draw(note, index) {
    const item = this.#list.children[index];
    note.key = item.dataset.key = `n${index}`;
    item.classList.toggle("streaming", !note.complete);
    this.write(item, note);
    write(item.querySelector(".quote"), note.quote);
  }

  #add(index) {
    const item = document.createElement("li");
    item.className = "note";
    const criterion = document.createElement("h3");
    criterion.className = "criterion";
    const quote = document.createElement("button");
    quote.type = "button";
    quote.className = "quote";
    quote.dir = "auto";
    quote.title = "Show it in the text";
    quote.addEventListener("click", () => this.#choose(item));
    const comment = document.createElement("p");
    comment.className = "comment";
    comment.dir = "auto";
    item.append(criterion, quote, comment);
    this.#list.insertBefore(item, this.#list.children[index] ?? null);
  }

  #choose(item) {
    const note = this.#notes[[...this.#list.children].indexOf(item)];
    if (note?.range) this.#onChoose({ start: note.range[0], end: note.range[1] });
  }
}

function lineOf({ criterion, quote, comment }) {
  return [criterion && `[${criterion}]`, quote && `«${quote}»`, comment].filter(Boolean).join(" ");
}

// Append to the text node that is there: the selection survives and nothing is laid out twice.
function write(element, text) {
  const node = element.firstChild;
  if (!node) element.textContent = text;
  else if (node.data !== text && text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else if (node.data !== text) node.data = text;
}
