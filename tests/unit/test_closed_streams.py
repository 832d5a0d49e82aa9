"""What closed streams leave behind: nothing, without waiting for the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from pipelines.image.engine import ImageEngine
from pipelines.video.stream import VideoStream
from tests.fakes.image_model import cheap_model, frames
from tests.fakes.video_engine import KINDS, run_chunks, small_engine


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("kind", KINDS)
def test_of_videos(kind: str) -> None:
    engine = small_engine(KINDS[kind])
    stream = engine.open()
    assert isinstance(stream, VideoStream)
    run_chunks(stream, engine, 2)
    stream.close()
    left = weakref.ref(stream)
    del stream
    assert left() is None


def test_of_images() -> None:
    engine = ImageEngine(cheap_model())
    stream = engine.open()
    for frame in frames(4):
        assert stream.push(frame)
        engine.tick()
        stream.pull()
    stream.close()
    left = weakref.ref(stream)
    del stream
    assert left() is None
