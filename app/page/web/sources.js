// The browser's picture sources: a camera, the screen, a local file; none for the prompt alone.
// Owns the <video> element. Independent of the session.
function centreCrop(fromWidth, fromHeight, width, height) {  // the centre crop with the target aspect ratio
  const scale = Math.max(width / fromWidth, height / fromHeight), w = width / scale, h = height / scale;
  return { x: (fromWidth - w) / 2, y: (fromHeight - h) / 2, width: w, height: h };
}

class Sources {
  // arrived(): there is a new picture; failed(text): why there is none
  constructor(video, failed, arrived) {
    Object.assign(this, { video, failed, kind: 'prompt', camera: '', mirror: true, longest: 512, stream: null, file: null, latest: 0 });
    this.encoder = new Encoder();
    this.fresh = null;  // capture time of the current picture, until it is taken
    everyPicture(video, (atMs) => { this.fresh = atMs; arrived(); });
  }

  get promptOnly() { return this.kind === 'prompt'; }
  get showing() { return !this.promptOnly && this.video.readyState >= 2 && this.video.videoWidth > 0; }

  async open() {  // opens the chosen kind; the latest call wins
    const call = ++this.latest;
    this.close();
    if (this.promptOnly) return;
    try {
      if (this.kind === 'file') {
        if (!this.file) throw new Error('No file is chosen. Choose one below Source.');
        this.video.src = URL.createObjectURL(this.file);
      } else {
        if (!navigator.mediaDevices) throw new Error('A camera needs localhost or https: start zoetrope live with --ssl-self-signed.');
        const size = { width: { ideal: 1280 }, frameRate: { ideal: 30 } };
        const stream = this.kind === 'screen'
          ? await navigator.mediaDevices.getDisplayMedia({ video: size, audio: true })
          : await navigator.mediaDevices.getUserMedia({ video: { ...size, ...(this.camera ? { deviceId: { exact: this.camera } } : { facingMode: 'user' }) } });
        if (call !== this.latest) { stream.getTracks().forEach((track) => track.stop()); return; }
        this.stream = this.video.srcObject = stream;
        stream.getVideoTracks()[0].onended = () => this.failed(this.kind === 'screen' ? 'The screen is no longer shared.' : 'The camera was unplugged.');
      }
      await this.video.play();
    } catch (error) {
      if (call === this.latest) this.failed(this.explain(error));
    }
  }

  explain(error) {
    const reasons = {
      NotAllowedError: 'Permission was denied. Allow it in the address bar and press Start again.',
      NotFoundError: 'No camera was found.', NotReadableError: 'Another program is using the camera.',
      OverconstrainedError: 'That camera is no longer available. Choose another.',
      NotSupportedError: 'The browser cannot play this file.',
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

  // The current picture, centre-cropped to the target aspect ratio, no larger than the stream or `longest`.
  // keep: also return the encoded picture as a bitmap.
  async take(width, height, keep) {
    const out = this.sent(width, height), { crop, mirror } = out, capturedMs = this.fresh ?? performance.now();
    this.fresh = null;
    const picture = self.VideoFrame ? new VideoFrame(this.video) : await createImageBitmap(this.video);
    const encoded = await this.encoder.encode({ picture, crop, width: out.width, height: out.height, mirror, quality: 0.85, keep });
    return { width: out.width, height: out.height, capturedMs, ...encoded };
  }

  // The crop of the <video> that is sent to a stream of that size, and its size.
  sent(width, height) {
    const shrink = Math.min(1, this.longest / Math.max(width, height)), { videoWidth, videoHeight } = this.video;
    const out = { width: Math.round(width * shrink), height: Math.round(height * shrink), mirror: this.mirror && this.kind === 'camera' };
    return { ...out, crop: centreCrop(videoWidth, videoHeight, out.width, out.height) };
  }

  // Draws the same crop onto a canvas, on the main thread.
  draw(canvas, { width, height }) {
    const out = this.sent(width, height), { crop } = out;
    if (canvas.width !== out.width || canvas.height !== out.height) Object.assign(canvas, { width: out.width, height: out.height });
    const context = canvas.getContext('2d', { alpha: false });
    context.setTransform(out.mirror ? -1 : 1, 0, 0, 1, out.mirror ? out.width : 0, 0);
    context.drawImage(this.video, crop.x, crop.y, crop.width, crop.height, 0, 0, out.width, out.height);
    context.resetTransform();
  }
}
