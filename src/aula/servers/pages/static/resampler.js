// Sound from one rate to another, block by block: a windowed sinc, so that nothing above the new rate's half folds back.

const ZEROS = 16; // zero crossings on each side
const STEPS = 512; // table entries between two of them

const TABLE = (() => {
  const table = new Float32Array(ZEROS * STEPS + 2);
  for (let place = 0; place < table.length; place++) {
    const x = place / STEPS;
    const sinc = x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
    const window = x >= ZEROS ? 0 : 0.5 + 0.5 * Math.cos((Math.PI * x) / ZEROS);
    table[place] = sinc * window;
  }
  return table;
})();

export class Resampler {
  constructor(from, to) {
    this.step = from / to;
    this.cutoff = Math.min(1, to / from) * 0.94; // the window's slope lies under the new half
    this.reach = ZEROS / this.cutoff; // input samples on each side
    this.kept = new Float32Array(Math.ceil(this.reach)); // silence before the first sample
    this.at = this.kept.length; // where the next output sample lies in `kept` + what comes
  }

  /** Float32Array in, Float32Array out; a few samples stay for the next block. */
  feed(block) {
    const all = new Float32Array(this.kept.length + block.length);
    all.set(this.kept);
    all.set(block, this.kept.length);
    const most = all.length - Math.ceil(this.reach) - 1;
    const made = new Float32Array(Math.max(0, Math.ceil((most - this.at) / this.step) + 1));
    let count = 0;
    for (; this.at <= most && count < made.length; this.at += this.step) made[count++] = this.sample(all, this.at);
    const from = Math.max(0, Math.min(all.length, Math.floor(this.at - this.reach)));
    this.kept = all.slice(from);
    this.at -= from;
    return made.subarray(0, count);
  }

  /** What is left, as if silence followed. */
  flush() {
    return this.feed(new Float32Array(2 * Math.ceil(this.reach) + 1));
  }

  sample(all, at) {
    const first = Math.max(0, Math.ceil(at - this.reach));
    const last = Math.min(all.length - 1, Math.floor(at + this.reach));
    let sum = 0;
    for (let place = first; place <= last; place++) {
      const x = Math.abs(place - at) * this.cutoff * STEPS;
      const whole = x | 0;
      if (whole >= ZEROS * STEPS) continue;
      sum += all[place] * (TABLE[whole] + (x - whole) * (TABLE[whole + 1] - TABLE[whole]));
    }
    return sum * this.cutoff;
  }
}

/** Float32 in -1..1 to little-endian 16-bit samples. */
export function toInt16(samples) {
  const made = new Int16Array(samples.length);
  for (let place = 0; place < samples.length; place++) {
    made[place] = Math.round(Math.max(-1, Math.min(1, samples[place])) * 32767);
  }
  return made;
}
