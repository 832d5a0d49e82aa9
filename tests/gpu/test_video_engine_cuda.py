"""The video engine's ticks on CUDA: nothing synchronises, memory stays flat, pictures equal those of the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipelines.backends.table import BACKENDS
from pipelines.core.controls import Control
from pipelines.video.engine import VideoEngine
from pipelines.video.options import VideoOptions
from pipelines.video.stream import VideoStream
from tests.fakes.video_engine import KINDS, acting_engine, small_engine, small_model_on, video_frames

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


def cuda_engine(kind: str, backend: str = "eager", *, acts: bool = False) -> VideoEngine:
    model = small_model_on(CUDA, KINDS[kind], acts=acts, make_runtime=BACKENDS[backend].video, attention="math")
    return VideoEngine(model, VideoOptions(max_streams=1))


def ticks(engine: VideoEngine, stream: VideoStream, count: int, *, inputs: bool) -> None:
    supply = video_frames(40)
    for number in range(count):
        if inputs:
            for frame in supply[number % 8 : number % 8 + 12]:
                stream.push(frame)
        else:
            stream.generate(stream.info.frames_per_chunk)
        engine.tick()


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("inputs", [False, True], ids=["prompt", "camera"])
@pytest.mark.parametrize("kind", KINDS)
def test_warm_ticks_neither_wait_nor_grow(kind: str, inputs: bool, waiting_is_an_error: None) -> None:
    engine = cuda_engine(kind)
    stream = engine.open(Control(seed=3))
    for _ in range(20):
        ticks(engine, stream, 3, inputs=inputs)
        torch.cuda.synchronize()
        stream.pull()
    reserved = torch.cuda.memory_reserved()
    for _ in range(6):
        torch.cuda.set_sync_debug_mode("error")
        ticks(engine, stream, 3, inputs=inputs)
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        stream.pull()
    assert torch.cuda.memory_reserved() == reserved
    engine.core.cache.check_integrity()


@pytest.mark.parametrize("backend", ["eager", "cuda-graph"])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_those_of_the_cpu(kind: str, backend: str) -> None:
    shown = []
    for engine in (small_engine(KINDS[kind], max_streams=1), cuda_engine(kind, backend)):
        stream = engine.open(Control.of({"prompt": "a cat", "seed": 5}))
        images = []
        for _ in range(8):
            while not stream.generate(stream.info.frames_per_chunk):
                engine.tick()
                images += stream.pull()
        images += stream.flush()
        shown.append(np.stack([frame.image for frame in images]).astype(int))
    assert shown[0].shape == shown[1].shape
    assert np.abs(shown[0] - shown[1]).max() <= 2


@pytest.mark.parametrize("backend", ["eager", "cuda-graph"])
@pytest.mark.parametrize("kind", KINDS)
def test_actions_change_from_chunk_to_chunk_as_on_the_cpu(kind: str, backend: str) -> None:
    """A graph captured with one action is replayed with another."""
    shown = []
    for engine in (acting_engine(KINDS[kind], max_streams=1), cuda_engine(kind, backend, acts=True)):
        stream = engine.open(Control.of({"prompt": "a cat", "seed": 5}))
        images = []
        for number in range(20):
            stream.apply(Control(camera_x=(number % 3) - 1.0, push_y=0.5 * (number % 2)))
            while not stream.generate(stream.info.frames_per_chunk):
                engine.tick()
                images += stream.pull()
            while stream._assembler.next_full:  # born with what was just applied
                engine.tick()
                images += stream.pull()
        images += stream.flush()
        shown.append(np.stack([frame.image for frame in images]).astype(int))
    assert (engine.core.executor.graphs > 0) == (backend == "cuda-graph")
    assert shown[0].shape == shown[1].shape
    assert np.abs(shown[0] - shown[1]).max() <= 2
