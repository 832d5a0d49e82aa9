// The connection to one session over WebRTC (docs/webrtc.md): video out, video in, messages on a data channel.
// Opens, reconnects and ends like Link (link.js, which it extends). Independent of the widgets.
const MAX_BITS_PER_S = 4e6, GATHER_MS = 1000, CONNECT_MS = 15000, SILENT_MS = 3000, POLL_MS = 500, STILL_PICTURE_MS = 400;
const GONE = 1006, REFUSED = 1008, BUSY = 1013;  // WebSocket close codes

class Peer extends Link {
  // on: like Link's, plus sent(canvas) for each picture sent. frame's second argument is a <video> element.
  // sources: see sources.js; only read.
  constructor(on, sources) {
    super(on);
    this.sources = sources;
    this.canvas = Object.assign(document.createElement('canvas'), { width: 16, height: 16 });
    this.remote = Object.assign(document.createElement('video'), { muted: true, playsInline: true, autoplay: true });
  }

  get live() { return this.channel?.readyState === 'open' && this.isReady; }
  get hungry() { return false; }  // video is sent continuously
  send() { return -1; }

  post(message) { if (this.channel?.readyState === 'open') this.channel.send(JSON.stringify(message)); }

  handle(message) {
    this.lastMessageMs = performance.now();
    if (message.type === 'ready') this.info = message.info;
    if (message.type === 'stats') this.stats = message;
    super.handle(message);
  }

  stop() {
    super.stop();
    this.end?.(1000);
  }

  async talk() {  // one connection, from offer to end; resolves with a close code
    if (!self.RTCPeerConnection) { this.refuse('This browser has no WebRTC. Choose WebSocket.'); return REFUSED; }
    const { run } = this, iceServers = await this.iceServers().catch(() => []);
    if (run !== this.run) return GONE;
    return new Promise((done) => {
      const connection = this.connection = new RTCPeerConnection({ iceServers });
      this.isReady = this.reported = false;
      this.estimate = this.stats = null;
      let poll = 0;
      const end = (code) => {
        clearInterval(poll);
        if (this.end === end) { this.end = this.channel = null; this.isReady = false; this.remote.srcObject = null; }
        for (const { track } of connection.getSenders()) track?.stop();
        connection.close();
        done(code);
      };
      this.end = end;
      this.lastMessageMs = performance.now() + CONNECT_MS - SILENT_MS;
      poll = setInterval(() => this.check(connection, end), POLL_MS);
      this.join(connection, end).catch(() => end(GONE));
    });
  }

  async join(connection, end) {
    const channel = this.channel = connection.createDataChannel('control');
    channel.onmessage = ({ data }) => this.handle(JSON.parse(data));
    channel.onclose = () => end(this.wanted ? GONE : 1000);
    connection.onconnectionstatechange = () => { if (connection.connectionState === 'failed') this.unreachable(end); };
    const stream = this.canvas.captureStream(0), [track] = stream.getVideoTracks();
    const { sender } = connection.addTransceiver(track, { direction: 'sendrecv', sendEncodings: [{ maxBitrate: MAX_BITS_PER_S }] });
    connection.ontrack = (event) => this.show(event);
    await connection.setLocalDescription();
    await this.gathered(connection);
    const { id, token } = this.session;
    const answer = await fetch(`v1/sessions/${id}/webrtc`, {
      method: 'POST', body: connection.localDescription.sdp,
      headers: { 'Content-Type': 'application/sdp', Authorization: `Bearer ${token}` },
    });
    if (!answer.ok) { await this.rejected(answer, end); return; }
    await connection.setRemoteDescription({ type: 'answer', sdp: await answer.text() });
    const parameters = sender.getParameters();
    parameters.degradationPreference = 'maintain-resolution';
    await sender.setParameters(parameters);
    this.sendVideo(track, track.requestFrame ? track : stream);  // Firefox has requestFrame() at the stream
  }

  async iceServers() {  // from the server's Link header, which needs the session's token (RFC 9725, section 4.6)
    const { id, token } = this.session, headers = { Authorization: `Bearer ${token}` };
    const links = (await fetch(`v1/sessions/${id}/webrtc`, { method: 'OPTIONS', headers })).headers.get('Link') ?? '';
    const quoted = '"((?:[^"\\\\]|\\\\.)*)"', plain = (text) => text?.replace(/\\(.)/g, '$1');
    const one = new RegExp(`<([^>]+)>; rel="ice-server"(?:; username=${quoted}; credential=${quoted})?`, 'g');
    return [...links.matchAll(one)].map(([, urls, username, credential]) => ({ urls, ...(username === undefined ? {} : { username: plain(username), credential: plain(credential) }) }));
  }

  gathered(connection) {  // with a timeout, for a STUN server that does not respond
    return Promise.race([pause(GATHER_MS), new Promise((done) => {
      const check = () => { if (connection.iceGatheringState === 'complete') done(); };
      connection.addEventListener('icegatheringstatechange', check);
      check();
    })]);
  }

  async rejected(answer, end) {
    const codes = { 401: 4401, 403: 4403, 404: 4404, 429: BUSY, 503: BUSY };
    const code = codes[answer.status] ?? REFUSED;
    if (code === REFUSED) {
      const { error } = await answer.json().catch(() => ({}));
      this.refuse(error ? `${error.message} ${error.remedy ?? ''}`.trim() : `The server responded ${answer.status}.`);
    }
    end(code);
  }

  unreachable(end) {  // lost after it worked: reconnect; never worked: report
    if (!this.becameReady && !this.info) this.refuse('WebRTC could not reach the server. Is UDP blocked? Choose WebSocket.');
    end(this.reported ? REFUSED : GONE);
  }

  refuse(text) {
    this.reported = true;
    this.on.state('refused', text);
  }

  async check(connection, end) {  // stats arrive twice a second: silence means a loss that ICE would detect much later
    if (performance.now() - this.lastMessageMs > SILENT_MS) { this.unreachable(end); return; }
    if (!this.live) return;
    const report = [...(await connection.getStats()).values()], of = (type) => report.find((item) => item.type === type) ?? {};
    const pair = report.find((item) => item.type === 'candidate-pair' && item.nominated) ?? {};
    const mean = (total, count) => (count ? total / count : 0);
    const { totalEncodeTime, framesEncoded } = of('outbound-rtp'), { totalProcessingDelay, framesDecoded } = of('inbound-rtp');
    const transport_s = (pair.currentRoundTripTime ?? 0) + mean(totalEncodeTime, framesEncoded) + mean(totalProcessingDelay, framesDecoded);
    this.estimate = this.stats?.latency_ms ? this.stats.latency_ms + 1000 * transport_s : null;
  }

  sendVideo(track, capture) {  // draws each new picture onto the canvas whose track is sent; repeats a still one
    let still = 0;
    const paint = () => {
      clock.cancel(still);
      if (track.readyState !== 'live') { end(); return; }
      still = clock.after(STILL_PICTURE_MS, paint);
      if (!this.info || !this.sources.showing) return;
      this.sources.draw(this.canvas, this.info);
      capture.requestFrame();
      this.on.sent?.(this.canvas);
    };
    const end = everyPicture(this.sources.video, paint);
    paint();
  }

  show({ track, receiver }) {
    receiver.jitterBufferTarget = 0;
    const stream = this.remote.srcObject = new MediaStream([track]);
    let seq = 0;
    const end = everyPicture(this.remote, () => {
      if (this.remote.srcObject !== stream) { end(); return; }
      const capturedMs = this.estimate === null ? 0 : performance.now() - this.estimate;
      const { videoWidth: width, videoHeight: height } = this.remote;
      this.on.frame({ seq: seq += 1, source: NONE, capturedMs, width, height, serverUs: 0 }, this.remote, () => {});
    });
    this.remote.play().catch(() => {});  // rejects when the next connection's stream interrupts it
  }
}
