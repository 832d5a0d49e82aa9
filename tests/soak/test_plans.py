"""TensorRT-RTX builds plans of published sizes on a machine without a card, checked by ONNX Runtime first.

Random weights in float16, of the same scale at every layer, so that nothing overflows.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.shapes import SHAPES, build
from bench.video_shapes import VIDEO_SHAPES, build_transformer
from pipelines.backends.plan_keys import plan_key
from pipelines.backends.tensorrt import TensorRTRecipe
from pipelines.core.parts import Part
from pipelines.image.parts import denoise_part
from pipelines.video.parts import pass_part
from trt.build import PLAN_FILE, PlanDescription
from trt.store import PlanStore

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]
pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is not installed")


def stored_plan(part: Part, root: Path) -> Path:
    """Build the part's plan, check what is stored of it, and print what it took."""
    recipe, store = TensorRTRecipe(name="tensorrt-rtx"), PlanStore(root)
    key = plan_key(recipe, part, "random weights")
    started = time.monotonic()
    folder = store.build(key, lambda folder: recipe.build(part, [], folder, sys.stderr.write))
    seconds = time.monotonic() - started
    description = PlanDescription.read(folder)
    size = (folder / PLAN_FILE).stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sys.stderr.write(
        f"{part.name}: {seconds:.0f} s, {size / 1e9:.2f} GB, peak memory {peak:.1f} GB; {description.check}\n"
    )
    again = plan_key(recipe, part, "random weights")
    assert again == key
    assert store.find(key) == folder
    weights = sum(p.numel() * p.element_size() for p in part.module.parameters())
    assert size > 0.9 * weights  # the weights are in it
    assert description.check.startswith("ONNX Runtime against PyTorch")
    return folder


@torch.no_grad()
def test_a_unet_of_sd_2_1_s_size(tmp_path: Path) -> None:
    parts = build(SHAPES["sd-turbo"], torch.device("cpu"), torch.float16)
    inputs = {
        "latents": torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(1)),
        "timestep": torch.tensor([499]),
        "embeds": torch.randn((1, 77, 1024), generator=torch.Generator().manual_seed(2)),
    }
    denoiser = parts.model.runtime.denoiser
    assert isinstance(denoiser, torch.nn.Module)
    stored_plan(denoise_part(denoiser, inputs), tmp_path)
    del parts, denoiser
    gc.collect()


@torch.no_grad()
def test_all_blocks_of_a_transformer_of_wan_1_3b_s_size(tmp_path: Path) -> None:
    """30 blocks at 480×832, chunks of one latent frame with two of the past: the check on a CPU bounds the window."""
    shape = VIDEO_SHAPES["wan-1.3b"]
    transformer = build_transformer(shape, torch.device("cpu"), torch.float16)
    height, width = shape.latent_size
    frames, past = 1, 2
    random = torch.Generator().manual_seed(1)

    def keys(count: int) -> torch.Tensor:
        size = (transformer.layers, 1, count, transformer.heads, transformer.head_dim)
        return torch.randn(size, generator=random, dtype=torch.float32).half()

    view = transformer.full_window(frames, transformer.grid(height, width), torch.arange(past, past + frames))
    cos, sin = view.query_rotation
    inputs = {
        "latents": torch.randn((1, 16, frames, height, width), generator=random),
        "timesteps": torch.full((1, frames), 700.0),
        "text_keys": keys(transformer.config.text_len),
        "text_values": keys(transformer.config.text_len),
        "past_keys": keys(past * shape.frame_tokens),
        "past_values": keys(past * shape.frame_tokens),
        "cos": cos[None].contiguous(),
        "sin": sin[None].contiguous(),
    }
    assert transformer.layers == 30
    stored_plan(pass_part(transformer, inputs), tmp_path)
