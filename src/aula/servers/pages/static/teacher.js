// The teacher's page: captions of the lecture on the board, the class's questions beside it.

import { Captions } from "./captions.js";
import { find, make, remember, remembered, whenReleased } from "./dom.js";
import { explained, watch } from "./door.js";
import { wireInviting } from "./inviting.js";
import { drawQuestions } from "./questions.js";
import { begin, courseChoice, notice } from "./shell.js";
import { clockTime, duration, say } from "./words.js";

const SPOKEN = ["course", "en", "zh", "und"];
const SINCE = ["15", "60", ""];
const SHOWN_LINES = 60;
const REST_MS = 3000;
const SCALES = [0.7, 0.85, 1, 1.2, 1.45, 1.75];

const chooser = courseChoice("course");
const me = await begin(chooser);
const courseSelect = chooser.querySelector("select");
const captions = new Captions();
let board = null;
let isFirst = true;
let unwatch = () => {};
let scale = Number(remembered("captions.scale") ?? 2);
let lags = [];
let restTimer = 0;

// Captions

captions.addEventListener("state", drawState);
captions.addEventListener("level", ({ detail }) => find("level").style.setProperty("--level", Math.min(1, detail * 6).toFixed(3)));
captions.addEventListener("words", ({ detail }) => {
  find("words").textContent = detail;
  if (detail) find("captions-empty").hidden = true;
  follow();
});
captions.addEventListener("caption", ({ detail }) => {
  find("lines").append(make("p", {}, detail.text));
  while (find("lines").childElementCount > SHOWN_LINES) find("lines").firstChild.remove();
  find("words").textContent = "";
  find("save").hidden = false;
  lags = [...lags.slice(-8), detail.lag];
  const middle = [...lags].sort((a, b) => a - b)[Math.floor(lags.length / 2)];
  find("lag").textContent = say("teacher.lag", { time: duration(1000 * Math.max(0, middle)), rung: detail.rung });
  follow();
});
captions.addEventListener("skipped", () => tell(notice(say("teacher.skipped"))));
captions.addEventListener("trouble", ({ detail }) => {
  const { title } = explained(detail);
  tell(notice(say("teacher.broken"), { bad: true, words: title, action: say("again"), onaction: toggle }));
});

function drawState() {
  const { state } = captions;
  const isOn = state === "on" || state === "ending";
  find("begin").setAttribute("aria-pressed", String(isOn));
  find("begin").disabled = state === "opening" || state === "ending";
  find("begin-name").textContent = say(state === "opening" ? "teacher.opening" : isOn ? "teacher.end" : captions.captions.length ? "teacher.go_on" : "teacher.begin");
  find("captions-state").toggleAttribute("data-on", isOn);
  find("captions-state").textContent = isOn ? say("teacher.live") : "";
  find("level").toggleAttribute("data-on", state === "on");
  find("spoken").disabled = isOn || state === "opening";
  if (state === "off") find("words").textContent = "";
}

/** Stay at the end, unless somebody reads further up. */
function follow() {
  const view = find("captions");
  if (view.scrollHeight - view.scrollTop - view.clientHeight < 220) view.scrollTop = view.scrollHeight;
}

function tell(...notices) {
  find("notices").replaceChildren(...notices);
}

async function toggle() {
  tell();
  if (captions.state === "on") {
    await captions.end();
    return;
  }
  if (captions.state !== "off") return;
  const language = find("spoken").value;
  try {
    await captions.begin(language === "course" ? "" : language, courseSelect.value || me.course);
  } catch (error) {
    const title = error.why ? say(`microphone.${error.why}`) : explained(error).title;
    tell(notice(title, { bad: true, words: error.why === "denied" ? say("teacher.allow") : "", action: say("again"), onaction: toggle }));
  }
}

function save() {
  const url = URL.createObjectURL(new Blob([captions.asWebVtt()], { type: "text/vtt" }));
  const link = make("a", { href: url, download: `captions-${new Date().toISOString().slice(0, 10)}.vtt` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function resize(step) {
  scale = Math.max(0, Math.min(SCALES.length - 1, scale + step));
  remember("captions.scale", String(scale));
  find("captions").style.setProperty("--scale", SCALES[scale]);
  find("smaller").disabled = scale === 0;
  find("larger").disabled = scale === SCALES.length - 1;
  follow();
}

async function project(isOn) {
  document.body.classList.toggle("projecting", isOn);
  find("project").setAttribute("aria-pressed", String(isOn));
  const words = say(isOn ? "teacher.unproject" : "teacher.project");
  find("project").setAttribute("aria-label", words);
  find("project").title = words;
  find("captions").scrollTop = find("captions").scrollHeight;
  try {
    if (isOn) await document.documentElement.requestFullscreen?.();
    else if (document.fullscreenElement) await document.exitFullscreen();
  } catch {
    // the words fill the window all the same
  }
}

/** On the projector the tools go when no hand moves. */
function stir() {
  document.body.classList.remove("resting");
  clearTimeout(restTimer);
  restTimer = setTimeout(() => document.body.classList.add("resting"), REST_MS);
}

for (const sign of ["pointermove", "pointerdown", "keydown"]) addEventListener(sign, stir);
find("begin").addEventListener("click", toggle);
find("save").addEventListener("click", save);
find("smaller").addEventListener("click", () => resize(-1));
find("larger").addEventListener("click", () => resize(1));
find("project").addEventListener("click", () => project(!document.body.classList.contains("projecting")));
document.addEventListener("fullscreenchange", () => { if (!document.fullscreenElement) void project(false); });
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.body.classList.contains("projecting")) void project(false);
});

// Questions

function listen() {
  unwatch();
  isFirst = true;
  find("asked").setAttribute("aria-busy", "true");
  const query = new URLSearchParams();
  if (courseSelect.value) query.set("course", courseSelect.value);
  if (find("since").value) query.set("minutes", find("since").value);
  unwatch = watch(`/pages/questions?${query}`, (name, value) => {
    if (name !== "board") return;
    board = value;
    whenReleased(draw);
  }, (error) => {
    const place = find("feed-notice");
    if (!error) place.replaceChildren();
    else place.replaceChildren(notice(say("teacher.feed_lost"), { bad: true, words: `${explained(error).title} ${say("retrying")}` }));
  });
}

function draw() {
  if (!board) return;
  drawQuestions(find("asked"), board, isFirst);
  isFirst = false;
  const parts = [say("teacher.asked", { n: board.asked })];
  if (board.unheard) parts.push(say("teacher.unheard", { n: board.unheard }));
  if (board.failed) parts.push(say("teacher.failed", { n: board.failed }));
  find("sum").textContent = `${parts.join(" · ")} · ${say("teacher.at", { time: clockTime(Date.now() / 1000) })}`;
}

function options(select, values, words, chosen) {
  select.replaceChildren(...values.map((value) => make("option", { value, selected: value === chosen }, words(value))));
}

function offer() {
  const course = courseSelect.value;
  const since = find("since").childElementCount ? find("since").value : "60";
  const spoken = find("spoken").value || "course";
  options(courseSelect, ["", ...me.courses.map((one) => one.name)], (name) => me.courses.find((one) => one.name === name)?.title ?? say("teacher.all_courses"), course);
  options(find("since"), SINCE, (minutes) => say(`teacher.since_${minutes || "all"}`), since);
  options(find("spoken"), SPOKEN, (language) => say(`teacher.speaks_${language}`), spoken);
  courseSelect.setAttribute("aria-label", say("course"));
  chooser.hidden = me.courses.length < 2;
}

document.addEventListener("words", () => {
  offer();
  drawState();
  draw();
});
find("asked").addEventListener("redraw", draw);
courseSelect.addEventListener("change", listen);
find("since").addEventListener("change", listen);

offer();
drawState();
resize(0);
listen();
if (me.invites) wireInviting();
