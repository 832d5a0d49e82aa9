"""How passes of the video engine are executed: the table, its refusals, compiled equals eager, keys in parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.video_loop import ChunkLoop, LoopSettings
from bench.video_shapes import VIDEO_SHAPES, build_codec, build_transformer
from cache.kv.kernels import PLAIN_KERNELS, compiled_kernels
from pipelines.core.errors import ModelError
from pipelines.video.backends import VIDEO_BACKENDS, choose_backend
from pipelines.video.captured import CapturedCalls
from pipelines.video.codecs.frame_decoder import FrameDecoder
from pipelines.video.wan.attention_parts import best_parts, join, parts_of_keys
from pipelines.video.wan.blocks import AS_WRITTEN
from pipelines.video.wan.text_cache import TextKVCache
from pipelines.video.wan.transformer import CausalWanTransformer

SHAPE = VIDEO_SHAPES["tiny"]
CPU = torch.device("cpu")
H100_MULTIPROCESSORS = 132


@pytest.fixture(scope="module")
def transformer() -> CausalWanTransformer:
    return build_transformer(SHAPE, CPU, torch.float32)


def chunks(transformer: CausalWanTransformer, backend: str, count: int) -> torch.Tensor:
    """The same noise for every backend; torch.compile's tracing, without its code generation."""
    torch.manual_seed(2)
    loop = ChunkLoop(
        transformer, SHAPE, LoopSettings(window_frames=6), choose_backend(backend, transformer, compiler="eager")
    )
    out = []
    for _ in range(count):
        out.append(loop.denoise())
        loop.finish(out[-1])
    return torch.cat(out)


def test_compiled_passes_equal_eager_ones(transformer: CausalWanTransformer) -> None:
    torch._dynamo.reset()
    eager, compiled = chunks(transformer, "eager", 4), chunks(transformer, "compiled", 4)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-6)
    choose_backend("eager", transformer)
    assert transformer.halves is AS_WRITTEN


@pytest.mark.parametrize("codec", ["tiny", pytest.param("stock", marks=pytest.mark.soak)])
def test_a_compiled_decoder_equals_an_eager_one(codec: str) -> None:
    torch.manual_seed(4)
    latents = torch.randn(2, 1, 16, 3, 4, 6)
    frames = {}
    for name in ("eager", "compiled"):
        decoder = build_codec(codec, SHAPE, CPU, torch.float32).decoder(height=32, width=48)
        shown = FrameDecoder(decoder, VIDEO_BACKENDS[name], device=CPU, compiler="eager")
        frames[name] = [shown.decode(chunk) for chunk in latents]
        assert decoder.latents_done(0) == 6
    assert [f.shape for f in frames["eager"]] == [(1, 9, 32, 48, 3), (1, 12, 32, 48, 3)]
    for one, other in zip(frames["eager"], frames["compiled"], strict=True):
        assert (one.int() - other.int()).abs().max() <= 1


def test_auto_says_what_it_took(transformer: CausalWanTransformer) -> None:
    backend = choose_backend("auto", transformer)
    assert (backend.name, backend.reason) == ("eager", "eager: the model is not on a CUDA device")
    assert choose_backend("eager", transformer).reason == "eager as asked"
    assert backend.graphs == 0
    backend.invalidate()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fast", "no backend named 'fast'. Use auto, eager, compiled, cuda-graph, compiled-cuda-graph"),
        ("cuda-graph", "needs a CUDA device. Use auto, eager or compiled"),
        ("compiled-cuda-graph", "needs a CUDA device"),
    ],
)
def test_a_backend_that_cannot_be_is_refused(name: str, message: str, transformer: CausalWanTransformer) -> None:
    with pytest.raises(ModelError, match=message):
        choose_backend(name, transformer)


def test_graphs_need_a_cuda_device() -> None:
    with pytest.raises(ModelError, match="cannot run on the device cpu"):
        CapturedCalls(CPU)


def test_text_views_that_read_the_same_memory_have_one_signature(transformer: CausalWanTransformer) -> None:
    text = TextKVCache(transformer, rows=3, tokens=4)
    assert text.view([1, 2]).signature == text.view([1, 2]).signature
    assert text.view([0]).signature != text.view([1]).signature
    assert text.view([0, 2]).signature is None, "its index is made anew for each view"
    rows = torch.tensor([2, 0])
    assert text.view(rows).signature == text.view(rows).signature is not None


def test_compiled_kernels_give_what_plain_ones_do() -> None:
    torch.manual_seed(5)
    keys, values = torch.randn(2, 2, 6, 2, 16)[:, :, :], torch.randn(2, 6, 2, 16)
    cos, sin = torch.randn(2, 6, 1, 8), torch.randn(2, 6, 1, 8)
    index = torch.randperm(20)[:12].view(2, 6)
    results = []
    for kernels in (PLAIN_KERNELS, compiled_kernels("eager")):
        memory = torch.zeros(3, 20, 2, 16)
        kernels.write(keys[0], values, cos, sin, index, index + 0, *memory)
        kernels.rotate_into(memory[0, :5], memory[1, 3:8], cos[0, :5], sin[0, :5])
        kernels.rotate_into(memory[0, :6], memory[1, 3:9], cos[0], sin[0])
        results.append(memory)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("queries", "keys", "parts"),
    [(4680, 32760, 2), (4680, 18720, 2), (4680, 14040, 2), (4680, 512, 1), (4680, 32761, 1)],
)
def test_parts_fill_the_last_round_of_an_h100(queries: int, keys: int, parts: int) -> None:
    """12 heads. 444 blocks take 4 rounds; 888 half as long take 7, not 8. A prime number of keys has no parts."""
    numbers = queries * 12 * 128
    blocks = 12 * -(-queries // 128)
    assert best_parts(blocks=blocks, keys=keys, numbers=numbers, multiprocessors=H100_MULTIPROCESSORS) == parts


def test_few_keys_are_one_part_on_any_device() -> None:
    assert parts_of_keys(torch.empty(1, 4680, 12, 128, device="meta"), torch.empty(1, 512, 12, 128, device="meta")) == 1


def test_joined_parts_are_the_whole() -> None:
    torch.manual_seed(6)
    queries, keys, values = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 12, 8), torch.randn(2, 3, 12, 8)
    whole = F.scaled_dot_product_attention(queries, keys, values)
    scores = (queries @ keys.transpose(-1, -2) / 8**0.5).unflatten(-1, (4, 3))  # [B, H, N, parts, M / parts]
    sums = scores.logsumexp(-1).permute(0, 3, 1, 2)
    outputs = torch.einsum("bhnpm,bhpmd->bpnhd", scores.softmax(-1), values.unflatten(2, (4, 3)))
    torch.testing.assert_close(join(outputs, sums).transpose(1, 2), whole, rtol=0, atol=1e-6)
