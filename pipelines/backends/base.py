"""Owns the contract of a backend, which makes the parts that an engine calls from loaded networks.

Imports nothing heavy, so that the command line and `zoetrope doctor` can read the table. A backend imports what it
needs when it makes a runtime.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt.store import plans_are_off

if TYPE_CHECKING:
    import torch

    from pipelines.image.model import ImageNetworks, ImageRuntime
    from pipelines.video.model import VideoNetworks, VideoRuntime

IMAGE_PARTS = ("denoise", "encode", "decode")
"""The parts of an image model that compilers take."""
KINDS = ("image", "video")
"""The kinds of models that backends run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRefusal:
    """Why a backend cannot run. because: a clause for the reason of another choice. message: a sentence for an error.

    remedy: how to get what is missing; "": the error suggests the backends that can run.
    """

    because: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Backend(ABC):
    """One row of a table of backends. A subclass makes the runtimes of the kinds of models that it supports.

    name: as a user gives it. purpose: a short description for users. kinds: a subset of KINDS. preference: see
    `rank`.
    """

    name: str
    purpose: str
    kinds: tuple[str, ...] = KINDS
    preference: int = 0

    @property
    def runs_slices(self) -> bool:
        """Whether it calls an image model's modules as they are, so that they can run slice by slice."""
        return False

    def rank(self, kind: str, device: torch.device) -> int:
        """Return how "auto" ranks it on this device among those that can run; 0: only on request."""
        return self.preference

    def refusal(self, kind: str, device: torch.device) -> BackendRefusal | None:
        """Return why it cannot run a supported kind on this device; None if it can. Imports nothing heavy."""
        return None

    def image(self, networks: ImageNetworks) -> ImageRuntime:
        """Make denoiser, codec and executors for image engines. Raises ModelError for unsupported networks."""
        raise AssertionError(f"{self.name} does not support images")

    def video(self, networks: VideoNetworks) -> VideoRuntime:
        """Make denoiser, frame decoders, KV kernels and executors for video engines. Raises ModelError likewise."""
        raise AssertionError(f"{self.name} does not support video")


def refused_without_plans(name: str) -> BackendRefusal | None:
    """Return the refusal of a backend that needs plans while they are switched off; None while they are not."""
    if not plans_are_off():
        return None
    return BackendRefusal(
        because="plans are switched off (ZOETROPE_PLANS=off)",
        message=f"The backend {name} needs plans, which are switched off.",
        remedy="Unset ZOETROPE_PLANS, or set it to a folder.",
    )
