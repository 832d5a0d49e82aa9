"""Examples in the docs run as printed: the client on `websockets`, the example program, the curl commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from app.guard.rules import GuardOptions
from tests.fakes.api_server import ApiServer, api_server
from tests.fakes.clips import make_clip
from tests.fakes.stream_server import worker_client

REPOSITORY = Path(__file__).parents[2]
GUARD = GuardOptions(port=1, hosts=frozenset())
DOCUMENTS = ("README.md", "docs/api.md", "docs/api-http.md")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with worker_client() as worker, api_server(worker, tmp_path_factory.mktemp("data"), guard=GUARD) as made:
        yield made


def blocks(document: str, language: str) -> list[str]:
    """Return the document's code blocks."""
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_plain_client_runs_as_printed(server: ApiServer, tmp_path: Path) -> None:
    clients = [block for name in DOCUMENTS for block in blocks(name, "python") if "websockets.connect" in block]
    assert clients
    Image.fromarray(np.full((48, 64, 3), 120, np.uint8)).save(tmp_path / "photo.jpg")
    for client in clients:
        assert len([line for line in client.splitlines() if line.strip()]) == 20
        (tmp_path / "client.py").write_text(client, encoding="utf-8")
        run([sys.executable, "client.py", server.url.removeprefix("http://"), "photo.jpg"], tmp_path)
        answers = sorted(tmp_path.glob("answer-*.jpg"))
        assert len(answers) == 10
        for answer in answers:
            with Image.open(answer) as image:
                assert image.size == (32, 24)
            answer.unlink()


def test_the_example_program_runs(server: ApiServer, tmp_path: Path) -> None:
    make_clip(tmp_path / "in.mp4", frames=10)
    example = REPOSITORY / "examples" / "stream_a_video.py"
    body = [line for line in example.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(body) - body.index("async def main(url: str, source: str, target: str, prompt: str) -> None:") <= 15
    run(
        [sys.executable, str(example), server.url, "in.mp4", "out.mp4", "a robot"], tmp_path, PYTHONPATH=str(REPOSITORY)
    )
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert len(list(video.decode(video=0))) == 10


def test_every_curl_command_works_as_printed(server: ApiServer, tmp_path: Path) -> None:
    """In document order, in one shell; variables that the text introduces are set from the responses."""
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine: apt-get install curl")
    Image.fromarray(np.full((48, 64, 3), 120, np.uint8)).save(tmp_path / "photo.jpg")
    make_clip(tmp_path / "camera.mp4", frames=5)
    names = {"Z": server.url}
    commands = [
        line
        for block in blocks("docs/api-http.md", "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("curl")
    ]
    assert len(commands) >= 11
    for command in commands:
        bare = command.partition("  #")[0]
        told = run(
            ["bash", "-ec", bare.replace("curl -s", "curl -sS --fail-with-body --retry 8 --retry-all-errors")],
            tmp_path,
            **names,
        )
        try:
            answer = json.loads(told)
        except json.JSONDecodeError:
            continue
        if "token" in answer:
            names |= {"ID": answer["id"], "TOKEN": answer["token"], "MJPEG_URL": answer["mjpeg_url"]}
        elif "file_url" in answer and "state" in answer:
            names["JOB"] = answer["id"]
    for name in ("cat.png", "sketch.jpg"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (32, 24)
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert video.streams.video[0].frames != 1
