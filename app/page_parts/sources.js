// Where pictures come from in the browser: a camera, the screen, a file of this computer; none for the prompt alone.
// Owns the <video> element. Knows no session.
class Sources {
  constructor(video, failed) {
    Object.assign(this, { video, failed, kind: 'prompt', camera: '', mirror: true, longest: 512, stream: null, file: null, turn: 0 });
    this.scratch = document.createElement('canvas');
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

  // The newest picture, cut to the wanted aspect from its centre, no larger than the stream or `longest`.
  async take(width, height) {
    const { videoWidth, videoHeight } = this.video, canvas = this.scratch;
    const shrink = Math.min(1, this.longest / Math.max(width, height));
    canvas.width = Math.round(width * shrink);
    canvas.height = Math.round(height * shrink);
    const scale = Math.max(canvas.width / videoWidth, canvas.height / videoHeight);
    const w = canvas.width / scale, h = canvas.height / scale, context = canvas.getContext('2d');
    context.save();
    if (this.mirror && this.kind === 'camera') { context.translate(canvas.width, 0); context.scale(-1, 1); }
    context.drawImage(this.video, (videoWidth - w) / 2, (videoHeight - h) / 2, w, h, 0, 0, canvas.width, canvas.height);
    context.restore();
    const bitmap = await createImageBitmap(canvas);
    const blob = await new Promise((done) => canvas.toBlob(done, 'image/jpeg', 0.85));
    return { blob, bitmap, width: canvas.width, height: canvas.height };
  }
}
