"""Owns what the causal training stages share: the trained networks, their cache window and few-step schedule.

Independent of data and losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipelines.video.flow import StepList
from pipelines.video.wan.actions import ActionEmbedder
from pipelines.video.wan.transformer import CausalWanTransformer

from .networks import LATENT_SIZE, encode_text, make_text_encoder, make_transformer
from .tokenizer import text_mask

if TYPE_CHECKING:
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

CHUNK = 3
"""Latents denoised together."""
WINDOW = 12
"""Latents that a chunk attends to, including itself."""
SINK = 6
"""Of these, the stream's first latents, once it is longer than the window."""
GRID = (LATENT_SIZE // 2, LATENT_SIZE // 2)
"""Rows and columns of tokens of a latent frame."""
SHIFT = 3.0
STEPS = (1000, 750, 500, 250)
"""Indices in the shifted table: noise levels 1, 0.9, 0.75 and 0.5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingNetworks:
    """The transformer with its action embedder, and the text encoder."""

    transformer: CausalWanTransformer
    text: UMT5EncoderModel

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """In the order of their names in checkpoints: transformer, text."""
        return self.transformer, self.text

    def encode(self, ids: Tensor) -> Tensor:
        """Text states [B, 32, 128] of token ids int64 [B, 32]."""
        return encode_text(self.text, ids, text_mask(ids))


def make_networks(device: torch.device, *, vocabulary: int, seed: int) -> TrainingNetworks:
    """Untrained networks. vocabulary: token ids."""
    torch.manual_seed(seed)
    text = make_text_encoder(vocabulary)
    transformer = make_transformer()
    transformer.add_actions(ActionEmbedder(transformer.config.dim))
    return TrainingNetworks(transformer=transformer.to(device), text=text.to(device))


def few_step_levels(device: torch.device) -> Tensor:
    """Noise levels of the few-step schedule, noisiest first: [4]."""
    steps = StepList(raw=STEPS, shift=SHIFT, warp=True).steps()
    return torch.tensor([step.sigma for step in steps], device=device)
