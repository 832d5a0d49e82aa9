"""Owns the distillation of the teacher into one to four steps. Knows no pixels.

Distribution matching (Yin et al. 2024, DMD and DMD2): the student's x0 follows the difference between the score of the
teacher (with guidance) and that of a fake network trained on the student's own outputs; a small discriminator on the
fake network's middle features adds the real data's detail; the student's inputs come from its own chains of 1, 2 and 4
steps. Every second batch instead noises real latents (translation pairs among them) and adds regression to the real
target, so that image-to-image holds its input at any strength.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPTextModel

from train.bank import LatentBank
from train.diffusion import STAGE as TEACHER
from train.diffusion import (
    Batch,
    Forward,
    Schedule,
    denoising_loss,
    draw_batch,
    encode_text,
    fast_forward,
    make_models,
)
from train.networks import UNetShape, make_unet, signal_and_noise
from train.sampling import Denoise, lcm_chain, lcm_steps
from train.session import Average, Budget, Session, adamw, set_rate, warm_cosine
from train.tokenizer import token_ids

STAGE = "distill"
STUDENT_RATE, FAKE_RATE = 3e-4, 6e-4
GUIDANCE = 2.5
FAKE_UPDATES = 2
ADVERSARIAL_SHARE = 0.3
"""Norm of the adversarial gradient as a share of the distribution-matching gradient's."""
REGRESSION_WEIGHT = 1.0
SCORE_STEPS = (20, 980)
IMAGE_STEPS = (99, 139, 199, 259, 299, 379, 399, 499, 499, 499, 599)
CHAINS = (1, 2, 2, 4, 4, 4)


@dataclass(slots=True, kw_only=True)
class Players:
    """The networks of the game: teacher and text are only read; head scores middle features [B, C, 12, 12]."""

    teacher: UNet2DConditionModel
    text: CLIPTextModel
    student: UNet2DConditionModel
    fake: UNet2DConditionModel
    head: nn.Module
    schedule: Schedule
    forward: Forward
    empty: Tensor
    device: torch.device

    def run(self, unet: UNet2DConditionModel, x: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(v, middle features) in the device's training precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.forward(unet, x.contiguous(memory_format=torch.channels_last), t, text)

    def denoiser(self, unet: UNet2DConditionModel, text: Tensor) -> Denoise:
        """x0 of unet without guidance."""
        return lambda x, t: self.schedule.clean(x, self.run(unet, x, t, text)[0], t)

    def guided(self, text: Tensor, scale: float = GUIDANCE) -> Denoise:
        """x0 of the teacher with classifier-free guidance (Ho and Salimans 2022)."""
        empty = self.empty.expand(text.shape[0], -1, -1)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            with_text = self.run(self.teacher, x, t, text)[0].float()
            without = self.run(self.teacher, x, t, empty)[0].float()
            return self.schedule.clean(x, without + scale * (with_text - without), t)

        return denoise

    def states(self, ids: Tensor) -> Tensor:
        """Text states [B, 32, 128], no gradient, the dtype of the denoiser's input."""
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return encode_text(self.text, ids)


def make_head() -> nn.Module:
    """Discriminator over middle features: [B, C, 12, 12] to one logit for each of 5x5 places."""
    channels = UNetShape().channels[-1]
    return nn.Sequential(
        nn.Conv2d(channels, 128, 4, stride=2, padding=0), nn.SiLU(), nn.GroupNorm(8, 128), nn.Conv2d(128, 1, 1)
    )


def make_players(session: Session, tokenizer: Any) -> tuple[Players, bool]:
    """Teacher from its checkpoint; student and fake from theirs, else from the teacher. True if they were continued."""
    device = session.device
    teacher, text = make_models(session, tokenizer)
    session.require(TEACHER, unet=teacher, text=text)
    student, fake = (make_unet().to(device=device, memory_format=torch.channels_last) for _ in range(2))
    head = make_head().to(device)
    continued = session.restore("student", unet=student) and session.restore("fake", unet=fake, head=head)
    if not continued:
        student.load_state_dict(teacher.state_dict())
        fake.load_state_dict(teacher.state_dict())
    players = Players(
        teacher=teacher,
        text=text,
        student=student,
        fake=fake,
        head=head,
        schedule=Schedule(*signal_and_noise(device)),
        forward=fast_forward(session),
        empty=torch.zeros(1),
        device=device,
    )
    players.empty = players.states(torch.tensor(token_ids(tokenizer, [""]), device=device))
    return players, continued


def student_input(
    players: Players, batch: Batch, text: Tensor, generated: bool, rng: random.Random, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(x_t, t) for the student: the state of one of its own chains, or a real latent noised on the LCM grid."""
    n = batch.target.shape[0]
    noise = torch.randn(batch.target.shape, generator=generator, device=players.device)
    if not generated:
        grid = torch.tensor(IMAGE_STEPS, device=players.device)
        t = grid[torch.randint(grid.shape[0], (n,), generator=generator, device=players.device)]
        return players.schedule.noised(batch.source, noise, t), t
    steps = lcm_steps(rng.choice(CHAINS))
    position = rng.randrange(len(steps))
    t = torch.full((n,), steps[position], device=players.device)
    if position == 0:
        return noise, t
    denoise = players.denoiser(players.student, text)
    x0 = lcm_chain(players.schedule, denoise, noise, steps[:position], generator, None)
    fresh = torch.randn(noise.shape, generator=generator, device=players.device)
    return players.schedule.noised(x0, fresh, t), t


def renoise(players: Players, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(x_t, t) of x0 at a random step of SCORE_STEPS."""
    t = torch.randint(*SCORE_STEPS, (x0.shape[0],), generator=generator, device=players.device)
    eps = torch.randn(x0.shape, generator=generator, device=players.device)
    return players.schedule.noised(x0, eps, t), t


def fake_loss(players: Players, x0: Tensor, real: Tensor, text: Tensor, generator: torch.Generator) -> Tensor:
    """Denoising loss of the fake network on the student's x0 plus the discriminator's loss against real latents."""
    x, t = renoise(players, x0, generator)
    v, middle = players.run(players.fake, x, t, text)
    loss = denoising_loss(players.schedule, x, v, t, x0)
    eps = torch.randn(real.shape, generator=generator, device=players.device)
    _, real_middle = players.run(players.fake, players.schedule.noised(real, eps, t), t, text)
    judged = functional.softplus(players.head(middle.float())).mean()
    return loss + 0.1 * (judged + functional.softplus(-players.head(real_middle.float())).mean())


def matching_gradient(players: Players, x0: Tensor, text: Tensor, generator: torch.Generator) -> Tensor:
    """Gradient for x0: (x0_fake - x0_teacher) / mean |x0 - x0_teacher| (DMD, equations 7, 8), plus the adversarial."""
    leaf = x0.detach().requires_grad_(True)
    x, t = renoise(players, leaf, generator)
    players.fake.requires_grad_(False)
    v, middle = players.run(players.fake, x, t, text)
    players.fake.requires_grad_(True)
    adversarial = torch.autograd.grad(functional.softplus(-players.head(middle.float())).sum(), leaf)[0]
    with torch.no_grad():
        x = x.detach()
        fake = players.schedule.clean(x, v.detach(), t)
        real = players.guided(text)(x, t)
        distance = (x0 - real).abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-2)
        gradient = (fake - real) / distance
        ratio = gradient.norm() / adversarial.norm().clamp(min=1e-12)
        total: Tensor = gradient + ADVERSARIAL_SHARE * ratio * adversarial
        return total


def train_student(session: Session, bank: LatentBank, tokenizer: Any, seconds: float) -> Players:
    """Distil for seconds; save student (averaged) and fake; return the players with the averaged student in place."""
    players, continued = make_players(session, tokenizer)
    peak = 0.5 if continued else 1.0
    student_optimiser = adamw(list(players.student.parameters()), STUDENT_RATE, session.device)
    fake_parameters = [*players.fake.parameters(), *players.head.parameters()]
    fake_optimiser = adamw(fake_parameters, FAKE_RATE, session.device)
    average = Average(players.student, decay=0.995)
    generator, rng = session.generator(31), random.Random(session.seed)
    budget, running = Budget(seconds), True
    while running:
        factor = peak * warm_cosine(budget.steps, budget.fraction(), floor=0.1)
        set_rate(student_optimiser, STUDENT_RATE * factor)
        set_rate(fake_optimiser, FAKE_RATE * factor)
        batch = draw_batch(bank, session.scale.batch, generator)
        text = players.states(batch.ids)
        generated = budget.steps % 2 == 0
        x, t = student_input(players, batch, text, generated, rng, generator)
        x0 = players.schedule.clean(x, players.run(players.student, x, t, text)[0], t)
        for _ in range(FAKE_UPDATES):
            loss = fake_loss(players, x0.detach(), batch.target, text, generator)
            fake_optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(fake_parameters, 1.0)
            fake_optimiser.step()
        gradient = matching_gradient(players, x0, text, generator)
        error = (x0 - batch.target).detach()
        if not generated:
            gradient = gradient + 2 * REGRESSION_WEIGHT * error
        student_optimiser.zero_grad(set_to_none=True)
        x0.backward(gradient / x0.numel())  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(players.student.parameters(), 1.0)
        student_optimiser.step()
        average.update()
        running = budget.tick()
        if budget.steps % session.scale.log_every == 0 or not running:
            kind = "chain" if generated else "image"
            session.log(
                STAGE, step=float(budget.steps), fake_loss=float(loss.detach()), gradient=float(gradient.abs().mean()),
                error=float(error.square().mean()), kind=kind, rate=budget.steps / budget.elapsed(),
            )  # fmt: skip
    average.swap()
    session.save("student", unet=players.student)
    session.save("fake", unet=players.fake, head=players.head)
    return players
