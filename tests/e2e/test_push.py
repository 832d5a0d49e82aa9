"""ffmpeg, an independent receiver, gets RTMP and SRT pushes: frames, their colours, and no leaked key."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from app.outputs.output import OutputPhase
from app.outputs.push import Push, PushOptions
from app.outputs.transports import address_of
from pipelines.core.types import Frame

SIZE = (64, 48)
KEY = "s3cret-stream-key"
COLOURS = ((200, 120, 40), (40, 80, 190))
WAIT_S = 30.0
FFMPEG = shutil.which("ffmpeg")


def speaks(protocol: str) -> bool:
    if FFMPEG is None:
        return False
    listed = subprocess.run([FFMPEG, "-hide_banner", "-protocols"], capture_output=True, text=True, timeout=20)
    return protocol in listed.stdout.split()


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def soon(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.01)


class Server:
    """An ffmpeg process that waits for one sender and decodes `frames` frames to raw RGB."""

    def __init__(self, folder: Path, source: list[str], frames: int) -> None:
        assert FFMPEG is not None
        self._output = folder / f"received-{time.monotonic_ns()}.rgb"
        command = [FFMPEG, "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *source]
        command += [
            "-map",
            "0:v",
            "-fps_mode",
            "passthrough",
            "-frames:v",
            str(frames),
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            str(self._output),
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def received(self) -> np.ndarray:
        """Return frames [N, H, W, 3] after ffmpeg has exited by itself."""
        _, said = self.process.communicate(timeout=WAIT_S)
        assert self.process.returncode == 0, said
        return np.fromfile(self._output, np.uint8).reshape(-1, SIZE[1], SIZE[0], 3)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def playing(push: Push) -> Iterator[None]:
    """Send 40 frames per second; the colour changes every 20 frames."""
    done = threading.Event()

    def feed() -> None:
        index = 0
        while not done.wait(1 / 40):
            colour = COLOURS[push.read().done // 20 % 2]
            image = np.tile(np.array(colour, np.uint8), (SIZE[1], SIZE[0], 1))
            push.offer(Frame(image=image, pts=index, time_base=Fraction(1, 40), seq=index), time.monotonic_ns())
            index += 1

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        push.stop()
        done.set()
        thread.join()


def opened(url: str) -> Push:
    return Push(PushOptions(address=address_of(url), rate=Fraction(25), first_wait_s=0.1, max_wait_s=0.4))


def assert_both_colours(pictures: np.ndarray) -> None:
    """Check that both colours appear for many frames each, with at most one other frame at each change."""
    centres = pictures[:, SIZE[1] // 2, SIZE[0] // 2].astype(int)
    near = np.array([np.abs(centres - np.array(colour)).max(axis=1) <= 8 for colour in COLOURS])
    assert (near.sum(axis=1) >= 10).all(), centres.tolist()
    assert (~near.any(axis=0)).sum() <= 4, centres.tolist()


def rtmp_server(folder: Path, port: int, frames: int) -> Server:
    return Server(folder, ["-listen", "1", "-f", "flv", "-i", f"rtmp://127.0.0.1:{port}/live/{KEY}"], frames)


@pytest.mark.skipif(not speaks("rtmp"), reason="no ffmpeg with RTMP is installed")
def test_ffmpeg_receives_rtmp_and_again_after_it_was_away(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    port = free_port(socket.SOCK_STREAM)
    push = opened(f"rtmp://127.0.0.1:{port}/live/{KEY}")
    with playing(push):
        soon(lambda: push.read().phase is OutputPhase.RETRYING, "nobody listens yet")
        assert "Connection refused; trying again in" in push.read().text
        first = rtmp_server(tmp_path, port, 50)
        assert_both_colours(first.received())
        soon(lambda: push.read().phase is OutputPhase.RETRYING, "the server has gone")
        second = rtmp_server(tmp_path, port, 10)
        assert len(second.received()) == 10
        assert push.connections >= 2
        assert KEY not in repr(push.read()) + repr(push._options)
    assert push.read().phase is OutputPhase.STOPPED
    said = capfd.readouterr()
    assert KEY not in said.out + said.err


@pytest.mark.soak
@pytest.mark.skipif(not speaks("srt"), reason="no ffmpeg with SRT is installed")
def test_ffmpeg_receives_srt(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    port = free_port(socket.SOCK_DGRAM)
    server = Server(tmp_path, ["-f", "mpegts", "-i", f"srt://127.0.0.1:{port}?mode=listener"], 50)
    push = opened(f"srt://127.0.0.1:{port}?streamid={KEY}")
    try:
        with playing(push):
            assert_both_colours(server.received())
            soon(lambda: push.read().phase is OutputPhase.RETRYING, "the server has gone")
            assert push.read().text.startswith(f"srt://127.0.0.1:{port}/…: ")
            assert KEY not in push.read().text
    finally:
        server.end()
    assert push.read().phase is OutputPhase.STOPPED
    said = capfd.readouterr()
    assert KEY not in said.out + said.err
