"""Takes end to end: a live session with the bundled model is recorded, and rendered again in a fresh process.

Every live frame must be reproduced to the pixel. The test itself keeps the live pixels.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest

from app.media.picture import jpeg
from app.media.video_reader import VideoReader
from app.takes.reader import read_take
from app.takes.records import Changed, Pushed
from app.worker.handle import WorkerHandle
from app.worker.process import WorkerOptions
from app.worker.proxy import SessionProxy, SessionState
from pipelines.core.controls import Control
from pipelines.core.types import Picture
from pipelines.files.loader_options import LoaderOptions

ROOT = Path(__file__).resolve().parent.parent.parent
CLIP = ROOT / "assets" / "samples" / "camera.mp4"
CHANGES: tuple[dict[str, object], ...] = (
    {"prompt": "a robot on the beach"},
    {"strength": 0.7},
    {"depth": 3},
    {"prompt": "a cat:2 | a robot", "prompt_change": "cut", "transition_frames": 6},
    {"guidance_scale": 1.6, "guidance_mode": "full"},
    {"seed": 7},
    {"seed_lock": False},
    {"steps": 3},
    {"similarity_filter": True, "similarity_threshold": 0.9},
    {"depth": 2},
)


SIZE = 48  # pixels: small enough for many ticks a second


@dataclass
class Live:
    """The frames of a session: sha256 of the pictures in order of arrival."""

    session: SessionProxy
    before: int  # frames that were shown before the take
    hashes: list[str] = field(default_factory=list)

    def frame_arrived(self) -> None:
        """Called with the session's lock held, for every frame and state change."""
        newest = self.session.newest(after=self.before + len(self.hashes))
        if newest is not None:
            count, frame = newest
            assert count == self.before + len(self.hashes) + 1, "a frame was missed"
            self.hashes.append(hashlib.sha256(frame.image.tobytes()).hexdigest())


@dataclass(frozen=True)
class Clip:
    """Pictures, each also as a JPEG file and as decoded from it by OpenCV."""

    files: tuple[bytes, ...]
    pictures: tuple[Picture, ...]

    @classmethod
    def of_camera(cls, frames: int) -> Clip:
        found = [frame.image for _, frame in zip(range(frames), VideoReader(CLIP).frames(), strict=False)]
        files = tuple(jpeg(image) for image in found)
        decoded = (cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR) for file in files)
        return cls(
            files=files, pictures=tuple(np.asarray(cv2.cvtColor(d, cv2.COLOR_BGR2RGB), np.uint8) for d in decoded)
        )


def perform(
    session: SessionProxy, clip: Clip, seconds: float, rate: float, changes: Sequence[dict[str, object]]
) -> None:
    """Submit the clip at `rate`, mostly as received files, with `changes` spread over its duration."""
    started_s, offered, made = time.monotonic(), 0, 0
    while (now_s := time.monotonic() - started_s) < seconds:
        if made < len(changes) and now_s > (made + 0.5) * seconds / len(changes):
            session.set_control(Control.of(changes[made]))
            made += 1
        index = offered % len(clip.files)
        session.submit(clip.pictures[index], received=clip.files[index] if offered % 3 else None)
        offered += 1
        time.sleep(max(0.0, offered / rate - (time.monotonic() - started_s)))
    assert made == len(changes)


def record(
    client: WorkerHandle, folder: Path, *, seconds: float, rate: float, changes: Sequence[dict[str, object]]
) -> Live:
    """Record a session. Returns its frames during the take."""
    start = Control.of({"prompt": "a cat on the beach", "steps": 2, "depth": 2, "strength": 0.8})
    session = client.open(control=start, prompt_only=False)
    clip = Clip.of_camera(40)
    wait_for(lambda: session.state is SessionState.LIVE)
    for picture in clip.pictures[:5]:  # something is under way when the take begins
        session.submit(picture)
        time.sleep(0.05)
    wait_for(lambda: session.accounting.in_flight == 0)
    live = Live(session, session.count)
    deaf = session.listen(live.frame_arrived)
    session.start_take(folder)
    assert session.recording
    perform(session, clip, seconds, rate, changes)
    session.stop_take()
    deaf()
    assert not session.recording
    assert session.notice == ""
    session.close()
    return live


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.01)


def render(take: Path, output: Path, *options: str) -> str:
    """Run `zoetrope render --take` in a separate process. Returns its output."""
    command = [sys.executable, "-m", "app", "render", "--take", str(take), str(output), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def shown(folder: Path) -> list[str]:
    """Return sha256 of the rendered pictures."""
    found = []
    for file in sorted(folder.glob("*.png")):
        bgr = cv2.imread(str(file), cv2.IMREAD_COLOR)
        assert bgr is not None
        found.append(hashlib.sha256(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).tobytes()).hexdigest())
    return found


@pytest.fixture(scope="module")
def client() -> Iterator[WorkerHandle]:
    options = WorkerOptions(model="mini-image", engine=LoaderOptions(width=SIZE, height=SIZE, device="cpu"), threads=1)
    with WorkerHandle(options) as client:
        client.wait_ready(120)
        yield client


@pytest.mark.soak
@pytest.mark.parametrize(("name", "rate"), [("paced", 6.0), ("dropping", 90.0)])
def test_a_take_replays_to_the_frames_that_were_live(
    client: WorkerHandle, tmp_path: Path, name: str, rate: float
) -> None:
    live = record(client, tmp_path / "take", seconds=4.0, rate=rate, changes=CHANGES)
    take = read_take(tmp_path / "take")
    assert take.complete
    pushed = [r.seq for r in take.records if isinstance(r, Pushed) and r.outcome == "accepted"]
    assert (len(pushed) < len(take.inputs) - 20) == (name == "dropping")
    assert sum(isinstance(r, Changed) for r in take.records) == len(CHANGES)
    assert len(live.hashes) - 4 <= len(take.hashes) <= len(live.hashes)  # a few came after the end of the take
    check_replay(tmp_path / "take", tmp_path / "again", live)
    assert len(take.hashes) > 5


def check_replay(take_folder: Path, output: Path, live: Live) -> None:
    """Render the take in a new process and compare all frames with those that the test received."""
    take = read_take(take_folder)
    said = render(take_folder, output)
    assert f"{len(take.hashes)} frames identical to the live ones, 0 different" in said
    assert shown(output)[: len(take.hashes)] == live.hashes[: len(take.hashes)]


@pytest.mark.soak
def test_the_same_performance_filled_in_with_more_steps_and_larger(client: WorkerHandle, tmp_path: Path) -> None:
    record(client, tmp_path / "take", seconds=1.5, rate=30.0, changes=CHANGES[:3])
    take = read_take(tmp_path / "take")
    size = ("--size", f"{2 * SIZE}x{2 * SIZE}")
    said = render(tmp_path / "take", tmp_path / "again", "--fill-drops", "--steps", "3", *size)
    assert "rendered with changes" in said
    pictures = sorted((tmp_path / "again").glob("*.png"))
    assert len(pictures) == len([i for i in take.inputs if i.seq is not None and i.seq > take.opened.after])
    first = cv2.imread(str(pictures[0]))
    assert first is not None
    assert first.shape == (2 * SIZE, 2 * SIZE, 3)


def test_a_take_of_a_killed_front_replays(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
import numpy as np
from app.worker.proxy import SessionState
from app.worker.engine import WorkerOptions
from app.worker.handle import WorkerHandle
from pipelines.files.loader_options import LoaderOptions
if __name__ == "__main__":
    with WorkerHandle(WorkerOptions(model="identity", engine=LoaderOptions(width=32, height=24))) as client:
        client.wait_ready(60)
        session = client.open(prompt_only=False)
        while session.state is not SessionState.LIVE:
            time.sleep(0.01)
        session.start_take(Path(sys.argv[1]))
        print("recording", flush=True)
        for number in range(10_000):
            session.submit(np.full((24, 32, 3), number % 256, np.uint8))
            time.sleep(0.02)
"""
    file = tmp_path / "front.py"
    file.write_text(script)
    command = [sys.executable, str(file), str(tmp_path / "take")]
    front = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    assert front.stdout is not None
    assert front.stdout.readline() == b"recording\n"
    time.sleep(2.0)
    front.kill()
    front.wait()
    front.stdout.close()
    said = render(tmp_path / "take", tmp_path / "out.mp4")
    assert "cut off" in said
    assert ", 0 different" in said
    assert (tmp_path / "out.mp4").stat().st_size > 0
    assert len(read_take(tmp_path / "take").hashes) > 20


@pytest.mark.soak
def test_what_a_take_needs_and_is_not_there_is_an_error_and_what_differs_is_named(
    client: WorkerHandle, tmp_path: Path
) -> None:
    record(client, tmp_path / "take", seconds=0.5, rate=10.0, changes=())
    log = tmp_path / "take" / "take.jsonl"
    text = log.read_text()
    log.write_text(text.replace('"model":"mini-image"', '"model":"mini-imagine"'))
    command = [sys.executable, "-m", "app", "render", "--take", str(tmp_path / "take"), str(tmp_path / "no.mp4")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "mini-imagine" in done.stderr
    assert not (tmp_path / "no.mp4").exists()
    log.write_text(text.replace('"transformers":"', '"transformers":"0.'))
    said = render(tmp_path / "take", tmp_path / "out")
    assert "frames may differ: transformers" in said
    assert ", 0 different" in said


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rate", [5.0, 60.0])
def test_thirty_seconds_with_twenty_changes_replay_twice(client: WorkerHandle, tmp_path: Path, rate: float) -> None:
    live = record(client, tmp_path / "take", seconds=30.0, rate=rate, changes=[*CHANGES, *CHANGES])
    for number in range(2):
        check_replay(tmp_path / "take", tmp_path / f"again{number}", live)
