"""WebRTC in a real browser: the page's own transport, and the script that docs/webrtc.md prints."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from bench.live_page import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REPOSITORY = Path(__file__).parents[2]
TOLERANCE = 16  # of a flat colour through two codecs, each on the other's conversion to YUV
NUMBER = "Number(document.querySelector('.zt-picture').dataset.number || 0)"
STATE = "document.querySelector('.zt-stage').dataset.state"
CAMERA = """
(() => {
  const canvas = Object.assign(document.createElement('canvas'), { width: 128, height: 96 });
  const context = canvas.getContext('2d');
  window.colour = 'rgb(200, 40, 40)';
  setInterval(() => { context.fillStyle = window.colour; context.fillRect(0, 0, 128, 96); }, 33);
  window.camera = canvas.captureStream(30);
  navigator.mediaDevices.getUserMedia = async () => canvas.captureStream(30);
  window.near = (picture, wanted, within) => {
    const one = new OffscreenCanvas(1, 1).getContext('2d');
    one.drawImage(picture, 0, 0, 1, 1);
    const found = [...one.getImageData(0, 0, 1, 1).data.slice(0, 3)];
    return found.every((value, channel) => Math.abs(value - wanted[channel]) <= within);
  };
})()
"""

pytest.importorskip("websockets", reason="the browser is driven over websockets: pip install '.[test]'")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)

from tests.e2e.browser import Page, browse  # noqa: E402  # needs websockets


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("identity", "128x96") as url:
        yield url


@pytest.fixture
def page(url: str) -> Iterator[Page]:
    assert CHROMIUM is not None
    with browse(CHROMIUM, url) as page:
        page.until(f"window.zoetrope !== undefined && {STATE} === 'ready'", 90)
        page.evaluate(CAMERA)
        yield page


def asked(url: str, path: str, token: str | None = None, body: bytes | None = None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    with urllib.request.urlopen(urllib.request.Request(f"{url}{path}", body, headers), timeout=20) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def sees(page: Page, *colour: int, picture: str = "document.querySelector('.zt-picture')") -> None:
    """Change the camera's picture and wait until it has come back."""
    page.evaluate(f"window.colour = 'rgb({', '.join(map(str, colour))})'")
    page.until(f"window.near({picture}, {list(colour)}, {TOLERANCE})", 30)


def test_the_page_streams_over_webrtc_comes_back_and_changes_its_transport(page: Page, url: str) -> None:
    page.evaluate("document.querySelector('#zt-transport').value = 'webrtc'")
    page.evaluate("document.querySelector('#zt-transport').dispatchEvent(new Event('change'))")
    page.evaluate("window.zoetrope.choose('camera').then(() => window.zoetrope.start())")
    page.until(f"{NUMBER} > 5 && {STATE} === 'live'", 60)
    sees(page, 200, 40, 40)
    sees(page, 30, 60, 190)
    assert page.evaluate("window.zoetrope.link.constructor.name") == "Peer"
    page.until("Number(document.querySelector('[data-zt=taken]').textContent) > 5")
    page.until("Number(document.querySelector('[data-zt=latency_ms]').textContent) > 0")
    session = page.evaluate("({ ...window.zoetrope.link.session })")
    page.evaluate("window.zoetrope.setControl('strength', 0.25)")
    page.until("window.zoetrope.link.connection.connectionState === 'connected'")

    page.evaluate("window.old = window.zoetrope.link.connection; window.old.close()")
    page.until(f"window.zoetrope.link.connection !== window.old && {STATE} === 'live'", 30)
    sees(page, 40, 160, 60)
    assert page.evaluate("window.zoetrope.link.session.id") == session["id"]
    assert asked(url, f"v1/sessions/{session['id']}", session["token"])["controls"]["strength"] == 0.25

    page.evaluate("window.zoetrope.setTransport('websocket')")
    page.until(f"window.zoetrope.link.constructor.name === 'Link' && {STATE} === 'live'", 30)
    sees(page, 200, 40, 40)
    page.evaluate("window.zoetrope.stop()")
    page.until(f"{STATE} === 'stopped' || {STATE} === 'ready'")
    assert not [line for line in page.console if "exceptionThrown" in line or "peer" in line], page.console


def test_the_script_in_the_document_runs_as_printed(page: Page, url: str) -> None:
    text = (REPOSITORY / "docs" / "webrtc.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```js\n(.*?)```", text, re.DOTALL)
    session = asked(url, "v1/sessions", body=b"{}")
    given = f"const id = {json.dumps(session['id'])}, token = {json.dumps(session['token'])};"
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('video'), { autoplay: true, muted: true }))"
    )
    page.evaluate("window.video = document.querySelector('body > video')")
    page.evaluate(f"(async () => {{ {given}\n{script}\nwindow.peer = peer; }})()")
    page.until("window.video.videoWidth === 128", 30)
    sees(page, 200, 40, 40, picture="window.video")
    sees(page, 30, 60, 190, picture="window.video")
    controls = asked(url, f"v1/sessions/{session['id']}", session["token"])["controls"]
    assert controls["prompt"] == [{"text": "a harbour at dusk", "weight": 1.0}]
    page.evaluate("window.peer.close()")


SOUND = """
(async () => {
  const peer = window.peer = new RTCPeerConnection({ iceServers: [] });
  const audio = window.audio = new AudioContext(), tone = audio.createOscillator();
  const out = audio.createMediaStreamDestination();
  await audio.resume();
  tone.frequency.value = 440;
  tone.connect(out);
  tone.start();
  peer.addTransceiver(window.camera.getVideoTracks()[0], { direction: 'sendonly' });
  peer.addTransceiver(out.stream.getAudioTracks()[0], { direction: 'sendonly' });
  await peer.setLocalDescription();
  await new Promise(done => peer.iceGatheringState === 'complete' ? done()
    : peer.addEventListener('icegatheringstatechange', () => peer.iceGatheringState === 'complete' && done()));
  const answer = await fetch(`/v1/sessions/${ID}/whip`, { method: 'POST', body: peer.localDescription.sdp,
    headers: { 'Content-Type': 'application/sdp', Authorization: `Bearer ${TOKEN}` } });
  await peer.setRemoteDescription({ type: 'answer', sdp: await answer.text() });
})()
"""


@pytest.mark.alone
def test_the_sound_that_a_browser_sends_is_recorded(page: Page, url: str) -> None:
    session = asked(url, "v1/sessions", body=b"{}")
    path, token = f"v1/sessions/{session['id']}/outputs", session["token"]
    made = asked(url, path, token, b'{"kind": "recording", "sound": true}')  # before there is a source
    script = SOUND.replace("${ID}", session["id"]).replace("${TOKEN}", token)
    page.call("Runtime.evaluate", expression=script, awaitPromise=True, userGesture=True)  # which sound needs
    page.until("window.peer.connectionState === 'connected'")
    deadline_s = time.monotonic() + 30
    while (reading := asked(url, path, token)["outputs"][0])["done"] < 90 or "sound" in reading["text"]:
        assert time.monotonic() < deadline_s, reading
        time.sleep(0.1)
    headers = {"Authorization": f"Bearer {token}"}
    stop = urllib.request.Request(f"{url}{path}/{made['id']}", headers=headers, method="DELETE")
    with urllib.request.urlopen(stop, timeout=30) as answer:
        last = json.load(answer)
    assert last["phase"] == "stopped"
    assert "sound" not in last["text"]
    with urllib.request.urlopen(f"{url}{last['file_url'].lstrip('/')}", timeout=30) as answer:
        file = answer.read()
    with av.open(io.BytesIO(file)) as container:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    second = samples[-72_000:-24_000]
    assert np.argmax(np.abs(np.fft.rfft(second))) == pytest.approx(440, abs=3)
    page.evaluate("window.peer.close(); window.audio.close()")
