// What the pages of the staff have in common: the door, asking, asking back, and saying.

import { isSure } from "./sure.js";

const SAID_MS = 6_000;

export const at = (id) => document.getElementById(id);

let token = "";
let place = ""; // where this tab keeps the token, by the role that the page is for
let silence = 0;

/** A token comes in the address, after #token=, where no server's log can see it. */
function tokenOf(hash) {
  return new URLSearchParams(hash.replace(/^#/, "")).get("token") ?? "";
}

/**
 * Let somebody in who brings a token, or has one from before; or ask at the door.
 *
 * @param {string} role
 * @param {() => void} onIn whoever is in; `askAtTheDoor` may ask again
 */
export function openDoor(role, onIn) {
  place = role;
  const given = tokenOf(location.hash);
  if (given) {
    sessionStorage.setItem(place, given);
    history.replaceState(null, "", location.pathname);
  }
  token = given || sessionStorage.getItem(place) || "";
  at("door").addEventListener("submit", (event) => {
    event.preventDefault();
    token = at("token").value.trim();
    sessionStorage.setItem(place, token);
    at("door").hidden = true;
    onIn();
  });
  if (token) onIn();
  else askAtTheDoor("");
}

/** Nobody is in, and why. */
export function askAtTheDoor(why) {
  sessionStorage.removeItem(place);
  document.querySelector("main").hidden = true;
  at("door").hidden = false;
  at("door-trouble").textContent = why;
  link("refused", "who is there?");
}

/** How the page stands to coach. */
export function link(state, words) {
  at("link").dataset.state = state;
  write(at("link-text"), words);
}

/** Ask coach, as whoever is in. */
export function ask(path, options = {}) {
  return fetch(path, { ...options, headers: { Authorization: `Bearer ${token}` } });
}

/** Ask back; whether the answer is yes. */
export function isWanted(question) {
  at("confirm-what").textContent = question;
  return isSure(at("confirm"));
}

/** Say what came of it, for a while. */
export function say(words) {
  at("said").textContent = words;
  clearTimeout(silence);
  silence = setTimeout(() => {
    at("said").textContent = "";
  }, SAID_MS);
}

/** Write only what differs: what stands there is not read out again. */
export function write(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  return element;
}
