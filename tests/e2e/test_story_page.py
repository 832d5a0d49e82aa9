"""The live page with a video model: stories, first pictures, the input beside the output."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.client import ZoetropeClient
from app.client.errors import RefusedControlError
from tests.fakes.live_process import LiveProcess, bearer, live_process, wait_for
from tests.fakes.tiny_video_model import tiny_video_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RATE = 16
NUMBER = "Number(document.querySelector('.zt-picture').dataset.number || 0)"
STATE = "document.querySelector('.zt-stage').dataset.state"
BOX = "document.querySelector('#zt-timeline')"
INPUT = "document.querySelector('.zt-before')"
MESSAGE = "document.querySelector('.zt-message').textContent"
SHOWN = "(canvas => [...canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data])"
LISTEN = """
window.said = [];
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (data) {
  const message = typeof data === 'string' ? JSON.parse(data) : { type: 'picture' };
  if (['control', 'source', 'picture'].includes(message.type)) window.said.push(message);
  return send.call(this, data);
};
"""

pytest.importorskip("websockets", reason="the browser is driven over websockets: pip install '.[test]'")
from tests.e2e.browser import Page, browse  # noqa: E402  # needs websockets


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveProcess]:
    model = tiny_video_model(tmp_path_factory.mktemp("models") / "tiny", actions=True)
    data = tmp_path_factory.mktemp("data")
    with live_process("--model", str(model), "--device", "cpu", "--kv-policy", "dual", "--data", str(data)) as live:
        yield live


@pytest.fixture(scope="module")
def browser(live: LiveProcess) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with browse(CHROMIUM, live.url) as page:
        page.screen(1360, 860)
        yield page


@pytest.fixture
def page(live: LiveProcess, browser: Page) -> Page:
    """A freshly loaded page, in one browser for all tests."""
    browser.call("Page.navigate", url="about:blank")
    browser.call("Page.navigate", url=live.url)
    browser.until(f"window.zoetrope?.model.engine === 'video' && {STATE} === 'ready'", 60)
    browser.evaluate(LISTEN)
    return browser


def drop(page: Page, name: str, kind: str, content: bytes) -> None:
    """Drop a file on the stage."""
    data = base64.b64encode(content).decode()
    page.evaluate(f"""
(async () => {{
  const bytes = await (await fetch('data:{kind};base64,{data}')).arrayBuffer();
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], '{name}', {{ type: '{kind}' }}));
  const dropped = new DragEvent('drop', {{ dataTransfer, bubbles: true, cancelable: true }});
  document.querySelector('.zt-stage').dispatchEvent(dropped);
}})()""")


def png(colour: tuple[int, int, int], info: PngInfo | None = None) -> bytes:
    made = io.BytesIO()
    Image.fromarray(np.full((60, 120, 3), colour, np.uint8)).save(made, "PNG", pnginfo=info)
    return made.getvalue()


def said(page: Page) -> list[object]:
    """Return the page's messages to the server, without their numbers."""
    found = page.evaluate("window.said.map(({ type, changes, prompt_only }) => changes ?? prompt_only ?? type)")
    assert isinstance(found, list)
    return found


def said_wrong(page: Page) -> str:
    """Return the visible message, without the model's own notices."""
    message = str(page.evaluate(MESSAGE))
    return "" if message.startswith("Self-Forcing was trained") else message


def runs_on(page: Page, frames: int = 30) -> None:
    page.until(f"{NUMBER} > {page.evaluate(NUMBER) + frames}", 40)


def test_a_dropped_picture_begins_a_video_and_the_prompt_goes_on(page: Page) -> None:
    drop(page, "cat.png", "image/png", png((200, 40, 10)))  # Start was not pressed: it starts with the picture
    page.until("window.said.filter(({ type }) => type === 'source').length >= 3", 60)
    runs_on(page)
    first = {"input_use": "first-frame"}
    rest = {"input_use": "redraw"}
    assert said(page) == [False, rest, first, False, "picture", rest, True]
    red, green, blue, _ = page.evaluate(f"{SHOWN}({INPUT})")
    assert abs(red - 200) < 8 and abs(green - 40) < 8 and abs(blue - 10) < 8  # noqa: PT018  # one colour
    page.evaluate("document.querySelector('#zt-transport').value = 'webrtc'")
    page.evaluate("document.querySelector('#zt-transport').dispatchEvent(new Event('change'))")
    page.until(f"{STATE} === 'live' && window.zoetrope.link.channel?.readyState === 'open'", 60)
    page.evaluate("window.said.length = 0")
    page.evaluate(f"(async () => window.zoetrope.beginWith(await (await fetch({INPUT}.toDataURL())).blob()))()")
    assert said(page) == [first, False, "picture"]  # the rest goes on the data channel
    runs_on(page)
    assert not said_wrong(page)
    assert page.console == []


def test_settings_and_stories_are_told_from_pictures(page: Page) -> None:
    info = PngInfo()
    info.add_itxt("zoetrope", json.dumps({"zoetrope": 1, "controls": {"prompt": "a table", "seed": 9}}))
    drop(page, "snapshot.png", "image/png", png((0, 0, 0), info))
    page.until("document.querySelector('#zt-prompt textarea').value === 'a table'", 20)
    assert page.evaluate("window.zoetrope.settings().controls") == {"prompt": "a table", "seed": 9}
    assert "picture" not in said(page)
    drop(page, "a.txt", "text/plain", b"no settings")
    page.until(f"{MESSAGE} === 'a.txt: no settings of Zoetrope.'", 10)
    drop(page, "story.json", "application/json", b'[{"at_s": 1}]')
    page.until(f"{MESSAGE}.includes('entry 1 of the timeline')", 10)


def test_a_story_is_loaded_played_and_saved(page: Page, live: LiveProcess) -> None:
    entries = [
        {"at_s": 0, "prompt": "a cat"},
        {"at_s": 0.6, "prompt": "the table", "scene_cut": True},
        {"at_s": 1, "prompt": [{"text": "a cat", "weight": 2}], "seed": 5},
        {"at_s": 65, "prompt": "a cat on the table"},
    ]
    drop(page, "story.json", "application/json", json.dumps(entries).encode())
    lines = ["0:00 a cat", "0.6 cut: the table", '0:01 {"prompt":[{"text":"a cat","weight":2}],"seed":5}']
    page.until(f"{BOX}.value !== ''", 10)
    assert page.evaluate(f"{BOX}.value").split("\n") == [*lines, "1:05 a cat on the table"]
    assert page.evaluate(f"window.zoetrope.parseTimeline({BOX}.value)") == entries
    page.click("#zt-play")
    page.until("window.said.filter(({ type }) => type === 'control').length >= 2", 30)
    runs_on(page)
    changes = [change for change in said(page) if isinstance(change, dict)]
    assert [{k: v for k, v in entry.items() if k != "at_s"} for entry in entries[1:3]] == changes[-2:]
    assert "scene_cut" not in page.evaluate("window.zoetrope.settings().controls")
    assert page.evaluate("document.querySelector('#zt-played').textContent") == "4 entries"
    assert not said_wrong(page)
    assert page.console == []


def test_another_view_has_the_input_at_once(page: Page, tmp_path: Path) -> None:
    """A chunk takes a while: the current picture is shown until the answers in flight arrive."""
    page.evaluate("[...document.querySelectorAll('#zt-source input')].find(i => i.value === 'Camera').click()")
    page.click("#zt-start")
    runs_on(page, 20)
    found = page.evaluate(f"""
(() => {{
  const before = document.querySelector('.zt-before'), choice = document.querySelector('[data-tool=view]');
  before.width = before.height = 8;  // empty
  choice.value = 'side';
  choice.dispatchEvent(new Event('change', {{ bubbles: true }}));
  return [before.width, before.height, ...{SHOWN}(before)];
}})()""")
    page.screenshot(tmp_path / "side.png")
    assert found[:2] == [48, 32]
    assert max(found[2:5]) > 40  # the fake camera is green and yellow
    assert page.console == []


def test_the_live_door_serves_a_video_model(live: LiveProcess) -> None:
    session = live.open(prompt_only=True, prompt="a cat")
    wait_for(lambda: live.read(session)["accounting"]["out"] > 20)
    told = live.read(session)
    assert told["info"]["frame_rate"] == RATE
    assert told["info"]["model"] == "tiny"
    hidden = live.http.get("/page/controls").json()["hidden"]
    assert "zt-depth" in hidden
    assert "zt-paused" not in hidden
    change = {"controls": {"prompt": "the table", "prompt_change": "cut", "chunk_frames": 1}}
    answer = live.http.patch(f"/v1/sessions/{session['id']}", json=change, headers=bearer(session))
    assert answer.status_code == 200, answer.text
    out = live.read(session)["accounting"]["out"]
    wait_for(lambda: live.read(session)["accounting"]["out"] > out + 10)
    live.end(session)
    asyncio.run(steer(live.url))


async def steer(url: str) -> None:
    """Send actions by the Python client."""
    async with ZoetropeClient(url) as client, client.stream(prompt_only=True) as stream:
        assert stream.ready is not None
        assert stream.ready.info.takes_actions
        await stream.control(camera_x=-1, push_y=0.5)
        view = await client.read_session(stream.session)
        assert (view.controls["camera_x"], view.controls["push_y"]) == (-1, 0.5)
        with pytest.raises(RefusedControlError, match="camera_zoom cannot be 2"):
            await stream.control(camera_zoom=2)
