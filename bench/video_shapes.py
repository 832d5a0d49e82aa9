"""Owns causal video models with random weights in published shapes, and the FLOPs of their passes.

Speed does not depend on the weights. Random embeddings replace the text encoder. FLOPs count matrix products only: per
layer 2 N (4 d² + 2 d² + 2 d f) for N tokens, width d and MLP width f; 4 N M d for self-attention over M tokens; 4 N L d
for cross-attention over L.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import nn

from pipelines.backends.base import Backend
from pipelines.video.codecs.codec import VideoCodec
from pipelines.video.codecs.tiny import TinyVideoAutoencoder, TinyVideoCodec
from pipelines.video.codecs.tiny_layers import TinyCodecConfig
from pipelines.video.codecs.wan import WanCodec
from pipelines.video.model import VideoNetworks, VideoRuntime
from pipelines.video.wan.actions import ActionEmbedder
from pipelines.video.wan.attention import AttentionBackend, choose_attention
from pipelines.video.wan.config import WanConfig
from pipelines.video.wan.transformer import CausalWanTransformer

H100_DENSE_TFLOPS = 990.0
"""From the data sheet, bfloat16, without sparsity; H100 SXM and H200 alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoShape:
    """Sizes of the transformer, the frame in pixels, the windows to measure (latent frames), and the autoencoders."""

    transformer: WanConfig
    width_px: int
    height_px: int
    windows: tuple[int, ...]
    tiny_vae: TinyCodecConfig
    wan_vae: Mapping[str, Any]

    @property
    def latent_size(self) -> tuple[int, int]:
        """Latent height and width."""
        return self.height_px // 8, self.width_px // 8

    @property
    def frame_tokens(self) -> int:
        """Tokens per latent frame."""
        _, rows, columns = self.transformer.patch_size
        return (self.latent_size[0] // rows) * (self.latent_size[1] // columns)

    def pass_tflop(self, frames: int, window: int) -> float:
        """TFLOPs of one pass of `frames` latent frames that attends to `window` latent frames."""
        c, tokens = self.transformer, frames * self.frame_tokens
        products = 2 * tokens * (6 * c.dim**2 + 2 * c.dim * c.ffn_dim)
        attention = 4 * tokens * c.dim * (window * self.frame_tokens + c.text_len)
        return c.num_layers * (products + attention) / 1e12

    def floor_fps(self, frames: int, window: int, passes: int, tflops: float = H100_DENSE_TFLOPS) -> float:
        """Upper bound on frames a second from arithmetic only, without the autoencoder."""
        return 4 * frames / (passes * self.pass_tflop(frames, window) / tflops)


_TINY = WanConfig(
    num_attention_heads=2, attention_head_dim=16, text_dim=32, text_len=16, freq_dim=32, ffn_dim=64, num_layers=2
)

VIDEO_SHAPES: Mapping[str, VideoShape] = MappingProxyType(
    {
        "wan-1.3b": VideoShape(
            transformer=WanConfig(),
            width_px=832,
            height_px=480,
            windows=(9, 12, 21),
            tiny_vae=TinyCodecConfig(),
            wan_vae=MappingProxyType({}),
        ),
        "wan-1.3b-square": VideoShape(
            transformer=WanConfig(),
            width_px=512,
            height_px=512,
            windows=(9, 21),
            tiny_vae=TinyCodecConfig(),
            wan_vae=MappingProxyType({}),
        ),
        "tiny": VideoShape(
            transformer=_TINY,
            width_px=48,
            height_px=32,
            windows=(6,),
            tiny_vae=TinyCodecConfig(decoder_channels=(16, 8, 8, 8), encoder_channels=(8, 8, 8, 8)),
            wan_vae=MappingProxyType({"base_dim": 8, "num_res_blocks": 1}),
        ),
    }
)


def build_transformer(shape: VideoShape, device: torch.device, dtype: torch.dtype) -> CausalWanTransformer:
    """Random weights on the device, including an action embedder."""
    torch.manual_seed(0)
    with torch.device(device):
        embedder = ActionEmbedder(shape.transformer.dim)
        transformer = CausalWanTransformer(shape.transformer, action_embedder=embedder)
    transformer.eval().requires_grad_(False)
    transformer.set_precision(dtype)
    return transformer


def build_codec(kind: str, shape: VideoShape, device: torch.device, dtype: torch.dtype) -> VideoCodec:
    """kind: tiny or stock. Random weights on the device."""
    torch.manual_seed(1)
    with torch.device(device):
        if kind == "tiny":
            tiny = TinyVideoAutoencoder(shape.tiny_vae).eval().requires_grad_(False)
            return TinyVideoCodec(nn.Module.to(tiny, dtype))
        stock = AutoencoderKLWan(**shape.wan_vae).eval().requires_grad_(False)
        return WanCodec(nn.Module.to(stock, dtype))


def build_runtime(backend: Backend, transformer: CausalWanTransformer, codec: VideoCodec) -> VideoRuntime:
    """What the backend makes of them, with the fastest attention that runs on the device."""
    attention = attention_of(transformer)
    return backend.video(VideoNetworks(transformer=transformer, codec=codec, attention=attention))


def attention_of(transformer: CausalWanTransformer) -> AttentionBackend:
    """The fastest that runs on its device."""
    device, dtype = transformer.device, transformer.dtype
    return choose_attention("auto", device=device, dtype=dtype, head_dim=transformer.head_dim).backend
