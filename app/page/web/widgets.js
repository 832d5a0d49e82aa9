// The stage's functions for Gradio's widgets, all in the browser: initial values, presets, sending the prompt.
// Loaded after stage.js, which has the session. Uses fetch; nothing goes through Gradio's queue.
async function firstValues(names, prompt) {  // the worker's, once it is ready
  if (prompt) setControl('prompt', prompt);
  for (;;) {
    const reply = await fetch('page/controls').then((answer) => (answer.ok ? answer.json() : {}), () => ({}));
    Object.assign(model, { engine: reply.engine ?? model.engine, momentary: reply.momentary ?? model.momentary });
    hideInapplicable([...(reply.hidden ?? []), ...(model.engine === 'video' ? [] : ['zt-first'])]);
    actions.offer(reply.takes_actions);
    if (reply.controls || !element.isConnected) return names.map((name) => changes[name] ?? reply.controls?.[name]);
    await pause(500);
  }
}

function hideInapplicable(ids) {  // with a CSS rule: elements of a closed section are not on the page yet
  let style = document.getElementById('zt-foreign');
  if (!style) { style = document.createElement('style'); style.id = 'zt-foreign'; document.head.append(style); }
  style.textContent = ids.length ? `${ids.map((id) => `#${id}`).join(', ')} { display: none !important; }` : '';
}

function presetValues(names, values, preset) {
  const controls = JSON.parse(preset);
  return names.map((name, i) => (name in controls ? controls[name] : values[i]));
}

async function sendPrompt(text) {  // returns a notice about it, as HTML
  setControl('prompt', text);
  const post = { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ prompt: text }) };
  const reply = await fetch('page/notice', post).then((answer) => answer.json(), () => ({}));
  return reply.html ?? '';
}

Object.assign(window.zoetrope, { firstValues, presetValues, sendPrompt });
window.zoetropeStarted(window.zoetrope);
