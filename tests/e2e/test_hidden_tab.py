"""A page behind another tab: its source, both transports and a recording go on at the source's rate.

Chromium throttles a hidden page's own timers to one a second and calls no requestVideoFrameCallback.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import pytest

from bench.live_page import serving
from tests.fakes.clips import make_clip

pytestmark = pytest.mark.soak
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NUMBER = "Number(document.querySelector('.zt-picture').dataset.number || 0)"
STATE = "document.querySelector('.zt-stage').dataset.state"
NOTICE = "document.querySelector('.zt-note p').textContent"
PERIOD_S = 4.0

pytest.importorskip("websockets", reason="the browser is driven over websockets: pip install '.[test]'")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)

from tests.e2e.browser import Page, browse  # noqa: E402  # needs websockets


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("identity", "128x96", "--max-sessions", "12") as url:  # those of ended browsers stay for a while
        yield url


@pytest.fixture
def page(url: str) -> Iterator[Page]:
    assert CHROMIUM is not None
    with browse(CHROMIUM, url) as page:
        page.call("Emulation.setFocusEmulationEnabled", enabled=False)  # it keeps a page visible
        page.until(f"window.zoetrope !== undefined && {STATE} === 'ready'", 90)
        yield page


@contextmanager
def behind_another_tab(page: Page) -> Iterator[None]:
    """The page is hidden within the block."""
    other = page.call("Target.createTarget", url="about:blank")["targetId"]
    page.call("Target.activateTarget", targetId=other)
    page.until("document.hidden", 10)
    yield
    page.call("Target.closeTarget", targetId=other)
    page.call("Page.bringToFront")
    page.until("!document.hidden", 10)


def counted(page: Page, url: str) -> tuple[int, int, float]:
    """Pictures that reached the server, pictures painted, and the time in s."""
    session = page.evaluate("({ ...window.zoetrope.link.session })")
    headers = {"Authorization": f"Bearer {session['token']}"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}v1/sessions/{session['id']}", headers=headers)) as answer:
        view: dict[str, Any] = json.load(answer)
    return int(view["accounting"]["taken"]), page.evaluate(NUMBER), time.monotonic()


def rates(page: Page, url: str, seconds: float = PERIOD_S) -> tuple[float, float]:
    """Pictures a second that reach the server, and that are painted."""
    before = counted(page, url)
    time.sleep(seconds)
    after = counted(page, url)
    passed_s = after[2] - before[2]
    return (after[0] - before[0]) / passed_s, (after[1] - before[1]) / passed_s


def begin(page: Page, kind: str, transport: str, clip: Path) -> None:
    """Stream from the source: a fake camera of 20 pictures a second, or the clip in a loop."""
    data = base64.b64encode(clip.read_bytes()).decode()
    file = f"fetch('data:video/mp4;base64,{data}').then((a) => a.blob()).then((b) => new File([b], 'clip.mp4'))"
    page.evaluate(f"{file}.then((file) => {{ window.zoetrope.sources.file = file; }})")
    page.evaluate(f"window.zoetrope.setTransport('{transport}')")
    start = f"window.zoetrope.choose('{kind}').then(() => window.zoetrope.start())"
    page.call("Runtime.evaluate", expression=start, awaitPromise=True, userGesture=True)
    seen = page.evaluate(NUMBER)
    page.until(f"{NUMBER} > {seen} + 20 && {STATE} === 'live'", 60)


@pytest.mark.parametrize(
    ("kind", "transport"),
    [
        *(("camera", "websocket"), ("camera", "webrtc"), ("screen", "websocket"), ("screen", "webrtc")),
        *(("file", "websocket"), ("file", "webrtc"), ("file-with-sound", "webrtc")),
    ],
)
def test_a_source_keeps_its_rate(page: Page, url: str, tmp_path: Path, kind: str, transport: str) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=60, sound="aac" if kind == "file-with-sound" else "")
    begin(page, kind.partition("-")[0], transport, clip)
    sent, painted = rates(page, url)
    assert sent > 10
    assert painted > 10
    with behind_another_tab(page):
        time.sleep(1.5)
        sent_behind, painted_behind = rates(page, url)
    assert sent_behind > 0.7 * sent
    assert painted_behind > 0.7 * painted
    sent_again, _ = rates(page, url, 2)
    assert 0.5 * sent < sent_again < 1.5 * sent  # not counted twice
    assert page.evaluate(NOTICE) == ""


def test_a_still_picture_is_repeated_and_a_timeline_keeps_its_time(page: Page, url: str, tmp_path: Path) -> None:
    begin(page, "file", "websocket", make_clip(tmp_path / "clip.mp4", frames=60, sound=""))
    page.evaluate("document.querySelector('.zt-source').pause()")
    with behind_another_tab(page):
        time.sleep(1.5)
        assert 6 < rates(page, url)[0] < 12  # ten a second
        page.evaluate("window.changed = []")
        page.evaluate(
            "{ const { link } = window.zoetrope, { control } = link; const from = performance.now();"
            " link.control = (c) => { window.changed.push(performance.now() - from); control.call(link, c); }; }"
        )
        page.evaluate("window.zoetrope.play('0:00.3 a cat\\n0:00.6 a dog\\n0:01.1 a boat')")
        time.sleep(1.6)
        times = page.evaluate("window.changed")
    assert times == pytest.approx([300, 600, 1100], abs=120)


@pytest.mark.parametrize("transport", ["websocket", "webrtc"])
def test_a_recording_of_the_page_goes_on(page: Page, tmp_path: Path, transport: str) -> None:
    begin(page, "camera", transport, make_clip(tmp_path / "clip.mp4", frames=60, sound=""))
    with behind_another_tab(page):
        time.sleep(1)
        page.evaluate("document.querySelector('[data-tool=record]').click()")
        time.sleep(PERIOD_S)
        page.evaluate("window.zoetrope.recorder.stop()")
        page.until("window.zoetrope.recorder.last !== undefined")
    read = (
        "window.zoetrope.recorder.last.arrayBuffer().then((buffer) => { let text = '';"
        " for (const byte of new Uint8Array(buffer)) text += String.fromCharCode(byte); return btoa(text); })"
    )
    with av.open(io.BytesIO(base64.b64decode(page.evaluate(read)))) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert frames > 0.7 * 20 * PERIOD_S


def test_the_page_says_when_the_browser_does_not_go_on(page: Page, url: str, tmp_path: Path) -> None:
    begin(page, "file", "websocket", make_clip(tmp_path / "clip.mp4", frames=60, sound=""))
    time.sleep(3)
    with behind_another_tab(page):
        page.evaluate("document.querySelector('.zt-source').pause()")  # as a browser that stops hidden videos
        time.sleep(6)
    page.until(f"{NOTICE}.includes('hidden')", 10)
    assert "window of its own" in page.evaluate(NOTICE)
    page.evaluate("document.querySelector('.zt-source').play()")
    assert rates(page, url, 2)[0] > 10  # the stream itself goes on
