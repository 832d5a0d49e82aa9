"""`zoetrope live` in separate processes, as for users, and a client that streams to it over a real WebSocket."""

from __future__ import annotations

import json
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from app.api.stream.wire import HEADER_BYTES, Header, PictureFormat, pack_header, parse_header

ROOT = Path(__file__).parents[2]
START_S = 120.0
WAIT_S = 20.0


class LiveProcess:
    """A running server. http: a client connected to it."""

    def __init__(self, process: subprocess.Popen[str], url: str, output: list[str]) -> None:
        self.process = process
        self.url = url
        self.output = output
        self.http = httpx.Client(base_url=url, timeout=WAIT_S)
        self.front = psutil.Process(process.pid)

    def worker(self) -> psutil.Process:
        """The worker process, or the first of several."""
        return self.workers()[0]

    def workers(self) -> list[psutil.Process]:
        """The worker processes in start order: the children other than the resource tracker."""
        return [child for child in self.front.children() if "spawn_main" in " ".join(child.cmdline())]

    def open(self, *, prompt_only: bool = False, **controls: object) -> dict[str, Any]:
        """Open a session. Returns the response of POST /v1/sessions."""
        answer = self.http.post("/v1/sessions", json={"prompt_only": prompt_only, "controls": controls})
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def read(self, session: dict[str, Any]) -> dict[str, Any]:
        """Return the response of GET for the session."""
        answer = self.http.get(f"/v1/sessions/{session['id']}", headers=bearer(session))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def end(self, session: dict[str, Any]) -> None:
        self.http.delete(f"/v1/sessions/{session['id']}", headers=bearer(session))

    def socket_url(self, session: dict[str, Any]) -> str:
        return f"{self.url.replace('http', 'ws', 1)}/v1/sessions/{session['id']}/stream"

    def metric(self, name: str, labels: str = "") -> float | None:
        """Return one value of /metrics; None if it is absent."""
        found = re.search(rf"^{name}{re.escape(labels)} (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else None


@contextmanager
def live_process(*arguments: str, engine: str | None = None) -> Iterator[LiveProcess]:
    """Start a server and wait until its worker is ready. engine: one of tests/fakes/live_engines.py."""
    module = ["app", "live"] if engine is None else ["tests.fakes.live_engines", engine]
    command = [sys.executable, "-m", *module, "--port", "0", "--no-open", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output: list[str] = []
    assert process.stdout is not None
    stdout = process.stdout
    reader = threading.Thread(target=lambda: output.extend(iter(stdout.readline, "")), daemon=True)
    reader.start()

    def url() -> str:
        return next((found[1] for line in output if (found := re.search(r"live: (http://[^/\s]+)", line))), "")

    try:
        wait_for(lambda: process.poll() is not None or bool(url()), START_S)
        assert process.poll() is None, "".join(output)
        live = LiveProcess(process, url(), output)
        wait_for(lambda: live.http.get("/readyz").status_code == 200, START_S)
        with closing(live.http):
            yield live
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        reader.join(WAIT_S)
        stdout.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A received frame. age_ms: since its picture was sent. source_seq: the number of that picture."""

    at_s: float
    age_ms: float
    source_seq: int | None
    data: bytes


class Streamer:
    """Sends noise at a set rate and receives everything, in two threads. A context manager."""

    def __init__(self, live: LiveProcess, session: dict[str, Any], *, rate: float, size: tuple[int, int]) -> None:
        self.rate = rate
        self.sent = 0
        self.seen: list[Seen] = []
        self.texts: list[dict[str, Any]] = []
        self._began_s = time.monotonic()
        width, height = size
        self._header = {"format": PictureFormat.RGB, "width": width, "height": height}
        noise = np.random.default_rng(1)
        self._pictures = [noise.integers(0, 256, (height, width, 3), np.uint8).tobytes() for _ in range(8)]
        self._stopped = threading.Event()
        self._stack = ExitStack()
        connection = connect(live.socket_url(session), compression=None, max_size=None, close_timeout=2)
        self.socket = self._stack.enter_context(connection)
        self.say(type="hello", version=1, token=session["token"], format="rgb", send_stats_ms=100)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.hear("ready")
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._sender.start()

    def __enter__(self) -> Streamer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._stack.close()
        self._reader.join(WAIT_S)

    def stop(self) -> None:
        """Stop sending."""
        self._stopped.set()
        self._sender.join(WAIT_S)

    def say(self, **message: object) -> None:
        self.socket.send(json.dumps(message))

    def heard(self, kind: str) -> list[dict[str, Any]]:
        """Return all text messages of that type so far."""
        return [text for text in tuple(self.texts) if text["type"] == kind]

    def hear(self, kind: str, timeout_s: float = WAIT_S, after: int = 0) -> dict[str, Any]:
        """Wait for a text message of that type, the first or the one after `after` others."""
        wait_for(lambda: len(self.heard(kind)) > after, timeout_s)
        return self.heard(kind)[after]

    def age_ms(self, since_s: float, until_s: float) -> float:
        """Return the median age of the frames received in an interval, in seconds since connecting."""
        ages = [seen.age_ms for seen in self.seen if since_s <= seen.at_s - self._began_s < until_s]
        assert ages, "no frame arrived"
        return statistics.median(ages)

    def gap_s(self) -> float:
        """Return the longest time without a frame, from the first one until now."""
        times = [seen.at_s for seen in self.seen] + [time.monotonic()]
        return max(b - a for a, b in pairwise(times))

    def settled(self) -> dict[str, int]:
        """Wait until no sent picture is in flight. Returns the counts."""

        def done() -> bool:
            counts = self.heard("stats")[-1]["accounting"]
            return bool(counts["in"] == self.sent and counts["in_flight"] == 0)

        wait_for(done)
        counts: dict[str, int] = self.heard("stats")[-1]["accounting"]
        return counts

    def _send(self) -> None:
        with suppress(ConnectionClosed):
            while not self._stopped.is_set():
                header = Header(seq=self.sent, captured_ms=time.monotonic() * 1e3, **self._header)  # type: ignore[arg-type]
                self.socket.send(pack_header(header) + self._pictures[self.sent % len(self._pictures)])
                self.sent += 1
                due_s = self._began_s + self.sent / self.rate
                self._stopped.wait(max(0.0, due_s - time.monotonic()))

    def _read(self) -> None:
        with suppress(ConnectionClosed):
            for message in self.socket:
                now_s = time.monotonic()
                if isinstance(message, str):
                    self.texts.append(json.loads(message))
                    continue
                header = parse_header(message)
                age_ms = now_s * 1e3 - header.captured_ms
                data = message[HEADER_BYTES:]
                self.seen.append(Seen(at_s=now_s, age_ms=age_ms, source_seq=header.source_seq, data=data))
                self.say(type="ack", seq=header.seq)


def bearer(session: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {session['token']}"}


def wait_for(happened: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Wait for a condition; fail after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.01)
