"""Owns the training of mini-video's autoencoders: AutoencoderKLWan on short clips, the tiny one on its latents.

Both train in the same step, on the same clips: the tiny encoder to predict the stock one's normalised latents, the tiny
decoder to decode them. In the last phase the stock one is frozen, so that the tiny one fits its final weights. Once a
denoiser has been trained on the latents, `train_decoders` continues with the stock encoder frozen. Independent of text
and noise schedules.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from train.bank import SourceMaterial
from train.budget import TimeBudget
from train.crew import CrewClock
from train.graphs import Replay
from train.session import Average, Master, TrainingSession, adamw, set_rate

from .bank import rendered_groups
from .codec_losses import latent_loss, pixel_loss
from .codecs import (
    POSTERIOR_STD,
    STAGE,
    Codecs,
    codecs_in_use,
    make_codecs,
    measure_codecs,
    restore_codecs,
    save_codecs,
    set_posterior_noise,
)
from .pixel_bank import draw_clips, pixel_bank
from .whole_clip import WholeClips, use_lean_norms

PEAK_RATES = (7e-4, 7e-4)
"""Of the stock autoencoder and of the tiny one. At 2e-3 with batches of 4 crops the stock one learned nothing until
the rate fell (12.1 dB after 60 steps, 13.8 at 5e-4)."""
CONTINUED_RATE = 0.8
WARMUP_STEPS = 100
LATENT_WEIGHT = 0.05
MOMENTS_SHARE = 0.02
MOMENT_DRAWS = 16
MEASURED_CLIPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """until: share of the budget at which it ends. share: side of the crops relative to video_codec_px; clips: batch
    size relative to video_codec_batch; joint: the stock autoencoder trains too.
    """

    until: float
    share: float
    clips: int
    joint: bool


PHASES = (
    Phase(until=0.40, share=0.5, clips=2, joint=True),
    Phase(until=0.75, share=1.0, clips=1, joint=True),
    Phase(until=1.00, share=1.0, clips=1, joint=False),
)
"""Crops first: a quarter of the pixels allows many more steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """phases, and intervals as shares of the budget: in which the rates of the stock and the tiny autoencoder decay,
    and squared errors take over.
    """

    phases: tuple[Phase, ...]
    stock_falls: tuple[float, float]
    tiny_falls: tuple[float, float]
    sharpens: tuple[float, float]


FIRST = Course(phases=PHASES, stock_falls=(0.375, 0.75), tiny_falls=(0.75, 1.0), sharpens=(0.5, 0.8))
CONTINUED = replace(FIRST, phases=PHASES[1:])
DECODERS = Course(
    phases=(Phase(until=1.0, share=1.0, clips=1, joint=True),),
    stock_falls=(0.5, 1.0), tiny_falls=(0.5, 1.0), sharpens=(-1.0, 0.0),
)  # fmt: skip


class CodecTrainer:
    """The state of a step: networks, their float32 parameters and averages, and sums for the log.

    encoder: False freezes the stock encoder and the moments, and with them the latents.
    """

    def __init__(self, session: TrainingSession, codecs: Codecs, bank: Tensor, *, encoder: bool = True) -> None:
        self.session, self.codecs, self.bank, self.encoder = session, codecs, bank, encoder
        device, vae = session.device, codecs.vae
        use_lean_norms(vae)
        learning: nn.Module = vae
        self.still: dict[str, Tensor] = {}
        if not encoder:
            learning = nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})
            learns = {name for name, _ in learning.named_parameters()}
            self.still = {name: values.clone() for name, values in vae.state_dict().items() if name not in learns}
        self.masters = [Master(net, dtype=session.dtype, crew=session.crew) for net in (learning, codecs.tiny)]
        vae.to(session.dtype)
        self.optimisers = [adamw(list(master.full), 0.0, device, decay=0.0) for master in self.masters]
        self.averages = [Average(master.full, decay=0.998) for master in self.masters]
        self.sharp = torch.zeros((), device=device)
        self.sums, self.counted = torch.zeros(4, device=device), 0

    def make_step(self, phase: Phase) -> Replay:
        """One step of a phase, captured on a GPU."""
        session, scale = self.session, self.session.scale
        n, size_px = phase.clips * scale.video_codec_batch, round(phase.share * scale.video_codec_px)
        whole = WholeClips(self.codecs.vae, clips=n, size_px=size_px)

        def step() -> None:
            clips = draw_clips(self.bank, n, scale.video_codec_frames, size_px)
            with torch.set_grad_enabled(phase.joint and self.encoder):
                raw = whole.encode((clips * 2 - 1).to(session.dtype)).float()
            losses = [self._stock_loss(whole, raw, clips)] if phase.joint else []
            losses.append(self._tiny_loss(raw.detach(), clips))
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            for master, optimiser in list(zip(self.masters, self.optimisers, strict=True))[-len(losses) :]:
                master.step(optimiser)

        for optimiser in self.optimisers:
            set_rate(optimiser, 0.0)  # capture executes the step for real
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
            replay = Replay(step, session.device)
        self.sums.zero_()
        self.counted = 0
        return replay

    def _stock_loss(self, whole: WholeClips, raw: Tensor, clips: Tensor) -> Tensor:
        if self.encoder:
            moments = self.codecs.moments
            moments.move_towards(raw.detach(), MOMENTS_SHARE)
            self.session.crew.average([moments.mean, moments.std])
        noisy = raw + POSTERIOR_STD * torch.randn_like(raw)
        decoded = whole.decode(noisy.to(self.session.dtype)).float() / 2 + 0.5
        loss, squared = pixel_loss(decoded, clips, self.sharp)
        self.sums[0] += squared
        self.sums[1] += loss.detach()
        return loss + LATENT_WEIGHT * latent_loss(raw) if self.encoder else loss

    def _tiny_loss(self, raw: Tensor, clips: Tensor) -> Tensor:
        tiny = self.codecs.tiny
        target = self.codecs.moments.normalise(raw)
        own = tiny.encode(clips.to(self.session.dtype)).float()
        noisy = target + POSTERIOR_STD * torch.randn_like(target)
        decoded = tiny.decode(noisy.to(self.session.dtype)).float()
        loss, squared = pixel_loss(decoded, clips, self.sharp)
        error = functional.mse_loss(own, target)
        self.sums[2] += squared
        self.sums[3] += error.detach()
        return loss + functional.l1_loss(own, target) + error

    def after_step(self, phase: Phase) -> None:
        """Update the averages of the trained parts, and count the step."""
        for average in self.averages[0 if phase.joint else 1 :]:
            average.update()
        self.counted += 1

    @torch.no_grad()
    def freeze_stock(self) -> None:
        """Give the stock autoencoder its averaged weights, and measure the moments of its latents."""
        self.averages[0].swap()
        self.masters[0].write()
        scale = self.session.scale
        whole = WholeClips(self.codecs.vae, clips=scale.video_codec_batch, size_px=scale.video_codec_px)
        raws = []
        for _ in range(MOMENT_DRAWS):
            clips = draw_clips(self.bank, scale.video_codec_batch, scale.video_codec_frames, scale.video_codec_px)
            raws.append(whole.encode((clips * 2 - 1).to(self.session.dtype)).float())
        moments = self.codecs.moments
        moments.move_towards(torch.cat(raws), 1.0)
        self.session.crew.average([moments.mean, moments.std])
        for values in (moments.mean, moments.std):
            values.copy_(values.half())

    def save(self, *, frozen: bool) -> None:
        """Write the averaged weights; for a frozen stock autoencoder its own."""
        states = [
            master.named(master.full if frozen and index == 0 else average.values)[0]
            for index, (master, average) in enumerate(zip(self.masters, self.averages, strict=True))
        ]
        self.session.save(STAGE, vae=self.still | states[0], tiny=states[1], moments=self.codecs.moments)

    def finish(self, *, frozen: bool) -> None:
        """Put the averaged weights into the modules, in float32; a frozen stock autoencoder keeps its own."""
        for index, (master, average) in enumerate(zip(self.masters, self.averages, strict=True)):
            if not (frozen and index == 0):
                average.swap()
                master.write()
            master.release()
        self.codecs.vae.float().load_state_dict(self.still, strict=False)

    def log(self, step: int, rate: float) -> None:
        """Log one line: means over the steps since the last line or the phase's start. Synchronises with the device.

        Raises FloatingPointError for losses that are not finite.
        """
        stock, loss, tiny, error = (self.sums / max(1, self.counted)).tolist()
        if not math.isfinite(stock + loss + tiny + error):
            raise FloatingPointError(f"the autoencoders' losses are not finite at step {step}; lower PEAK_RATES")
        self.sums.zero_()
        self.counted = 0
        values = {"tiny_train_psnr_db": _db(tiny), "tiny_latent_error": math.sqrt(error), "rate": rate}
        learning = {"loss": loss, "train_psnr_db": _db(stock)} if stock else {}
        self.session.log(STAGE, step=float(step), **learning, **values)


def train_autoencoder(session: TrainingSession, source: SourceMaterial, seconds: float) -> Codecs:
    """Train for seconds (including rendering), save video_autoencoder.safetensors, return the codecs for inference.

    Continues from that file if it exists, without the first phase.
    """
    began = session.seconds()
    bank = pixel_bank(session, source, session.generator(11))
    took = session.seconds() - began
    session.log(STAGE, event="rendered", clips=float(bank.shape[0]), mib=bank.nbytes / 2**20, took=took)
    codecs = make_codecs(session)
    continued = restore_codecs(session, codecs)
    trainer = CodecTrainer(session, codecs, bank)
    session.seed_draws()
    budget = CrewClock(session.crew, session.device, TimeBudget(max(1.0, seconds - took)))
    peaks = [session.rate * (CONTINUED_RATE if continued else 1.0) * rate for rate in PEAK_RATES]
    _run(trainer, CONTINUED if continued else FIRST, budget, peaks)
    trainer.finish(frozen=True)
    set_posterior_noise(codecs.vae)
    return _trained(session, source, codecs, budget)


def train_decoders(session: TrainingSession, source: SourceMaterial, seconds: float) -> Codecs:
    """Train both decoders and the tiny encoder for seconds on the unchanged latents, which a denoiser was trained on;
    save and return as train_autoencoder, whose file is required.
    """
    began = session.seconds()
    codecs = make_codecs(session)
    session.require(STAGE, vae=codecs.vae, tiny=codecs.tiny, moments=codecs.moments)
    trainer = CodecTrainer(session, codecs, pixel_bank(session, source, session.generator(13)), encoder=False)
    session.seed_draws()
    budget = CrewClock(session.crew, session.device, TimeBudget(max(1.0, seconds - (session.seconds() - began))))
    peaks = [session.rate * CONTINUED_RATE * rate for rate in PEAK_RATES]
    _run(trainer, DECODERS, budget, peaks)
    trainer.finish(frozen=False)
    return _trained(session, source, codecs, budget)


def _trained(session: TrainingSession, source: SourceMaterial, codecs: Codecs, budget: CrewClock) -> Codecs:
    """Save, measure, and return for inference."""
    save_codecs(session, codecs)
    trained = codecs_in_use(session, codecs)
    session.log(STAGE, step=float(budget.steps), **measure_codecs(trained, measured_clips(session, source)))
    return trained


def _run(trainer: CodecTrainer, course: Course, budget: CrewClock, peaks: Sequence[float]) -> None:
    """Each phase takes at least one step."""
    session = trainer.session
    every = 4 * session.scale.log_every
    for phase in course.phases:
        if not phase.joint:
            trainer.freeze_stock()
        replay = trainer.make_step(phase)
        session.log(STAGE, event="phase", share=phase.share, took=budget.budget.elapsed())
        while True:
            fraction, warm = budget.fraction(), min(1.0, (budget.steps + 1) / WARMUP_STEPS)
            set_rate(trainer.optimisers[0], warm * peaks[0] * _falling(fraction, *course.stock_falls))
            set_rate(trainer.optimisers[1], warm * peaks[1] * _falling(fraction, *course.tiny_falls))
            begin, end = course.sharpens
            trainer.sharp.fill_(min(1.0, max(0.0, (fraction - begin) / (end - begin))))
            replay()
            trainer.after_step(phase)
            budget.tick()
            if budget.steps % every == 0:
                trainer.log(budget.steps, budget.rate)
            if budget.budget.due():
                trainer.save(frozen=not phase.joint)
            if budget.fraction() >= phase.until:
                break
        del replay
        _free_memory(session.device)


def _falling(fraction: float, begin: float, end: float) -> float:
    """1 until begin, then linear to 2 % at end."""
    return min(1.0, max(0.02, (end - fraction) / (end - begin)))


def _free_memory(device: torch.device) -> None:
    """Free the memory that a captured step holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measured_clips(session: TrainingSession, source: SourceMaterial) -> Tensor:
    """Clips of held-out combinations, longer than those of training: [n, 3, F, 128, 128] in 0..1."""
    scale = session.scale
    count = min(MEASURED_CLIPS, scale.video_codec_clips // 2)
    groups = rendered_groups(session, source.sprites, count, scale.video_latents, session.generator(12), held_out=True)
    return torch.cat([clip.frames for _, _, clip in groups])


def _db(squared: float) -> float:
    return -10 * math.log10(max(squared, 1e-9))
