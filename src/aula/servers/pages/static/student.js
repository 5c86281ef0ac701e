// The student's page: hold and ask, or type; hear and read the answer; open what it cites.

import { find, gently, make, remember, remembered } from "./dom.js";
import { ask as request, explained } from "./door.js";
import { Realtime, RATE } from "./realtime.js";
import { begin, courseChoice, notice, readmit } from "./shell.js";
import { fromBase64, Loudspeaker, Microphone, toBase64 } from "./sound.js";
import { Turn } from "./turn.js";
import { say } from "./words.js";

const TAP_MS = 280; // a shorter press is a tap: the next one ends the question
const LEAST_MS = 300; // of sound, for a question
const REST_MS = 60_000; // after which an unused microphone is closed
const KEPT_SOUNDS = 8;

const hold = find("hold");
const chooser = courseChoice("course");
const me = await begin(chooser);

let courses = me.courses;
let course = courses.find((one) => one.name === remembered("course")) ?? courses.find((one) => one.name === me.course) ?? courses[0];
let line = null;
let turns = [];
let current = null; // the turn that is asked or answered now
let state = "idle"; // idle, opening, listening, thinking, speaking, off
let pressedAt = 0;
let isLatched = false;
let heardMs = 0;
let wantsStop = false;
let isHeld = false;
let restTimer = 0;
let aloud = remembered("aloud") !== "no";

const speaker = new Loudspeaker(RATE, (sounds) => {
  if (sounds && state === "thinking") become("speaking");
  if (!sounds && state === "speaking" && (!current || current.isDone)) become("idle");
});
const microphone = new Microphone(RATE, (samples, level) => {
  hold.style.setProperty("--level", Math.min(1, level * 6).toFixed(3));
  heardMs += (1000 * samples.length) / RATE;
  line.append(toBase64(samples));
});

// What is shown

function become(next) {
  state = next;
  hold.dataset.state = next;
  hold.setAttribute("aria-pressed", String(next === "listening"));
  hint();
}

function hint() {
  const key = state === "listening" ? (isLatched ? "student.hint_tap" : "student.hint_release")
    : { opening: "student.hint_opening", thinking: "student.hint_thinking", speaking: "student.hint_speaking", off: "student.hint_off" }[state] ?? "student.hint";
  find("hint").textContent = say(key);
  find("hint").toggleAttribute("data-live", state === "listening");
  find("hold-name").textContent = say(state === "listening" ? "student.finish" : state === "speaking" ? "student.interrupt" : "student.hold");
}

function showWelcome() {
  find("welcome").hidden = turns.length > 0;
  find("clear").hidden = turns.length === 0;
  find("course-title").textContent = course.title;
  find("course-about").textContent = course.description;
  find("course-title").lang = find("course-about").lang = course.language;
}

function add(turn) {
  turns.push(turn);
  find("turns").append(turn.view);
  showWelcome();
  bottom();
  return turn;
}

function bottom() {
  scrollTo({ top: document.body.scrollHeight, behavior: gently() });
}

function tell(...notices) {
  find("notices").replaceChildren(...notices);
}

function complain(key, options = {}) {
  tell(notice(say(key), { bad: true, ...options }));
}

// Asking aloud

async function press(event) {
  if (event) event.preventDefault();
  if (state === "listening" && isLatched) {
    release();
    return;
  }
  if (isHeld || state === "off") return;
  isHeld = true;
  wantsStop = false;
  isLatched = false;
  pressedAt = performance.now();
  tell();
  interrupt();
  clearTimeout(restTimer);
  become("opening");
  void speaker.open();
  try {
    await Promise.all([microphone.open(), line.open()]);
  } catch (error) {
    isHeld = false;
    become("idle");
    if (error.why) noMicrophone(error.why);
    else complain("line.closed");
    return;
  }
  if (wantsStop) {
    // The hand was gone before the microphone was there: the next press finds it open.
    isHeld = false;
    become("idle");
    rest();
    tell(notice(say("microphone.ready")));
    return;
  }
  heardMs = 0;
  line.clear();
  current = add(new Turn(replay));
  become("listening");
  microphone.start();
}

function letGo() {
  if (!isHeld || isLatched) return;
  if (state === "opening") wantsStop = true;
  else if (state === "listening" && performance.now() - pressedAt < TAP_MS) {
    isLatched = true;
    hint();
  } else release();
}

async function release() {
  if (state !== "listening") return;
  isHeld = isLatched = false;
  become("thinking");
  hold.style.setProperty("--level", "0");
  await microphone.stop();
  rest();
  if (heardMs < LEAST_MS) {
    line.clear();
    drop(current);
    become("idle");
    tell(notice(say("student.too_short")));
    return;
  }
  line.commit();
  current.releasedAt = performance.now();
  current.isPartial = false;
  current.draw();
}

function rest() {
  restTimer = setTimeout(() => microphone.close(), REST_MS);
}

/** Barge in: whatever sounds is silent at once, and the server knows how much was heard. */
function interrupt() {
  const ms = speaker.stop();
  if (!current) return;
  const goesOn = !current.isDone && !current.isPartial;
  if (ms || goesOn) {
    line.interrupt(current.itemId, Math.min(ms, Math.floor(current.soundMs)));
    current.wasStopped = true;
    current.draw();
  }
}

function drop(turn) {
  turns = turns.filter((one) => one !== turn);
  turn?.view.remove();
  if (current === turn) current = null;
  showWelcome();
}

function noMicrophone(why) {
  const action = why === "denied" || why === "busy" ? say("again") : null;
  complain(`microphone.${why}`, { words: say(why === "denied" ? "microphone.allow" : "microphone.type"), action, onaction: () => { tell(); become("idle"); hold.focus(); } });
  if (why === "absent" || why === "insecure") become("off");
  find("question").focus();
}

// Asking in writing

async function ask(event) {
  event.preventDefault();
  const field = find("question");
  const text = field.value.trim();
  if (!text) {
    field.focus();
    return;
  }
  tell();
  interrupt();
  void speaker.open();
  const turn = new Turn(replay);
  turn.question = text;
  turn.isPartial = false;
  turn.draw();
  field.value = "";
  current = add(turn);
  become("thinking");
  try {
    await line.open();
  } catch {
    drop(turn);
    field.value = text;
    become("idle");
    complain("line.closed");
    return;
  }
  line.ask(text);
  turn.releasedAt = performance.now();
}

async function replay(turn) {
  speaker.stop();
  for (const block of turn.sound) await speaker.play(block);
}

// What the server tells

function connect() {
  line?.close();
  line = new Realtime(course.name);
  line.aloud = aloud;
  const on = (type, hear) => line.addEventListener(type, ({ detail }) => hear(detail));
  on("line", ({ state: now }) => {
    document.body.dataset.line = now;
    if (now === "closed") lost();
    if (now === "open" && find("lost")) tell();
  });
  on("conversation.item.input_audio_transcription.delta", ({ delta, aula }) => {
    if (!current || current.answer) return;
    current.question = aula?.partial ?? current.question + delta;
    current.draw();
    bottom();
  });
  on("conversation.item.input_audio_transcription.completed", ({ transcript }) => {
    if (!current) return;
    current.question = transcript;
    current.draw();
  });
  on("conversation.item.input_audio_transcription.failed", ({ error }) => failed(error));
  const words = ({ delta }) => {
    if (!current) return;
    current.firstWordsMs ??= performance.now() - current.releasedAt;
    current.answer += delta;
    current.draw();
    bottom();
  };
  on("response.output_audio_transcript.delta", words);
  on("response.output_text.delta", words);
  on("response.output_audio.delta", ({ delta, item_id }) => {
    if (!current || current.wasStopped) return;
    current.firstSoundMs ??= performance.now() - current.releasedAt;
    const samples = fromBase64(delta);
    current.itemId = item_id;
    current.sound.push(samples);
    void speaker.play(samples);
  });
  on("response.done", ({ response }) => done(response));
  on("error", ({ error }) => failed(error));
  void line.open();
}

function done(response) {
  const turn = current;
  if (!turn || turn.isDone) return;
  if (response.status === "failed") {
    failed(response.status_details?.error ?? {});
    return;
  }
  turn.told = response.aula ?? null;
  turn.isDone = true;
  if (turn.told?.question) turn.question = turn.told.question;
  if (response.status === "cancelled") turn.wasStopped = true;
  turn.draw();
  find("said").textContent = turn.answer;
  for (const old of turns.slice(0, -KEPT_SOUNDS)) old.sound = [];
  if (state === "thinking" && !turn.sound.length) become("idle");
  else if (state === "thinking" && !speaker.sounds) setTimeout(() => { if (state === "thinking" && current === turn) become("idle"); }, 400);
  else if (state === "speaking" && !speaker.sounds) become("idle");
  bottom();
}

const FAILURES = {
  unsupported_language: "fail.language", nothing_heard: "fail.nothing_heard", rate_limit_exceeded: "fail.busy",
  model_not_found: "fail.course", invalid_audio: "fail.too_long", input_audio_buffer_commit_empty: "student.too_short",
  session_idle_timeout: null, response_cancel_not_active: null, invalid_value: null,
};

function failed(error) {
  const code = error.code ?? "";
  const known = code in FAILURES;
  if (known && FAILURES[code] === null) return;
  const key = known ? FAILURES[code] : "fail.unknown";
  if (state === "listening") void microphone.stop();
  isHeld = isLatched = false;
  if (current && !current.isDone) {
    current.failure = key;
    current.isPartial = false;
    current.isDone = true;
    current.draw();
  } else complain(key);
  if (state !== "off") become("idle");
}

async function lost() {
  const broken = line;
  if (current && !current.isDone) failed({ code: "" });
  if (broken.wasOpen) return; // it comes back by itself; what is told is that it does not
  const why = await whyRefused();
  if (line !== broken || broken.state !== "closed") return;
  if (why.status === 401 || why.status === 403) {
    broken.close();
    await readmit();
    connect();
    return;
  }
  if (why.kind === "Warming") warming();
  else {
    const action = { action: say("again"), onaction: () => broken.open() };
    tell(notice(explained(why).title, { bad: true, words: say("retrying"), id: "lost", ...action }));
  }
}

function warming() {
  tell(notice(say("line.warming"), { words: say("line.warming_words"), id: "lost" }));
}

/** A browser's script cannot read why a WebSocket was refused, so that the server is asked by another way: a key that
 * holds, at a server that answers, was refused because too many are connected. */
async function whyRefused() {
  try {
    if (!(await request("/pages/me?for=ask")).ready) return { kind: "Warming" };
  } catch (error) {
    return error;
  }
  return { kind: "OverloadError" };
}

// Courses

function offer() {
  const select = chooser.querySelector("select");
  select.setAttribute("aria-label", say("course"));
  select.replaceChildren(...courses.map((one) => make("option", { value: one.name, lang: one.language, selected: one === course }, one.title)));
  chooser.hidden = courses.length < 2;
}

function take(name) {
  course = courses.find((one) => one.name === name);
  remember("course", name);
  if (turns.length) find("turns").append(make("li", { class: "divider", lang: course.language }, course.title));
  speaker.stop();
  current = null;
  if (state !== "off") become("idle");
  showWelcome();
  connect();
}

function forget() {
  speaker.stop();
  turns = [];
  current = null;
  find("turns").replaceChildren();
  if (state !== "off") become("idle");
  showWelcome();
  connect();
  hold.focus();
}

// Hands and keys

hold.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  hold.focus({ focusVisible: false });
  hold.setPointerCapture(event.pointerId);
  void press(event);
});
for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) hold.addEventListener(end, letGo);
hold.addEventListener("contextmenu", (event) => event.preventDefault());
// A click without a pointer is a screen reader's, or a switch's: it taps.
hold.addEventListener("click", (event) => {
  if (event.detail !== 0 || event.pointerType) return;
  if (state === "listening") release();
  else press(event).then(() => { isLatched = state === "listening"; hint(); });
});
const isTyping = (target) => target.closest?.("input, select, textarea, dialog[open], button:not(#hold), a");
addEventListener("keydown", (event) => {
  const holds = event.code === "Space" || (event.key === "Enter" && event.target === hold);
  if (!holds || isTyping(event.target)) return;
  event.preventDefault();
  if (!event.repeat) void press(event);
});
addEventListener("keyup", (event) => {
  const holds = event.code === "Space" || (event.key === "Enter" && event.target === hold);
  if (!holds || isTyping(event.target)) return;
  event.preventDefault();
  letGo();
});
addEventListener("blur", letGo);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) return;
  if (state === "listening") release().then(() => microphone.close());
  else {
    letGo();
    void microphone.close();
  }
});

find("type").addEventListener("submit", ask);
find("question").maxLength = me.longest;
find("clear").addEventListener("click", forget);
find("aloud").addEventListener("click", () => {
  aloud = !aloud;
  remember("aloud", aloud ? "yes" : "no");
  find("aloud").setAttribute("aria-pressed", String(aloud));
  if (!aloud) speaker.stop();
  line.say(aloud);
});
find("aloud").setAttribute("aria-pressed", String(aloud));
chooser.querySelector("select").addEventListener("change", (event) => take(event.target.value));
document.addEventListener("words", () => {
  offer();
  hint();
  for (const turn of turns) turn.draw();
});

offer();
showWelcome();
if (!Microphone.possible) {
  become("off");
  find("hint").textContent = say(window.isSecureContext ? "microphone.absent" : "microphone.insecure");
}
if (!me.ready) warming();
navigator.mediaDevices?.addEventListener("devicechange", () => {
  if (state !== "off") return;
  tell();
  become("idle");
});
connect();
