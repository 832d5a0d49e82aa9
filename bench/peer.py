"""Runs the package streamdiffusion 0.1.1 on given networks, for comparison in the same process.

Its pipeline gets a small stand-in for diffusers' pipeline object. It uses CUDA events, so it needs CUDA.
"""

from __future__ import annotations

import time
import warnings
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.schedulers.scheduling_lcm import LCMScheduler

from bench.shapes import Parts


def peer_fps(parts: Parts, timesteps: tuple[int, ...], pictures: list[torch.Tensor], warmup: int) -> float | str:
    """Frames a second of image-to-image with cfg_type none at our timesteps, or why it was not measured.

    pictures: [1, 3, H, W] in [0, 1] on the CPU; the first `warmup` are untimed. Decoded pictures stay on the device.
    """
    if parts.model.device.type != "cuda":
        return "not measured: streamdiffusion needs CUDA"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from streamdiffusion.pipeline import StreamDiffusion
    except (ImportError, RuntimeError) as error:  # diffusers' lazy imports fail with RuntimeError
        return f"not measured: streamdiffusion cannot be imported ({str(error).splitlines()[0]})"
    stream = prepared(StreamDiffusion, parts, timesteps, parts.unet)
    for picture in pictures[:warmup]:
        stream(picture)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for picture in pictures[warmup:]:
        stream(picture)
    torch.cuda.synchronize()
    return (len(pictures) - warmup) / (time.perf_counter() - start)


def prepared(pipeline: Any, parts: Parts, timesteps: tuple[int, ...], unet: Any) -> Any:
    """Return its pipeline with these networks, prompt "a cat", cfg_type none. pipeline: the class StreamDiffusion.
    unet: that of `parts` or a compiled form of it."""
    model = parts.model

    def encode_prompt(prompt: str, negative_prompt: str = "", **options: Any) -> list[torch.Tensor]:
        return [model.prompts.encode(t).embeds[None].to(model.dtype) for t in (prompt, negative_prompt)]

    pipe = SimpleNamespace(
        device=model.device,
        vae_scale_factor=model.runtime.codec.factor,
        scheduler=LCMScheduler(),
        text_encoder=None,
        unet=unet,
        vae=parts.vae,
        encode_prompt=encode_prompt,
    )
    indices = [(999 - t) // 20 for t in timesteps]
    width, height = model.size_px
    stream = pipeline(pipe, indices, torch_dtype=model.dtype, width=width, height=height, cfg_type="none")
    stream.prepare("a cat")
    return stream
