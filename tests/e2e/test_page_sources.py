"""The page's scripts alone, in a browser without a server: why a source cannot start, and one session for each page."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytest.importorskip("websockets", reason="the browser is driven over websockets: pip install '.[test]'")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)

from tests.e2e.browser import Page, browse  # noqa: E402  # needs websockets

WEB = Path(__file__).parents[2] / "app" / "page" / "web"
SCRIPTS = ("pictures.js", "link.js", "coder.js", "sources.js", "messages.js")
SILENT_MS = 150
SETUP = """
const stage = document.querySelector('.zt-stage');
window.messages = new Messages(stage);
window.sources = new Sources(document.querySelector('.zt-source'), (text) => messages.say('source', text), () => {});
window.asked = { getUserMedia: navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices),
  getDisplayMedia: navigator.mediaDevices.getDisplayMedia.bind(navigator.mediaDevices) };
window.LinkClass = Link;
const box = document.querySelector('.zt-message');
window.shown = () => (box.hidden ? '' : box.textContent);
window.picture = () => {  // a camera
  const canvas = Object.assign(document.createElement('canvas'), { width: 32, height: 32 });
  const pen = canvas.getContext('2d');
  let shade = 0;
  const draw = () => { shade = (shade + 40) % 256; pen.fillStyle = `rgb(${shade}, 0, 0)`; pen.fillRect(0, 0, 32, 32); };
  draw();
  setInterval(draw, 30);
  return canvas.captureStream(30);
};
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    markup = (WEB / "stage.html").read_text(encoding="utf-8")
    script = "\n".join((WEB / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = script.replace("SILENT_SOURCE_MS = 5000", f"SILENT_SOURCE_MS = {SILENT_MS}")
    file = tmp_path_factory.mktemp("alone") / "alone.html"
    file.write_text(f"<meta charset='utf-8'>{markup}<script>{script}\n{SETUP}</script>", encoding="utf-8")
    with browse(str(CHROMIUM), file.as_uri()) as page:
        page.until("window.shown !== undefined")
        yield page


@pytest.fixture(autouse=True)
def _afresh(page: Page) -> None:
    page.evaluate("(sources.close(), Object.assign(navigator.mediaDevices, asked), sources.file = null, 0)")


def clip(container: str, codec: str | None, *, sound: bool) -> bytes:
    """A file of one second. codec: of its picture, if it has one."""
    made = io.BytesIO()
    with av.open(made, "w", format=container) as sink:
        picture = None if codec is None else sink.add_stream(codec, rate=24)
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
            picture.codec_context.options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
            picture.codec_context.codec_tag = "hvc1" if codec == "libx265" else picture.codec_context.codec_tag
        heard = sink.add_stream("aac", rate=48000, layout="mono") if sound else None
        for number in range(24) if picture is not None else ():
            image = np.full((48, 64, 3), number * 10, np.uint8)
            sink.mux(picture.encode(av.VideoFrame.from_ndarray(image)))
        for number in range(48) if heard is not None else ():
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 48000, 1024 * number, Fraction(1, 48000)
            sink.mux(heard.encode(samples))
        for track in (picture, heard):
            if track is not None:
                sink.mux(track.encode())
    return made.getvalue()


def started(page: Page, kind: str) -> tuple[bool, str]:
    """Open a source. Returns whether it did, and what the stage says."""
    opened = page.evaluate(f"(sources.kind = '{kind}', sources.open())")
    return opened, page.evaluate("shown()")


def choose_file(page: Page, name: str, kind: str, content: bytes) -> None:
    data = base64.b64encode(content).decode()
    bytes_of = f"Uint8Array.from(atob('{data}'), (letter) => letter.charCodeAt(0))"
    page.evaluate(f"(sources.file = new File([{bytes_of}], '{name}', {{ type: '{kind}' }}), 0)")


@pytest.mark.parametrize(
    ("kind", "name", "message", "reason", "remedy"),
    [
        ("camera", "NotAllowedError", "", "not allowed for this page", "press Start again"),
        ("camera", "NotAllowedError", "Permission denied by system", "operating system", "privacy settings"),
        ("camera", "NotFoundError", "", "no camera was found", "Connect one"),
        ("camera", "NotReadableError", "", "does not answer", "Close the program"),
        ("camera", "OverconstrainedError", "", "no longer there", "Choose another below Source"),
        ("screen", "NotAllowedError", "", "was not shared", "choose a window"),
        ("screen", "NotReadableError", "", "cannot read this screen", "choose another"),
    ],
)
def test_a_source_that_the_browser_refuses_is_said_and_starts_once_it_is_allowed(
    page: Page, kind: str, name: str, message: str, reason: str, remedy: str
) -> None:
    call = "getUserMedia" if kind == "camera" else "getDisplayMedia"
    error = f"new DOMException({json.dumps(message)}, {json.dumps(name)})"
    page.evaluate(f"(navigator.mediaDevices.{call} = async () => {{ throw {error}; }}, 0)")
    opened, shown = started(page, kind)
    assert not opened
    assert shown.startswith("No picture: ")
    assert reason in shown
    assert remedy in shown
    page.evaluate(f"(navigator.mediaDevices.{call} = async () => picture(), 0)")
    assert started(page, kind) == (True, "")


def test_a_browser_without_cameras_or_screens_says_what_to_open_instead(page: Page) -> None:
    page.evaluate("(navigator.mediaDevices.getDisplayMedia = undefined, 0)")
    assert "cannot share a screen" in started(page, "screen")[1]
    page.evaluate("(Object.defineProperty(navigator, 'mediaDevices', { value: undefined, configurable: true }), 0)")
    opened, shown = started(page, "camera")
    page.evaluate("(delete navigator.mediaDevices, 0)")
    assert not opened
    assert "localhost and https" in shown
    assert "--ssl-self-signed" in shown


@pytest.mark.parametrize(
    ("name", "kind", "content", "reason"),
    [
        ("a.mp4", "video/mp4", b"not a video\n", "cannot play this file"),
        ("empty.webm", "video/webm", b"", "cannot play this file"),
        ("phone.mov", "video/quicktime", ("mov", "libx265", True), "plays the sound of this file but not its picture"),
        ("phone.mp4", "video/mp4", ("mp4", "libx265", True), "plays the sound of this file but not its picture"),
        ("silent.mp4", "video/mp4", ("mp4", "libx265", False), "cannot play this file"),
        ("song.m4a", "audio/mp4", ("mp4", None, True), "sound only"),
        ("song.mp4", "video/mp4", ("mp4", None, True), "not its picture"),
    ],
)
def test_a_file_without_a_picture_is_said_and_another_plays(
    page: Page, name: str, kind: str, content: bytes | tuple[str, str | None, bool], reason: str
) -> None:
    made = content if isinstance(content, bytes) else clip(content[0], content[1], sound=content[2])
    choose_file(page, name, kind, made)
    opened, shown = started(page, "file")
    assert not opened
    assert reason in shown
    assert page.evaluate("document.querySelector('.zt-source').paused || !document.querySelector('.zt-source').src")
    choose_file(page, "good.webm", "video/webm", clip("webm", "libvpx", sound=False))
    assert started(page, "file") == (True, "")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg program on this machine")
def test_the_command_in_the_message_makes_a_file_that_plays(page: Page, tmp_path: Path) -> None:
    content = clip("mov", "libx265", sound=True)
    choose_file(page, "phone.mov", "video/quicktime", content)
    _, shown = started(page, "file")
    command = shown[shown.index("ffmpeg ") :].replace("FILE", "phone.mov").split()
    (tmp_path / "phone.mov").write_bytes(content)
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    choose_file(page, command[-1], "video/mp4", (tmp_path / command[-1]).read_bytes())
    assert started(page, "file") == (True, "")


def test_no_file_is_not_a_damaged_one(page: Page) -> None:
    assert started(page, "file") == (False, "No picture: no file is chosen. Choose one below Source, then press Start.")


def test_a_source_that_ends_or_sends_nothing_is_said_until_a_picture_comes(page: Page) -> None:
    page.evaluate("(navigator.mediaDevices.getUserMedia = async () => picture(), 0)")
    assert started(page, "camera") == (True, "")
    page.evaluate("sources.stream.getVideoTracks()[0].onended()")  # what unplugging it does
    page.evaluate(f"new Promise((done) => setTimeout(done, {2 * SILENT_MS}))")
    assert "unplugged" in page.evaluate("shown()")
    blank = "async () => document.createElement('canvas').captureStream(0)"  # a stream whose first picture is asked for
    page.evaluate(
        f"(navigator.mediaDevices.getUserMedia = {blank}, HTMLVideoElement.prototype.play = async () => {{}}, 0)"
    )
    assert started(page, "camera")[0]
    page.until("shown().includes('has sent nothing for 5 seconds')")
    page.evaluate("(delete HTMLVideoElement.prototype.play, sources.video.srcObject = picture(), sources.video.play())")
    page.until("shown() === ''")


def test_the_newest_choice_decides_and_stop_cancels_a_question_of_the_browser(page: Page) -> None:
    ask = "new Promise((answer) => { window.answer = () => { window.late = picture(); answer(late); }; })"
    page.evaluate(f"(navigator.mediaDevices.getUserMedia = () => {ask}, 0)")
    page.evaluate("(sources.kind = 'camera', window.first = sources.open(), sources.close(), answer(), 0)")
    assert page.evaluate("first") is False
    assert page.evaluate("late.getTracks()[0].readyState") == "ended"
    page.evaluate(
        "(window.first = sources.open(), sources.kind = 'prompt', window.second = sources.open(), answer(), 0)"
    )
    assert page.evaluate("Promise.all([first, second])") == [True, True]
    assert page.evaluate("late.getTracks()[0].readyState") == "ended"
    assert page.evaluate("shown()") == ""


def test_messages_stand_until_dismissed_and_notes_are_no_errors(page: Page) -> None:
    page.evaluate(
        "(messages.say('other', 'It failed.'), messages.hold('connection', 'Lost.'), messages.note('By the way.'), 0)"
    )
    assert page.evaluate("shown()") == "It failed.\nLost."
    assert page.evaluate("document.querySelector('.zt-note').textContent") == "By the way."
    assert not page.evaluate("document.querySelector('.zt-screen').contains(document.querySelector('.zt-note'))")
    page.evaluate("(document.querySelector('.zt-message button').click(), messages.hold('connection', 'Lost.'), 0)")
    assert page.evaluate("shown()") == ""
    page.evaluate("(messages.say('other', 'It failed.'), 0)")  # once more
    assert page.evaluate("shown()") == "It failed."
    page.evaluate(
        "(messages.say('other', ''), messages.hold('connection', ''), messages.hold('connection', 'Lost.'), 0)"
    )
    assert page.evaluate("shown()") == "Lost."
    page.evaluate("(messages.hold('connection', ''), document.querySelector('.zt-note button').click(), 0)")
    page.evaluate("(messages.note('By the way.'), 0)")
    assert page.evaluate("document.querySelector('.zt-note').hidden")
    page.evaluate("(messages.note('Something else.'), 0)")
    assert page.evaluate("document.querySelector('.zt-note').textContent") == "Something else."


SERVER = """
window.open = new Set();  // sessions on the server
let number = 0;
window.fetch = async (path, { method }) => {
  await new Promise((done) => setTimeout(done, 20));
  if (method === 'DELETE') { open.delete(path.split('/').at(-1)); return new Response(null, { status: 204 }); }
  const id = String(number += 1);
  open.add(id);
  return new Response(JSON.stringify({ id, token: 't' }), { status: 201 });
};
window.sockets = [];
class Socket {
  static OPEN = 1;
  constructor() {
    this.readyState = 0;
    sockets.push(this);
    setTimeout(() => { if (this.readyState === 0) { this.readyState = 1; this.onopen(); } }, 5);
  }
  send() { setTimeout(() => this.onmessage({ data: '{"type": "ready", "info": {}, "controls": {}}' }), 5); }
  close(code) { this.readyState = 2; setTimeout(() => {
    this.onmessage({ data: '{"type": "ended", "message": "The session was closed.", "remedy": ""}' });
    this.onclose({ code });
  }, 30); }
}
window.WebSocket = Socket;
window.states = [];
const nothing = { ready() {}, stats() {}, refused() {}, noted() {}, hungry() {} };
window.link = new LinkClass({ ...nothing, state: (name) => states.push(name) });
window.rest = () => new Promise((done) => setTimeout(done, 100));
"""


@pytest.mark.parametrize("action", ["link.start({})", "link.stop(), link.start({})"])
@pytest.mark.parametrize("wait_ms", [0, 22, 40])
def test_one_page_has_one_session_however_fast_start_and_stop_follow(page: Page, action: str, wait_ms: int) -> None:
    page.evaluate(f"(() => {{ {SERVER} }})()")
    pause = f"await new Promise((done) => setTimeout(done, {wait_ms}));"
    page.evaluate(f"(async () => {{ link.start({{}}); {pause} {action}; {pause} {action}; await rest(); }})()")
    assert page.evaluate("[...open]") == [page.evaluate("link.session.id")]
    assert page.evaluate("link.live && link.wanted")
    assert page.evaluate("states.at(-1)") == "live"
    assert page.evaluate("sockets.filter(({ readyState }) => readyState === 1).length") == 1
    page.evaluate("(link.stop(), rest())")
    assert page.evaluate("open.size") == 0
    assert page.evaluate("states.at(-1)") == "stopped"
