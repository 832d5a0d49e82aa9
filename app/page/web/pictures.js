// New pictures of a <video>, and timeouts, in a hidden tab too: there requestVideoFrameCallback stands still and a page's own
// timers run once a second or less, but a worker's go on. Independent of what the pictures are for. Loaded first.
const LOOK_MS = 16, IDLE_MS = 200, SHORT_MS = 4000, USUAL_RATE = 30;

class Clock {  // timeouts of a worker
  constructor() {
    const script = new Blob(['onmessage = ({ data: [id, ms] }) => setTimeout(() => postMessage(id), ms);'], { type: 'text/javascript' });
    const address = URL.createObjectURL(script);
    Object.assign(this, { worker: new Worker(address), waiting: new Map(), last: 0 });
    URL.revokeObjectURL(address);
    this.worker.onmessage = ({ data: id }) => { const call = this.waiting.get(id); this.waiting.delete(id); call?.(); };
  }

  after(ms, call) {  // returns what cancel() takes
    this.waiting.set(this.last += 1, call);
    this.worker.postMessage([this.last, ms]);
    return this.last;
  }

  cancel(id) { this.waiting.delete(id); }
}

const clock = new Clock();
const pause = (ms) => new Promise((done) => { clock.after(ms, done); });

class PictureTimes {  // of a <video>: tell whether it shows another picture than before
  constructor(video) { Object.assign(this, { video, coarse: !self.VideoFrame }); }

  get now() {  // null: no picture yet
    const { video } = this, seconds = Math.floor(video.currentTime);
    if (video.readyState < 2 || !video.videoWidth) return null;
    if (!this.coarse) {
      const picture = new VideoFrame(video), { timestamp } = picture;
      picture.close();
      this.coarse = timestamp > 0 && timestamp === seconds;  // Firefox gives whole seconds
      if (!this.coarse) return timestamp;
    }
    const rate = video.srcObject?.getVideoTracks()[0]?.getSettings().frameRate || USUAL_RATE;
    return Math.floor(video.currentTime * rate);
  }
}

// Calls seen(atMs) for each new picture; atMs: when it was captured if the browser knows, else now, as of performance.now().
// Returns a function that ends it.
function everyPicture(video, seen) {
  const times = new PictureTimes(video);
  let ended = false, looking = false, last = null;
  const unseen = () => document.hidden || !video.requestVideoFrameCallback;  // no callback will come
  const look = () => {
    looking = !ended && unseen();
    if (!looking) return;
    const { now } = times, isNew = now !== null && now !== last;
    last = now;
    clock.after(now === null ? IDLE_MS : LOOK_MS, look);
    if (isNew) seen(performance.now());
  };
  const begin = () => { if (!looking) look(); };
  const shown = (now, { captureTime }) => {
    if (ended) return;
    video.requestVideoFrameCallback(shown);
    seen(captureTime ?? now);
  };
  document.addEventListener('visibilitychange', begin);
  video.requestVideoFrameCallback?.(shown);
  clock.after(0, begin);  // the caller has what ends it before the first picture
  return () => { ended = true; document.removeEventListener('visibilitychange', begin); };
}

// Once the page is shown again: report(before, behind) if its source gave less than half of its pictures while it was hidden.
// rate(): pictures a second in the last seconds; NaN: without meaning now.
function watchHidden(rate, report) {
  let before = NaN, sinceMs = 0;
  document.addEventListener('visibilitychange', () => {
    const now = rate();
    if (document.hidden) { before = now; sinceMs = performance.now(); return; }
    if (performance.now() - sinceMs > SHORT_MS && now < before / 2) report(Math.round(before), Math.round(now));
  });
}
