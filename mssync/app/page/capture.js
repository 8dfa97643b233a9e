// Microphone blocks at the context's rate in, 16 kHz 16-bit blocks of 20 ms out: averages over the samples that fall
// on each output sample, which is filter enough for speech.
const RATE = 16000;
const BLOCK = 320;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(BLOCK);
    this.filled = 0;
    this.sum = 0;
    this.count = 0;
    this.phase = 0;
    this.begun = false;
  }

  process([input]) {
    if (!input[0] && !this.begun) return true;
    const samples = input[0] ?? new Float32Array(128); // a silent source must not stop the clock
    if (!this.begun) {
      this.begun = true;
      this.port.postMessage({ begun: currentTime });
    }
    for (const sample of samples) {
      this.sum += sample;
      this.count += 1;
      this.phase += RATE;
      // Context rates below 16 kHz repeat samples.
      while (this.phase >= sampleRate) {
        this.phase -= sampleRate;
        this.put(this.count ? this.sum / this.count : sample);
        this.sum = 0;
        this.count = 0;
      }
    }
    return true;
  }

  put(value) {
    this.block[this.filled++] = Math.round(Math.max(-1, Math.min(1, value)) * 32767);
    if (this.filled === BLOCK) {
      this.port.postMessage({ sound: this.block.buffer }, [this.block.buffer]);
      this.block = new Int16Array(BLOCK);
      this.filled = 0;
    }
  }
}

registerProcessor("capture", Capture);
