// A conversation with a course over the Realtime protocol (GA names), by WebSocket: push-to-talk and typed questions.

import { socket } from "./door.js";

export const RATE = 24_000;
const PATIENCE = 12_000; // milliseconds until a line that does not come to stand is given up

/**
 * Events it dispatches: "line" (state: opening, open, closed), and every event of the server under its own type. The
 * line is opened when it is needed, and comes back by itself while somebody looks at the page.
 */
export class Realtime extends EventTarget {
  constructor(course) {
    super();
    this.course = course;
    this.aloud = true;
    this.state = "closed";
    this.failures = 0;
    this.response = null; // the id of the response that goes on
    this.wasOpen = false; // when it broke
  }

  /** Resolves when questions can be asked. */
  open() {
    if (this.state !== "closed") return this.opened;
    clearTimeout(this.timer);
    this.set("opening");
    this.opened = new Promise((resolve, reject) => {
      const line = (this.line = socket(`/v1/realtime?model=${encodeURIComponent(`aula:${this.course}`)}`, "realtime"));
      const patience = setTimeout(() => line.close(), PATIENCE);
      line.onmessage = ({ data }) => {
        if (this.line !== line) return;
        const event = JSON.parse(data);
        if (event.type === "session.created") this.settle();
        if (event.type === "session.updated" && this.state === "opening") {
          clearTimeout(patience);
          this.failures = 0;
          this.set("open");
          resolve();
        }
        if (event.type === "response.created") this.response = event.response.id;
        if (event.type === "response.done") this.response = null;
        this.tell(event.type, event);
      };
      line.onclose = () => {
        clearTimeout(patience);
        reject(new Error("closed"));
        if (this.line !== line) return;
        this.line = this.response = null;
        this.wasOpen = this.state === "open";
        this.set("closed");
        this.again();
      };
    });
    this.opened.catch(() => {});
    return this.opened;
  }

  close() {
    clearTimeout(this.timer);
    const line = this.line;
    this.line = this.response = null;
    this.state = "closed";
    line?.close();
  }

  again() {
    this.failures += 1;
    const wait = Math.min(15_000, 500 * 2 ** this.failures);
    this.timer = setTimeout(() => (document.hidden ? this.again() : this.open()), wait);
  }

  settle() {
    const format = { type: "audio/pcm", rate: RATE };
    this.send({ type: "session.update", session: {
      type: "realtime",
      output_modalities: [this.aloud ? "audio" : "text"],
      audio: { input: { format, turn_detection: null, transcription: { model: "aula" } }, output: { format } },
    } });
  }

  say(aloud) {
    this.aloud = aloud;
    if (this.state === "open") this.send({ type: "session.update", session: { type: "realtime", output_modalities: [aloud ? "audio" : "text"] } });
  }

  ask(text) {
    this.send({ type: "conversation.item.create", item: { type: "message", role: "user", content: [{ type: "input_text", text }] } });
    this.send({ type: "response.create" });
  }

  append(audio) {
    this.send({ type: "input_audio_buffer.append", audio });
  }

  /** Both at once: what is ready may sound as soon as the words are sure. */
  commit() {
    this.send({ type: "input_audio_buffer.commit" });
    this.send({ type: "response.create" });
  }

  clear() {
    this.send({ type: "input_audio_buffer.clear" });
  }

  /** Stop an answer of which `heardMs` were heard. */
  interrupt(itemId, heardMs) {
    if (this.response) this.send({ type: "response.cancel" });
    if (itemId && heardMs > 0) this.send({ type: "conversation.item.truncate", item_id: itemId, content_index: 0, audio_end_ms: heardMs });
  }

  send(event) {
    if (this.line?.readyState === WebSocket.OPEN) this.line.send(JSON.stringify(event));
  }

  set(state) {
    this.state = state;
    this.tell("line", { state });
  }

  tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
