"""Owns one block of the Wan transformer: modulation, self-attention over a key/value view, cross-attention, MLP.

Everything before self-attention (`WanBlock.before`) and after it (`WanBlock.after`) is independent of the cache, the
layer's index and host state, so that each compiles once for all blocks, with norms, modulation, rotation and residuals
fused into their neighbours. Independent of timesteps, text encoding and cache policies.
Architecture: Wan 2.1 (Wan team 2025, section 4.2); names and shapes of the parameters are those of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from cache.rotary import Rotary
from pipelines.core.compiling import compiled

from .attention import PLAIN, AttentionBackend, Mask
from .text_cache import KeysValues, TextView


class KeyValueView(Protocol):
    """What one forward pass sees of a cache; `cache.kv.view.KVView` is one.

    query_rotation: (cos, sin), each [B | 1, N, 1, D/2] or [N, 1, D/2]: the rotation of this pass's queries.
    observes: whether `observe` must be called with this pass's queries.
    """

    @property
    def query_rotation(self) -> tuple[torch.Tensor, torch.Tensor]: ...

    @property
    def observes(self) -> bool: ...

    def observe(self, layer: int, queries: torch.Tensor, /) -> None:
        """Take rotated queries [B, N, heads, D], before the layer's `exchange`."""
        ...

    def exchange(self, layer: int, keys: torch.Tensor, values: torch.Tensor, /) -> KeysValues:
        """Take this pass's unrotated keys and its values [B, N, heads, D]; return all attended ones, keys rotated."""
        ...


class WanAttention(nn.Module):
    """Projections and norms of one attention layer. The norms of queries and keys span all heads."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = nn.RMSNorm(dim, eps=eps)
        self.norm_k = nn.RMSNorm(dim, eps=eps)

    def queries(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, N, dim] -> [B, N, heads, D]."""
        return self._split(self.norm_q(self.to_q(hidden)))

    def keys_values(self, hidden: torch.Tensor) -> KeysValues:
        """[B, N, dim] -> keys and values, each [B, N, heads, D]."""
        return self._split(self.norm_k(self.to_k(hidden))), self._split(self.to_v(hidden))

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, N, heads, D] -> [B, N, dim]."""
        out: torch.Tensor = self.to_out[0](attended.flatten(-2))
        return out

    def _split(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.reshape(*projected.shape[:-1], self.heads, -1)


class _UpProjection(nn.Module):
    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner_dim)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.is_cuda and hidden.dtype in (torch.float16, torch.bfloat16) and not torch.is_grad_enabled():
            return linear_gelu(hidden, self.proj.weight, self.proj.bias)
        return F.gelu(self.proj(hidden), approximate="tanh")


def linear_gelu(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Linear layer and GELU (tanh) in one kernel, on CUDA in 16 bits: cuBLASLt applies it before rounding.

    On other devices PyTorch's operator computes the exact GELU instead. It has no derivative.
    """
    flat = torch._addmm_activation(bias, hidden.flatten(0, -2), weight.t(), use_gelu=True)
    return flat.view(*hidden.shape[:-1], -1)


class FeedForward(nn.Module):
    """Linear, GELU (tanh), Linear; parameters net.0.proj and net.2."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([_UpProjection(dim, inner_dim), nn.Identity(), nn.Linear(inner_dim, dim)])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net[2](self.net[0](hidden))
        return out


class WanBlock(nn.Module):
    """x + gate SA(LN(x) (1 + scale) + shift); x + CA(LN(x)); x + gate MLP(LN(x) (1 + scale) + shift)."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, eps: float, cross_attn_norm: bool) -> None:
        super().__init__()
        self.eps = eps
        self.attn1 = WanAttention(dim, heads, eps)
        self.attn2 = WanAttention(dim, heads, eps)
        self.norm2: nn.Module = nn.LayerNorm(dim, eps=eps) if cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(dim, ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def before(
        self, hidden: torch.Tensor, time: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return rotated queries, unrotated keys, values: each [B, N, heads, D].

        hidden: [B, F, tokens of a frame, dim]; time: [B, F | 1, 6, dim], the projected time embedding.
        """
        shift, scale, _ = block_modulation(self.scale_shift_table, time)[:3]
        modulated = modulate(hidden, shift, scale, self.eps).flatten(1, 2)
        keys, values = self.attn1.keys_values(modulated)
        return rotary.rotate(self.attn1.queries(modulated), cos, sin), keys, values

    def after(
        self,
        hidden: torch.Tensor,
        attended: torch.Tensor,
        time: torch.Tensor,
        text: KeysValues,
        attention: AttentionBackend,
    ) -> torch.Tensor:
        """Return the block's output [B, F, n, dim] from its input and the result of self-attention [B, N, heads, D]."""
        _, _, gate, shift_mlp, scale_mlp, gate_mlp = block_modulation(self.scale_shift_table, time)
        hidden = gated_residual(hidden, self.attn1.output(attended).view_as(hidden), gate)
        hidden = hidden + self._cross_attention(affine_norm(self.norm2, hidden), text, attention)
        return gated_residual(hidden, self.ffn(modulate(hidden, shift_mlp, scale_mlp, self.eps)), gate_mlp)

    def forward(self, hidden: torch.Tensor, layer: int, shared: BlockContext) -> torch.Tensor:
        """Run the block: `before`, the cache and attention, `after`. See `Block`."""
        kv, attention, halves = shared.kv, shared.execution.attention, shared.execution.halves
        queries, own_keys, own_values = halves.before(self, hidden, shared.time, *kv.query_rotation, shared.rotary)
        if kv.observes:
            kv.observe(layer, queries)
        keys, values = kv.exchange(layer, own_keys, own_values)
        attended = attention(queries, keys, values, shared.mask)
        text = shared.text.exchange(layer, self.attn2.keys_values)
        return halves.after(self, hidden, attended, shared.time, text, attention)

    def _cross_attention(self, hidden: torch.Tensor, text: KeysValues, attention: AttentionBackend) -> torch.Tensor:
        keys, values = text
        if keys.dim() == 5:  # every frame has its own text
            queries = self.attn2.queries(hidden.flatten(0, 1))
            attended = attention(queries, keys.flatten(0, 1), values.flatten(0, 1))
        else:
            queries = self.attn2.queries(hidden.flatten(1, 2))
            attended = attention(queries, keys, values)
        return self.attn2.output(attended).view_as(hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockHalves:
    """Functions that execute `WanBlock.before` and `WanBlock.after`, called with the block and the method's arguments.

    One object serves all blocks: code compiled for one of them serves the others.
    """

    before: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    after: Callable[..., torch.Tensor]


def _before(block: WanBlock, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return block.before(*arguments)


def _after(block: WanBlock, *arguments: Any) -> torch.Tensor:
    return block.after(*arguments)


AS_WRITTEN = BlockHalves(before=_before, after=_after)
"""Neither half is compiled."""


def compiled_halves(compiler: str = "inductor") -> BlockHalves:
    """Return halves that are compiled at first use, once per batch shape for all blocks. compiler: a backend of
    torch.compile.
    """
    return BlockHalves(before=compiled(WanBlock.before, compiler), after=compiled(WanBlock.after, compiler))


class Block(Protocol):
    """What a transformer calls for each layer: a `WanBlock`, or another form of it.

    hidden: [B, F, tokens of a frame, dim], as the result. layer: its index.
    """

    def __call__(self, hidden: torch.Tensor, layer: int, shared: BlockContext) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockExecution:
    """How the blocks of a transformer compute: an argument of each pass, never state of the network.

    blocks: called in place of the network's own, one for each; empty: those.
    """

    attention: AttentionBackend = PLAIN
    halves: BlockHalves = AS_WRITTEN
    blocks: tuple[Block, ...] = ()


PLAIN_EXECUTION = BlockExecution()
"""PyTorch's attention, blocks not compiled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockContext:
    """What all blocks of one pass share.

    time: [B, F | 1, 6, dim], the projected time embedding. text, kv: the views of the text and of the past. mask: of
    self-attention, from its backend; None: everything attends to everything.
    """

    time: torch.Tensor
    text: TextView
    kv: KeyValueView
    rotary: Rotary
    execution: BlockExecution = PLAIN_EXECUTION
    mask: Mask | None = None


def block_modulation(table: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return shift, scale, gate of self-attention, then of the MLP: each [B, F | 1, 1, dim], one for each frame.

    table: [1, 6, dim]; time: [B, F | 1, 6, dim].
    """
    return torch.chunk(wide(table) + wide(time), 6, dim=2)


def modulate(hidden: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """LN(x) (1 + scale) + shift, computed in at least float32, returned in x's dtype. hidden: [B, F, n, dim]."""
    normed = F.layer_norm(wide(hidden), hidden.shape[-1:], eps=eps)
    return (normed * (1 + scale) + shift).to(hidden.dtype)


def affine_norm(norm: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Apply a LayerNorm with weights, in at least float32; the identity if the model has none."""
    if not isinstance(norm, nn.LayerNorm):
        return hidden
    x = wide(hidden)
    return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps).to(
        hidden.dtype
    )


def gated_residual(hidden: torch.Tensor, update: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x + gate u, computed in at least float32, returned in x's dtype."""
    return (wide(hidden) + wide(update) * gate).to(hidden.dtype)


def wide(x: torch.Tensor) -> torch.Tensor:
    """Convert to float32 anything of fewer bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
