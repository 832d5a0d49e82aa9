"""Every rule of the Wan transformer that is easy to get wrong matters: breaking one makes a parity test fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from cache.rotary import Rotary
from pipelines.video.wan import attention, transformer
from pipelines.video.wan import blocks as wan_blocks
from pipelines.video.wan.blocks import WanAttention, WanBlock
from pipelines.video.wan.transformer import CausalWanTransformer, ConditionEmbedder
from tests.parity import wan_pair
from tests.parity.wan_pair import PROMPT_TOKENS, GrowingView, Inputs, blockwise, one_forward, our_model, stock_model

TOLERANCE = 2e-5
Mutate = Callable[[pytest.MonkeyPatch], None]


def _head_norms(patch: pytest.MonkeyPatch) -> None:
    """Queries and keys are normalised head by head."""

    def normed(projected: torch.Tensor, weight: torch.Tensor, heads: int) -> torch.Tensor:
        split = projected.unflatten(-1, (heads, -1))
        return F.rms_norm(split, split.shape[-1:], eps=1e-6) * weight.view(heads, -1)

    def queries(self: WanAttention, hidden: torch.Tensor) -> torch.Tensor:
        return normed(self.to_q(hidden), self.norm_q.weight, self.heads)

    def keys_values(self: WanAttention, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = self.to_v(hidden).unflatten(-1, (self.heads, -1))
        return normed(self.to_k(hidden), self.norm_k.weight, self.heads), values

    patch.setattr(WanAttention, "queries", queries)
    patch.setattr(WanAttention, "keys_values", keys_values)


def _time(change: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> Mutate:
    """change(embedding, projection) alters the inputs of the head and the blocks."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        original = ConditionEmbedder.time
        patch.setattr(
            ConditionEmbedder, "time", lambda self, timesteps, added: change(*original(self, timesteps, added))
        )

    return mutate


def _timesteps(change: Callable[[torch.Tensor], torch.Tensor]) -> Mutate:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        original = ConditionEmbedder.time
        patch.setattr(
            ConditionEmbedder, "time", lambda self, timesteps, added: original(self, change(timesteps), added)
        )

    return mutate


def _text(change: Callable[[torch.Tensor], torch.Tensor]) -> Mutate:
    """change(hidden) alters the text after its MLP: [B, L, dim]."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        original = CausalWanTransformer.embed_text
        patch.setattr(CausalWanTransformer, "embed_text", lambda self, embeddings: change(original(self, embeddings)))

    return mutate


def _padding_zero_after_mlp(hidden: torch.Tensor) -> torch.Tensor:
    hidden = hidden.clone()
    hidden[:, PROMPT_TOKENS:] = 0
    return hidden


def _half_pairs(patch: pytest.MonkeyPatch) -> None:
    """Rotary pairs are the two halves of a head."""

    def rotate(self: Rotary, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), -1)

    patch.setattr(Rotary, "rotate", rotate)


def _equal_thirds(patch: pytest.MonkeyPatch) -> None:
    """A head of 32 splits 10/10/12, not 12/10/10."""
    original = Rotary.__init__

    def init(self: Rotary, head_dim: int, theta: float = 10000.0) -> None:
        original(self, head_dim, theta)
        time, row, column = self.pairs
        self.pairs = (row, column, time)

    patch.setattr(Rotary, "__init__", init)


def _sinusoid(change: Callable[[torch.Tensor], torch.Tensor]) -> Mutate:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        original = transformer.time_sinusoid
        patch.setattr(transformer, "time_sinusoid", lambda timesteps, dim: change(original(timesteps, dim)))

    return mutate


def _swap_halves(sinusoid: torch.Tensor) -> torch.Tensor:
    return sinusoid.roll(sinusoid.shape[-1] // 2, -1)


def _modulation(order: tuple[int, ...]) -> Mutate:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        original = wan_blocks.block_modulation

        def reordered(table: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, ...]:
            parts = original(table, time)
            return tuple(parts[i] for i in order)

        patch.setattr(wan_blocks, "block_modulation", reordered)

    return mutate


def _channel_first_output(patch: pytest.MonkeyPatch) -> None:
    def unpatchify(tokens: torch.Tensor, grid: tuple[int, int], sizes: tuple[int, int, int]) -> torch.Tensor:
        cut = tokens.reshape(*tokens.shape[:2], *grid, -1, *sizes[1:])
        return cut.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)

    patch.setattr(transformer, "unpatchify", unpatchify)


def _channel_last_input(patch: pytest.MonkeyPatch) -> None:
    original = transformer.patchify

    def patchify(latents: torch.Tensor, sizes: tuple[int, int, int]) -> torch.Tensor:
        patches = original(latents, sizes)
        return patches.unflatten(-1, (latents.shape[1], -1)).transpose(-1, -2).flatten(-2)

    patch.setattr(transformer, "patchify", patchify)


def _columns_before_rows(patch: pytest.MonkeyPatch) -> None:
    original = CausalWanTransformer.full_window
    patch.setattr(
        CausalWanTransformer, "full_window", lambda self, frames, grid, *rest: original(self, frames, grid[::-1], *rest)
    )


def _no_cross_norm(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wan_blocks, "affine_norm", lambda norm, hidden: hidden)


def _gated_cross_attention(patch: pytest.MonkeyPatch) -> None:
    original = WanBlock._cross_attention
    patch.setattr(WanBlock, "_cross_attention", lambda self, *rest: original(self, *rest) * 1.01)


def _exact_gelu(patch: pytest.MonkeyPatch) -> None:
    original = F.gelu
    patch.setattr(F, "gelu", lambda x, approximate="none": original(x))


RULES: dict[str, Mutate] = {
    "q and k norms span all heads": _head_norms,
    "the head is modulated by e, not by its projection": _time(lambda e, six: (six[:, :, 0], six)),
    "the head's e has not passed SiLU": _time(lambda e, six: (F.silu(e), six)),
    "padded text rows are seen": _text(lambda hidden: hidden[:, :PROMPT_TOKENS]),
    "padded text rows pass the MLP": _text(_padding_zero_after_mlp),
    "rotary pairs are interleaved": _half_pairs,
    "a head of 32 splits 12/10/10": _equal_thirds,
    "rows come before columns": _columns_before_rows,
    "the output's channel is last": _channel_first_output,
    "the input's channel is first": _channel_last_input,
    "t is of each frame": _timesteps(lambda t: t[:, :1].expand_as(t)),
    "t can be fractional": _timesteps(torch.round),
    "cosines come first": _sinusoid(_swap_halves),
    "shift, scale, gate": _modulation((1, 0, 2, 3, 4, 5)),
    "self-attention's, then the MLP's": _modulation((3, 4, 5, 0, 1, 2)),
    "cross-attention has its own norm": _no_cross_norm,
    "cross-attention has no gate": _gated_cross_attention,
    "GELU is the tanh one": _exact_gelu,
}


def _full_window() -> float:
    inputs, stock = Inputs(), stock_model()
    return float((inputs.ours(our_model(stock)) - inputs.stock(stock)).abs().max())


def test_unchanged_the_transformers_agree() -> None:
    assert _full_window() <= TOLERANCE


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if rule == "GELU is the tanh one":  # only ours shall change
        inputs, stock = Inputs(), stock_model()
        theirs = inputs.stock(stock)
        RULES[rule](monkeypatch)
        assert (inputs.ours(our_model(stock)) - theirs).abs().max() > 5 * TOLERANCE
        return
    RULES[rule](monkeypatch)
    assert _full_window() > 50 * TOLERANCE


def _places_start_again(patch: pytest.MonkeyPatch) -> None:
    """Every chunk has position 0."""
    patch.setattr(GrowingView, "query_rotation", property(lambda self: self.rotation(0, self._chunks[-1])))


def _first_pass_stays(patch: pytest.MonkeyPatch) -> None:
    """The noisier first pass of a chunk is not overwritten for later chunks."""
    original = GrowingView.exchange

    def exchange(
        self: GrowingView, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stored = self._keys[layer][-1], self._values[layer][-1]
        seen = original(self, layer, keys, values)
        if stored[0].numel():
            self._keys[layer][-1], self._values[layer][-1] = stored
        return seen

    patch.setattr(GrowingView, "exchange", exchange)


def _own_chunk_unseen(patch: pytest.MonkeyPatch) -> None:
    """The window ends before the current chunk's last frame."""
    original = GrowingView.exchange

    def exchange(
        self: GrowingView, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        all_keys, all_values = original(self, layer, keys, values)
        return all_keys[:, :-6], all_values[:, :-6]

    patch.setattr(GrowingView, "exchange", exchange)


def _frame_causal(patch: pytest.MonkeyPatch) -> None:
    """The mask is per frame, not per chunk: attention within a chunk is not bidirectional."""
    patch.setattr(wan_pair, "block_causal", lambda frames, chunk: attention.block_causal(frames, 1))


BLOCKWISE: dict[str, Mutate] = {
    "positions go on from chunk to chunk": _places_start_again,
    "the last pass of a chunk is what stays": _first_pass_stays,
    "the window includes the current chunk": _own_chunk_unseen,
    "attention inside of a chunk is bidirectional": _frame_causal,
}


@pytest.mark.parametrize("rule", BLOCKWISE)
def test_a_broken_rule_of_the_past_is_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, inputs = our_model(stock_model()), Inputs(frames=6)
    assert (blockwise(ours, inputs, (3, 3)) - one_forward(ours, inputs, 3)).abs().max() <= TOLERANCE
    BLOCKWISE[rule](monkeypatch)
    assert (blockwise(ours, inputs, (3, 3)) - one_forward(ours, inputs, 3)).abs().max() > 50 * TOLERANCE
