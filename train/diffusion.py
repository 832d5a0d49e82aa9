"""Owns the training of the teacher: v-prediction on latents with captions, and translation pairs (photograph to style).

Knows nothing of pixels beyond the latent bank, nor of the few-step student.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPTextModel

from train.bank import LatentBank
from train.networks import TRAIN_STEPS, make_text_encoder, make_unet, signal_and_noise, unet_forward
from train.session import Average, Budget, Session, adamw, set_rate, warm_cosine
from train.tokenizer import token_ids

STAGE = "diffusion"
PEAK_RATE = 1.2e-3
CONTINUED_RATE = 8e-4
CAPTION_DROPOUT = 0.1
PHOTO_SHARE = 0.27
TRANSLATE_SCENE, TRANSLATE_PHOTO = 0.35, 0.85
TRANSLATE_STEPS = (60, 700)
WEIGHT_CAP = 6.0
"""Largest weight of the squared error of x0, after the min-SNR idea of Hang et al. (2023) for v-prediction."""

Forward = Callable[[UNet2DConditionModel, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def fast_forward(session: Session) -> Forward:
    """unet_forward, compiled where the scale says so."""
    return torch.compile(unet_forward, dynamic=False) if session.scale.compile else unet_forward


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """source: what is noised; target: the x0 wanted, both [B, 4, 48, 48]; ids: int64 [B, 32]; translate: bool [B]."""

    source: Tensor
    target: Tensor
    ids: Tensor
    translate: Tensor


def draw_batch(bank: LatentBank, n: int, generator: torch.Generator) -> Batch:
    """n items, PHOTO_SHARE of them photographs; where translate is set the source is the picture before its style."""
    device = bank.plain.device
    photos = int(bank.photo.sum())
    scenes = bank.photo.shape[0] - photos
    is_photo = torch.rand(n, generator=generator, device=device) < (PHOTO_SHARE if photos else 0.0)
    u = torch.rand(3, n, generator=generator, device=device)
    rows = torch.where(is_photo, scenes + (u[0] * photos).long(), (u[0] * scenes).long())
    share = torch.where(is_photo, TRANSLATE_PHOTO, TRANSLATE_SCENE)
    translate = bank.changed[rows] & (u[1] < share)
    styled = bank.styled[rows].float()
    source = torch.where(translate.view(-1, 1, 1, 1), bank.plain[rows].float(), styled)
    captions = (u[2] * bank.ids.shape[1]).long()
    return Batch(source=source, target=styled, ids=bank.ids[rows, captions].long(), translate=translate)


def draw_steps(translate: Tensor, generator: torch.Generator) -> Tensor:
    """t int64 [B]: uniform over 0..999, over TRANSLATE_STEPS where translate."""
    u = torch.rand(translate.shape, generator=generator, device=translate.device)
    low, high = TRANSLATE_STEPS
    return torch.where(translate, low + (u * (high - low)).long(), (u * TRAIN_STEPS).long())


@dataclass(frozen=True, slots=True)
class Schedule:
    """x_t = a[t] x0 + b[t] eps; x0 = a[t] x_t - b[t] v (Salimans and Ho 2022, section 4)."""

    a: Tensor
    b: Tensor

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of t [B], each [B, 1, 1, 1]."""
        return self.a[t].view(-1, 1, 1, 1), self.b[t].view(-1, 1, 1, 1)

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        a, b = self.at(t)
        return a * x0 + b * eps

    def clean(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """x0 from v, float32."""
        a, b = self.at(t)
        return a * x - b * v.float()


def denoising_loss(schedule: Schedule, x: Tensor, v: Tensor, t: Tensor, target: Tensor) -> Tensor:
    """Squared error of v against the v that gives target; as weight on x0: min(1 + SNR, cap) = min(1/b^2, cap)."""
    squared = (schedule.clean(x, v, t) - target).square().mean((1, 2, 3))
    weight = (1 / schedule.b[t].square()).clamp(max=WEIGHT_CAP)
    return (weight * squared).mean()


def make_models(session: Session, tokenizer: Any) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Untrained UNet and text encoder on the session's device, channels last."""
    torch.manual_seed(session.seed)
    unet = make_unet().to(device=session.device, memory_format=torch.channels_last)
    return unet, make_text_encoder(tokenizer).to(session.device)


def encode_text(text_encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """Last hidden states [B, 32, 128] of ids int64 [B, 32], as the Stable Diffusion pipeline uses them."""
    states: Tensor = text_encoder(ids).last_hidden_state
    return states


def train_teacher(session: Session, bank: LatentBank, tokenizer: Any, seconds: float) -> nn.ModuleDict:
    """Train UNet and text encoder for seconds; save the averages as diffusion.safetensors; return them."""
    device, scale = session.device, session.scale
    unet, text = make_models(session, tokenizer)
    continued = session.restore(STAGE, unet=unet, text=text)
    peak = CONTINUED_RATE if continued else PEAK_RATE
    schedule = Schedule(*signal_and_noise(device))
    forward = fast_forward(session)
    optimiser = adamw([*unet.parameters(), *text.parameters()], peak, device)
    average = Average(unet, text, decay=0.9985)
    empty = torch.tensor(token_ids(tokenizer, [""]), device=device)
    generator = session.generator(21)
    budget, total, running = Budget(seconds), torch.zeros((), device=device), True
    while running:
        set_rate(optimiser, peak * warm_cosine(budget.steps, budget.fraction(), warmup_steps=200))
        batch = draw_batch(bank, scale.batch, generator)
        drop = torch.rand(scale.batch, 1, generator=generator, device=device) < CAPTION_DROPOUT
        t = draw_steps(batch.translate, generator)
        eps = torch.randn(batch.source.shape, generator=generator, device=device)
        x = schedule.noised(batch.source, eps, t).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            states = encode_text(text, torch.where(drop, empty, batch.ids))
            v, _ = forward(unet, x, t, states)
        loss = denoising_loss(schedule, x, v, t, batch.target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([*unet.parameters(), *text.parameters()], 1.0)
        optimiser.step()
        average.update()
        total += loss.detach()
        running = budget.tick()
        if budget.steps % (2 * scale.log_every) == 0 or not running:
            per_second = budget.steps / budget.elapsed()
            session.log(STAGE, step=float(budget.steps), loss=float(total) / (2 * scale.log_every), rate=per_second)
            total.zero_()
    average.swap()
    session.save(STAGE, unet=unet, text=text)
    return nn.ModuleDict({"unet": unet, "text": text})
