// What Gradio's widgets ask of the stage, all of it in the browser: their first values, what a preset holds, a sent prompt.
// After stage.js, which knows the session. The server is asked by fetch; no call goes through Gradio's queue.
async function firstValues(names, prompt) {  // the worker's, once it has told them
  if (prompt) setControl('prompt', prompt);
  for (;;) {
    const told = await fetch('/page/controls').then((answer) => (answer.ok ? answer.json() : {}), () => ({}));
    Object.assign(model, { engine: told.engine ?? model.engine, momentary: told.momentary ?? model.momentary });
    hideForeign([...(told.hidden ?? []), ...(model.engine === 'video' ? [] : ['zt-first'])]);
    actions.offer(told.takes_actions);
    if (told.controls || !element.isConnected) return names.map((name) => changes[name] ?? told.controls?.[name]);
    await pause(500);
  }
}

function hideForeign(ids) {  // by a rule, as what lies in a closed section is not on the page yet
  let style = document.getElementById('zt-foreign');
  if (!style) { style = document.createElement('style'); style.id = 'zt-foreign'; document.head.append(style); }
  style.textContent = ids.length ? `${ids.map((id) => `#${id}`).join(', ')} { display: none !important; }` : '';
}

function presetValues(names, values, preset) {
  const controls = JSON.parse(preset);
  return names.map((name, i) => (name in controls ? controls[name] : values[i]));
}

async function sendPrompt(text) {  // what is to be said about it, as HTML
  setControl('prompt', text);
  const asked = { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ prompt: text }) };
  const told = await fetch('/page/notice', asked).then((answer) => answer.json(), () => ({}));
  return told.html ?? '';
}

Object.assign(window.zoetrope, { firstValues, presetValues, sendPrompt });
window.zoetropeStarted(window.zoetrope);
