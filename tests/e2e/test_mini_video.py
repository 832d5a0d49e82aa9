"""The bundled video model as users run it: arrow keys on the page move the picture, a prompt is rendered to a file.

With ZOETROPE_SCREENSHOTS=1 the screenshot goes to docs/images/, otherwise to a temporary folder.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.media.video_reader import VideoReader
from bench.motion import transitions
from bench.video_options import CLASSIFIER
from bench.video_quality import FRAME_RATE, classify
from tests.fakes.live_process import LiveProcess, live_process
from train.classifier import load_classifier
from train.vocabulary import SUBJECTS
from train.vocabulary_world import PLACES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REPOSITORY = Path(__file__).parents[2]
FULL_SPEED_PX = 1.5
WATCHED = 24
WATCH = f"""(async () => {{
  const canvas = document.querySelector('.zt-picture'), shown = [];
  for (let last = canvas.dataset.number; shown.length < {WATCHED}; ) {{
    await new Promise(requestAnimationFrame);
    if (canvas.dataset.number === last) continue;
    last = canvas.dataset.number;
    shown.push([Number(last), canvas.toDataURL()]);
  }}
  return shown;
}})()"""


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveProcess]:
    with live_process("--model", "mini-video", "--device", "cpu", "--data", str(tmp_path)) as live:
        yield live


def camera_speed(shown: list[tuple[int, str]]) -> float:
    """Return the median speed of the background to the right in pixels per frame. pictures: with their numbers."""
    pictures = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB") for _, url in shown]
    frames = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
    steps = torch.tensor([after - before for (before, _), (after, _) in pairwise(shown)])
    moved = transitions(frames[None], exact=True).background[0, :, 0]
    return float((moved / steps).median())


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_arrow_keys_on_the_page_move_the_picture(live: LiveProcess, tmp_path: Path) -> None:
    pytest.importorskip("websockets", reason="the browser is driven over websockets: pip install '.[test]'")
    from tests.e2e.browser import browse

    keep = os.environ.get("ZOETROPE_SCREENSHOTS") == "1"
    picture = (REPOSITORY / "docs/images" if keep else tmp_path) / "live-world.png"
    with browse(str(CHROMIUM), live.url) as page:
        page.screen(1360, 860)
        page.until("document.querySelector('.zt-stage')?.dataset.acts === ''", 60)
        page.say("a penguin in the forest, standing still")
        page.click("#zt-start")
        page.until("Number(document.querySelector('.zt-picture').dataset.number) > 30", 60)
        speed = {"none": camera_speed(page.evaluate(WATCH))}
        for name, code in (("ArrowRight", 39), ("ArrowLeft", 37)):
            key = {"key": name, "code": name, "windowsVirtualKeyCode": code}
            page.call("Input.dispatchKeyEvent", type="keyDown", **key)
            page.evaluate(WATCH)  # until the next chunk the picture stands
            speed[name] = camera_speed(page.evaluate(WATCH))
            if name == "ArrowRight":
                page.screenshot(picture)
            page.call("Input.dispatchKeyEvent", type="keyUp", **key)
        assert page.console == []
    assert abs(speed["none"]) < 0.3, speed
    assert speed["ArrowRight"] < -0.5 * FULL_SPEED_PX, speed
    assert speed["ArrowLeft"] > 0.5 * FULL_SPEED_PX, speed


def test_a_prompt_becomes_a_file_that_shows_it(tmp_path: Path) -> None:
    file = tmp_path / "out.mp4"
    command = ["render", "--model", "mini-video", "--device", "cpu", "--prompt-only", "--seconds", "2", "--seed", "1"]
    prompt = ("--prompt", "a ghost in the desert, bouncing")
    done = subprocess.run(
        [sys.executable, "-m", "app", *command, *prompt, str(file)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    frames = np.stack([frame.image for frame in VideoReader(file).frames()])
    assert frames.shape == (2 * FRAME_RATE, 128, 128, 3)
    judge = load_classifier(REPOSITORY / CLASSIFIER)
    pictures = torch.from_numpy(frames[4::8]).permute(0, 3, 1, 2).float() / 255
    subject, place, _ = classify(judge, pictures).mode(0).values.tolist()
    assert SUBJECTS[subject - 1].name == "ghost"
    assert PLACES[place - 1].name == "desert"
