"""Owns the backends that run image models with TensorRT or TensorRT-RTX, as the plans of their parts become ready.

Imports nothing heavy. Independent of how plans are built and run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from .base import IMAGE_PARTS, Backend, BackendRefusal, refused_without_plans

if TYPE_CHECKING:
    import torch

    from pipelines.image.model import ImageNetworks, ImageRuntime


@dataclass(frozen=True, kw_only=True)
class TensorRTBackend(Backend):
    """Runs the networks in CUDA graphs until their plans are built, which another process does meanwhile. name: that of
    the library.
    """

    kinds: tuple[str, ...] = ("image",)

    def refusal(self, kind: str, device: torch.device) -> BackendRefusal | None:
        """It needs a card that the library supports, the library, and plans."""
        if device.type != "cuda":
            because = "the model is not on a CUDA device"
            return BackendRefusal(because=because, message=f"The backend {self.name} needs a CUDA device.")
        if off := refused_without_plans(self.name):
            return off
        from .tensorrt import TensorRTRecipe

        refused = TensorRTRecipe(name=self.name).refusal(device)
        if refused is None:
            return None
        return BackendRefusal(because=refused.message.rstrip("."), message=refused.message, remedy=refused.remedy)

    def image(self, networks: ImageNetworks) -> ImageRuntime:
        """Make the captured runtime, whose parts are replaced as their plans become ready.

        One lane: a loaded plan has one context, which must not run twice at a time.
        """
        from pipelines.image.runtime import projecting_runtime

        from .cuda_graph import GraphExecutor
        from .planned_image import planned_image
        from .tensorrt import TensorRTRecipe, card_options

        refit = networks.origin is not None and bool(networks.origin.lora)  # the scale of LoRAs moves live
        recipe = TensorRTRecipe(name=self.name, options=card_options(self.name, networks.device, refit=refit))
        executors = partial(GraphExecutor, networks.device)
        plain = replace(projecting_runtime(networks), backend=self.name, make_executor=executors)
        return planned_image(networks, plain, dict.fromkeys(IMAGE_PARTS, recipe))
