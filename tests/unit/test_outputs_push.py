"""Pacing, URLs that hide their keys, the virtual camera, reconnecting; without a server."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from app.outputs.output import OutputPhase
from app.outputs.pacing import PacedFrames
from app.outputs.push import Push, PushOptions
from app.outputs.transports import address_of
from app.outputs.virtual_camera import Camera, VirtualCamera, VirtualCameraOptions
from pipelines.core.errors import InputError
from pipelines.core.types import Frame, Picture
from tests.fakes.clips import picture

KEY = "s3cret-stream-key"


def frame(index: int, size: tuple[int, int] = (32, 24)) -> Frame:
    return Frame(image=picture(index, size), pts=index, time_base=Fraction(1, 25), seq=index)


def soon(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_the_newest_wins_and_the_last_is_repeated() -> None:
    paced = PacedFrames(Fraction(200))
    for index in (1, 2, 3):
        paced.offer(frame(index))
    assert paced.replaced == 2
    first = paced.first()
    assert first is not None
    paced.restart()
    ticks = [paced.next() for _ in range(3)]
    paced.offer(frame(4))
    ticks.append(paced.next())
    numbers = [ticked[0] for ticked in ticks if ticked is not None]
    assert numbers == sorted(set(numbers))
    assert [int(ticked[1][0, 0, 0]) for ticked in ticks if ticked is not None] == [45, 45, 45, 50]
    paced.close()
    assert paced.next() is None
    assert paced.first() is None


def test_the_rate_is_constant_and_late_ticks_are_left_out() -> None:
    paced = PacedFrames(Fraction(100))
    paced.offer(frame(0))
    paced.restart()
    began_s = time.monotonic()
    for expected in range(20):
        ticked = paced.next()
        assert ticked is not None
        assert ticked[0] >= expected
    assert time.monotonic() - began_s >= 0.19
    time.sleep(0.1)
    late = paced.next()
    assert late is not None
    assert late[0] >= 29
    paced.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"rtmp://live.example.org/app/{KEY}", "rtmp://live.example.org/…"),
        (f"rtmps://user:{KEY}@live.example.org:443/app/x?auth={KEY}", "rtmps://live.example.org:443/…"),
        (f"srt://10.0.0.1:9000?passphrase={KEY}&mode=caller", "srt://10.0.0.1:9000/…"),
        (f"srt://[::1]:9000?streamid=%23!::r={KEY}", "srt://[::1]:9000/…"),
    ],
)
def test_an_address_never_shows_its_key(url: str, shown: str) -> None:
    address = address_of(url)
    assert (address.url, address.shown) == (url, shown)
    options = PushOptions(address=address)
    assert KEY not in repr(address) + repr(options)
    for said in (f"cannot open {url}: refused", f"server says: no such stream {KEY}", url.split("/", 3)[-1]):
        assert KEY not in address.hide(said)
    assert "refused" in address.hide(f"cannot open {url}: refused")


@pytest.mark.parametrize(
    "url", [f"http://host/{KEY}", f"/tmp/{KEY}", f"rtmp:///{KEY}", f"rtmp://h:x/{KEY}", f"rtmp://h/a b{KEY}", "srt://h"]
)
def test_a_wrong_address_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InputError, match=r"The address to push to .*Give ") as refused:
        address_of(url)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": Fraction(0)}, "at 0 frames a second is not possible"),
        ({"size": (33, 24)}, "cannot be 33x24"),
        ({"video_kbps": 1}, "video_kbps cannot be 1"),
        ({"first_wait_s": 60.0}, "first_wait_s is 60.0"),
    ],
)
def test_wrong_options_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PushOptions(address=address_of("rtmp://h/a"), **fields)  # type: ignore[arg-type]


def test_it_backs_off_while_nobody_listens_and_stops_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        address = address_of(f"rtmp://127.0.0.1:{taken.getsockname()[1]}/live/{KEY}")
        push = Push(PushOptions(address=address, first_wait_s=0.02, max_wait_s=30))
        assert push.read().phase is OutputPhase.STARTING
        push.offer(frame(0), 0)
        waits: list[str] = []

        def doubled() -> bool:
            text = push.read().text
            if "trying again" in text and text not in waits:
                waits.append(text)
            return len(waits) >= 4

        soon(doubled)
        assert "Connection refused" in waits[0]
        seconds = [float(text.rsplit(" ", 2)[-2]) for text in waits]
        assert [later / earlier for earlier, later in pairwise(seconds)] == [2, 2, 2]
        assert push.read().phase is OutputPhase.RETRYING
        began_s = time.monotonic()
        push.stop()
        assert time.monotonic() - began_s < 1
    assert push.read().phase is OutputPhase.STOPPED
    said = capfd.readouterr()
    assert KEY not in said.out + said.err + "".join(waits)


@pytest.mark.soak
def test_a_server_that_never_answers_holds_nobody_and_stop_comes_through() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        push = Push(PushOptions(address=address_of(f"rtmp://127.0.0.1:{silent.getsockname()[1]}/live/x")))
        push.offer(frame(0, size=(640, 480)), 0)
        connection, _ = silent.accept()
        max_s, before_s = 0.0, time.monotonic()
        for _ in range(50):
            time.sleep(0.01)
            now_s = time.monotonic()
            max_s, before_s = max(max_s, now_s - before_s), now_s
        assert max_s < 0.5  # connecting inside this process held the interpreter's lock until the answer
        began_s = time.monotonic()
        push.stop()
        assert time.monotonic() - began_s < 12
        connection.close()
    assert push.read().phase is OutputPhase.STOPPED


@pytest.mark.parametrize(
    ("program", "listed", "message"),
    [
        (None, "", "srt needs the program ffmpeg, which is not installed. Install an ffmpeg with srt"),
        ("/bin/ffmpeg", "tcp udp srtp", "/bin/ffmpeg is built without srt"),
    ],
)
def test_srt_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, program: str | None, listed: str, message: str
) -> None:
    answer = subprocess.CompletedProcess([], 0, stdout=listed)
    monkeypatch.setattr(shutil, "which", lambda _: program)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    push = Push(PushOptions(address=address_of("srt://127.0.0.1:9000")))
    push.offer(frame(0), 0)
    soon(lambda: push.read().phase is OutputPhase.FAILED)
    assert push.read().text.startswith(message)
    push.stop()
    assert push.read().phase is OutputPhase.FAILED


class FakeCamera:
    """Records the frames sent to it; fails after `maximum` frames."""

    device = "/dev/video9"

    def __init__(self, maximum: int = 1_000_000) -> None:
        self.sent: list[Picture] = []
        self.maximum = maximum
        self.closed = False

    def send(self, frame: Picture) -> None:
        if len(self.sent) >= self.maximum:
            raise RuntimeError("device was unplugged")
        self.sent.append(frame)

    def close(self) -> None:
        self.closed = True


def on(camera: FakeCamera) -> VirtualCamera:
    def open_device(width: int, height: int, rate: float, device: str) -> Camera:
        assert (width, height, rate, device) == (64, 48, 100.0, "")
        return camera

    return VirtualCamera(VirtualCameraOptions(size=(64, 48), rate=Fraction(100)), open_device)


def test_the_virtual_camera_shows_the_newest_frame_at_its_own_size_and_rate() -> None:
    device = FakeCamera()
    camera = on(device)
    assert camera.read().text == "/dev/video9 waits for the first frame"
    camera.offer(frame(3), 0)
    soon(lambda: len(device.sent) >= 10)
    camera.offer(frame(7), 0)
    soon(lambda: int(device.sent[-1][0, 0, 0]) == 65)
    camera.stop()
    assert {shown.shape for shown in device.sent} == {(48, 64, 3)}
    assert [int(shown[5, 5, 0]) for shown in device.sent[:3]] == [45, 45, 45]
    assert device.closed
    assert (camera.read().phase, camera.read().done) == (OutputPhase.STOPPED, len(device.sent))


def test_a_camera_that_breaks_ends_with_its_reason() -> None:
    device = FakeCamera(maximum=3)
    camera = on(device)
    camera.offer(frame(0), 0)
    soon(lambda: camera.read().phase is OutputPhase.FAILED)
    assert camera.read().text == "/dev/video9 ended: device was unplugged"
    camera.stop()
    assert device.closed


def test_without_a_driver_it_says_what_to_install() -> None:
    pytest.importorskip("pyvirtualcam", reason="an optional package: pip install 'zoetrope[virtual-camera]'")
    with pytest.raises(InputError, match=r"There is no virtual camera to write to: .*v4l2loopback"):
        VirtualCamera(VirtualCameraOptions(size=(64, 48), device="/dev/video4321"))


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    options = VirtualCameraOptions(size=(64, 48), device="/dev/video4321")
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with pytest.raises(InputError, match="needs the package pyvirtualcam"):
        VirtualCamera(options)
    with pytest.raises(InputError, match="A camera cannot be 63x48"):
        VirtualCameraOptions(size=(63, 48))


def test_pictures_fit_the_sizes_that_pacing_hands_on() -> None:
    assert np.array_equal(picture(0, (32, 24)), frame(0).image)
