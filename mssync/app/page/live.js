// Sends sound, shows frames. Every frame carries the time of the sound it belongs to; it is shown when that sound is
// heard, or not at all. The clock is the sound's own, AudioContext.currentTime.

const RATE = 16000;
const BLOCK = 640; // samples sent at a time from a recording: one video frame
const AHEAD = 0.6; // seconds of a recording that are sent before they are heard
const MARGIN = 0.08; // seconds between a frame's usual arrival and its showing, for uneven networks
const MOST = 1.5; // seconds by which a microphone's picture may be late
const REMEMBERED = 5; // seconds: how late the picture has to be is what the latest frame of these needed
const CATCH_UP = 0.1; // how much faster picture and sound play until they are no later than that
const WAITING = 75; // frames that wait to be shown; a page that is not looked at shows none

const at = (id) => document.getElementById(id);
const screen = at("screen").getContext("2d");
const token = new URLSearchParams(location.search).get("token");
let session = null;

function address(name) {
  const url = new URL(name, location.href);
  if (token) url.searchParams.set("token", token);
  return url;
}

function say(text, bad = false) {
  at("state").textContent = text;
  at("state").classList.toggle("bad", bad);
}

class Session {
  constructor() {
    this.frames = []; // {index, time, picture} that wait to be shown
    this.delay = 0; // seconds from a sound to its picture
    this.arrivals = []; // {at, late}: what delay frames needed, of those that no later one exceeded
    this.origin = null; // the context's time of the first sample
    this.shown = [];
    this.last = -1;
    this.missed = 0;
    this.over = false;
  }

  async open(portrait) {
    this.context = new AudioContext();
    await this.context.resume();
    const url = address("ws");
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(url);
    this.socket.binaryType = "arraybuffer";
    await new Promise((resolve, reject) => {
      this.socket.onopen = resolve;
      this.socket.onerror = () => reject(new Error("the server does not answer"));
    });
    this.socket.onerror = null;
    this.socket.onclose = ({ code }) => {
      if (this.over) this.stop("Finished.");
      else if (code === 1009) this.stop("The picture’s file is too large for the server; scale it down, or save it as jpg.", true);
      else this.stop("The server closed the connection.", true);
    };
    const ready = new Promise((resolve, reject) => {
      this.socket.onmessage = ({ data }) => {
        if (typeof data !== "string") return this.receive(data);
        const message = JSON.parse(data);
        if (message.type === "ready") resolve(message);
        if (message.type === "error") {
          reject(new Error(message.message));
          this.stop(message.message, true);
        }
        if (message.type === "end") this.over = true;
      };
    });
    this.tell({ type: "start", portrait: Boolean(portrait) });
    if (portrait) this.socket.send(await portrait.arrayBuffer());
    this.delay = (await ready).latency + MARGIN;
  }

  tell(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  // Sources of sound

  async microphone(monitor) {
    const echo = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: echo });
    await this.context.audioWorklet.addModule("capture.js");
    const source = this.context.createMediaStreamSource(this.stream);
    const capture = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    capture.port.onmessage = ({ data }) => {
      if (data.begun !== undefined) this.origin = data.begun;
      else if (this.socket.readyState === WebSocket.OPEN) this.socket.send(data.sound);
    };
    source.connect(capture);
    if (monitor) {
      this.late = this.context.createDelay(MOST + 1);
      this.late.delayTime.value = this.delay;
      source.connect(this.late).connect(this.context.destination);
    }
    this.adapts = true; // a microphone's picture can only be as early as it arrives
  }

  async recording(file) {
    const sound = await this.context.decodeAudioData(await file.arrayBuffer());
    const offline = new OfflineAudioContext(1, Math.max(1, Math.ceil(sound.duration * RATE)), RATE);
    const resampling = offline.createBufferSource();
    resampling.buffer = sound;
    resampling.connect(offline.destination);
    resampling.start();
    const samples = (await offline.startRendering()).getChannelData(0);
    const player = this.context.createBufferSource();
    player.buffer = sound;
    player.connect(this.context.destination);
    this.origin = this.context.currentTime + AHEAD;
    this.delay = 0;
    player.start(this.origin);
    let sent = 0;
    const send = () => {
      const due = (this.context.currentTime - this.origin + 2 * AHEAD) * RATE;
      while (sent < samples.length && sent < due && this.socket.readyState === WebSocket.OPEN) {
        this.socket.send(Int16Array.from(samples.subarray(sent, sent + BLOCK), (x) => Math.max(-1, Math.min(1, x)) * 32767));
        sent += BLOCK;
      }
      if (sent >= samples.length) {
        clearInterval(this.timer);
        this.tell({ type: "end" });
      }
    };
    this.timer = setInterval(send, 20);
  }

  // Frames

  async receive(message) {
    const header = new DataView(message);
    const index = header.getUint32(0, true);
    const time = header.getFloat64(4, true);
    this.tell({ type: "seen", index });
    if (this.adapts && this.origin !== null) this.arrived(time);
    const picture = await createImageBitmap(new Blob([new Uint8Array(message, 12)], { type: "image/jpeg" }));
    this.frames.push({ index, time, picture });
    this.frames.sort((a, b) => a.index - b.index);
    while (this.frames.length > WAITING) this.frames.shift().picture.close();
  }

  arrived(time) {
    const at = this.context.currentTime;
    const late = at - this.origin - time + MARGIN;
    while (this.arrivals.length && this.arrivals.at(-1).late <= late) this.arrivals.pop();
    this.arrivals.push({ at, late });
    if (late > this.delay) this.belate(Math.min(late, MOST));
  }

  // After a hiccup of the network frames come in time again: play a little faster until they are shown in time, too.
  catchUp() {
    const now = this.context.currentTime;
    const passed = now - (this.before ?? now);
    this.before = now;
    while (this.arrivals.length > 1 && this.arrivals[0].at < now - REMEMBERED) this.arrivals.shift();
    if (!this.arrivals.length || this.arrivals[0].late >= this.delay) return;
    this.belate(Math.max(this.arrivals[0].late, this.delay - CATCH_UP * passed));
  }

  // The one delay of picture and sound.
  belate(seconds) {
    this.delay = seconds;
    this.late?.delayTime.setTargetAtTime(seconds, this.context.currentTime, 0.02);
  }

  show() {
    if (this.ended) return;
    requestAnimationFrame(() => this.show());
    if (this.origin === null) return;
    if (this.adapts) this.catchUp();
    const heard = this.context.currentTime - (this.context.outputLatency || 0) - this.origin - this.delay;
    let due = null;
    while (this.frames.length && this.frames[0].time <= heard) {
      if (due) due.picture.close();
      due = this.frames.shift();
    }
    if (due) {
      screen.drawImage(due.picture, 0, 0, screen.canvas.width, screen.canvas.height);
      due.picture.close();
      this.missed += Math.max(0, due.index - this.last - 1);
      this.last = due.index;
      this.shown.push(performance.now());
    }
    while (this.shown.length && this.shown[0] < performance.now() - 1000) this.shown.shift();
    at("rate").textContent = this.shown.length;
    at("delay").textContent = this.adapts ? `${Math.round(this.delay * 1000)} ms` : "none";
    at("missed").textContent = this.missed;
    if (this.over && this.frames.length === 0) this.stop("Finished.");
  }

  stop(text, bad = false) {
    if (this.ended || (this.over && this.frames.length && !bad)) return;
    this.ended = true;
    clearInterval(this.timer);
    this.socket?.close();
    this.stream?.getTracks().forEach((track) => track.stop());
    this.context?.close();
    for (const { picture } of this.frames) picture.close();
    at("start").disabled = false;
    at("stop").disabled = true;
    say(text, bad);
  }
}

function source() {
  return new FormData(at("form")).get("source");
}

at("form").addEventListener("change", () => {
  at("recording").disabled = source() !== "file";
  at("hear").hidden = source() === "file";
});

// The portrait as it is, before it speaks.
async function showPortrait(file) {
  try {
    const picture = await createImageBitmap(file);
    const side = Math.min(picture.width, picture.height);
    const size = screen.canvas.width;
    if (at("start").disabled) return; // it speaks already
    screen.drawImage(picture, (picture.width - side) / 2, (picture.height - side) / 2, side, side, 0, 0, size, size);
    picture.close();
  } catch {
    say("This browser cannot show this picture; the server may know it all the same.");
  }
}

at("portrait").addEventListener("change", () => {
  const chosen = at("portrait").files[0];
  if (chosen) showPortrait(chosen);
});

// In the studio this page is as high as what it shows.
if (window.frameElement) {
  document.documentElement.classList.add("embedded");
  new ResizeObserver(() => {
    window.frameElement.style.height = `${Math.ceil(document.body.getBoundingClientRect().height)}px`;
  }).observe(document.body);
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const portrait = at("portrait").files[0];
  const recording = at("recording").files[0];
  if (source() === "file" && !recording) return say("Choose a recording first.", true);
  if (!portrait && at("optional").hidden) return say("Choose a portrait first.", true);
  at("start").disabled = true;
  at("stop").disabled = false;
  say("Looking at the portrait …");
  session = new Session();
  try {
    await session.open(portrait);
    at("figures").hidden = false;
    say("Live.");
    await (source() === "file" ? session.recording(recording) : session.microphone(at("monitor").checked));
    session.show();
  } catch (error) {
    session.stop(error.message, true);
  }
});

at("stop").addEventListener("click", () => session?.stop("Stopped."));

fetch(address("status"))
  .then((answer) => answer.json())
  .then((status) => {
    if (status.error) say("Wrong token: open the address that mssync serve printed.", true);
    at("optional").hidden = !status.portrait;
    if (!status.portrait || at("portrait").files.length) return null;
    return fetch(address("portrait.jpg")).then((answer) => answer.blob()).then(showPortrait);
  })
  .catch(() => say("The server does not answer.", true));
