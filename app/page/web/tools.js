// Saves parts of a stream: snapshots with their settings, recordings with sound, presets.
// Depends on canvases and files, not on the session.
const PNG_KEY = 'zoetrope', STILL_FRAME_MS = 250;

function crc32(bytes) {  // as in the PNG specification, appendix D
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

function pngWith(bytes, settings) {  // the PNG with an iTXt chunk before IEND
  const text = new TextEncoder().encode(`iTXt${PNG_KEY}\0\0\0\0\0${JSON.stringify(settings)}`);
  const chunk = new Uint8Array(text.length + 8), view = new DataView(chunk.buffer);
  view.setUint32(0, text.length - 4);
  chunk.set(text, 4);
  view.setUint32(text.length + 4, crc32(text));
  const end = bytes.length - 12;
  return new Blob([bytes.subarray(0, end), chunk, bytes.subarray(end)], { type: 'image/png' });
}

function settingsOf(bytes) {  // the settings that pngWith wrote, or null
  const view = new DataView(bytes.buffer, bytes.byteOffset), decoder = new TextDecoder();
  for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
    const length = view.getUint32(at), body = bytes.subarray(at + 8, at + 8 + length);
    const start = PNG_KEY.length + 5;
    if (decoder.decode(bytes.subarray(at + 4, at + 8)) === 'iTXt' && decoder.decode(body.subarray(0, PNG_KEY.length)) === PNG_KEY) {
      return JSON.parse(decoder.decode(body.subarray(start)));
    }
  }
  return null;
}

function download(blob, name) {
  const link = Object.assign(document.createElement('a'), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const stamp = () => new Date().toISOString().slice(0, 19).replace(/[:T]/g, '-');

async function snapshot(canvas, settings) {
  const plain = await new Promise((done) => canvas.toBlob(done, 'image/png'));
  download(pngWith(new Uint8Array(await plain.arrayBuffer()), settings), `zoetrope-${stamp()}.png`);
}

const videoName = ({ type }) => `zoetrope-${stamp()}.${type.includes('mp4') ? 'mp4' : 'webm'}`;

class Recorder {  // the canvas and, if the source has any, its sound, delayed to match the picture
  // on: { changed(running, hasSound), failed(text), noted(text) }; kept: a KeptRecordings (kept.js)
  constructor(canvas, kept, on) { Object.assign(this, { canvas, kept, on, recorder: null, parts: [], asking: false }); }

  get running() { return this.recorder !== null; }

  async start(sources, delayMs) {
    const { canvas } = this;
    if (this.running || this.asking) return;
    this.asking = true;  // the browser may ask for the microphone
    const sound = await sources.sound();
    if (!this.asking) { sound.end(); return; }  // stopped in the meantime
    this.asking = false;
    if (sound.missing) this.on.noted(sound.missing);
    const tracks = [...canvas.captureStream(30).getVideoTracks(), ...this.delayed(sound.tracks, delayMs)];
    const kinds = ['video/mp4;codecs=avc1.42E01F,mp4a.40.2', 'video/mp4', 'video/webm;codecs=vp9,opus', 'video/webm;codecs=vp8,opus', 'video/webm']
      .map((kind) => (tracks.length > 1 ? kind : kind.replace(/,.*/, '')));  // Firefox waits for ever for a sound that was named
    const type = kinds.find((kind) => MediaRecorder.isTypeSupported(kind)) ?? '';
    this.parts = [];
    this.end = sound.end;
    this.recorder = new MediaRecorder(new MediaStream(tracks), { ...(type ? { mimeType: type } : {}), videoBitsPerSecond: 8_000_000, videoKeyFrameIntervalDuration: 2000 });  // an MP4 grows by one part for each key frame
    this.recorder.ondataavailable = ({ data }) => { if (data.size) this.add(data); };
    this.recorder.onstop = () => this.finish();
    this.type = (this.recorder.mimeType || type || 'video/webm').split(';')[0];
    this.kept.begin(this.type);
    this.recorder.start(1000);
    this.beat = setInterval(() => canvas.getContext('2d').drawImage(canvas, 0, 0), STILL_FRAME_MS);  // a stream that stands still, too
    this.on.changed(true, sound.tracks.length > 0);
  }

  add(part) {
    this.parts.push(part);
    this.kept.add(part).catch(() => this.on.noted('The browser has no room to keep this recording safe: closing the page would lose it. Stop Record first.'));
  }

  delayed(audio, delayMs) {
    if (!audio.length) return [];
    this.audio = new AudioContext();
    const delay = this.audio.createDelay(5), out = this.audio.createMediaStreamDestination();
    delay.delayTime.value = Math.min(5, Math.max(0, delayMs / 1000));
    this.audio.createMediaStreamSource(new MediaStream(audio)).connect(delay).connect(out);
    return out.stream.getAudioTracks();
  }

  stop() {
    this.asking = false;
    if (this.recorder?.state === 'recording') this.recorder.stop();
  }

  finish() {
    clearInterval(this.beat);
    const blob = new Blob(this.parts, { type: this.type });
    this.recorder = null;
    this.audio?.close();
    this.audio = null;
    this.end();
    this.on.changed(false, false);
    if (blob.size) {
      this.last = blob;
      download(blob, videoName(blob));
    } else this.on.failed('Nothing was recorded: no picture came. Record again when one is shown.');
    const { own } = this.kept;
    this.kept.own = null;
    this.kept.remove(own).catch(() => {});  // without storage nothing was kept
  }
}
