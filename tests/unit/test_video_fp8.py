"""fp8 blocks on the CPU: quantisation, means, what is written where, who is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.video_loop import ChunkLoop, LoopSettings
from bench.video_shapes import VIDEO_SHAPES, build_codec, build_runtime, build_transformer
from cache.kv.policies import make_policy
from cache.kv.store import E4M3
from pipelines.backends.base import BackendRefusal
from pipelines.backends.fp8 import Fp8Backend, with_fp8_blocks
from pipelines.backends.table import BACKENDS, choose_backend
from pipelines.core.errors import ControlError, ModelError
from pipelines.video.model import VideoNetworks, VideoRuntime
from pipelines.video.options import chosen_storage
from pipelines.video.runtime import plain_runtime
from pipelines.video.wan.blocks import AS_WRITTEN, WanBlock
from pipelines.video.wan.fp8_attention import Fp8Scales, PlainFp8Attention
from pipelines.video.wan.fp8_blocks import Fp8AttentionBlock, Fp8Block, Fp8Recipe, fp8_blocks
from pipelines.video.wan.fp8_calibration import calibrate
from pipelines.video.wan.fp8_kernels import PLAIN_FP8_KERNELS, join
from pipelines.video.wan.fp8_products import product, quantise_rows, quantised_linear
from pipelines.video.wan.transformer import CausalWanTransformer

SHAPE = VIDEO_SHAPES["tiny"]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def transformer() -> CausalWanTransformer:
    return build_transformer(SHAPE, CPU, torch.bfloat16)


def recipe(*, attention: bool = True, plain_last: int = 1) -> Fp8Recipe:
    return Fp8Recipe(
        attention=PlainFp8Attention() if attention else None, kernels=PLAIN_FP8_KERNELS, plain_last=plain_last
    )


def runtime_of(transformer: CausalWanTransformer, chosen: Fp8Recipe | None) -> VideoRuntime:
    codec = build_codec("tiny", SHAPE, CPU, torch.float32)
    if chosen is None:
        return build_runtime(BACKENDS["eager"], transformer, codec)
    networks = VideoNetworks(transformer=transformer, codec=codec)
    return with_fp8_blocks(networks, plain_runtime(networks), chosen, AS_WRITTEN)


def test_rows_are_rounded_to_a_sixteenth() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 64) * torch.logspace(-3, 3, 5)[:, None]
    rows, scale = quantise_rows(x)
    assert (rows.dtype, rows.shape, scale.shape) == (E4M3, (15, 64), (15, 1))
    assert rows.float().abs().amax(1).eq(448).all(), "each row has its own scale"
    error = (rows.float() * scale - x.flatten(0, 1)).abs()
    assert (error <= x.flatten(0, 1).abs() * 2**-4 + scale * 2**-10).all()
    assert quantise_rows(torch.zeros(1, 8))[0].float().eq(0).all(), "no division by zero"


def test_a_mean_is_subtracted_exactly_and_makes_products_closer() -> None:
    torch.manual_seed(1)
    layers = [nn.Linear(64, 32), nn.Linear(64, 16)]
    x = 0.3 * torch.randn(40, 64) + 5 * torch.randn(64)
    exact = torch.cat([layer(x) for layer in layers], -1)

    def error(mean: torch.Tensor) -> float:
        linear = quantised_linear(layers, mean)
        given = product(*quantise_rows(x, mean), linear)
        return ((given - exact).norm() / (exact - exact.mean(0)).norm()).item()

    assert error(x.mean(0)) < 0.05 < 0.25 < error(torch.zeros(64))


def test_attention_over_parts_is_joined() -> None:
    torch.manual_seed(2)
    outputs, sums = torch.randn(3, 4, 2, 16).to(E4M3), torch.randn(3, 2, 4, 1)
    descale, offset = torch.full((1, 1, 1, 1), 0.5), torch.randn(2, 16)
    given = join(outputs, sums, descale, offset, torch.float32)
    weights = sums.squeeze(-1).permute(0, 2, 1).softmax(0)
    expected = torch.einsum("pnh,pnhd->nhd", weights, outputs.float()) * 0.5 + offset
    torch.testing.assert_close(given[0], expected, rtol=1e-6, atol=1e-6)
    whole = join(outputs, None, descale, offset, torch.float32)
    torch.testing.assert_close(whole, outputs.float() * 0.5 + offset, rtol=0, atol=0)


def test_plain_fp8_attention_is_attention() -> None:
    torch.manual_seed(3)
    queries, keys, values = (torch.randn(1, n, 2, 32) for n in (9, 40, 40))
    offset = 20 * torch.randn(2, 32)
    scales = Fp8Scales.of(40.0, 40.0, 40.0, 40.0, offset)
    eight = ((x * 40).clamp(-448, 448).to(E4M3) for x in (queries, keys, values))
    given = PlainFp8Attention()(*eight, scales).float()
    exact = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (queries, keys, values + offset)))
    error = (given - exact.transpose(1, 2)).norm() / (exact.transpose(1, 2) - offset).norm()
    assert error < 0.25  # e4m3 in four places at 2.6 % each, and the sum with the offset in bfloat16


def test_blocks_are_chosen_by_the_recipe(transformer: CausalWanTransformer) -> None:
    kinds = [type(block) for block in fp8_blocks(transformer, recipe())]
    assert kinds == [Fp8Block, Fp8AttentionBlock]
    assert [type(b) for b in fp8_blocks(transformer, recipe(attention=False))] == [Fp8Block, WanBlock]
    assert [type(b) for b in fp8_blocks(transformer, recipe(plain_last=0))] == [Fp8Block, Fp8Block]


def test_calibration_is_reproducible_and_leaves_no_trace(transformer: CausalWanTransformer) -> None:
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    torch.manual_seed(7)
    first = calibrate(transformer)
    torch.manual_seed(8)
    for a, b in zip(first, calibrate(transformer), strict=True):
        assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(a, b, strict=True))
    assert all(torch.equal(before[name], value) for name, value in transformer.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in transformer.modules())


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("chunk_frames", [1, 3])
def test_passes_are_those_in_bfloat16(transformer: CausalWanTransformer, attention: bool, chunk_frames: int) -> None:
    """Over a window that moves: latents near 1 after one chunk upon the other; random weights damp nothing."""
    settings, found = LoopSettings(window_frames=6, chunk_frames=chunk_frames), {}
    for name, chosen in (("fp8", recipe(attention=attention)), ("bfloat16", None)):
        torch.manual_seed(4)
        loop = ChunkLoop(transformer, SHAPE, settings, runtime_of(transformer, chosen))
        torch.manual_seed(5)
        chunks = []
        for _ in range(8):
            chunks.append(loop.denoise())
            loop.finish(chunks[-1])
        found[name] = torch.cat(chunks)
        assert loop.cache.storage == ("fp8" if attention and chosen is not None else "native")
    error = (found["fp8"] - found["bfloat16"]).norm() / found["bfloat16"].norm()
    assert 0 < error < 0.05, error


def test_values_leave_the_products_without_their_offset(transformer: CausalWanTransformer) -> None:
    block, means = fp8_blocks(transformer, recipe())[0], calibrate(transformer)[0]
    plain = transformer.blocks[0]
    assert isinstance(block, Fp8Block)
    assert isinstance(plain, WanBlock)
    layers = [plain.attn1.to_q, plain.attn1.to_k, plain.attn1.to_v]
    own, whole = block._weights.qkv, quantised_linear(layers, means.qkv)
    assert torch.equal(own.weight.float(), whole.weight.float())
    assert torch.equal(own.scale, whole.scale)
    values = slice(2 * plain.attn1.to_v.out_features, None)
    assert own.bias[values].eq(0).all()
    assert torch.equal(own.bias[: values.start], whole.bias[: values.start])
    assert block._scales is not None
    offset = plain.attn1.to_v.bias.float() + plain.attn1.to_v.weight.float() @ means.qkv
    assert torch.equal(block._scales.offset.flatten(), offset)
    down = quantised_linear([plain.ffn.net[2]], means.down)
    assert torch.equal(block._weights.down.weight.float(), down.weight.float())
    assert torch.equal(block._weights.down.bias, down.bias)


def test_only_bfloat16_is_quantised() -> None:
    with pytest.raises(ModelError, match=r"made from weights in bfloat16, not in float32\. Use --dtype bfloat16"):
        runtime_of(build_transformer(SHAPE, CPU, torch.float32), recipe())


@pytest.mark.parametrize(
    ("name", "capability", "frontend", "message"),
    [
        ("fp8", (9, 0), True, ""),
        ("fp8", (12, 0), True, ""),
        ("fp8", (8, 9), True, r"fp8 needs compute capability 9\.0, this device has 8\.9"),
        ("fp8", (9, 0), False, r"nvidia-cudnn-frontend is not installed.*pip install nvidia-cudnn-frontend"),
        ("fp8-products", (8, 9), False, ""),
        ("fp8-products", (8, 6), False, r"fp8-products needs compute capability 8\.9, this device has 8\.6"),
    ],
)
def test_a_device_without_fp8_is_refused(
    name: str, capability: tuple[int, int], frontend: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("importlib.util.find_spec", lambda module: object() if frontend or module == "triton" else None)
    if not message:
        assert choose_backend(name, "video", CUDA).backend is BACKENDS[name]
        return
    with pytest.raises(ModelError, match=message):
        choose_backend(name, "video", CUDA)


def test_the_cpu_is_refused() -> None:
    row = BACKENDS["fp8"]
    assert isinstance(row, Fp8Backend)
    assert isinstance(row.refusal("video", CPU), BackendRefusal)
    assert row.preference == 0, "only on request"


def test_the_storage_follows_from_backend_policy_and_device() -> None:
    window = make_policy("window", grid=(2, 3), window_frames=6)
    sink = make_policy("sink", grid=(2, 3), window_frames=6, sink_frames=2)
    assert chosen_storage("auto", "", window, CPU) == "native", "as recorded takes were made"
    assert chosen_storage("auto", "", window, CUDA) == "rotated"
    assert chosen_storage("auto", "", sink, CUDA) == "native"
    assert chosen_storage("auto", "fp8", sink, CUDA) == "fp8"
    assert chosen_storage("int8", "", window, CUDA) == "int8"
    with pytest.raises(ControlError, match="in the storage 'fp8', not 'native'"):
        chosen_storage("native", "fp8", window, CUDA)


@pytest.mark.parametrize(
    ("policy", "options", "why"),
    [
        ("adaptive-sink", {"window_frames": 6, "sink_frames": 2}, "compares the values of frames"),
        ("heavy-hitter", {}, "sums attention"),
        ("r1-kv", {}, "weighs tokens by attention"),
    ],
)
def test_a_policy_that_cannot_read_such_a_cache_is_refused(policy: str, options: dict[str, int], why: str) -> None:
    """When the engine opens: its core asks for the storage."""
    made = make_policy(policy, grid=(2, 3), **options)
    with pytest.raises(ControlError, match=rf"'{policy}' cannot run in fp8: it {why}.*fp8-products or compiled"):
        chosen_storage("auto", "fp8", made, CUDA)
    assert chosen_storage("auto", "", made, CPU) == "native"
