"""Owns the shapes of mini-image's networks (stock diffusers and transformers classes) and the noise schedule.

Independent of data, losses and files. ``unet_forward`` is UNet2DConditionModel.forward without its options, so that
training can read the middle block's features and compile a single graph; tests check that the two are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from .tokenizer import MAX_LENGTH_TOKENS

IMAGE_SIZE_PX = 192
LATENT_CHANNELS = 4
LATENT_SIZE = 48
TEXT_WIDTH = 128
LATENT_SCALE = 1.4
"""diffusers' scaling_factor, which multiplies latents (unit variance) before noise is added. Above 1, since at strength
0.5 the noise must not hide a photograph's edges, and latents of 48x48 have no detail to spare."""
TRAIN_STEPS = 1000
LCM_ORIGIN_STEPS = 50
FIRST_ANGLE, LAST_SIGNAL = 0.03, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetShape:
    """Channels of the three resolutions (48, 24, 12), attention heads, groups per group norm, width of the time
    embedding, to which the pooled text is added.
    """

    channels: tuple[int, int, int] = (64, 96, 144)
    heads: int = 6
    norm_groups: int = 16
    heads_of_pooling: int = 8
    condition_width: int = 208


def make_autoencoder(encoder_width: int = 32, decoder_width: int = 48) -> AutoencoderTiny:
    """AutoencoderTiny with three resolutions: 192x192x3 in -1..1 to 48x48x4 (a ratio of 12) and back.

    No block runs at full resolution (which would dominate the time on a CPU); the decoder's last two convolutions are
    linear at full size, a learned interpolation of 96x96 features.
    """
    return AutoencoderTiny(
        encoder_block_out_channels=(encoder_width,) * 3,
        decoder_block_out_channels=(decoder_width,) * 3,
        num_encoder_blocks=(0, 2, 3),
        num_decoder_blocks=(4, 2, 0),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=LATENT_SCALE,
    )


def make_text_encoder(tokenizer: Any) -> CLIPTextModel:
    """A 2-layer, 128-wide CLIP text model over tokenizer's ids: [B, 32] int64 to [B, 32, 128]."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def make_unet(shape: UNetShape | None = None) -> UNet2DConditionModel:
    """The denoiser (v-prediction) on [B, 4, 48, 48] latents, conditioned on [B, 32, 128] text states.

    The text also reaches every residual block: pooled over its tokens it is added to the time embedding, which scales
    and shifts each block's features. With attention only, at 12x12, subjects are learned far more slowly.
    """
    shape = shape or UNetShape()
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=shape.channels,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=shape.heads,  # diffusers means the number of heads
        time_embedding_dim=shape.condition_width,
        addition_embed_type="text",
        addition_embed_type_num_heads=shape.heads_of_pooling,
        resnet_time_scale_shift="scale_shift",
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=shape.norm_groups,
    )


def angle_betas() -> list[float]:
    """Betas for which the angle of (signal, noise) = (cos, sin) is linear in t, as in Nichol and Dhariwal 2021.

    From 0.03 at t = 0 to arccos 0.05 at t = 999. At strength 0.5 (t = 499) the signal is 0.71, against 0.53 in Stable
    Diffusion's schedule: latents of 48x48 have no detail to spare. The last signal is not 0, so that epsilon and x0
    determine each other at every t.
    """
    angles = torch.linspace(FIRST_ANGLE, math.acos(LAST_SIGNAL), TRAIN_STEPS, dtype=torch.float64)
    signal = angles.cos().square()
    previous = torch.cat([torch.ones(1, dtype=torch.float64), signal[:-1]])
    return [round(beta, 9) for beta in (1 - signal / previous).tolist()]


def make_scheduler() -> LCMScheduler:
    """The schedule the model is trained for: linear angles, v-prediction, LCM steps."""
    return LCMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        trained_betas=angle_betas(),
        original_inference_steps=LCM_ORIGIN_STEPS,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # unused by LCM; Stable Diffusion pipelines warn without it
        timestep_scaling=10.0,
        prediction_type="v_prediction",
    )


def signal_and_noise(device: torch.device) -> tuple[Tensor, Tensor]:
    """(a, b), each [1000] float32: x_t = a[t] x0 + b[t] eps with a^2 + b^2 = 1 (Ho et al. 2020, equation 4)."""
    cumulative = make_scheduler().alphas_cumprod.double()
    return cumulative.sqrt().float().to(device), (1 - cumulative).sqrt().float().to(device)


def unet_forward(unet: UNet2DConditionModel, x: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """(v [B, 4, h, w], features of the middle block [B, C, h/4, w/4]) of unet at x [B, 4, h, w], t [B], text."""
    emb = unet.time_embedding(unet.time_proj(t).to(x.dtype)) + unet.add_embedding(text)
    x = unet.conv_in(x)
    skips: tuple[Tensor, ...] = (x,)
    for block in unet.down_blocks:
        x, outs = _call_block(block, emb, text, hidden_states=x)
        skips += outs
    x = unet.mid_block(x, emb, encoder_hidden_states=text)
    middle = x
    for block in unet.up_blocks:
        count = len(block.resnets)
        x = _call_block(block, emb, text, hidden_states=x, res_hidden_states_tuple=skips[-count:])
        skips = skips[:-count]
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x))), middle


def text_forward(text_encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """Last hidden states [B, 32, 128] of ids int64 [B, 32]: CLIPTextModel.forward without options and masks."""
    x: Tensor = text_encoder.embeddings(input_ids=ids)
    for layer in text_encoder.encoder.layers:
        attention, y = layer.self_attn, layer.layer_norm1(x)
        q, k, v = (
            project(y).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.layer_norm2(x))
    states: Tensor = text_encoder.final_layer_norm(x)
    return states


def _call_block(block: nn.Module, emb: Tensor, text: Tensor, **inputs: Any) -> Any:
    if getattr(block, "has_cross_attention", False):
        inputs["encoder_hidden_states"] = text
    return block(temb=emb, **inputs)
