"""A browser at `zoetrope live --host 0.0.0.0 --ssl-self-signed`: the token's form, link and loss; foreign pages."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

pytest.importorskip("websockets", reason="the browser is driven over websockets: pip install '.[test]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)

from tests.e2e.browser import Page, browse  # noqa: E402  # needs websockets
from tests.e2e.test_live import Live, choose, open_page, see_frames_change  # noqa: E402  # the same

TOKEN = "correct-horse-battery"  # of tests
STATE = "document.querySelector('.zt-stage').dataset.state"
FORM = "document.querySelector('input[type=password]')"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return https://127.0.0.1:PORT of a server on all addresses."""
    data = tmp_path_factory.mktemp("data")
    live = Live(
        *("--host", "0.0.0.0", "--ssl-self-signed", "--token", TOKEN, "--data", str(data)),
        *("--model", "identity", "--size", "96x64"),
    )
    try:
        yield live.line(r"live: (https://127\.0\.0\.1:\d+)/")[1]
        live.stop()
        assert TOKEN not in "".join(live.lines)
    finally:
        if live.process.poll() is None:
            live.process.kill()
        live.close()


@contextmanager
def browser(url: str) -> Iterator[Page]:
    with browse(str(CHROMIUM), url, "--ignore-certificate-errors") as page:
        yield page


def enter(page: Page, token: str) -> None:
    """Fill in and submit the form."""
    page.until(f"{FORM} !== null")
    page.evaluate(f"({FORM}.value = {json.dumps(token)}, {FORM}.form.requestSubmit(), true)")


def opened(address: str) -> float:
    """Return the number of sessions opened since the server's start."""
    answer = httpx.get(f"{address}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, verify=False)
    found = re.search(r"^zoetrope_sessions_opened_total (\S+)$", answer.text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_the_form_the_camera_and_a_token_that_is_gone(address: str, tmp_path: Path) -> None:
    with browser(address) as page:
        page.until(f"{FORM} !== null")
        page.until("document.body?.innerText.includes('requires a token')")
        page.screenshot(tmp_path / "form.png")
        enter(page, "wrong-wrong-wrong")
        page.until("document.body?.innerText.includes('Wrong token.')")
        enter(page, TOKEN)
        open_page(page)
        assert TOKEN not in page.evaluate("location.href + document.cookie")
        assert page.evaluate("isSecureContext")
        choose(page, "Camera")
        page.click("#zt-start")
        see_frames_change(page, 5)
        page.click("#zt-stop")
        page.call("Network.clearBrowserCookies")  # as if the server had been started with another token
        page.click("#zt-start")
        page.until(f"{STATE} === 'denied'")
        page.until("document.querySelector('.zt-message').textContent.includes('requires a token')")
        page.call("Page.reload")
        page.until(f"{FORM} !== null")


def test_the_printed_link_enters_and_leaves_no_token_behind(address: str) -> None:
    with browser(f"{address}/?token={TOKEN}") as page:
        open_page(page)
        assert page.evaluate("location.search") == ""
        page.click("#zt-start")
        page.until(f"{STATE} === 'live'")
        assert page.evaluate("fetch('/gradio_api/file=/etc/passwd').then(a => a.status)") == 404
        assert page.evaluate("fetch('/metrics').then(a => a.status)") == 200


class Foreign(BaseHTTPRequestHandler):
    """A foreign page on the same machine; being same-site, its requests carry our cookie."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>foreign</title>")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base's name
        """Log nothing."""


@contextmanager
def foreign_page() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(5)


def test_a_foreign_page_gets_nothing_even_from_a_browser_that_has_entered(address: str) -> None:
    socket = address.replace("https:", "wss:")
    with foreign_page() as foreign, browser(f"{address}/?token={TOKEN}") as page:
        page.until("document.querySelector('#zt-start') !== null", 60)
        before = opened(address)
        page.call("Page.navigate", url=foreign)
        page.until("document.title === 'foreign'")
        ask = f"fetch('{address}/v1/sessions', {{method: 'POST', credentials: 'include', mode: MODE}})"
        told = ".then(a => a.type, e => e.name)"
        assert page.evaluate(ask.replace("MODE", "'cors'") + told) == "TypeError"
        assert page.evaluate(ask.replace("MODE", "'no-cors'") + told) == "opaque"
        for path in ("/v1/sessions/abc/stream", "/anything"):
            script = (
                f"new Promise(done => {{ const s = new WebSocket('{socket}{path}');"
                " s.onopen = () => done('open'); s.onclose = () => done('closed'); })"
            )
            assert page.evaluate(script) == "closed"
        assert opened(address) == before
