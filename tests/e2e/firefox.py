"""A headless Firefox driven over WebDriver BiDi, for browser tests. Depends on websockets alone."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

START_S = 60.0
PREFERENCES: Mapping[str, object] = {
    "media.navigator.streams.fake": True,  # a camera that turns through the colours, and a tone
    "media.navigator.permission.disabled": True,
    "media.autoplay.default": 0,
    "media.peerconnection.ice.obfuscate_host_addresses": False,  # no mDNS on a machine without a network
    "media.peerconnection.ice.loopback": True,
    "media.gmp-manager.updateEnabled": False,
    "app.normandy.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "toolkit.telemetry.enabled": False,
}


class FirefoxPage:
    """One tab. console: its errors, and the exceptions that nothing caught."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self.console: list[str] = []
        self.call("session.new", capabilities={})
        self.call("session.subscribe", events=["log.entryAdded"])
        self.context = self.call("browsingContext.getTree")["contexts"][0]["context"]

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command of the protocol. Returns its result."""
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=60))
            if message.get("method") == "log.entryAdded" and message["params"]["level"] == "error":
                self.console.append(str(message["params"]["text"])[:500])
            elif message.get("id") == self._number:
                assert message["type"] == "success", message
                result: dict[str, Any] = message["result"]
                return result

    def open(self, url: str) -> None:
        """Load a page."""
        self.call("browsingContext.navigate", context=self.context, url=url, wait="complete")

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression, as of a user's gesture; promises are awaited."""
        answer = self.call(
            "script.evaluate",
            expression=f"Promise.resolve({script}).then((value) => JSON.stringify(value ?? null))",
            target={"context": self.context},
            awaitPromise=True,
            userActivation=True,
        )
        assert answer["type"] == "success", answer["exceptionDetails"]["text"]
        return json.loads(answer["result"]["value"])

    def until(self, script: str, timeout_s: float = 20.0) -> Any:
        """Wait until the expression is true."""
        deadline = time.monotonic() + timeout_s
        while not (value := self.evaluate(script)):
            assert time.monotonic() < deadline, f"never true: {script}\nconsole: {self.console}"
            time.sleep(0.05)
        return value

    @contextmanager
    def behind_another_tab(self) -> Iterator[None]:
        """The page is hidden within the block."""
        other = self.call("browsingContext.create", type="tab", background=False)["context"]
        self.until("document.hidden", 10)
        yield
        self.call("browsingContext.close", context=other)
        self.call("browsingContext.activate", context=self.context)
        self.until("!document.hidden", 10)

    def screenshot(self, path: Path) -> None:
        """Save a screenshot as PNG."""
        data = self.call("browsingContext.captureScreenshot", context=self.context)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browse_firefox(firefox: str, url: str, size: tuple[int, int] = (1440, 900)) -> Iterator[FirefoxPage]:
    """Open `url` in a new browser with an empty profile. size: of the window, in px."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        profile, log = Path(folder) / "profile", Path(folder) / "log"
        profile.mkdir()
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in PREFERENCES.items()]
        (profile / "user.js").write_text("\n".join(lines))
        window = (f"--width={size[0]}", f"--height={size[1]}")
        command = [
            firefox,
            "--headless",
            "--no-remote",
            "--remote-debugging-port=0",
            *window,
            "--profile",
            str(profile),
        ]
        with log.open("wb") as output:
            environment = {**os.environ, "HOME": folder}
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            with connect(
                f"{_address(process, log)}/session", max_size=None, compression=None, close_timeout=0.2
            ) as line:
                page = FirefoxPage(line)
                page.open(url)
                yield page
                page.call("session.end")
        finally:
            process.terminate()
            process.wait(20)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"WebDriver BiDi listening on (ws://\S+)", log.read_text(errors="replace")):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"Firefox did not start: {log.read_text(errors='replace')[-2000:]}")
