"""fp8 on CUDA: each kernel equals plain tensor code, cuDNN's attention its emulation, graphs eager passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.video_loop import ChunkLoop, LoopSettings
from bench.video_shapes import VIDEO_SHAPES, build_codec, build_runtime, build_transformer
from cache.kv.store import E4M3
from pipelines.backends.table import BACKENDS, refusal_of
from pipelines.video.codecs.wan import fused_codec
from pipelines.video.wan import fp8_kernels as plain
from pipelines.video.wan.fp8_attention import Fp8Scales, PlainFp8Attention
from tests.fakes.wan_kernels import CASES, error_of

CUDA = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TINY = VIDEO_SHAPES["tiny"]


def needs(name: str) -> None:
    refusal = refusal_of(BACKENDS[name], "video", CUDA)
    if refusal is not None:
        pytest.skip(refusal.message)


def flat(found: Any) -> list[torch.Tensor]:
    return [found] if isinstance(found, torch.Tensor) else [x for part in found for x in flat(part)]


def inputs_of(name: str, dim: int, heads: int, tokens: int) -> tuple[Any, ...]:
    """Arguments for a function of fp8_kernels: three frames."""
    torch.manual_seed(0)

    def draw(*size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(size, device=CUDA).to(dtype)

    wide = torch.float32
    hidden, update = draw(1, 3, tokens, dim), draw(3 * tokens, dim)
    modulation = plain.Modulation(draw(1, 6, dim, dtype=wide), draw(1, 3, 6, dim))
    norm, mean = (draw(dim, dtype=wide), draw(dim, dtype=wide)), draw(dim, dtype=wide)
    scales = Fp8Scales.of(11.0, 9.0, 3.0, 3.0, draw(heads, dim // heads, dtype=wide))
    angles = draw(1, 3 * tokens, 1, dim // heads // 2, dtype=wide)
    norms = plain.HeadNorms(draw(dim), draw(dim), angles.cos(), angles.sin())
    outputs, sums = draw(3, tokens, heads, dim // heads).to(E4M3), draw(3, heads, tokens, 1, dtype=wide)
    given: dict[str, tuple[Any, ...]] = {
        "modulated_rows": (hidden, None, modulation, plain.SHIFT, mean, 1e-6),
        "modulated_rows, update": (hidden, update, modulation, plain.SHIFT_MLP, mean, 1e-6),
        "affine_rows": (hidden, update, modulation, norm, mean, 1e-6),
        "affine_rows, no norm": (hidden, update, modulation, None, mean, 1e-6),
        "residual": (hidden, update, modulation),
        "gelu_rows": (draw(40, 5 * dim), draw(5 * dim, dtype=wide)),
        "head_parts": (draw(1, 3 * tokens, 3 * dim), norms, heads, 1e-6, None),
        "head_parts, scaled": (draw(1, 3 * tokens, 3 * dim), norms, heads, 1e-6, scales),
        "join": (outputs, sums, scales.output_descale, scales.offset, torch.bfloat16),
        "join, one part": (outputs, None, scales.output_descale, scales.offset, torch.bfloat16),
    }
    return given[name]


NAMES = (
    "modulated_rows", "modulated_rows, update", "affine_rows", "affine_rows, no norm", "residual", "gelu_rows",
    "head_parts", "head_parts, scaled", "join", "join, one part",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dim", "heads"), [(1536, 12), (256, 4), (96, 2), (32, 2)])
def test_a_kernel_equals_plain_tensor_code(name: str, dim: int, heads: int) -> None:
    needs("fp8-products")
    from pipelines.video.wan import fp8_triton

    arguments, function = inputs_of(name, dim, heads, 21), name.split(",")[0]
    given, expected = (flat(getattr(module, function)(*arguments)) for module in (fp8_triton, plain))
    assert [(x.shape, x.dtype) for x in given] == [(x.shape, x.dtype) for x in expected]
    for a, b in zip(given, expected, strict=True):
        step = 2**-3 if a.dtype == E4M3 else 2**-7 if a.dtype == torch.bfloat16 else 1e-5  # one rounding apart
        differs = (a.float() - b.float()).abs()
        assert (differs <= b.float().abs() * step + 1e-3).all(), (name, differs.max())
        assert (differs > b.float().abs() * 1e-5 + 1e-6).float().mean() < 0.02, name


@pytest.mark.parametrize(("queries", "keys", "heads", "dim"), [(256, 768, 4, 64), (1560, 8192, 12, 128)])
def test_cudnn_attends_as_emulated(queries: int, keys: int, heads: int, dim: int) -> None:
    """Also over parts of the keys, whose results are rounded apart."""
    needs("fp8")
    from pipelines.video.wan.fp8_attention import CudnnFp8Attention
    from pipelines.video.wan.fp8_triton import join

    torch.manual_seed(1)
    tensors = [torch.randn(1, n, heads, dim, device=CUDA) for n in (queries, keys, keys)]
    offset = torch.randn(heads, dim, device=CUDA) / 32  # the sum is bfloat16: a larger one would hide what is compared
    scales = Fp8Scales.of(16.0, 16.0, 16.0, 64.0, offset)
    eight = [(x * 16).clamp(-448, 448).to(E4M3) for x in tensors]
    attend = CudnnFp8Attention(CUDA, join)
    given, emulated = attend(*eight, scales).float(), PlainFp8Attention()(*eight, scales).float()
    error = (given - emulated).norm() / (emulated - scales.offset).norm()
    assert error < 0.06, error  # both round their results to 2.6 %, and sum in another order
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = attend(*eight, scales)
    eight[0].view(torch.uint8).copy_(eight[0].flip(1).view(torch.uint8))
    graph.replay()
    assert torch.equal(captured, attend(*eight, scales))


@pytest.mark.parametrize("backend", ["fp8", "fp8-products"])
@pytest.mark.parametrize("chunk_frames", [1, 3])
def test_captured_passes_are_those_in_bfloat16(backend: str, chunk_frames: int) -> None:
    needs(backend)
    transformer, found = build_transformer(TINY, CUDA, torch.bfloat16), {}
    for name in (backend, "eager"):
        runtime = build_runtime(BACKENDS[name], transformer, build_codec("tiny", TINY, CUDA, torch.float32))
        torch.manual_seed(2)
        loop = ChunkLoop(transformer, TINY, LoopSettings(window_frames=6, chunk_frames=chunk_frames), runtime)
        torch.manual_seed(5)
        chunks = []
        for _ in range(12):
            chunks.append(loop.denoise().clone())
            loop.finish(chunks[-1])
        found[name] = torch.cat(chunks)
        assert loop.executor.graphs == (name != "eager")
    error = (found[backend] - found["eager"]).norm() / found["eager"].norm()
    assert 0 < error < 0.05, error  # as on the CPU: tests/unit/test_video_fp8.py


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_decoders_kernels_equal_plain_convolutions(name: str) -> None:
    if fused_codec(build_codec("stock", VIDEO_SHAPES["tiny"], CUDA, torch.bfloat16)) is None:
        pytest.skip("no fused decoder on this device")
    error = error_of(name, CUDA, torch.bfloat16)
    # Inputs, sums of frames, weights and results are rounded to 2^-9 each; decoders do so a dozen times, on both sides.
    assert error < (0.03 if name == "decoded" else 0.01), error


@pytest.mark.parametrize(("height", "width"), [(128, 256), (104, 184)])
def test_a_fused_decoder_shows_what_the_plain_one_does(height: int, width: int) -> None:
    """At sizes that tiles divide and do not, over the first chunk of a stream and later ones, then in a graph."""
    codec = build_codec("stock", VIDEO_SHAPES["wan-1.3b"], CUDA, torch.bfloat16)
    fused = fused_codec(codec)
    if fused is None:
        pytest.skip("no fused decoder on this device")
    decoders = [made.decoder(height=height, width=width) for made in (codec, fused)]
    assert decoders[0].memory.shapes == decoders[1].memory.shapes
    torch.manual_seed(3)
    for _ in range(3):
        latents = torch.randn(1, 16, 2, height // 8, width // 8, device=CUDA)
        one, other = (decoder.decode(latents) for decoder in decoders)
        assert (one - other).abs().mean() < 0.02 * one.std()  # both in bfloat16, through 30 convolutions
    graph = torch.cuda.CUDAGraph()
    state = decoders[1].snapshot(0)
    eager = decoders[1].run(latents, None, first=False).clone()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = decoders[1].run(latents, None, first=False)
    decoders[1].restore(0, state)
    graph.replay()
    assert torch.equal(captured, eager)
