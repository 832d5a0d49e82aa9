// The panel of outputs and takes: starts, shows and stops them over HTTP (docs/outputs.md, docs/takes.md) for the session of
// window.zoetrope.link (link.js). Independent of the frames.
const at = (selector) => element.querySelector(selector);
const { titles: TITLES, schemes: SCHEMES } = OUTPUT_KINDS;  // of the server's table (page.py)
const POLL_MS = 1000;
let session = null, outputs = [], take = null, lastTake = null;
const recordings = new Map();  // id: URL of the file once it can be downloaded, else null
const rows = new Map();  // id: the output's <li>

function running() {
  const link = window.zoetrope?.link;
  return link?.wanted && link.session ? link.session : null;
}

async function request(path, options = {}) {
  const answer = await fetch(path, options);
  const body = answer.status === 204 ? {} : await answer.json().catch(() => ({}));
  if (answer.ok) return body;
  const { message = `The server responded ${answer.status}.`, remedy = '' } = body.error ?? {};
  throw Object.assign(new Error(`${message} ${remedy}`.trim()), { status: answer.status });
}

function call(part, method = 'GET', body = null) {
  const { id, token } = running() ?? {};
  if (!id) return Promise.reject(new Error('Press Start first.'));
  const headers = { Authorization: `Bearer ${token}`, ...(body ? { 'Content-Type': 'application/json' } : {}) };
  return request(`v1/sessions/${id}/${part}`, { method, headers, ...(body ? { body: JSON.stringify(body) } : {}) });
}

const showMessage = (text) => { at('#zt-out-said').textContent = text; };

async function doing(button, work) {  // one action at a time per button; errors are shown below
  if (button.getAttribute('aria-busy') === 'true') return;
  button.setAttribute('aria-busy', 'true');
  showMessage('');
  try {
    await work();
    await update();
  } catch (error) { showMessage(error.message); }
  button.removeAttribute('aria-busy');
  show();
}

async function start(body) {
  const made = await call('outputs', 'POST', body);
  if (made.recording) recordings.set(made.recording, null);
}

async function stop(id) { showMessage((await call(`outputs/${id}`, 'DELETE')).text); }

function toggle(button, kind) {
  const existing = outputs.find((output) => output.kind === kind);
  return doing(button, () => (existing ? stop(existing.id) : start({ kind })));
}

// The server's current state: one poll per second while there is something to show.
async function update() {
  const now = running();
  if (now?.id !== session) { session = now?.id ?? null; outputs = []; take = null; }
  if (now && (at('details').open || outputs.length || take)) {
    const answers = await Promise.all([call('outputs'), call('take')]).catch(() => null);  // the session may have ended in the meantime
    if (answers && running()?.id === session) {
      outputs = answers[0].outputs;
      take = answers[1].take;
      lastTake = take ?? lastTake;
    }
  }
  const growing = new Set(outputs.map((output) => output.recording));
  for (const [id, file] of recordings) {
    if (file !== null || growing.has(id)) continue;
    try {
      const recording = await request(`v1/recordings/${id}`);
      if (!recording.running) recordings.set(id, `v1/recordings/${id}/file`);  // relative to the page, as all its addresses
    } catch (error) { if (error.status === 404) recordings.delete(id); }  // it ended before its first picture
  }
}

function rowOf(id, kind) {
  const row = document.createElement('li'), button = document.createElement('button');
  row.append(document.createElement('span'), button, document.createElement('small'));
  button.setAttribute('aria-label', `Stop ${TITLES[kind]}`);
  button.addEventListener('click', () => doing(button, () => stop(id)));
  at('#zt-out-list').append(row);
  return row;
}

function show() {
  const live = running() !== null;
  at('#zt-out-idle').hidden = live;
  for (const id of ['record', 'take', 'camera']) at(`#zt-out-${id}`).disabled = !live;
  at('#zt-push-start').disabled = !live;
  const press = (id, on, texts) => {
    at(id).setAttribute('aria-pressed', String(on));
    at(id).textContent = texts[Number(on)];
  };
  press('#zt-out-record', outputs.some(({ kind }) => kind === 'recording'), ['Record on the server', 'Stop recording']);
  press('#zt-out-camera', outputs.some(({ kind }) => kind === 'virtual_camera'), ['Virtual camera', 'Camera off']);
  press('#zt-out-take', take !== null, ['Record a take', 'Stop the take']);
  at('#zt-take').hidden = lastTake === null;
  at('#zt-take-state').textContent = take ? 'Recording the take' : 'Last take:';
  at('#zt-take-name').textContent = lastTake ?? '';
  at('#zt-take-command').textContent = `zoetrope render --take DATA/takes/${lastTake} out.mp4`;
  for (const [id, row] of rows) {
    if (outputs.some((output) => output.id === id)) continue;
    if (row.contains(document.activeElement)) at('summary').focus();
    row.remove();
    rows.delete(id);
  }
  for (const { id, kind, phase, text, done, dropped } of outputs) {
    if (!rows.has(id)) rows.set(id, rowOf(id, kind));
    const row = rows.get(id), [words, button, counts] = row.children;
    row.dataset.phase = phase;
    words.textContent = kind === 'recording' && phase === 'running' ? 'Recording on the server' : `${TITLES[kind]}: ${text}`;
    button.textContent = phase === 'failed' ? 'Remove' : 'Stop';
    counts.textContent = `${phase} · ${done} frames, ${dropped} dropped`;
  }
  showKept();
}

function showKept() {
  const ready = [...recordings].filter(([, file]) => file !== null), list = at('#zt-out-kept');
  if (list.children.length === ready.length) return;  // replacing the links would lose keyboard focus
  list.replaceChildren(...ready.map(([, href], index) => {
    const row = document.createElement('li');
    row.append(Object.assign(document.createElement('a'), { href, download: '', textContent: `Download recording ${index + 1}` }));
    return row;
  }));
}

function push() {
  const address = at('#zt-push-address').value.trim(), kind = SCHEMES[address.split(':')[0].toLowerCase()];
  if (!kind) { showMessage('Give the address with its scheme: rtmp, rtmps, srt, or https for WHIP.'); return; }
  const token = kind === 'whip' ? at('#zt-push-token').value.trim() : '';
  doing(at('#zt-push-start'), async () => {
    await start({ kind, address, ...(token ? { token } : {}) });
    at('#zt-push-address').value = at('#zt-push-token').value = '';  // it contains a key
  });
}

async function watch() {
  while (element.isConnected) {
    await update();
    show();
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
}

at('#zt-out-record').addEventListener('click', ({ currentTarget }) => toggle(currentTarget, 'recording'));
at('#zt-out-camera').addEventListener('click', ({ currentTarget }) => toggle(currentTarget, 'virtual_camera'));
at('#zt-out-take').addEventListener('click', ({ currentTarget }) => doing(currentTarget, async () => {
  if (take) await call('take', 'DELETE');
  else take = lastTake = (await call('take', 'POST')).take;
}));
at('#zt-push').addEventListener('submit', (event) => { event.preventDefault(); push(); });
at('#zt-push-address').addEventListener('input', ({ target }) => { at('#zt-push-with-token').hidden = !/^https?:/i.test(target.value.trim()); });
at('#zt-push-show').addEventListener('change', ({ target }) => {
  for (const id of ['address', 'token']) at(`#zt-push-${id}`).type = target.checked ? 'text' : 'password';
});
at('details').addEventListener('toggle', () => update().then(show));
watch();
