"""Autobahn's fuzzing client, an independent test of RFC 6455, against the server's own settings around an echo.

It runs under Python 2.7 only: AUTOBAHN_PYTHON names one that has the package autobahntestsuite (python2.7 -m pip
install autobahntestsuite); by default python2.7. Skipped where there is none.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from app.guard.middleware import Guard
from app.guard.rules import GuardOptions
from app.server.front import PolicyHeaders
from app.server.front_server import FrontServer
from app.server.gate import FrontGate
from tests.fakes.stream_server import wait_until

PYTHON = os.environ.get("AUTOBAHN_PYTHON", "python2.7")
CASES = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*", "12.1.1", "13.1.1")
PASSED = ("OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED")  # unimplemented: compression, which is never offered
LIMITED = "9."  # messages larger, or in more pieces, than the server takes: refused, which the suite calls failed
TOO_MUCH = (1009, 4429)
KNOWN = {"7.1.5": 1002}  # websockets closes so when a close frame comes in the midst of a fragmented message


class Echo:
    """Sends every message back."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            return
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})


@contextmanager
def served() -> Iterator[int]:
    """The echo behind the guard, the gate and the server of `zoetrope live`. Yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    guard = GuardOptions(port=port, hosts=frozenset({f"127.0.0.1:{port}"}))
    front = FrontServer(PolicyHeaders(Guard(FrontGate(Echo()), guard)), listener, log_level="warning", lifespan="off")
    thread = threading.Thread(target=front.run, name="echo")
    thread.start()
    wait_until(lambda: front.server.started)
    try:
        yield port
    finally:
        front.server.should_exit = True
        thread.join()


def has_autobahn() -> bool:
    try:
        found = subprocess.run([PYTHON, "-c", "import autobahntestsuite"], capture_output=True, check=False, timeout=60)
    except OSError:
        return False
    return found.returncode == 0


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_no_frame_of_the_fuzzing_client_is_answered_against_the_protocol(tmp_path: Path) -> None:
    if not has_autobahn():
        pytest.skip("needs Python 2.7 with autobahntestsuite; AUTOBAHN_PYTHON names it")
    with served() as port:
        server = {"agent": "zoetrope", "url": f"ws://127.0.0.1:{port}/ws"}
        specification = {"outdir": str(tmp_path / "report"), "servers": [server], "cases": CASES}
        specification |= {"exclude-cases": [], "exclude-agent-cases": {}}
        (tmp_path / "fuzzing.json").write_text(json.dumps(specification))
        run = "from autobahntestsuite.wstest import run; run()"
        command = [PYTHON, "-c", run, "-m", "fuzzingclient", "-s", str(tmp_path / "fuzzing.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1400, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "report" / "index.json").read_text())["zoetrope"]
    assert len(results) > 200
    failed = {
        name: result["remoteCloseCode"]
        for name, result in results.items()
        if result["behavior"] not in PASSED or (result["behaviorClose"] not in PASSED and not name.startswith(LIMITED))
    }
    limited = {name: code for name, code in failed.items() if name.startswith(LIMITED)}
    assert {name: code for name, code in failed.items() if name not in limited} == KNOWN
    assert set(limited.values()) <= set(TOO_MUCH)
