// The viewer's actions on camera and subject: five values from -1 to 1, from keys, a gamepad and the pad below the picture.
// Sends changes immediately, at most once per frame. Independent of the session: `live()` tells whether `send` reaches it.
const ACTIONS = ['camera_x', 'camera_y', 'camera_zoom', 'push_x', 'push_y'];
const ACTION_KEYS = {
  arrowleft: ['camera_x', -1], arrowright: ['camera_x', 1], arrowdown: ['camera_y', -1], arrowup: ['camera_y', 1],
  '-': ['camera_zoom', -1], pagedown: ['camera_zoom', -1], '+': ['camera_zoom', 1], '=': ['camera_zoom', 1], pageup: ['camera_zoom', 1],
  a: ['push_x', -1], d: ['push_x', 1], s: ['push_y', -1], w: ['push_y', 1],
};
const DEAD_ZONE = 0.15, LEFT_TRIGGER = 6, RIGHT_TRIGGER = 7;  // of the standard mapping (W3C Gamepad)
const idle = () => Object.fromEntries(ACTIONS.map((name) => [name, 0]));

function withoutDeadZone(value) {  // a stick's axis with the dead zone removed, in steps of 0.01
  const beyond = Math.max(0, Math.abs(value) - DEAD_ZONE) / (1 - DEAD_ZONE);
  return Math.round(100 * Math.sign(value) * Math.min(1, beyond)) / 100;
}

class Actions {
  constructor(stage, { live, send }) {
    Object.assign(this, { stage, live, send, taken: false, held: new Map(), stick: idle(), sent: idle(), due: false, waiting: false, polling: false });
    this.pad = stage.querySelector('.zt-pad');
    document.addEventListener('keyup', ({ code, key }) => { if (key === 'Meta') this.release(); else this.lift(code); });
    addEventListener('blur', () => this.release());
    addEventListener('pagehide', () => this.release());
    document.addEventListener('visibilitychange', () => { if (document.hidden) this.release(); });
    addEventListener('gamepadconnected', () => this.poll());
    this.pad.addEventListener('contextmenu', (event) => event.preventDefault());
    this.pad.addEventListener('pointerdown', (event) => this.touch(event));
    for (const end of ['pointerup', 'pointercancel', 'lostpointercapture']) this.pad.addEventListener(end, ({ pointerId }) => this.lift(`pointer ${pointerId}`));
  }

  offer(taken) {  // taken: whether the model takes actions
    this.taken = Boolean(taken);
    this.stage.toggleAttribute('data-acts', this.taken);
    if (!this.taken) this.release();
  }

  begin() { this.sent = idle(); }  // a new session starts with all actions idle

  get values() {
    const sums = { ...this.stick };
    for (const [name, value] of this.held.values()) sums[name] += value;
    for (const name of ACTIONS) sums[name] = Math.max(-1, Math.min(1, sums[name]));
    return sums;
  }

  press({ key, code, shiftKey }) {  // returns whether the key is bound to an action
    const move = ACTION_KEYS[key.toLowerCase()];
    if (!move || !this.taken || !this.live() || (shiftKey && key.toLowerCase() === 's')) return false;
    this.hold(code, move);
    return true;
  }

  touch(event) {
    const [name, value] = event.target.closest('[data-move]')?.dataset.move.split(' ') ?? [];
    if (!name || !this.live()) return;
    event.preventDefault();
    event.target.setPointerCapture?.(event.pointerId);
    this.hold(`pointer ${event.pointerId}`, [name, Number(value)]);
  }

  hold(input, move) {
    if (this.held.has(input)) return;
    this.held.set(input, move);
    this.changed();
  }

  lift(input) { if (this.held.delete(input)) this.changed(); }

  release() {  // everything, even when no more frames are drawn
    this.held.clear();
    this.stick = idle();
    this.flush();
  }

  changed() {
    this.due = true;
    if (!this.waiting) this.next();
  }

  next() {  // at most once per animation frame
    this.waiting = this.due;
    if (!this.due) return;
    this.due = false;
    this.flush();
    requestAnimationFrame(() => this.next());
  }

  flush() {  // while not live, changes are kept until it is
    const now = this.values;
    for (const button of this.pad.querySelectorAll('[data-move]')) {
      const [name, value] = button.dataset.move.split(' ');
      button.toggleAttribute('data-held', now[name] * Number(value) > 0);
    }
    const changes = Object.fromEntries(ACTIONS.filter((name) => now[name] !== this.sent[name]).map((name) => [name, now[name]]));
    if (!Object.keys(changes).length || !this.taken || !this.live()) return;
    this.send(changes);
    this.sent = now;
  }

  poll() {  // the gamepads, while one is connected
    if (this.polling) return;
    this.polling = true;
    const check = () => {
      const pad = [...navigator.getGamepads()].find((one) => one?.connected && one.mapping === 'standard');
      this.polling = Boolean(pad) && this.stage.isConnected;
      const stick = this.polling && this.taken && document.hasFocus() && this.live() ? this.read(pad) : idle();
      if (ACTIONS.some((name) => stick[name] !== this.stick[name])) { this.stick = stick; this.changed(); }
      if (this.polling) requestAnimationFrame(check);
    };
    requestAnimationFrame(check);
  }

  read({ axes, buttons }) {
    const [left_x = 0, left_y = 0, right_x = 0, right_y = 0] = axes.map(withoutDeadZone), trigger = (index) => buttons[index]?.value ?? 0;
    const zoom = withoutDeadZone(trigger(RIGHT_TRIGGER) - trigger(LEFT_TRIGGER));
    return { camera_x: left_x, camera_y: -left_y, camera_zoom: zoom, push_x: right_x, push_y: -right_y };
  }
}
