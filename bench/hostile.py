"""What ten hostile clients cost an honest one: its frames a second and latency without and beside them, and the memory
of the front a minute after they have left.

`python -m bench.hostile --json` streams the bundled camera clip over a WebSocket to the identity model at 512x512, 30
pictures a second as JPEG, and measures from the sending of a picture to the arrival of its frame. The hostile ones
(bench/hostile_clients.py) come from a process of the lowest priority, as they would from other machines.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from app.api.pictures import pack
from app.api.stream.wire import Header, PictureFormat, pack_header, parse_header
from app.measure.camera import camera_pictures
from bench.command import bench_parser, print_listing
from bench.hostile_clients import start
from bench.live_page import percentile, serving

_SIDE_PX = 512
_MEGABYTE = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Seconds of each part, and pictures a second of the honest client. alone_s: half before, half after the others."""

    warm_up_s: float = 5.0
    alone_s: float = 20.0
    beside_s: float = 40.0
    after_s: float = 60.0
    rate: int = 30


class HonestClient:
    """Streams pictures at a steady rate and notes when each frame arrived, and how old its picture was then."""

    def __init__(self, url: str, rate: int) -> None:
        request = urllib.request.Request(
            f"{url}v1/sessions", b'{"prompt_only": false}', {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            session = json.load(answer)
        self._rate = rate
        self._pictures = [pack(picture, PictureFormat.JPEG, 85) for picture in camera_pictures(_SIDE_PX, _SIDE_PX)[:60]]
        self._seen: list[tuple[float, float]] = []  # at s, age ms
        self._stopped = threading.Event()
        self._left = ExitStack()
        address = f"{url.replace('http', 'ws', 1).rstrip('/')}{session['stream_url']}"
        self._socket = self._left.enter_context(connect(address, compression=None, max_size=None))
        self._socket.send(json.dumps({"type": "hello", "version": 1, "token": session["token"], "format": "jpeg"}))
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._send, self._read)]
        for thread in self._threads:
            thread.start()

    def stream(self, seconds: float) -> tuple[float, float]:
        """Wait so long. Returns begin and end, monotonic time."""
        began_s = time.monotonic()
        time.sleep(seconds)
        return began_s, time.monotonic()

    def figures(self, *times: tuple[float, float]) -> dict[str, float]:
        """Frames a second and latency of all these times together."""
        ages = [age_ms for at_s, age_ms in self._seen if any(begin <= at_s < end for begin, end in times)]
        if not ages:
            raise SystemExit("The honest client got no frames: the server has let it down.")
        return {
            "fps": round(len(ages) / sum(end - begin for begin, end in times), 2),
            "p50_ms": round(percentile(ages, 0.5), 1),
            "p95_ms": round(percentile(ages, 0.95), 1),
        }

    def close(self) -> None:
        """Leave."""
        self._stopped.set()
        self._left.close()
        for thread in self._threads:
            thread.join(10)

    def _send(self) -> None:
        began_s, number = time.monotonic(), 0
        with suppress(ConnectionClosed):
            while not self._stopped.wait(max(0.0, began_s + number / self._rate - time.monotonic())):
                header = Header(
                    format=PictureFormat.JPEG,
                    seq=number,
                    captured_ms=time.monotonic() * 1e3,
                    width=_SIDE_PX,
                    height=_SIDE_PX,
                )
                self._socket.send(pack_header(header) + self._pictures[number % len(self._pictures)])
                number += 1

    def _read(self) -> None:
        with suppress(ConnectionClosed):
            for message in self._socket:
                if isinstance(message, bytes):
                    now_s, header = time.monotonic(), parse_header(message)
                    self._socket.send(json.dumps({"type": "ack", "seq": header.seq}))
                    self._seen.append((now_s, now_s * 1e3 - header.captured_ms))


def measure(plan: Plan) -> dict[str, Any]:
    """The figures, and what they must be."""
    with serving("identity", f"{_SIDE_PX}x{_SIDE_PX}") as url:
        front = next(child for child in psutil.Process().children() if "live" in child.cmdline())
        honest = HonestClient(url, plan.rate)
        try:
            honest.stream(plan.warm_up_s)
            early = honest.stream(plan.alone_s / 2)
            before = front.memory_info().rss
            process, stop = start(url)
            try:
                honest.stream(plan.warm_up_s)
                beside = honest.figures(honest.stream(plan.beside_s))
                peak = front.memory_info().rss
            finally:
                stop.set()
                process.join(30)
                process.kill()
            honest.stream(plan.after_s)
            after = front.memory_info().rss
            alone = honest.figures(early, honest.stream(plan.alone_s / 2))
        finally:
            honest.close()
    return {
        "alone": alone,
        "beside": beside,
        "fps_ratio": round(beside["fps"] / alone["fps"], 3),
        "p95_ratio": round(beside["p95_ms"] / alone["p95_ms"], 3),
        "memory_beside_mb": round((peak - before) / _MEGABYTE, 1),
        "memory_after_mb": round((after - before) / _MEGABYTE, 1),
        "wanted": {"fps_ratio": 0.8, "p95_ratio": 1.5, "memory_after_mb": 20},
    }


def main() -> None:
    """Measure and print."""
    parser = bench_parser("hostile", __doc__)
    parser.add_argument("--alone-s", type=float, default=Plan().alone_s)
    parser.add_argument("--beside-s", type=float, default=Plan().beside_s)
    parser.add_argument("--after-s", type=float, default=Plan().after_s)
    options = parser.parse_args()
    plan = Plan(alone_s=options.alone_s, beside_s=options.beside_s, after_s=options.after_s)
    print_listing({"bench": "hostile", **measure(plan)}, one_line=options.json)


if __name__ == "__main__":
    main()
