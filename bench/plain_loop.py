"""The plain way to redraw pictures with an image model: one after the other, every step with a batch of one."""

from __future__ import annotations

import torch

from pipelines.core.types import Picture
from pipelines.image.model import Condition, ImageModel
from pipelines.image.schedule import levels, timesteps


class PlainLoop:
    """Encodes a picture, runs each step with fixed noise, decodes it, and waits: LCM steps without guidance."""

    def __init__(self, model: ImageModel, steps: int, strength: float) -> None:
        device, codec = model.device, model.runtime.codec
        self._model, self._times = model, timesteps(model.schedule, steps, strength)
        width, height = model.size_px
        size = (steps, 1, codec.latent_channels, height // codec.factor, width // codec.factor)
        self._noise = torch.randn(size, device=device)
        self._condition = Condition(
            embeds=model.prompts.encode("a cat").embeds[None],
            pooled=None,
            time_ids=None,
            row=torch.zeros(1, dtype=torch.int64, device=device),
            step=torch.zeros(1, dtype=torch.int64, device=device),
        )
        self._t = [torch.tensor([t], device=device) for t in self._times]

    @torch.inference_mode()
    def __call__(self, picture: Picture) -> Picture:
        """[H, W, 3] uint8 in host memory -> the same."""
        model = self._model
        image = torch.from_numpy(picture).to(model.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        x = model.runtime.codec.encode(image)
        for i, t in enumerate(self._times):
            a, b = levels(model.schedule, t)
            x = model.runtime.denoiser(a * x + b * self._noise[i], self._t[i], self._condition)
        pixels = model.runtime.codec.decode(x).add(1).mul(127.5).round().to(torch.uint8)
        result: Picture = pixels[0].permute(1, 2, 0).contiguous().cpu().numpy()
        return result
