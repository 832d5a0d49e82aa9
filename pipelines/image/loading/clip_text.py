"""Owns the prompt encoders: CLIP tokenizers and text networks of Stable Diffusion 1, 2, Turbo and XL.

The networks run through `Calls`, so that a backend may capture them: a prompt in mid-stream then costs the host one
launch instead of hundreds. Independent of prompt weights, blends and files.
"""

from __future__ import annotations

from typing import Any

import torch

from pipelines.core.conditions import TextCondition
from pipelines.core.execution import Calls, call_eagerly


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

    def __init__(self, tokenizer: Any, text_model: Any, *, device: torch.device, calls: Calls = call_eagerly) -> None:
        self._tokenizer = tokenizer
        self._text_model = text_model
        self._device, self._calls = device, calls

    @torch.no_grad()
    def encode(self, text: str) -> TextCondition:
        """See `pipelines.core.conditions.PromptEncoder`. embeds: [L, D]; no pooled."""
        return TextCondition(embeds=_kept(self._calls("text", self._hidden, _token_ids(self._tokenizer, text))))

    def _hidden(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self._text_model(ids.to(self._device)).last_hidden_state[0]
        return hidden


class DualClipPromptEncoder:
    """The two text networks of Stable Diffusion XL (Podell et al. 2023, section 2.1).

    embeds: penultimate hidden states of both, concatenated; pooled: projected end-of-text token of the second.
    """

    def __init__(
        self,
        tokenizers: tuple[Any, Any],
        text_models: tuple[Any, Any],
        *,
        device: torch.device,
        calls: Calls = call_eagerly,
    ) -> None:
        self._tokenizers = tokenizers
        self._text_models = text_models
        self._device, self._calls = device, calls

    @torch.no_grad()
    def encode(self, text: str) -> TextCondition:
        """See `pipelines.core.conditions.PromptEncoder`. embeds: [L, D1 + D2]; pooled: [P]."""
        ids = [_token_ids(tokenizer, text) for tokenizer in self._tokenizers]
        rows = _kept(self._calls("text", self._embeds_and_pooled, *ids))
        tokens = ids[0].shape[1]
        width = self._text_models[0].config.hidden_size + self._text_models[1].config.hidden_size
        embeds, pooled = rows[: tokens * width], rows[tokens * width :]
        return TextCondition(embeds=embeds.view(tokens, width), pooled=pooled)

    def _embeds_and_pooled(self, *ids: torch.Tensor) -> torch.Tensor:
        """Return both in one tensor: embeds, then pooled."""
        outputs = [
            network(own.to(self._device), output_hidden_states=True)
            for network, own in zip(self._text_models, ids, strict=True)
        ]
        embeds = torch.cat([output.hidden_states[-2][0] for output in outputs], dim=-1)
        return torch.cat([embeds.flatten(), outputs[1].text_embeds[0]])


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of what a call returned, in float32 or float64."""
    return tensor.to(torch.float64 if tensor.dtype is torch.float64 else torch.float32, copy=True)
