// Percentiles over the last hour, minute by minute.

import { make } from "./dom.js";
import { clockTime, duration, number, say } from "./words.js";
import uPlot from "./vendor/uPlot.esm.js";

const LINES = ["p50", "p95", "p99"];
const LEAST_MINUTES = 15; // drawn, however lately the first turn was
const PROMISES = [100, 200]; // milliseconds: clock A's median and P95

let plot = null;
let drawn = "";

/** A colour of the style sheet as the canvas knows it. */
function colour(place, name) {
  const probe = make("span", { hidden: true });
  probe.style.color = `var(--${name})`;
  place.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export function drawPercentiles(place, all) {
  place.replaceChildren(...LINES.map((name) => {
    const view = make("div", {}, make("dt", {}, name.toUpperCase()), make("dd", {}, all ? duration(all[name]) : "–"));
    view.style.setProperty("--colour", `var(--${name})`);
    return view;
  }));
}

/** `minutes`: [unix time, {count, p50, p95, p99} or null], the oldest first. `look` changes when the colours do. */
export function drawLatency(place, minutes, look) {
  const began = minutes.findIndex(([, one]) => one);
  minutes = minutes.slice(Math.max(0, Math.min(began - 1, minutes.length - LEAST_MINUTES)));
  const data = [minutes.map(([at]) => at), ...LINES.map((name) => minutes.map(([, one]) => one?.[name] ?? null))];
  const told = minutes.filter(([, one]) => one);
  place.setAttribute("aria-label", told.length ? say("operator.chart", { n: told.length }) : say("operator.no_turns"));
  if (!told.length) {
    plot?.destroy();
    plot = null;
    place.replaceChildren(make("p", { class: "empty" }, say("operator.no_turns")));
    return;
  }
  if (plot && drawn === look) {
    plot.setData(data);
    return;
  }
  drawn = look;
  plot?.destroy();
  place.replaceChildren();
  const grid = { stroke: colour(place, "line"), width: 1 };
  const axis = { stroke: colour(place, "faint"), grid, ticks: grid, font: "13px Inter, sans-serif" };
  plot = new uPlot({
    width: place.clientWidth, height: 260, legend: { show: false }, padding: [14, 24, 0, 0],
    cursor: { points: { size: 8 }, y: false },
    scales: { y: { range: (_, __, most) => [0, Math.max(250, 1.12 * (most ?? 0))] } },
    axes: [
      { ...axis, values: (_, ticks) => ticks.map((at) => clockTime(at)), space: 70, size: 34 },
      { ...axis, size: 74, values: (_, ticks) => ticks.map((ms) => (ms >= 1000 ? say("s", { n: number(ms / 1000, 1) }) : say("ms", { n: number(ms) }))) },
    ],
    series: [{}, ...LINES.map((name) => ({
      label: name, stroke: colour(place, name), width: name === "p50" ? 2.5 : 1.75, spanGaps: false,
      points: { show: true, size: name === "p50" ? 6 : 5, fill: colour(place, name) },
    }))],
    plugins: [promises(colour(place, "edge")), reading(place)],
  }, data, place);
  new ResizeObserver(() => plot && place.clientWidth && plot.setSize({ width: place.clientWidth, height: 260 })).observe(place);
}

/** The promises as dashed lines. */
function promises(stroke) {
  return { hooks: { drawAxes: (chart) => {
    const { ctx, bbox } = chart;
    ctx.save();
    ctx.strokeStyle = stroke;
    ctx.setLineDash([3, 5]);
    ctx.lineWidth = devicePixelRatio;
    for (const ms of PROMISES) {
      const y = Math.round(chart.valToPos(ms, "y", true));
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
    }
    ctx.restore();
  } } };
}

/** What lies under the pointer, in words. */
function reading(place) {
  const view = make("p", { class: "reading figures", "aria-hidden": "true" });
  place.append(view);
  return { hooks: { setCursor: (chart) => {
    const { idx } = chart.cursor;
    const known = idx !== null && idx !== undefined && chart.data[1][idx] !== null;
    view.hidden = !known;
    if (!known) return;
    view.textContent = `${clockTime(chart.data[0][idx])} · ${LINES.map((name, line) => `${name.toUpperCase()} ${duration(chart.data[line + 1][idx])}`).join(" · ")}`;
    view.style.left = `${Math.min(chart.cursor.left + 70, Math.max(0, place.clientWidth - view.offsetWidth - 4))}px`;
  } } };
}
