// The stage: asks for the newest frame, draws it, shows the figures, and sends the camera's pictures.
// One request of each kind is under way at any time, so nothing queues. Knows the server functions `poll` and `camera`.
const find = (selector) => element.querySelector(selector);
const canvas = find('.zt-picture'), video = find('.zt-camera'), stage = find('.zt-stage');
const CAMERA_PERIOD_MS = 50, CAMERA_SIDE_PX = 384;
let session = '', number = 0, camera = null, opening = null, run = 0, painted = [], latency = null;
let order = {};  // the newest that has come: answers of two clicks may overtake each other

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const cameraWanted = () => Boolean(order.running && order.camera);

async function paint(answer) {
  if (!answer.jpeg) return;
  const bytes = Uint8Array.from(atob(answer.jpeg), (c) => c.charCodeAt(0));
  const picture = await createImageBitmap(new Blob([bytes], { type: 'image/jpeg' }));
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    canvas.width = picture.width;
    canvas.height = picture.height;
  }
  canvas.getContext('2d').drawImage(picture, 0, 0);
  picture.close();
  ({ session, number } = answer);
  const now = performance.now();
  painted = painted.filter((at) => now - at < 3000).concat(now);
  if (answer.camera_ms) {  // from the camera's picture to the painted one, smoothed
    const newest = now - answer.camera_ms;
    latency = latency === null ? newest : latency + (newest - latency) * 0.1;
  } else latency = null;
  stage.classList.add('zt-painted');
  canvas.dataset.number = String(number);
}

function show(answer) {
  const span = painted.length > 1 ? painted[painted.length - 1] - painted[0] : 0;
  const fresh = painted.length && performance.now() - painted[painted.length - 1] < 3000;
  const rate = answer.running && fresh && span ? (painted.length - 1) / (span / 1000) : 0;
  const values = { ...answer, frame_rate: rate.toFixed(1) };
  if (latency !== null) values.latency_ms = Math.round(latency);
  for (const cell of element.querySelectorAll('[data-zt]')) {
    const value = values[cell.dataset.zt];
    cell.textContent = value === null || value === undefined ? '–' : value;
  }
  stage.dataset.phase = answer.phase;
  stage.classList.toggle('zt-running', Boolean(answer.running));
  const waiting = answer.running && !answer.live;
  find('.zt-idle').hidden = answer.running && answer.live && stage.classList.contains('zt-painted');
  find('.zt-idle-text').textContent =
    answer.phase !== 'ready' ? answer.text
    : waiting ? 'opening…'
    : answer.running ? 'waiting for the first picture…'
    : stage.classList.contains('zt-painted') ? 'paused' : 'Press Start';
  find('.zt-facts').textContent = (answer.facts || answer.text) + (answer.restarts ? ` · restarted ${answer.restarts}×` : '');
  const message = find('.zt-message');
  message.textContent = answer.message || '';
  message.hidden = !answer.message;
}

async function outputs() {
  while (element.isConnected) {
    const { tab } = order;
    if (!tab) { await pause(100); continue; }
    try {
      const answer = await server.poll({ tab, session, after: number });
      await paint(answer);
      show(answer);
      if (!answer.running) await pause(300);
    } catch (error) {
      show({ phase: 'gone', text: 'Connection lost. Is zoetrope live still running?', message: '' });
      await pause(1000);
    }
  }
  close();
}

function close() {
  if (!camera) return;
  camera.getTracks().forEach((track) => track.stop());
  camera = opening = null;
  video.hidden = true;
}

async function open() {
  if (!navigator.mediaDevices) throw new Error('this page is not on localhost or https');
  camera = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, frameRate: { ideal: 30 } } });
  video.srcObject = camera;
  video.hidden = false;
  await video.play();
}

const scratch = document.createElement('canvas');
function snapshot() {
  const scale = Math.min(1, CAMERA_SIDE_PX / Math.min(video.videoWidth, video.videoHeight));
  scratch.width = Math.round(video.videoWidth * scale);
  scratch.height = Math.round(video.videoHeight * scale);
  scratch.getContext('2d').drawImage(video, 0, 0, scratch.width, scratch.height);
  return scratch.toDataURL('image/jpeg', 0.85).split(',')[1];
}

async function inputs(mine) {
  const { tab } = order;
  try {
    opening ??= open();
    await opening;
  } catch (error) {
    opening = null;
    await server.camera_failed({ tab, reason: String(error.message || error) });
    return;
  }
  if (!cameraWanted()) close();  // changed while the browser asked for permission
  while (mine === run && element.isConnected) {
    const started = performance.now();
    try { await server.camera({ tab, at_ms: started, jpeg: snapshot() }); } catch { await pause(500); }
    await pause(Math.max(0, CAMERA_PERIOD_MS - (performance.now() - started)));
  }
}

function obey() {
  const given = JSON.parse(props.value || '{}');
  if (given.tab === order.tab && given.number < order.number) return;
  order = given;
  run += 1;
  if (cameraWanted()) inputs(run); else close();
}

watch('value', obey);
obey();
outputs();
