// Feedback as it streams: lines "[Criterion] «quote» comment" become notes in the margin.

import { locate, moved, splice } from "./editor.js";

const LINE = /^\s*(?:[-*•]\s*)?\[([^\]\n]{1,40})\]\s*(?:[«"“„]([^«»"“”„\n]{1,300})[»"”“]\s*)?(.*)$/;

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
  #notes = [];
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

  /** Drop everything. */
  clear() {
    this.#notes = [];
    this.#announced = 0;
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
    this.#notes = notes.map((note, index) => {
      const before = this.#notes[index];
      const range = before?.quote === note.quote ? before.range : null;
      return { ...note, key: `n${index}`, range, anchored: before?.anchored ?? false };
    });
    while (this.#list.children.length > notes.length) this.#list.lastChild.remove();
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
    const item = this.#list.children[index] ?? this.#add();
    item.dataset.key = note.key;
    item.classList.toggle("streaming", !note.complete);
    this.write(item, note);
    write(item.querySelector(".quote"), note.quote);
  }

  #add() {
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
    this.#list.append(item);
    return item;
  }

  #choose(item) {
    const note = this.#notes[[...this.#list.children].indexOf(item)];
    if (note?.range) this.#onChoose({ start: note.range[0], end: note.range[1] });
  }
}

// Append to the text node that is there: the selection survives and nothing is laid out twice.
function write(element, text) {
  const node = element.firstChild;
  if (!node) element.textContent = text;
  else if (node.data !== text && text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else if (node.data !== text) node.data = text;
}
