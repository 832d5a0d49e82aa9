"""Cards on a GPU: the allocator's peak, NVML's energy, and the contestants that exist there only."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from app.measure.machine import describe_machine
from app.measure.meters import energy_meter, peak_memory
from app.measure.subject import Begun
from bench.image_contest import ImageCase, ours, plain_loop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda", 0)
BEGUN = Begun(lambda text: None, 0.0)


def test_the_card_names_the_gpu_and_counts_its_memory() -> None:
    machine = describe_machine(DEVICE)
    assert machine.device == torch.cuda.get_device_name(DEVICE)
    assert machine.driver
    memory = peak_memory(DEVICE)
    before = memory.mib()
    block = torch.empty(2**26, dtype=torch.uint8, device=DEVICE)
    assert memory.mib() >= before + 63
    assert block.is_cuda


@pytest.mark.skipif(importlib.util.find_spec("pynvml") is None, reason="needs nvidia-ml-py")
def test_energy_grows_with_work() -> None:
    """500 products of 4096 x 4096 are 69 TFLOP: more than ten joules on any card."""
    meter = energy_meter(DEVICE)
    if meter.joules() is None:
        pytest.skip(meter.what)
    a = torch.randn(4096, 4096, device=DEVICE)
    meter.start()
    for _ in range(500):
        torch.mm(a, a)
    torch.cuda.synchronize()
    joules = meter.joules()
    assert joules is not None
    assert joules > 10


def test_plain_loop_and_graph_are_measured_alike() -> None:
    case = ImageCase(model="tiny", device="cuda", steps=2, warm_up_s=0.0)
    peer, engine = plain_loop(case, BEGUN), ours(case, "cuda-graph", BEGUN)
    assert peer.setup.counted == engine.setup.counted
    assert peer.setup.precision == engine.setup.precision == "float16"
    assert engine.setup.backend == "cuda-graph"
    segment = engine.measure(0.5)
    assert segment.frames > 10
    assert len(segment.latencies_ms) == segment.frames
    assert segment.peak_memory_mib > 0
    assert peer.measure(0.5).fps > 0
    engine.close()
