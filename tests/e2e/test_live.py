"""`zoetrope live` as users run it: the real command, the bundled model, a real browser; and a killed worker.

With ZOETROPE_SCREENSHOTS=1 the screenshots go to docs/images/, otherwise to a temporary folder.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from queue import Empty, Queue
from urllib.parse import urlsplit

import av
import cv2
import numpy as np
import psutil
import pytest
import torch

from pipelines.files.hub import BUNDLED_FOLDER
from train.classifier import load_classifier, predict
from train.vocabulary_world import STYLES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REPOSITORY = Path(__file__).parents[2]
NUMBER = "Number(document.querySelector('.zt-picture').dataset.number || 0)"
RATE = "Number(document.querySelector('[data-zt=frame_rate]').textContent)"
PICTURE = "document.querySelector('.zt-picture').toDataURL()"
COUNTS = (
    "['taken', 'out', 'dropped', 'skipped', 'in_flight']"
    ".map(name => Number(document.querySelector(`[data-zt=${name}]`).textContent))"
)

pytest.importorskip("websockets", reason="the browser is driven over websockets: pip install '.[test]'")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)

from tests.e2e.browser import Page, browse  # noqa: E402  # needs websockets


class Live:
    """A running `zoetrope live`."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "app", "live", "--port", "0", "--no-open", *arguments]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.lines: list[str] = []
        self._queue: Queue[str] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line)

    def line(self, pattern: str, timeout_s: float = 90.0) -> re.Match[str]:
        """Wait for a line of output that matches."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                self.lines.append(self._queue.get(timeout=0.2))
            except Empty:
                assert self.process.poll() is None, "".join(self.lines)
                continue
            if found := re.search(pattern, self.lines[-1]):
                return found
        raise AssertionError(f"no line like {pattern!r} in: {''.join(self.lines)}")

    def worker(self) -> psutil.Process:
        """The worker process: the child other than the resource tracker."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "spawn_main" in " ".join(child.cmdline()))

    def close(self) -> None:
        """Wait for the process to end, then read the rest of its output."""
        self.process.wait()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self) -> str:
        """Send Ctrl-C. Returns the remaining output."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) == 0
        self._reader.join(5)
        while not self._queue.empty():
            self.lines.append(self._queue.get())
        return "".join(self.lines)


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[Live, str]]:
    live = Live(*arguments)
    try:
        yield live, live.line(r"live: (http://\S+)")[1]
    finally:
        if live.process.poll() is None:
            live.process.kill()
        live.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return REPOSITORY / "docs" / "images" if os.environ.get("ZOETROPE_SCREENSHOTS") == "1" else tmp_path


def open_page(page: Page) -> None:
    page.screen(1360, 860)
    page.until("document.querySelector('#zt-start') !== null", 40)
    page.until("document.querySelector('.zt-stage').dataset.phase === 'ready'", 60)


def choose(page: Page, source: str) -> None:
    page.evaluate(f"[...document.querySelectorAll('#zt-source input')].find(i => i.value === '{source}').click()")


def see_frames_change(page: Page, frames: int, timeout_s: float = 30.0) -> None:
    start = page.evaluate(NUMBER)
    before = page.evaluate(PICTURE)
    page.until(f"{NUMBER} >= {start + frames}", timeout_s)
    assert page.evaluate(PICTURE) != before


def counts_are_exact(page: Page) -> None:
    taken, out, dropped, skipped, in_flight = page.evaluate(COUNTS)
    assert taken == out + dropped + skipped + in_flight
    assert out > 0


@pytest.fixture(scope="module")
def camera_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the sample clip in the format of Chromium's fake camera."""
    path = tmp_path_factory.mktemp("camera") / "camera.y4m"
    sample = REPOSITORY / "assets" / "samples" / "camera.mp4"
    with av.open(str(sample)) as source, av.open(str(path), "w", format="yuv4mpegpipe") as sink:
        track = sink.add_stream("wrapped_avframe", rate=Fraction(24))
        track.width, track.height, track.pix_fmt = 256, 192, "yuv420p"
        for frame in source.decode(video=0):
            picture = frame.reformat(256, 192, "yuv420p")
            picture.pts = None
            sink.mux(track.encode(picture))
        sink.mux(track.encode())
    return path


def styles_shown(page: Page, frames: int) -> list[str]:
    """Return the styles that the model's independent judge recognises in that many pictures."""
    judge = load_classifier(BUNDLED_FOLDER / "mini-classifier")
    found = []
    for _ in range(frames):
        page.until(f"{NUMBER} > {page.evaluate(NUMBER)}")
        data = base64.b64decode(page.evaluate(PICTURE).partition(",")[2])
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert decoded is not None
        assert decoded.shape == (192, 192, 3)
        picture = torch.from_numpy(decoded.astype(np.float32) / 255).permute(2, 0, 1)[None]
        found.append(STYLES[int(predict(judge, picture)[0, 2])].name)
    return found


def test_prompt_and_camera_with_the_bundled_model(pictures: Path, camera_clip: Path) -> None:
    flags = (f"--use-file-for-fake-video-capture={camera_clip}",)
    with serving() as (live, url), browse(str(CHROMIUM), url, *flags) as page:
        live.line("worker: ready: mini-image, 192×192")
        open_page(page)
        page.click("#zt-start")
        page.until(f"{NUMBER} > 0", 40)
        see_frames_change(page, 4)
        page.until(f"{RATE} > 0")
        page.say("a qwrtzp cat")
        page.until("document.querySelector('#zt-notice').innerText.includes('qwrtzp')")
        see_frames_change(page, 3)
        page.click(".zt-examples button")
        page.until("!document.querySelector('#zt-prompt textarea').value.includes('qwrtzp')")
        see_frames_change(page, 4)  # past the slots that were born with the old prompt
        page.screenshot(pictures / "live-prompt.png")
        page.say("a photo, pencil sketch")
        choose(page, "Camera")
        page.until("Number(document.querySelector('[data-zt=latency_ms]').textContent) > 0", 30)
        see_frames_change(page, 6)
        counts_are_exact(page)
        before = styles_shown(page, 6)
        assert before.count("pencil sketch") >= 5, before
        assert styles_shown(page, 4).count("neon lines") == 0  # without a change
        page.evaluate("document.querySelector('[data-tool=view]').value = 'overlay'")
        page.evaluate("document.querySelector('[data-tool=view]').dispatchEvent(new Event('change', {bubbles: true}))")
        page.screenshot(pictures / "live-camera.png")
        page.say("a photo, neon lines")
        see_frames_change(page, 6)
        after = styles_shown(page, 6)
        assert after.count("neon lines") >= 5, after
        page.screen(390, 844, mobile=True)
        see_frames_change(page, 6)
        page.screenshot(pictures / "live-phone.png")
        foreign = [a for a in page.urls if a.startswith("http") and urlsplit(a).hostname != "127.0.0.1"]
        assert foreign == []
        assert page.console == []


def test_a_recording_and_a_snapshot_are_real_files_and_the_connection_comes_back(tmp_path: Path) -> None:
    with serving("--model", "identity", "--size", "96x64") as (_live, url), browse(str(CHROMIUM), url) as page:
        open_page(page)
        choose(page, "Camera")
        page.click("#zt-start")
        see_frames_change(page, 5)
        page.click("[data-tool=record]")
        see_frames_change(page, 40)
        page.click("[data-tool=record]")
        page.until("window.zoetrope.recorder.last !== undefined", 20)
        path = tmp_path / "recorded"
        path.write_bytes(fetch_blob(page, "window.zoetrope.recorder.last"))
        with av.open(str(path)) as container:
            shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(shown) >= 10
        assert shown[0].shape == (64, 96, 3)
        assert float(np.std(shown[-1])) > 1
        page.evaluate("window.zoetrope.link.socket.close(3000)")  # what a lost connection looks like from here
        page.until("document.querySelector('.zt-stage').dataset.state === 'lost'", 10)
        page.until("document.querySelector('.zt-stage').dataset.state === 'live'", 20)
        see_frames_change(page, 5)
        counts_are_exact(page)


def fetch_blob(page: Page, name: str) -> bytes:
    """Return the bytes of a Blob on the page."""
    script = (
        "new Promise(done => { const reader = new FileReader(); reader.onload = () => done(reader.result);"
        f" reader.readAsDataURL({name}); }})"
    )
    return base64.b64decode(page.evaluate(script).partition(",")[2])


@pytest.mark.soak
def test_a_killed_worker_is_replaced_and_the_page_goes_on() -> None:
    with serving("--model", "identity") as (live, url):
        with browse(str(CHROMIUM), url) as page:
            open_page(page)
            choose(page, "Camera")
            page.click("#zt-start")
            see_frames_change(page, 10)
            page.until(f"{RATE} > 2")
            live.worker().send_signal(signal.SIGKILL)
            page.until("document.querySelector('.zt-facts').textContent.includes('restarted 1×')", 30)
            see_frames_change(page, 10)
            counts_are_exact(page)
            page.click("#zt-stop")
            page.until("!document.querySelector('.zt-stage').classList.contains('zt-running')")
        output = live.stop()
    assert "resource_tracker" not in output
    assert "Traceback" not in output
