// The panel beside the stage: source, Start and Stop, presets, prompt timeline. Calls window.zoetrope (stage.js).
const at = (selector) => element.querySelector(selector);
const app = () => window.zoetrope;
const kind = () => element.querySelector('[name=zt-kind]:checked').dataset.kind;

async function listCameras() {
  const cameras = await app().sources.cameras(), choice = at('#zt-camera-choice'), kept = choice.value;
  choice.replaceChildren(new Option("browser's default", ''), ...cameras.map((c, i) => new Option(c.label || `camera ${i + 1}`, c.deviceId)));
  choice.value = cameras.some((c) => c.deviceId === kept) ? kept : '';
}

at('#zt-source').addEventListener('change', async () => {
  for (const more of element.querySelectorAll('[data-for]')) more.hidden = !more.dataset.for.split(' ').includes(kind());
  await app().choose(kind());
  if (kind() === 'camera') listCameras();
});
at('#zt-camera-choice').addEventListener('change', ({ target }) => { app().sources.camera = target.value; app().choose(kind()); });
at('#zt-mirror').addEventListener('change', ({ target }) => { app().sources.mirror = target.checked; });
at('#zt-longest').addEventListener('change', ({ target }) => { app().sources.longest = Number(target.value); });
at('#zt-file').addEventListener('change', ({ target }) => { app().sources.file = target.files[0] ?? null; app().choose(kind()); });
at('#zt-transport').addEventListener('change', ({ target }) => app().setTransport(target.value));
at('#zt-start').addEventListener('click', async () => { await app().start(); if (kind() === 'camera') listCameras(); });
at('#zt-stop').addEventListener('click', () => app().stop());
at('#zt-save').addEventListener('click', () => {
  const text = JSON.stringify(app().settings(), null, 1);
  app().download(new Blob([text], { type: 'application/json' }), `zoetrope-preset-${app().stamp()}.json`);
});
function onFile(selector, handle) {  // calls handle(file) each time a file is chosen
  at(selector).addEventListener('change', ({ target }) => { if (target.files[0]) handle(target.files[0]); target.value = ''; });
}
onFile('#zt-load', (file) => app().load(file));
onFile('#zt-timeline-load', (file) => app().load(file));
onFile('#zt-first-picture', (file) => app().beginWith(file));
at('#zt-play').addEventListener('click', async () => {
  try { at('#zt-played').textContent = `${await app().play(at('#zt-timeline').value)} entries`; } catch (error) { app().fail(error.message); }
});
at('#zt-timeline-save').addEventListener('click', () => {
  try {
    const text = JSON.stringify(app().parseTimeline(at('#zt-timeline').value), null, 1);
    app().download(new Blob([text], { type: 'application/json' }), `zoetrope-timeline-${app().stamp()}.json`);
  } catch (error) { app().fail(error.message); }
});
