"""How passes of the video engine are executed: the table, its refusals, compiled equals eager, keys in parts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bench.video_loop import ChunkLoop, LoopSettings
from bench.video_shapes import VIDEO_SHAPES, build_codec, build_runtime, build_transformer
from cache.kv.kernels import PLAIN_KERNELS, compiled_kernels
from pipelines.backends.base import KINDS, BackendRefusal
from pipelines.backends.cuda_graph import GraphExecutor
from pipelines.backends.pytorch import PyTorchBackend
from pipelines.backends.table import BACKENDS, backend_table, choose_backend
from pipelines.core.errors import ModelError
from pipelines.core.execution import EagerExecutor
from pipelines.video.codecs.codec import VideoCodec
from pipelines.video.model import VideoRuntime
from pipelines.video.wan.attention_parts import best_parts, join, parts_of_keys
from pipelines.video.wan.text_cache import TextKVCache
from pipelines.video.wan.transformer import CausalWanTransformer

SHAPE = VIDEO_SHAPES["tiny"]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
H100_MULTIPROCESSORS = 132


@pytest.fixture(scope="module")
def transformer() -> CausalWanTransformer:
    return build_transformer(SHAPE, CPU, torch.float32)


def runtime_of(name: str, transformer: CausalWanTransformer, codec: VideoCodec | None = None) -> VideoRuntime:
    """Return a runtime with torch.compile's tracing but without code generation."""
    codec = codec or build_codec("tiny", SHAPE, CPU, torch.float32)
    return build_runtime(replace(BACKENDS[name], compiler="eager"), transformer, codec)  # type: ignore[call-arg]


def chunks(transformer: CausalWanTransformer, backend: str, count: int) -> torch.Tensor:
    """The same noise for every backend."""
    runtime = runtime_of(backend, transformer)
    torch.manual_seed(2)
    loop = ChunkLoop(transformer, SHAPE, LoopSettings(window_frames=6), runtime)
    out = []
    for _ in range(count):
        out.append(loop.denoise())
        loop.finish(out[-1])
    return torch.cat(out)


def test_compiled_passes_equal_eager_ones(transformer: CausalWanTransformer) -> None:
    torch._dynamo.reset()
    before = dict(vars(transformer))
    eager, compiled = chunks(transformer, "eager", 4), chunks(transformer, "compiled", 4)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-6)
    assert torch.equal(chunks(transformer, "eager", 4), eager)
    assert vars(transformer) == before, "a backend leaves nothing on the network"


@pytest.mark.parametrize("codec", ["tiny", pytest.param("stock", marks=pytest.mark.soak)])
def test_a_compiled_decoder_equals_an_eager_one(codec: str, transformer: CausalWanTransformer) -> None:
    torch.manual_seed(4)
    latents = torch.randn(2, 1, 16, 3, 4, 6)
    frames = {}
    for name in ("eager", "compiled"):
        runtime = runtime_of(name, transformer, build_codec(codec, SHAPE, CPU, torch.float32))
        shown = runtime.make_frame_decoder(EagerExecutor(), height=32, width=48)
        frames[name] = [shown.decode(chunk) for chunk in latents]
        assert shown.decoder.latents_done(0) == 6
    assert [f.shape for f in frames["eager"]] == [(1, 9, 32, 48, 3), (1, 12, 32, 48, 3)]
    for one, other in zip(frames["eager"], frames["compiled"], strict=True):
        assert (one.int() - other.int()).abs().max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_auto_says_what_it_took(kind: str) -> None:
    choice = choose_backend("auto", kind, CPU)
    reason = "eager: plans are switched off (ZOETROPE_PLANS=off); the model is not on a CUDA device"
    assert (choice.backend.name, choice.reason) == ("eager", reason)
    assert choose_backend("eager", kind, CPU).reason == "eager as requested"


def test_on_cuda_auto_takes_the_fastest_that_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    off = choose_backend("auto", "image", CUDA)
    assert (off.backend.name, off.why) == ("cuda-graph", "plans are switched off (ZOETROPE_PLANS=off)")
    monkeypatch.setenv("ZOETROPE_PLANS", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reason = "cuda-graph: Triton, which compiling needs, is not installed"
    assert choose_backend("auto", "video", CUDA).reason == reason
    assert choose_backend("auto", "image", CUDA).reason.endswith("Triton, which compiling needs, is not installed")
    with pytest.raises(ModelError, match=r"compiled needs Triton\. Install triton, or use cuda-graph or eager"):
        choose_backend("compiled", "video", CUDA)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert choose_backend("auto", "video", CUDA).reason == "compiled: the fastest measured"
    assert choose_backend("auto", "image", CUDA).backend.name == "compiled"


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_cpu_auto_takes_openvino_where_it_is_installed(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZOETROPE_PLANS", str(tmp_path))
    choice = choose_backend("auto", kind, CPU)
    assert (choice.backend.name, choice.reason) == ("openvino", "openvino: the fastest measured")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reason = "eager: OpenVINO is not installed; the model is not on a CUDA device"
    assert choose_backend("auto", kind, CPU).reason == reason
    with pytest.raises(ModelError, match=r'OpenVINO is not installed. Install it: pip install "openvino>='):
        choose_backend("openvino", "image", CPU)


def test_auto_says_why_each_better_backend_cannot_run() -> None:
    class Missing(PyTorchBackend):
        def refusal(self, kind: str, device: torch.device) -> BackendRefusal:
            return BackendRefusal(because="newrt is not installed", message="", remedy="")

    table = backend_table(*BACKENDS.values(), Missing(name="newrt", purpose="", preference=9))
    off = "plans are switched off (ZOETROPE_PLANS=off)"
    reason = f"eager: newrt is not installed; {off}; the model is not on a CUDA device"
    assert choose_backend("auto", "video", CPU, table).reason == reason


def test_an_eager_executor_keeps_nothing() -> None:
    executor, seen = EagerExecutor(), []
    for _ in range(3):
        executor.run("part", lambda: seen.append("part"))
    calls = executor.calls(warm_calls=1)
    given = torch.ones(2)
    assert calls("key", lambda x: x, given) is given
    executor.invalidate()
    assert (seen, executor.graphs) == (["part"] * 3, 0)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("video", "fast", "no backend named 'fast'. Use auto, eager, cuda-graph, compiled"),
        ("video", "cuda-graph", "needs a CUDA device. Use auto, eager or compiled"),
        ("video", "fp8", "needs a CUDA device"),
        (
            "image",
            "fast",
            "Use auto, eager, cuda-graph, compiled, tensorrt-rtx, tensorrt, openvino",
        ),
        ("image", "cuda-graph", "needs a CUDA device. Use auto or eager"),
        ("image", "fp8", "The backend fp8 does not run image models. Use auto or eager"),
        ("image", "compiled", "The backend compiled needs plans, which are switched off. Unset ZOETROPE_PLANS"),
        ("image", "openvino", "needs plans, which are switched off. Unset ZOETROPE_PLANS"),
    ],
)
def test_a_backend_that_cannot_be_is_refused(kind: str, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        choose_backend(name, kind, CPU)


@pytest.mark.parametrize(("page", "kind"), [("engine.md", "image"), ("video-engine.md", "video")])
def test_the_docs_have_the_table_s_names(page: str, kind: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    table = text.split("| backend |", 1)[1].split("\n\n", 1)[0]
    names = re.findall(r"^\| ([a-z0-9-]+) \|", table, re.MULTILINE)
    assert names == [name for name, row in BACKENDS.items() if kind in row.kinds]


def test_graphs_need_a_cuda_device() -> None:
    with pytest.raises(ModelError, match="cannot run on the device cpu"):
        GraphExecutor(CPU)


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
    """12 heads. 444 blocks take 4 rounds; 888 blocks of half the length take 7, not 8. A prime number of keys is not
    split."""
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
