"""Owns the contract of a backend: what makes, out of loaded networks, the parts that an engine calls.

Imports nothing heavy, so that command line and doctor can read the table. What a backend is made of is imported when it
makes something.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pipelines.image.model import ImageNetworks, ImageRuntime
    from pipelines.video.model import VideoNetworks, VideoRuntime

KINDS = ("image", "video")
"""Kinds of models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a backend cannot run. because: a clause for the reason of another choice. message: a sentence for an error.

    remedy: how to get what is missing; "": name the backends that run.
    """

    because: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Backend(ABC):
    """One row of a table of backends. A subclass makes the runtimes of the kinds that it serves.

    name: what a user gives. purpose: half a line for people. kinds: of KINDS. preference: "auto" takes the highest that
    runs; 0: only when it is asked for.
    """

    name: str
    purpose: str
    kinds: tuple[str, ...] = KINDS
    preference: int = 0

    def refusal(self, kind: str, device: torch.device) -> Refusal | None:
        """Why it cannot run models of a kind that it serves on this device; None when it can. Imports nothing heavy."""
        return None

    def image(self, networks: ImageNetworks) -> ImageRuntime:
        """Denoiser, codec and executors for image engines. Raises ModelError for networks that it cannot take."""
        raise AssertionError(f"{self.name} does not serve images")

    def video(self, networks: VideoNetworks) -> VideoRuntime:
        """Denoiser, frame decoders, KV kernels and executors for video engines. Raises ModelError likewise."""
        raise AssertionError(f"{self.name} does not serve video")
