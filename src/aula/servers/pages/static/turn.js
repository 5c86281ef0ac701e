// One question and its answer, as the student sees them.

import { gently, ICONS, icon, make, waiting } from "./dom.js";
import { openPassage } from "./passage.js";
import { duration, say } from "./words.js";

const STAGES = ["transcribe", "understand", "retrieve", "answer", "speak_first_byte"];

export class Turn {
  /** `again(turn)` is called when its sound is wanted once more. */
  constructor(again) {
    this.question = "";
    this.isPartial = true;
    this.answer = "";
    this.told = null; // the field `aula` of the response
    this.sound = []; // Int16Arrays
    this.itemId = null; // of the answer
    this.releasedAt = null;
    this.firstSoundMs = null;
    this.firstWordsMs = null;
    this.failure = null; // a key of the words
    this.wasStopped = false;
    this.isDone = false;
    this.shows = false; // the stages
    this.again = again;
    this.view = make("li", { class: "turn" });
    this.draw();
  }

  get soundMs() {
    return this.sound.reduce((sum, block) => sum + block.length, 0) / 24;
  }

  draw() {
    const { told } = this;
    this.view.classList.toggle("refused", Boolean(told?.refused));
    this.view.replaceChildren(
      make("p", { class: this.isPartial ? "asked partial" : "asked", lang: told?.language },
        make("span", { class: "unseen" }, `${say("student.you")} `), this.question || (this.isPartial ? "" : "…")),
      ...this.body(),
    );
  }

  body() {
    if (this.failure) return [make("p", { class: "notice bad" }, make("div", {}, say(this.failure)))];
    if (this.isPartial) return [];
    if (!this.answer && !this.isDone) return [make("p", { class: "answer" }, waiting(), make("span", { class: "unseen" }, say("student.thinking")))];
    const parts = [make("p", { class: "answer", lang: this.told?.language }, this.answer)];
    const cites = this.told?.citations ?? [];
    if (cites.length) parts.push(make("div", { class: "cites" }, ...cites.map((one, place) => this.cite(one, place))));
    if (this.isDone) parts.push(this.meta());
    if (this.shows) parts.push(this.stages());
    return parts;
  }

  cite(one, place) {
    const path = one.passage.split(" > ");
    const title = path.at(-1);
    return make("button", {
      type: "button", class: "cite", "aria-haspopup": "dialog",
      onclick: () => openPassage(one.course, one.document, one.passage),
    }, make("span", { class: "unseen" }, `${say("student.open_passage")} `), make("b", { "aria-hidden": "true" }, String(place + 1)), make("span", {}, title, " ", make("small", {}, path.slice(0, -1).join(" › "))));
  }

  meta() {
    const meta = make("div", { class: "meta figures" });
    const ms = this.firstSoundMs ?? this.firstWordsMs;
    if (ms !== null) {
      const key = this.firstSoundMs === null ? "student.words_after" : "student.sound_after";
      meta.append(make("button", {
        type: "button", "aria-expanded": String(this.shows), class: "latency",
        onclick: () => { this.shows = !this.shows; this.draw(); this.view.querySelector(".latency").focus(); this.view.lastChild.scrollIntoView({ block: "nearest", behavior: gently() }); },
      }, icon(ICONS.clock), make("span", { class: ms <= 200 ? "fast" : "" }, say(key, { time: duration(ms) }))));
    }
    if (this.sound.length) {
      meta.append(make("button", { type: "button", class: "replay", onclick: () => this.again(this) }, icon(ICONS.play), say("student.replay")));
    }
    if (this.wasStopped) meta.append(make("span", {}, say("student.stopped")));
    return meta;
  }

  /** Where the time went: clock A as this browser measured it, and the server's own stages. */
  stages() {
    const timings = this.told?.timings_ms ?? {};
    const rows = STAGES.filter((stage) => timings[stage] > 0).map((stage) => [say(`stage.${stage}`), timings[stage]]);
    const most = Math.max(1, ...rows.map(([, ms]) => ms));
    const list = make("dl", { class: "stages figures" });
    for (const [name, ms] of rows) {
      const bar = make("dd", { class: "bar", "aria-hidden": "true" });
      bar.style.setProperty("--part", `${Math.max(1, (100 * ms) / most)}%`);
      list.append(make("dt", {}, name), bar, make("dd", { class: "ms" }, duration(ms)));
    }
    const note = this.told?.drafted ? say("student.drafted") : say("student.not_drafted");
    return make("div", {}, list, make("p", { class: "quiet" }, note));
  }
}
