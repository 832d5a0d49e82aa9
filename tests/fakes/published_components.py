"""Builds the files next to Wan 2.1's transformer, by their published names: Wan2.1_VAE.pth, UMT5's encoder.

Names are repeated here without using pipelines/, so that the mapping there can be checked. Values are random.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

from tests.fakes.published_checkpoints import Shapes, State


def umt5_shapes(*, width: int = 32, ffn: int = 64, layers: int = 2, heads: int = 4, vocabulary: int = 103) -> Shapes:
    """Return shapes by the names of models_t5_umt5-xxl-enc-bf16.pth."""
    shapes: Shapes = {"token_embedding.weight": (vocabulary, width), "norm.weight": (width,)}
    for layer in range(layers):
        block = f"blocks.{layer}"
        shapes |= {f"{block}.norm{i}.weight": (width,) for i in (1, 2)}
        shapes |= {f"{block}.attn.{name}.weight": (8 * heads, width) for name in "qkv"}
        shapes |= {
            f"{block}.attn.o.weight": (width, 8 * heads),
            f"{block}.pos_embedding.embedding.weight": (32, heads),
            f"{block}.ffn.gate.0.weight": (ffn, width),
            f"{block}.ffn.fc1.weight": (ffn, width),
            f"{block}.ffn.fc2.weight": (width, ffn),
        }
    return shapes


def vae_shapes(*, base: int = 8, blocks: int = 2, latents: int = 16) -> Shapes:
    """Return shapes by the names of Wan2.1_VAE.pth: 3 -> base ... 4 base channels, downsampled three times in space and
    twice in time."""
    widths = [base, base, 2 * base, 4 * base, 4 * base]
    shapes = {**_conv("conv1", 2 * latents, 2 * latents, 1), **_conv("conv2", latents, latents, 1)}
    shapes |= {**_conv("encoder.conv1", 3, base, 3), **_conv("decoder.conv1", latents, widths[-1], 3)}
    place = 0
    for stage, (narrow, wide) in enumerate(pairwise(widths)):
        for block in range(blocks):
            shapes |= _residual(f"encoder.downsamples.{place}", narrow if block == 0 else wide, wide)
            place += 1
        if stage < 3:
            shapes |= _plane(f"encoder.downsamples.{place}.resample.1", wide, wide)
            if stage > 0:
                shapes |= _conv(f"encoder.downsamples.{place}.time_conv", wide, wide, (3, 1, 1))
            place += 1
    place = 0
    rising = [widths[-1], *widths[:0:-1]]
    for stage, (entering, width) in enumerate(pairwise(rising)):
        narrow = entering if stage == 0 else entering // 2
        for block in range(blocks + 1):
            shapes |= _residual(f"decoder.upsamples.{place}", narrow if block == 0 else width, width)
            place += 1
        if stage < 3:
            shapes |= _plane(f"decoder.upsamples.{place}.resample.1", width, width // 2)
            if stage < 2:
                shapes |= _conv(f"decoder.upsamples.{place}.time_conv", width, 2 * width, (3, 1, 1))
            place += 1
    for side, out in (("encoder", 2 * latents), ("decoder", 3)):
        width = widths[-1] if side == "encoder" else base
        shapes |= dict(_middle(f"{side}.middle", widths[-1]))
        shapes |= {f"{side}.head.0.gamma": (width, 1, 1, 1), **_conv(f"{side}.head.2", width, out, 3)}
    return shapes


def random_state(shapes: Shapes, *, seed: int = 13) -> State:
    """Return small random values, and gains near 1."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=random) * 0.1
        state[name] = values + 1 if name.endswith("gamma") or "norm" in name else values
    return state


def _conv(name: str, inputs: int, outputs: int, kernel: int | tuple[int, int, int]) -> Shapes:
    sides = (kernel,) * 3 if isinstance(kernel, int) else kernel
    return {f"{name}.weight": (outputs, inputs, *sides), f"{name}.bias": (outputs,)}


def _plane(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, 3, 3), f"{name}.bias": (outputs,)}


def _residual(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = {
        f"{name}.residual.0.gamma": (inputs, 1, 1, 1),
        **_conv(f"{name}.residual.2", inputs, outputs, 3),
        f"{name}.residual.3.gamma": (outputs, 1, 1, 1),
        **_conv(f"{name}.residual.6", outputs, outputs, 3),
    }
    return {**shapes, **_conv(f"{name}.shortcut", inputs, outputs, 1)} if inputs != outputs else shapes


def _middle(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for place in (0, 2):
        yield from _residual(f"{name}.{place}", width, width).items()
    yield f"{name}.1.norm.gamma", (width, 1, 1)
    for layer, outputs in (("to_qkv", 3 * width), ("proj", width)):
        yield f"{name}.1.{layer}.weight", (outputs, width, 1, 1)
        yield f"{name}.1.{layer}.bias", (outputs,)
