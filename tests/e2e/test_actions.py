"""The page of a video model with actions moves camera and subject by keys, the on-screen pad and a gamepad."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.conditioning.actions import ACTION_NAMES
from tests.fakes.live_process import LiveProcess, live_process, wait_for
from tests.fakes.tiny_video_model import tiny_video_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytest.importorskip("websockets", reason="the browser is driven over websockets: pip install '.[test]'")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)

from tests.e2e.browser import Page, browse  # noqa: E402  # needs websockets

REPOSITORY = Path(__file__).parents[2]
KEYS = {"ArrowRight": 39, "ArrowUp": 38, "s": 83, "S": 83, "+": 187, "=": 187, "Shift": 16}
CODES = {"s": "KeyS", "S": "KeyS", "+": "Equal", "=": "Equal", "Shift": "ShiftLeft"}
STICK = """(() => {
  const buttons = [...Array(17)].map(() => ({value: 0}));
  const pad = {connected: true, mapping: 'standard', axes: [0.1, -1, 0.575, 0], buttons};
  pad.buttons[6].value = 1;
  navigator.getGamepads = () => [null, pad];
  dispatchEvent(new Event('gamepadconnected'));
  return true;
})()"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveProcess]:
    folder = tmp_path_factory.mktemp("acting")
    model = tiny_video_model(folder / "tiny", actions=True)
    with live_process("--model", str(model), "--device", "cpu", "--data", str(folder), "--threads", "1") as live:
        yield live


@pytest.fixture(scope="module")
def page(live: LiveProcess) -> Iterator[Page]:
    with browse(str(CHROMIUM), live.url) as page:
        page.screen(1360, 860)
        page.until("document.querySelector('.zt-stage')?.dataset.acts === ''", 40)
        page.click("#zt-start")
        page.until("Number(document.querySelector('.zt-picture').dataset.number) > 2", 40)
        yield page
        assert page.console == []


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Screenshots for inspection; of random weights, so not for the docs."""
    return tmp_path_factory.mktemp("pictures")


def key(page: Page, kind: str, name: str, *, shift: bool = False) -> None:
    """kind: keyDown or keyUp."""
    modifiers = 8 if shift else 0
    code = CODES.get(name, name)
    page.call(
        "Input.dispatchKeyEvent", type=kind, key=name, code=code, windowsVirtualKeyCode=KEYS[name], modifiers=modifiers
    )


def expect(live: LiveProcess, page: Page, **wanted: float) -> None:
    """Wait until the session's controls on the server are these and the others 0."""
    identity, token = page.evaluate("[window.zoetrope.link.session.id, window.zoetrope.link.session.token]")
    expected = {**dict.fromkeys(ACTION_NAMES, 0.0), **wanted}

    def told() -> dict[str, float]:
        answer = live.read({"id": identity, "token": token})
        return {name: answer["controls"].get(name, 0.0) for name in ACTION_NAMES}

    wait_for(lambda: told() == expected, 10)


@pytest.mark.soak
def test_keys_reach_the_server_and_go_back_to_nothing_when_they_are_let_go(
    live: LiveProcess, page: Page, pictures: Path
) -> None:
    key(page, "keyDown", "ArrowRight")
    expect(live, page, camera_x=1.0)
    key(page, "keyDown", "s")
    expect(live, page, camera_x=1.0, push_y=-1.0)
    page.screenshot(pictures / "live-actions.png")
    key(page, "keyUp", "ArrowRight")
    expect(live, page, push_y=-1.0)
    key(page, "keyUp", "s")
    expect(live, page)
    key(page, "keyDown", "+", shift=True)
    expect(live, page, camera_zoom=1.0)
    key(page, "keyUp", "=")  # shift was let go first
    expect(live, page)
    assert page.evaluate("scrollY") == 0


@pytest.mark.soak
def test_leaving_the_window_and_a_pause_let_everything_go(live: LiveProcess, page: Page) -> None:
    key(page, "keyDown", "ArrowUp")
    expect(live, page, camera_y=1.0)
    page.evaluate("dispatchEvent(new Event('blur'))")
    expect(live, page)
    key(page, "keyUp", "ArrowUp")
    key(page, "keyDown", "ArrowUp")
    expect(live, page, camera_y=1.0)
    page.evaluate("window.zoetrope.setControl('paused', true)")
    expect(live, page)
    key(page, "keyUp", "ArrowUp")
    key(page, "keyDown", "ArrowUp")
    page.evaluate("window.zoetrope.setControl('paused', false)")
    key(page, "keyUp", "ArrowUp")
    expect(live, page)


@pytest.mark.soak
def test_typing_moves_nothing_and_shift_s_is_the_snapshot(live: LiveProcess, page: Page) -> None:
    page.evaluate("window.moves = [], window.said = window.zoetrope.link.control.bind(window.zoetrope.link)")
    page.evaluate("window.zoetrope.link.control = (changes) => { window.moves.push(changes); window.said(changes); }")
    page.evaluate("document.querySelector('#zt-prompt textarea').focus()")
    for name in ("ArrowRight", "s"):
        key(page, "keyDown", name)
        key(page, "keyUp", name)
    page.evaluate("document.activeElement.blur()")
    page.evaluate(
        "window.saved = 0, HTMLAnchorElement.prototype.click = function () { window.saved += Boolean(this.download); }"
    )
    key(page, "keyDown", "S", shift=True)
    key(page, "keyUp", "S", shift=True)
    page.until("window.saved === 1")
    assert page.evaluate("window.moves.filter((changes) => !('prompt' in changes))") == []


@pytest.mark.soak
def test_the_pad_and_a_gamepad(live: LiveProcess, page: Page, pictures: Path) -> None:
    page.screen(390, 844, mobile=True)
    button = "document.querySelector('button[data-move=\"push_x -1\"]')"
    place = page.evaluate(
        f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({button}.getBoundingClientRect())"
    )
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": place[0], "y": place[1]}])
    expect(live, page, push_x=-1.0)
    page.screenshot(pictures / "live-actions-phone.png")
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    expect(live, page)
    page.screen(1360, 860)
    assert page.evaluate(STICK)
    expect(live, page, camera_y=1.0, push_x=0.5, camera_zoom=-1.0)
    page.evaluate("navigator.getGamepads = () => []")
    expect(live, page)
    page.until("!window.zoetrope.actions.polling")


@pytest.mark.soak
def test_a_lost_connection_is_told_what_it_missed(live: LiveProcess, page: Page) -> None:
    key(page, "keyDown", "ArrowRight")
    expect(live, page, camera_x=1.0)
    page.evaluate("window.zoetrope.link.socket.close(3000)")
    page.until("document.querySelector('.zt-stage').dataset.state === 'lost'", 10)
    key(page, "keyUp", "ArrowRight")
    expect(live, page)


# -- the page's part alone, without a server ---------------------------------------------------------------------------

ALONE = """<script>
  window.actions = new Actions(document.querySelector('.zt-stage'), {live: () => true, send: () => {}});
  actions.offer(true);
</script>"""
BURST = """new Promise((done) => {
  const counts = {};
  let frames = 0;
  actions.send = () => {
    const frame = document.timeline.currentTime;  // the same for all that happens in one
    counts[frame] = (counts[frame] ?? 0) + 1;
  };
  const frame = () => {
    for (let i = 0; i < 9; i += 1) { actions.hold('test', ['camera_x', 1]); actions.lift('test'); }
    frames += 1;
    if (frames % 2) actions.hold('test', ['camera_x', 1]);
    if (frames < 20) requestAnimationFrame(frame); else done(Object.values(counts));
  };
  frame();
})"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of the stage's markup and actions.js alone."""
    parts = REPOSITORY / "app" / "page" / "web"
    markup, script = ((parts / name).read_text(encoding="utf-8") for name in ("stage.html", "actions.js"))
    file = tmp_path_factory.mktemp("alone") / "alone.html"
    file.write_text(f"<meta charset='utf-8'>{markup}<script>{script}</script>{ALONE}", encoding="utf-8")
    with browse(str(CHROMIUM), file.as_uri()) as page:
        page.until("window.actions !== undefined")
        yield page


def test_a_burst_is_at_most_one_message_a_frame(alone: Page) -> None:
    counts = alone.evaluate(BURST)
    assert len(counts) > 5
    assert max(counts) == 1


def test_sticks_have_a_dead_zone_and_their_whole_range(alone: Page) -> None:
    axes = [0.0, 0.15, -0.14, 0.2, -0.575, 0.999, 1.0, -1.0]
    assert alone.evaluate(f"{axes}.map(withoutDeadZone)") == [0, 0, 0, 0.06, -0.5, 1, 1, -1]


def test_opposite_keys_and_repeats(alone: Page) -> None:
    alone.evaluate("actions.release()")
    told = "Object.entries(actions.values).filter(([, value]) => value).flat()"
    press = "actions.press({{key: '{0}', code: '{0}', shiftKey: false}})"
    assert alone.evaluate(press.format("ArrowLeft")) is True
    assert alone.evaluate(press.format("ArrowLeft")) is True
    assert alone.evaluate(told) == ["camera_x", -1]
    assert alone.evaluate(press.format("ArrowRight")) is True
    assert alone.evaluate(told) == []
    assert alone.evaluate(f"actions.lift('ArrowLeft'), {told}") == ["camera_x", 1]
    assert alone.evaluate(press.format("v")) is False
    assert alone.evaluate("actions.press({key: 'S', code: 'KeyS', shiftKey: true})") is False
    assert alone.evaluate(f"actions.release(), {told}") == []
    assert alone.evaluate("actions.offer(false)," + press.format("ArrowLeft")) is False
