"""The page in Firefox: it opens, streams over both transports, goes on behind another tab, and records."""

from __future__ import annotations

import base64
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from bench.live_page import serving
from tests.fakes.clips import make_clip

pytestmark = pytest.mark.soak
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
NUMBER = "Number(document.querySelector('.zt-picture').dataset.number || 0)"
TAKEN = "Number(document.querySelector('[data-zt=taken]').textContent)"
STAGE = "document.querySelector('.zt-stage')"
STATE = f"{STAGE}.dataset.state"
MESSAGE = "document.querySelector('.zt-message').textContent"

pytest.importorskip("websockets", reason="the browser is driven over websockets: pip install '.[test]'")
if FIREFOX is None:
    pytest.skip("no Firefox on this machine: apt-get install firefox-esr", allow_module_level=True)

from tests.e2e.firefox import FirefoxPage, browse_firefox  # noqa: E402  # needs websockets


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("identity", "128x96") as url:
        yield url


@pytest.fixture
def page(url: str) -> Iterator[FirefoxPage]:
    assert FIREFOX is not None
    with browse_firefox(FIREFOX, url) as page:
        page.until(f"window.zoetrope !== undefined && {STATE} === 'ready'", 90)
        yield page
        assert page.console == []


def begin(page: FirefoxPage, kind: str, transport: str) -> None:
    page.evaluate(f"window.zoetrope.setTransport('{transport}')")
    page.evaluate(f"window.zoetrope.choose('{kind}').then(() => window.zoetrope.start())")
    seen = page.evaluate(NUMBER)
    page.until(f"{NUMBER} > {seen} + 20 && {STATE} === 'live'", 60)


def use_clip(page: FirefoxPage, clip: Path) -> None:
    """The clip as the chosen video file."""
    data = base64.b64encode(clip.read_bytes()).decode()
    file = f"fetch('data:video/webm;base64,{data}').then((a) => a.blob()).then((b) => new File([b], 'clip.webm'))"
    page.evaluate(f"{file}.then((file) => {{ window.zoetrope.sources.file = file; }})")


def rate(page: FirefoxPage, expression: str, seconds: float = 3.0) -> float:
    """How fast a number on the page grows, a second."""
    before, since = page.evaluate(expression), time.monotonic()
    time.sleep(seconds)
    return float(page.evaluate(expression) - before) / (time.monotonic() - since)


def recorded(page: FirefoxPage, seconds: float) -> bytes:
    """Press Record, and again after some seconds. Returns the file."""
    press = "document.querySelector('[data-tool=record]').click()"
    page.evaluate("window.zoetrope.recorder.last = undefined")
    page.evaluate(press)
    time.sleep(seconds)
    page.evaluate(press)
    page.until("window.zoetrope.recorder.last !== undefined")
    read = (
        "window.zoetrope.recorder.last.arrayBuffer().then((buffer) => { let text = '';"
        " for (const byte of new Uint8Array(buffer)) text += String.fromCharCode(byte); return btoa(text); })"
    )
    return base64.b64decode(page.evaluate(read))


@pytest.mark.parametrize("transport", ["websocket", "webrtc"])
def test_a_camera_streams_and_is_recorded(page: FirefoxPage, tmp_path: Path, transport: str) -> None:
    begin(page, "camera", transport)
    assert page.evaluate("window.zoetrope.link.constructor.name") == {"websocket": "Link", "webrtc": "Peer"}[transport]
    front = rate(page, TAKEN)
    assert front > 10
    assert rate(page, NUMBER) > 10
    page.until("Number(document.querySelector('[data-zt=latency_ms]').textContent) > 0")
    page.screenshot(tmp_path / f"firefox-{transport}.png")
    with av.open(io.BytesIO(recorded(page, 3))) as container:
        kinds = [stream.type for stream in container.streams]
        assert kinds == ["video", "audio"]  # the microphone goes with the camera
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) > 20
    assert abs(frames[2].mean((0, 1)) - frames[-1].mean((0, 1))).max() > 10  # the fake camera's colour turns
    with page.behind_another_tab():
        time.sleep(1.5)
        assert rate(page, TAKEN) > 0.7 * min(front, 30)
        assert rate(page, NUMBER) > 0.7 * min(front, 30)
    page.evaluate("window.zoetrope.stop()")
    page.until(f"['stopped', 'ready'].includes({STATE})")
    assert page.evaluate(MESSAGE) == ""


def test_a_file_streams_and_is_recorded_with_its_sound(page: FirefoxPage, tmp_path: Path) -> None:
    use_clip(page, make_clip(tmp_path / "clip.webm", frames=50, encoder="libvpx", sound="libopus"))
    begin(page, "file", "websocket")
    with page.behind_another_tab():
        time.sleep(1.5)
        assert 15 < rate(page, TAKEN) < 40
    with av.open(io.BytesIO(recorded(page, 3))) as container:
        assert sorted(stream.type for stream in container.streams) == ["audio", "video"]
        loudest = max(abs(frame.to_ndarray()).max() for frame in container.decode(audio=0))
    running = (
        "Promise.race([new AudioContext().resume().then(() => true), new Promise((done) => setTimeout(done, 2000))])"
    )
    if not page.evaluate(running):
        pytest.skip("no sound device on this machine: Firefox's AudioContext, and so the recorded sound, stands still")
    assert loudest > 0.01


def test_a_prompt_streams(page: FirefoxPage) -> None:
    begin(page, "prompt", "websocket")
    assert rate(page, NUMBER) > 10
    page.evaluate("window.zoetrope.stop()")
