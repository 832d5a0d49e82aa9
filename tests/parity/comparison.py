"""Compares the ring-batched engine with the sequential reference, step by step, for parity and mutation tests."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from pipelines.core.controls import Control
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.image.model import ImageModel
from pipelines.image.noise import NoiseSource
from pipelines.image.stream import ImageStream
from tests.fakes.image_model import BlockCodec, HashPrompts, frames
from tests.parity.observed import Observer
from tests.parity.reference import Sequential, Trace, slot_timesteps

PROMPTS = ("a cat", "a robot", "a house by the sea")
NEGATIVE = "blurred"


@dataclass(kw_only=True)
class Differences:
    """Engine minus reference. latents and stock are divided by max(1, b / a) of their step."""

    eps: list[torch.Tensor] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)
    stock: list[torch.Tensor] = field(default_factory=list)

    def largest(self) -> float:
        """Return the largest difference of the whole comparison."""
        return max(float(d.abs().max()) for d in (*self.eps, *self.latents, *self.stock))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration. Slots get the prompts in turn and every second slot its own noise seed.

    each_step_alone: every step of the reference starts from the engine's state. Otherwise rounding errors propagate
    from step to step (guidance above 1 amplifies it), which in float32 says nothing about the arithmetic.
    """

    mode: str = "none"
    step_function: str = "lcm"
    steps: int = 2
    strength: float = 0.5
    frames_per_slot: int = 1
    slots: int = 3
    g: float = 1.3
    delta: float = 0.9
    prompt_only: bool = False
    each_step_alone: bool = False

    @property
    def control(self) -> Control:
        return Control(
            guidance_mode=self.mode,
            step_function=self.step_function,
            steps=self.steps,
            strength=self.strength,
            guidance_scale=self.g,
            guidance_delta=self.delta,
            negative_prompt=NEGATIVE,
            noise_walk_deg=0.0,
        )


def compare(case: Case, model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> Differences:
    """Run `case` on the engine, admitting one slot per tick, and on the reference."""
    engine = ImageEngine(model, frames_per_slot=case.frames_per_slot, work_dtype=model.dtype)
    stream = engine.open(case.control)
    observer = Observer(engine, monkeypatch)
    pictures = frames(case.slots * case.frames_per_slot)
    for slot in range(case.slots):
        stream.apply(Control.of({"prompt": PROMPTS[slot % 3], "seed": slot % 2}))
        _feed_slot(case, stream, pictures, slot)
        observer.tick()
    while stream.active:
        observer.tick()
    stream.flush()
    differences = Differences()
    for slot in range(case.slots):
        trace = observer.traces[0, slot]
        timesteps = slot_timesteps(case.step_function, case.steps, 1.0 if case.prompt_only else case.strength)
        assert trace.timesteps == timesteps
        for place in range(case.frames_per_slot):
            frame = None if case.prompt_only else pictures[slot * case.frames_per_slot + place]
            given = [(x[place][None], s[place][None]) for x, s in zip(trace.latents, trace.stock, strict=True)]
            expected = _reference(case, model, frame, slot, given if case.each_step_alone else [])
            for step in range(case.steps):
                scale = max(1.0, expected.ratio[step])
                differences.eps.append(trace.eps[step][place] - expected.eps[step][0])
                differences.latents.append((trace.latents[step][place] - expected.latents[step][0]) / scale)
                if case.mode in ("self", "onetime") and step < case.steps - 1:
                    differences.stock.append((trace.stock[step][place] - expected.stock[step][0]) / scale)
    return differences


def _feed_slot(case: Case, stream: ImageStream, pictures: list[Frame], slot: int) -> None:
    if case.prompt_only:
        assert stream.generate(case.frames_per_slot)
        return
    for frame in pictures[slot * case.frames_per_slot : (slot + 1) * case.frames_per_slot]:
        assert stream.push(frame)


def _reference(
    case: Case,
    model: ImageModel,
    frame: Frame | None,
    slot: int,
    given: list[tuple[torch.Tensor, torch.Tensor]],
) -> Trace:
    unet = model.runtime.denoiser.unet  # type: ignore[attr-defined]

    def predict(x: torch.Tensor, t: int, text: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            predicted: torch.Tensor = unet(x, torch.tensor([t]), encoder_hidden_states=text, return_dict=False)[0]
        return predicted

    prompts = HashPrompts()
    drawn = NoiseSource(1, (4, 8, 8), 8).locked(slot % 2, case.steps)
    noise = [n.to(model.dtype) for n in (drawn.entry, *drawn.later)]
    z = None
    if frame is not None:
        image = torch.from_numpy(frame.image).permute(2, 0, 1)[None].to(model.dtype) / 127.5 - 1
        z = BlockCodec().encode(image)
    sequential = Sequential(
        predict=predict,
        alphas=model.schedule.alphas_cumprod,
        step_function=case.step_function,
        mode=case.mode,
        g=case.g,
        delta=case.delta,
    )
    texts = [prompts.encode(text).embeds[None].to(model.dtype) for text in (PROMPTS[slot % 3], NEGATIVE)]
    timesteps = slot_timesteps(case.step_function, case.steps, 1.0 if frame is None else case.strength)
    return sequential.run(z, noise, timesteps, texts[0], texts[1], given)
