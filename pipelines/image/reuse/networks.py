"""Owns the two further forms of a denoiser that reuse needs: whole pictures with what they keep, and windows.

Independent of stores, batches and decisions.
"""

from __future__ import annotations

import torch

from cache.features.lines import Features
from pipelines.image.loading.networks import UNetDenoiser
from pipelines.image.model import Condition, Denoiser

from .tape import Recording, Replaying, TapedUNet, obstacle


def window_networks(denoiser: Denoiser) -> TapedDenoiser | str:
    """Return the window networks of a denoiser or, as a clause, why there are none."""
    if not isinstance(denoiser, UNetDenoiser):
        return "the network is computed in slices"
    why = obstacle(denoiser.unet)
    return TapedDenoiser(denoiser) if why is None else why


class TapedDenoiser:
    """`pipelines.image.model.WindowNetworks` of a UNet, run in PyTorch.

    denoiser: takes a tape by `using`. levels: of the picture's size in it. token_levels: those with self-attention.
    """

    def __init__(self, denoiser: UNetDenoiser) -> None:
        """There must be no `obstacle` in its UNet."""
        assert obstacle(denoiser.unet) is None
        taped = TapedUNet(denoiser.unet)
        self.using, self.levels, self.token_levels = taped.using, taped.levels, taped.token_levels
        self.denoiser = denoiser.with_unet(taped.unet)
        self.cell = 1 << (taped.levels - 1)

    def whole(
        self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition
    ) -> tuple[torch.Tensor, Features]:
        """See `pipelines.image.model.WindowNetworks`."""
        tape = Recording(rows=latents.shape[2], levels=self.levels)
        with self.using(tape):
            x0 = self.denoiser(latents, timestep, condition)
        return x0, tape.features()

    def windows(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: Condition,
        around: Features,
        places: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, Features]:
        """See `pipelines.image.model.WindowNetworks`."""
        tape = Replaying(rows=latents.shape[2], kept=around, places=places)
        with self.using(tape):
            x0 = self.denoiser(latents, timestep, condition)
        return x0, tape.features()
