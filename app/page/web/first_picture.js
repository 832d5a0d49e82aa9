// Sends a video's first picture to the session over a short separate WebSocket, whatever the stream's transport.
// The caller restores the stream's source afterwards. Independent of the widgets.
const PICTURE_WAIT_MS = 60_000;

async function pictureOf(file, { width, height }) {  // centre-cropped to the stream's size, on a canvas
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) throw new Error('the browser cannot read this picture');
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  const crop = centreCrop(bitmap.width, bitmap.height, width, height);
  const context = canvas.getContext('2d', { alpha: false });
  Object.assign(context, { imageSmoothingQuality: 'high' });
  context.drawImage(bitmap, crop.x, crop.y, crop.width, crop.height, 0, 0, width, height);
  bitmap.close();
  return canvas;
}

async function sendFirstPicture(session, canvas) {  // resolves once the stream has taken it
  const jpeg = await (await new Promise((done) => canvas.toBlob(done, 'image/jpeg', 0.95))).arrayBuffer();
  let upload = null;
  try {
    await new Promise((taken, failed) => {
      const refuse = (text) => failed(new Error(text));
      upload = new Link({
        state: (name, text) => { if (name === 'refused') refuse(text); },
        ready() {
          upload.control({ input_use: 'first-frame' });
          upload.source(false);
          upload.send(jpeg, canvas.width, canvas.height, performance.now());
        },
        taken, refused: refuse, noted() {}, stats() {}, hungry() {}, frame: (header, blob, acknowledge) => acknowledge(),
      });
      Object.assign(upload, { session, wanted: true });
      upload.connect();
      setTimeout(() => refuse('the stream did not take the picture'), PICTURE_WAIT_MS);
    });
  } finally {
    upload.wanted = false;
    upload.socket?.close(1000);
  }
}
