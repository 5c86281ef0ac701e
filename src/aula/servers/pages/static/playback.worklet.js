// In the audio thread: a queue of sound. What is cleared fades out in 5 ms, so that an interruption does not click.

const FADE = 0.005;

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.queue = [];
    this.at = 0;
    this.played = 0;
    this.fading = 0;
    this.wasEmpty = true;
    this.port.onmessage = ({ data }) => {
      if (data === "clear") this.fading = Math.round(FADE * sampleRate);
      else if (data === "reset") this.played = 0;
      else this.queue.push(data);
    };
  }

  process(_, [[out]]) {
    for (let place = 0; place < out.length; place++) {
      const block = this.queue[0];
      if (!block) {
        this.fading = 0;
        break;
      }
      let sample = block[this.at++];
      if (this.at >= block.length) {
        this.queue.shift();
        this.at = 0;
      }
      if (this.fading) {
        sample *= this.fading / (FADE * sampleRate);
        if (--this.fading === 0) {
          this.queue = [];
          this.at = 0;
        }
      }
      out[place] = sample;
      this.played++;
      if (this.wasEmpty) {
        this.wasEmpty = false;
        this.port.postMessage({ kind: "sounds" });
      }
    }
    if (!this.queue.length && !this.wasEmpty) {
      this.wasEmpty = true;
      this.port.postMessage({ kind: "silent", played: this.played });
    }
    return true;
  }
}

registerProcessor("aula-playback", Playback);
