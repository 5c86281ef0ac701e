// Captions of a lecture: this computer's microphone to the server, and its words back.

import { socket } from "./door.js";
import { Microphone } from "./sound.js";

const RATE = 16_000;
const MOST_WAITING = 4 * 2 * RATE; // bytes that may wait in the browser: later captions help nobody

/** Events: "state" (opening, on, ending, off), "caption", "words", "skipped", "level", "trouble" (error). */
export class Captions extends EventTarget {
  constructor() {
    super();
    this.state = "off";
    this.captions = [];
    this.began = 0; // seconds of earlier sittings of this lecture
    this.microphone = new Microphone(RATE, (samples, level) => {
      this.tell("level", level);
      if (this.line?.readyState !== WebSocket.OPEN) return;
      if (this.line.bufferedAmount > MOST_WAITING) this.tell("skipped", samples.length / RATE);
      else this.line.send(samples);
    });
  }

  async begin(language, course) {
    this.set("opening");
    this.wanted = { language, course };
    try {
      await this.microphone.open();
      await this.connect();
    } catch (error) {
      await this.microphone.close();
      this.set("off");
      throw error;
    }
    this.microphone.start();
    this.set("on");
  }

  /** Resolves once the server is ready; rejects with what it says. */
  connect() {
    return new Promise((resolve, reject) => {
      const line = (this.line = socket(`/pages/captions?${new URLSearchParams(this.wanted)}`, "aula-captions"));
      line.binaryType = "arraybuffer";
      let told = null;
      line.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        if (message.type === "ready") resolve();
        else if (message.type === "error") told = message.error;
        else if (message.type === "caption") {
          message.start += this.began;
          message.end += this.began;
          this.captions.push(message);
          this.tell("caption", message);
        } else if (message.type === "words") this.tell("words", message.text);
        else if (message.type === "skipped") this.tell("skipped", message.seconds);
      };
      line.onclose = () => {
        this.began = this.captions.at(-1)?.end ?? this.began;
        const error = told ?? { kind: "Unreachable" };
        reject(error);
        const wasOn = this.state === "on";
        if (this.line === line) this.line = null;
        if (this.state === "off" || this.state === "opening") return;
        void this.microphone.close();
        this.set("off");
        if (wasOn) this.tell("trouble", error);
      };
    });
  }

  /** The server says the last words, then the line ends. */
  async end() {
    if (this.state !== "on") return;
    this.set("ending");
    await this.microphone.stop();
    this.line?.send(JSON.stringify({ type: "end" }));
    await this.microphone.close();
    if (!this.line) this.set("off");
  }

  /** All captions so far as WebVTT. */
  asWebVtt() {
    const time = (seconds) => {
      const whole = Math.max(0, Math.round(1000 * seconds));
      const parts = [Math.floor(whole / 3_600_000), Math.floor(whole / 60_000) % 60, Math.floor(whole / 1000) % 60];
      return `${parts.map((part) => String(part).padStart(2, "0")).join(":")}.${String(whole % 1000).padStart(3, "0")}`;
    };
    const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
    return `WEBVTT\n\n${this.captions.map((one) => `${time(one.start)} --> ${time(one.end)}\n${escaped(one.text)}\n`).join("\n")}`;
  }

  set(state) {
    this.state = state;
    this.tell("state", state);
  }

  tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
