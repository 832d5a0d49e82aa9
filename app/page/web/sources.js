// The browser's picture sources: a camera, the screen, a local file; none for the prompt alone.
// Owns the <video> element. Independent of the session.
function centreCrop(fromWidth, fromHeight, width, height) {  // the centre crop with the target aspect ratio
  const scale = Math.max(width / fromWidth, height / fromHeight), w = width / scale, h = height / scale;
  return { x: (fromWidth - w) / 2, y: (fromHeight - h) / 2, width: w, height: h };
}

const SILENT_SOURCE_MS = 5000;
const CONVERT = 'Choose an MP4 with H.264 or a WebM; this makes one: ffmpeg -i FILE -pix_fmt yuv420p out.mp4';
const NO_VIDEO = `this browser cannot play this file: it is no video, it is damaged, or its format is unknown here. ${CONVERT}`;
const SOUND_ONLY = `this browser plays the sound of this file but not its picture. An iPhone's HEVC is like that, and a file that has sound only. ${CONVERT}`;
const SOUND_FILE = 'this file has sound only. Choose a video.';
const INSECURE = 'a browser gives camera and screen to localhost and https only. Open this page as localhost on the server\'s own machine, or start zoetrope live with --ssl-self-signed and open its https address.';
const ENDED = {
  camera: 'the camera was unplugged or taken away. Connect it and press Start.', screen: 'the screen is no longer shared. Press Start to share it again.',
};
const SILENT = {
  camera: 'the camera has sent nothing for 5 seconds. Is it covered, switched off or used by another program? Choose another below Source, or press Stop and Start.',
  screen: 'the shared screen has sent nothing for 5 seconds. Is its window minimised? Press Stop and Start to share another.',
  file: 'the browser has shown nothing of this file for 5 seconds. Choose another.',
};
const REASONS = {  // by the name of the browser's error, and where it says too little by source
  'NotAllowedError camera': 'the camera is not allowed for this page. Allow it with the sign beside the address, then press Start again.',
  'NotAllowedError screen': 'the screen was not shared. Press Start again and choose a window, a tab or a screen.',
  'NotAllowedError system': 'the operating system keeps camera and screen from this browser. Allow them in its privacy settings, then press Start again.',
  'NotAllowedError file': 'this browser does not start videos by itself. Press Start again.',
  NotFoundError: 'no camera was found. Connect one and press Start again, or choose another source.',
  'NotReadableError screen': 'the browser cannot read this screen. Press Start again and choose another.',
  NotReadableError: 'the camera does not answer. Close the program that is using it, then press Start again.',
  OverconstrainedError: 'this camera is no longer there. Choose another below Source, then press Start.',
};
const NO_SOUND = {  // why the microphone does not record
  NotAllowedError: 'This recording has no sound: the microphone is not allowed. Allow it with the sign beside the address, then record again.',
  NotFoundError: 'This recording has no sound: no microphone was found. Connect one, then record again.',
  other: 'This recording has no sound: the microphone does not answer. Close the program that is using it, then record again.',
};

class Sources {
  // arrived(): there is a new picture; failed(text): why there is none, until '' says that this is over
  constructor(video, failed, arrived) {
    Object.assign(this, { video, kind: 'prompt', camera: '', mirror: true, longest: 512, stream: null, file: null, latest: 0, trouble: '' });
    this.failed = (text) => { this.trouble = text && `No picture: ${text}`; failed(this.trouble); };
    this.encoder = new Encoder();
    this.fresh = null;  // capture time of the current picture, until it is taken
    everyPicture(video, (atMs) => { this.fresh = atMs; if (this.opened === true && this.trouble) this.failed(''); arrived(); });
    video.addEventListener('error', () => { if (this.opened === true) this.failed(this.explain(video.error)); });
  }

  get promptOnly() { return this.kind === 'prompt'; }
  get showing() { return !this.promptOnly && this.video.readyState >= 2 && this.video.videoWidth > 0; }

  // Opens the chosen kind. Resolves with whether it can show a picture; a later open() or close() decides for an earlier one.
  open() {
    this.close();
    this.opened = this.promptOnly || this.attempt(this.latest);
    return this.opened;
  }

  async attempt(call) {
    try {
      if (this.kind === 'file') {
        if (!this.file) throw new Error('no file is chosen. Choose one below Source, then press Start.');
        this.video.src = URL.createObjectURL(this.file);
      } else {
        const stream = await this.capture();
        if (call !== this.latest) { stream.getTracks().forEach((track) => track.stop()); return this.opened; }
        this.stream = this.video.srcObject = stream;
        stream.getVideoTracks()[0].onended = () => { this.opened = false; this.failed(ENDED[this.kind]); };
      }
      await this.video.play();
      if (call !== this.latest) return this.opened;
      if (this.kind === 'file' && !this.video.videoWidth) throw new Error(this.file.type.startsWith('audio/') ? SOUND_FILE : SOUND_ONLY);
      setTimeout(() => { if (call === this.latest && !this.showing && !this.trouble) this.failed(SILENT[this.kind]); }, SILENT_SOURCE_MS);
      return this.opened = true;
    } catch (error) {
      if (call !== this.latest) return this.opened;
      this.close();  // not even its sound
      this.failed(this.explain(error));
      return false;
    }
  }

  capture() {  // a stream of the camera or the screen; the browser asks the viewer
    const devices = navigator.mediaDevices, size = { width: { ideal: 1280 }, frameRate: { ideal: 30 } };
    if (!devices) throw new Error(INSECURE);
    if (this.kind !== 'screen') return devices.getUserMedia({ video: { ...size, ...(this.camera ? { deviceId: { exact: this.camera } } : { facingMode: 'user' }) } });
    if (!devices.getDisplayMedia) throw new Error('this browser cannot share a screen; those of phones cannot. Choose Camera or Video file.');
    return devices.getDisplayMedia({ video: size, audio: true });
  }

  explain({ name, code, message }) {  // a DOMException, a MediaError or an Error of this file
    if (this.kind === 'file' && (code >= 3 || name === 'NotSupportedError')) return NO_VIDEO;
    const of = name === 'NotAllowedError' && /system/i.test(message) ? 'system' : this.kind;
    return REASONS[`${name} ${of}`] ?? REASONS[name] ?? message;
  }

  async cameras() {
    const devices = await navigator.mediaDevices?.enumerateDevices() ?? [];
    return devices.filter((device) => device.kind === 'videoinput');
  }

  // What a recording hears: the microphone of the camera, the sound of the shared screen or of the file.
  // Resolves with { tracks, missing: why there are none, or '', end() }.
  async sound() {
    const owned = (tracks, missing = '') => ({ tracks, missing, end: () => tracks.forEach((track) => track.stop()) });
    if (this.kind === 'camera') {
      const { groupId } = this.stream?.getVideoTracks()[0]?.getSettings() ?? {};
      const audio = groupId ? { groupId: { ideal: groupId } } : true;
      try { return owned((await navigator.mediaDevices.getUserMedia({ audio })).getAudioTracks()); }
      catch ({ name }) { return owned([], NO_SOUND[name] ?? NO_SOUND.other); }
    }
    const stream = this.stream ?? this.video.captureStream?.() ?? this.video.mozCaptureStream?.();
    return { tracks: this.promptOnly ? [] : stream?.getAudioTracks() ?? [], missing: '', end() {} };
  }

  close() {
    this.latest += 1;
    this.opened = false;
    if (this.trouble) this.failed('');
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
