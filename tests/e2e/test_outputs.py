"""Outputs and takes as users see them: the real command, ffmpeg as the streaming service, the panel in a real browser.

With ZOETROPE_SCREENSHOTS=1 the screenshots go to docs/images/, otherwise to a temporary folder.
"""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from app.__main__ import main
from app.api.pictures import pack
from app.api.stream.messages import Hello, dump
from app.api.stream.wire import Header, PictureFormat, pack_header
from tests.e2e.browser import Page, browse
from tests.e2e.test_live import CHROMIUM, NUMBER, choose, open_page, pictures, see_frames_change, serving
from tests.e2e.test_push import COLOURS, KEY, SIZE, assert_both_colours, free_port, rtmp_server, soon, speaks

__all__ = ["pictures"]  # a fixture

WIDTH_PX, HEIGHT_PX = SIZE
SERVER = ("--model", "identity", "--size", f"{WIDTH_PX}x{HEIGHT_PX}")


@contextmanager
def streaming(url: str, session: dict[str, Any]) -> Iterator[None]:
    """Send 40 pictures per second to a session, half a second of each colour in turn, as any client would."""
    done = threading.Event()
    address = url.rstrip("/").replace("http", "ws") + session["stream_url"]

    def talk() -> None:
        packed = [
            pack(np.tile(np.array(colour, np.uint8), (HEIGHT_PX, WIDTH_PX, 1)), PictureFormat.JPEG, 95)
            for colour in COLOURS
        ]
        with connect(address, compression=None) as line:
            line.send(dump(Hello(token=session["token"])))
            seq = 0
            while not done.wait(1 / 40):
                header = Header(format=PictureFormat.JPEG, seq=seq, width=WIDTH_PX, height=HEIGHT_PX)
                line.send(pack_header(header) + packed[seq // 20 % 2])
                seq += 1
                try:
                    while True:
                        message = line.recv(timeout=0)
                        if isinstance(message, bytes):
                            line.send(json.dumps({"type": "ack", "seq": int.from_bytes(message[8:12], "little")}))
                except TimeoutError:
                    continue
                except ConnectionClosed:
                    return

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.soak
@pytest.mark.skipif(not speaks("rtmp"), reason="no ffmpeg with RTMP is installed")
def test_a_session_is_pushed_to_ffmpeg_and_recorded_at_once(tmp_path: Path) -> None:
    port = free_port(socket.SOCK_STREAM)
    with (
        serving(*SERVER, "--data", str(tmp_path / "data")) as (live, url),
        httpx.Client(base_url=url, timeout=30) as http,
    ):
        live.line("worker: ready")
        session = http.post("/v1/sessions", json={"prompt_only": False}).json()
        http.headers["Authorization"] = f"Bearer {session['token']}"
        outputs = f"/v1/sessions/{session['id']}/outputs"

        def named(kind: str) -> dict[str, Any]:
            found: list[dict[str, Any]] = http.get(outputs).json()["outputs"]
            return next(output for output in found if output["kind"] == kind)

        with streaming(url, session):
            service = rtmp_server(tmp_path, port, 100)
            try:
                pushed = http.post(outputs, json={"kind": "rtmp", "address": f"rtmp://127.0.0.1:{port}/live/{KEY}"})
                assert pushed.status_code == 201, pushed.text
                recorded = http.post(outputs, json={"kind": "recording"}).json()
                assert_both_colours(service.received())
            finally:
                service.end()
            soon(lambda: named("rtmp")["phase"] == "retrying", "the service has gone")
            soon(lambda: named("recording")["done"] > 30, "the recording goes on without it")
            assert http.delete(f"{outputs}/{named('recording')['id']}").json()["phase"] == "stopped"
        assert http.delete(f"/v1/sessions/{session['id']}").status_code == 204
        file = http.get(recorded["file_url"]).content
        said = live.stop()
    assert KEY not in said + "".join(live.lines) + pushed.text
    with av.open(io.BytesIO(file)) as container:
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert_both_colours(shown)


def text_of(page: Page, selector: str) -> str:
    return str(page.evaluate(f"document.querySelector({selector!r}).textContent"))


def press(page: Page, selector: str) -> None:
    """Activate an element by keyboard: focus, then Enter."""
    page.evaluate(f"document.querySelector({selector!r}).focus()")
    assert page.evaluate(f"document.activeElement === document.querySelector({selector!r})")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)


@pytest.mark.soak
def test_the_panel_keeps_a_take_records_and_says_why_an_output_failed(tmp_path: Path, pictures: Path) -> None:
    data = tmp_path / "data"
    with (
        serving(*SERVER, "--data", str(data), "--push-host", "127.0.0.1") as (_live, url),
        browse(str(CHROMIUM), url) as page,
    ):
        open_page(page)
        press(page, "#zt-outputs summary")
        page.until("document.querySelector('#zt-outputs details').open")
        assert page.evaluate("document.querySelector('#zt-out-take').disabled")
        choose(page, "Camera")
        page.click("#zt-start")
        see_frames_change(page, 5)
        page.until("!document.querySelector('#zt-out-take').disabled")
        press(page, "#zt-out-take")
        page.until("document.querySelector('#zt-out-take').getAttribute('aria-pressed') === 'true'")
        name = text_of(page, "#zt-take-name")
        see_frames_change(page, 12)
        press(page, "#zt-out-record")
        page.until("document.querySelector('#zt-out-list li[data-phase=running]') !== null")
        say_where = "document.querySelector('#zt-push-address')"
        page.evaluate(f"{say_where}.value = 'rtmp://example.org/live/{KEY}'")
        press(page, "#zt-push-start")
        page.until("document.querySelector('#zt-out-said').textContent.includes('does not push to example.org')")
        page.evaluate(f"{say_where}.value = '{url.rstrip('/')}/nobody?{KEY}'")
        press(page, "#zt-push-start")
        page.until("document.querySelector('#zt-out-list li[data-phase=failed]') !== null")
        assert "refused the stream" in text_of(page, "#zt-out-list li[data-phase=failed]")
        page.until("document.querySelector('.zt-message').textContent.includes('Output ended')")
        assert page.evaluate(f"{say_where}.value") == ""
        assert KEY not in text_of(page, "body")
        page.evaluate("document.querySelector('#zt-outputs').scrollIntoView()")
        page.screenshot(pictures / "live-outputs.png")
        page.screen(390, 844, mobile=True)
        page.evaluate("document.querySelector('#zt-outputs').scrollIntoView()")
        time.sleep(0.3)  # the page has a new width
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.screenshot(pictures / "live-outputs-phone.png")
        press(page, "#zt-out-list li[data-phase=failed] button")
        page.until("document.querySelector('#zt-out-list li[data-phase=failed]') === null")
        see_frames_change(page, 5)
        press(page, "#zt-out-take")
        page.until("document.querySelector('#zt-out-take').getAttribute('aria-pressed') === 'false'")
        assert text_of(page, "#zt-take-name") == name
        page.click("#zt-stop")  # ends the session, and the recording with it
        page.until("document.querySelector('#zt-out-kept a') !== null")
        file = page.evaluate("document.querySelector('#zt-out-kept a').href")
        with av.open(io.BytesIO(httpx.get(file).content)) as container:
            assert sum(1 for _ in container.decode(video=0)) > 5
        seen = page.evaluate(NUMBER)
        assert len(page.console) == 1  # the browser's own words on the push that was refused
        assert "/outputs" in page.console[0]
    folder = data / "takes" / name
    records = [json.loads(line) for line in (folder / "take.jsonl").read_text(encoding="utf-8").splitlines()]
    handed_out = sum(record.get("kind") == "frame" for record in records)
    assert 10 < handed_out <= seen + 10
    assert main(["render", "--take", str(folder), str(tmp_path / "again")]) == 0
    assert len(list((tmp_path / "again").glob("*.png"))) >= handed_out
