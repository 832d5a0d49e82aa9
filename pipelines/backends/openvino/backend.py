"""Owns the backends that run models with OpenVINO on CPUs, as the plans of their parts become ready.

Imports nothing heavy. Independent of how parts are converted and run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.backends.base import IMAGE_PARTS, Backend, BackendRefusal, refused_without_plans

from .recipe import OpenVINORecipe

if TYPE_CHECKING:
    import torch

    from pipelines.core.origin import Origin
    from pipelines.image.model import ImageNetworks, ImageRuntime
    from pipelines.video.model import VideoNetworks, VideoRuntime

_VIDEO_PARTS = ("pass", "decode")


@dataclass(frozen=True, kw_only=True)
class OpenVINOBackend(Backend):
    """Runs the networks with OpenVINO. quantised: in int8, else in bfloat16."""

    quantised: bool

    def rank(self, kind: str, device: torch.device) -> int:
        """Only on CPUs."""
        return self.preference if device.type == "cpu" else 0

    def refusal(self, kind: str, device: torch.device) -> BackendRefusal | None:
        """It needs a CPU, OpenVINO, and plans."""
        return refused_without_plans(self.name) or OpenVINORecipe(quantised=self.quantised).refusal(
            device, building=False
        )

    def image(self, networks: ImageNetworks) -> ImageRuntime:
        """Make the plain runtime, whose parts are replaced as their plans become ready."""
        from dataclasses import replace

        from pipelines.backends.planned_image import planned_image
        from pipelines.backends.threads import OneThreadExecutor
        from pipelines.image.runtime import projecting_runtime

        recipe = self._recipe()
        plain = replace(projecting_runtime(networks), backend=self.name)
        if networks.origin is not None:  # else nothing is compiled
            plain = replace(plain, make_executor=OneThreadExecutor)
        recipes = dict.fromkeys(IMAGE_PARTS, recipe)
        return planned_image(networks, plain, recipes, builds=_builds(networks.origin), plain_threads=recipe.threads)

    def video(self, networks: VideoNetworks) -> VideoRuntime:
        """Make the plain runtime, whose passes and decoders are replaced as their plans become ready."""
        from dataclasses import replace

        from pipelines.backends.planned_video import planned_video
        from pipelines.video.runtime import plain_runtime

        recipe = self._recipe()
        plain = replace(plain_runtime(networks), backend=self.name)
        return planned_video(networks, plain, dict.fromkeys(_VIDEO_PARTS, recipe), builds=_builds(networks.origin))

    def _recipe(self) -> OpenVINORecipe:
        """OpenVINO's threads are as many as PyTorch's now, which are fewer while compiled parts run."""
        import torch

        return OpenVINORecipe(quantised=self.quantised, threads=torch.get_num_threads())


def _builds(origin: Origin | None) -> bool:
    """Whether plans are made unasked: those of larger models take minutes and much memory."""
    return origin is not None and origin.bundled
