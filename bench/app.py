"""The app's figures through the real front and worker: frames a second, glass-to-glass latency, the app's overhead.

`python -m bench.app --json` measures a headless Chromium on the page over WebSocket and WebRTC and a Python peer over
WebRTC, with the identity model at 512x512; then the page with the bundled model, and with the bundled model under
each of `--backends` in turns. Method: bench/live_page.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from bench.command import bench_parser, print_listing
from bench.live_page import backend_rows, browser_row
from bench.webrtc_peer import python_row

ROWS: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "websocket": lambda options: browser_row(options, "identity", "websocket"),
    "webrtc": lambda options: browser_row(options, "identity", "webrtc"),
    "python": python_row,
    "bundled": lambda options: browser_row(options, "mini-image", "websocket"),
    "backends": lambda options: backend_rows(options, "mini-image"),
}


def main() -> None:
    """Measure and print."""
    parser = bench_parser("app", __doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--size", default="512x512", help="of the identity model")
    parser.add_argument("--camera-px", type=int, default=512)
    parser.add_argument("--rate", type=int, default=30, help="pictures a second of the camera")
    parser.add_argument("--backends", nargs="+", default=["eager", "openvino"], help="of the row backends")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--warm-up-s", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--brief", action="store_true", help="medians only")
    options = parser.parse_args()
    rows = {name: ROWS[name](options) for name in options.rows}
    if options.brief:
        rows = {name: _brief(row) for name, row in rows.items()}
    print_listing({"bench": "app", **rows}, one_line=options.json)


def _brief(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _brief(value) if isinstance(value, Mapping) else value for name, value in row.items() if name != "runs"
    }


if __name__ == "__main__":
    main()
