"""Owns the backends that run models with OpenVINO on CPUs, as the plans of their parts become ready.

Imports nothing heavy. Independent of how parts are converted and run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.backends.base import Backend, BackendRefusal
from trt.store import plans_are_off

from .recipe import OpenVINORecipe

if TYPE_CHECKING:
    import torch

    from pipelines.image.model import ImageNetworks, ImageRuntime

_IMAGE_PARTS = ("denoise", "encode", "decode")


@dataclass(frozen=True, kw_only=True)
class OpenVINOBackend(Backend):
    """Runs the networks with OpenVINO. quantised: in int8, else in bfloat16."""

    quantised: bool

    def refusal(self, kind: str, device: torch.device) -> BackendRefusal | None:
        """It needs a CPU, OpenVINO, and plans."""
        if plans_are_off():
            return BackendRefusal(
                because="plans are switched off (ZOETROPE_PLANS=off)",
                message=f"The backend {self.name} needs plans, which are switched off.",
                remedy="Unset ZOETROPE_PLANS, or set it to a folder.",
            )
        return OpenVINORecipe(quantised=self.quantised).refusal(device, building=False)

    def image(self, networks: ImageNetworks) -> ImageRuntime:
        """Make the plain runtime, whose parts are replaced as their plans become ready."""
        from dataclasses import replace

        from pipelines.backends.planned_image import planned_image
        from pipelines.image.runtime import projecting_runtime

        recipe = OpenVINORecipe(quantised=self.quantised)
        plain = replace(projecting_runtime(networks), backend=self.name)
        builds = networks.origin is not None and networks.origin.bundled  # larger models take minutes and much memory
        return planned_image(networks, plain, dict.fromkeys(_IMAGE_PARTS, recipe), builds=builds)
