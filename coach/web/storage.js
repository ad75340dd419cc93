// What stays on this device. Private windows and full disks may refuse: then nothing is kept.

const PREFIX = "coach.";

/** Read a value kept earlier; `fallback` where there is none. */
export function recall(name, fallback = null) {
  try {
    return read(localStorage.getItem(PREFIX + name)) ?? fallback;
  } catch {
    return fallback;
  }
}

function read(text) {
  return text === null ? null : JSON.parse(text);
}

/** Keep a value; null forgets it. Returns whether it was kept. */
export function keep(name, value) {
  try {
    if (value === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/**
 * Hear of values that another tab keeps.
 *
 * @param {(name: string, before: any, now: any) => void} onKept null: there is or was none
 */
export function watch(onKept) {
  window.addEventListener("storage", ({ key, oldValue, newValue }) => {
    if (!key?.startsWith(PREFIX)) return;
    try {
      onKept(key.slice(PREFIX.length), read(oldValue), read(newValue));
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error; // somebody else's
    }
  });
}

/** A short random identifier in the protocol's alphabet. */
export function freshId(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return prefix + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
