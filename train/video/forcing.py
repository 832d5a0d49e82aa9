"""Owns the passes of the causal transformer in training: teacher forcing, joint windows, and their attention masks.

Teacher forcing: every chunk is noised separately and sees the clean chunks before it, all in one pass over the clean
frames followed by the noisy ones (Gao et al. 2024; CausVid's section 4.2 has the mask without the clean half). A noisy
chunk sees what the engine's sliding window would contain, so training and streaming agree; a test checks that.
Independent of data, optimisers and files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from pipelines.video.wan.attention import ATTENTION_BACKENDS, Mask, dense_frame_mask
from pipelines.video.wan.blocks import AS_WRITTEN, BlockExecution, compiled_halves
from pipelines.video.wan.text_cache import PlainText
from pipelines.video.wan.transformer import CausalWanTransformer, FullWindow

STEP_SHARE = 0.25
"""Share of chunks that are noised to one of the few-step levels."""


@dataclass(frozen=True, slots=True)
class TrainingAttention:
    """Attention by mask type: none (PyTorch's choice), dense, or FlexAttention blocks. Differentiable."""

    name: str = "training"
    takes_mask: bool = True

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """It runs everywhere."""
        return None

    def frame_mask(self, allowed: Tensor, tokens_per_frame: int) -> Mask:
        """A block mask on a GPU, dense on a CPU, where FlexAttention takes minutes to compile."""
        if allowed.device.type == "cuda":
            return ATTENTION_BACKENDS["flex"].frame_mask(allowed, tokens_per_frame)
        return dense_frame_mask(allowed, tokens_per_frame)

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Mask | None = None) -> Tensor:
        """[B, N, heads, D], [B, M, heads, D] twice -> [B, N, heads, D]; a dense mask may be [B, 1, N, M]."""
        if isinstance(mask, BlockMask):
            return ATTENTION_BACKENDS["flex"](queries, keys, values, mask)
        first = (queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
        return functional.scaled_dot_product_attention(*first, attn_mask=mask).transpose(1, 2)


def training_execution(*, compile_blocks: bool) -> BlockExecution:
    """Attention that can be differentiated, and blocks compiled where that is wanted."""
    return BlockExecution(attention=TrainingAttention(), halves=compiled_halves() if compile_blocks else AS_WRITTEN)


TRAINING = training_execution(compile_blocks=False)
"""Blocks as they are written."""


def forced_frames(frames: int, chunk: int, window: int) -> Tensor:
    """bool [2 frames, 2 frames]: which frames the clean frames, and then the noisy ones, attend to.

    A chunk attends to the clean chunks before it within a window of `window` frames that ends with it, and to itself,
    clean or noisy.
    """
    index = torch.arange(frames)
    number = index // chunk
    end = ((number + 1) * chunk).clamp(max=frames)
    near = index[None, :] >= end[:, None] - window
    before = (number[None, :] < number[:, None]) & near
    same = number[None, :] == number[:, None]
    nothing = torch.zeros_like(same)
    return torch.cat([torch.cat([before | same, nothing], 1), torch.cat([before, same], 1)], 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcingCondition:
    """The conditioning of all passes of a batch. states: text [B, 32, width]; actions: [B, F, 5]."""

    states: Tensor
    actions: Tensor


class ForcedPass:
    """The teacher-forced pass over windows of `frames` latents in chunks of `chunk`."""

    def __init__(
        self,
        transformer: CausalWanTransformer,
        grid: tuple[int, int],
        *,
        frames: int,
        chunk: int,
        window: int,
        execution: BlockExecution = TRAINING,
    ) -> None:
        device = transformer.device
        self._transformer, self._frames, self._execution = transformer, frames, execution
        self._view = make_view(transformer, list(range(frames)) * 2, grid)
        allowed = forced_frames(frames, chunk, window).to(device)
        self._mask = TrainingAttention().frame_mask(allowed, grid[0] * grid[1])

    def __call__(self, clean: Tensor, noisy: Tensor, timesteps: Tensor, condition: ForcingCondition) -> Tensor:
        """Velocity of the noisy frames [B, C, F, h, w]. clean, noisy: the same shape; timesteps [B, F] of the noisy."""
        transformer, frames = self._transformer, self._frames
        velocity: Tensor = transformer(
            torch.cat([clean, noisy], 2),
            torch.cat([torch.zeros_like(timesteps), timesteps], 1),
            PlainText(transformer, condition.states),
            self._view,
            mask=self._mask,
            actions=condition.actions.repeat(1, 2, 1),
            execution=self._execution,
        )
        return velocity[:, :, frames:]


class JointPass:
    """Frames that all attend to each other, except absent ones (None: all are present)."""

    def __init__(
        self,
        transformer: CausalWanTransformer,
        grid: tuple[int, int],
        *,
        frames: int,
        execution: BlockExecution = TRAINING,
    ) -> None:
        self._transformer, self._tokens, self._execution = transformer, grid[0] * grid[1], execution
        self._view = make_view(transformer, list(range(frames)), grid)

    def __call__(
        self, noisy: Tensor, timesteps: Tensor, condition: ForcingCondition, present: Tensor | None = None
    ) -> Tensor:
        """Velocity [B, C, F, h, w]. timesteps [B, F]; present: bool [B, F], the frames that exist."""
        mask = None
        if present is not None:
            mask = present.repeat_interleave(self._tokens, 1)[:, None, None, :]
            mask = mask.expand(-1, -1, mask.shape[-1], -1)
        text = PlainText(self._transformer, condition.states)
        velocity: Tensor = self._transformer(
            noisy, timesteps, text, self._view, mask=mask, actions=condition.actions, execution=self._execution
        )
        return velocity


def make_view(transformer: CausalWanTransformer, positions: Sequence[int], grid: tuple[int, int]) -> FullWindow:
    """A view of frames at these temporal positions, without a cache; create once: angles are computed in float64."""
    return transformer.full_window(len(positions), grid, torch.tensor(list(positions), device=transformer.device))


def shifted_levels(raw: Tensor, shift: float) -> Tensor:
    """Noise levels sigma of uniform numbers: s r / (1 + (s - 1) r)."""
    return shift * raw / (1 + (shift - 1) * raw)


def chunk_levels(batch: int, frames: int, chunk: int, *, shift: float, steps: Tensor) -> Tensor:
    """Noise levels [B, F], one per chunk: shifted uniform, a share of them from the few-step levels [n]."""
    chunks = -(-frames // chunk)
    levels = shifted_levels(torch.rand(batch, chunks, device=steps.device), shift)
    picked = steps[torch.randint(steps.shape[0], (batch, chunks), device=steps.device)]
    levels = torch.where(torch.rand(batch, chunks, device=steps.device) < STEP_SHARE, picked, levels)
    return levels.repeat_interleave(chunk, 1)[:, :frames]


def noised(clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """x_t = (1 - sigma) x0 + sigma noise; latents [B, C, F, h, w], levels [B, F]."""
    level = levels[:, None, :, None, None]
    return (1 - level) * clean + level * noise


def clean_of(noisy: Tensor, velocity: Tensor, levels: Tensor) -> Tensor:
    """x0 = x_t - sigma v in float32."""
    return noisy.float() - levels[:, None, :, None, None] * velocity.float()


def velocity_loss(velocity: Tensor, clean: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error of v against noise - x0. weight: broadcastable to [B, 1, F, h, w], divided by its sum."""
    errors = (velocity.float() - (noise - clean).float()).square().mean(1, keepdim=True)
    weight = weight.expand_as(errors)
    return (errors * weight).sum() / weight.sum().clamp(min=1e-6)
