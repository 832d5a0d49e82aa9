"""Owns what every training stage shares: settings, clock, metrics log, averaged weights, checkpoint files.

Independent of the networks' shapes and losses. A stage trains for a budget of seconds, writes its weights as float16
safetensors under ``out`` and continues from files with the same names under ``resume``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .crew import ALONE, Crew


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The sizes of a run; FULL is for a GPU, TINY checks on a CPU that every stage runs."""

    image_bank: int
    world_latents: int
    photo_latents: int
    classifier_bank: int
    autoencoder_batch: int
    batch: int
    chunk: int
    eval_scenes: int
    log_every: int
    compile: bool
    """Whether the UNet is compiled (about a minute on an H100) before its step is captured."""
    video_codec_clips: int = 3072
    video_codec_latents: int = 9
    """Number and length in latents of the clips held as pixels for mini-video's autoencoders."""
    video_codec_batch: int = 4
    video_codec_frames: int = 33
    video_codec_px: int = 128
    """Batch size, frames and side of the crops in a step of these autoencoders."""
    video_captions: int = 131_072
    """Captions that the text encoder trains on before pictures."""
    video_openings: int = 40_000
    """Maximum number of one-chunk clips, for the denoiser's openings."""
    video_clips: int = 12288
    video_latents: int = 24
    """Maximum number, and length in latents, of clips for mini-video's denoiser."""
    video_bank_seconds: float = 100.0
    """Time limit for rendering and encoding these clips; half of it for the openings."""
    video_chunk: int = 64
    """Clips rendered at once."""
    video_batch: int = 64
    video_window: int = 15
    """Batch size and latents of a denoiser step."""
    video_streams: int = 64
    """Streams that the student rolls out at once."""

    def with_banks(self, share: float) -> Scale:
        """The same with banks scaled by share, for short trials."""

        def part(count: int) -> int:
            return max(16, int(count * share))

        return replace(
            self,
            image_bank=part(self.image_bank),
            world_latents=part(self.world_latents),
            photo_latents=part(self.photo_latents),
            classifier_bank=part(self.classifier_bank),
            video_codec_clips=part(self.video_codec_clips),
            video_clips=part(self.video_clips),
            video_openings=part(self.video_openings),
            video_bank_seconds=share * self.video_bank_seconds,
        )

    def for_processes(self, count: int) -> Scale:
        """The same for one of count processes that train mini-video together: half the clips per process, so the same
        total with two processes and more with others.
        """
        if count == 1:
            return self
        return replace(
            self,
            video_codec_batch=max(2, self.video_codec_batch // 2),
            video_batch=max(2, self.video_batch // 2),
            video_streams=max(2, self.video_streams // 2),
        )


FULL = Scale(
    image_bank=36_000,
    world_latents=96_000,
    photo_latents=32_000,
    classifier_bank=72_000,
    autoencoder_batch=48,
    batch=192,
    chunk=2048,
    eval_scenes=512,
    log_every=50,
    compile=True,
)
TINY = Scale(
    image_bank=48,
    world_latents=48,
    photo_latents=16,
    classifier_bank=48,
    autoencoder_batch=4,
    batch=8,
    chunk=16,
    eval_scenes=16,
    log_every=1,
    compile=False,
    video_codec_clips=4,
    video_codec_latents=3,
    video_codec_batch=2,
    video_codec_frames=5,
    video_codec_px=32,
    video_captions=512,
    video_openings=8,
    video_clips=8,
    video_latents=12,
    video_bank_seconds=10.0,
    video_chunk=4,
    video_batch=2,
    video_window=12,
    video_streams=2,
)


@dataclass(slots=True, kw_only=True)
class TrainingSession:
    """A run's settings and state. out: folder written; resume: folder read, may lack files; seed: of all randomness.

    crew: the processes that train together; rank 0 logs and saves, each draws its own data. rate: factor on
    mini-video's learning rates, for trials.
    """

    device: torch.device
    out: Path
    resume: Path
    scale: Scale
    seed: int = 7
    crew: Crew = ALONE
    rate: float = 1.0
    records: list[dict[str, float | str]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def generator(self, salt: int, device: torch.device | None = None) -> torch.Generator:
        """A generator on the device (None: the session's) seeded by salt and process."""
        return torch.Generator(device or self.device).manual_seed(self.seed * 1000 + salt + 1_000_003 * self.crew.rank)

    def seed_draws(self) -> None:
        """Seed torch's default generators per process; call after creating the weights, which must be equal."""
        torch.manual_seed(self.seed + 1_000_003 * self.crew.rank)

    @property
    def dtype(self) -> torch.dtype:
        """The training dtype: bfloat16 on a GPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started

    def log(self, stage: str, **values: float | str) -> None:
        """Append one JSON line to out/curve.jsonl and keep it in `records`; rank 0 only."""
        if self.crew.rank:
            return
        record: dict[str, float | str] = {"stage": stage, "seconds": round(self.seconds(), 2)}
        record |= {name: round(v, 5) if isinstance(v, float) else v for name, v in values.items()}
        self.records.append(record)
        with (self.out / "curve.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save(self, name: str, **modules: nn.Module | Mapping[str, Tensor]) -> None:
        """Write the modules' tensors as float16 to out/name.safetensors, keys prefixed by the argument's name.

        Rank 0 only.
        """
        if self.crew.rank:
            return
        tensors: dict[str, Tensor] = {}
        for prefix, module in modules.items():
            state = module.state_dict() if isinstance(module, nn.Module) else module
            for key, value in state.items():
                half = value.detach().half() if value.is_floating_point() else value.detach()
                tensors[f"{prefix}.{key}"] = half.contiguous().cpu()
        save_file(tensors, self.out / f"{name}.safetensors")

    def restore(self, name: str, **modules: nn.Module) -> bool:
        """Load modules from name.safetensors of this run, else of resume; False if neither has it."""
        for folder in (self.out, self.resume):
            file = folder / f"{name}.safetensors"
            if file.exists():
                tensors = load_file(file)
                for prefix, module in modules.items():
                    start = f"{prefix}."
                    state = {k.removeprefix(start): v.float() for k, v in tensors.items() if k.startswith(start)}
                    module.load_state_dict({k: v.to(module.state_dict()[k].dtype) for k, v in state.items()})
                return True
        return False

    def require(self, name: str, **modules: nn.Module) -> None:
        """`restore`; raises FileNotFoundError with the stage that writes the file."""
        if not self.restore(name, **modules):
            raise FileNotFoundError(
                f"no {name}.safetensors in {self.out} or {self.resume}; run the stage {name!r} first"
            )


class Steps(Protocol):
    """The optimiser interface: torch's and train.muon's."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any:
        """One update from the current gradients."""


def trapezoid(step: int, fraction: float, *, warmup_steps: int = 150, decay_from: float = 0.6) -> float:
    """Factor on the learning rate: warm-up by steps, constant, then linear to 2 % over the end of the budget.

    A resumed stage loses less with it than with a second cosine.
    """
    return min(1.0, step / warmup_steps) * min(1.0, max(0.02, (1 - fraction) / (1 - decay_from)))


def warm_cosine(step: int, fraction: float, *, warmup_steps: int = 100, floor: float = 0.02) -> float:
    """Factor on the learning rate: linear warm-up by steps, then a cosine over the budget down to floor."""
    return min(1.0, step / warmup_steps) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fraction)))


def set_rate(optimiser: Steps, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def adamw(
    parameters: list[nn.Parameter], rate: float, device: torch.device, *, beta2: float = 0.99, decay: float = 0.01
) -> torch.optim.AdamW:
    """AdamW with slight weight decay; on a GPU fused, with a tensor rate, so that a captured step can be replayed."""
    if device.type != "cuda":
        return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, beta2), weight_decay=decay)
    tensor = torch.tensor(rate, device=device)
    return torch.optim.AdamW(parameters, lr=tensor, betas=(0.9, beta2), weight_decay=decay, fused=True, capturable=True)


class Master:
    """Float32 master weights of modules that compute in another dtype (Micikevicius et al. 2018, section 3.1).

    The modules are converted in place; the optimiser gets ``full``; step() copies gradients and values across.
    crew: gradients are averaged over it.
    """

    def __init__(self, *modules: nn.Module, dtype: torch.dtype, crew: Crew = ALONE) -> None:
        self.modules, self._crew = modules, crew
        self.full = [nn.Parameter(p.detach().float().clone()) for m in modules for p in m.parameters()]
        for module in modules:
            module.to(dtype=dtype)
        self.low = [p for m in modules for p in m.parameters()]

    def step(self, optimiser: Steps, *, max_norm: float = 1.0) -> None:
        """Clip the modules' gradients, step the float32 parameters, write them back and drop the gradients."""
        present = [p.grad for p in self.low if p.grad is not None]
        assert len(present) == len(self.low), "every parameter takes part in the loss"
        for full in self.full:
            full.grad = torch.empty_like(full) if full.grad is None else full.grad
        gradients = [p.grad for p in self.full if p.grad is not None]
        torch._foreach_copy_(gradients, present)
        self._crew.average(gradients)
        for low in self.low:
            low.grad = None
        torch.nn.utils.clip_grad_norm_(self.full, max_norm)
        optimiser.step()
        self.write()

    @torch.no_grad()
    def write(self) -> None:
        """Copy the float32 values into the modules."""
        torch._foreach_copy_(list[Tensor](self.low), list[Tensor](self.full))

    def named(self, values: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """values, one per parameter in order, as one state dictionary per module."""
        rest = iter(values)
        return [{name: next(rest) for name, _ in module.named_parameters()} for module in self.modules]

    def release(self) -> None:
        """Convert the modules back to float32 with the float32 values."""
        for module in self.modules:
            module.float()
        self.low = [p for m in self.modules for p in m.parameters()]
        self.write()


class Average:
    """Exponential moving average of parameters, warmed up as min(decay, (1 + n) / (10 + n))."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.sources = list(parameters)
        self.values = [p.detach().clone() for p in self.sources]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.sources], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Swap the average with the parameters; a second call undoes it."""
        for value, source in zip(self.values, self.sources, strict=True):
            kept = source.detach().clone()
            source.copy_(value)
            value.copy_(kept)
