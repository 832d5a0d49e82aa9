"""The video engine's passes on CUDA: graphs and compiled blocks equal eager ones, nothing synchronises, memory stays
flat."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from bench.video_loop import ChunkLoop, FrameOutput, LoopSettings
from bench.video_shapes import VIDEO_SHAPES, build_codec, build_runtime, build_transformer
from pipelines.backends.table import BACKENDS, refusal_of
from pipelines.video.wan.attention import ATTENTION_BACKENDS
from pipelines.video.wan.attention_parts import cudnn_in_parts
from pipelines.video.wan.blocks import linear_gelu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPE = VIDEO_SHAPES["tiny"]
CUDA = torch.device("cuda")
SETTINGS = LoopSettings(window_frames=6)


def make_loop(backend: str, dtype: torch.dtype = torch.float32, **settings: str) -> ChunkLoop:
    transformer = build_transformer(SHAPE, CUDA, dtype)
    runtime = build_runtime(BACKENDS[backend], transformer, build_codec("tiny", SHAPE, CUDA, dtype))
    torch.manual_seed(2)
    chosen = LoopSettings(window_frames=6, **settings)  # type: ignore[arg-type]
    return ChunkLoop(transformer, SHAPE, chosen, runtime)


def chunks(loop: ChunkLoop, count: int) -> torch.Tensor:
    """Return noise [count, C, F, h, w], which depends on the seed alone."""
    torch.manual_seed(5)
    out = []
    for _ in range(count):
        latents = loop.denoise()
        loop.finish(latents)
        out.append(latents[0].clone())
    return torch.stack(out)


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("storage", ["native", "lean", "int8", "rotated"])
def test_a_captured_pass_equals_an_eager_one(storage: str) -> None:
    """To the bit: the same kernels on the same values, over enough chunks for the ring to wrap."""
    captured = make_loop("cuda-graph", storage=storage)
    expected, given = chunks(make_loop("eager", storage=storage), 12), chunks(captured, 12)
    torch.testing.assert_close(given, expected, rtol=0, atol=0)
    graphs = captured.executor.graphs
    assert graphs == 1
    torch.testing.assert_close(chunks(captured, 4).shape, expected[:4].shape)
    assert captured.executor.graphs == graphs


def test_compiled_passes_equal_eager_ones() -> None:
    expected, given = chunks(make_loop("eager"), 8), chunks(make_loop("compiled"), 8)
    torch.testing.assert_close(given, expected, rtol=0, atol=2e-4)  # of latents near 1, after 8 chunks on each other


def test_half_precision_is_as_exact_compiled_as_eager() -> None:
    exact = chunks(make_loop("eager"), 3)
    errors = {}
    for backend in ("eager", "compiled"):
        errors[backend] = (chunks(make_loop(backend, torch.bfloat16), 3) - exact).abs().mean().item()
    assert errors["compiled"] <= 1.2 * errors["eager"], errors


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_a_warm_chunk_neither_waits_nor_grows(backend: str, waiting_is_an_error: None) -> None:
    refusal = refusal_of(BACKENDS[backend], "video", CUDA)
    if refusal is not None:
        pytest.skip(refusal.message)
    loop = make_loop(backend, torch.bfloat16)
    chunks(loop, 10)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    reserved, allocated = torch.cuda.max_memory_reserved(), torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(6):
        loop.chunk()
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_reserved() == reserved
    assert torch.cuda.memory_allocated() == allocated


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("codec", ["tiny", "stock"])
def test_frames_of_a_captured_decoder_equal_eager_ones(codec: str, overlapped: bool) -> None:
    frames = {}
    for backend in ("eager", "cuda-graph"):
        loop = make_loop("eager")
        transformer = build_transformer(SHAPE, CUDA, torch.float32)
        runtime = build_runtime(BACKENDS[backend], transformer, build_codec(codec, SHAPE, CUDA, torch.float32))
        decoder = runtime.make_frame_decoder(runtime.make_executor(), height=32, width=48)
        output = FrameOutput(decoder, CUDA, overlapped=overlapped)
        shown = []
        for latents in chunks(loop, 6):
            sent = output.send(latents[None])
            output.wait()
            shown.append(sent.clone())
        frames[backend] = torch.cat(shown, 1)
    assert frames["eager"].shape == (1, 4 * 18 - 3, 32, 48, 3)
    assert (frames["eager"].int() - frames["cuda-graph"].int()).abs().max() <= 1


def _attention_inputs(queries: int, keys: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    sizes = ((1, queries, 12, 128), (1, keys, 12, 128), (1, keys, 12, 128))
    return tuple(torch.randn(size, device=CUDA, dtype=torch.bfloat16) for size in sizes)


def _error(given: torch.Tensor, exact: torch.Tensor) -> float:
    return ((given.float() - exact).norm() / exact.norm()).item()


def _exact(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    first = (x.float().transpose(1, 2) for x in (queries, keys, values))
    return F.scaled_dot_product_attention(*first).transpose(1, 2)


def test_attention_backends_agree() -> None:
    inputs = _attention_inputs(1560, 4680)
    exact, errors = _exact(*inputs), {}
    for name, backend in ATTENTION_BACKENDS.items():
        if backend.refusal(CUDA, torch.bfloat16, 128) is None:
            errors[name] = _error(backend(*inputs), exact)
    assert {"cudnn", "cudnn-parts", "flash", "efficient", "math", "flex"} <= errors.keys()
    assert max(errors.values()) < 1e-2, errors


@pytest.mark.parametrize("parts", [2, 3, 5, 8])
def test_parts_of_the_keys_are_joined_to_the_whole(parts: int) -> None:
    inputs = _attention_inputs(200, 1200)
    exact = _exact(*inputs)
    whole = _error(ATTENTION_BACKENDS["cudnn"](*inputs), exact)
    error = _error(cudnn_in_parts(*inputs, parts), exact)
    assert error < 1.5 * whole, (error, whole)


def test_gelu_in_the_product_is_gelu_after_it() -> None:
    torch.manual_seed(3)
    hidden, weight = torch.randn(2, 40, 64, device=CUDA), torch.randn(96, 64, device=CUDA) / 8
    bias = torch.randn(96, device=CUDA)
    exact = F.gelu(F.linear(hidden, weight, bias), approximate="tanh")
    narrow = [x.bfloat16() for x in (hidden, weight, bias)]
    apart = F.gelu(F.linear(*narrow), approximate="tanh")
    assert _error(linear_gelu(*narrow), exact) <= 1.1 * _error(apart, exact)
