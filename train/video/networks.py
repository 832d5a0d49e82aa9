"""Owns the shapes of mini-video's networks: stock diffusers and transformers classes, and the engine's own transformer.

Independent of data, losses and files. At most 16.7 million parameters in total: 32 MiB at 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pipelines.video.codecs.tiny import TinyVideoAutoencoder
from pipelines.video.codecs.tiny_layers import TinyCodecConfig
from pipelines.video.wan.config import WanConfig
from pipelines.video.wan.transformer import CausalWanTransformer

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

VIDEO_SIZE_PX = 128
FRAME_RATE = 16
LATENT_CHANNELS = 16
LATENT_SIZE = 16
TEXT_WIDTH = 128
TEXT_TOKENS = 32
CHUNK_LATENTS = 3

TRANSFORMER = WanConfig(
    num_attention_heads=4,
    attention_head_dim=64,
    in_channels=LATENT_CHANNELS,
    out_channels=LATENT_CHANNELS,
    text_dim=TEXT_WIDTH,
    text_len=TEXT_TOKENS,
    freq_dim=128,
    ffn_dim=1024,
    num_layers=10,
)
TINY_CODEC = TinyCodecConfig(
    latent_channels=LATENT_CHANNELS,
    decoder_channels=(80, 64, 64, 32),
    encoder_channels=(32, 48, 48, 56),
    blocks_per_stage=2,
    encoder_padding="front",
)
"""Coarse stages hold the parameters, fine ones take the time: docs/mini-video.md lists what was tried."""
_WAN_AUTOENCODER: dict[str, Any] = {
    "base_dim": 32,
    "decoder_base_dim": 32,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "z_dim": LATENT_CHANNELS,
}


def make_transformer() -> CausalWanTransformer:
    """The causal denoiser on latents [B, 16, F, 16, 16] with text [B, 32, 128]: 11.2 M parameters."""
    return CausalWanTransformer(TRANSFORMER)


def transformer_config() -> dict[str, Any]:
    """Arguments of diffusers' WanTransformer3DModel with the parameter names and shapes of make_transformer.

    diffusers has no text_len: the pipeline's max_sequence_length sets it.
    """
    config = asdict(TRANSFORMER)
    del config["text_len"]
    return {**config, "patch_size": list(TRANSFORMER.patch_size), "qk_norm": "rms_norm_across_heads"}


def make_stock_transformer() -> WanTransformer3DModel:
    """diffusers' module for the same weights."""
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    return WanTransformer3DModel(**transformer_config())


def make_wan_autoencoder(**changes: Any) -> AutoencoderKLWan:
    """AutoencoderKLWan between frames [B, 3, 1 + 4k, H, W] in -1..1 and latents [B, 16, 1 + k, H / 8, W / 8]: 3.2 M.

    changes: to its configuration (latents_mean and latents_std once known; narrower widths in tests).
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    plain = {"latents_mean": [0.0] * LATENT_CHANNELS, "latents_std": [1.0] * LATENT_CHANNELS}
    return AutoencoderKLWan(**{**_WAN_AUTOENCODER, **plain, **changes})


def set_latent_moments(vae: AutoencoderKLWan, mean: Sequence[float], std: Sequence[float]) -> None:
    """Write the latents' normalisation into the configuration: z = (raw - mean) / std, per channel."""
    assert len(mean) == len(std) == vae.config.z_dim, (len(mean), len(std))
    vae.register_to_config(latents_mean=[float(m) for m in mean], latents_std=[float(s) for s in std])


def make_tiny_autoencoder(config: TinyCodecConfig = TINY_CODEC) -> TinyVideoAutoencoder:
    """The live autoencoder between frames in 0..1 and normalised latents: 1.9 M parameters."""
    return TinyVideoAutoencoder(config)


def make_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """UMT5's encoder, 2 layers, 128 wide, over `vocabulary` token ids: [B, 32] to [B, 32, 128]; 0.5 M parameters."""
    from transformers.models.umt5.configuration_umt5 import UMT5Config
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        relative_attention_max_distance=TEXT_TOKENS,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config)


def encode_text(text_encoder: UMT5EncoderModel, ids: Tensor, mask: Tensor) -> Tensor:
    """The transformer's text input: [B, L, 128] hidden states of ids int64 [B, L], zero after the end of a text.

    mask: [B, L], 1 for the text and its end. UMT5EncoderModel.forward without options, followed by the zeroing of
    pipelines.video.wan.umt5 and diffusers' WanPipeline. Differentiable, without value-dependent branches or device
    synchronisation, so it can be captured in a CUDA graph.
    """
    keep = mask.bool()
    hidden: Tensor = text_encoder.shared(ids)
    for block in text_encoder.encoder.block:
        hidden = _attend(block.layer[0], hidden, keep)
        hidden = block.layer[1](hidden)
    states: Tensor = text_encoder.encoder.final_layer_norm(hidden)
    return states * keep.unsqueeze(-1).to(states.dtype)


def _attend(layer: nn.Module, hidden: Tensor, keep: Tensor) -> Tensor:
    """UMT5's self-attention with its own relative positions in every layer; scores are not scaled."""
    attention: Any = layer.SelfAttention
    normed = layer.layer_norm(hidden)  # type: ignore[operator]
    q, k, v = (attention._shape(project(normed)) for project in (attention.q, attention.k, attention.v))
    length = hidden.shape[1]
    bias = attention.compute_bias(length, length, device=hidden.device).to(q.dtype)
    bias = bias.masked_fill(~keep[:, None, None, :], torch.finfo(q.dtype).min)
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    result: Tensor = hidden + attention.o(mixed.transpose(1, 2).flatten(2))
    return result


def parameters_of(module: nn.Module) -> int:
    """Number of parameters of a module, shared ones counted once."""
    return sum(parameter.numel() for parameter in module.parameters())
