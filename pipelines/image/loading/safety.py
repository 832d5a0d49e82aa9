"""Owns the published safety checker of Stable Diffusion 1: which pictures must not be shown.

Independent of streams: pipelines/image/safety.py decides what to show instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from pipelines.files.layout import Component


class ClipSafetyChecker:
    """StableDiffusionSafetyChecker and its image processor as a `SafetyChecker`."""

    def __init__(self, checker: Any, processor: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        self._checker = checker
        self._processor = processor
        self._device = device
        self._dtype = dtype

    @classmethod
    def load(
        cls,
        component: Component,
        processor_folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        allow_pickle: bool = False,
    ) -> Self:
        """Load from a model's sub-folders safety_checker and feature_extractor. Raises as `load_component` does."""
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        from pipelines.files.layout import read_json
        from pipelines.files.weights import load_component

        read_json(processor_folder / "preprocessor_config.json")
        processor = CLIPImageProcessorPil.from_pretrained(processor_folder, local_files_only=True)
        checker = load_component(
            StableDiffusionSafetyChecker, component, dtype=dtype, device=device, allow_pickle=allow_pickle
        )
        return cls(checker, processor, device=device, dtype=dtype)

    @torch.no_grad()
    def check(self, images: npt.NDArray[np.uint8]) -> list[bool]:
        """See `pipelines.image.model.SafetyChecker`. images: [N, H, W, 3] uint8 RGB, not modified."""
        from pipelines.files.weights import quiet_loading

        pixels = self._processor(list(images), return_tensors="pt", input_data_format="channels_last").pixel_values
        with quiet_loading():  # the checker logs a warning of its own; the caller gets the result instead
            blank = [np.zeros((1, 1, 3), np.float32) for _ in images]
            _, flagged = self._checker(clip_input=pixels.to(self._device, self._dtype), images=blank)
        return [bool(flag) for flag in flagged]
