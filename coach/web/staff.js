// What the pages of the staff have in common: the door, asking, asking back, and saying.
//
// A page says in its body for which role it is (data-role) and what its door says (data-door).

import { isSure } from "./sure.js";
import { claimsOf, takeToken } from "./token.js";

const SAID_MS = 6_000;

export const at = (id) => document.getElementById(id);

const { role, door } = document.body.dataset;
let token = ""; // this tab keeps it, by the role that the page is for
let silence = 0;

/** The lamp in the head, the door, and where it is said what came of something. */
function furnish() {
  const lamp = make("span", "lamp");
  lamp.setAttribute("aria-hidden", "true");
  const state = named("p", "link", "link", { role: "status" });
  state.dataset.state = "connecting";
  state.append(lamp, named("span", "link-text", ""));

  const form = named("form", "door", "door");
  form.hidden = true;
  const label = make("label", "", `${door}: `);
  label.htmlFor = "token";
  label.append(make("code", "", `coach token --role ${role}`));
  const field = named("input", "token", "", { autocomplete: "off", spellcheck: "false", required: "" });
  const line = make("p");
  line.append(field, " ", make("button", "", "Come in"));
  form.append(label, line, named("p", "door-trouble", "trouble", { role: "alert" }));

  const head = document.querySelector(".top");
  head.append(state);
  head.after(form);
  document.body.append(named("p", "said", "said", { role: "status" }));
  link("connecting", "connecting…");
}

function named(tag, id, className, attributes = {}) {
  const element = make(tag, className);
  element.id = id;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/**
 * Let somebody in who brings a token, or has one from before; or ask at the door.
 *
 * @param {() => void} onIn whoever is in; `askAtTheDoor` may ask again
 */
export function openDoor(onIn) {
  const given = takeToken();
  if (given) sessionStorage.setItem(role, given);
  token = given || sessionStorage.getItem(role) || "";
  at("door").addEventListener("submit", (event) => {
    event.preventDefault();
    token = at("token").value.trim();
    sessionStorage.setItem(role, token);
    at("door").hidden = true;
    onIn();
  });
  if (token) onIn();
  else askAtTheDoor("");
}

/** The organisation of whoever is in, as the token says. */
export function org() {
  return claimsOf(token)?.org ?? "";
}

/** Nobody is in, and why. */
export function askAtTheDoor(why) {
  sessionStorage.removeItem(role);
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

furnish();
