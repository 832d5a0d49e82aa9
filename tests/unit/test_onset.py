"""When a changed control takes effect, and when its effect is complete, in ticks, for every row of the control table.

The stream has 4 steps and a picture is pushed every tick, so that 4 slots are always in flight. In the tick that
apply() names, one slot is new and three are older: *next tick* reaches all four at once, *next slot* the new one, and
all of them three ticks later (the ring has drained of older slots).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pipelines.core.control_table import CONTROLS, Propagation
from pipelines.core.controls import Control
from pipelines.core.errors import ControlError
from pipelines.core.tick_log import RowRecord
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.image.stream import ImageStream
from tests.fakes.image_model import cheap_model, frames, unet_model

STEPS = 4


class Scale:
    """A LoRA's live scale, as used by the model."""

    value = 1.0

    def set_scale(self, scale: float) -> None:
        self.value = scale


class Bench:
    """A stream in steady state, one picture per tick. `felt`: per tick, whether each row (oldest first) has the
    change."""

    def __init__(self, control: Control) -> None:
        self.lora = Scale()
        self.engine = ImageEngine(cheap_model(lora=self.lora))
        self.stream: ImageStream = self.engine.open(control)
        self.supply = iter(frames(60))
        self.out: list[Frame] = []
        for _ in range(6):
            self.step()

    def step(self) -> list[RowRecord]:
        """Push, tick, pull. Returns the rows of the tick."""
        assert self.stream.push(next(self.supply))
        self.engine.tick()
        self.out += self.stream.pull()
        return list(self.engine.log.ticks()[-1].rows)

    def measure(self, change: Control, felt: Callable[[Bench, RowRecord], bool]) -> tuple[int, int]:
        """Return (onset, convergence) in ticks from the one that apply() names: the first with any row, with all
        rows."""
        named = self.stream.apply(change)
        assert named == self.engine.core.next_tick
        onset = None
        for tick in range(12):
            rows = [felt(self, row) for row in self.step()]
            if onset is None and any(rows):
                onset = tick
            if all(rows):
                assert onset is not None
                return onset, tick
        raise AssertionError("never felt by all rows")

    def birth(self, row: RowRecord) -> dict[str, object]:
        """Return the controls with which a row was admitted."""
        return dict(self.births[row.slot])

    @property
    def births(self) -> dict[int, dict[str, object]]:
        from pipelines.core.tick_log import BirthRecord

        return {
            r.slot: {
                "steps": len(r.timesteps),
                "timesteps": r.timesteps,
                "step_function": r.step_function,
                "guidance_mode": r.guidance_mode,
                "seed": r.seed,
                "seed_lock": r.seed_lock,
            }
            for r in self.engine.log.records()
            if isinstance(r, BirthRecord)
        }

    @property
    def works(self) -> list[str]:
        """What was done with each slot."""
        from pipelines.core.tick_log import BirthRecord

        return [r.work for r in self.engine.log.records() if isinstance(r, BirthRecord)]

    def text(self, row: RowRecord, cell: int) -> torch.Tensor:
        """Return a row's text condition: cell 0 the prompt, 1 the negative prompt."""
        return self.engine.core.ring.tensor("embeds")[row.row, cell]


def _born(name: str, value: object) -> Callable[[Bench, RowRecord], bool]:
    return lambda bench, row: bench.birth(row)[name] == value


def _text(prompt: str, cell: int) -> Callable[[Bench, RowRecord], bool]:
    return lambda bench, row: bench.text(row, cell).equal(bench.engine.core.texts.encode(prompt).embeds)


BASE = {"prompt": "a cat", "steps": STEPS, "strength": 0.5}
MEASURED: dict[str, tuple[dict[str, object], Callable[[Bench, RowRecord], bool]]] = {
    "prompt": ({"prompt": "a robot"}, _text("a robot", 0)),
    "negative_prompt": ({"negative_prompt": "dull"}, _text("dull", 1)),
    "guidance_mode": ({"guidance_mode": "self"}, _born("guidance_mode", "self")),
    "guidance_scale": ({"guidance_scale": 2.5}, lambda bench, row: row.guidance_scale == 2.5),
    "guidance_delta": ({"guidance_delta": 0.5}, lambda bench, row: row.guidance_delta == 0.5),
    "step_function": ({"step_function": "tcd"}, _born("step_function", "tcd")),
    "strength": ({"strength": 1.0}, lambda bench, row: bench.birth(row)["timesteps"] == (999, 759, 499, 259)),
    "steps": ({"steps": 3}, _born("steps", 3)),
    "seed": ({"seed": 77}, _born("seed", 77)),
    "seed_lock": ({"seed_lock": False}, _born("seed_lock", False)),
    "lora_scale": ({"lora_scale": 0.25}, lambda bench, row: bench.lora.value == 0.25),
}
ELSEWHERE = {
    "prompt_change": "test_switching_to_cut_brings_slots_in_flight_along_at_the_next_tick",
    "prompt_blend": "test_a_changed_blend_is_felt_by_new_slots",
    "transition_frames": "test_a_gliding_transition_moves_with_the_births",
    "depth": "test_a_smaller_depth_drains",
    "noise_walk_deg": "test_noise_walk_turns_from_the_next_slot_on",
    "reuse": "test_reuse_is_felt_from_the_next_slot_on",
    "renew": "test_reuse_is_felt_from_the_next_slot_on",
    "bank": "test_the_bank_and_its_strength_hold_from_the_next_slot_on",
    "bank_strength": "test_the_bank_and_its_strength_hold_from_the_next_slot_on",
    "similarity_filter": "test_the_filter_judges_from_the_next_frame_on",
    "similarity_threshold": "test_the_filter_judges_from_the_next_frame_on",
    "similarity_max_skips": "test_the_filter_judges_from_the_next_frame_on",
}


def test_every_control_of_an_image_model_is_measured_here_or_needs_a_new_stream() -> None:
    reopen = {n for n, s in CONTROLS.items() if s.propagation is Propagation.REOPEN}
    images = {n for n, s in CONTROLS.items() if "image" in s.engines}
    assert (set(MEASURED) | set(ELSEWHERE) | reopen) & images == images
    assert all(name in globals() for name in ELSEWHERE.values())


def test_controls_of_video_models_are_refused_and_their_values_as_they_are_taken() -> None:
    bench = Bench(Control.of(BASE))
    for change in (Control(chunk_frames=2), Control(paused=True), Control(prompt_change="flush")):
        with pytest.raises(ControlError):
            bench.stream.apply(change)
    bench.stream.apply(Control(chunk_frames=0, paused=False))


@pytest.mark.parametrize("name", MEASURED)
def test_onset_and_convergence_are_those_of_the_table(name: str) -> None:
    change, felt = MEASURED[name]
    measured = Bench(Control.of(BASE)).measure(Control.of(change), felt)
    expected = {Propagation.NEXT_TICK: (0, 0), Propagation.NEXT_SLOT: (0, STEPS - 1)}
    assert measured == expected[CONTROLS[name].propagation]


@pytest.mark.parametrize("name", [n for n, s in CONTROLS.items() if s.cut_propagation is not None])
def test_a_cut_is_felt_by_all_at_once(name: str) -> None:
    change, felt = MEASURED[name]
    assert CONTROLS[name].cut_propagation is Propagation.NEXT_TICK
    bench = Bench(Control.of({**BASE, "prompt_change": "cut"}))
    assert bench.measure(Control.of(change), felt) == (0, 0)


def test_switching_to_cut_brings_slots_in_flight_along_at_the_next_tick() -> None:
    bench = Bench(Control.of(BASE))
    bench.stream.apply(Control.of({"prompt": "a robot"}))
    robot = _text("a robot", 0)
    assert [robot(bench, row) for row in bench.step()] == [False, False, False, True]
    assert bench.measure(Control(prompt_change="cut"), robot) == (0, 0)


def _distances(bench: Bench, rows: list[RowRecord]) -> list[float]:
    """Return each row's progress from the cat's text to the robot's, 0 to 1."""
    cat, robot = (bench.engine.core.texts.encode(t).embeds for t in ("a cat", "a robot"))
    return [float((bench.text(row, 0) - cat).norm() / (robot - cat).norm()) for row in rows]


def test_a_gliding_transition_moves_with_the_births() -> None:
    bench = Bench(Control.of(BASE))
    bench.stream.apply(Control.of({"prompt": "a robot", "transition_frames": 4}))
    newest = [_distances(bench, bench.step())[-1] for _ in range(6)]
    assert newest == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0], abs=1e-5)


def test_a_cutting_transition_moves_all_rows_with_the_ticks() -> None:
    bench = Bench(Control.of({**BASE, "prompt_change": "cut"}))
    bench.stream.apply(Control.of({"prompt": "a robot", "transition_frames": 4}))
    for expected in (0.25, 0.5, 0.75, 1.0, 1.0):
        assert _distances(bench, bench.step()) == pytest.approx([expected] * STEPS, abs=1e-5)


def test_a_transition_that_is_interrupted_goes_on_from_where_it_was() -> None:
    bench = Bench(Control.of({**BASE, "transition_frames": 4}))
    bench.stream.apply(Control.of({"prompt": "a robot"}))
    assert _distances(bench, bench.step())[-1] == pytest.approx(0.25, abs=1e-5)
    bench.stream.apply(Control.of({"prompt": "a cat"}))
    back = [_distances(bench, bench.step())[-1] for _ in range(4)]
    assert back == pytest.approx([0.1875, 0.125, 0.0625, 0.0], abs=1e-5)


def test_a_changed_blend_is_felt_by_new_slots() -> None:
    bench = Bench(Control.of({**BASE, "prompt": "a cat | a robot"}))
    before = bench.text(bench.step()[-1], 0).clone()
    measured = bench.measure(
        Control(prompt_blend="slerp"), lambda bench, row: not bench.text(row, 0).allclose(before, atol=1e-3)
    )
    assert measured == (0, STEPS - 1)


def test_a_smaller_depth_drains() -> None:
    """Two slots are in flight beyond the new depth: they finish, nothing is lost, and no slot is admitted meanwhile."""
    bench = Bench(Control.of(BASE))
    bench.stream.apply(Control(depth=1))
    refused = 0
    last = next(bench.supply)
    while not bench.stream.push(last):
        bench.engine.tick()
        refused += 1
    assert refused == STEPS - 1
    out = bench.out + bench.stream.flush()
    assert [f.source_seq for f in out] == list(range(7))


def test_noise_walk_turns_from_the_next_slot_on() -> None:
    engine = ImageEngine(cheap_model())
    stream = engine.open(Control(steps=1, noise_walk_deg=0.0))

    def entry() -> torch.Tensor:
        assert stream.generate()
        engine.tick()
        stream.pull()
        return engine.core.ring.tensor("noise")[engine.log.ticks()[-1].rows[-1].row, 0].double().flatten()

    first, second = entry(), entry()
    assert first.equal(second)
    stream.apply(Control(noise_walk_deg=30.0))
    for degrees in (30, 60, 90):
        turned = entry()
        cosine = torch.dot(first, turned) / (first.norm() * turned.norm())
        assert float(torch.rad2deg(torch.acos(cosine))) == pytest.approx(degrees, abs=1e-3)
        assert float(turned.norm() / first.norm()) == pytest.approx(1.0, abs=1e-6)


def test_the_filter_judges_from_the_next_frame_on() -> None:
    engine = ImageEngine(cheap_model())
    stream = engine.open(Control(steps=1, similarity_filter=False, similarity_max_skips=2))
    still = frames(1)[0]

    def skipped(count: int) -> list[bool]:
        seen = []
        for _ in range(count):
            before = stream.accounting.skipped
            assert stream.push(still)
            seen.append(stream.accounting.skipped > before)
            engine.tick()
            stream.pull()
        return seen

    assert skipped(2) == [False, False]
    stream.apply(Control(similarity_filter=True))
    assert skipped(4) == [False, True, True, False]
    stream.apply(Control(similarity_max_skips=1))
    assert skipped(4) == [True, False, True, False]
    stream.apply(Control(similarity_threshold=1.0))
    assert skipped(2) == [False, False]


def test_reuse_is_felt_from_the_next_slot_on() -> None:
    bench = Bench(Control.of(BASE))
    picture = frames(1)[0]

    def work() -> str:
        assert bench.stream.push(picture)
        return bench.works[-1]

    assert [work(), work()] == ["full", "full"]
    bench.engine.tick()
    bench.stream.apply(Control(reuse="exact"))
    assert [work(), work()] == ["full", "hold"]
    bench.stream.apply(Control(renew=True))
    assert [work(), work()] == ["full", "hold"]


def test_the_bank_and_its_strength_hold_from_the_next_slot_on() -> None:
    engine = ImageEngine(unet_model(torch.float32))
    stream, supply = engine.open(Control(steps=STEPS)), iter(frames(10, start=3))

    def columns() -> list[tuple[bool, float]]:
        assert stream.push(next(supply))
        engine.tick()
        of_slots = [slot.conditions.columns["feature_bank"] for slot in stream.active]
        return [(first >= 0, round(strength, 3)) for first, _, strength in of_slots]

    columns()
    stream.apply(Control(bank=True))
    assert columns() == [(False, 0.0), (True, 0.8)]
    stream.apply(Control(bank_strength=0.3))
    assert columns() == [(False, 0.0), (True, 0.8), (True, 0.3)]
    stream.apply(Control(bank=False))
    assert columns()[-1] == (False, 0.0)
