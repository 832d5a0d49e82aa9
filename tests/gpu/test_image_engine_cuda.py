"""The image engine on CUDA: captured graphs equal eager execution, and a tick never synchronises after warm-up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipelines.backends.table import BACKENDS
from pipelines.core.controls import Control
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CONTROL = {"prompt": "a cat", "steps": 3, "guidance_mode": "onetime", "guidance_scale": 1.3, "strength": 0.7}


def _engine(backend: str) -> ImageEngine:
    from bench.shapes import SHAPES, build

    parts = build(SHAPES["tiny"], torch.device("cuda"), torch.float32)
    return ImageEngine(parts.model_with(BACKENDS[backend]))


def _run(engine: ImageEngine, count: int) -> list[Frame]:
    from bench.image_stream import moving_frames

    with engine.open(Control.of(CONTROL)) as stream:
        out: list[Frame] = []
        for picture in moving_frames(count, 64, 64):
            while not stream.push(picture):
                out += stream.pull()
            engine.tick()
        return out + stream.flush()


def test_graphs_equal_eager() -> None:
    eager, graphs = _run(_engine("eager"), 12), _run(_engine("cuda-graph"), 12)
    assert [f.source_seq for f in eager] == [f.source_seq for f in graphs] == list(range(12))
    for one, two in zip(eager, graphs, strict=True):
        assert np.abs(one.image.astype(int) - two.image.astype(int)).max() <= 1


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", ["eager", "cuda-graph"])
def test_a_warm_tick_neither_waits_nor_grows(backend: str, waiting_is_an_error: None) -> None:
    from bench.image_stream import moving_frames

    engine = _engine(backend)
    _run(engine, 12)
    _run(engine, 12)
    with engine.open(Control.of(CONTROL)) as stream:
        pictures = moving_frames(12, 64, 64)
        for picture in pictures[:6]:
            assert stream.push(picture)
            engine.tick()
            stream.pull()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.max_memory_reserved()
        torch.cuda.set_sync_debug_mode("error")
        for picture in pictures[6:]:
            assert stream.push(picture)
            engine.tick()
            stream.pull()
        torch.cuda.set_sync_debug_mode("default")
        assert torch.cuda.max_memory_reserved() == before


def _banked(engine: ImageEngine, count: int) -> list[Frame]:
    from bench.image_stream import moving_frames

    with engine.open(Control.of({**CONTROL, "bank": True})) as stream:
        out: list[Frame] = []
        for picture in moving_frames(count, 64, 64):
            assert stream.push(picture)
            engine.tick()
            out += stream.pull()
        return out + stream.flush()


def test_a_feature_bank_in_graphs_equals_eager_and_replays_to_the_same_bits() -> None:
    runs = [_banked(_engine(backend), 14) for backend in ("eager", "cuda-graph", "cuda-graph")]
    for one, two, three in zip(*runs, strict=True):
        assert np.abs(one.image.astype(int) - two.image.astype(int)).max() <= 1
        assert np.array_equal(two.image, three.image)


@pytest.mark.parametrize("backend", ["eager", "cuda-graph"])
def test_a_warm_tick_with_a_feature_bank_neither_waits_nor_grows(backend: str, waiting_is_an_error: None) -> None:
    from bench.image_stream import moving_frames

    engine = _engine(backend)
    with engine.open(Control.of({**CONTROL, "bank": True})) as stream:
        for number, picture in enumerate(moving_frames(24, 64, 64)):
            if number == 16:
                torch.cuda.synchronize()
                before = torch.cuda.max_memory_reserved()
                torch.cuda.set_sync_debug_mode("error")
            assert stream.push(picture)
            engine.tick()
            stream.pull()
        torch.cuda.set_sync_debug_mode("default")
        assert torch.cuda.max_memory_reserved() == before
