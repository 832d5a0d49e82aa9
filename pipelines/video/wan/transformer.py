"""Owns the causal video denoiser: latents, timesteps, text and a view of the past in, velocity out.

The parameters have the names and shapes of diffusers' WanTransformer3DModel, so published weights load unchanged.
`forward` keeps no state, does not synchronise and branches on shapes only: it can be compiled, and captured in a CUDA
graph.
Independent of schedules, text encoding and cache policies. Architecture: Wan 2.1 (Wan team 2025, section 4.2); one
timestep for each latent frame: Yin et al. 2024 (CausVid), section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cache.kv.recall import Recall
from cache.rotary import Rotary

from .actions import ActionEmbedder
from .attention import Mask
from .blocks import PLAIN_EXECUTION, BlockContext, BlockExecution, KeyValueView, WanBlock, modulate, wide
from .config import WanConfig, refuse_image_weights
from .text_cache import KeysValues, TextView

_KEPT_IN_FLOAT32 = ("time_embedder", "scale_shift_table", "norm2", "action_embedder")


class FullWindow:
    """The view without a cache: all frames of the pass attend to each other, as far as the mask allows."""

    observes = False

    def __init__(self, rotary: Rotary, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """cos, sin: [N, 1, D/2]."""
        self._rotary = rotary
        self.query_rotation = (cos, sin)

    def observe(self, layer: int, queries: torch.Tensor) -> None:
        """Nothing to do: no cache."""

    def exchange(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> KeysValues:
        """Return the pass's own keys, rotated, and values."""
        return self._rotary.rotate(keys, *self.query_rotation), values


class _LinearPair(nn.Module):
    """Two linear layers with an activation between them, named as diffusers' embedders."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, out_features)
        self.linear_2 = nn.Linear(out_features, out_features)


class ConditionEmbedder(nn.Module):
    """Timesteps and text, each through its MLP."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.time_embedder = _LinearPair(config.freq_dim, config.dim)
        self.time_proj = nn.Linear(config.dim, 6 * config.dim)
        self.text_embedder = _LinearPair(config.text_dim, config.dim)

    def time(self, timesteps: torch.Tensor, added: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, F] -> the embedding [B, F, dim] for the head, and its projection [B, F, 6, dim] for the blocks.

        added: [B, F, dim], added to the embedding before that is rounded and projected.
        """
        mlp = self.time_embedder
        sinusoid = time_sinusoid(timesteps, self.freq_dim).to(mlp.linear_1.weight.dtype)
        embedding = mlp.linear_2(F.silu(mlp.linear_1(sinusoid)))
        embedding = (embedding if added is None else embedding + added).to(self.time_proj.weight.dtype)
        return embedding, self.time_proj(F.silu(embedding)).unflatten(-1, (6, -1))

    def text(self, embeddings: torch.Tensor) -> torch.Tensor:
        """[B, L, text_dim] -> [B, L, dim], padding rows included."""
        mlp = self.text_embedder
        hidden: torch.Tensor = mlp.linear_2(F.gelu(mlp.linear_1(embeddings), approximate="tanh"))
        return hidden


class CausalWanTransformer(nn.Module):
    """Wan 2.1's video transformer with a timestep for each latent frame and an external KV cache."""

    def __init__(self, config: WanConfig, *, action_embedder: ActionEmbedder | None = None) -> None:
        """action_embedder: for models that take actions; its weights are in `state_dict` under that name."""
        super().__init__()
        self.config = config
        self.rotary = Rotary(config.attention_head_dim)
        self.patch_embedding = nn.Conv3d(
            config.in_channels, config.dim, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList(
            WanBlock(config.dim, config.num_attention_heads, config.ffn_dim, config.eps, config.cross_attn_norm)
            for _ in range(config.num_layers)
        )
        self.proj_out = nn.Linear(config.dim, config.out_channels * math.prod(config.patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.action_embedder = action_embedder

    def add_actions(self, embedder: ActionEmbedder) -> None:
        """Add an action embedder to a transformer that was made without, for training."""
        assert self.action_embedder is None, "the transformer takes actions already"
        self.action_embedder = embedder

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.config.num_layers

    @property
    def heads(self) -> int:
        """Heads of each attention."""
        return self.config.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.config.attention_head_dim

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of latents, keys and values."""
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.patch_embedding.weight.device

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the (rows, columns) of tokens of a latent frame of height × width, multiples of the patch."""
        _, rows, columns = self.config.patch_size
        assert height % rows == 0, f"latent height {height} is not a multiple of {rows}"
        assert width % columns == 0, f"latent width {width} is not a multiple of {columns}"
        return height // rows, width // columns

    def set_precision(self, dtype: torch.dtype) -> None:
        """Convert the weights to dtype, those selected by `keeps_float32` to at least float32, as diffusers does."""
        minimum = torch.promote_types(dtype, torch.float32)
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(minimum if self.keeps_float32(name) else dtype)

    @staticmethod
    def keeps_float32(name: str) -> bool:
        """Whether the parameter stays in float32 if the others have fewer bits."""
        return any(part in _KEPT_IN_FLOAT32 for part in name.split("."))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; raises ModelLayoutError for weights of an image-to-video variant with an image encoder."""
        refuse_image_weights(state_dict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def embed_text(self, embeddings: torch.Tensor) -> torch.Tensor:
        """[B, L, text_dim] -> [B, L, dim]; see `text_cache.TextProjector`."""
        return self.condition_embedder.text(embeddings.to(self.dtype))

    def text_keys_values(self, layer: int, hidden: torch.Tensor) -> KeysValues:
        """[B, L, dim] -> that layer's cross-attention keys and values [B, L, heads, D]."""
        block = self.blocks[layer]
        assert isinstance(block, WanBlock)
        return block.attn2.keys_values(hidden)

    def full_window(
        self,
        frames: int,
        grid: tuple[int, int],
        positions: torch.Tensor | None = None,
        phase: torch.Tensor | float = 0.0,
    ) -> FullWindow:
        """Return the view without a cache, for `frames` frames of grid (rows, columns).

        positions: [frames]; None: 0 .. frames - 1. phase: radians added to temporal angles, a number or [frames].
        """
        rows, columns = grid
        device = self.device
        times = torch.arange(frames, device=device) if positions is None else positions
        t = times.repeat_interleave(rows * columns)
        y = torch.arange(rows, device=device).repeat_interleave(columns).repeat(frames)
        x = torch.arange(columns, device=device).repeat(frames * rows)
        if isinstance(phase, torch.Tensor):
            phase = phase.repeat_interleave(rows * columns)
        wide_dtype = torch.promote_types(self.dtype, torch.float32)
        return FullWindow(self.rotary, *self.rotary.tables(t, y, x, phase, dtype=wide_dtype))

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        text: TextView,
        kv: KeyValueView | None = None,
        actions: torch.Tensor | None = None,
        *,
        positions: torch.Tensor | None = None,
        phase: torch.Tensor | float = 0.0,
        mask: Mask | None = None,
        execution: BlockExecution = PLAIN_EXECUTION,
        recall: Recall | None = None,
    ) -> torch.Tensor:
        """Return the velocity (noise - x0): [B, out_channels, F, H, W].

        latents: [B, in_channels, F, H, W], H and W multiples of the patch. timesteps: [B, F] in [0, 1000], fractions
        allowed; [B, 1] if all frames share one. kv: source of positions and past; None: the frames attend only to each
        other, at `positions` [F] (0 .. F - 1), with `phase` (radians) added to temporal angles. mask: from the
        attention backend's `frame_mask`, over the frames (kv None) or over everything kv returns. actions: [B, F, 5] in
        [-1, 1], in the order of ACTION_NAMES, for a model that takes them; None: none. execution: how the blocks
        compute. recall: of a cache that stores hidden states; it decides which layers are computed.
        """
        frames, height, width = latents.shape[2:]
        grid = self.grid(height, width)
        hidden = self.embed_patches(latents)
        embedding, time = self.condition_embedder.time(timesteps, self.embed_actions(actions))
        view = self.full_window(frames, grid, positions, phase) if kv is None else kv
        shared = BlockContext(time=time, text=text, kv=view, rotary=self.rotary, execution=execution, mask=mask)
        for layer, block in enumerate(execution.blocks or self.blocks):
            if recall is not None:
                if recall.skips(layer):
                    continue
                hidden = recall.entering(layer, hidden)
            hidden = block(hidden, layer, shared)
        return self.head(hidden, embedding, grid)

    def embed_actions(self, actions: torch.Tensor | None) -> torch.Tensor | None:
        """[B, F, 5] -> the addend of the time embedding, [B, F, dim]; None for None."""
        if actions is None:
            return None
        assert self.action_embedder is not None, "the model takes no actions"
        return self.action_embedder(actions)  # type: ignore[no-any-return]

    def embed_patches(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, C, F, H, W] -> [B, F, tokens of a frame, dim]: the patch convolution as a matrix product."""
        weight = self.patch_embedding.weight
        patches = patchify(latents.to(weight.dtype), self.config.patch_size)
        return F.linear(patches, weight.flatten(1), self.patch_embedding.bias)

    def head(self, hidden: torch.Tensor, embedding: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """[B, F, n, dim] and the time embedding [B, F | 1, dim] (not its projection) -> [B, out_channels, F, H, W]."""
        shift, scale = torch.chunk(wide(self.scale_shift_table) + wide(embedding).unsqueeze(2), 2, dim=2)
        out = self.proj_out(modulate(hidden, shift, scale, self.config.eps))
        return unpatchify(out, grid, self.config.patch_size)


def time_sinusoid(timesteps: torch.Tensor, dim: int) -> torch.Tensor:
    """[B, F] -> [B, F, dim] float64: cosines, then sines, of t / 10000^(2 i / dim).

    In float64, as in the published networks; diffusers' float32 differs by up to 4e-5 (at t = 1000).
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float64, device=timesteps.device) / half
    angles = timesteps.to(torch.float64).unsqueeze(-1) * torch.pow(10000.0, -exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def patchify(latents: torch.Tensor, patch: tuple[int, int, int]) -> torch.Tensor:
    """[B, C, F, H, W] -> [B, F, (H / rows) (W / columns), C rows columns], tokens in row-major order."""
    batch, channels, frames, height, width = latents.shape
    _, rows, columns = patch
    cut = latents.reshape(batch, channels, frames, height // rows, rows, width // columns, columns)
    return cut.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(2, 3)


def unpatchify(tokens: torch.Tensor, grid: tuple[int, int], patch: tuple[int, int, int]) -> torch.Tensor:
    """[B, F, n, rows columns C] -> [B, C, F, H, W]. The channel axis of a token is the last, unlike in `patchify`."""
    batch, frames = tokens.shape[:2]
    _, rows, columns = patch
    cut = tokens.reshape(batch, frames, *grid, rows, columns, -1)
    return cut.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
