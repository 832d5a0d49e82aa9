"""Runs the package flashdreams 0.1.0's causal Wan 2.1 transformer (Apache-2.0, NVIDIA), for comparison.

Random weights in the same shape, driven as its DiffusionModel does: n passes over its KV cache, then a pass over the
clean chunk; its own CUDA graphs. Needs CUDA: Triton kernels and cuDNN's attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bench.video_shapes import VideoShape

STEPS = 4
_TIMES = (1000.0, 937.5, 833.3, 625.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashdreamsSettings:
    """window_frames includes the chunk; both in latent frames. autotuned: compile as it comes, with max-autotune; else
    with torch.compile's default mode, which starts in a tenth of the time."""

    shape: VideoShape
    window_frames: int
    chunk_frames: int
    device: torch.device
    dtype: torch.dtype
    autotuned: bool = False


class FlashdreamsPeer:
    """A stream of chunks of latents."""

    def __init__(self, settings: FlashdreamsSettings) -> None:
        from flashdreams.recipes.wan.transformer import wan21
        from flashdreams.recipes.wan.transformer.impl.network import WanDiTNetworkConfig

        if not settings.autotuned:
            wan21.compile_module = torch.compile
        c = settings.shape.transformer
        network = WanDiTNetworkConfig(
            patch_size=c.patch_size,
            text_len=c.text_len,
            in_dim=c.in_channels,
            out_dim=c.out_channels,
            dim=c.dim,
            ffn_dim=c.ffn_dim,
            freq_dim=c.freq_dim,
            text_dim=c.text_dim,
            num_heads=c.num_attention_heads,
            num_layers=c.num_layers,
            cross_attn_norm=c.cross_attn_norm,
            eps=c.eps,
        )
        config = wan21.Wan21TransformerConfig(
            network=network,
            dtype=settings.dtype,
            len_t=settings.chunk_frames,
            window_size_t=settings.window_frames,
        )
        torch.manual_seed(0)
        with torch.device(settings.device):
            self._model: Any = wan21.Wan21Transformer(config)
        self._model.to(settings.device).eval().requires_grad_(False)
        height, width = settings.shape.latent_size
        text = torch.randn((1, c.text_len, c.text_dim), device=settings.device, dtype=settings.dtype)
        self._cache: Any = self._model.initialize_autoregressive_cache(height=height, width=width, text_embeddings=text)
        self._latents = torch.randn(self._model.latent_shape, device=settings.device, dtype=settings.dtype)
        self._times = [torch.tensor(t, device=settings.device, dtype=settings.dtype) for t in (*_TIMES, 0.0)]
        self._device, self._chunks = settings.device, 0

    @torch.no_grad()
    def chunk(self) -> None:
        """Run the passes of the next chunk and its clean pass, and wait."""
        self._cache.start(self._chunks)
        for time in self._times[:-1]:
            self._model.predict_flow(self._latents, time, self._cache)
        self._model.finalize_kv_cache(self._latents, self._times[-1], self._cache)
        self._cache.finalize(self._chunks)
        self._chunks += 1
        torch.cuda.synchronize(self._device)
