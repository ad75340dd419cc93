// What the page says to the student, in the student's language.

// Limits are over within a minute; what takes longer is something else, and says what.
const LIMIT_MS = 120_000;

export const LINK_WORDS = {
  connecting: "connecting…",
  online: "connected",
  reconnecting: "reconnecting… nothing is lost",
  busy: "coach is busy – trying again",
  offline: "offline – your text is kept here",
  refused: "please come in through your school's page",
};

/** Why there is no feedback. `retryMs`: when it will be asked for again; 0 if it will not. */
export function whyNoFeedback({ code, message }, retryMs) {
  const again = retryMs ? ` I will ask again ${soon(retryMs)}.` : "";
  switch (code) {
    case "rate_limited":
      if (!retryMs) return `No feedback now: ${message}.`;
      return `That was a lot of reading in a short time: a little pause.${again}`;
    case "overloaded":
      return `Many students are writing just now; your text is safe.${again}`;
    case "provider_unavailable":
      return `The reader is not answering just now; your text is safe.${again}`;
    case "interrupted":
      return retryMs ? "Interrupted, asking again…" : "The reader was interrupted.";
    case "too_large":
      return "This text is longer than coach can read in one piece.";
    case "forbidden":
      return "The reader may not comment on this text.";
    case "internal":
      return `Something went wrong on our side; your text is safe.${again}`;
    default:
      return `This could not be read: ${message}.`;
  }
}

/** Why there is no grade. `retryMs`: when it will be handed in again; 0 if it will not. */
export function whyNoGrade({ code, message }, retryMs) {
  if (retryMs > LIMIT_MS) return `The grade has to wait: ${message}.`;
  if (retryMs) {
    const why = code === "rate_limited" ? "That was a lot in a short time." : "Coach is busy.";
    return `${why} Your essay is kept and will be handed in again ${soon(retryMs)}.`;
  }
  switch (code) {
    case "too_large":
      return "This essay is longer than coach can grade. Your text is safe.";
    case "conflict":
      return "This essay was handed in before with other words. Please hand it in again.";
    case "bad_message":
    case "forbidden":
      return `This essay could not be handed in: ${message}.`;
    default:
      return "Your essay could not be graded. Your text is safe: please hand it in again.";
  }
}

// Words that stay true while they stand there: nobody counts them down.
function soon(ms) {
  if (ms <= 10_000) return "in a few seconds";
  if (ms <= 60_000) return "within a minute";
  return `in about ${Math.ceil(ms / 60_000)} minutes`;
}

/** "about 6 s", or nothing where it is not known. */
export function eta(ms) {
  if (!ms) return "";
  const seconds = Math.max(1, Math.round(ms / 1_000));
  return seconds < 90 ? `about ${seconds} s` : `about ${Math.round(seconds / 60)} min`;
}

/** "1 note", "3 notes". */
export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** "one", "one and two", "one, two and three"; a name may have commas of its own. */
export function listed(names) {
  const comma = names.some((name) => name.includes(",")) ? "; " : ", ";
  return [names.slice(0, -1).join(comma), names.at(-1)].filter(Boolean).join(" and ");
}

/** A text's beginning and its end, where it has more than twice `units` of them. */
export function shortened(text, units) {
  if (text.length <= 2 * units) return text;
  const beginning = text.slice(0, units).replace(/\s+\S*$/, "");
  const end = text.slice(-units).replace(/^\S*\s+/, "");
  return `${beginning} … ${end}`.replace(/\p{Surrogate}/gu, ""); // halves that were cut
}

/** A moment, as one says it on the same day and later. */
export function when(ms) {
  const moment = new Date(ms);
  const time = moment.toLocaleTimeString("en", { hour: "numeric", minute: "2-digit" });
  const today = moment.toDateString() === new Date().toDateString();
  return today ? `at ${time}` : `on ${moment.toLocaleDateString("en", { day: "numeric", month: "long" })}`;
}
