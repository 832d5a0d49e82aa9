"""The seam between loading and the video engine: what a causal video model is.

pipelines/video/loading/load.py builds a `VideoModel`, the engine runs one: neither knows the other's inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .codecs.codec import VideoCodec
from .loading.checkpoint_keys import KeyReport
from .presets import VideoPreset
from .wan.transformer import CausalWanTransformer
from .wan.umt5 import TextEncoder


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoModel:
    """A loaded causal video model.

    name: what to call it. family: of loading/families.py, and why it was taken for that: both are shown.
    text: prompts to embeddings [512, D] on the device. preset: defaults that suit the weights. licence: one line.
    commercial: False where the licence forbids commercial use. weights: what became of the checkpoint's names.
    """

    name: str
    family: str
    why: str
    transformer: CausalWanTransformer
    codec: VideoCodec
    text: TextEncoder
    preset: VideoPreset
    dtype: torch.dtype
    device: torch.device
    licence: str
    commercial: bool
    weights: KeyReport

    @property
    def takes_actions(self) -> bool:
        """Whether camera and subject can be moved (`actions`)."""
        return self.transformer.action_embedder is not None

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) in pixels that the weights were trained for."""
        return self.preset.width, self.preset.height

    @property
    def multiple_px(self) -> int:
        """Both sides of a frame must be multiples of this: the codec's factor times the larger side of a patch."""
        return self.codec.factor * max(self.transformer.config.patch_size[1:])
