"""Owns the training of the teacher: v-prediction on latents with captions, and translation pairs (photograph to style).

Independent of pixels and of the few-step student.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPTextModel

from .bank import LatentBank
from .budget import TimeBudget
from .graphs import Replay
from .muon import Muon
from .networks import TRAIN_STEPS, make_text_encoder, make_unet, signal_and_noise, text_forward, unet_forward
from .session import Average, Master, TrainingSession, set_rate, trapezoid
from .tokenizer import token_ids

STAGE = "diffusion"
PEAK_RATE = 2e-3
CAPTION_DROPOUT = 0.1
PHOTO_SHARE = 0.22
TRANSLATE_SCENE, TRANSLATE_PHOTO = 0.25, 0.85
TRANSLATE_STEPS = (40, 800)
HIGH_STEPS = (600, 1000)
LAST_SHARE, HIGH_SHARE = 0.25, 0.35
WEIGHT_CAP = 6.0
"""Maximum weight of the squared error of x0, after min-SNR weighting (Hang et al. 2023) for v-prediction."""

SUBJECT_WEIGHT = 2.0
"""Extra loss weight of cells that the subject covers: a fifth of the picture, and the hardest to learn."""

Forward = Callable[[UNet2DConditionModel, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def fast_forward(session: TrainingSession) -> Forward:
    """unet_forward, compiled if the scale says so."""
    return torch.compile(unet_forward, dynamic=False) if session.scale.compile else unet_forward


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """source: what is noised; target: the target x0, both [B, 4, 48, 48]; ids: int64 [B, 32].

    translate, photo: bool [B]: source is the picture before its style; the item is a photograph.
    coverage: [B, 1, 48, 48], the fraction of each cell that the subject covers.
    """

    source: Tensor
    target: Tensor
    ids: Tensor
    translate: Tensor
    photo: Tensor
    coverage: Tensor


def draw_batch(bank: LatentBank, n: int, generator: torch.Generator | None = None) -> Batch:
    """n items, PHOTO_SHARE of them photographs; if translate is set, the source is the picture before its style.

    Without a generator the device's default one is used, so that a captured step draws new numbers at each replay.
    """
    device = bank.plain.device
    photos = bank.changed.shape[0] - bank.scenes
    u = torch.rand(4, n, generator=generator, device=device)
    is_photo = u[3] < (PHOTO_SHARE if photos else 0.0)
    rows = torch.where(is_photo, bank.scenes + (u[0] * photos).long(), (u[0] * bank.scenes).long())
    share = torch.where(is_photo, TRANSLATE_PHOTO, TRANSLATE_SCENE)
    translate = bank.changed[rows] & (u[1] < share)
    styled = bank.styled[rows].float()
    source = torch.where(translate.view(-1, 1, 1, 1), bank.plain[rows].float(), styled)
    ids = bank.ids[rows, (u[2] * bank.ids.shape[1]).long()].long()
    return Batch(
        source=source, target=styled, ids=ids, translate=translate, photo=is_photo, coverage=bank.coverage[rows].float()
    )


def draw_steps(batch: Batch, generator: torch.Generator | None = None) -> Tensor:
    """t int64 [B]: mostly high for scenes, where x_t holds little and the text decides; uniform for photographs.

    Scenes: LAST_SHARE at 999, HIGH_SHARE in HIGH_STEPS, the rest below. Translated items: uniform in TRANSLATE_STEPS.
    """
    device, n = batch.translate.device, batch.translate.shape[0]
    u, v = torch.rand(2, n, generator=generator, device=device)
    high = HIGH_STEPS[0] + (u * (HIGH_STEPS[1] - HIGH_STEPS[0])).long()
    scenes = torch.where(v < LAST_SHARE + HIGH_SHARE, high, (u * HIGH_STEPS[0]).long())
    scenes = torch.where(v < LAST_SHARE, TRAIN_STEPS - 1, scenes)
    low, top = TRANSLATE_STEPS
    even = torch.where(batch.translate, low + (u * (top - low)).long(), (u * TRAIN_STEPS).long())
    return torch.where(batch.translate | batch.photo, even, scenes)


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


def denoising_loss(
    schedule: Schedule, x: Tensor, v: Tensor, t: Tensor, target: Tensor, coverage: Tensor | None = None
) -> Tensor:
    """Squared error of v against the target's v, with weight on x0 min(1 + SNR, cap) = min(1/b^2, cap).

    coverage: cells covered by the subject are weighted 1 + SUBJECT_WEIGHT times.
    """
    errors = (schedule.clean(x, v, t) - target).square()
    if coverage is not None:
        errors = errors * (1 + SUBJECT_WEIGHT * coverage)
    squared = errors.mean((1, 2, 3))
    weight = (1 / schedule.b[t].square()).clamp(max=WEIGHT_CAP)
    return (weight * squared).mean()


def make_models(session: TrainingSession, tokenizer: Any) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Untrained UNet and text encoder on the session's device, in channels_last."""
    torch.manual_seed(session.seed)
    unet = make_unet().to(device=session.device, memory_format=torch.channels_last)
    return unet, make_text_encoder(tokenizer).to(session.device)


def encode_text(text_encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """Last hidden states [B, 32, 128] of ids int64 [B, 32], as the Stable Diffusion pipeline uses them."""
    return text_forward(text_encoder, ids)


def train_teacher(session: TrainingSession, bank: LatentBank, tokenizer: Any, seconds: float) -> nn.ModuleDict:
    """Train UNet and text encoder for seconds; save the averaged weights as diffusion.safetensors; return them."""
    device, scale = session.device, session.scale
    unet, text = make_models(session, tokenizer)
    session.restore(STAGE, unet=unet, text=text)
    schedule = Schedule(*signal_and_noise(device))
    forward = fast_forward(session)
    master = Master(unet, text, dtype=session.dtype)
    table = text.get_input_embeddings().weight
    tables = {id(full) for full, low in zip(master.full, master.low, strict=True) if low is table}
    optimiser = Muon(master.full, tables, PEAK_RATE)
    average = Average(master.full, decay=0.9985)
    empty = torch.tensor(token_ids(tokenizer, [""]), device=device)
    total = torch.zeros((), device=device)

    def step() -> None:
        batch = draw_batch(bank, scale.batch)
        drop = torch.rand(scale.batch, 1, device=device) < CAPTION_DROPOUT
        t = draw_steps(batch)
        x = schedule.noised(batch.source, torch.randn_like(batch.source), t).to(session.dtype)
        states = encode_text(text, torch.where(drop, empty, batch.ids))
        v, _ = forward(unet, x.contiguous(memory_format=torch.channels_last), t, states)
        loss = denoising_loss(schedule, x.float(), v, t, batch.target, batch.coverage)
        loss.backward()  # type: ignore[no-untyped-call]
        master.step(optimiser)
        total.add_(loss.detach())

    set_rate(optimiser, 0.0)
    replay = Replay(step, device)
    total.zero_()
    budget, running, every = TimeBudget(seconds), True, 4 * scale.log_every
    while running:
        set_rate(optimiser, PEAK_RATE * trapezoid(budget.steps, budget.fraction()))
        replay()
        average.update()
        running = budget.tick()
        if budget.steps % every == 0 or not running:
            mean = float(total) / ((budget.steps - 1) % every + 1)
            session.log(STAGE, step=float(budget.steps), loss=mean, rate=budget.steps / budget.elapsed())
            total.zero_()
        if budget.due():
            session.save(STAGE, **dict(zip(("unet", "text"), master.named(average.values), strict=True)))
    average.swap()
    master.release()
    session.save(STAGE, unet=unet, text=text)
    return nn.ModuleDict({"unet": unet, "text": text})
