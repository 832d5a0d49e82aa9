"""The async client against a real server: streams, changes, lost connections, refusals, and the example program."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from app.client import ZoetropeClient
from app.client.errors import (
    GoneError,
    RefusedControlError,
    ServerBusyError,
    UnauthorisedClientError,
    UnreachableError,
    server_error,
)
from pipelines.core.types import Picture
from tests.fakes.api_server import ApiServer, api_server
from tests.fakes.clips import make_clip, play
from tests.fakes.stream_server import noise, wait_until, worker_client

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with worker_client(max_sessions=2) as worker, api_server(worker, tmp_path_factory.mktemp("data")) as made:
        yield made


def run(work: Coroutine[Any, Any, T]) -> T:
    async def in_time() -> T:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(in_time())


def grey(value: int) -> Picture:
    return np.full((24, 32, 3), value, np.uint8)


def test_pictures_come_back_with_their_numbers_and_times(server: ApiServer) -> None:
    async def work() -> None:
        async with ZoetropeClient(server.url) as client, client.stream(picture_format="rgb") as stream:
            assert stream.ready is not None
            assert (stream.ready.info.width, stream.ready.info.height) == (32, 24)
            sent = noise(1)
            number = await stream.send(sent)
            frame = await anext(stream)
            assert (frame.image == sent).all()
            assert frame.source_seq == number
            assert frame.latency_ms is not None
            assert 0 < frame.server_ms < frame.latency_ms < 10_000

    run(work())
    assert server.table.sessions == ()


def test_a_prompt_alone_gives_frames_and_the_newest_wins(server: ApiServer) -> None:
    async def work() -> None:
        async with ZoetropeClient(server.url) as client, client.stream("a cat", prompt_only=True) as stream:
            numbers = []
            async for frame in stream:
                assert frame.source_seq is None
                assert frame.latency_ms is None
                numbers.append(frame.number)
                await asyncio.sleep(0.2)  # slower than 24 frames a second
                if len(numbers) == 3:
                    break
            assert numbers[0] + 2 < numbers[1] < numbers[2]

    run(work())


def test_changes_are_answered_or_refused_and_nothing_else_happens(server: ApiServer) -> None:
    async def work() -> None:
        async with ZoetropeClient(server.url) as client, client.stream(strength=0.3) as stream:
            await stream.control(strength=0.4, prompt="a dog")
            with pytest.raises(RefusedControlError, match="strength cannot be 7"):
                await stream.control(strength=7.0)
            with pytest.raises(RefusedControlError, match="no control named 'loudness'"):
                await stream.control(loudness=1)
            view = await client.read_session(stream.session)
            assert view.controls["strength"] == 0.4
            assert view.controls["prompt"] == [{"text": "a dog", "weight": 1.0}]
            await stream.set_source(prompt_only=True)
            assert (await anext(stream)).source_seq is None

    run(work())


def test_a_lost_connection_comes_back_to_the_same_session(server: ApiServer) -> None:
    async def work() -> None:
        async with ZoetropeClient(server.url) as client, client.stream() as stream:
            await stream.control(strength=0.7)
            assert (abs((await stream.process(grey(50))).image.astype(int) - 50) <= 2).all()
            assert stream._socket is not None
            stream._socket.transport.abort()
            assert (abs((await stream.process(grey(90))).image.astype(int) - 90) <= 2).all()
            assert stream.reconnects == 1
            assert stream.ready is not None
            assert stream.ready.controls["strength"] == 0.7

    run(work())


def test_a_session_that_is_closed_elsewhere_ends_the_stream_with_its_reason(server: ApiServer) -> None:
    async def work() -> None:
        async with ZoetropeClient(server.url) as client, client.stream() as stream:
            await client.close_session(stream.session)
            with pytest.raises(GoneError):
                await anext(stream)
            with pytest.raises(GoneError):
                await stream.send(grey(1))

    run(work())


def test_busy_is_told_at_once(server: ApiServer) -> None:
    async def work() -> None:
        async with ZoetropeClient(server.url) as client, client.stream(), client.stream():
            began_s = time.monotonic()
            with pytest.raises(ServerBusyError, match="all 2 sessions") as refused:
                async with client.stream():
                    raise AssertionError("three of two")
            assert time.monotonic() - began_s < 1
            assert refused.value.retry_after_s == 5

    run(work())


def test_no_server_is_told_at_once() -> None:
    async def work() -> None:
        async with ZoetropeClient("http://127.0.0.1:9") as client:
            with pytest.raises(UnreachableError, match="does not respond"):
                await client.ready()

    run(work())


def test_one_picture_models_and_refusals(server: ApiServer) -> None:
    async def work() -> None:
        async with ZoetropeClient(server.url) as client:
            assert await client.ready()
            assert {"identity", "mini-image"} <= {model.name for model in await client.models()}
            assert (await client.generate("a cat")).shape == (24, 32, 3)
            made = await client.generate("a cat", picture=grey(120), strength=0.5)
            assert (abs(made.astype(int) - 120) <= 2).all()
            with pytest.raises(RefusedControlError, match="strength"):
                await client.generate("a cat", strength=-1)

    run(work())
    wait_until(lambda: server.table.sessions == ())


def test_codes_have_their_errors() -> None:
    assert isinstance(server_error("unauthorised", "no"), UnauthorisedClientError)
    assert isinstance(server_error("unknown_job", "no"), GoneError)
    assert server_error("something new", "no").code == "something new"


def test_the_example_program_takes_a_video_through_the_stream(server: ApiServer, tmp_path: Path) -> None:
    source, target = make_clip(tmp_path / "in.mp4", frames=12, sound=""), tmp_path / "out.mp4"
    command = [sys.executable, "examples/stream_a_video.py", server.url, str(source), str(target), "a robot"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert play(target).indices == play(source).indices == list(range(39, 27, -1))  # `play` expects inverted ones
    assert len((ROOT / "examples" / "stream_a_video.py").read_text().splitlines()) <= 25
