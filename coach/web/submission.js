// An essay that is handed in: kept until it has arrived, sent until it is graded.

import { gradeInWords, showGrade, showGrading } from "./grade.js";
import { freshId, keep, recall } from "./storage.js";
import { whyNoGrade } from "./words.js";

export class Submission {
  #page;
  #link;
  #announcer;
  #pending = recall("submission"); // {id, assignment, text, at}: handed in, not graded yet
  #graded = "";
  #timer = 0;

  /**
   * @param {object} page
   *   grade: where it is shown · trouble(words): what went wrong, "" for nothing ·
   *   onEvidence(quote): a quote was asked for · onGrade(): a grade has come
   * @param {Link} link
   * @param {Announcer} announcer
   */
  constructor(page, link, announcer) {
    this.#page = page;
    this.#link = link;
    this.#announcer = announcer;
  }

  /** Whether an essay waits for its grade. */
  get pending() {
    return this.#pending !== null;
  }

  /** The assignment of the essay that waits for its grade. */
  get assignment() {
    return this.#pending?.assignment;
  }

  /** The text whose grade is shown, or "". */
  get graded() {
    return this.#graded;
  }

  /** Hand an essay in. Returns false, and says why, where it is too large. */
  handIn(assignment, text) {
    this.#pending = { id: freshId("e"), assignment, text, at: Date.now() };
    keep("submission", this.#pending);
    if (!this.send()) {
      this.#forget();
      this.#page.trouble(whyNoGrade({ code: "too_large" }, 0));
      return false;
    }
    this.#page.trouble("");
    showGrading(this.#page.grade, "on-its-way");
    this.#announcer.say("Handing in.", "grade");
    return true;
  }

  /** Send it again, as after a reconnect: the same id gives the same answer. */
  send() {
    clearTimeout(this.#timer);
    if (!this.#pending) return true;
    const { id, assignment, text } = this.#pending;
    return this.#link.send({ type: "submit", submission: id, assignment, text });
  }

  /**
   * Another tab has handed in, or shows a grade: so does this one, on the same `assignment`.
   *
   * @returns {boolean} whether it was about that
   */
  takeOver(name, before, now, assignment) {
    if (name !== "submission" && name !== `grade.${assignment}`) return false;
    if (name === "submission") {
      if (now !== null) {
        if (this.#pending) return true; // two essays of two tabs: each waits for its own
        this.#pending = now;
      } else if (this.#pending?.id === before?.id) {
        clearTimeout(this.#timer);
        this.#pending = null;
      }
    }
    this.recall(assignment);
    return true;
  }

  /** What the server says about a submission. */
  receive(message) {
    if (message.submission !== this.#pending?.id) return;
    if (message.type === "queued") {
      showGrading(this.#page.grade, "queued", message.position);
      this.#announcer.say(`Your essay is in the queue, position ${message.position}.`, "grade");
    } else if (message.type === "grading") {
      // without the queue nothing is on disk before the grade is: then it is not called safe
      const isKept = !message.flags_off?.includes("queue");
      const isLate = isKept && message.delayed;
      showGrading(this.#page.grade, isLate ? "delayed" : isKept ? "grading" : "at-once");
      this.#announcer.say(
        isLate
          ? "Grading takes longer than usual. Your essay is safe."
          : "Your essay is handed in and being graded.",
        "grade",
      );
      this.#page.trouble("");
    } else if (message.type === "grade") {
      this.#receiveGrade(message);
    } else if (message.type === "error") {
      this.#fail(message);
    }
  }

  /** Show how the essay of an assignment stands: on its way, graded, or not handed in. */
  recall(assignment) {
    const kept = recall(`grade.${assignment}`);
    this.#graded = "";
    this.#page.grade.hidden = true;
    if (this.#pending) showGrading(this.#page.grade, "on-its-way");
    else if (kept) this.#show(kept);
  }

  #receiveGrade(grade) {
    const { assignment, text, at } = this.#pending;
    keep(`grade.${assignment}`, { grade, text, at });
    this.#forget();
    this.#show({ grade, text, at });
    this.#announcer.say(gradeInWords(grade), "grade");
    this.#page.trouble("");
    this.#page.onGrade();
  }

  #show({ grade, text, at }) {
    this.#graded = text;
    showGrade(this.#page.grade, grade, text, at, this.#page.onEvidence);
  }

  #fail(message) {
    const retryMs = message.retry_after_ms ? message.retry_after_ms + Math.random() * 1_000 : 0;
    this.#page.trouble(whyNoGrade(message, retryMs));
    if (retryMs) {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.send(), retryMs);
      return;
    }
    const { assignment } = this.#pending;
    this.#forget();
    this.recall(assignment);
  }

  #forget() {
    clearTimeout(this.#timer);
    this.#pending = null;
    keep("submission", null);
  }
}
