"""Owns the recording of an image model's parts: its eager engine redraws photographs and makes pictures of prompts.

Steps, strengths, seeds, prompts, guidance modes and noise vary. Independent of recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from pipelines.core.controls import Control
from pipelines.core.parts import Tensors
from pipelines.image.engine import ImageEngine
from pipelines.image.model import Condition, Denoiser, ImageModel, LatentCodec
from pipelines.image.parts import denoise_inputs
from pipelines.image.stream import ImageStream

from .recorder import Recorder
from .scenes import Scenes

_STREAMS = 4  # they share each tick's batch
_STEPS = (1, 2, 2, 3, 4)
_VARIETY = 2  # rows of the denoiser that are recorded for each that is drawn: those of one picture resemble each other
_GUIDANCE = ("none", "none", "none", "full", "self")


def image_samples(
    model: ImageModel, batches: Mapping[str, int], count: int, *, width: int = 0, height: int = 0, seed: int = 0
) -> dict[str, list[Tensors]]:
    """Return `count` inputs of each part in `batches`, as `pipelines.image.parts` orders them.

    batches: rows of each input, by part: "denoise", "encode", "decode". model: with its eager runtime. width, height:
    pixels; 0: native. Deterministic, up to the rounding of kernels.
    """
    runtime = model.runtime
    denoiser, codec = _Denoiser(runtime.denoiser), _Codec(runtime.codec)
    recorders = {"denoise": denoiser.calls, "encode": codec.encoded, "decode": codec.decoded}
    recorded = replace(model, runtime=replace(runtime, denoiser=denoiser, codec=codec))
    engine = ImageEngine(recorded, width=width, height=height, max_slots=_STREAMS)
    scenes = Scenes(seed, None if model.vocabulary is None else Path(model.vocabulary))
    wanted = {part: count * batch * (_VARIETY if part == "denoise" else 1) for part, batch in batches.items()}
    while any(len(recorders[part]) < rows for part, rows in wanted.items()):
        _play(engine, scenes)
    engine.close()
    return {part: recorders[part].samples(count, batch, seed) for part, batch in batches.items()}


def _play(engine: ImageEngine, scenes: Scenes) -> None:
    """Let each of `_STREAMS` streams make one picture, of a photograph or of its prompt alone."""
    streams = [_open(engine, scenes) for _ in range(_STREAMS)]
    for stream in streams:
        if scenes.random.random() < 0.25:
            stream.generate()
        else:
            stream.push(scenes.clip(1, engine.core.width, engine.core.height)[0])
    while any(stream.active for stream in streams):
        engine.tick()
    for stream in streams:
        stream.pull()
        stream.close()


def _open(engine: ImageEngine, scenes: Scenes) -> ImageStream:
    draw = scenes.random
    steps, mode = draw.choice(_STEPS), draw.choice(_GUIDANCE)
    return engine.open(
        Control.of(
            {
                "prompt": scenes.prompt(),
                "steps": steps,
                "strength": draw.uniform(0.15, 1.0),
                "seed": draw.randrange(2**32),
                "guidance_mode": mode,
                "guidance_scale": 1.0 if mode == "none" else draw.uniform(1.0, 3.0),
            }
        )
    )


class _Denoiser:
    """A `Denoiser` that records."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self.calls = Recorder()

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
        inputs = tuple(denoise_inputs(latents, timestep, condition).values())
        self.calls.add(*inputs)
        return self._denoiser(latents, timestep, condition)


class _Codec:
    """A `LatentCodec` that records."""

    def __init__(self, codec: LatentCodec) -> None:
        self._codec = codec
        self.latent_channels, self.factor, self.margin = codec.latent_channels, codec.factor, codec.margin
        self.encoded, self.decoded = Recorder(), Recorder()

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.encoded.add(images)
        return self._codec.encode(images)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.decoded.add(latents)
        return self._codec.decode(latents)
