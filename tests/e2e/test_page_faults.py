"""Faults on the live page in a browser as wide as a desk and as a phone: sources, sessions, recordings, notices."""

from __future__ import annotations

import base64
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from tests.fakes.clips import make_clip
from tests.fakes.live_process import LiveProcess, live_process, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytest.importorskip("websockets", reason="the browser is driven over websockets: pip install '.[test]'")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)

from tests.e2e.browser import Page, browse  # noqa: E402  # needs websockets

pytestmark = pytest.mark.soak

NUMBER = "Number(document.querySelector('.zt-picture').dataset.number || 0)"
STATE = "document.querySelector('.zt-stage').dataset.state"
MESSAGE = "(box => box.hidden ? '' : box.textContent)(document.querySelector('.zt-message'))"
NOTE = "(box => box.hidden ? '' : box.textContent)(document.querySelector('.zt-note'))"
MICROPHONE = "navigator.mediaDevices.getUserMedia = async (wanted) => { %s return window.given(wanted); }"
REFUSED = "if (wanted.audio) throw new DOMException('', 'NotAllowedError');"
DESK, PHONE = (1440, 900), (390, 844)
COVERED = """(() => {
  const button = document.querySelector('#zt-start'), covered = [];
  for (let y = 0; y <= document.documentElement.scrollHeight - innerHeight; y += 10) {
    scrollTo({ top: y, behavior: 'instant' });
    const box = button.getBoundingClientRect();
    const front = (part) => document.elementFromPoint(box.x + box.width * part, box.y + box.height / 2) === button;
    if (![0.1, 0.3, 0.5, 0.7, 0.9].every(front)) covered.push(y);
  }
  return covered;
})()"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveProcess]:
    data = tmp_path_factory.mktemp("data")
    with live_process("--model", "identity", "--size", "96x64", "--data", str(data)) as live:
        yield live


@pytest.fixture(scope="module")
def browser(live: LiveProcess) -> Iterator[Page]:
    with browse(str(CHROMIUM), live.url) as page:
        yield page


@pytest.fixture
def page(live: LiveProcess, browser: Page) -> Page:
    """A freshly loaded page, in one browser for all tests."""
    browser.screen(*DESK)
    browser.call("Page.navigate", url="about:blank")
    browser.call("Page.navigate", url=live.url)
    opened(browser)
    browser.dialogs.clear()
    browser.console.clear()
    return browser


def opened(page: Page) -> None:
    page.until(f"window.zoetrope !== undefined && {STATE} === 'ready'", 60)
    page.until("document.querySelector('#zt-prompt textarea') !== null")
    page.evaluate("(window.given = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices), 0)")


def choose(page: Page, source: str) -> None:
    page.evaluate(f"[...document.querySelectorAll('#zt-source input')].find(i => i.value === '{source}').click()")


def choose_file(page: Page, file: Path) -> None:
    choose(page, "Video file")
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#zt-file")["nodeId"]
    page.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)


def start(page: Page, frames: int = 3) -> None:
    page.tap("#zt-start")
    page.until(f"{NUMBER} > {page.evaluate(NUMBER) + frames}", 30)


def recorded(page: Page, name: str = "window.zoetrope.recorder.last") -> tuple[list[np.ndarray], np.ndarray]:
    """Return the pictures, and the samples of the sound, of a Blob on the page."""
    script = (
        f"new Promise(done => {{ const reader = new FileReader(); reader.onload = () => done(reader.result);"
        f" reader.readAsDataURL({name}); }})"
    )
    data = base64.b64decode(page.evaluate(script).partition("base64,")[2])
    with av.open(io.BytesIO(data)) as file:
        pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    with av.open(io.BytesIO(data)) as file:
        frames = [frame.to_ndarray()[0] for frame in file.decode(audio=0)] if file.streams.audio else []
    return pictures, np.concatenate(frames) if frames else np.zeros(0, np.float32)


def record(page: Page, seconds: float) -> tuple[list[np.ndarray], np.ndarray]:
    page.evaluate("(delete window.zoetrope.recorder.last, 0)")
    page.tap("[data-tool=record]")
    page.until("window.zoetrope.recorder.running")
    time.sleep(seconds)
    page.tap("[data-tool=record]")
    page.until("window.zoetrope.recorder.last !== undefined")
    return recorded(page)


def both_widths(page: Page, pictures: Path, name: str) -> None:
    """Take screenshots; nothing is wider than the page."""
    for (width, height), mobile in ((DESK, False), (PHONE, True)):
        page.screen(width, height, mobile=mobile)
        page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
        page.until(f"innerWidth === {width}")
        time.sleep(0.2)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(pictures / f"{name}-{width}.png")
    page.screen(*DESK)


def test_start_is_in_front_everywhere_and_nothing_is_wider_than_a_phone(page: Page, tmp_path: Path) -> None:
    page.until("document.querySelector('.zt-examples button') !== null")
    page.evaluate("(document.querySelector('.zt-examples button').textContent = 'a long prompt, '.repeat(8), 0)")
    for width, height in (PHONE, (320, 640), (740, 900)):
        page.screen(width, height, mobile=True)
        page.until(f"innerWidth === {width}")
        assert page.evaluate(COVERED) == [], width
        page.evaluate("document.querySelector('.zt-stage').toggleAttribute('data-acts', true)")  # a model with actions
        buttons = "[...document.querySelectorAll('.zt-pad button')].map(b => b.getBoundingClientRect())"
        assert page.evaluate(f"{buttons}.every(({{ x, right }}) => x >= 0 && right <= {width})")
        assert page.evaluate(f"Math.min(...{buttons}.map(({{ width }}) => width))") >= 32
        assert page.evaluate(
            "document.querySelector('.zt-pad').scrollWidth <= document.querySelector('.zt-pad').clientWidth"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("document.querySelector(`.zt-pad`).scrollIntoView({ block: `center`, behavior: `instant` })")
        page.screenshot(tmp_path / f"pad-{width}.png")
        page.evaluate("document.querySelector('.zt-stage').toggleAttribute('data-acts', false)")


def test_why_a_source_cannot_start_stands_until_its_remedy_is_followed(
    page: Page, live: LiveProcess, tmp_path: Path
) -> None:
    page.evaluate(f"({MICROPHONE % 'throw new DOMException(``, `NotAllowedError`);'}, 0)")
    choose(page, "Camera")
    page.tap("#zt-start")
    page.until(f"{MESSAGE}.includes('press Start again')")
    time.sleep(3)
    assert page.evaluate(MESSAGE).startswith("No picture: the camera is not allowed")
    assert page.evaluate("document.querySelector('.zt-idle-text').textContent") == "Press Start"
    assert live.metric("zoetrope_sessions") == 0  # it takes nobody's place
    both_widths(page, tmp_path, "denied")
    page.evaluate("(navigator.mediaDevices.getUserMedia = window.given, 0)")
    start(page)
    assert page.evaluate(MESSAGE) == ""
    page.tap("#zt-stop")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(make_clip(tmp_path / "whole.mp4", frames=30, rate=24).read_bytes()[:900])
    choose_file(page, broken)
    page.tap("#zt-start")
    page.until(f"{MESSAGE}.includes('cannot play this file')")
    both_widths(page, tmp_path, "broken")
    whole = tmp_path / "whole.webm"
    write_tone(whole)
    choose_file(page, whole)
    start(page)
    assert page.evaluate(MESSAGE) == ""
    page.evaluate(
        "(navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotFoundError'); }, 0)"
    )
    choose(page, "Camera")  # while it runs
    page.until(f"{MESSAGE}.includes('no camera was found')")
    page.evaluate("(navigator.mediaDevices.getUserMedia = window.given, 0)")
    start(page)  # the same session goes on
    assert page.evaluate(MESSAGE) == ""
    assert live.metric("zoetrope_sessions") == 1
    page.tap("#zt-stop")
    assert page.console == []


@pytest.mark.parametrize("transport", ["websocket", "webrtc"])
def test_a_page_has_one_session_however_often_start_is_pressed(page: Page, live: LiveProcess, transport: str) -> None:
    wait_for(lambda: live.metric("zoetrope_sessions") == 0)
    before = live.metric("zoetrope_sessions_opened_total")
    assert before is not None
    page.evaluate(f"window.zoetrope.setTransport('{transport}')")
    page.evaluate("for (let i = 0; i < 3; i += 1) document.querySelector('#zt-start').click()")  # while it opens
    page.until(f"{NUMBER} > 0", 40)
    for _ in range(3):
        page.tap("#zt-start")
        time.sleep(0.3)
    assert live.metric("zoetrope_sessions") == 1
    assert live.metric("zoetrope_sessions_opened_total") == before + 1
    for _ in range(4):
        page.evaluate("(document.querySelector('#zt-stop').click(), document.querySelector('#zt-start').click())")
    page.until(f"{STATE} === 'live'", 40)
    page.until(f"{NUMBER} > {page.evaluate(NUMBER) + 3}", 30)
    wait_for(lambda: live.metric("zoetrope_sessions") == 1)
    page.tap("#zt-stop")
    wait_for(lambda: live.metric("zoetrope_sessions") == 0)
    assert page.evaluate(MESSAGE) == ""


def test_a_recording_that_would_be_lost_is_asked_about_and_kept(page: Page, tmp_path: Path) -> None:
    page.tap("[data-tool=record]")
    page.until(f"{MESSAGE}.includes('Press Start, then Record')")
    both_widths(page, tmp_path, "nothing-to-record")
    choose(page, "Camera")
    start(page)
    page.tap("[data-tool=record]")
    page.until("window.zoetrope.recorder.parts.length > 3", 30)
    page.call("Page.reload")
    time.sleep(0.5)
    page.until("window.zoetrope !== undefined", 60)
    opened(page)
    assert page.dialogs == ["beforeunload"]
    page.until("document.querySelector('.zt-kept li') !== null")
    both_widths(page, tmp_path, "kept")
    blobs = "window.zoetrope.recorder.kept.lost().then((found) => window.lost = found[0].blob).then(() => found)"
    page.evaluate(blobs.replace(".then(() => found)", ".then(() => 0)"))
    pictures, _ = recorded(page, "window.lost")
    assert len(pictures) > 15
    assert pictures[0].shape == (64, 96, 3)
    page.evaluate("[...document.querySelectorAll('.zt-kept button')].find((b) => b.textContent === 'Delete').click()")
    page.until("document.querySelector('.zt-kept li') === null")
    assert page.evaluate("window.zoetrope.recorder.kept.lost()") == []
    page.dialogs.clear()
    page.call("Page.reload")
    opened(page)
    assert page.dialogs == []  # nothing would be lost
    assert page.console == []


def test_a_recording_has_the_sound_of_its_source_or_says_that_it_has_none(page: Page, tmp_path: Path) -> None:
    choose(page, "Camera")
    start(page)
    pictures, samples = record(page, 3)
    assert len(pictures) > 20
    assert float(np.abs(samples).max()) > 0.05  # the browser's test microphone beeps once a second
    page.evaluate("window.zoetrope.setControl('paused', true)")
    time.sleep(0.5)
    still, _ = record(page, 2)
    assert len(still) >= 4
    page.evaluate("window.zoetrope.setControl('paused', false)")
    page.evaluate(f"({MICROPHONE % REFUSED}, 0)")
    page.tap("[data-tool=record]")
    page.until("window.zoetrope.recorder.running")
    page.until(f"{NOTE}.includes('microphone is not allowed')")
    assert page.evaluate("document.querySelector('.zt-live').innerText") == "● REC without sound"
    assert page.evaluate(MESSAGE) == ""
    both_widths(page, tmp_path, "recording")
    page.tap("[data-tool=record]")
    tone = tmp_path / "tone.webm"
    write_tone(tone)
    choose_file(page, tone)
    page.until("window.zoetrope.sources.showing")
    _, samples = record(page, 3)
    second = samples[-72_000:-24_000]
    assert np.argmax(np.abs(np.fft.rfft(second))) * 48_000 / len(second) == pytest.approx(440, abs=4)
    page.tap("#zt-stop")
    assert page.console == []


def write_tone(file: Path) -> None:
    """Write 4 seconds of changing pictures and a tone of 440 Hz."""
    with av.open(str(file), "w") as sink:
        picture, heard = sink.add_stream("libvpx", rate=24), sink.add_stream("libopus", rate=48000, layout="mono")
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        for number in range(96):
            image = np.full((48, 64, 3), number * 2, np.uint8)
            sink.mux(picture.encode(av.VideoFrame.from_ndarray(image)))
        tone = np.sin(2 * np.pi * 440 * np.arange(192_000) / 48_000).astype(np.float32)
        for number, samples in enumerate(tone.reshape(-1, 960)):
            frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
            frame.sample_rate, frame.pts = 48000, 960 * number
            sink.mux(heard.encode(frame))
        for track in (picture, heard):
            sink.mux(track.encode())


def test_a_notice_of_the_model_is_calm_and_a_refusal_is_not(page: Page, tmp_path: Path) -> None:
    start(page)
    script = """(link => {
      link.on.state('opening', 'opening…');  // as with a model that is still loading
      link.handle({ type: 'notice', text: 'loading a model' });
      link.handle({ type: 'notice', text: 'A small autoencoder is used.' });
      const waits = document.querySelector('.zt-idle-text').textContent;
      link.on.state('live', '');
      return waits;
    })(window.zoetrope.link)"""
    assert page.evaluate(script) == "loading a model"  # and no longer
    assert page.evaluate(NOTE) == "A small autoencoder is used."
    assert page.evaluate(MESSAGE) == ""
    page.evaluate(
        "window.zoetrope.link.handle({ type: 'error', message: 'Steps is too high.', remedy: 'Use at most 8.' })"
    )
    assert page.evaluate(MESSAGE) == "Steps is too high. Use at most 8."
    both_widths(page, tmp_path, "notice")
    page.tap(".zt-message button")
    page.tap(".zt-note button")
    assert page.evaluate(MESSAGE) == page.evaluate(NOTE) == ""
    page.tap("#zt-stop")
    assert page.console == []
