// Encodes pictures as JPEG in a worker: a canvas on the main thread encodes only when that is idle.
function encodeForever() {  // runs in the worker
  const canvas = new OffscreenCanvas(1, 1), context = canvas.getContext('2d', { alpha: false, willReadFrequently: true });
  self.onmessage = async ({ data: { picture, crop, width, height, mirror, quality, keep } }) => {
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    context.setTransform(mirror ? -1 : 1, 0, 0, 1, mirror ? width : 0, 0);
    context.drawImage(picture, crop.x, crop.y, crop.width, crop.height, 0, 0, width, height);
    picture.close();
    const jpeg = await (await canvas.convertToBlob({ type: 'image/jpeg', quality })).arrayBuffer();
    const bitmap = keep ? canvas.transferToImageBitmap() : null;
    self.postMessage({ jpeg, bitmap }, bitmap ? [jpeg, bitmap] : [jpeg]);
  };
}

class Encoder {
  constructor() {
    const script = new Blob([`(${encodeForever})()`], { type: 'text/javascript' });
    const address = URL.createObjectURL(script);
    this.worker = new Worker(address);
    URL.revokeObjectURL(address);
  }

  // One picture at a time. Resolves with { jpeg: ArrayBuffer, bitmap: the encoded picture, or null }.
  encode(job) {
    return new Promise((done, failed) => {
      this.worker.onmessage = ({ data }) => done(data);
      this.worker.onerror = ({ message }) => failed(new Error(message));
      this.worker.postMessage(job, [job.picture]);
    });
  }

  close() { this.worker.terminate(); }
}
