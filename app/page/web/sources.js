// Where pictures come from in the browser: a camera, the screen, a file of this computer; none for the prompt alone.
// Owns the <video> element. Knows no session.
function covering(fromWidth, fromHeight, width, height) {  // the cut of a picture's centre that has the wanted aspect
  const scale = Math.max(width / fromWidth, height / fromHeight), w = width / scale, h = height / scale;
  return { x: (fromWidth - w) / 2, y: (fromHeight - h) / 2, width: w, height: h };
}

class Sources {
  // heard(): a new picture shows; failed(text): why there is none
  constructor(video, failed, heard) {
    Object.assign(this, { video, failed, kind: 'prompt', camera: '', mirror: true, longest: 512, stream: null, file: null, turn: 0 });
    this.coder = new Coder();
    this.fresh = null;  // when the picture that shows was captured, if it was not taken yet
    const listen = () => video.requestVideoFrameCallback((now, { captureTime }) => { this.fresh = captureTime ?? now; heard(); listen(); });
    listen();
  }

  get promptOnly() { return this.kind === 'prompt'; }
  get showing() { return !this.promptOnly && this.video.readyState >= 2 && this.video.videoWidth > 0; }

  async open() {  // the kind that is chosen; a newer call wins
    const turn = ++this.turn;
    this.close();
    if (this.promptOnly) return;
    try {
      if (this.kind === 'file') {
        if (!this.file) throw new Error('No file was chosen yet. Choose one below Source.');
        this.video.src = URL.createObjectURL(this.file);
      } else {
        if (!navigator.mediaDevices) throw new Error('A camera needs localhost or https: start zoetrope live with --ssl-self-signed.');
        const size = { width: { ideal: 1280 }, frameRate: { ideal: 30 } };
        const stream = this.kind === 'screen'
          ? await navigator.mediaDevices.getDisplayMedia({ video: size, audio: true })
          : await navigator.mediaDevices.getUserMedia({ video: { ...size, ...(this.camera ? { deviceId: { exact: this.camera } } : { facingMode: 'user' }) } });
        if (turn !== this.turn) { stream.getTracks().forEach((track) => track.stop()); return; }
        this.stream = this.video.srcObject = stream;
        stream.getVideoTracks()[0].onended = () => this.failed(this.kind === 'screen' ? 'The screen is no longer shared.' : 'The camera was unplugged.');
      }
      await this.video.play();
    } catch (error) {
      if (turn === this.turn) this.failed(this.explain(error));
    }
  }

  explain(error) {
    const reasons = {
      NotAllowedError: 'The browser was not allowed to use it. Allow it beside the address and press Start again.',
      NotFoundError: 'No camera was found.', NotReadableError: 'Another program uses the camera.',
      OverconstrainedError: 'That camera is not there any more. Choose another.',
      NotSupportedError: 'This file is no video that the browser can play.',
    };
    return `No picture: ${reasons[error.name] ?? error.message}`;
  }

  async cameras() {
    const devices = await navigator.mediaDevices?.enumerateDevices() ?? [];
    return devices.filter((device) => device.kind === 'videoinput');
  }

  close() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    if (this.video.src) URL.revokeObjectURL(this.video.src);
    this.video.removeAttribute('src');
    this.video.srcObject = null;
  }

  // The picture that shows now, cut to the wanted aspect from its centre, no larger than the stream or `longest`.
  // keep: the coded picture is wanted as a bitmap too.
  async take(width, height, keep) {
    const out = this.sent(width, height), { cut, mirror } = out, capturedMs = this.fresh ?? performance.now();
    this.fresh = null;
    const picture = self.VideoFrame ? new VideoFrame(this.video) : await createImageBitmap(this.video);
    const coded = await this.coder.code({ picture, cut, width: out.width, height: out.height, mirror, quality: 0.85, keep });
    return { width: out.width, height: out.height, capturedMs, ...coded };
  }

  // What of the <video> is sent to a stream of that size, and in which size.
  sent(width, height) {
    const shrink = Math.min(1, this.longest / Math.max(width, height)), { videoWidth, videoHeight } = this.video;
    const out = { width: Math.round(width * shrink), height: Math.round(height * shrink), mirror: this.mirror && this.kind === 'camera' };
    return { ...out, cut: covering(videoWidth, videoHeight, out.width, out.height) };
  }

  // The same picture onto a canvas, here on the page's thread.
  draw(canvas, { width, height }) {
    const out = this.sent(width, height), { cut } = out;
    if (canvas.width !== out.width || canvas.height !== out.height) Object.assign(canvas, { width: out.width, height: out.height });
    const context = canvas.getContext('2d', { alpha: false });
    context.setTransform(out.mirror ? -1 : 1, 0, 0, 1, out.mirror ? out.width : 0, 0);
    context.drawImage(this.video, cut.x, cut.y, cut.width, cut.height, 0, 0, out.width, out.height);
    context.resetTransform();
  }
}
