// The bridge: what a host of coach is doing, live and for the last hour, and what can be done.

import { ask, askAtTheDoor, at, isWanted, link, make, openDoor, say, write } from "./staff.js";

const RETRY_MS = 2_000;
const SAMPLES_MAX = 720;
const LANES = ["interactive", "submission", "background"];

const samples = [];

// -- watching --------------------------------------------------------------------------------

/** Read the stream of vitals, and come back to it for as long as the page is open. */
async function watch() {
  for (;;) {
    try {
      const response = await ask("/api/ops/stream");
      if (response.status === 401 || response.status === 403) {
        askAtTheDoor((await response.json()).message);
        return;
      }
      if (!response.ok) throw new Error(response.status);
      at("bridge").hidden = false;
      samples.length = 0;
      link("online", "live");
      await refreshLists();
      for await (const event of events(response.body)) take(JSON.parse(event));
    } catch {
      // it comes back
    }
    link("reconnecting", "reconnecting…");
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

/** The data of server-sent events; by fetch, since EventSource sends no Authorization. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const whole = held.split("\n\n");
    held = whole.pop();
    for (const event of whole) {
      const data = event.split("\n").filter((line) => line.startsWith("data: "));
      if (data.length > 0) yield data.map((line) => line.slice(6)).join("\n");
    }
  }
}

let drawing = 0;

function take(vitals) {
  samples.push(vitals);
  if (samples.length > SAMPLES_MAX) samples.shift();
  drawing ||= requestAnimationFrame(show); // the first hour comes all at once
}

// -- showing ---------------------------------------------------------------------------------

function show() {
  drawing = 0;
  const now = samples.at(-1);
  showAlerts(now.alerts);
  showTiles(now);
  showProviders(now.providers);
  showLanes(now);
  showCounts(now);
  showFlags(now.flags);
  showCharts();
}

function showAlerts(alerts) {
  const words = alerts.map(({ level, text }) => `${level} ${text}`).join("\n");
  const list = at("alerts");
  if (list.dataset.shown === words) return; // or it would be read out again and again
  list.dataset.shown = words;
  list.replaceChildren(
    ...(alerts.length > 0
      ? alerts.map(({ level, text }) => make("li", level, text))
      : [make("li", "well", "Nothing wants you.")]),
  );
}

function showTiles(now) {
  const { ttft } = now;
  const tiles = [
    ["writers", now.sessions.toLocaleString("en"), `${now.turns} being read to`],
    ["first words, p95", ms(ttft.p95), `p50 ${ms(ttft.p50)} · p99 ${ms(ttft.p99)}`, band(ttft.p95)],
    ["score, p95", ms(now.score.p95), `${now.score.count} in the last minute`],
    ["connections", String(now.connections), `${now.streams} streams to providers`],
    ["cost", `${dollars(now.dollars_hour)} / h`, writerCost(now.dollars_writer_hour)],
    ["an event's way, p95", ms(now.event_p95_ms), "from provider to student"],
  ];
  at("tiles").replaceChildren(
    ...tiles.map(([name, figure, note, state = ""]) => {
      const tile = make("div", `tile ${state}`);
      tile.append(make("h2", "", name), make("p", "figure", figure), make("p", "note", note));
      return tile;
    }),
  );
}

function dollars(amount) {
  return `$${amount.toLocaleString("en", { maximumSignificantDigits: 3 })}`;
}

function writerCost(amount) {
  return amount === null ? "nobody writes" : `${dollars(amount)} a writer and hour`;
}

function band(p95) {
  if (p95 === null) return "";
  return p95 > 600 ? "page" : p95 > 350 ? "warn" : "";
}

function showProviders(providers) {
  const body = at("providers").tBodies[0];
  for (const { name, share, used, line } of providers) {
    const row = body.querySelector(`[data-provider="${CSS.escape(name)}"]`) ?? body.appendChild(providerRow(name));
    row.cells[1].className = share < 1 ? "page" : "";
    write(row.cells[1], share === 1 ? "closed" : share === 0 ? "open" : `${Math.round(share * 100)} %`);
    const bars = Object.entries(used).map(([dimension, part]) => bar(dimension, part));
    row.cells[2].replaceChildren(...(bars.length > 0 ? bars : ["no quota set"]));
    write(row.cells[3], String(sum(line)));
  }
}

function providerRow(name) {
  const row = make("tr");
  row.dataset.provider = name;
  const head = make("th", "", name);
  head.scope = "row";
  const hold = make("button", "", "Leave alone");
  hold.addEventListener("click", () =>
    act(
      `Leave ${name} alone for ten minutes? The other providers answer its students.`,
      { type: "breaker", provider: name, what: "hold" },
    ),
  );
  const reset = make("button", "", "Ask again");
  reset.addEventListener("click", () =>
    act(`Ask ${name} again now?`, { type: "breaker", provider: name, what: "reset" }),
  );
  const quota = make("button", "", "Quota…");
  quota.addEventListener("click", () => openQuota(name));
  const cell = make("td", "do");
  for (const button of [quota, hold, reset]) {
    button.setAttribute("aria-label", `${button.textContent}: ${name}`);
    cell.append(button);
  }
  row.append(head, make("td"), make("td"), make("td", "number"), cell);
  return row;
}

/** A share of a quota, with the marks of 80 and 95 per cent. */
function bar(name, share) {
  const element = make("div", "bar");
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", `${name} ${Math.round(share * 100)} %`);
  const fill = make("span", share >= 0.95 ? "fill page" : share >= 0.8 ? "fill warn" : "fill");
  fill.style.inlineSize = `${Math.min(100, share * 100)}%`;
  element.append(fill, make("span", "bar-name", `${name} ${Math.round(share * 100)} %`));
  return element;
}

function showLanes({ lanes, jobs }) {
  const body = at("lanes").tBodies[0];
  for (const name of LANES.filter((lane) => lanes[lane])) {
    const { ready, oldest_s: oldest, paused } = lanes[name];
    let row = body.querySelector(`[data-lane="${name}"]`);
    if (!row) {
      row = make("tr");
      row.dataset.lane = name;
      const head = make("th", "", name);
      head.scope = "row";
      const button = make("button");
      button.addEventListener("click", () => toggleLane(name, row.dataset.paused === "true"));
      const cell = make("td", "do");
      cell.append(button);
      row.append(head, make("td", "number"), make("td", "number"), cell);
      body.append(row);
    }
    row.dataset.paused = paused;
    write(row.cells[1], ready.toLocaleString("en"));
    write(row.cells[2], ready > 0 ? duration(oldest) : "–");
    const button = row.querySelector("button");
    write(button, paused ? "Resume" : "Pause");
    button.setAttribute("aria-label", `${button.textContent} lane ${name}`);
  }
  write(
    at("jobs"),
    `${jobs.leased ?? 0} being graded · ${jobs.delayed ?? 0} put off · ${jobs.dead ?? 0} given up`,
  );
}

function showCounts({ ended, errors, refusals, moved_on: movedOn, resumes = {} }) {
  const counts = [
    ...Object.entries(ended).map(([outcome, count]) => [outcome, count, ""]),
    ...Object.entries(resumes).map(([how, count]) => [`came back: ${how}`, count, ""]),
    ...Object.entries(movedOn).map(([how, count]) => [`moved on: ${how}`, count, "warn"]),
    ...Object.entries(refusals).map(([who, count]) => [`refused: ${who}`, count, "warn"]),
    ...Object.entries(errors).filter(([code]) => code !== "cancelled").map(([code, count]) => [`told: ${code}`, count, "warn"]),
  ];
  const shown = counts.length > 0 ? counts : [["nothing", 0, ""]];
  at("ended").replaceChildren(
    ...shown.flatMap(([name, count, state]) => [
      make("dt", state, name), make("dd", "number", count.toLocaleString("en")),
    ]),
  );
}

function showFlags(flags) {
  const list = at("flags");
  for (const [flag, percent] of Object.entries(flags)) {
    let item = list.querySelector(`[data-flag="${flag}"]`);
    if (!item) {
      item = make("li");
      item.dataset.flag = flag;
      const label = make("label", "", `${flag} `);
      const field = make("input");
      Object.assign(field, { type: "number", min: 0, max: 100 });
      label.append(field, " % of users");
      const button = make("button", "", "Set");
      button.setAttribute("aria-label", `Set ${flag}`);
      button.addEventListener("click", () => setFlag(flag, field));
      item.append(label, button);
      list.append(item);
    }
    const field = item.querySelector("input");
    if (document.activeElement !== field) field.value = percent;
  }
}

// -- charts ----------------------------------------------------------------------------------

const CHARTS = [
  {
    title: "Writers and turns",
    series: [
      ["writers", (s) => s.sessions],
      ["turns", (s) => s.turns],
      ["came back", (s) => sum(s.resumes ?? {})],
    ],
  },
  {
    title: "First words, ms",
    series: [["p50", (s) => s.ttft.p50], ["p95", (s) => s.ttft.p95], ["p99", (s) => s.ttft.p99]],
  },
  {
    title: "Of the quota, %",
    series: [["most used", (s) => mostUsed(s.providers)], ["in line", (s) => inLine(s.providers)]],
  },
  { title: "Essays that wait", series: LANES.map((lane) => [lane, (s) => s.lanes[lane]?.ready ?? 0]) },
  { title: "The oldest of them, s", series: LANES.map((lane) => [lane, (s) => Math.round(s.lanes[lane]?.oldest_s ?? 0)]) },
  {
    title: "To providers",
    series: [["streams", (s) => s.streams], ["connections", (s) => s.connections]],
  },
  {
    title: "Went wrong, in a minute",
    series: [
      ["refused", (s) => sum(s.refusals)],
      ["moved on", (s) => sum(s.moved_on)],
      ["told", (s) => sum(s.errors) - (s.errors.cancelled ?? 0)],
    ],
  },
  {
    title: "Cost, $ an hour",
    series: [["all", (s) => s.dollars_hour], ["a writer", (s) => s.dollars_writer_hour]],
  },
];

function sum(counts) {
  return Object.values(counts).reduce((total, count) => total + count, 0);
}

function mostUsed(providers) {
  const shares = providers.flatMap(({ used }) => Object.values(used));
  return shares.length > 0 ? Math.round(100 * Math.max(...shares)) : null;
}

function inLine(providers) {
  return providers.reduce((total, { line }) => total + sum(line), 0);
}

function drawCharts() {
  const style = getComputedStyle(document.documentElement);
  const inks = ["--ink-1", "--ink-2", "--ink-3"].map((name) => style.getPropertyValue(name));
  const soft = style.getPropertyValue("--soft");
  const hair = { stroke: style.getPropertyValue("--hair"), width: 1 };
  for (const chart of CHARTS) {
    const figure = make("figure");
    figure.append(make("figcaption", "", chart.title));
    at("charts").append(figure);
    const axis = { stroke: soft, grid: hair, ticks: hair, font: "11px sans-serif" };
    chart.plot = new uPlot(
      {
        width: 300,
        height: 150,
        cursor: { y: false },
        legend: { live: true },
        scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
        axes: [{ ...axis, space: 60, values: (_, times) => times.map(clock) }, { ...axis, size: 44 }],
        series: [
          { label: "at", value: (_, time) => (time === null ? "–" : clock(time)) },
          ...chart.series.map(([label], index) => ({
            label, stroke: inks[index], width: 1.5, points: { show: false },
          })),
        ],
      },
      [[], ...chart.series.map(() => [])],
      figure,
    );
    new ResizeObserver(([{ contentRect }]) => {
      chart.plot.setSize({ width: Math.max(200, contentRect.width), height: 150 });
    }).observe(figure);
  }
}

function showCharts() {
  const times = samples.map((sample) => sample.at);
  for (const { plot, series } of CHARTS) {
    plot.setData([times, ...series.map(([, of]) => samples.map(of))]);
  }
}

// -- doing -----------------------------------------------------------------------------------

/** Ask back, do it, say what came of it, and show what has changed. */
async function act(question, action) {
  if (!(await isWanted(question))) return;
  try {
    const response = await ask("/api/ops/actions", { method: "POST", body: JSON.stringify(action) });
    const answer = await response.json();
    say(response.ok ? answer.said : answer.message);
  } catch {
    say("coach does not answer: look before you try again");
  }
  await refreshLists();
}

function toggleLane(lane, paused) {
  return paused
    ? act(`Hand out the jobs of lane ${lane} again?`, { type: "lane", lane, mode: "open" })
    : act(`Keep the jobs of lane ${lane} until it is resumed?`, { type: "lane", lane, mode: "paused" });
}

function setFlag(flag, field) {
  const percent = field.valueAsNumber;
  if (!Number.isInteger(percent) || percent < 0 || percent > 100) {
    say("per cent are whole numbers from 0 to 100");
    return;
  }
  act(`Use “${flag}” for ${percent} % of the users?`, { type: "flag", flag, percent });
}

/** What an endpoint allows now, to be changed for a while. */
async function openQuota(name) {
  let found;
  try {
    found = (await (await ask("/api/ops/quotas")).json()).find(({ provider }) => provider === name);
  } catch {
    say("coach does not answer: try again");
    return;
  }
  const { quota, said_for_s: saidFor } = found;
  at("quota").dataset.provider = name;
  write(at("quota-title"), `Quota of ${name}`);
  write(
    at("quota-note"),
    saidFor === null ? "As in the settings now." : `Set by an operator, for ${duration(saidFor)} more.`,
  );
  at("quota-fields").replaceChildren(
    ...Object.entries(quota).map(([dimension, limit]) => {
      const label = make("label", "", `${dimension} a minute `);
      const field = make("input");
      Object.assign(field, { type: "number", min: 1, max: 1e12, step: 1, required: true, value: limit });
      field.dataset.dimension = dimension;
      label.append(field);
      return label;
    }),
  );
  at("quota-fields").hidden = Object.keys(quota).length === 0;
  at("quota").showModal();
}

function setQuota(limits) {
  const provider = at("quota").dataset.provider;
  const hours = at("quota-hours").valueAsNumber;
  at("quota").close();
  if (!limits) {
    act(`Let the settings decide on ${provider}'s quota again?`, { type: "quota", provider });
    return;
  }
  const words = Object.entries(limits).map(([name, limit]) => `${name} ${limit.toLocaleString("en")}`);
  act(
    `Let ${provider} be asked for ${words.join(", ")} a minute, for ${hours} hours?`,
    { type: "quota", provider, limits, hours, may_exceed: at("quota-exceed").checked },
  );
}

function quotaFields() {
  const fields = [...at("quota-fields").querySelectorAll("input")];
  return Object.fromEntries(fields.map((field) => [field.dataset.dimension, field.valueAsNumber]));
}

async function refreshLists() {
  const [dead, audit] = await Promise.all(
    ["/api/ops/dead", "/api/ops/audit"].map(async (path) => (await ask(path)).json()),
  );
  showDead(dead);
  showAudit(audit);
}

function showDead(jobs) {
  at("dead").replaceChildren(
    ...(jobs.length > 0 ? jobs.map(deadItem) : [make("li", "none", "no essay")]),
  );
}

function deadItem({ id, org, user, reason, attempts }) {
  const item = make("li");
  const retry = make("button", "", "Grade again");
  retry.addEventListener("click", () => act(`Grade ${id} again?`, { type: "dead", id, what: "retry" }));
  const drop = make("button", "", "Drop");
  drop.addEventListener("click", () =>
    act(`Drop ${id} for good? Its student is told to hand in again.`, { type: "dead", id, what: "drop" }),
  );
  for (const button of [retry, drop]) button.setAttribute("aria-label", `${button.textContent} ${id}`);
  item.append(
    make("p", "", `${org} / ${user} · ${attempts} attempts`), make("p", "note", reason), retry, drop,
  );
  return item;
}

function showAudit(entries) {
  at("audit").replaceChildren(
    ...(entries.length > 0
      ? entries.map(({ at: when, who, action, detail }) => {
          const { type, ...rest } = JSON.parse(detail);
          const words = wordsOf(rest);
          const clock = new Date(Number(when) * 1_000).toLocaleTimeString("en-GB");
          return make("li", "", `${clock} ${who}: ${action} ${words}`);
        })
      : [make("li", "none", "nothing yet")]),
  );
}

/** What an act was about, of its JSON. */
function wordsOf(detail) {
  return Object.entries(detail)
    .map(([name, value]) => {
      if (typeof value === "object" && value !== null) return wordsOf(value);
      return typeof value === "string" ? value : `${name} ${value}`;
    })
    .join(" ");
}

// -- words -----------------------------------------------------------------------------------

function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1_000) return `${(value / 1_000).toFixed(1)} s`;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  return seconds < 3_600 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3_600).toFixed(1)} h`;
}

/** A time of the clock, of seconds since 1970. */
function clock(time) {
  return new Date(time * 1_000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
}

at("quota-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setQuota(quotaFields());
});
at("quota-reset").addEventListener("click", () => setQuota(null));
at("quota-cancel").addEventListener("click", () => at("quota").close());
at("renew").addEventListener("click", () =>
  act(
    "Renew this host's workers? Students go on; each worker drains when a new one has taken its place.",
    { type: "workers", what: "renew" },
  ),
);
drawCharts();
openDoor("operator", watch);
