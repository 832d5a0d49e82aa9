"""Other programs that redraw pictures with the same networks: streamdiffusion 0.1.1 and diffusers' AutoPipeline.

Each is a function from a picture to a picture, [H, W, 3] uint8 in host memory; conversions run on the device.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from diffusers.schedulers.scheduling_lcm import LCMScheduler

from bench.peer import prepared
from bench.shapes import Parts
from pipelines.core.types import Picture
from pipelines.image.schedule import timesteps


class StreamDiffusionPeer:
    """The package streamdiffusion 0.1.1, its ring of steps included; compiled: its UNet, as its users compile it today.

    Its `__call__` needs CUDA events; on a CPU the same methods are called without them.
    """

    def __init__(self, parts: Parts, *, steps: int, strength: float, compiled: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an old package among new ones
            from streamdiffusion.pipeline import StreamDiffusion

        self._device, self._compiled = parts.model.device, compiled
        unet = torch.compile(parts.unet, mode="reduce-overhead") if compiled else parts.unet
        self._stream = prepared(StreamDiffusion, parts, timesteps(parts.model.schedule, steps, strength), unet)
        self._dtype = parts.model.dtype

    @torch.inference_mode()
    def __call__(self, picture: Picture) -> Picture:
        """Take a picture; return the one that is finished, noise while the ring fills."""
        if self._compiled:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        image = torch.from_numpy(picture).to(self._device).permute(2, 0, 1)[None].to(self._dtype) / 255
        if self._device.type == "cuda":
            return _picture(self._stream(image) / 2 + 0.5)
        stream = self._stream
        prepared_image = stream.image_processor.preprocess(image, stream.height, stream.width).to(self._dtype)
        return _picture(stream.decode_image(stream.predict_x0_batch(stream.encode_image(prepared_image))) / 2 + 0.5)


class AutoPipelinePeer:
    """diffusers' AutoPipelineForImage2Image with LCM steps and encoded prompts, as many evaluations as steps."""

    def __init__(self, parts: Parts, *, steps: int, strength: float) -> None:
        from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        model, networks = parts.model, parts.networks
        abar = torch.from_numpy(networks.schedule.alphas_cumprod)
        betas = 1 - abar / torch.cat([torch.ones(1, dtype=abar.dtype), abar[:-1]])
        plain = StableDiffusionPipeline(
            vae=parts.vae,
            text_encoder=None,
            tokenizer=None,
            unet=parts.unet,
            scheduler=LCMScheduler(
                trained_betas=betas.tolist(), prediction_type=networks.prediction_type, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self._pipe: Any = AutoPipelineForImage2Image.from_pipe(plain)
        self._pipe.set_progress_bar_config(disable=True)
        self._device, self._dtype = model.device, model.dtype
        self._options = {
            "prompt_embeds": model.prompts.encode("a cat").embeds[None].to(model.dtype),
            "strength": strength,
            "num_inference_steps": math.ceil(steps / strength),
            "guidance_scale": 1.0,
            "output_type": "pt",
            "generator": torch.Generator().manual_seed(0),
        }
        self._steps = steps

    def __call__(self, picture: Picture) -> Picture:
        """Redraw a picture."""
        image = torch.from_numpy(picture).to(self._device).permute(2, 0, 1)[None].to(self._dtype) / 255
        result = self._pipe(image=image, **self._options).images
        assert self._pipe._num_timesteps == self._steps, self._pipe._num_timesteps
        return _picture(result)


def _picture(image: torch.Tensor) -> Picture:
    """[1, 3, H, W] in [0, 1] -> [H, W, 3] uint8 in host memory."""
    pixels = image[0].clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    result: Picture = pixels.cpu().numpy()
    return result
