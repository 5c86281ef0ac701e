// In the audio thread: the microphone's blocks, at the rate that is wanted, in pieces of 20 ms, while it is asked for.

import { Resampler, toInt16 } from "./resampler.js";

class Capture extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate } }) {
    super();
    this.rate = rate;
    this.piece = Math.round(rate / 50);
    this.isOn = false;
    this.port.onmessage = ({ data }) => (data === "on" ? this.start() : this.stop());
  }

  start() {
    this.resampler = new Resampler(sampleRate, this.rate);
    this.waiting = new Float32Array(0);
    this.isOn = true;
  }

  stop() {
    if (!this.isOn) return;
    this.isOn = false;
    this.take(this.resampler.flush());
    if (this.waiting.length) this.send(this.waiting);
    this.port.postMessage("end");
  }

  process([input]) {
    if (this.isOn && input.length) {
      let mono = input[0];
      if (input.length > 1) {
        mono = mono.map((_, place) => input.reduce((sum, channel) => sum + channel[place], 0) / input.length);
      }
      this.take(this.resampler.feed(mono));
    }
    return true;
  }

  take(samples) {
    let all = new Float32Array(this.waiting.length + samples.length);
    all.set(this.waiting);
    all.set(samples, this.waiting.length);
    while (all.length >= this.piece) {
      this.send(all.subarray(0, this.piece));
      all = all.subarray(this.piece);
    }
    this.waiting = all.slice();
  }

  send(samples) {
    const level = Math.sqrt(samples.reduce((sum, one) => sum + one * one, 0) / samples.length);
    const whole = toInt16(samples);
    this.port.postMessage({ samples: whole, level }, [whole.buffer]);
  }
}

registerProcessor("aula-capture", Capture);
