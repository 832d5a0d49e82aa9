"""Owns the distillation of the teacher into one to four steps. Independent of pixels.

Distribution matching (Yin et al. 2024, DMD and DMD2): the student's x0 follows the difference between the score of the
teacher (with guidance) and that of a fake network trained on the student's own outputs; a small discriminator on the
fake network's middle features adds the real data's detail; the student's inputs come from its own chains of 1, 2 and 4
steps. Every second batch instead noises real latents (including translation pairs) and adds regression to the real
target, so that image-to-image preserves its input at any strength.
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

from .bank import LatentBank
from .budget import TimeBudget
from .diffusion import STAGE as TEACHER
from .diffusion import Forward, Schedule, denoising_loss, draw_batch, fast_forward, make_models
from .graphs import Replay
from .networks import LATENT_CHANNELS, LATENT_SIZE, UNetShape, make_unet, signal_and_noise, text_forward
from .sampling import Denoise, lcm_steps
from .session import Average, Master, TrainingSession, adamw, set_rate, warm_cosine
from .tokenizer import token_ids

STAGE = "distill"
STUDENT_RATE, FAKE_RATE = 3e-4, 6e-4
GUIDANCE = 2.0
FAKE_UPDATES = 2
ADVERSARIAL_SHARE = 0.3
"""Norm of the adversarial gradient as a share of the distribution-matching gradient's."""
REGRESSION_WEIGHT = 1.0
SCORE_STEPS = (20, 980)
IMAGE_STEPS = (99, 139, 199, 259, 259, 299, 379, 499, 499, 499, 599)
CHAINS = (1, 2, 2, 4, 4, 4)


@dataclass(slots=True, kw_only=True)
class Players:
    """The networks: teacher and text are frozen; head, the discriminator, scores middle features [B, C, 12, 12]."""

    teacher: UNet2DConditionModel
    text: CLIPTextModel
    student: UNet2DConditionModel
    fake: UNet2DConditionModel
    head: nn.Module
    schedule: Schedule
    forward: Forward
    empty: Tensor
    device: torch.device
    dtype: torch.dtype

    def run(self, unet: UNet2DConditionModel, x: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(v, middle features) in the training dtype."""
        return self.forward(unet, x.to(self.dtype).contiguous(memory_format=torch.channels_last), t, text)

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
        """Text states [B, 32, 128], without gradient."""
        with torch.no_grad():
            return text_forward(self.text, ids)


def make_head() -> nn.Module:
    """Discriminator over middle features: [B, C, 12, 12] to one logit at each of 5x5 positions."""
    channels = UNetShape().channels[-1]
    return nn.Sequential(
        nn.Conv2d(channels, 128, 4, stride=2, padding=0), nn.SiLU(), nn.GroupNorm(8, 128), nn.Conv2d(128, 1, 1)
    )


def make_players(session: TrainingSession, tokenizer: Any) -> tuple[Players, bool]:
    """Teacher from its checkpoint; student and fake (float32) from theirs, else from the teacher; True if resumed."""
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
        dtype=session.dtype,
    )
    for network in (teacher, text):
        network.to(dtype=session.dtype)
    players.empty = players.states(torch.tensor(token_ids(tokenizer, [""]), device=device))
    return players, continued


def renoise(players: Players, x0: Tensor) -> tuple[Tensor, Tensor]:
    """(x_t, t) of x0 at a random step of SCORE_STEPS."""
    t = torch.randint(*SCORE_STEPS, (x0.shape[0],), device=players.device)
    return players.schedule.noised(x0, torch.randn_like(x0), t), t


def fake_loss(players: Players, x0: Tensor, real: Tensor, text: Tensor) -> Tensor:
    """Denoising loss of the fake network on the student's x0, plus the discriminator loss against real latents."""
    x, t = renoise(players, x0)
    v, middle = players.run(players.fake, x, t, text)
    loss = denoising_loss(players.schedule, x, v, t, x0)
    _, real_middle = players.run(players.fake, players.schedule.noised(real, torch.randn_like(real), t), t, text)
    judged = functional.softplus(players.head(middle.float())).mean()
    return loss + 0.1 * (judged + functional.softplus(-players.head(real_middle.float())).mean())


def matching_gradient(players: Players, x0: Tensor, text: Tensor) -> Tensor:
    """Gradient for x0: (x0_fake - x0_teacher) / mean |x0 - x0_teacher| (DMD, eq. 7, 8), plus the adversarial one."""
    leaf = x0.detach().requires_grad_(True)
    x, t = renoise(players, leaf)
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


class Game:
    """One iteration over static tensors, captured as two graphs: a student forward (for its chains) and the update."""

    def __init__(self, players: Players, batch: int) -> None:
        self.players, device = players, players.device
        shape = (batch, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
        self.x, self.target, self.x0 = (torch.zeros(shape, device=device) for _ in range(3))
        self.t = torch.full((batch,), 499, device=device)
        self.text = players.empty.expand(batch, -1, -1).clone()
        self.regression = torch.zeros((), device=device)
        self.measures = torch.zeros(3, device=device)
        self.student = Master(players.student, dtype=players.dtype)
        self.fake = Master(players.fake, dtype=players.dtype)
        self.head = Master(players.head, dtype=torch.float32)
        rates = ((self.student, STUDENT_RATE), (self.fake, FAKE_RATE), (self.head, FAKE_RATE))
        self.optimisers = [(adamw(master.full, 0.0, device), rate) for master, rate in rates]
        self.denoise = Replay(self._denoise, device)
        self.update = Replay(self._update, device)

    def set_rates(self, factor: float) -> None:
        """Set every learning rate to factor times its peak value."""
        for optimiser, rate in self.optimisers:
            set_rate(optimiser, rate * factor)

    @torch.no_grad()
    def _denoise(self) -> None:
        v = self.players.run(self.players.student, self.x, self.t, self.text)[0]
        self.x0.copy_(self.players.schedule.clean(self.x, v, self.t))

    def _update(self) -> None:
        players, (student, fake, head) = self.players, (optimiser for optimiser, _ in self.optimisers)
        x0 = players.schedule.clean(self.x, players.run(players.student, self.x, self.t, self.text)[0], self.t)
        for _ in range(FAKE_UPDATES):
            loss = fake_loss(players, x0.detach(), self.target, self.text)
            loss.backward()  # type: ignore[no-untyped-call]
            self.fake.step(fake)
            self.head.step(head)
        error = x0.detach() - self.target
        gradient = matching_gradient(players, x0, self.text) + 2 * self.regression * error
        x0.backward(gradient / x0.numel())  # type: ignore[no-untyped-call]
        self.student.step(student)
        self.measures.copy_(torch.stack([loss.detach(), gradient.abs().mean(), error.square().mean()]))

    def prepare(self, bank: LatentBank, generated: bool, rng: random.Random) -> None:
        """Fill the static tensors: a state of one of the student's chains, or real latents noised on the LCM grid."""
        batch = draw_batch(bank, self.t.shape[0])
        self.target.copy_(batch.target)
        self.text.copy_(self.players.states(batch.ids))
        self.regression.fill_(0.0 if generated else REGRESSION_WEIGHT)
        if not generated:
            grid = torch.tensor(IMAGE_STEPS, device=self.t.device)
            self.t.copy_(grid[torch.randint(grid.shape[0], self.t.shape, device=self.t.device)])
            self.x.copy_(self.players.schedule.noised(batch.source, torch.randn_like(self.x), self.t))
            return
        steps = lcm_steps(rng.choice(CHAINS))
        position = rng.randrange(len(steps))
        self.x.normal_()
        self.t.fill_(steps[0])
        for step in steps[1 : position + 1]:
            self.denoise()
            self.t.fill_(step)
            self.x.copy_(self.players.schedule.noised(self.x0, torch.randn_like(self.x), self.t))


def train_student(session: TrainingSession, bank: LatentBank, tokenizer: Any, seconds: float) -> Players:
    """Distil for seconds; save student (averaged) and fake; return the players with the averaged student."""
    players, continued = make_players(session, tokenizer)
    peak = 0.5 if continued else 1.0
    game = Game(players, session.scale.batch)
    average = Average(game.student.full, decay=0.995)
    rng, every = random.Random(session.seed), 2 * session.scale.log_every
    budget, running = TimeBudget(seconds), True
    while running:
        game.set_rates(peak * warm_cosine(budget.steps, budget.fraction(), floor=0.1))
        generated = budget.steps % 2 == 0
        game.prepare(bank, generated, rng)
        game.update()
        average.update()
        running = budget.tick()
        if budget.steps % every < 2 or not running:
            loss, gradient, error = game.measures.tolist()
            session.log(
                STAGE, step=float(budget.steps), fake_loss=loss, gradient=gradient, error=error,
                kind="chain" if generated else "image", rate=budget.steps / budget.elapsed(),
            )  # fmt: skip
        if budget.due():
            session.save("student", unet=game.student.named(average.values)[0])
            session.save("fake", unet=game.fake.named(game.fake.full)[0], head=players.head)
    average.swap()
    for master in (game.student, game.fake):
        master.release()
    session.save("student", unet=players.student)
    session.save("fake", unet=players.fake, head=players.head)
    return players
