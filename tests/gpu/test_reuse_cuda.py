"""Reuse with ticks side by side, captured in CUDA graphs, against the eager network on the same device."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.backends.cuda_graph import GraphExecutor
from pipelines.core.controls import Control
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.image.model import ImageModel
from pipelines.image.state import ImageCore
from tests.unit.test_stream_reuse import frame, psnr, scene, windows_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def on_gpu(*, lanes: int, captured: bool) -> ImageModel:
    model = windows_model(device=torch.device("cuda"))
    make = (lambda: GraphExecutor(torch.device("cuda"))) if captured else model.runtime.make_executor
    return replace(model, runtime=replace(model.runtime, lanes=lanes, make_executor=make))


@pytest.fixture(autouse=True)
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams compute windows here too."""
    monkeypatch.setattr(ImageCore, "on_cuda", False)


def played(engine: ImageEngine, pictures: list[np.ndarray], reuse: str, steps: int) -> list[np.ndarray]:
    control = {"prompt": "a cat", "strength": 0.5, "steps": steps, "reuse": reuse}
    with engine.open(Control.of(control)) as stream:
        out: list[Frame] = []
        for seq, picture in enumerate(pictures):
            assert stream.push(frame(picture, seq))
            engine.tick()
            out += stream.pull()
        out += stream.flush()
    return [f.image for f in out]


@pytest.mark.parametrize("steps", [1, 2])
def test_lanes_and_graphs_change_nothing(steps: int) -> None:
    pictures = [scene((2 * i) % 40) for i in range(40)]
    plain = ImageEngine(on_gpu(lanes=2, captured=False))
    graphs = ImageEngine(on_gpu(lanes=2, captured=True))
    wanted = played(plain, pictures, "balanced", steps)
    for _ in range(3):
        got = played(graphs, pictures, "balanced", steps)
        assert psnr(wanted, got) > 50
    assert psnr(played(plain, pictures, "off", steps), got) > 30
    assert graphs.core.lanes.graphs > 4


def test_no_memory_grows_while_a_stream_reuses() -> None:
    engine = ImageEngine(on_gpu(lanes=2, captured=True))
    pictures = [scene((2 * i) % 40) for i in range(60)]
    for _ in range(2):
        played(engine, pictures, "balanced", 2)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    played(engine, pictures, "balanced", 2)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
