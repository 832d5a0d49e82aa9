"""Owns the parts that an image engine would ask for while it runs, collected ahead of any stream.

Independent of recipes and stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from pipelines.backends.planned import PlannedCalls
from pipelines.backends.planned_image import PlannedCodec, PlannedDenoiser
from pipelines.core.parts import Part
from pipelines.image.engine import ImageEngine
from pipelines.image.parts import decode_part, denoise_part, encode_part


def image_parts(engine: ImageEngine, slots: Sequence[int]) -> list[Part]:
    """Return the encoder, the decoder, and the denoiser for each number of slots in a batch, at the engine's size, with
    the inputs that its ticks have: names, shapes, dtypes and strides. Values are zeros.

    engine: runs without plans; it is not usable afterwards.
    """
    runtime, found = engine.core.runtime, list[Part]()
    denoiser, codec = runtime.denoiser, runtime.codec
    assert isinstance(denoiser, nn.Module)
    assert isinstance(codec, nn.Module)
    collecting = replace(
        runtime,
        denoiser=PlannedDenoiser(PlannedCalls(lambda inputs: denoise_part(denoiser, inputs), found.append)),
        codec=PlannedCodec(
            runtime.codec,
            PlannedCalls(lambda inputs: encode_part(codec, inputs["images"]), found.append),
            PlannedCalls(lambda inputs: decode_part(codec, inputs["latents"]), found.append),
        ),
    )
    engine.replace_runtime(collecting)
    with torch.inference_mode():
        for count in slots:
            engine.rehearse(count)
    return found
