"""A headless Chromium driven over its DevTools protocol, for browser tests. Depends on websockets alone."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--mute-audio",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-port=0",
)


class NavigatedError(Exception):
    """The page went elsewhere before it answered."""


class Page:
    """One tab. `urls` collects every URL that it requested, `dialogs` the kinds of dialogs; each is accepted."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self.urls: list[str] = []
        self.console: list[str] = []
        self.dialogs: list[str] = []

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command of the protocol. Returns its result."""
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=30))
            if message.get("method") == "Network.requestWillBeSent":
                self.urls.append(message["params"]["request"]["url"])
            elif message.get("method") == "Page.javascriptDialogOpening":
                self.dialogs.append(message["params"]["type"])
                accept = {"id": -1, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                self._connection.send(json.dumps(accept))
            elif message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.console.append(json.dumps(message["params"])[:500])
            elif message.get("id") == self._number:
                if "navigated" in message.get("error", {}).get("message", ""):
                    raise NavigatedError(message["error"])
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, timeout_s: float = 20.0) -> Any:
        """Wait until the expression is true."""
        deadline = time.monotonic() + timeout_s
        while True:
            with suppress(NavigatedError):  # in the middle: the next page is asked
                if value := self.evaluate(script):
                    return value
            assert time.monotonic() < deadline, f"never true: {script}\nconsole: {self.console}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Click an element once it exists."""
        self.until(f"document.querySelector({selector!r}) !== null")
        self.evaluate(f"document.querySelector({selector!r}).click()")

    def tap(self, selector: str) -> None:
        """Click an element with the mouse, as a viewer does: scrolls to it, and counts as the viewer's action."""
        self.until(f"document.querySelector({selector!r}) !== null")
        place = f"document.querySelector({selector!r}).getBoundingClientRect()"
        self.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        x, y = self.evaluate(f"[{place}.x + {place}.width / 2, {place}.y + {place}.height / 2]")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def say(self, prompt: str) -> None:
        """Type a prompt and leave the text box."""
        box = "document.querySelector('#zt-prompt textarea')"
        typed = f"{box}.dispatchEvent(new Event('input', {{bubbles: true}}))"
        self.evaluate(f"{box}.focus(), {box}.value = {json.dumps(prompt)}, {typed}")
        self.evaluate(f"{box}.blur()")

    def screen(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Set the size of the window in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def screenshot(self, path: Path) -> None:
        """Save a screenshot as PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browse(chromium: str, url: str, *flags: str) -> Iterator[Page]:
    """Open `url` in a new browser with an empty profile. flags: additional flags of Chromium."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [chromium, *_FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
        )
        try:
            port = _port(Path(profile) / "DevToolsActivePort")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                targets = json.load(answer)
            address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
            with connect(address, max_size=None, compression=None, close_timeout=0.2) as connection:
                page = Page(connection)
                for domain in ("Page", "Network", "Runtime", "Log"):
                    page.call(f"{domain}.enable")
                page.call("Emulation.setFocusEmulationEnabled", enabled=True)
                page.call("Page.navigate", url=url)
                yield page
        finally:
            process.terminate()
            process.wait(10)


def _port(file: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if file.is_file() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.05)
    raise AssertionError("Chromium did not start")
