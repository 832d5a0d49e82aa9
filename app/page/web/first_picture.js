// A picture with which a video begins: it goes to the session on a short connection of its own, whatever carries the
// stream. What the stream takes afterwards is the caller's to say. Knows no widget.
const PICTURE_WAIT_MS = 60_000;

async function pictureOf(file, { width, height }) {  // its centre in the stream's size, on a canvas
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) throw new Error('this is no picture that the browser can read');
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  const cut = covering(bitmap.width, bitmap.height, width, height);
  const context = canvas.getContext('2d', { alpha: false });
  Object.assign(context, { imageSmoothingQuality: 'high' });
  context.drawImage(bitmap, cut.x, cut.y, cut.width, cut.height, 0, 0, width, height);
  bitmap.close();
  return canvas;
}

async function sendFirstPicture(session, canvas) {  // resolves once the stream has taken it; the prompt goes on then
  const jpeg = await (await new Promise((done) => canvas.toBlob(done, 'image/jpeg', 0.95))).arrayBuffer();
  let door = null;
  try {
    await new Promise((taken, failed) => {
      const refuse = (text) => failed(new Error(text));
      door = new Link({
        state: (name, text) => { if (name === 'refused') refuse(text); },
        ready() {
          door.control({ input_use: 'first-frame' });
          door.source(false);
          door.send(jpeg, canvas.width, canvas.height, performance.now());
        },
        taken, refused: (text, note) => { if (!note) refuse(text); }, stats() {}, hungry() {}, frame: (header, blob, acknowledge) => acknowledge(),
      });
      Object.assign(door, { session, wanted: true });
      door.connect();
      setTimeout(() => refuse('the stream did not take the picture'), PICTURE_WAIT_MS);
    });
  } finally {
    door.wanted = false;
    door.socket?.close(1000);
  }
}
