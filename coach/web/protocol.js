// The connection to coach: protocol coach.v1 over a WebSocket that comes back by itself.
//
// States: connecting, online, reconnecting, busy (coach takes nobody in just now), offline (the
// device has no network), refused (this coach hands out no tokens: the student must come from
// elsewhere).

import { keep, recall } from "./storage.js";
import { claimsOf, takeToken } from "./token.js";

const SUBPROTOCOL = "coach.v1";
const BACKOFF_MS = 500;
const BACKOFF_MS_MAX = 10_000;
const ACK_MS = 1_000;
const WELCOME_MS_MAX = 10_000;
const TOKEN_MS_MAX = 10_000;
const ANSWER_MS_MAX = 15_000;
const ANSWERED = new Set(["feedback", "submit"]);
const TOKEN_MARGIN_S = 60;
const RENEW_MS_MIN = 10_000; // between two tries to get a newer token
const RENEW_MS_MAX = 86_400_000; // timers of a month and more fire at once

class Refused extends Error {}

export class Link {
  #socket = null;
  #welcomed = false;
  #session = null;
  #resume = null;
  #seq = 0;
  #acked = 0;
  #replayed = 0; // messages that were missed and are still to come
  #attempts = 0;
  #timer = 0;
  #patience = 0; // runs while the server owes an answer: a dead network says nothing
  #renewal = 0; // runs until the token is to be replaced by a newer one
  #wasOnline = false;
  #connecting = false;
  #busy = false; // coach has said so since the last welcome

  /**
   * @param {object} listener
   *   onState(state): the connection's state changed
   *   onWelcome(resumed, snapshot): messages can be sent, and everything that was missed was told;
   *     `resumed` when the old session goes on; `snapshot`: what the server has of it, where it
   *     cannot tell everything again
   *   onMessage(message): a message of the server, in order, each once
   */
  constructor(listener) {
    this.listener = listener;
    /** What the server accepts, from its last welcome. */
    this.limits = null;
    window.addEventListener("online", () => this.#hurry());
    window.addEventListener("offline", () => this.#drop());
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible" && !this.#socket) this.#hurry();
    });
    setInterval(() => this.#acknowledge(), ACK_MS);
  }

  /** Begin to connect; from then on the link looks after itself. */
  open() {
    bringToken();
    this.#connect();
  }

  /**
   * Send a message. Returns false, and sends nothing, while there is no session, or when the
   * message is larger than the server takes.
   */
  send(message) {
    // Between the server's goodbye and the end of the socket, what is sent would be lost.
    if (!this.#welcomed || this.#socket.readyState !== WebSocket.OPEN) return false;
    const text = JSON.stringify(message);
    if (!bytesAtMost(text, this.limits?.message_bytes ?? Infinity)) return false;
    this.#socket.send(text);
    if (ANSWERED.has(message.type)) this.#expect(ANSWER_MS_MAX);
    return true;
  }

  // Give the server `ms` to say anything at all.
  #expect(ms) {
    clearTimeout(this.#patience);
    this.#patience = setTimeout(() => this.#leave(), ms);
  }

  async #connect() {
    clearTimeout(this.#timer);
    if (this.#socket || this.#connecting) return;
    if (!navigator.onLine) {
      this.listener.onState("offline");
      return;
    }
    this.listener.onState(this.#state());
    this.#connecting = true;
    try {
      this.#greet(await studentToken());
    } catch (error) {
      if (error instanceof Refused) this.listener.onState("refused");
      else this.#retry();
    } finally {
      this.#connecting = false;
    }
  }

  #greet(token) {
    const url = new URL("/ws", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url, SUBPROTOCOL);
    this.#socket = socket;
    this.#expect(WELCOME_MS_MAX);
    socket.onopen = () => {
      const hello = { type: "hello", token };
      if (this.#resume) Object.assign(hello, { resume: this.#resume, last_seq: this.#seq });
      socket.send(JSON.stringify(hello));
    };
    socket.onmessage = (event) => {
      if (socket === this.#socket) this.#receive(JSON.parse(event.data));
    };
    socket.onclose = () => {
      if (socket === this.#socket) this.#lost();
    };
  }

  #receive(message) {
    if (message.type === "welcome") {
      this.#open(message);
      return;
    }
    if (!this.#welcomed) {
      if (message.code === "unauthenticated") keep("student", { ...recall("student"), expires_at: 0 });
      if (message.code === "bad_message") this.#resume = null;
      this.#busy = message.code === "overloaded" || message.code === "rate_limited";
      return; // a close follows
    }
    clearTimeout(this.#patience);
    if (message.seq <= this.#seq) return; // replayed, seen already
    if (message.seq !== this.#seq + 1) {
      this.#leave(); // something is missing: come back and ask for it
      return;
    }
    this.#seq = message.seq;
    if (message.type !== "draining") this.listener.onMessage(message); // a close follows that
    if (this.#replayed > 0) {
      this.#replayed -= 1;
      if (this.#replayed === 0) this.listener.onWelcome(true, null);
    }
  }

  #open(welcome) {
    clearTimeout(this.#patience);
    const resumed = welcome.session === this.#session;
    const snapshot = welcome.snapshot ?? null;
    if (!resumed || snapshot) this.#seq = welcome.seq;
    this.#acked = -1; // the first ack says that the new token has arrived
    this.#replayed = resumed && !snapshot ? welcome.replayed : 0;
    this.#session = welcome.session;
    this.limits = welcome.limits ?? null;
    this.#resume = welcome.resume ?? null;
    this.#welcomed = this.#wasOnline = true;
    this.#attempts = 0;
    this.#busy = false;
    this.#renewInTime();
    this.listener.onState("online");
    if (this.#replayed === 0) this.listener.onWelcome(resumed, resumed ? snapshot : null);
  }

  // A connection ends with its token, unless a newer one of the same student is said before.
  #renewInTime() {
    clearTimeout(this.#renewal);
    const left = (recall("student")?.expires_at - TOKEN_MARGIN_S) * 1_000 - Date.now();
    if (Number.isNaN(left)) return;
    const wait = Math.max(RENEW_MS_MIN, Math.min(left - TOKEN_MARGIN_S * 1_000, RENEW_MS_MAX));
    this.#renewal = setTimeout(() => this.#renew(), wait);
  }

  async #renew() {
    if (!this.#welcomed) return; // the next connection brings one
    const kept = recall("student");
    const socket = this.#socket;
    try {
      const student = isFresh(kept, 2 * TOKEN_MARGIN_S) ? kept : await newToken(kept);
      if (student.user === kept?.user && socket === this.#socket) {
        this.send({ type: "hello", token: student.token });
      }
    } catch {
      // again in a while; at the worst the connection ends, and comes back
    }
    if (socket === this.#socket) this.#renewInTime();
  }

  #lost() {
    clearTimeout(this.#patience);
    clearTimeout(this.#renewal);
    this.#welcomed = false;
    this.#socket = null;
    this.#retry();
  }

  // Do not wait for the closing handshake: a dead network would hold it up for minutes.
  #leave() {
    const socket = this.#socket;
    if (!socket) return;
    this.#lost();
    socket.close();
  }

  #drop() {
    this.listener.onState("offline");
    this.#leave();
  }

  #hurry() {
    this.#attempts = 0;
    this.#connect();
  }

  // While there is no session.
  #state() {
    if (!navigator.onLine) return "offline";
    if (this.#busy) return "busy";
    return this.#wasOnline ? "reconnecting" : "connecting";
  }

  // Full jitter: students who were cut off together must not come back together.
  #retry() {
    const cap = Math.min(BACKOFF_MS_MAX, BACKOFF_MS * 2 ** Math.min(this.#attempts, 10));
    this.#attempts += 1;
    this.listener.onState(this.#state());
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#connect(), 100 + Math.random() * cap);
  }

  #acknowledge() {
    if (this.#seq !== this.#acked && this.send({ type: "ack", seq: this.#seq })) {
      this.#acked = this.#seq;
    }
  }
}

// UTF-8 takes one to three bytes for each unit of UTF-16: most texts need not be counted.
function bytesAtMost(text, max) {
  return text.length * 3 <= max || new TextEncoder().encode(text).length <= max;
}

/** Students of a school bring a token in the address. */
function bringToken() {
  const token = takeToken();
  const claims = claimsOf(token);
  if (claims) keep("student", { token, user: claims.sub, expires_at: claims.exp });
}

/** The token kept on this device while it is valid, else a newer one, or a new student's. */
async function studentToken() {
  const kept = recall("student");
  return isFresh(kept, TOKEN_MARGIN_S) ? kept.token : (await newToken(kept)).token;
}

function isFresh(student, marginS) {
  return student !== null && student.expires_at - marginS > Date.now() / 1_000;
}

/** A token from coach, of the same student as before where that is still known. */
async function newToken(kept) {
  const response = await fetch("/api/token", {
    method: "POST",
    headers: kept ? { Authorization: `Bearer ${kept.token}` } : {},
    signal: AbortSignal.timeout?.(TOKEN_MS_MAX),
  });
  if (response.status === 403) throw new Refused();
  if (!response.ok) throw new Error(`token: ${response.status}`);
  const student = await response.json();
  keep("student", student);
  return student;
}
