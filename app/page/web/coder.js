// Makes JPEG files of pictures on a thread of its own: a canvas on the page's thread encodes only when that is idle.
// Knows neither the source nor the session.
function codeForEver() {  // runs in the worker
  const canvas = new OffscreenCanvas(1, 1), context = canvas.getContext('2d', { alpha: false, willReadFrequently: true });
  self.onmessage = async ({ data: { picture, cut, width, height, mirror, quality, keep } }) => {
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    context.setTransform(mirror ? -1 : 1, 0, 0, 1, mirror ? width : 0, 0);
    context.drawImage(picture, cut.x, cut.y, cut.width, cut.height, 0, 0, width, height);
    picture.close();
    const jpeg = await (await canvas.convertToBlob({ type: 'image/jpeg', quality })).arrayBuffer();
    const bitmap = keep ? canvas.transferToImageBitmap() : null;
    self.postMessage({ jpeg, bitmap }, bitmap ? [jpeg, bitmap] : [jpeg]);
  };
}

class Coder {
  constructor() {
    const script = new Blob([`(${codeForEver})()`], { type: 'text/javascript' });
    const address = URL.createObjectURL(script);
    this.worker = new Worker(address);
    URL.revokeObjectURL(address);
  }

  // One picture at a time: { jpeg: ArrayBuffer, bitmap: the picture that was coded, or null }.
  code(job) {
    return new Promise((done, failed) => {
      this.worker.onmessage = ({ data }) => done(data);
      this.worker.onerror = ({ message }) => failed(new Error(message));
      this.worker.postMessage(job, [job.picture]);
    });
  }

  close() { this.worker.terminate(); }
}
