"""How long a user waits: for the help, a page that can be used, the first frame of a render and of a live stream.

`python -m bench.start --json` starts the program as a user does, each time in new processes, and reports medians.
Beside each time in seconds stands the CPU time of all its processes until then, which other programs disturb less.
Independent of engines and of the app's internals.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from app.client import ZoetropeClient
from app.measure.machine import cpu_name
from bench.command import bench_parser, print_listing

PROMPT = "a robot on the beach, pencil sketch"
RENDERS: Mapping[str, tuple[str, ...]] = {
    "mini-image": ("assets/samples/camera.mp4",),
    "mini-video": ("--prompt-only", "--seconds", "2"),
}
"""What is rendered with each model."""

_TIMEOUT_S = 120.0
_POLL_S = 0.005
Run = Callable[[], dict[str, float]]


class Started:
    """A program that was just started. Its clock runs from then on."""

    def __init__(self, process: subprocess.Popen[bytes], started_s: float) -> None:
        self._process = psutil.Process(process.pid)
        self._popen = process
        self._started_s = started_s

    def until(self, happened: Callable[[], bool]) -> float:
        """Wait; returns seconds since the start. Raises SystemExit if the program ends first or takes too long."""
        while not happened():
            if self._popen.poll() is not None or self.seconds() > _TIMEOUT_S:
                raise SystemExit(f"The program ended with {self._popen.returncode}, or takes too long.")
            time.sleep(_POLL_S)
        return self.seconds()

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started_s

    def cpu_s(self) -> float:
        """CPU seconds, user and system, that the program and its running child processes have used."""
        times = [process.cpu_times() for process in (self._process, *self._process.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))


@contextmanager
def started(*arguments: str) -> Iterator[Started]:
    """Run `zoetrope` with arguments; kills it and its children at the end."""
    begin_s = time.perf_counter()
    process = subprocess.Popen(
        _command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment()
    )
    try:
        yield Started(process, begin_s)
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        for child in children:
            child.kill()
        process.kill()
        process.wait()


def command_run(*arguments: str) -> dict[str, float]:
    """Run a command that ends by itself. s: seconds until it has ended."""
    begin_s = time.perf_counter()
    subprocess.run(_command(*arguments), stdout=subprocess.DEVNULL, check=True, env=_environment())
    return {"s": time.perf_counter() - begin_s}


def render_run(model: str) -> dict[str, float]:
    """Render to a folder of pictures. frame_s: until the first picture is there."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        arguments = ["render", *RENDERS[model], f"{pictures}/", "--model", model, "--prompt", PROMPT]
        with started(*arguments) as program:
            frame_s = program.until(lambda: any(pictures.glob("*.png")))
            return {"frame_s": frame_s, "frame_cpu_s": program.cpu_s()}


def live_run(model: str) -> dict[str, float]:
    """Serve, and open a stream from a prompt as soon as the page is there. page_s: until page and configuration have
    been answered. frame_s: until the first frame has come over the API."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as data:
        arguments = ["live", "--no-open", "--port", str(port), "--model", model, "--data", data]
        with started(*arguments) as program, httpx.Client(base_url=url, timeout=_TIMEOUT_S) as client:
            page_s = program.until(lambda: _answers(client, "/") and _answers(client, "/config"))
            page_cpu_s = program.cpu_s()
            asyncio.run(_first_frame(url))
            frame_s, frame_cpu_s = program.seconds(), program.cpu_s()
    return {"page_s": page_s, "page_cpu_s": page_cpu_s, "frame_s": frame_s, "frame_cpu_s": frame_cpu_s}


async def _first_frame(url: str) -> None:
    async with ZoetropeClient(url, timeout_s=_TIMEOUT_S) as client, client.stream(PROMPT, prompt_only=True) as stream:
        await anext(stream)


def _answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "app", *arguments]


def _environment() -> dict[str, str]:
    """A user's: Python keeps the modules that it has compiled."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows(models: list[str]) -> dict[str, Run]:
    """Everything that can be measured, by name."""
    commands: dict[str, Run] = {
        name: lambda arguments=arguments: command_run(*arguments)  # type: ignore[misc]
        for name, arguments in {"help": ("--help",), "models": ("models",), "doctor": ("doctor",)}.items()
    }
    renders: dict[str, Run] = {f"render {model}": lambda model=model: render_run(model) for model in models}  # type: ignore[misc]
    lives: dict[str, Run] = {f"live {model}": lambda model=model: live_run(model) for model in models}  # type: ignore[misc]
    return commands | renders | lives


def measure(run: Run, runs: int) -> dict[str, Any]:
    """Median, lowest and highest of each figure over several runs, after one that is not counted: it fills the caches
    of files and of compiled modules."""
    run()
    figures = [run() for _ in range(runs)]
    return {
        name: {
            "median": round(statistics.median(values), 2),
            "lowest": round(min(values), 2),
            "highest": round(max(values), 2),
        }
        for name in figures[0]
        if (values := [each[name] for each in figures])
    }


def main() -> None:
    """Measure and print."""
    parser = bench_parser("start", __doc__)
    parser.add_argument("--models", nargs="+", choices=RENDERS, default=list(RENDERS))
    parser.add_argument("--rows", nargs="+", help="names as printed; default: all")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    every = rows(options.models)
    unknown = sorted({*(options.rows or ())} - {*every})
    if unknown:
        parser.error(f"unknown rows: {', '.join(unknown)}; known: {', '.join(every)}")
    found = {name: measure(every[name], options.runs) for name in options.rows or every}
    machine = {"processor": cpu_name(), "cores": psutil.cpu_count(), "runs": options.runs}
    print_listing({"bench": "start", **machine, **found}, one_line=options.json)


if __name__ == "__main__":
    main()
