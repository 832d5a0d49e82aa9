"""An error in a worker ends one session with a message; the others continue with exactly the same frames as without
it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest
import torch

from app.worker.messages import FromWorker, GpuMemory, SessionEnded
from app.worker.process import Worker
from pipelines.core.contracts import Engine
from pipelines.core.controls import Control
from pipelines.core.errors import StreamError
from pipelines.core.types import Picture
from pipelines.files.memory import what_would_fit
from pipelines.identity import IdentityEngine
from pipelines.image.engine import ImageEngine
from pipelines.image.stream import ImageStream
from tests.fakes.image_model import SIDE_PX, ArithmeticDenoiser, BlockCodec, cheap_model
from tests.fakes.worker_bench import Bench, Front

FRAMES = 12
PLAN = Control(steps=3, depth=3, strength=0.9)


@contextmanager
def worker_of(engine: Engine, side_px: int) -> Iterator[Bench]:
    bench = Bench(engine, side_px)
    yield bench
    bench.close()


def stream_pictures(bench: Bench, *fronts: Front, rounds: int = FRAMES) -> None:
    """Post one picture per iteration to each and receive frames until nothing is in flight."""
    for seq in range(rounds):
        for front in fronts:
            front.post(seq)
        bench.worker.run_once()
        heard(bench, fronts)
    while any(session.busy for session in bench.worker._sessions.values()):
        bench.worker.run_once()
        heard(bench, fronts)


def heard(bench: Bench, fronts: tuple[Front, ...]) -> None:
    """Distribute messages to the fronts, which share a pipe."""
    messages = bench.receive()
    for front in fronts:
        mine: list[FromWorker] = [m for m in messages if getattr(m, "session", None) == front.name]
        front.receive = lambda mine=mine: mine  # type: ignore[misc]
        front.collect()


def ended(front: Front) -> SessionEnded:
    (message,) = front.of(SessionEnded)
    assert isinstance(message, SessionEnded)
    return message


# ---- memory ----


class Hungry(ArithmeticDenoiser):
    """Has memory for `maximum` slots."""

    def __init__(self, maximum: int) -> None:
        super().__init__()
        self.maximum = maximum
        self.attempts: list[weakref.ref[torch.Tensor]] = []

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: object) -> torch.Tensor:
        activations = latents * 2
        if len(latents) > self.maximum:
            self.attempts.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().__call__(latents, timestep, condition)  # type: ignore[arg-type]


class HungryCodec(BlockCodec):
    """Runs out of memory while decoding in the ticks of `fails`, after the step."""

    def __init__(self, fails: set[int]) -> None:
        self.fails = fails
        self.calls = 0

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls in self.fails:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return super().decode(latents)


def alone(model: Callable[[], ImageEngine]) -> list[Picture]:
    """Return the frames of a session that has an engine to itself."""
    with worker_of(model(), SIDE_PX) as bench:
        front = bench.front("a", outputs=16, control=PLAN)
        stream_pictures(bench, front)
        assert front.sources == list(range(FRAMES))
        return front.pictures


@pytest.mark.parametrize("where", ["denoiser", "codec"])
def test_out_of_memory_ends_the_session_that_was_too_much_and_the_other_loses_nothing(where: str) -> None:
    denoiser, codec = Hungry(4 if where == "denoiser" else 99), HungryCodec({3} if where == "codec" else set())
    expected = alone(lambda: ImageEngine(cheap_model()))
    with worker_of(ImageEngine(cheap_model(denoiser=denoiser, codec=codec)), SIDE_PX) as bench:
        one = bench.front("a", outputs=16, control=PLAN)
        two = bench.front("b", outputs=16, control=PLAN)
        held: list[list[object]] = []
        engine = bench.worker._engine
        assert isinstance(engine, ImageEngine)
        forget = engine._forget

        def closed(number: int) -> None:
            held.append([attempt() for attempt in denoiser.attempts])
            forget(number)

        engine._forget = closed  # type: ignore[method-assign]
        stream_pictures(bench, one, two)
        message = ended(two)
        assert "cpu has too little memory for" in message.message
        assert "at 16x16" in message.message
        if where == "denoiser":
            assert message.message.endswith("for 6 slots of 1 frames at 16x16.")
            assert (
                message.remedy == "4 slots have run: set depth 2 or steps 2, or start with --size 12x12 to keep all 6."
            )
            assert held == [[None]], "the attempt holds memory when its session closes"
        assert one.of(SessionEnded) == []
        assert one.sources == list(range(FRAMES))
        for got, wanted in zip(one.pictures, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
        assert engine.core.ring.free_rows == engine.core.max_slots
        three = bench.front("c", outputs=16, control=Control(steps=1, depth=1))  # what does fit is let in again
        stream_pictures(bench, one, three, rounds=3)
        assert three.sources == [0, 1, 2]


def test_one_session_that_is_too_much_alone_ends_and_the_worker_lives() -> None:
    with worker_of(ImageEngine(cheap_model(denoiser=Hungry(0))), SIDE_PX) as bench:
        front = bench.front("a", control=PLAN)
        front.post(1)
        bench.worker.run_once()
        front.collect()
        assert "--size 10x10 or smaller" in ended(front).remedy
        bench.worker.run_once()
        assert bench.worker._sessions == {}


@pytest.mark.parametrize(
    ("slots", "ran", "depth", "steps", "words"),
    [
        (8, 4, 4, 4, "4 slots have run: set depth 2 or steps 2, or start with --size 360x360 to keep all 8."),
        (8, 0, 4, 1, "About 4 would fit: set depth 2, or start with --size 360x360 to keep all 8."),
        (8, 8, 4, 4, "About 4 would fit: set depth 2 or steps 2, or start with --size 360x360 to keep all 8."),
        (2, 1, 2, 2, "1 slot has run: set depth 1 or steps 1, or start with --size 360x360 to keep all 2."),
        (1, 0, 1, 4, "Start with --size 360x360 or smaller, or with a 16-bit dtype, or close other programs"),
    ],
)
def test_what_would_fit_is_said_in_numbers(slots: int, ran: int, depth: int, steps: int, words: str) -> None:
    text = what_would_fit(slots=slots, ran=ran, width=512, height=512, multiple_px=8, depth=depth, steps=steps)
    assert text.startswith(words)


# ---- other errors ----


@pytest.mark.parametrize("part", ["prepare_tick", "finish_tick"])
def test_a_stream_that_raises_in_a_tick_ends_its_session_only(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    expected = alone(lambda: ImageEngine(cheap_model()))
    original = getattr(ImageStream, part)
    engine = ImageEngine(cheap_model())
    with worker_of(engine, SIDE_PX) as bench:
        one = bench.front("a", outputs=16, control=PLAN)
        two = bench.front("b", outputs=16, control=PLAN)
        bench.worker.run_once()
        broken = bench.worker._sessions["b"].stream
        ticks = 0

        def fail(stream: ImageStream, *arguments: object) -> None:
            nonlocal ticks
            ticks += stream is broken
            if stream is broken and ticks == 4:
                raise ValueError("this stream is broken")
            original(stream, *arguments)

        monkeypatch.setattr(ImageStream, part, fail)
        stream_pictures(bench, one, two)
        assert ended(two) == SessionEnded(
            session="b", message="The stream failed: ValueError: this stream is broken", remedy="Open a new one."
        )
        assert one.sources == list(range(FRAMES))
        for got, wanted in zip(one.pictures, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


class Blaming(IdentityEngine):
    """Its tick attributes an error to the first stream."""

    def tick(self) -> None:
        if len(self._streams) > 1:
            raise StreamError("The stream is broken.", "Mend it.", stream=self._streams[0])
        super().tick()


def test_the_stream_that_an_engine_names_is_the_one_that_ends() -> None:
    with worker_of(Blaming(width=2, height=2, latency_ticks=0), 2) as bench:
        one, two = bench.front("a"), bench.front("b")
        stream_pictures(bench, one, two, rounds=3)
        assert ended(one) == SessionEnded(session="a", message="The stream is broken.", remedy="Mend it.")
        assert two.sources == [0, 1, 2]


@pytest.mark.parametrize("part", ["push", "pull", "apply", "open"])
def test_an_error_that_should_not_be_ends_one_session(part: str, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(IdentityEngine):
        def open(self, control: Control | None = None, frame_rate: Fraction = Fraction(24)):  # type: ignore[no-untyped-def]  # noqa: ANN202
            if part == "open" and self._streams:
                raise KeyError("prompt")
            stream = super().open(control, frame_rate)
            if len(self._streams) == 2:
                setattr(stream, part, fail)
            return stream

    def fail(*_: object) -> None:
        raise KeyError("prompt")

    with worker_of(Broken(width=2, height=2, latency_ticks=0), 2) as bench:
        one, two = bench.front("a"), bench.front("b")
        bench.worker.run_once()
        if part == "apply":
            two.apply(Control(strength=0.3))
        stream_pictures(bench, one, two, rounds=3)
        assert ended(two).message == "The stream failed: KeyError: 'prompt'"
        assert one.sources == [0, 1, 2]
    assert "an unexpected error ends a session" in caplog.text
    assert "Traceback" in caplog.text


# ---- integrity ----


def leaked_row(engine: ImageEngine) -> None:
    engine.core.ring.acquire()


def lost_buffer(engine: ImageEngine) -> None:
    next(iter(engine._streams.values()))._outputs._readback.acquire()


def wrong_count(engine: ImageEngine) -> None:
    next(iter(engine._streams.values()))._taken += 1


@pytest.mark.parametrize("breaks", [leaked_row, lost_buffer, wrong_count])
def test_an_idle_engine_that_is_inconsistent_ends_its_sessions_and_the_log_says_why(
    breaks: Callable[[ImageEngine], None], caplog: pytest.LogCaptureFixture
) -> None:
    engine = ImageEngine(cheap_model())
    with worker_of(engine, SIDE_PX) as bench:
        one, two = bench.front("a", control=PLAN), bench.front("b", control=PLAN)
        stream_pictures(bench, one, two, rounds=3)
        bench.worker._next_check_ns = 0
        bench.worker.run_once()
        heard(bench, (one, two))
        assert one.of(SessionEnded) == two.of(SessionEnded) == []
        breaks(engine)
        bench.worker.run_once()
        heard(bench, (one, two))
        assert one.of(SessionEnded) == []  # it is looked at every few seconds
        bench.worker._next_check_ns = 0
        bench.worker.run_once()
        heard(bench, (one, two))
        for front in (one, two):
            assert ended(front).message == "The engine's state is inconsistent, so its frames cannot be trusted."
        assert bench.worker._sessions == {}
    assert "the engine fails its integrity check" in caplog.text
    assert "AssertionError" in caplog.text


def test_a_busy_engine_is_not_checked() -> None:
    class Counting(IdentityEngine):
        checks = 0

        def check_integrity(self) -> None:
            self.checks += 1
            super().check_integrity()

    engine = Counting(width=2, height=2, latency_ticks=3)
    with worker_of(engine, 2) as bench:
        front = bench.front()
        bench.worker.run_once()
        assert engine.checks == 1
        front.post(0)
        for _ in range(3):
            bench.worker._next_check_ns = 0
            bench.worker.run_once()
            assert engine.checks == 1
        bench.worker.run_once()
        assert engine.checks == 2


# ---- turns, and the GPU ----


def test_sessions_that_want_more_rows_than_there_are_take_turns() -> None:
    with worker_of(IdentityEngine(width=2, height=2, latency_ticks=1, max_slots=2), 2) as bench:
        fronts = [bench.front(name, outputs=4) for name in "abcd"]
        stream_pictures(bench, *fronts, rounds=80)
        counts = [len(front.sources) for front in fronts]
        assert min(counts) > 0.8 * max(counts), counts


def test_a_worker_on_a_gpu_tells_its_memory() -> None:
    bench = Bench(IdentityEngine(width=2, height=2))
    memory = GpuMemory(allocated_bytes=3, reserved_bytes=5)
    bench.worker = Worker(bench._theirs, bench.worker._engine, gpu=lambda: memory)
    bench.front()
    bench.worker.run_once()
    bench.worker.run_once()  # within the same second
    assert [message for message in bench.receive() if isinstance(message, GpuMemory)] == [memory]
    bench.close()
