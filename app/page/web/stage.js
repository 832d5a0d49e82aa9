// The stage: draws the stream and its input, shows statistics, handles buttons, keys and the page's widgets.
// Builds on link.js and peer.js (the session, over WebSocket and WebRTC), sources.js (input pictures), tools.js (snapshots and
// recordings), messages.js (errors and notes), timeline.js (stories), first_picture.js (a video's first picture).
const find = (selector) => element.querySelector(selector);
const stage = find('.zt-stage'), picture = find('.zt-picture'), before = find('.zt-before');
const status = { state: 'loading', text: 'loading…' };
const messages = new Messages(stage);
const say = (text) => messages.say('other', text);
const changes = {};  // controls that the user has changed, including before Start
const model = { engine: '', momentary: {} };  // engine: "image" or "video"; momentary: one-shot controls with their idle values
let info = null, beginning = false, starting = null, waits = false, shown = 0, painted = [], sent = [], came = [], latency = null, stats = {}, cues = [];
const inputs = new Map();  // seq: the picture sent, until its output frame is painted

let wakePump = () => {};  // ends the pump's pause
const wake = () => wakePump(), STILL_MS = 100, MIN_INTERVAL_MS = 20;
const on = {  // handlers of either transport
  state(name, text) { Object.assign(status, { state: name, text }); show(); },
  ready(facts) { info = facts; link.source(sources.promptOnly && !beginning); actions.offer(facts.takes_actions); actions.flush(); show(); },
  stats(message) { stats = message; show(); },
  refused: say,
  noted(text) {  // while a model is loading, the first note before `ready` says so: it ends with that
    if (status.state === 'opening' && !waits) { waits = true; status.text = text; show(); }
    else if (text !== status.text) messages.note(text);
  },
  hungry: wake,
  async frame(header, blob, acknowledge) {
    const bitmap = await createImageBitmap(blob).catch(() => null);
    acknowledge();
    if (bitmap) paint(bitmap, header);
  },
  sent(canvas) { sent = recent(sent, performance.now()); if (stage.dataset.view !== 'output') draw(before, canvas); },
};
let link = new Link(on);
const sources = new Sources(find('.zt-source'), (reason) => { messages.say('source', reason); show(); }, () => { came = recent(came, performance.now()); wake(); });
watchHidden(() => (link.live && sources.showing && sources.kind !== 'screen' ? rateOf(came) : NaN), (before, behind) => {
  messages.note(`While this tab was hidden, the browser gave ${behind} pictures a second instead of ${before}. Keep the page in a window of its own.`);
});
const actions = new Actions(stage, { live: () => link.live && !changes.paused, send: (moved) => link.control(moved) });
const kept = new KeptRecordings();
const recorder = new Recorder(picture, kept, {
  changed(on, hasSound) {
    find('[data-tool=record]').setAttribute('aria-pressed', String(on));
    find('.zt-live').hidden = !on;
    find('.zt-mute').hidden = hasSound;
  },
  failed: say, noted: (text) => messages.note(text),
});

function draw(canvas, bitmap) {
  if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) { canvas.width = bitmap.width; canvas.height = bitmap.height; }
  canvas.getContext('2d').drawImage(bitmap, 0, 0);
}

const recent = (times, now) => times.filter((at) => now - at < 3000).concat(now);
const rateOf = (times) => (times.length > 1 && performance.now() - times.at(-1) < 3000
  ? (times.length - 1) / ((times.at(-1) - times[0]) / 1000) : 0);

function paint(bitmap, header) {
  draw(picture, bitmap);
  bitmap.close();
  const origin = inputs.get(header.source);
  if (origin) draw(before, origin);
  if (header.source !== NONE) {
    for (const [seq, old] of inputs) if (seq < header.source) { old.close(); inputs.delete(seq); }
  }
  const now = performance.now();
  painted = recent(painted, now);
  const lag = now - header.capturedMs;
  latency = !header.capturedMs ? null : latency === null ? lag : latency + (lag - latency) * 0.1;
  stage.classList.add('zt-painted');
  picture.dataset.number = String(++shown);
}

function show() {
  const running = link.wanted, live = status.state === 'live', counts = stats.accounting ?? {};
  const values = {
    frame_rate: rateOf(painted).toFixed(1), input_rate: sources.promptOnly ? '–' : rateOf(sent).toFixed(1),
    latency_ms: latency === null ? '–' : Math.round(latency), tick_ms: stats.tick_ms ?? '–',
    taken: counts.in ?? 0, out: counts.out ?? 0, dropped: counts.dropped ?? 0, skipped: counts.skipped ?? 0, in_flight: counts.in_flight ?? 0,
  };
  const reuse = stats.reuse, percent = share => Math.round(100 * share);
  if (reuse) Object.assign(values, { reuse_hits: percent(reuse.hit_rate), reuse_saved: percent(reuse.saved), reuse_db: reuse.psnr_db?.toFixed(1) ?? '–' });
  find('.zt-reuse').hidden = !reuse;
  find('.zt-reuse em').textContent = reuse?.without_windows ? `whole pictures only: ${reuse.without_windows}` : '';
  for (const cell of element.querySelectorAll('[data-zt]')) cell.textContent = values[cell.dataset.zt];
  stage.dataset.state = status.state;
  stage.classList.toggle('zt-running', running);
  const drawn = stage.classList.contains('zt-painted');
  find('.zt-idle').hidden = live && drawn;
  find('.zt-idle-text').textContent = running && live ? (sources.trouble ? 'no picture' : 'waiting for the first picture…')
    : ['stopped', 'ready'].includes(status.state) ? (drawn ? 'stopped' : 'Press Start') : status.text;
  messages.hold('connection', ['busy', 'denied', 'refused', 'gone', 'lost', 'restarting'].includes(status.state) ? status.text : '');
  const rows = Object.entries(stats.stages ?? {}).map(([name, at]) => `<tr><th>${name}</th><td>${at.p50_ms.toFixed(1)}</td><td>${at.p95_ms.toFixed(1)} ms</td></tr>`);
  find('.zt-times table').innerHTML = rows.length ? `<tr><th></th><td>p50</td><td>p95</td></tr>${rows.join('')}` : '<tr><td>Nothing yet.</td></tr>';
}

async function pump() {  // sends each new picture while the session accepts one, a still one ten times a second; never queues
  for (let last = 0; element.isConnected;) {
    const now = performance.now(), due = last + (sources.fresh === null ? STILL_MS : MIN_INTERVAL_MS);
    if (now >= due && link.hungry && info && sources.showing) {
      last = now;
      const { jpeg, bitmap, width, height, capturedMs } = await sources.take(info.width, info.height, stage.dataset.view !== 'output');
      if (!link.live) continue;
      const seq = link.send(jpeg, width, height, capturedMs);
      if (bitmap) inputs.set(seq, bitmap);
      if (inputs.size > 64) { const [oldest] = inputs.keys(); inputs.get(oldest).close(); inputs.delete(oldest); }
      sent = recent(sent, now);
      continue;
    }
    await new Promise((done) => { wakePump = done; clock.after(now < due ? due - now : STILL_MS, done); });
  }
  link.stop();
  sources.close();
  sources.encoder.close();
}

function showFacts({ text, execution }) {  // execution: how the networks run, and what is being built beside the stream
  const line = find('.zt-execution');
  Object.assign(line, { textContent: `Networks: ${execution}`, hidden: !execution });
  find('.zt-facts').textContent = text;
}

async function watchServer() {  // polls the worker's status; the stage shows it while there is no session
  const waits = ['loading', 'gone', 'denied', 'restarting', 'failed'], lost = {
    denied: 'This server requires a token, and this browser is no longer signed in. Open the page with the token again.',
    gone: 'Connection lost. Is zoetrope live still running?',
  };
  while (element.isConnected) {
    const answer = await fetch('page/status').catch(() => null);
    const report = answer?.ok ? await answer.json().catch(() => null) : null;
    const phase = report?.phase ?? ([401, 403].includes(answer?.status) ? 'denied' : 'gone');
    stage.dataset.phase = phase;
    if (report) showFacts(report);
    if (!link.wanted) {
      const text = report?.text ?? lost[phase];
      if (phase !== 'ready') Object.assign(status, { state: phase, text });
      else if (waits.includes(status.state)) Object.assign(status, { state: 'ready', text: '' });
      show();
    }
    await pause(1000);
  }
}

function setControl(name, value) { setControls({ [name]: value }); }

function setControls(values) {  // all or nothing; one-shot controls are not kept
  if (values.paused) actions.release();
  for (const [name, value] of Object.entries(values)) if (!(name in model.momentary)) changes[name] = value;
  link.control(values);
}

function start() {  // one page has one session: a press while it starts or runs opens no other
  if (starting) return starting;
  say('');
  const mine = starting = (link.wanted ? reopenSource() : open()).finally(() => { if (starting === mine) starting = null; });
  return mine;
}

async function reopenSource() {  // of a running session, if it has failed or ended
  if (sources.trouble && await sources.open()) link.source(sources.promptOnly);
}

async function open() {  // no session without a source: the reason stands on the stage
  if (!await sources.open()) { show(); return; }
  latency = null;
  stats = {};
  waits = false;
  actions.begin();
  for (const bitmap of inputs.values()) bitmap.close();
  inputs.clear();
  await link.start({ controls: changes, prompt_only: sources.promptOnly && !beginning });
}

function stop() {
  recorder.stop();
  actions.release();
  cues.forEach((cue) => clock.cancel(cue));
  starting = null;
  link.stop();
  sources.close();
}

async function choose(kind) {
  sources.kind = kind;
  say('');
  if (link.wanted || starting) { await sources.open(); link.source(sources.promptOnly); } else sources.failed('');
  show();
}

async function setTransport(transport) {  // "websocket" or "webrtc"; a running session is reopened
  const running = link.wanted;
  if (running) stop();
  link = transport === 'webrtc' ? new Peer(on, sources) : new Link(on);
  if (running) await start();
}

function setView(view) {  // input pictures are kept only for views that show them: until the next one, draw the source's current picture
  if (stage.dataset.view === 'output' && info && sources.showing) sources.draw(before, info);
  stage.dataset.view = view;
  find('[data-tool=view]').value = view;
}

function adopt(settings) {  // applies a preset or a snapshot's settings to the session and the page's widgets
  setControls(settings.controls ?? {});
  props.value = JSON.stringify({ ...settings.controls, ...model.momentary });
  trigger('change');
}

function settings() { return { zoetrope: 1, model: info?.model ?? '', controls: { ...changes } }; }

async function play(text) {  // plays a timeline from now; starts the stream if it is not running
  const entries = parseTimeline(text);
  cues.forEach((cue) => clock.cancel(cue));
  for (const { at_s, ...controls } of entries) if (at_s === 0) adopt({ controls });
  if (!link.wanted) await start();
  if (!link.wanted) return 0;  // the stage says why
  cues = entries.filter(({ at_s }) => at_s > 0).map(({ at_s, ...controls }) => clock.after(at_s * 1000, () => adopt({ controls })));
  return entries.length;
}

async function beginWith(file) {  // the video starts from a picture and continues with the prompt
  if (model.engine !== 'video') throw new Error('this model cannot make a video from a picture');
  if (beginning) throw new Error('another picture is being sent');
  beginning = true;
  try {
    if (!sources.promptOnly) document.querySelector('#zt-source [data-kind=prompt]').click();
    if (!link.wanted) await start();
    while (link.wanted && !link.live) await pause(50);
    if (!link.live) return;  // the link reports why
    const canvas = await pictureOf(file, info);
    draw(before, canvas);
    link.control({ input_use: 'redraw' });  // clears an earlier refusal
    await sendFirstPicture(link.session, canvas);
  } finally {
    beginning = false;
    link.control({ input_use: changes.input_use ?? 'redraw' });
    link.source(sources.promptOnly);
  }
}

async function settingsIn(file) {  // of a preset, a timeline or a snapshot; null: none in a picture
  if (file.name.endsWith('.json') || file.type === 'application/json') return JSON.parse(await file.text());
  return file.type === 'image/png' ? settingsOf(new Uint8Array(await file.arrayBuffer())) : null;
}

async function load(file) {  // loads a dropped or chosen file, by its content
  const found = await settingsIn(file);
  if (Array.isArray(found)) document.querySelector('#zt-timeline').value = timelineLines(checkTimeline(found));
  else if (found) adopt(found);
  else if (file.type.startsWith('image/') && model.engine === 'video') await beginWith(file);
  else throw new Error('no settings of Zoetrope');
}

function record() {
  if (recorder.running || recorder.asking) recorder.stop();
  else if (link.wanted && stage.classList.contains('zt-painted')) recorder.start(sources, latency ?? 0);
  else say(link.wanted ? 'Nothing to record yet: the first picture has not come.' : 'Nothing to record: the stream is stopped. Press Start, then Record.');
}

const attempt = (file, action) => action(file).catch((error) => say(`${file.name}: ${error.message}.`));

const tools = {
  snapshot: () => snapshot(picture, settings()),
  record,
  full: () => (document.fullscreenElement ? document.exitFullscreen() : stage.requestFullscreen()),
  keys: () => find('.zt-keys').showModal(),
};
const views = ['output', 'side', 'overlay', 'split'];
const keys = {
  ' ': () => (link.wanted ? stop() : start()), s: tools.snapshot, r: tools.record, f: tools.full, '?': tools.keys,
  v: () => setView(views[(views.indexOf(stage.dataset.view) + 1) % views.length]),
  b: () => setView(stage.dataset.view === 'split' ? 'output' : 'split'),
  m: () => { sources.mirror = !sources.mirror; },
  n: () => { if (model.engine === 'image') setControl('renew', true); },
  '[': () => setControl('strength', Math.max(0.02, (changes.strength ?? 0.5) - 0.05)),
  ']': () => setControl('strength', Math.min(1, (changes.strength ?? 0.5) + 0.05)),
};

element.addEventListener('click', ({ target }) => tools[target.closest('button[data-tool]')?.dataset.tool]?.());
find('[data-tool=view]').addEventListener('change', ({ target }) => setView(target.value));
find('.zt-split').addEventListener('input', ({ target }) => stage.style.setProperty('--split', `${target.value}%`));
const typing = (target) => target.closest?.('input, textarea, select, [contenteditable]');
document.addEventListener('keydown', (event) => {
  if (!element.isConnected || event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  if (event.key === ' ' && event.target.closest?.('button, summary')) return;
  const action = actions.press(event) ? () => {} : keys[event.key.toLowerCase()];
  if (action) { event.preventDefault(); action(); }
});
element.addEventListener('dragover', (event) => event.preventDefault());
element.addEventListener('drop', (event) => {
  event.preventDefault();
  if (event.dataTransfer.files[0]) attempt(event.dataTransfer.files[0], load);
});
addEventListener('beforeunload', (event) => { if (recorder.running) event.preventDefault(); });
addEventListener('pagehide', () => link.session && link.drop(link.session));

window.zoetrope = { model, setControl, start, stop, choose, setTransport, adopt, settings, play, parseTimeline, timelineLines, sources, actions, load: (file) => attempt(file, load), beginWith: (file) => attempt(file, beginWith), get link() { return link; }, recorder, info: () => info, download, stamp,
  fail: say };
pump();
watchServer();
offerKept(kept, find('.zt-kept'), (blob) => download(blob, videoName(blob)));
