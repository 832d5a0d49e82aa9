// The connection to one session: opens it over HTTP, speaks the WebSocket protocol of docs/api.md, and reconnects
// after a lost connection within the session's grace period. Independent of the canvas and the widgets.
const HEADER_BYTES = 32, NONE = 0xffffffff, MAX_WAITING = 2, JPEG = 1;

class Link {
  // on: { state(name, text), ready(info, controls), frame(header, blob), stats(message), refused(message), noted(text),
  //       hungry() when a picture may be sent again, taken(seq) (optional) }
  constructor(on) { Object.assign(this, { on, session: null, socket: null, wanted: false, run: 0, next: 0, waiting: new Map() }); }

  get live() { return this.socket?.readyState === WebSocket.OPEN && this.isReady; }

  async start(body) {  // ends the session before, if there is one; does nothing more once stopped or started again
    this.stop();
    const run = ++this.run;
    this.wanted = true;
    this.on.state('opening', 'opening…');
    let answer;
    try {
      answer = await fetch('v1/sessions', {
        method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body),
      });
    } catch {
      if (run !== this.run) return;
      this.wanted = false;
      this.on.state('gone', 'Connection lost. Is zoetrope live still running?');
      return;
    }
    const opened = await answer.json().catch(() => ({}));
    if (run !== this.run) { if (answer.ok) this.drop(opened); return; }
    if (!answer.ok) {
      this.wanted = false;
      const error = opened.error ?? { message: `The server responded ${answer.status}.`, remedy: '' };
      const states = { 401: 'denied', 503: 'busy', 429: 'busy' };
      this.on.state(states[answer.status] ?? 'refused', `${error.message} ${error.remedy ?? ''}`.trim());
      return;
    }
    this.session = opened;
    this.next = 0;
    this.connect();
  }

  drop({ id, token }) {
    fetch(`v1/sessions/${id}`, { method: 'DELETE', headers: { Authorization: `Bearer ${token}` }, keepalive: true }).catch(() => {});
  }

  async connect() {
    const { run } = this, current = () => this.wanted && run === this.run;
    for (let attempt = 0; current(); attempt += 1) {
      const code = await this.talk(attempt);
      if (!current()) return;
      if ([1000, 4404, 4401, 4403, 1008].includes(code) || attempt > 40) {
        this.wanted = false;
        if (!this.reported) this.on.state('refused', code === 4404 ? 'The session has ended. Press Start.' : `The server closed the session (${code}).`);
        return;
      }
      if (this.becameReady) attempt = 0;
      this.becameReady = false;
      this.on.state('lost', 'Connection lost. Reconnecting…');
      await pause(Math.min(2000, 200 * 2 ** attempt));
    }
  }

  talk() {  // one WebSocket, from open to close; resolves with its close code
    return new Promise((done) => {
      const { id, token } = this.session;
      const url = new URL(`v1/sessions/${id}/stream`, document.baseURI);
      url.protocol = url.protocol.replace('http', 'ws');
      const socket = this.socket = new WebSocket(url);
      socket.binaryType = 'arraybuffer';
      this.isReady = false;
      this.reported = false;
      this.waiting.clear();
      socket.onopen = () => this.post({ type: 'hello', version: 1, token, format: 'jpeg', quality: 88 });
      socket.onmessage = ({ data }) => {
        if (socket !== this.socket) return;  // of a session that was stopped
        if (typeof data === 'string') this.handle(JSON.parse(data)); else this.receive(data);
      };
      socket.onclose = ({ code }) => { if (socket === this.socket) this.isReady = false; done(code); };
    });
  }

  handle(message) {
    const handlers = {
      ready: () => { this.isReady = this.becameReady = true; this.on.ready(message.info, message.controls); this.on.state('live', ''); },
      stats: () => this.on.stats(message),
      error: () => this.on.refused(`${message.message} ${message.remedy ?? ''}`.trim()),
      notice: () => this.on.noted(message.text),
      taken: () => { for (const seq of this.waiting.keys()) if (seq <= message.seq) this.waiting.delete(seq); this.on.hungry(); this.on.taken?.(message.seq); },
      restarting: () => { this.waiting.clear(); this.on.state('restarting', message.text); },
      ended: () => { this.reported = true; this.wanted = false; this.on.state('refused', `${message.message} ${message.remedy ?? ''}`.trim()); },
    };
    handlers[message.type]?.();
  }

  receive(data) {
    const view = new DataView(data);
    const header = {
      seq: view.getUint32(8, true), source: view.getUint32(12, true), capturedMs: view.getFloat64(16, true),
      width: view.getUint16(24, true), height: view.getUint16(26, true), serverUs: view.getUint32(28, true),
    };
    this.on.frame(header, new Blob([new Uint8Array(data, view.getUint16(6, true))], { type: 'image/jpeg' }),
      () => this.post({ type: 'ack', seq: header.seq }));
  }

  // Whether a picture may be sent now: at most two wait to be taken; after a second one counts as lost.
  get hungry() {
    const now = performance.now();
    for (const [seq, at] of this.waiting) if (now - at > 1000) this.waiting.delete(seq);
    return this.live && this.waiting.size < MAX_WAITING && this.socket.bufferedAmount < 1 << 18;
  }

  send(jpeg, width, height, capturedMs) {
    const seq = this.next++;
    this.waiting.set(seq, performance.now());
    const bytes = new Uint8Array(HEADER_BYTES + jpeg.byteLength), view = new DataView(bytes.buffer);
    bytes.set([0x5a, 0x54, 1, JPEG]);  // Z T, version 1
    view.setUint16(6, HEADER_BYTES, true);
    view.setUint32(8, seq, true);
    view.setUint32(12, NONE, true);
    view.setFloat64(16, capturedMs, true);
    view.setUint16(24, width, true);
    view.setUint16(26, height, true);
    bytes.set(new Uint8Array(jpeg), HEADER_BYTES);
    this.socket.send(bytes);
    return seq;
  }

  post(message) { if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message)); }
  control(changes) { if (this.live) this.post({ type: 'control', id: this.ids = (this.ids ?? 0) + 1, changes }); }
  source(promptOnly) { if (this.live) this.post({ type: 'source', id: this.ids = (this.ids ?? 0) + 1, prompt_only: promptOnly }); }

  stop() {
    if (!this.wanted && !this.session) return;
    this.wanted = this.isReady = false;
    this.run += 1;
    if (this.session) this.drop(this.session);
    this.session = null;
    this.socket?.close(1000);
    this.socket = null;
    this.on.state('stopped', '');
  }
}
