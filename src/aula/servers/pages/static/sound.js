// Microphone and loudspeaker of this browser. Both are opened when they are first needed, by a gesture.

const FILES = new URL(".", import.meta.url);

/** Why there is no microphone: "denied", "absent", "busy", or "insecure" (a page without https, beyond localhost). */
export class NoMicrophone extends Error {
  constructor(why) {
    super(why);
    this.why = why;
  }
}

const WHY = { NotAllowedError: "denied", SecurityError: "denied", NotFoundError: "absent", OverconstrainedError: "absent" };

export class Microphone {
  /** `rate` samples a second are wanted, in Int16Arrays of 20 ms; `heard(samples, level)` gets each. */
  constructor(rate, heard) {
    this.rate = rate;
    this.heard = heard;
    this.node = null;
    this.ended = null;
  }

  static get possible() {
    return Boolean(navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode);
  }

  get isOpen() {
    return Boolean(this.node && this.stream.active);
  }

  async open() {
    if (this.isOpen) return;
    if (!Microphone.possible) throw new NoMicrophone(window.isSecureContext ? "absent" : "insecure");
    try {
      // A browser's noise suppression is made for ears: what it takes out of words, a recogniser misses.
      this.stream = await navigator.mediaDevices.getUserMedia({
        audio: { channelCount: 1, echoCancellation: true, noiseSuppression: false, autoGainControl: true },
      });
    } catch (error) {
      throw new NoMicrophone(WHY[error.name] ?? "busy");
    }
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule(new URL("capture.worklet.js", FILES));
    this.source = this.context.createMediaStreamSource(this.stream);
    this.node = new AudioWorkletNode(this.context, "aula-capture", {
      numberOfOutputs: 0, processorOptions: { rate: this.rate },
    });
    this.node.port.onmessage = ({ data }) => {
      if (data === "end") this.ended?.();
      else this.heard(data.samples, data.level);
    };
    this.source.connect(this.node);
    await this.context.resume();
  }

  start() {
    this.node.port.postMessage("on");
  }

  /** Resolves when the last piece was heard. */
  stop() {
    return new Promise((resolve) => {
      this.ended = resolve;
      this.node.port.postMessage("off");
    });
  }

  /** The browser's own sign that the microphone is open goes out. */
  async close() {
    const { node, stream, context } = this;
    this.node = this.stream = this.context = null;
    for (const track of stream?.getTracks() ?? []) track.stop();
    node?.disconnect();
    await context?.close();
  }
}

export class Loudspeaker {
  /** Int16 samples at `rate`; `changed(sounds)` hears when there is sound and when there is none. */
  constructor(rate, changed) {
    this.rate = rate;
    this.changed = changed;
    this.sounds = false;
    this.startedAt = 0;
    this.opening = null;
  }

  /** By a gesture, or the browser keeps it silent. */
  open() {
    this.opening ??= (async () => {
      this.context = new AudioContext({ sampleRate: this.rate });
      await this.context.audioWorklet.addModule(new URL("playback.worklet.js", FILES));
      this.node = new AudioWorkletNode(this.context, "aula-playback", { numberOfInputs: 0, outputChannelCount: [1] });
      this.node.port.onmessage = ({ data }) => {
        this.sounds = data.kind === "sounds";
        if (this.sounds) this.startedAt = performance.now();
        this.changed(this.sounds);
      };
      this.node.connect(this.context.destination);
    })();
    void this.context?.resume();
    return this.opening;
  }

  async play(samples) {
    await this.open();
    this.node.port.postMessage(Float32Array.from(samples, (sample) => sample / 32768));
  }

  /** Silence at once; how many milliseconds of what sounds had been heard. */
  stop() {
    if (!this.sounds) return 0;
    this.node.port.postMessage("clear");
    return Math.round(performance.now() - this.startedAt);
  }
}

export function fromBase64(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length & ~1);
  for (let place = 0; place < bytes.length; place++) bytes[place] = raw.charCodeAt(place);
  return new Int16Array(bytes.buffer);
}

export function toBase64(samples) {
  return btoa(String.fromCharCode(...new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength)));
}
