// The connection to one session over WebRTC (docs/webrtc.md): the source goes out as video, the stream comes back as video,
// messages go on a data channel. Opens, comes back and ends as Link does (link.js, before it). Knows no widget.
const MOST_BITS_PER_S = 4e6, GATHER_MS = 1000, CONNECT_MS = 15000, SILENT_MS = 3000, LOOK_MS = 500, STILL_PICTURE_MS = 400;
const GONE = 1006, REFUSED = 1008, BUSY = 1013;  // close codes as a WebSocket has them

class Peer extends Link {
  // on: as Link's, and sent(canvas) for each picture that went out. frame's second argument is a <video> element.
  // sources: see sources.js; read only.
  constructor(on, sources) {
    super(on);
    this.sources = sources;
    this.canvas = Object.assign(document.createElement('canvas'), { width: 16, height: 16 });
    this.remote = Object.assign(document.createElement('video'), { muted: true, playsInline: true, autoplay: true });
  }

  get live() { return this.channel?.readyState === 'open' && this.greeted; }
  get hungry() { return false; }  // pictures go out by themselves
  send() { return -1; }

  say(message) { if (this.channel?.readyState === 'open') this.channel.send(JSON.stringify(message)); }

  hear(message) {
    this.heardMs = performance.now();
    if (message.type === 'ready') this.info = message.info;
    if (message.type === 'stats') this.figures = message;
    super.hear(message);
  }

  stop() {
    super.stop();
    this.end?.(1000);
  }

  async talk() {  // one connection from offer to end; resolves with a close code
    if (!self.RTCPeerConnection) { this.refuse('This browser has no WebRTC. Choose the WebSocket.'); return REFUSED; }
    const iceServers = await this.iceServers().catch(() => []);
    return new Promise((done) => {
      const connection = this.connection = new RTCPeerConnection({ iceServers });
      this.greeted = this.told = false;
      this.estimate = this.figures = null;
      let looking = 0;
      const end = (code) => {
        clearInterval(looking);
        if (this.end === end) { this.end = this.channel = null; this.greeted = false; this.remote.srcObject = null; }
        for (const { track } of connection.getSenders()) track?.stop();
        connection.close();
        done(code);
      };
      this.end = end;
      this.heardMs = performance.now() + CONNECT_MS - SILENT_MS;
      looking = setInterval(() => this.look(connection, end), LOOK_MS);
      this.join(connection, end).catch(() => end(GONE));
    });
  }

  async join(connection, end) {
    const channel = this.channel = connection.createDataChannel('control');
    channel.onmessage = ({ data }) => this.hear(JSON.parse(data));
    channel.onclose = () => end(this.wanted ? GONE : 1000);
    connection.onconnectionstatechange = () => { if (connection.connectionState === 'failed') this.unreachable(end); };
    const track = this.canvas.captureStream(0).getVideoTracks()[0];
    const { sender } = connection.addTransceiver(track, { direction: 'sendrecv', sendEncodings: [{ maxBitrate: MOST_BITS_PER_S }] });
    connection.ontrack = (event) => this.show(event);
    await connection.setLocalDescription();
    await this.gathered(connection);
    const { id, token } = this.session;
    const answer = await fetch(`/v1/sessions/${id}/webrtc`, {
      method: 'POST', body: connection.localDescription.sdp,
      headers: { 'Content-Type': 'application/sdp', Authorization: `Bearer ${token}` },
    });
    if (!answer.ok) { await this.turnedDown(answer, end); return; }
    await connection.setRemoteDescription({ type: 'answer', sdp: await answer.text() });
    const parameters = sender.getParameters();
    parameters.degradationPreference = 'maintain-resolution';
    await sender.setParameters(parameters);
    this.give(track);
  }

  async iceServers() {  // as the server names them to who has the session's token (RFC 9725, section 4.6)
    const { id, token } = this.session, headers = { Authorization: `Bearer ${token}` };
    const told = (await fetch(`/v1/sessions/${id}/webrtc`, { method: 'OPTIONS', headers })).headers.get('Link') ?? '';
    const quoted = '"((?:[^"\\\\]|\\\\.)*)"', plain = (text) => text?.replace(/\\(.)/g, '$1');
    const one = new RegExp(`<([^>]+)>; rel="ice-server"(?:; username=${quoted}; credential=${quoted})?`, 'g');
    return [...told.matchAll(one)].map(([, urls, username, credential]) => ({ urls, ...(username === undefined ? {} : { username: plain(username), credential: plain(credential) }) }));
  }

  gathered(connection) {  // a STUN server that does not answer is not waited for
    return Promise.race([pause(GATHER_MS), new Promise((done) => {
      const check = () => { if (connection.iceGatheringState === 'complete') done(); };
      connection.addEventListener('icegatheringstatechange', check);
      check();
    })]);
  }

  async turnedDown(answer, end) {
    const codes = { 401: 4401, 403: 4403, 404: 4404, 429: BUSY, 503: BUSY };
    const code = codes[answer.status] ?? REFUSED;
    if (code === REFUSED) {
      const { error } = await answer.json().catch(() => ({}));
      this.refuse(error ? `${error.message} ${error.remedy ?? ''}`.trim() : `The server answered ${answer.status}.`);
    }
    end(code);
  }

  unreachable(end) {  // lost after it worked: try again; never worked: say so
    if (!this.greetedOnce && !this.info) this.refuse('WebRTC found no way to the server. Is UDP blocked? Choose the WebSocket.');
    end(this.told ? REFUSED : GONE);
  }

  refuse(text) {
    this.told = true;
    this.on.state('refused', text);
  }

  async look(connection, end) {  // figures come twice a second: silence is a loss that ICE would notice much later
    if (performance.now() - this.heardMs > SILENT_MS) { this.unreachable(end); return; }
    if (!this.live) return;
    const report = [...(await connection.getStats()).values()], of = (type) => report.find((item) => item.type === type) ?? {};
    const pair = report.find((item) => item.type === 'candidate-pair' && item.nominated) ?? {};
    const share = (total, count) => (count ? total / count : 0);
    const { totalEncodeTime, framesEncoded } = of('outbound-rtp'), { totalProcessingDelay, framesDecoded } = of('inbound-rtp');
    const transport_s = (pair.currentRoundTripTime ?? 0) + share(totalEncodeTime, framesEncoded) + share(totalProcessingDelay, framesDecoded);
    this.estimate = this.figures?.latency_ms ? this.figures.latency_ms + 1000 * transport_s : null;
  }

  give(track) {  // each new picture of the source goes onto the canvas whose track is sent; one that stays goes again
    const { video } = this.sources;
    let still = 0;
    const paint = () => {
      clearTimeout(still);
      if (track.readyState !== 'live') return;
      still = setTimeout(paint, STILL_PICTURE_MS);
      if (!this.info || !this.sources.showing) return;
      this.sources.draw(this.canvas, this.info);
      track.requestFrame();
      this.on.sent?.(this.canvas);
    };
    const next = () => { if (track.readyState === 'live') { paint(); video.requestVideoFrameCallback(next); } };
    video.requestVideoFrameCallback(next);
    paint();
  }

  show({ track, receiver }) {
    receiver.jitterBufferTarget = 0;
    const stream = this.remote.srcObject = new MediaStream([track]);
    const next = (now, { presentedFrames, width, height }) => {
      if (this.remote.srcObject !== stream) return;
      const capturedMs = this.estimate === null ? 0 : performance.now() - this.estimate;
      this.on.frame({ seq: presentedFrames, source: NONE, capturedMs, width, height, serverUs: 0 }, this.remote, () => {});
      this.remote.requestVideoFrameCallback(next);
    };
    this.remote.requestVideoFrameCallback(next);
    this.remote.play().catch(() => {});  // interrupted by the next connection's stream
  }
}
