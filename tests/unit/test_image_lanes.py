"""Ticks side by side: whatever the order in which a device runs them, frames are those of one tick after the other.

tests/fakes/queues.py stands in for CUDA streams; tests/gpu runs the same on a card.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from cache.features.steps.accumulated import AccumulatedGate
from cache.features.steps.contract import Action
from pipelines.core.controls import Control
from pipelines.core.errors import OutOfMemoryError
from pipelines.core.execution import Calls, call_eagerly
from pipelines.core.tick_log import TickLog
from pipelines.core.tick_timings import TickTimings
from pipelines.core.transfers import Mark
from pipelines.core.types import Frame
from pipelines.image import state
from pipelines.image.engine import ImageEngine
from pipelines.image.lanes import TickMarks
from pipelines.image.step_caches import Signal, SlotCache, StepCache
from tests.fakes.image_model import ArithmeticDenoiser, BlockCodec, cheap_model, cheap_runtime, frames
from tests.fakes.queues import FakeMark, FakeQueue, FakeQueues, HostsQueue

Ignores = Callable[[FakeMark, FakeQueue], bool]
SEEDS = range(4)


def engine_with(
    lanes: int,
    monkeypatch: pytest.MonkeyPatch,
    seed: int = 0,
    *,
    max_slots: int = 8,
    frames_per_slot: int = 1,
    step_cache: str | StepCache = "",
) -> ImageEngine:
    """Return an engine with that many lanes; with one, on the real CPU."""
    runtime = replace(cheap_runtime(), lanes=lanes)
    with monkeypatch.context() as patch:
        if lanes > 1:
            patch.setattr(state, "device_queues", lambda device: FakeQueues(seed))
        return ImageEngine(
            cheap_model(runtime=runtime), max_slots=max_slots, frames_per_slot=frames_per_slot, step_cache=step_cache
        )


def play(engine: ImageEngine, control: dict[str, object], ticks: int = 24, *, streams: int = 1) -> list[list[Frame]]:
    """Push one picture per stream and tick, with controls that move every tick and prompts that cut, and change the
    depth; then flush."""
    choose = random.Random(1)
    opened = [engine.open(Control.of({**control, "seed": number})) for number in range(streams)]
    out: list[list[Frame]] = [[] for _ in opened]
    for tick, picture in enumerate(frames(ticks)):
        for stream in opened:
            change: dict[str, object] = {"guidance_scale": choose.uniform(0.8, 2.0), "strength": choose.uniform(0.5, 1)}
            if tick % 5 == 3:
                change |= {"prompt": choose.choice(["a cat", "a dog | a fox"]), "negative_prompt": f"blur {tick}"}
            if tick % 7 == 4:
                change["depth"] = choose.randint(1, 4)
            stream.apply(Control.of(change))
            stream.push(picture)
        engine.tick()
        for stream, got in zip(opened, out, strict=True):
            got += stream.pull()
    for stream, got in zip(opened, out, strict=True):
        got += stream.flush()
    engine.check_integrity()
    return out


def same(one: list[list[Frame]], two: list[list[Frame]]) -> bool:
    assert [[f.source_seq for f in own] for own in one] == [[f.source_seq for f in own] for own in two]
    return all(
        np.array_equal(a.image, b.image) for o, t in zip(one, two, strict=True) for a, b in zip(o, t, strict=True)
    )


BASE = {"prompt": "a robot", "transition_frames": 3}
CASES: dict[str, dict[str, object]] = {
    "1 step": {"steps": 1, "depth": 1},
    "1 step, deep": {"steps": 1, "depth": 8, "guidance_mode": "self"},
    "2 steps, cut": {"steps": 2, "prompt_change": "cut", "guidance_mode": "full"},
    "4 steps, self": {"steps": 4, "guidance_mode": "self"},
    "4 steps, onetime, cut": {"steps": 4, "guidance_mode": "onetime", "prompt_change": "cut", "seed_lock": False},
}


@pytest.mark.parametrize("lanes", [2, 3])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("max_slots", [2, 5])
def test_frames_are_those_of_one_lane(name: str, lanes: int, max_slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    control = {**BASE, **CASES[name]}
    expected = play(engine_with(1, monkeypatch, max_slots=max_slots), control)
    for seed in SEEDS:
        assert same(expected, play(engine_with(lanes, monkeypatch, seed, max_slots=max_slots), control)), seed


@pytest.mark.parametrize("frames_per_slot", [1, 2])
def test_two_streams_and_groups_of_frames(frames_per_slot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    control = {**BASE, "steps": 2, "prompt_change": "cut", "guidance_mode": "self"}
    size = {"max_slots": 5, "frames_per_slot": frames_per_slot}
    expected = play(engine_with(1, monkeypatch, **size), control, streams=2)
    for seed in SEEDS:
        assert same(expected, play(engine_with(3, monkeypatch, seed, **size), control, streams=2)), seed


def _gated(times: tuple[int, ...], profile: object) -> SlotCache:
    return SlotCache(gate=AccumulatedGate(steps=len(times), threshold=0.3, first=1))


@pytest.mark.parametrize("frames_per_slot", [1, 2])
@pytest.mark.parametrize(
    "cache", ["taylorseer", StepCache(name="gated", help="", start=_gated, measures=Signal.LATENTS)]
)
def test_step_caches_of_ticks_side_by_side(
    cache: str | StepCache, frames_per_slot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The history of a row, and what gates are told, are those of one tick after the other."""
    control = {**BASE, "steps": 10, "step_function": "dpmpp", "guidance_mode": "none"}
    sizes = {"max_slots": 5, "frames_per_slot": frames_per_slot}
    one = engine_with(1, monkeypatch, step_cache=cache, **sizes)
    expected = play(one, control, ticks=40)
    assert one.core.step_reuse is not None
    assert one.core.step_reuse.planner.counts[Action.REUSE] > 10
    for seed in SEEDS:
        assert same(expected, play(engine_with(3, monkeypatch, seed, step_cache=cache, **sizes), control, ticks=40)), (
            seed
        )


def marks_named(engine: ImageEngine, name: str) -> set[int]:
    return {id(getattr(marks, name)) for lane in engine.core.lanes._marks for marks in lane}


WAITS: dict[str, tuple[str, type[FakeQueue]]] = {
    "for the step before": ("stepped", FakeQueue),
    "of conditioners for the step before": ("stepped", HostsQueue),
    "for pictures and noise": ("uploaded", FakeQueue),
    "of uploads for the encoder": ("encoded", FakeQueue),
    "of downloads for the decoder": ("decoded", FakeQueue),
    "of the decoder for downloads": ("finished", FakeQueue),
    "of the host for the tick before in the lane": ("finished", HostsQueue),
}
"""All waits between queues: the mark and who waits. `written` is not among them: here the caller's work is never
late."""


@pytest.mark.parametrize("name", WAITS)
def test_every_wait_is_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    field, waiter = WAITS[name]
    assert field in {f.name for f in fields(TickMarks)}
    wrong = 0
    for slots, steps in ((2, 2), (8, 1)):  # rows are used again at once, and late
        control = {**BASE, "steps": steps, "prompt_change": "cut", "guidance_mode": "self"}
        expected = play(engine_with(1, monkeypatch, max_slots=slots), control)
        for seed in range(12):
            engine = engine_with(3, monkeypatch, seed, max_slots=slots)
            queues, ignored = engine.core.queues, marks_named(engine, field)
            assert isinstance(queues, FakeQueues)
            queues.ignores = lambda mark, queue, ignored=ignored: id(mark) in ignored and type(queue) is waiter
            wrong += not same(expected, play(engine, control))
    assert wrong > 0


def test_the_host_is_at_most_as_many_ticks_ahead_as_there_are_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_with(3, monkeypatch)
    queues = engine.core.queues
    assert isinstance(queues, FakeQueues)
    monkeypatch.setattr(queues, "advance", lambda: None)  # nothing runs unless the host waits
    stream = engine.open(Control(steps=1))
    in_flight = []
    for picture in frames(8):
        assert stream.push(picture)
        engine.tick()
        stream.pull()
        in_flight.append(stream.accounting.in_flight)
    assert in_flight[:3] == [1, 2, 3], "the host did not wait"
    assert max(in_flight) == 3


@pytest.mark.parametrize("part", ["denoise", "decode"])
def test_a_tick_without_memory_is_run_again_for_the_others(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One lane and three give the same frames when a tick fails and one of two streams is closed."""

    def run(lanes: int, seed: int) -> list[Frame]:
        fail = [False]

        class Denoiser(ArithmeticDenoiser):
            def __call__(self, *args: object) -> torch.Tensor:
                if fail[0] and part == "denoise":
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return super().__call__(*args)  # type: ignore[arg-type]

        class Codec(BlockCodec):
            def decode(self, latents: torch.Tensor) -> torch.Tensor:
                if fail[0] and part == "decode":
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return super().decode(latents)

        with monkeypatch.context() as patch:
            if lanes > 1:
                patch.setattr(state, "device_queues", lambda device: Immediate(seed))
            engine = ImageEngine(cheap_model(runtime=replace(cheap_runtime(Denoiser(), Codec()), lanes=lanes)))
        kept, closed = (engine.open(Control(steps=2, seed=seed)) for seed in (4, 5))
        out: list[Frame] = []
        for tick, picture in enumerate(frames(9)):
            assert kept.push(picture)
            if tick <= 4:
                assert closed.push(picture)
            fail[0] = tick == 4
            if fail[0]:
                with pytest.raises(OutOfMemoryError):
                    engine.tick()
                closed.close()
                fail[0] = False
            engine.tick()
            out += kept.pull()
        return out + kept.flush()

    expected = run(1, 0)
    assert len(expected) == 9
    for seed in SEEDS:
        assert same([expected], [run(3, seed)])


class Immediate(FakeQueues):
    """Runs work as it is issued, as far as its waits allow, so that the host sees errors, like those of an allocator,
    at once."""

    def queue(self) -> FakeQueue:  # type: ignore[override]
        queues = self

        class Prompt(FakeQueue):
            def run(self, work: Callable[[], object]) -> None:
                super().run(work)
                operation = self.operations[-1]
                queues.run_until(operation)

        self._queues.append(Prompt(self))
        return self._queues[-1]


def test_closing_a_stream_mid_flight_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(lanes: int, seed: int) -> list[Frame]:
        engine = engine_with(lanes, monkeypatch, seed, max_slots=4)
        kept, out = engine.open(Control(steps=2, seed=1)), []
        for tick, picture in enumerate(frames(16)):
            if tick % 4 == 0:
                other = engine.open(Control.of({"steps": 3, "depth": 2, "prompt": f"prompt {tick}"}))
            other.push(picture)
            kept.push(picture)
            engine.tick()
            out += kept.pull()
            if tick % 4 == 3:
                other.close()
        out += kept.flush()
        engine.close()
        return out

    expected = run(1, 0)
    assert len(expected) >= 12
    for seed in SEEDS:
        assert same([expected], [run(3, seed)])


def test_another_runtime_takes_over_between_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in flight goes on, with another number of lanes."""
    control = Control(steps=3, guidance_mode="self", guidance_scale=1.4)

    def run(lanes: list[int]) -> list[Frame]:
        monkeypatch.setattr(state, "device_queues", lambda device: FakeQueues(4))
        engine = ImageEngine(cheap_model(runtime=replace(cheap_runtime(), lanes=lanes[0])))
        out: list[Frame] = []
        with engine.open(control) as stream:
            for tick, picture in enumerate(frames(12)):
                if tick % 3 == 2:
                    name = f"runtime {tick}"
                    engine.replace_runtime(replace(cheap_runtime(), lanes=lanes[tick // 3], backend=name))
                    assert stream.info.backend == name
                assert stream.push(picture)
                engine.tick()
                out += stream.pull()
            return out + stream.flush()

    expected = run([1, 1, 1, 1])
    assert [f.source_seq for f in expected] == list(range(12))
    assert same([expected], [run([2, 3, 1, 2])])


class Recording:
    """An executor that notes what it is asked for."""

    graphs = 0

    def __init__(self, keys: list[Hashable]) -> None:
        self._keys = keys

    def run(self, key: Hashable, part: Callable[[], None]) -> None:
        self._keys.append(key)
        part()

    def calls(self, *, warm_calls: int) -> Calls:
        return call_eagerly

    def invalidate(self) -> None:
        pass


@pytest.mark.parametrize("mode", ["none", "self", "full", "onetime"])
def test_no_slider_asks_for_another_graph(mode: str) -> None:
    """Keys hold counts of rows only."""
    keys: list[Hashable] = []
    runtime = replace(cheap_runtime(), make_executor=lambda: Recording(keys))
    engine = ImageEngine(cheap_model(runtime=runtime))
    stream = engine.open(Control.of({"steps": 3, "guidance_mode": mode, "guidance_scale": 1.5, "strength": 0.5}))
    choose, warm = random.Random(0), 0
    for tick, picture in enumerate(frames(40)):
        if tick == 10:
            warm = len(keys)
        stream.apply(
            Control.of(
                {
                    "strength": choose.uniform(0.3, 1.0),
                    "guidance_scale": choose.uniform(1.05, 3.0),
                    "guidance_delta": choose.uniform(0.0, 1.0),
                    "seed": choose.randint(0, 9),
                    "step_function": choose.choice(["lcm", "tcd", "turbo"]),
                    "prompt": choose.choice(["a", "b:2 | c"]),
                    "negative_prompt": choose.choice(["", "d"]),
                }
            )
        )
        assert stream.push(picture)
        engine.tick()
        stream.pull()
    assert len(set(keys[warm:])) == 3, "admit, denoise, finish"
    assert set(keys[warm:]) <= set(keys[:warm])


def test_the_time_that_a_tick_waits_for_others_is_not_its_own() -> None:
    log, moments = TickLog(), (1.0, 3.0, 10.0, 14.0, 15.0)

    class At(Mark):
        def __init__(self, ms: float) -> None:
            super().__init__(torch.device("cpu"))
            self._time_ns = int(1e6 * ms)

    names = ("started", "encoded", "stepping", "stepped", "decoded")
    marks = replace(TickMarks.made(lambda: At(0.0)), **dict(zip(names, map(At, moments), strict=True)))
    TickTimings(log).add(7, marks.timed)
    (timing,) = log.timings()
    assert (timing.tick, timing.encode_ms, timing.denoise_ms, timing.decode_ms) == (7, 2.0, 4.0, 1.0)
