"""Owns the prompt encoders: CLIP tokenizers and text networks of Stable Diffusion 1, 2, Turbo and XL.

Independent of prompt weights, blends and files.
"""

from __future__ import annotations

from typing import Any

import torch

from pipelines.core.conditions import TextCondition


def _token_ids(tokenizer: Any, text: str) -> torch.Tensor:
    """[1, L] int64, padded and truncated to the tokenizer's length, as in diffusers' pipelines."""
    encoded = tokenizer(
        text,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids = encoded.input_ids
    assert isinstance(ids, torch.Tensor)
    return ids


class ClipPromptEncoder:
    """A single text network; embeds are its last hidden states after the final layer norm.

    Stable Diffusion 2 and SD-Turbo use the penultimate layer of OpenCLIP ViT-H by shipping one layer fewer.
    """

    def __init__(self, tokenizer: Any, text_model: Any, *, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._text_model = text_model
        self._device = device

    @torch.no_grad()
    def encode(self, text: str) -> TextCondition:
        """See `pipelines.core.conditions.PromptEncoder`. embeds: [L, D]; no pooled."""
        ids = _token_ids(self._tokenizer, text).to(self._device)
        hidden = self._text_model(ids).last_hidden_state[0]
        return TextCondition(embeds=_at_least_float32(hidden))


class DualClipPromptEncoder:
    """The two text networks of Stable Diffusion XL (Podell et al. 2023, section 2.1).

    embeds: penultimate hidden states of both, concatenated; pooled: projected end-of-text token of the second.
    """

    def __init__(self, tokenizers: tuple[Any, Any], text_models: tuple[Any, Any], *, device: torch.device) -> None:
        self._tokenizers = tokenizers
        self._text_models = text_models
        self._device = device

    @torch.no_grad()
    def encode(self, text: str) -> TextCondition:
        """See `pipelines.core.conditions.PromptEncoder`. embeds: [L, D1 + D2]; pooled: [P]."""
        outputs = [
            network(_token_ids(tokenizer, text).to(self._device), output_hidden_states=True)
            for tokenizer, network in zip(self._tokenizers, self._text_models, strict=True)
        ]
        embeds = torch.cat([output.hidden_states[-2][0] for output in outputs], dim=-1)
        return TextCondition(embeds=_at_least_float32(embeds), pooled=_at_least_float32(outputs[1].text_embeds[0]))


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype is torch.float64 else tensor.float()
