"""Ticks side by side on a card: frames are, to the bit, those of one lane; ticks neither wait nor allocate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.backends.table import BACKENDS
from pipelines.core.controls import Control
from pipelines.core.errors import OutOfMemoryError
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.image.model import Condition, ImageModel, ImageRuntime

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def model_of(lanes: int, backend: str = "cuda-graph") -> ImageModel:
    from bench.shapes import SHAPES, build

    parts = build(SHAPES["tiny"], torch.device("cuda"), torch.float16)
    model = parts.model_with(BACKENDS[backend])
    return replace(model, runtime=replace(model.runtime, lanes=lanes))


def play(engine: ImageEngine, control: dict[str, Any], ticks: int = 40, streams: int = 1) -> list[list[Frame]]:
    """Push one picture per stream and tick; guidance moves every tick, prompts and the depth now and then; flush."""
    from bench.image_stream import moving_frames

    opened = [engine.open(Control.of({**control, "seed": number})) for number in range(streams)]
    out: list[list[Frame]] = [[] for _ in opened]
    for tick, picture in enumerate(moving_frames(ticks, 64, 64)):
        for stream in opened:
            change: dict[str, Any] = {"guidance_scale": 1.05 + tick % 7 / 10, "strength": 0.5 + tick % 5 / 10}
            if tick % 6 == 4:
                change["prompt"] = f"a cat | number {tick}"
            if tick % 9 == 7:
                change["depth"] = 1 + tick % 4
            stream.apply(Control.of(change))
            stream.push(picture)
        engine.tick()
        for stream, got in zip(opened, out, strict=True):
            got += stream.pull()
    for stream, got in zip(opened, out, strict=True):
        got += stream.flush()
        stream.close()
    engine.check_integrity()
    return out


def same(one: list[list[Frame]], two: list[list[Frame]]) -> None:
    for own, other in zip(one, two, strict=True):
        assert [frame.source_seq for frame in own] == [frame.source_seq for frame in other]
        assert [f.source_seq for f, g in zip(own, other, strict=True) if not np.array_equal(f.image, g.image)] == []


CASES: dict[str, dict[str, Any]] = {
    "1 step": {"steps": 1},
    "1 step, full": {"steps": 1, "guidance_mode": "full"},
    "2 steps, cut": {"steps": 2, "prompt_change": "cut", "transition_frames": 3},
    "4 steps, self": {"steps": 4, "guidance_mode": "self"},
    "4 steps, onetime, cut": {"steps": 4, "guidance_mode": "onetime", "prompt_change": "cut", "seed_lock": False},
}


@pytest.mark.parametrize("lanes", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_frames_are_those_of_one_lane(name: str, lanes: int) -> None:
    control = {"prompt": "a robot", **CASES[name]}
    expected = play(ImageEngine(model_of(1)), control)
    engine = ImageEngine(model_of(lanes))
    same(expected, play(engine, control))  # captures
    same(expected, play(engine, control))  # replays
    engine.close()


@pytest.mark.parametrize("max_slots", [3, 8])
def test_two_streams(max_slots: int) -> None:
    """With three rows, most ticks admit into a row that the one before has just left."""
    control = {"prompt": "a robot", "steps": 2, "guidance_mode": "self", "prompt_change": "cut"}
    expected = play(ImageEngine(model_of(1), max_slots=max_slots), control, streams=2)
    for lanes in (2, 3):
        engine = ImageEngine(model_of(lanes), max_slots=max_slots)
        for _ in range(2):
            same(expected, play(engine, control, streams=2))
        engine.close()


def test_streams_that_close_mid_flight() -> None:
    from bench.image_stream import moving_frames

    def run(lanes: int) -> list[Frame]:
        engine = ImageEngine(model_of(lanes), max_slots=4)
        kept, out = engine.open(Control(steps=2, seed=1)), []
        for tick, picture in enumerate(moving_frames(40, 64, 64)):
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

    same([run(1)], [run(3)])


def test_a_tick_without_memory_is_run_again() -> None:
    """The denoiser of a batch of three asks for more than the card has."""
    from bench.image_stream import moving_frames

    def run(lanes: int) -> list[Frame]:
        model = model_of(lanes)
        denoiser = model.runtime.denoiser

        def hungry(latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
            if len(latents) == 3:
                torch.empty(2**50, dtype=torch.uint8, device="cuda")
            return denoiser(latents, timestep, condition)

        runtime: ImageRuntime = replace(model.runtime, denoiser=hungry)
        engine = ImageEngine(replace(model, runtime=runtime))
        kept, out = engine.open(Control(steps=2, seed=1)), []
        closed = engine.open(Control(steps=1))
        pictures = moving_frames(20, 64, 64)
        for tick, picture in enumerate(pictures):
            assert kept.push(picture)
            if tick == 8:
                assert closed.push(picture)
                with pytest.raises(OutOfMemoryError):
                    engine.tick()
                closed.close()
            engine.tick()
            out += kept.pull()
        out += kept.flush()
        engine.close()
        return out

    one = run(1)
    assert [frame.source_seq for frame in one] == list(range(20))
    same([one], [run(3)])


def test_another_runtime_takes_over() -> None:
    """From eager to captured, in lanes: float16 pictures differ by rounding only."""
    from bench.image_stream import moving_frames

    def run(backend: str) -> list[Frame]:
        engine = ImageEngine(model_of(1, "eager"))
        other = model_of(3 if backend == "cuda-graph" else 1, backend).runtime
        with engine.open(Control(steps=2)) as stream:
            out: list[Frame] = []
            for tick, picture in enumerate(moving_frames(20, 64, 64)):
                if tick == 7:
                    engine.replace_runtime(other)
                assert stream.push(picture)
                engine.tick()
                out += stream.pull()
            return out + stream.flush()

    eager, captured = run("eager"), run("cuda-graph")
    assert [frame.source_seq for frame in captured] == list(range(20))
    error = [np.abs(a.image.astype(int) - b.image.astype(int)).max() for a, b in zip(eager, captured, strict=True)]
    assert max(error) <= 3, error


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_warm_tick_neither_waits_nor_allocates_nor_captures(
    lanes: int, steps: int, waiting_is_an_error: None
) -> None:
    """While strength and guidance move, and after a prompt that has been encoded before."""
    from bench.image_stream import moving_frames

    engine = ImageEngine(model_of(lanes))
    control = {"steps": steps, "guidance_mode": "self", "strength": 0.7, "prompt": "a cat", "transition_frames": 2}
    with engine.open(Control.of(control)) as stream:
        allocated = 0
        for tick, picture in enumerate(moving_frames(90, 64, 64)):
            measured = tick >= 50
            if tick == 50:
                torch.cuda.synchronize()
                graphs = engine.core.lanes.graphs
            torch.cuda.set_sync_debug_mode("error" if measured else "default")
            prompt = "a dog" if tick % 20 > 10 else "a cat"
            stream.apply(
                Control.of({"guidance_scale": 1.05 + tick % 9 / 10, "strength": 0.6 + tick % 4 / 10, "prompt": prompt})
            )
            while not stream.push(picture):
                engine.tick()
                stream.pull()
            before = torch.cuda.memory_stats()["allocation.all.allocated"]
            engine.tick()
            allocated += measured * (torch.cuda.memory_stats()["allocation.all.allocated"] - before)
            stream.pull()
        torch.cuda.set_sync_debug_mode("default")
        assert allocated == 0
        assert engine.core.lanes.graphs == graphs
    engine.close()


def test_timings_of_ticks_that_overlap() -> None:
    """Every tick has one, in order, and its parts are within the time from its push to its pull."""
    import time

    from bench.image_stream import moving_frames

    engine = ImageEngine(model_of(3))
    with engine.open(Control(steps=1)) as stream:
        pushed, seconds = {}, {}
        for picture in moving_frames(60, 64, 64):
            pushed[picture.seq] = time.perf_counter()
            assert stream.push(picture)
            engine.tick()
            for frame in stream.pull():
                assert frame.source_seq is not None
                seconds[frame.source_seq] = time.perf_counter() - pushed[frame.source_seq]
        stream.flush()
    engine.tick()  # logs what has finished
    timings = engine.log.timings()
    assert [timing.tick for timing in timings] == list(range(60))
    for timing in timings[20:55]:
        parts = timing.encode_ms + timing.denoise_ms + timing.decode_ms
        assert 0 < parts <= 1e3 * seconds[timing.tick]
    engine.close()
