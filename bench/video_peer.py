"""Runs diffusers' AnyFlowFARTransformer3DModel, the transformer of its AnyFlowFARPipeline, for comparison.

Random weights in the same shape, driven as the pipeline does: n passes over a KV cache, then its cache pass, which
encodes all previous frames again. With full_chunk_limit chunks in full it attends to the same window as ours; the
released checkpoints keep 3 and see older frames at a quarter of the tokens.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.video_shapes import VideoShape

STEPS = 4
RELEASED_FULL_CHUNKS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSettings:
    """window_frames: latent frames including the chunk. compiled: blocks compiled by its `compile_repeated_blocks`."""

    shape: VideoShape
    window_frames: int
    device: torch.device
    dtype: torch.dtype
    compiled: bool
    full_chunks: int
    chunk_frames: int = 3


def measure_peer(settings: PeerSettings) -> dict[str, object]:
    """Milliseconds of its passes in the last chunk of the window, and the resulting frames a second."""
    figures: dict[str, object] = {
        "what": "diffusers AnyFlowFARTransformer3DModel",
        "compiled": settings.compiled,
        "window_latents": settings.window_frames,
        "chunk_latents": settings.chunk_frames,
        "chunks_in_full": settings.full_chunks,
    }
    try:
        peer = AnyFlowPeer(settings)
        passes_s = [_seconds(settings.device, peer.denoise) for _ in range(5)]
        figures["first_pass_s"] = round(passes_s[0], 2)
        figures["pass_ms"] = round(1e3 * statistics.median(passes_s[2:]), 2)
        cache_s = [_seconds(settings.device, peer.write_cache) for _ in range(3)]
        figures["cache_pass_ms"] = round(1e3 * min(cache_s), 2)
    except torch.cuda.OutOfMemoryError as error:
        return {**figures, "error": str(error).splitlines()[0]}
    chunk_s = STEPS * statistics.median(passes_s[2:]) + min(cache_s)
    without_cache_s = STEPS * statistics.median(passes_s[2:])
    return {
        **figures,
        "loop_fps": round(4 * settings.chunk_frames / chunk_s, 2),
        "loop_fps_without_cache_pass": round(4 * settings.chunk_frames / without_cache_s, 2),
    }


class AnyFlowPeer:
    """The transformer with a random cache, at the end of a full window."""

    def __init__(self, settings: PeerSettings) -> None:
        from diffusers.models.transformers.transformer_anyflow_far import AnyFlowFARTransformer3DModel

        c, device, dtype = settings.shape.transformer, settings.device, settings.dtype
        chunks = settings.window_frames // settings.chunk_frames
        self.settings, self.partition = settings, [settings.chunk_frames] * chunks
        with torch.device(device):
            self.model: Any = AnyFlowFARTransformer3DModel(
                full_chunk_limit=settings.full_chunks,
                num_attention_heads=c.num_attention_heads,
                attention_head_dim=c.attention_head_dim,
                in_channels=c.in_channels,
                out_channels=c.out_channels,
                text_dim=c.text_dim,
                freq_dim=c.freq_dim,
                ffn_dim=c.ffn_dim,
                num_layers=c.num_layers,
                chunk_partition=tuple(self.partition),
            )
        self.model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        if settings.compiled:
            torch._dynamo.reset()
            self.model.compile_repeated_blocks(fullgraph=True, dynamic=False)
        height, width = settings.shape.latent_size
        size = (1, settings.window_frames, c.in_channels, height, width)
        self.latents = torch.randn(size, device=device, dtype=dtype)
        self.text = torch.randn((1, c.text_len, c.text_dim), device=device, dtype=dtype)
        self.flag = {"num_cached_chunks": chunks - 1, "is_cache_step": False}
        self.cache = self._cache(chunks)

    def _cache(self, chunks: int) -> dict[int, dict[str, torch.Tensor]]:
        """A cache allocated as in the pipeline, with random contents."""
        s, c = self.settings, self.settings.shape.transformer
        in_full = s.full_chunks * s.chunk_frames * s.shape.frame_tokens
        height, width = s.shape.latent_size
        compressed = (chunks - s.full_chunks + 1) * s.chunk_frames * (height // 4) * (width // 4)

        def random(tokens: int) -> torch.Tensor:
            size = (2, 1, c.num_attention_heads, tokens, c.attention_head_dim)
            return torch.randn(size, device=s.device, dtype=s.dtype)

        return {
            layer: {"full_cache": random(in_full), "compressed_cache": random(compressed)}
            for layer in range(c.num_layers)
        }

    @torch.no_grad()
    def denoise(self) -> None:
        """One pass of the last chunk."""
        frames = self.settings.chunk_frames
        times = torch.full((1, frames), 625.0, device=self.settings.device)
        self.model(
            hidden_states=self.latents[:, -frames:],
            timestep=times,
            r_timestep=times,
            encoder_hidden_states=self.text,
            chunk_partition=self.partition,
            kv_cache=self.cache,
            kv_cache_flag=copy.deepcopy(self.flag),
            return_dict=False,
        )

    @torch.no_grad()
    def write_cache(self) -> None:
        """The cache pass at the end of the last chunk but one: the pipeline needs none after the last."""
        frames = self.settings.window_frames - self.settings.chunk_frames
        before = self.partition[:-1]
        zeros = torch.zeros((1, frames), device=self.settings.device)
        height, width = self.settings.shape.latent_size
        mask = self.model.build_attention_mask(
            chunk_partition=before, height=height, width=width, device=self.settings.device, mode="cache"
        )
        self.model(
            hidden_states=self.latents[:, :frames],
            timestep=zeros,
            r_timestep=zeros,
            encoder_hidden_states=self.text,
            attention_mask=mask,
            chunk_partition=before,
            kv_cache=self.cache,
            kv_cache_flag={"num_cached_chunks": len(before) - 1, "is_cache_step": True},
            return_dict=False,
        )


def _seconds(device: torch.device, call: Callable[[], None]) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start
