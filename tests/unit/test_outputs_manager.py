"""A session's outputs: every frame reaches all, bounded, independent, and stopped when the session is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from pythonosc.udp_client import SimpleUDPClient

from app.controllers.osc import OscInput, OscOptions
from app.outputs.manager import OutputsError, SessionOutputs, at_once
from app.outputs.output import OutputPhase, OutputReading
from app.outputs.record import Recording, RecordingOptions
from app.session.session import Session
from app.session.table import SessionTable
from app.worker.handle import WorkerHandle
from app.worker.process import WorkerOptions
from app.worker.proxy import SessionState
from pipelines.core.errors import InputError
from pipelines.core.types import Frame
from pipelines.files.loader_options import LoaderOptions
from tests.fakes.clips import grey, picture, play

WAIT_S = 30.0


def soon(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def frame(index: int) -> Frame:
    return Frame(image=picture(index, (32, 24)), pts=index, time_base=Fraction(1, 25), seq=index)


class Kept:
    """An output that records the numbers of its frames."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.stopped = 0

    def offer(self, frame: Frame, arrived_ns: int) -> None:
        self.seen.append(frame.seq)

    def read(self) -> OutputReading:
        phase = OutputPhase.STOPPED if self.stopped else OutputPhase.RUNNING
        return OutputReading(kind="kept", phase=phase, done=len(self.seen), dropped=0, text="")

    def stop(self) -> None:
        self.stopped += 1


def test_frames_reach_every_output_until_it_is_stopped() -> None:
    outputs, first, second = SessionOutputs(), Kept(), Kept()
    outputs.start("first", lambda: first)
    outputs.offer(frame(0), 0)
    outputs.start("second", lambda: second)
    outputs.offer(frame(1), 0)
    assert outputs.stop("first").phase is OutputPhase.STOPPED
    outputs.offer(frame(2), 0)
    assert (first.seen, second.seen) == ([0, 1], [1, 2])
    assert {name: reading.done for name, reading in outputs.read().items()} == {"second": 2}
    outputs.close()
    outputs.close()
    outputs.offer(frame(3), 0)
    assert (second.seen, second.stopped) == ([1, 2], 1)
    with pytest.raises(OutputsError, match="The session is over"):
        outputs.start("third", Kept)


def test_names_and_numbers_are_bounded_and_a_failed_start_leaves_room() -> None:
    outputs = SessionOutputs(maximum=2)

    def broken() -> Kept:
        raise InputError("no camera")

    with pytest.raises(InputError, match="no camera"):
        outputs.start("one", broken)
    outputs.start("one", Kept)
    with pytest.raises(OutputsError, match="already an output 'one'"):
        outputs.start("one", Kept)
    outputs.control("two", Kept)
    with pytest.raises(OutputsError, match="2 outputs are already in use"):
        outputs.start("three", Kept)
    with pytest.raises(OutputsError, match=r"no output 'three'\. Existing outputs: one, two"):
        outputs.stop("three")
    outputs.close()


def test_an_output_that_is_made_while_the_session_ends_is_stopped() -> None:
    outputs, late = SessionOutputs(), Kept()

    def make() -> Kept:
        outputs.close()
        return late

    outputs.start("late", make)
    outputs.offer(frame(0), 0)
    assert (late.stopped, late.seen) == (1, [])


class Waiting(Kept):
    """An output whose other side is silent: its end is waited for."""

    def __init__(self, told: threading.Barrier) -> None:
        super().__init__()
        self._told = told

    def stop(self) -> None:
        self._told.wait(10)  # breaks unless all are told before any has ended
        super().stop()


class Broken(Kept):
    def stop(self) -> None:
        raise RuntimeError("not foreseen")


def test_all_are_told_to_stop_before_any_is_waited_for_and_one_that_fails_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    told = threading.Barrier(6)
    sessions = [SessionOutputs(), SessionOutputs()]
    waiting = [Waiting(told) for _ in range(6)]
    for number, output in enumerate(waiting):
        sessions[number % 2].start(f"{number}", lambda output=output: output)  # type: ignore[misc]
    sessions[0].start("broken", lambda: Broken())
    at_once([outputs.close for outputs in sessions])  # as OutputTable.close
    assert [output.stopped for output in waiting] == [1] * 6
    assert len(failed) == 1


# ---- with a real worker ----


@pytest.fixture(scope="module")
def client() -> Iterator[WorkerHandle]:
    options = WorkerOptions(model="identity", engine=LoaderOptions(width=64, height=48))
    with WorkerHandle(options, max_sessions=2) as client:
        client.wait_ready(60)
        yield client


@pytest.fixture
def session(client: WorkerHandle) -> Iterator[Session]:
    table = SessionTable(client)
    session = table.open(prompt_only=False)
    soon(lambda: session.proxy.state is SessionState.LIVE)
    yield session
    table.stop()


def test_a_session_is_recorded_controlled_and_everything_ends_with_it(session: Session, tmp_path: Path) -> None:
    threads = threading.active_count()
    outputs = SessionOutputs.of(session)
    path = tmp_path / "out.mp4"
    outputs.start("recording", lambda: Recording(RecordingOptions(path=path)))
    osc = OscInput(OscOptions(port=0), session.apply)
    outputs.control("osc", lambda: osc)
    client = SimpleUDPClient(osc.host, osc.port)
    client.send_message("/zoetrope/strength", 0.25)
    captured_ns = []
    for index in range(30):
        captured_ns.append(time.monotonic_ns())
        assert session.submit(picture(index), captured_ns[-1]) is not None
        soon(lambda expected=index + 1: session.proxy.count >= expected)  # type: ignore[misc]
    soon(lambda: session.proxy.control.strength == pytest.approx(0.25))
    assert outputs.read()["osc"].done == 1
    client._sock.close()
    session.close()
    soon(lambda: threading.active_count() == threads)
    assert outputs.read() == {}
    played = play(path)
    assert played.greys == pytest.approx([grey(index) for index in range(30)], abs=2.5)  # none was skipped
    assert played.times_s == pytest.approx([(ns - captured_ns[0]) / 1e9 for ns in captured_ns], abs=2e-5)


def test_outputs_of_a_session_that_is_over_are_closed_at_once(session: Session) -> None:
    session.close()
    outputs = SessionOutputs.of(session)

    def closed() -> bool:
        try:
            outputs.start("x", Kept)
        except OutputsError as error:
            return "is over" in str(error)
        outputs.stop("x")
        return False

    soon(closed)
