// Recent turns, stage by stage. 0 is the moment at which the student had finished; what a draft made lies before it.

import { make } from "./dom.js";
import { clockTime, duration, say } from "./words.js";

export const STAGES = ["transcribe", "understand", "retrieve", "answer", "speak_first_byte"];
const TOTAL = "commit_to_first_audio";
const SHOWN = 14;

/** Where each stage lies, in milliseconds from the commit: [stage, start, length]. What no stage accounts for is the rest:
 * waiting for a worker, or for a draft that was not ready yet. */
export function laidOut(turn) {
  const has = STAGES.filter((stage) => turn.timings_ms[stage] > 0);
  const after = turn.drafted ? has.filter((stage) => stage === "transcribe") : has;
  const before = has.filter((stage) => !after.includes(stage));
  let at = -before.reduce((sum, stage) => sum + turn.timings_ms[stage], 0);
  const rows = [...before, ...after].map((stage) => {
    if (stage === after[0]) at = 0;
    const row = [stage, at, turn.timings_ms[stage]];
    at += turn.timings_ms[stage];
    return row;
  });
  const rest = (turn.timings_ms[TOTAL] ?? 0) - Math.max(0, at);
  return rest > 1 ? [...rows, ["rest", Math.max(0, at), rest]] : rows;
}

/** The span that is drawn: outliers are cut off, so that the others can be read. */
export function scaleOf(rows) {
  const starts = rows.flatMap((row) => row.map(([, start]) => start));
  const ends = rows.map((row) => Math.max(0, ...row.map(([, start, length]) => start + length))).sort((a, b) => a - b);
  const usual = ends[Math.floor(0.85 * (ends.length - 1))] ?? 0;
  const most = ends.at(-1) ?? 0;
  return { from: Math.min(0, ...starts.map((start) => Math.max(start, -0.5 * Math.max(usual, 60)))), to: Math.max(60, most <= 2 * usual ? 1.02 * most : 1.25 * usual) };
}

export function drawLegend(place) {
  place.replaceChildren(...[...STAGES, "rest"].map((stage) => {
    const mark = make("i", { "aria-hidden": "true" });
    mark.style.setProperty("--colour", `var(--${stage})`);
    return make("li", {}, mark, say(`stage.${stage}`));
  }));
}

export function drawWaterfall(place, turns) {
  const shown = turns.slice(-SHOWN).reverse();
  if (!shown.length) {
    place.replaceChildren(make("p", { class: "empty" }, say("operator.no_turns")));
    return;
  }
  const rows = shown.map(laidOut);
  const { from, to } = scaleOf(rows);
  const part = (ms) => `${(100 * ms) / (to - from)}%`;
  const body = make("tbody", {}, ...shown.map((turn, number) => {
    const track = make("div");
    track.style.setProperty("--zero", `calc(${part(-from)} - 1px)`);
    for (const [stage, start, length] of rows[number]) {
      const left = Math.max(from, start);
      const right = Math.min(to, start + length);
      if (right <= left) continue;
      const bar = make("i", { class: `${start < 0 ? "before" : ""}${start + length > to ? " cut" : ""}${stage === "rest" ? " rest" : ""}`, title: `${say(`stage.${stage}`)} ${duration(length)}` });
      bar.style.setProperty("--colour", `var(--${stage})`);
      bar.style.setProperty("--left", part(left - from));
      bar.style.setProperty("--width", part(right - left));
      track.append(bar);
    }
    const words = rows[number].map(([stage, , length]) => `${say(`stage.${stage}`)} ${duration(length)}`).join(", ");
    const total = turn.timings_ms[TOTAL];
    return make("tr", {},
      make("td", { class: "figures" }, clockTime(turn.moment)),
      make("td", {}, badge(turn)),
      make("td", { class: "who", title: `${turn.tenant} · ${turn.course}` }, `${turn.tenant} · ${turn.course}`),
      make("td", { class: "track" }, make("span", { class: "unseen" }, words), track),
      make("td", { class: "figures" }, total === undefined ? "–" : duration(total)));
  }));
  const heads = ["time", "clock_short", "class", "stages", "first_sound"].map((key) => make("th", { scope: "col", class: key === "class" ? "who" : null }, say(`operator.${key}`)));
  place.replaceChildren(make("table", { class: "falls" }, make("thead", {}, make("tr", {}, ...heads)), body));
}

function badge(turn) {
  if (turn.error) return make("span", { class: "badge bad", title: turn.error }, say("operator.failed_turn"));
  if (turn.refused) return make("span", { class: "badge warn" }, say("operator.refused_turn"));
  if (turn.drafted) return make("span", { class: "badge good" }, say("operator.drafted_turn"));
  return make("span", { class: "badge" }, say(`clock.${turn.clock}`));
}
