"""Owns what the app's benches share: a served page, a camera that shows the clock, and latency as a browser sees it.

The camera is a canvas that shows the browser's clock as a bar code. The code is read from each picture when the page
paints it: the latency includes capture, both codecs, transport and worker, but not a camera's or monitor's own delay.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.e2e.browser import Page, browse

BITS = 24
FIGURES = ("fps", "p50_ms", "p95_ms", "capture_to_paint_p50_ms", "model_ms", "app_overhead_ms")
CAMERA = """
(() => {
  const canvas = document.createElement('canvas'), side = %(side)d, bits = %(bits)d, cell = side / bits;
  canvas.width = canvas.height = side;
  const context = canvas.getContext('2d');
  let turn = 0;
  setInterval(() => {
    const now = Math.round(performance.now()) %% (1 << bits);
    context.fillStyle = `hsl(${turn++ %% 360} 60%% 50%%)`;
    context.fillRect(0, 0, side, side);
    for (let bit = 0; bit < bits; bit += 1) {
      context.fillStyle = (now >> bit) & 1 ? '#fff' : '#000';
      context.fillRect(Math.floor(bit * cell), side / 4, Math.ceil(cell), side / 2);
    }
  }, 1000 / %(rate)d);
  navigator.mediaDevices.getUserMedia = async () => canvas.captureStream(%(rate)d);
  window.samples = [];
  const read = () => {
    const picture = document.querySelector('.zt-picture'), now = performance.now(), scale = picture.width / side;
    const row = picture.getContext('2d').getImageData(0, Math.floor(picture.height / 2), picture.width, 1).data;
    let code = 0;
    for (let bit = 0; bit < bits; bit += 1) {
      if (row[4 * Math.floor((bit + 0.5) * cell * scale) + 1] > 127) code |= 1 << bit;
    }
    window.samples.push([now, now %% (1 << bits) - code]);
  };
  const link = window.zoetrope.link, { frame, stats } = link.on;
  window.shown = [];  // from capture to paint, by the header's own clock
  link.on.frame = async (header, ...more) => {
    await frame(header, ...more);
    if (header.capturedMs) window.shown.push(performance.now() - header.capturedMs);
  };
  link.on.stats = (message) => { window.lastStats = message; stats(message); };
  window.beginReading = () => {
    window.samples = [];
    window.shown = [];
    new MutationObserver(read).observe(document.querySelector('.zt-picture'), { attributeFilter: ['data-number'] });
  };
})()
"""


@contextmanager
def serving(model: str, size: str, *options: str) -> Iterator[str]:
    """The URL of a fresh `zoetrope live`. options: further arguments."""
    command = [sys.executable, "-m", "app", "live", "--port", "0", "--no-open", "--model", model, *options]
    command += ["--size", size] if model == "identity" else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        url = next(found[1] for line in process.stdout if (found := re.search(r"live: (http://\S+)", line)))
        next(line for line in process.stdout if "worker: ready" in line)
        yield url
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def loop_figures(url: str) -> dict[str, float]:
    """How long the front's event loop was blocked: longest callback of the last minute, and counts since the start."""
    with urllib.request.urlopen(f"{url}metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    values = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}
    prefix = "zoetrope_event_loop_"
    return {
        "max_ms": round(values[f"{prefix}longest_seconds"] * 1000, 2),
        "max_cpu_ms": round(values[f"{prefix}longest_cpu_seconds"] * 1000, 2),
        "callbacks": values[f"{prefix}callbacks_total"],
        "over_5_ms": values[f'{prefix}blocked_total{{clock="wall"}}'],
        "over_5_ms_cpu": values[f'{prefix}blocked_total{{clock="cpu"}}'],
    }


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(values: Sequence[float | None]) -> float | None:
    """The median, or None if a run has no value."""
    present = [value for value in values if value is not None]
    return round(statistics.median(present), 2) if len(present) == len(values) else None


def watch(page: Page, options: argparse.Namespace, url: str) -> dict[str, Any]:
    """Stream the coded camera for a while; figures of what arrived after the warm-up."""
    page.until("window.zoetrope !== undefined && document.querySelector('.zt-stage').dataset.state === 'ready'", 90)
    page.evaluate(CAMERA % {"side": options.camera_px, "bits": BITS, "rate": options.rate})
    page.evaluate("window.zoetrope.sources.mirror = false")
    page.evaluate(f"window.zoetrope.sources.longest = {options.camera_px}")
    page.evaluate("window.zoetrope.choose('camera').then(() => window.zoetrope.start())")
    page.until("Number(document.querySelector('.zt-picture').dataset.number || 0) > 5", 60)
    time.sleep(options.warm_up_s)
    before = loop_figures(url)
    page.evaluate("window.beginReading()")
    time.sleep(options.seconds)
    samples, shown, stats = (page.evaluate(f"window.{name}") for name in ("samples", "shown", "lastStats"))
    after = loop_figures(url)
    latency_ticks = page.evaluate("window.zoetrope.info().latency_ticks")
    page.evaluate("window.zoetrope.stop()")
    times = [at for at, _ in samples]
    delays = [delay for _, delay in samples if -5 < delay < 10_000]
    latency_ms = percentile(shown, 0.5)
    wait_ms = stats["stages"].get("wait", {"p50_ms": 0.0})["p50_ms"]
    model_ms = wait_ms + (latency_ticks + 1) * stats["tick_ms"]
    return {
        "frames": len(samples),
        "fps": round((len(times) - 1) / ((times[-1] - times[0]) / 1000), 2),
        "p50_ms": round(percentile(delays, 0.5), 1) if delays else None,  # a model makes the code unreadable
        "p95_ms": round(percentile(delays, 0.95), 1) if delays else None,
        "unread": len(samples) - len(delays),
        "capture_to_paint_p50_ms": round(latency_ms, 1),
        "model_ms": round(model_ms, 1),
        "app_overhead_ms": round(latency_ms - model_ms, 1),
        "stages": stats["stages"],
        "accounting": stats["accounting"],
        "loop": {name: value if name.startswith("max_") else value - before[name] for name, value in after.items()},
    }


def browser_row(options: argparse.Namespace, model: str, transport: str) -> dict[str, Any]:
    """Medians of several runs, each in a fresh browser. transport: "websocket" or "webrtc"."""
    runs: list[dict[str, Any]] = []
    with serving(model, options.size) as url:
        runs += [_browser_run(options, url, transport) for _ in range(options.runs)]
    return _medians(options, model, transport, runs)


def backend_rows(options: argparse.Namespace, model: str) -> dict[str, Any]:
    """The bundled model on the page over WebSocket, in turns under each of `options.backends`, each run in a fresh
    program and browser; the rows, and where there are several what the last is to the first: frames a second, latency.
    """
    runs: dict[str, list[dict[str, Any]]] = {backend: [] for backend in options.backends}
    for _ in range(options.runs):
        for backend, found in runs.items():
            with serving(model, options.size, "--backend", backend) as url:
                found.append(_browser_run(options, url, "websocket"))
    rows: dict[str, Any] = {backend: _medians(options, model, "websocket", found) for backend, found in runs.items()}
    if len(runs) == 1:
        return rows
    old, *_, new = runs.values()
    pairs = list(zip(old, new, strict=True))
    latency = "capture_to_paint_p50_ms"
    return {
        **rows,
        "fps_ratio": median([late["fps"] / early["fps"] for early, late in pairs]),
        "latency_ratio": median([late[latency] / early[latency] for early, late in pairs]),
    }


def _browser_run(options: argparse.Namespace, url: str, transport: str) -> dict[str, Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium was not found; install it to measure the page.")
    with browse(chromium, url) as page:
        page.until("window.zoetrope !== undefined", 90)
        page.evaluate(f"window.zoetrope.setTransport('{transport}')")
        return watch(page, options, url)


def _medians(options: argparse.Namespace, model: str, transport: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "peer": "browser",
        "transport": transport,
        "model": model,
        "size": options.size if model == "identity" else None,
        **{name: median([run[name] for run in runs]) for name in FIGURES},
        "loop_longest_ms": max(run["loop"]["max_ms"] for run in runs),
        "loop_longest_cpu_ms": max(run["loop"]["max_cpu_ms"] for run in runs),
        "loop_over_5_ms": sum(run["loop"]["over_5_ms"] for run in runs),
        "loop_over_5_ms_cpu": sum(run["loop"]["over_5_ms_cpu"] for run in runs),
        "loop_callbacks": sum(run["loop"]["callbacks"] for run in runs),
        "runs": runs,
    }
