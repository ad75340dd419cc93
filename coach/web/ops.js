// The bridge: what a host of coach is doing, live and for the last hour, and what can be done.

import { ask, askAtTheDoor, at, isWanted, link, make, openDoor, org, say, write } from "./staff.js";

const RETRY_MS = 2_000;
const REFRESH_MS = 15_000; // of what is not in the vitals
const TTFT_MS = { warn: 350, page: 600 };
const QUOTA = { warn: 80, page: 95 };
const CLOSE_S = 600; // charts of less have seconds beneath them
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
  showWorkers(now.workers ?? []);
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
    ["cost now", `${dollars(now.dollars_hour)} / h`, writerCost(now.dollars_writer_hour)],
    ["cost today", dollars(now.dollars_today ?? null), writerCost(now.dollars_writer_hour_today ?? null, "all hosts, since 0:00 UTC")],
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
  return amount === null ? "–" : `$${amount.toLocaleString("en", { maximumSignificantDigits: 3 })}`;
}

function writerCost(amount, otherwise = "nobody writes") {
  return amount === null ? otherwise : `${dollars(amount)} a writer and hour`;
}

function band(p95) {
  if (p95 === null) return "";
  return p95 > TTFT_MS.page ? "page" : p95 > TTFT_MS.warn ? "warn" : "";
}

function showProviders(providers) {
  const body = at("providers").tBodies[0];
  for (const { name, share, used, line, connections = 0, streams = 0 } of providers) {
    const row = body.querySelector(`[data-provider="${CSS.escape(name)}"]`) ?? body.appendChild(providerRow(name));
    write(row.cells[0].lastChild, `${streams} streams over ${connections}`);
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
  head.append(make("span", "note"));
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

function showLanes({ lanes, jobs, graders = null }) {
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
    `${graders === null ? "" : `${count(graders, "grader")} · `}${jobs.leased ?? 0} being graded · ${jobs.delayed ?? 0} put off · ${jobs.dead ?? 0} given up`,
  );
}

function showWorkers(workers) {
  const list = at("workers");
  for (const item of list.querySelectorAll("[data-pid]")) {
    if (!workers.some(({ pid }) => String(pid) === item.dataset.pid)) item.remove();
  }
  for (const { slot, pid, sessions } of workers) {
    let item = list.querySelector(`[data-pid="${pid}"]`);
    if (!item) {
      item = make("li");
      item.dataset.pid = pid;
      const button = make("button", "", "Renew");
      button.setAttribute("aria-label", `Renew worker ${slot}`);
      button.addEventListener("click", () => renew(slot));
      item.append(make("span", "what"), button);
      list.append(item);
    }
    const drains = workers.some((other) => other.slot === slot && other.pid > pid);
    write(item.firstChild, `worker ${slot} · ${count(sessions, "writer")} · pid ${pid}${drains ? " · drains" : ""}`);
    item.lastChild.hidden = drains;
  }
  at("renew").hidden = new Set(workers.map(({ slot }) => slot)).size < 2;
  write(
    at("workers-note"),
    workers.length > 0
      ? "A worker drains when a new one has taken its place."
      : "No coach serve is above them: restart them by what began them.",
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
    marks: Object.values(TTFT_MS),
    series: [["p50", (s) => s.ttft.p50], ["p95", (s) => s.ttft.p95], ["p99", (s) => s.ttft.p99]],
  },
  {
    title: "Of the quota, %",
    marks: Object.values(QUOTA),
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
        scales: { y: { range: (_, low, high) => [0, Math.max(high, chart.marks?.[0] ?? 0) * 1.1 || 1] } },
        axes: [{ ...axis, space: 75, values: ticks }, { ...axis, size: 44 }],
        hooks: { drawAxes: [(plot) => drawMarks(plot, chart.marks ?? [], style)] },
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

/** Lines at what is good, and at what is the most: in the colours of warnings and alarms. */
function drawMarks({ ctx, bbox, scales, valToPos }, marks, style) {
  ctx.save();
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
  for (const [index, mark] of marks.entries()) {
    if (mark > scales.y.max) continue;
    const y = Math.round(valToPos(mark, "y", true));
    ctx.strokeStyle = style.getPropertyValue(index === 0 ? "--lamp-wait" : "--page");
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
  }
  ctx.restore();
}

function ticks({ scales }, times) {
  const options = { hour: "2-digit", minute: "2-digit" };
  if (scales.x.max - scales.x.min < CLOSE_S) options.second = "2-digit";
  return times.map((time) => new Date(time * 1_000).toLocaleTimeString("en-GB", options));
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

function renew(slot) {
  const [whose, action] =
    slot === null
      ? ["this host's workers", { type: "workers", what: "renew" }]
      : [`worker ${slot}`, { type: "workers", what: "renew", slot }];
  return act(
    `Renew ${whose}? Students go on; a worker drains when a new one has taken its place.`, action,
  );
}

// -- grading again ---------------------------------------------------------------------------

async function openRegrade() {
  let offered;
  try {
    offered = await (await ask("/api/assignments")).json();
  } catch {
    say("coach does not answer: try again");
    return;
  }
  at("regrade-org").value ||= org();
  at("regrade-assignment").replaceChildren(...offered.map(({ id, title }) => new Option(title, id)));
  at("regrade").showModal();
}

/** Ask what it would cost, say it, and begin if that is wanted. */
async function estimateRegrade() {
  const percent = at("regrade-percent").valueAsNumber;
  const asked = { org: at("regrade-org").value.trim(), assignment: at("regrade-assignment").value };
  if (percent < 100) asked.percent = percent;
  if (at("regrade-batch").checked) asked.batch = true;
  at("regrade").close();
  let found;
  try {
    const response = await ask(`/api/ops/regrade?${new URLSearchParams(asked)}`);
    found = await response.json();
    if (!response.ok) {
      say(found.message);
      return;
    }
  } catch {
    say("coach does not answer: try again");
    return;
  }
  const title = at("regrade-assignment").selectedOptions[0].text;
  if (found.essays === 0) {
    say(`${asked.org} has no essay of “${title}” that could be graded again`);
    return;
  }
  const job = `bridge-${crypto.randomUUID()}`;
  await act(
    `Have ${count(found.essays, "essay")} of “${title}” graded again, for about ${price(found)}? ` +
      `${count(found.answers, "judge's answer", "judges' answers")} of ${asked.org}` +
      `${asked.batch ? ", within a day" : ""}.`,
    { type: "regrade", ...asked, job, essays: found.essays },
  );
}

function price({ cost, currency, unpriced }) {
  const amount = Number(cost).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  return `${amount} ${currency}${unpriced.length > 0 ? ` and what ${unpriced.join(", ")} costs, which nobody knows` : ""}`;
}

function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

function showBulk(jobs) {
  at("bulk").replaceChildren(
    ...(jobs.length > 0 ? jobs.map(bulkItem) : [make("li", "none", "no essay")]),
  );
}

function bulkItem({ id, org: whose, by, kind, way, mode, total, graded, failed, gone }) {
  const item = make("li");
  const ended = (graded + failed + gone).toLocaleString("en");
  const bad = failed + gone > 0 ? `, ${failed + gone} in vain` : "";
  const words = [whose, `${ended} of ${count(total, "essay")}${bad}`, kind, way === "batch" ? "batch" : "", by];
  const what = make("span", "what", words.filter(Boolean).join(" · "));
  what.append(make("span", "note", ` ${mode}, ${id}`));
  item.append(what);
  const choices = { running: [["Pause", "paused"], ["Stop", "stopped"]], paused: [["Resume", "running"], ["Stop", "stopped"]] };
  for (const [word, next] of choices[mode] ?? []) {
    const button = make("button", "", word);
    button.setAttribute("aria-label", `${word} ${id}`);
    button.addEventListener("click", () =>
      act(`${word} ${id}?${next === "stopped" ? " It can not go on afterwards." : ""}`, { type: "bulk", job: id, mode: next }),
    );
    item.append(button);
  }
  return item;
}

// -- lists -----------------------------------------------------------------------------------

/** What is not in the vitals; a button that has the focus keeps it. */
async function refreshLists() {
  const [dead, audit, bulk] = await Promise.all(
    ["dead", "audit", "bulk"].map(async (name) => (await ask(`/api/ops/${name}`)).json()),
  );
  const focused = document.activeElement?.getAttribute("aria-label");
  showDead(dead);
  showAudit(audit);
  showBulk(bulk);
  if (focused && document.activeElement === document.body) {
    document.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }
}

/** Others act, too, and jobs go on. */
async function keepRefreshing() {
  try {
    if (document.visibilityState === "visible" && !at("bridge").hidden) await refreshLists();
  } catch {
    // the stream says that coach is away
  }
  setTimeout(keepRefreshing, REFRESH_MS);
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
    .filter(([, value]) => value !== null && value !== false)
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
at("renew").addEventListener("click", () => renew(null));
at("regrade-open").addEventListener("click", openRegrade);
at("regrade-form").addEventListener("submit", (event) => {
  event.preventDefault();
  estimateRegrade();
});
at("regrade-cancel").addEventListener("click", () => at("regrade").close());
drawCharts();
openDoor(watch);
setTimeout(keepRefreshing, REFRESH_MS);
