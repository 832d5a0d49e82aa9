"""Owns the backends that run image models with TensorRT or TensorRT-RTX, as the plans of their parts become ready.

Imports nothing heavy. Independent of how plans are built and run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trt.store import plans_are_off

from .base import Backend, BackendRefusal

if TYPE_CHECKING:
    import torch

    from pipelines.image.model import ImageNetworks, ImageRuntime

_IMAGE_PARTS = ("denoise", "encode", "decode")


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
        if plans_are_off():
            because = "plans are switched off (ZOETROPE_PLANS=off)"
            message = f"The backend {self.name} needs plans, which are switched off."
            return BackendRefusal(because=because, message=message, remedy="Unset ZOETROPE_PLANS.")
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

        recipe = TensorRTRecipe(name=self.name, options=card_options(self.name, networks.device))
        executors = lambda: GraphExecutor(networks.device)  # noqa: E731
        plain = replace(projecting_runtime(networks), backend=self.name, make_executor=executors)
        return planned_image(networks, plain, dict.fromkeys(_IMAGE_PARTS, recipe))
