// The operator's page: what the server does now, as it happens.

import { find, make, whenReleased } from "./dom.js";
import { explained, watch } from "./door.js";
import { bytes, drawLadders, measure, nameOf } from "./engines.js";
import { drawLatency, drawPercentiles } from "./latency.js";
import { begin, isDark, notice } from "./shell.js";
import { drawLegend, drawWaterfall } from "./waterfall.js";
import { clockTime, duration, knows, language, number, say } from "./words.js";

const CLOCKS = ["A", "B", "text"];
const KEPT = 60;
const QUIET_MS = 8000; // without news, the figures are old

await begin();
let state = null;
let turns = [];
let clock = null;
let staleTimer = 0;

watch("/pages/state", (name, value) => {
  if (name === "turns") turns = value;
  else if (name === "turn") turns = [...turns.slice(1 - KEPT), value];
  else if (name === "state") {
    state = value;
    fresh();
  }
  if (name === "state" || name === "turn") whenReleased(draw);
}, (error) => {
  if (!error) {
    find("notices").querySelector("#lost")?.remove();
    return;
  }
  stale();
  find("notices").replaceChildren(notice(say("operator.lost"), { bad: true, id: "lost", words: `${explained(error).title} ${say("retrying")}` }));
});

function fresh() {
  clearTimeout(staleTimer);
  staleTimer = setTimeout(stale, QUIET_MS);
  find("as-of").removeAttribute("data-stale");
  find("as-of").textContent = say("operator.live");
}

function stale() {
  find("as-of").setAttribute("data-stale", "");
  find("as-of").textContent = state ? say("operator.as_of", { time: clockTime(state.now) }) : say("operator.waiting");
}

function draw() {
  if (!state) return;
  const known = CLOCKS.filter((one) => state.clocks[one]);
  if (!known.includes(clock)) clock = known[0] ?? "A";
  drawTiles();
  drawClocks(known.length ? known : ["A"]);
  const chosen = state.clocks[clock];
  drawPercentiles(find("percentiles"), chosen?.all);
  drawLatency(find("chart"), chosen?.minutes ?? [], `${clock} ${isDark()} ${language()}`);
  drawLegend(find("legend"));
  drawWaterfall(find("waterfall"), turns);
  drawLadders(find("ladders"), state.ladders);
  drawMemory();
  drawShares();
  drawRefusals();
  drawEvents();
}

function drawTiles() {
  const { requests, drafts } = state;
  const drafted = (drafts.hit ?? 0) + (drafts.miss ?? 0);
  const lastHour = Object.values(state.clocks).flatMap((one) => one.minutes).reduce((sum, [, one]) => sum + (one?.count ?? 0), 0);
  const a = state.clocks.A?.all;
  const rows = [
    ["first_sound_p95", a ? duration(a.p95) : "–", a && a.p95 > 200],
    ["turns_hour", number(lastHour)],
    ["in_flight", number(requests.in_flight)],
    ["waiting_now", number(state.waiting), state.waiting > 20],
    ["refused", number(requests.refused), false],
    ["failed", number(requests.failed), requests.failed > 0],
    ["drafted", drafted ? `${number((100 * (drafts.hit ?? 0)) / drafted)} %` : "–"],
  ];
  find("tiles").replaceChildren(...rows.map(([key, value, isBad]) => make("div", { class: isBad ? "warn" : null }, make("dt", {}, say(`tile.${key}`)), make("dd", {}, value))));
}

function drawClocks(known) {
  find("clocks").hidden = known.length < 2;
  const focused = document.activeElement?.dataset?.clock;
  find("clocks").replaceChildren(...known.map((one) => make("button", {
    type: "button", "data-clock": one, "aria-pressed": String(one === clock), onclick: () => { clock = one; draw(); },
  }, say(`clock.${one}`))));
  find("clock-words").textContent = say(`clock.${clock}_words`);
  if (focused) find("clocks").querySelector(`[data-clock="${focused}"]`)?.focus();
}

const nothing = (key) => make("p", { class: "empty" }, say(key));

function drawMemory() {
  const rows = state.memory.map((one) => {
    const loaded = one.loaded.filter(([, size]) => size >= 2 ** 19).map(([name, size]) => `${name} ${bytes(size)}`).join(" · ");
    const words = one.used === null ? say("operator.unknown") : one.limit === null ? bytes(one.used) : say("operator.of", { used: bytes(one.used), limit: bytes(one.limit) });
    const part = one.used !== null && one.limit ? one.used / one.limit : 0;
    return measure(knows(`device.${one.device}`) ? say(`device.${one.device}`) : one.device, words, part, loaded, part > 0.9 ? "live" : "board");
  });
  find("memory").replaceChildren(...(rows.length ? rows : [nothing("operator.unknown")]));
}

function drawShares() {
  const rows = Object.entries(state.shares).map(([tenant, share]) => measure(tenant === "other" ? say("operator.other") : tenant, `${number(100 * share, 1)} %`, share));
  find("shares").replaceChildren(...(rows.length ? rows : [nothing("operator.no_shares")]));
}

function drawRefusals() {
  const rows = Object.entries(state.refusals).sort(([, a], [, b]) => b - a);
  const most = Math.max(1, ...rows.map(([, count]) => count));
  const views = rows.map(([reason, count]) => measure(knows(`reason.${reason}`) ? say(`reason.${reason}`) : reason, number(count), count / most, "", "chalk"));
  find("refusals").replaceChildren(...(views.length ? views : [nothing("operator.no_refusals")]));
}

function drawEvents() {
  const views = [...state.events].reverse().map((one) => {
    const key = one.cause === "override" ? (one.rung ? "event.override" : "event.release") : `event.${one.state === "closed" ? "closed" : "open"}`;
    const cause = knows(`cause.${one.cause}`) ? say(`cause.${one.cause}`) : one.cause;
    return make("li", {}, make("time", { class: "figures" }, clockTime(state.now - one.ago)), make("span", {}, say(key, { rung: one.rung ?? "", ladder: nameOf(one.ladder), cause })));
  });
  find("events").replaceChildren(...(views.length ? views : [make("li", { class: "empty" }, say("operator.no_events"))]));
}

document.addEventListener("words", () => {
  stale();
  draw();
  if (state) fresh();
});
document.addEventListener("theme", draw);
stale();
