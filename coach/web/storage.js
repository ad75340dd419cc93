// What stays on this device. Private windows and full disks may refuse: then nothing is kept.

const PREFIX = "coach.";

/** Read a value kept earlier; `fallback` where there is none. */
export function recall(name, fallback = null) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
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

/** Hear of values that another tab keeps. */
export function watch(onKept) {
  window.addEventListener("storage", ({ key }) => {
    if (key?.startsWith(PREFIX)) onKept(key.slice(PREFIX.length));
  });
}

/** A short random identifier in the protocol's alphabet. */
export function freshId(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return prefix + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
