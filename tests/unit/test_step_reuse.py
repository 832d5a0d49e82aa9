"""Caching across steps in the engine: against a plain loop over one slot, and full steps after every change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cache.features.steps.contract import Action, Hold, Schedule, Scheduled, relative_l1
from cache.features.steps.taylor import Taylor
from pipelines.core.controls import Control
from pipelines.core.errors import InputError, ModelError
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.image.loading.networks import UNetDenoiser
from pipelines.image.model import Condition, ImageModel
from pipelines.image.shallow_unet import BranchedDenoiser
from pipelines.image.step_caches import STEP_CACHES, Quantity, Signal, SlotCache, StepCache
from pipelines.image.step_reuse import from_quantity, to_quantity
from pipelines.image.steps import STEP_FUNCTIONS, plan
from tests.fakes.image_model import cheap_model, frames, unet_model

C, S, R = Action
STEPS = 8


def letters(text: str) -> Schedule:
    return tuple({"c": C, "s": S, "r": R}[letter] for letter in text)


def cache_of(schedule: str, **changes: Any) -> StepCache:
    def start(times: tuple[int, ...], profile: object) -> SlotCache:
        return SlotCache(gate=Scheduled(letters(schedule)))

    options = {"name": "test", "help": "", "quantity": Quantity.VELOCITY, "start": start}
    return StepCache(**{**options, **changes})  # type: ignore[arg-type]


def latents_of(engine: ImageEngine, pictures: list[Frame], control: Mapping[str, object]) -> list[torch.Tensor]:
    """Render pictures, one more in flight at every tick; the last latents of each, by slot."""
    stream = engine.open(Control.of(control))
    done: dict[int, torch.Tensor] = {}
    waiting = list(pictures)
    while waiting or stream.active:
        if waiting and stream.push(waiting[0]):
            waiting.pop(0)
        active = stream.active
        engine.tick()
        for slot in active:
            if slot.step == len(slot.birth.plan):
                done[slot.birth.number] = engine.core.ring.tensor("latents")[slot.row, 0].clone()
        stream.pull()
    engine.check_integrity()
    return [done[number] for number in range(len(done))]


def plain(
    model: ImageModel,
    picture: Frame,
    schedule: Schedule,
    control: Mapping[str, Any],
    cut: BranchedDenoiser | None,
    order: int,
) -> torch.Tensor:
    """One slot, spelled out: every output is kept, and extrapolated by its velocity or its deep feature."""
    config, dtype = model.schedule, model.dtype
    engine = ImageEngine(model, max_slots=1, work_dtype=dtype)
    stream = engine.open(Control.of(control))
    stream.push(picture)
    birth = stream.active[0].birth
    image = torch.from_numpy(picture.image).permute(2, 0, 1)[None].to(dtype) / 127.5 - 1
    first = birth.plan[0]
    x = first.a * model.runtime.codec.encode(image) + first.b * birth.noise.entry.to(dtype)
    text = model.prompts.encode(str(control["prompt"])).embeds[None]
    outputs: list[tuple[int, torch.Tensor]] = []
    deeps: list[tuple[int, torch.Tensor]] = []
    guess = Taylor(order=order) if order else Hold()

    def predicted(kept: list[tuple[int, torch.Tensor]], t: int) -> torch.Tensor:
        return sum(
            w * value for w, (_, value) in zip(guess.weights([float(s) for s, _ in kept], float(t)), kept, strict=True)
        )  # type: ignore[return-value]

    for k, action in zip(
        plan(STEP_FUNCTIONS["ddim"], config, tuple(s.timestep for s in birth.plan)), schedule, strict=True
    ):
        t = torch.tensor([k.timestep])
        condition = Condition(embeds=text, pooled=None, time_ids=None, row=t, step=t)
        if action is R:
            x0 = k.a * x - k.b * predicted(outputs, k.timestep)
        elif action is S:
            assert cut is not None
            x0, _ = cut.shallow(x, t, condition, predicted(deeps, k.timestep))
        elif cut is not None:
            x0, deep, _ = cut.full(x, t, condition)
            deeps.insert(0, (k.timestep, deep))
        else:
            x0 = model.runtime.denoiser(x, t, condition)
        if action is not R:
            outputs.insert(0, (k.timestep, (k.a * x - x0) / k.b))
        x = k.a_next * x0 + k.w_eps * (x - k.a * x0) / k.b
    engine.close()
    return x[0]


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("schedule", ["cccccccc", "crcrcrcr", "cccrrcrr", "csscsscs", "csrcsrrc"])
def test_batches_of_slots_equal_a_plain_loop(schedule: str, order: int) -> None:
    """Six slots, each a step behind the one before it."""
    model, shallow = unet_model(torch.float64), "s" in schedule
    control = {"prompt": "a cat", "step_function": "ddim", "steps": STEPS, "strength": 0.5}
    guess = {"extrapolation": Taylor(order=order)} if order else {}
    cache = cache_of(schedule, branch=1 if shallow else 0, output=schedule != "csscsscs", **guess)
    engine = ImageEngine(model, max_slots=8, work_dtype=torch.float64, step_cache=cache)
    denoiser = model.runtime.denoiser
    assert isinstance(denoiser, UNetDenoiser)
    cut = BranchedDenoiser(denoiser, 1) if shallow else None
    pictures = frames(6)
    for picture, ours in zip(pictures, latents_of(engine, pictures, control), strict=True):
        torch.testing.assert_close(
            ours, plain(model, picture, letters(schedule), control, cut, order), rtol=1e-9, atol=1e-9
        )
    assert engine.core.step_reuse is not None
    counts = engine.core.step_reuse.planner.counts
    assert counts == {action: 6 * letters(schedule).count(action) for action in Action}


def test_a_cache_that_always_computes_changes_no_bit() -> None:
    control = {"prompt": "a", "step_function": "dpmpp", "steps": 5, "guidance_mode": "full", "guidance_scale": 2.0}
    pictures = frames(4)
    without = latents_of(ImageEngine(unet_model(torch.float32), frames_per_slot=2), pictures, control)
    for cache in (cache_of("ccccc", branch=1), cache_of("ccccc")):
        cached = latents_of(
            ImageEngine(unet_model(torch.float32), frames_per_slot=2, step_cache=cache), pictures, control
        )
        assert all(torch.equal(a, b) for a, b in zip(without, cached, strict=True))


@pytest.mark.parametrize("mode", ["full", "onetime", "self"])
@pytest.mark.parametrize("frames_per_slot", [1, 2])
def test_slots_do_not_depend_on_what_is_beside_them(frames_per_slot: int, mode: str) -> None:
    control = {"prompt": "a", "step_function": "dpmpp", "steps": STEPS, "guidance_mode": mode, "guidance_scale": 2.0}
    cache = cache_of("ccsrcsrr", branch=1, extrapolation=Taylor(order=1))
    pictures, alone = frames(6), []
    for start in range(0, 6, frames_per_slot):
        engine = ImageEngine(
            unet_model(torch.float64), frames_per_slot=frames_per_slot, work_dtype=torch.float64, step_cache=cache
        )
        alone += latents_of(engine, pictures[start : start + frames_per_slot], control)
    engine = ImageEngine(
        unet_model(torch.float64), frames_per_slot=frames_per_slot, work_dtype=torch.float64, step_cache=cache
    )
    for one, other in zip(alone, latents_of(engine, pictures, control), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


class Scale:
    def set_scale(self, scale: float) -> None:
        pass


CHANGES: dict[str, dict[str, object]] = {
    "nothing": {},
    "guidance_scale": {"guidance_scale": 3.0},
    "guidance off": {"guidance_scale": 0.5},
    "guidance_delta": {"guidance_delta": 0.5},
    "prompt": {"prompt": "a robot"},
    "negative_prompt": {"negative_prompt": "dull"},
    "lora_scale": {"lora_scale": 0.5},
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_step_after_a_change_is_a_full_one(name: str) -> None:
    engine = ImageEngine(cheap_model(lora=Scale()), step_cache=cache_of("crrrrrrr"))
    control = {"step_function": "ddim", "steps": STEPS, "prompt_change": "cut", "prompt": "a cat"}
    stream = engine.open(Control.of({**control, "guidance_mode": "full", "guidance_scale": 2.0}))
    assert engine.core.step_reuse is not None
    counts = engine.core.step_reuse.planner.counts
    for picture in frames(2):
        stream.push(picture)
        engine.tick()
    engine.tick()
    assert counts == {C: 2, S: 0, R: 3}
    stream.apply(Control.of(CHANGES[name]))
    engine.tick()
    assert counts[C] == (2 if name == "nothing" else 4)
    engine.tick()
    assert counts[C] == (2 if name == "nothing" else 4)


def test_a_cut_in_transition_computes_at_every_step() -> None:
    engine = ImageEngine(cheap_model(), step_cache=cache_of("crrrrrrr"))
    control = {"step_function": "ddim", "steps": STEPS, "prompt_change": "cut", "prompt": "a", "transition_frames": 3}
    stream = engine.open(Control.of(control))
    stream.push(frames(1)[0])
    engine.tick()
    stream.apply(Control(prompt=Control.of({"prompt": "b"}).prompt))
    for _ in range(5):
        engine.tick()
    assert engine.core.step_reuse is not None
    assert engine.core.step_reuse.planner.counts == {C: 4, S: 0, R: 2}


class Recorder:
    """A gate that keeps what it is told."""

    def __init__(self, schedule: str) -> None:
        self.told: list[float] = []
        self._schedule = letters(schedule)

    def action(self, step: int) -> Action:
        return self._schedule[step]

    def observe(self, distance: float) -> None:
        self.told.append(distance)


def test_a_gate_is_told_how_far_the_latents_have_moved() -> None:
    gates: list[Recorder] = []

    def start(times: tuple[int, ...], profile: object) -> SlotCache:
        gates.append(Recorder("crcrc"))
        return SlotCache(gate=gates[-1])

    engine = ImageEngine(cheap_model(), max_slots=2, step_cache=cache_of("c", start=start, measures=Signal.LATENTS))
    stream = engine.open(Control.of({"step_function": "ddim", "steps": 5, "prompt": "a"}))
    moved: dict[int, list[float]] = {0: [], 1: [], 2: []}
    waiting = frames(3)
    while waiting or stream.active:
        if waiting and stream.push(waiting[0]):
            waiting.pop(0)
        slots = [(slot, engine.core.ring.tensor("latents")[slot.row].clone()) for slot in stream.active]
        engine.tick()
        for slot, before in slots:
            now = engine.core.ring.tensor("latents")[slot.row]
            moved[slot.birth.number].append(float(relative_l1(now[None], before[None])[0]))
        stream.pull()
    for number, gate in enumerate(gates):  # before step 1, 2, 3, 4; the latents of the first step were not seen above
        assert np.isnan(gate.told[0])
        assert gate.told[2:] == pytest.approx(moved[number][1:3], rel=1e-5)
        assert len(gate.told) == 4


@pytest.mark.parametrize("quantity", Quantity)
def test_quantities(quantity: Quantity) -> None:
    x, eps = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    x0 = (x - b * eps) / a
    cached = to_quantity(quantity, x, x0, a, b)
    expected = {Quantity.CLEAN: x0, Quantity.NOISE: eps, Quantity.VELOCITY: a * eps - b * x0}
    torch.testing.assert_close(cached, expected[quantity])
    torch.testing.assert_close(from_quantity(quantity, x, cached, a, b), x0)


def test_what_cannot_be_used_is_refused_with_a_remedy() -> None:
    with pytest.raises(InputError, match="There is no step cache 'x'"):
        ImageEngine(cheap_model(), step_cache="x")
    with pytest.raises(ModelError, match="which this backend has only whole"):
        ImageEngine(cheap_model(), step_cache="deepcache")
    with pytest.raises(ModelError, match="branches 1 to 1"):
        ImageEngine(unet_model(torch.float32), step_cache=replace(STEP_CACHES["deepcache"], branch=2))
    with pytest.raises(ModelError, match="needs a step profile"):
        ImageEngine(cheap_model(), step_cache="magcache")
    assert all(name == cache.name and cache.help for name, cache in STEP_CACHES.items())


def test_the_features_above_the_branch_are_measured_from_the_last_full_step() -> None:
    gates: list[Recorder] = []

    def start(times: tuple[int, ...], profile: object) -> SlotCache:
        gates.append(Recorder("cssccsss"))
        return SlotCache(gate=gates[-1])

    model = unet_model(torch.float64)
    cache = cache_of("c", start=start, measures=Signal.TOP, branch=1, output=False)
    engine = ImageEngine(model, max_slots=2, work_dtype=torch.float64, step_cache=cache)
    network, tops = engine.core.step_reuse, []
    assert network is not None
    assert network.network is not None
    unet = network.network.network.unet
    handle = unet.conv_in.register_forward_hook(lambda module, given, out: tops.append(out.clone()))
    stream = engine.open(Control.of({"step_function": "ddim", "steps": STEPS, "prompt": "a"}))
    stream.push(frames(1)[0])
    stream.flush()
    handle.remove()
    expected = [np.nan, *(float(relative_l1(tops[s], tops[0])[0]) for s in (1, 2)), np.nan, np.nan]
    expected += [float(relative_l1(tops[s], tops[4])[0]) for s in (5, 6)]
    assert gates[0].told == pytest.approx(expected, rel=1e-5, nan_ok=True)
