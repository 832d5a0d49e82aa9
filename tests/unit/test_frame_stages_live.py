"""Frame stages outside the engine: live sessions count, takes replay and renders show the frames that they add and
drop."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from app.render.frame_times import PUSH_TIME_BASE, Offered, Shown, frame_times
from app.render.job import render
from app.render.request import RenderRequest
from app.takes.machine import describe_machine, recorded_engine
from app.takes.reader import read_take
from app.takes.replay import Replay, ReplayOptions
from app.takes.writer import TakeWriter
from app.worker.messages import (
    ChangeControl,
    ChangeSource,
    InputPosted,
    OutputReady,
    OutputRelease,
    SessionStats,
    StartTake,
    StopTake,
    TakeRecords,
)
from examples.add_a_frame_stage import CornerLogo, Doubler, main
from pipelines.core.contracts import Engine
from pipelines.core.controls import Control
from pipelines.core.frame_stages import FrameStage
from pipelines.core.types import Frame
from pipelines.files.loader_options import LoaderOptions
from pipelines.identity import IdentityEngine
from pipelines.load import load_engine
from tests.fakes.clips import make_clip, play
from tests.fakes.frame_stages import add_test_rows, engine_of
from tests.fakes.image_model import SIDE_PX
from tests.fakes.worker_bench import Bench, Front


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    add_test_rows(monkeypatch)


# ---- a live session ----


@pytest.fixture
def benches() -> Iterator[list[Bench]]:
    made: list[Bench] = []
    yield made
    for bench in made:
        bench.close()


def post(front: Front, seq: int) -> None:
    """Post inputs a microsecond apart, so that the pacer delays nothing."""
    image = np.full((SIDE_PX, SIDE_PX, 3), seq, np.uint8)
    front.inputs.post(Frame(image=image, pts=seq, time_base=Fraction(1, 10**6), seq=seq, captured_ns=1000 * seq))
    front.send(InputPosted(session=front.name))


def exact_stats(stats: SessionStats) -> None:
    assert stats.seen + stats.generated == stats.out + stats.dropped + stats.skipped + stats.in_flight


@pytest.mark.parametrize("kind", ["identity", "image"])
@pytest.mark.parametrize("stages", [(), ("double",), ("every-second",), ("smooth", "double", "every-second")])
def test_a_session_s_counts_hold_in_every_round(kind: str, stages: tuple[str, ...], benches: list[Bench]) -> None:
    bench = Bench(engine_of(kind, *stages), SIDE_PX)
    benches.append(bench)
    front, generated = bench.front(outputs=8), 0
    for seq in range(30):
        if seq < 24:
            post(front, seq)
        if seq == 12:
            bench.pipe.send(StartTake(session="a", take=1, first_seq=0))  # goes on with a fresh stream
        if seq == 24:
            bench.pipe.send(ChangeSource(session="a", prompt_only=True, posted=24))
        bench.worker.run_once()
        exact_stats(bench.stats())
        assert bench.stats().generated >= generated  # a counter
        generated = bench.stats().generated
    for _ in range(8):
        bench.worker.run_once()
        exact_stats(bench.stats())
    front.collect()
    stats = bench.stats()
    assert stats.seen == 24
    assert stats.out > 0
    if stages == ("double",):
        assert stats.generated > 15  # one was made for every frame but the first, before and in the take
    if stages == ("every-second",):
        assert stats.dropped > 8


# ---- a take ----


def record(bench: Bench, folder: Path) -> None:
    """Record a take of inputs, a control change and frames from the prompt, written as by the front."""
    front = bench.front(outputs=64)
    bench.worker.run_once()
    writer = TakeWriter(folder)
    bench.pipe.send(StartTake(session="a", take=1, first_seq=0))

    def hear() -> None:
        for message in bench.receive():
            if isinstance(message, TakeRecords):
                writer.add_records(message.records)
            elif isinstance(message, OutputReady):
                frame = front.outputs.read(message.index, message.generation)
                assert frame is not None
                if message.take == 1:
                    writer.add_frame(frame.seq, frame.source_seq, frame.image)
                bench.pipe.send(OutputRelease(session="a", index=message.index, generation=message.generation))

    for seq in range(24):
        writer.add_input(seq, 1000 * seq, np.full((SIDE_PX, SIDE_PX, 3), seq, np.uint8), None)
        post(front, seq)
        if seq == 9:
            bench.pipe.send(ChangeControl(session="a", control=Control(strength=0.8)))
        bench.worker.run_once()
        hear()
    bench.pipe.send(ChangeSource(session="a", prompt_only=True, posted=24))
    for _ in range(6):
        time.sleep(0.03)  # frames from the prompt leave at the stream's rate
        bench.worker.run_once()
        hear()
    bench.pipe.send(StopTake(session="a", take=1))
    bench.worker.run_once()
    hear()
    writer.close()


@pytest.mark.parametrize("kind", ["identity", "image"])
@pytest.mark.parametrize("stages", [("double",), ("every-second",), ("smooth", "double", "corner-logo")])
def test_a_take_replays_to_the_same_frames(
    kind: str, stages: tuple[str, ...], tmp_path: Path, benches: list[Bench]
) -> None:
    bench = Bench(engine_of(kind, *stages), SIDE_PX)
    benches.append(bench)
    record(bench, tmp_path / "take")
    take = read_take(tmp_path / "take")
    assert len(take.hashes) > 10
    for _ in range(2):
        replay = Replay(take, engine_of(kind, *stages), ReplayOptions())
        shown = list(replay.frames())
        assert replay.counts.identical + len(take.lost) >= len(take.hashes)
        assert (replay.counts.different, replay.counts.inputs) == (0, 0)
        times = [frame.time_ns for frame in shown]
        assert times == sorted(times)
    other = Replay(take, engine_of(kind), ReplayOptions())
    list(other.frames())
    assert other.counts.different > 0
    filled = Replay(take, engine_of(kind, *stages), ReplayOptions(fill_drops=True))
    assert len(list(filled.frames())) >= len(shown)


def test_a_take_says_which_stages_its_engine_has() -> None:
    engine = LoaderOptions(width=8, height=8, stages=("double",))
    info = IdentityEngine(width=8, height=8, stages=("double",)).open().info
    machine = json.loads(json.dumps(describe_machine("identity", engine, info, 1)))
    assert load_engine(*recorded_engine(machine)).open().info.stages == ("double",)
    assert "stages" not in describe_machine("identity", LoaderOptions(width=8), info, 1)["loader"]  # type: ignore[operator]


# ---- a render ----


def rendered(folder: Path, output: str, *stages: str, source: Path | None, **changes: object) -> Path:
    request = RenderRequest(
        source=source,
        output=folder / output,
        control=Control(),
        model="identity",
        engine=LoaderOptions(stages=stages),
        **changes,  # type: ignore[arg-type]
    )

    def load(model: str, options: LoaderOptions, notice: object) -> Engine:
        return IdentityEngine(width=64, height=48, stages=options.stages)

    assert render(request, load, lambda text: None) == 0
    return request.output


def test_a_render_shows_made_frames_between_the_others_and_keeps_the_length(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=20, rate=25)
    plain = play(rendered(tmp_path, "plain.mp4", source=clip))
    twice = play(rendered(tmp_path, "twice.mp4", "double", source=clip))
    assert len(twice.times_s) == 2 * len(plain.times_s) - 1
    assert twice.times_s[::2] == pytest.approx(plain.times_s, abs=0.001)
    assert np.diff(twice.times_s) == pytest.approx(0.02, abs=0.001)
    half = play(rendered(tmp_path, "half.mp4", "every-second", source=clip))
    assert half.times_s == pytest.approx(plain.times_s[::2], abs=0.001)
    assert half.duration_s == pytest.approx(plain.duration_s, abs=0.001)


def test_a_prompt_only_render_has_the_asked_length_with_stages(tmp_path: Path) -> None:
    asked = {"seconds": Fraction(2), "frame_rate": Fraction(10)}
    twice = play(rendered(tmp_path, "twice.mp4", "double", source=None, **asked))
    assert twice.times_s == pytest.approx([n / 20 for n in range(39)], abs=0.001)
    half = play(rendered(tmp_path, "half.mp4", "every-second", source=None, **asked))
    assert half.times_s == pytest.approx([n / 5 for n in range(10)], abs=0.001)


def test_skipped_frames_are_repeated_between_made_ones() -> None:
    """Of frames 0 to 4 the filter skips 1 and 2; the doubler adds one at 1.5 and one at 3.5."""
    times = frame_times(IdentityEngine(width=4, height=4, stages=("double",)).open().info)
    for index in range(5):
        times.offered(Offered(index=index, pts=10 * index, duration=10, skipped=index in (1, 2), prompt_only=False))
    picture = np.zeros((4, 4, 3), np.uint8)
    shown: list[Shown] = []
    for index in (0, Fraction(3, 2), 3, Fraction(7, 2), 4):
        at = index * PUSH_TIME_BASE
        base = Fraction(1, at.denominator)
        shown += times.finished(Frame(image=picture, pts=at.numerator, time_base=base, seq=0, source_seq=0))
    assert [(s.pts, s.repeated) for s in [*shown, *times.rest()]] == [
        (0, False),
        (20, True),
        (30, False),
        (40, True),
        (60, False),
        (70, False),
        (80, False),
    ]


# ---- the example ----


def test_the_example_runs_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(str(tmp_path / "out.mp4"), "a robot on the beach")
    assert "made=35" in capsys.readouterr().out
    played = play(tmp_path / "out.mp4")
    assert len(played.times_s) == 71
    assert played.duration_s == pytest.approx(71 / 24, abs=0.05)


def test_the_example_s_stages_are_frame_stages() -> None:
    stages: list[FrameStage] = [CornerLogo(64), Doubler()]
    assert [stage.name for stage in stages] == ["corner-logo", "double"]
