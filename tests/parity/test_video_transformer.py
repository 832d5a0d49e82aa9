"""Our causal Wan transformer equals diffusers' WanTransformer3DModel; run chunk by chunk it equals one masked pass.

float32 on random weights: 2e-5. Of that, up to 1.5e-5 is diffusers' time sinusoid, which is in float32 where ours and
the published networks' are in float64; with a float64 sinusoid in both the difference is a third of that or less.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from pipelines.core.errors import ModelLayoutError
from pipelines.video.wan.attention import PLAIN
from pipelines.video.wan.blocks import WanBlock
from pipelines.video.wan.config import WanConfig
from pipelines.video.wan.text_cache import PlainText, TextKVCache
from pipelines.video.wan.transformer import CausalWanTransformer, time_sinusoid
from tests.fakes.tiny_video_model import random_actions
from tests.parity.conftest import Report
from tests.parity.plain_video import act
from tests.parity.wan_pair import (
    PROMPT_TOKENS,
    TEXT_TOKENS,
    TINY,
    GrowingView,
    Inputs,
    blockwise,
    one_forward,
    over_the_cache,
)
from tests.parity.wan_pair import our_model as ours_of
from tests.parity.wan_pair import stock_model as stock_of

TOLERANCE = 2e-5
WAN_1_3B: dict[str, Any] = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
WAN_14B: dict[str, Any] = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
WAN_22_5B: dict[str, Any] = {
    "num_attention_heads": 24,
    "ffn_dim": 14336,
    "num_layers": 30,
    "in_channels": 48,
    "out_channels": 48,
}


class Sinusoid64(nn.Module):
    """diffusers' Timesteps, in float64 up to its result."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self._dim = dim

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        return time_sinusoid(timesteps[None], self._dim)[0].float()


@pytest.fixture(scope="module")
def stock() -> WanTransformer3DModel:
    return stock_of()


@pytest.fixture
def ours(stock: WanTransformer3DModel) -> CausalWanTransformer:
    return ours_of(stock)


@pytest.mark.parametrize(
    "changes",
    [{}, {"cross_attn_norm": False}, {"patch_size": (1, 1, 2)}, {"in_channels": 9}, {"attention_head_dim": 16}],
    ids=["plain", "no cross norm", "patch 1x2", "more channels in", "heads of 16"],
)
def test_names_shapes_and_loading_are_those_of_diffusers(changes: dict[str, Any]) -> None:
    stock = stock_of(**changes)
    ours = CausalWanTransformer(WanConfig.from_diffusers(stock.config))
    assert _shapes(ours) == _shapes(stock)
    assert ours.load_state_dict(stock.state_dict(), strict=True) == stock.load_state_dict(
        ours.state_dict(), strict=True
    )
    assert not list(ours.buffers())


@pytest.mark.parametrize("sizes", [WAN_1_3B, WAN_14B, WAN_22_5B], ids=["1.3B", "14B", "2.2 5B"])
def test_names_and_shapes_at_published_sizes(sizes: dict[str, Any]) -> None:
    with torch.device("meta"):
        stock = WanTransformer3DModel(**sizes)
        ours = CausalWanTransformer(WanConfig.from_diffusers(stock.config))
    assert _shapes(ours) == _shapes(stock)


def test_image_to_video_variants_are_refused() -> None:
    stock = WanTransformer3DModel(**TINY, image_dim=20, added_kv_proj_dim=64)
    with pytest.raises(ModelLayoutError, match=r"image encoder \(image_dim = 20\)"):
        WanConfig.from_diffusers(stock.config)
    with pytest.raises(ModelLayoutError, match=r"image-to-video transformer.*text-to-video"):
        CausalWanTransformer(WanConfig.from_diffusers(TINY)).load_state_dict(stock.state_dict(), strict=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", (2, 2, 2)),
        ("attention_head_dim", 7),
        ("num_layers", 0),
        ("freq_dim", 31),
        ("qk_norm", "rms_norm"),
    ],
)
def test_sizes_that_cannot_be_run_are_refused(name: str, value: object) -> None:
    with pytest.raises(ModelLayoutError, match=name):
        WanConfig.from_diffusers({**TINY, name: value})


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, {}),
        ({"cross_attn_norm": False}, {"frames": 3}),
        ({"patch_size": (1, 1, 2)}, {"height": 3, "width": 8}),
        ({"attention_head_dim": 16}, {"frames": 1, "batch": 1}),
        ({"attention_head_dim": 24, "num_attention_heads": 3}, {"height": 6, "width": 2}),
    ],
    ids=["plain", "no cross norm", "patch 1x2", "one frame", "heads of 24"],
)
def test_full_window_is_diffusers_with_a_timestep_for_each_frame(
    changes: dict[str, Any], sizes: dict[str, int], report: Report
) -> None:
    stock, inputs = stock_of(**changes), Inputs(**sizes)
    ours = ours_of(stock)
    label = f"video transformer {changes} {sizes}"
    assert report(label, [inputs.ours(ours) - inputs.stock(stock)]) <= TOLERANCE
    stock.condition_embedder.timesteps_proj = Sinusoid64(32)
    assert report(f"{label}, float64 sinusoid", [inputs.ours(ours) - inputs.stock(stock)]) <= 5e-6


def test_actions_are_diffusers_with_the_embedding_added_by_a_hook(report: Report) -> None:
    stock, inputs = stock_of(), Inputs()
    ours = ours_of(stock)
    plain, embedder = inputs.ours(ours), random_actions(ours.config.dim)
    actions = torch.rand((2, 5, 5), generator=torch.Generator().manual_seed(4)) * 2 - 1
    ours.add_actions(embedder)
    assert torch.equal(inputs.ours(ours), plain), "not told of any"
    assert torch.equal(inputs.ours(ours, actions=torch.zeros(2, 5, 5)), plain), "none adds exactly 0"
    act(stock, embedder.linear_1.weight, embedder.linear_2.weight)(actions)
    given, theirs = inputs.ours(ours, actions=actions), inputs.stock(stock)
    assert report("video transformer with actions", [given - theirs]) <= TOLERANCE
    stock.condition_embedder.timesteps_proj = Sinusoid64(32)
    assert report("video transformer with actions, float64 sinusoid", [given - inputs.stock(stock)]) <= 5e-6
    assert (given - plain).abs().max() > 0.1
    moved = inputs.ours(ours, actions=actions.roll(1, dims=1))
    assert (moved - theirs).abs().max() > 0.1, "each frame has its own"


def test_actions_of_a_model_that_takes_none(ours: CausalWanTransformer) -> None:
    with pytest.raises(AssertionError, match="takes no actions"):
        Inputs().ours(ours, actions=torch.zeros(2, 5, 5))


def test_full_window_with_one_timestep(
    stock: WanTransformer3DModel, ours: CausalWanTransformer, report: Report
) -> None:
    inputs = Inputs()
    inputs.timesteps = inputs.timesteps[:, :1]
    theirs = stock(inputs.latents, inputs.timesteps[:, 0], inputs.embeddings, return_dict=False)[0]
    assert report("video transformer, one timestep for all frames", [inputs.ours(ours) - theirs]) <= TOLERANCE


def test_bfloat16_is_as_close_to_float32_as_diffusers_is(stock: WanTransformer3DModel, report: Report) -> None:
    """The same parts stay in float32 (time MLP, modulation, affine norms), so rounding costs no more."""
    inputs = Inputs()
    exact, ours, narrow = inputs.stock(stock), ours_of(stock), stock_of()
    ours.set_precision(torch.bfloat16)
    for name, parameter in narrow.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if ours.keeps_float32(name) else torch.bfloat16)
    inputs.latents, inputs.embeddings = inputs.latents.bfloat16(), inputs.embeddings.bfloat16()
    assert ours.dtype == torch.bfloat16
    mine = inputs.ours(ours)
    assert mine.dtype == torch.bfloat16
    theirs_off = (inputs.stock(narrow) - exact).abs().mean()
    report("video transformer, bfloat16 against float32", [mine - exact])
    assert (mine - exact).abs().mean() <= 1.1 * theirs_off


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_blockwise_over_a_growing_view_is_one_block_causal_forward(
    chunk: int, ours: CausalWanTransformer, report: Report
) -> None:
    """The second pass of a chunk overwrites its cells, so that nothing of the first, noisier one remains."""
    inputs = Inputs(frames=7)
    chunks = tuple(min(chunk, 7 - start) for start in range(0, 7, chunk))
    difference = blockwise(ours, inputs, chunks) - one_forward(ours, inputs, chunk)
    assert report(f"video transformer, chunks {chunks} = one forward", [difference]) <= TOLERANCE


def test_blockwise_over_the_cache_is_one_block_causal_forward(ours: CausalWanTransformer, report: Report) -> None:
    inputs = Inputs(frames=6)
    difference = over_the_cache(ours, inputs, 2) - one_forward(ours, inputs, 2)
    assert report("video transformer, chunks of 2 over the cache = one forward", [difference]) <= TOLERANCE


def test_passes_of_a_chunk_do_not_lengthen_the_past(ours: CausalWanTransformer) -> None:
    inputs, view = Inputs(frames=3), GrowingView(ours, (2, 3))
    view.begin(3)
    for _ in range(5):
        ours(inputs.latents, inputs.timesteps, inputs.text(ours), view)
        assert view.tokens == 18
    assert view.writes == 5 * ours.layers


def test_a_view_that_observes_gets_the_rotated_queries_before_the_keys(ours: CausalWanTransformer) -> None:
    calls: list[str] = []

    class Observing(GrowingView):
        observes = True

        def observe(self, layer: int, queries: torch.Tensor) -> None:
            assert queries.shape == (2, 18, 2, 32)
            calls.append(f"queries {layer}")

        def exchange(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            calls.append(f"keys {layer}")
            return super().exchange(layer, keys, values)

    inputs, view = Inputs(frames=3), Observing(ours, (2, 3))
    view.begin(3)
    ours(inputs.latents, inputs.timesteps, inputs.text(ours), view)
    assert calls == ["queries 0", "keys 0", "queries 1", "keys 1"]


def test_a_cached_text_is_the_plain_text(ours: CausalWanTransformer) -> None:
    inputs, cache = Inputs(), TextKVCache(ours, rows=4, tokens=TEXT_TOKENS)
    plain = inputs.ours(ours)
    for rows in ([1, 2], [3, 0]):  # read where they stand; gathered
        for entry, row in enumerate(rows):
            cache.write(row, inputs.embeddings[entry, :PROMPT_TOKENS])
        torch.testing.assert_close(ours(inputs.latents, inputs.timesteps, cache.view(rows)), plain, rtol=0, atol=1e-6)


def test_a_text_for_each_frame(ours: CausalWanTransformer) -> None:
    inputs, cache = Inputs(batch=1, frames=2), TextKVCache(ours, rows=2, tokens=TEXT_TOKENS)
    other = -inputs.embeddings[0]
    cache.write(0, inputs.embeddings[0])
    cache.write(1, other)
    one, two = (ours(inputs.latents, inputs.timesteps, cache.view(torch.tensor(rows))) for rows in ([[0, 0]], [[1, 1]]))
    mixed = ours(inputs.latents, inputs.timesteps, cache.view(torch.tensor([[0, 1]])))
    torch.testing.assert_close(one, inputs.ours(ours), rtol=0, atol=1e-6)
    assert min((mixed - one).abs().max(), (mixed - two).abs().max()) > 1e-2
    alone = [ours(inputs.latents[:, :, i : i + 1], inputs.timesteps[:, i : i + 1], cache.view([i])) for i in (0, 1)]
    apart = PLAIN.frame_mask(torch.eye(2, dtype=torch.bool), 6)
    lonely = ours(inputs.latents, inputs.timesteps, cache.view(torch.tensor([[0, 1]])), mask=apart)
    torch.testing.assert_close(lonely, torch.cat(alone, 2), rtol=0, atol=2e-6)


@pytest.mark.parametrize("shift", [3, 5000])
def test_only_relative_positions_count(shift: int, ours: CausalWanTransformer) -> None:
    """Far beyond the 1024 positions of the published tables too."""
    inputs = Inputs().double()
    ours.set_precision(torch.float64)
    here = inputs.ours(ours)
    moved = inputs.ours(ours, positions=torch.arange(5) + shift)
    turned = inputs.ours(ours, phase=0.7)
    torch.testing.assert_close(moved, here, rtol=0, atol=1e-9)
    torch.testing.assert_close(turned, here, rtol=0, atol=1e-9)
    apart = inputs.ours(ours, positions=torch.tensor([0, 1, 2, 3, 9]))
    assert (apart - here).abs().max() > 1e-3
    half = inputs.ours(ours, phase=torch.tensor([0, 0, 0, 0.5, 0.5]))
    assert (half - here).abs().max() > 1e-3


def test_forward_never_asks_for_a_value_and_keeps_nothing(ours: CausalWanTransformer) -> None:
    """On fake tensors any `.item()` or branch on data raises."""
    inputs = Inputs()
    before = {name: dict(vars(module)) for name, module in ours.named_modules()}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        latents, timesteps = mode.from_tensor(inputs.latents), mode.from_tensor(inputs.timesteps)
        text = PlainText(ours, mode.from_tensor(inputs.embeddings))
        assert ours(latents, timesteps, text).shape == inputs.latents.shape
    assert {name: dict(vars(module)) for name, module in ours.named_modules()} == before


@pytest.mark.parametrize("cached", [False, True])
def test_forward_is_one_graph(cached: bool, ours: CausalWanTransformer) -> None:
    """Traced whole, without a break, over a text cache; the traced graph gives the same values."""
    inputs, text = Inputs(frames=2), TextKVCache(ours, rows=2, tokens=TEXT_TOKENS)
    for row in (0, 1):
        text.write(row, inputs.embeddings[row])
    view = GrowingView(ours, (2, 3))
    view.begin(2)
    arguments = (inputs.latents, inputs.timesteps, text.view([0, 1]), *([view] if cached else []))
    torch._dynamo.reset()
    traced = torch.compile(ours, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(traced(*arguments), ours(*arguments), rtol=0, atol=1e-6)


def test_what_is_around_attention_compiles_once_for_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, inputs = ours_of(stock_of(num_layers=4)), Inputs(frames=3)
    plain, before, after = inputs.ours(ours), CompileCounter(), CompileCounter()
    torch._dynamo.reset()
    for name, counter in (("before", before), ("after", after)):
        compiled = torch.compile(getattr(WanBlock, name), backend=counter, fullgraph=True, dynamic=False)
        monkeypatch.setattr(WanBlock, name, compiled)
    torch.testing.assert_close(inputs.ours(ours), plain, rtol=0, atol=1e-6)
    assert (before.frame_count, after.frame_count) == (1, 1)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}
