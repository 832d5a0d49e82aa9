"""Frame stages: exact counts at every step, consistent numbers and times, and the same frames by every way out."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from app.render.frame_times import PUSH_TIME_BASE, Offered, Shown, frame_times
from app.render.job import render
from app.render.request import RenderRequest
from app.takes.machine import describe_machine, loader_words
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
from examples.add_a_frame_stage import CornerLogo, Doubler, add_rows, main
from pipelines.core.contracts import Engine, Stream
from pipelines.core.controls import Control
from pipelines.core.errors import InputError
from pipelines.core.frame_stages import FrameStage, StageChain, between
from pipelines.core.types import Frame
from pipelines.identity import IdentityEngine
from pipelines.image.engine import ImageEngine
from pipelines.load import load_engine
from pipelines.stages.table import STAGES
from tests.fakes.clips import make_clip, play
from tests.fakes.frame_stages import EverySecond, Shrinking, Smooth
from tests.fakes.image_model import SIDE_PX, BlackList, cheap_model, frames
from tests.fakes.video_engine import small_engine, video_frames
from tests.fakes.worker_bench import Bench, Front

HALF = Fraction(1, 2)


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's rows, and those of tests, in the table of this test only."""
    added = dict(STAGES)
    add_rows(added)
    for kind in (EverySecond, Smooth, Shrinking):
        added[kind.name] = lambda setting, kind=kind: kind
    for name, row in added.items():
        monkeypatch.setitem(STAGES, name, row)


def exact(stream: Stream) -> None:
    counts = stream.accounting
    assert counts.taken + counts.made == counts.out + counts.skipped + counts.dropped + counts.in_flight
    assert min(counts.made, counts.dropped, counts.in_flight) >= 0


# ---- the chain alone ----

CHAINS: dict[str, tuple[list[type], int, int]] = {  # stages, and what 12 frames give before and after a flush
    "twice": ([Doubler], 22, 23),
    "half": ([EverySecond], 6, 6),
    "held": ([Smooth], 10, 12),
    "twice, then half": ([Doubler, EverySecond], 11, 12),
    "half, then twice": ([EverySecond, Doubler], 10, 11),
    "all": ([Smooth, Doubler, Doubler, EverySecond], 17, 23),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_counts_every_frame_at_every_step(name: str) -> None:
    kinds, before, after = CHAINS[name]
    chain, pictures, taken, out = StageChain([kind() for kind in kinds]), frames(12), 0, []
    for picture in pictures:
        out += chain.push([picture])
        taken += 1
        assert taken + chain.made == chain.out + chain.dropped + chain.held
        assert chain.out == len(out)
        chain.check_integrity()
    assert len(out) == before
    out += chain.flush()
    assert (len(out), chain.held) == (after, 0)
    assert taken + chain.made == chain.out + chain.dropped
    assert [frame.seq for frame in out] == list(range(after))
    times = [frame.pts * frame.time_base for frame in out]
    assert all(earlier < later for earlier, later in itertools.pairwise(times))
    assert all(frame.source_seq is None and frame.image.shape == pictures[0].image.shape for frame in out)
    chain.reset()
    assert (chain.out, chain.made, chain.dropped, chain.held) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", CHAINS)
def test_what_comes_out_does_not_depend_on_how_frames_are_grouped(name: str) -> None:
    kinds, _, after = CHAINS[name]
    one, many, dice = StageChain([kind() for kind in kinds]), StageChain([kind() for kind in kinds]), random.Random(3)
    singles = [frame for picture in frames(12) for frame in one.push([picture])] + one.flush()
    rest, grouped = frames(12), []
    while rest:
        size = dice.randint(1, 4)
        grouped += many.push(rest[:size])
        rest = rest[size:]
    grouped += many.flush()
    assert len(grouped) == len(singles) == after
    for got, wanted in zip(grouped, singles, strict=True):
        assert (got.seq, got.pts, got.time_base, got.source_seq) == (
            wanted.seq,
            wanted.pts,
            wanted.time_base,
            wanted.source_seq,
        )
        np.testing.assert_array_equal(got.image, wanted.image)


def test_without_stages_frames_and_facts_are_the_very_objects() -> None:
    chain, pictures = StageChain(), frames(3)
    assert all(got is given for got, given in zip(chain.push(pictures), pictures, strict=True))
    info = IdentityEngine(width=4, height=4).open().info
    assert chain.described(info, chunk_ticks=1) is info


def test_between_finds_a_time_base_that_is_fine_enough() -> None:
    one, two = (replace(frame, time_base=Fraction(1, 24), pts=n) for n, frame in enumerate(frames(2), 5))
    middle = between(one, two, HALF)
    assert (middle.pts, middle.time_base, middle.image is two.image) == (11, Fraction(1, 48), True)
    assert between(one, two, Fraction(1, 3)).time_base == Fraction(1, 72)
    whole = between(one, replace(two, pts=7), HALF)
    assert (whole.pts, whole.time_base) == (6, Fraction(1, 24))


def test_a_stage_that_changes_the_size_is_found_out() -> None:
    with pytest.raises(AssertionError, match="shrinking changed the size"):
        StageChain([Shrinking()]).push(frames(1))


# ---- engines ----


def engine_of(kind: str, *stages: str) -> Engine:
    if kind == "identity":
        return IdentityEngine(width=SIDE_PX, height=SIDE_PX, stages=stages)
    if kind == "video":
        return small_engine(stages=stages)
    return ImageEngine(cheap_model(), frames_per_slot=2 if kind == "image of 2" else 1, stages=stages)


def offered(kind: str, count: int) -> list[Frame]:
    return video_frames(count) if kind == "video" else frames(count)


def run(engine: Engine, stream: Stream, pictures: list[Frame]) -> list[Frame]:
    """As a render drives it; counts are checked at every step."""
    out: list[Frame] = []
    for picture in pictures:
        while not stream.push(picture):
            engine.tick()
            exact(stream)
            out += stream.pull()
            exact(stream)
            engine.check_integrity()
    out += stream.flush()
    exact(stream)
    engine.check_integrity()
    return out


KINDS = ("identity", "image", "image of 2", "video")


@pytest.mark.parametrize("kind", KINDS)
def test_doubled_frames_are_the_engine_s_own_and_their_means(kind: str) -> None:
    plain, engine = engine_of(kind), engine_of(kind, "double")
    pictures = offered(kind, 13)
    own = run(plain, plain.open(), pictures)
    with engine.open() as stream:
        out = run(engine, stream, pictures)
        counts = stream.accounting
    assert (counts.taken, counts.made, counts.out, counts.in_flight) == (13, 12, 25, 0)
    assert [frame.seq for frame in out] == list(range(25))
    assert [frame.source_seq for frame in out] == [(n + 1) // 2 for n in range(25)]
    for got, wanted in zip(out[::2], own, strict=True):
        np.testing.assert_array_equal(got.image, wanted.image)
        assert (got.pts, got.time_base, got.captured_ns) == (wanted.pts, wanted.time_base, wanted.captured_ns)
    for before, made, after in zip(out[:-2:2], out[1::2], out[2::2], strict=True):
        mean = (before.image.astype(int) + after.image + 1) // 2
        np.testing.assert_array_equal(made.image, mean)
        assert 2 * made.pts * made.time_base == before.pts * before.time_base + after.pts * after.time_base


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stages", [("every-second",), ("smooth",), ("smooth", "double", "corner-logo")])
def test_counts_are_exact_at_any_moment_whatever_is_done(kind: str, stages: tuple[str, ...]) -> None:
    engine, dice = engine_of(kind, *stages), random.Random(5)
    supply = itertools.cycle(offered(kind, 40))
    with engine.open() as stream:
        for _ in range(160):
            match dice.randrange(9):
                case 0 | 1 | 2:
                    stream.push(next(supply))
                case 3:
                    stream.generate(stream.info.frames_per_chunk)
                case 4 | 5 | 6:
                    engine.tick()
                case 7:
                    first = stream.accounting.out
                    assert [frame.seq for frame in stream.pull()] == list(range(first, stream.accounting.out))
                case _ if dice.random() < 0.1:
                    stream.reset()
                    assert stream.accounting.taken == stream.accounting.in_flight == 0
                case _ if dice.random() < 0.2:
                    stream.flush()
                    assert stream.accounting.in_flight == 0
            exact(stream)
            engine.check_integrity()


def test_a_stream_says_what_its_stages_do_to_it() -> None:
    plain, doubled = engine_of("video").open().info, engine_of("video", "double").open().info
    assert (doubled.frame_rate, doubled.stage_rate, doubled.generate_rate) == (32, 2, 16)
    assert (doubled.frames_per_chunk, doubled.max_frames) == (plain.frames_per_chunk, 16)
    assert doubled.latency_ticks == plain.latency_ticks + (plain.latency_ticks + 1)  # held until the next chunk ends
    assert doubled.stages == ("double",)
    halved = engine_of("image", "every-second").open(Control(steps=3), frame_rate=Fraction(30)).info
    assert (halved.frame_rate, halved.generate_rate, halved.max_frames, halved.latency_ticks) == (15, 30, 1, 2)
    held = engine_of("image", "smooth", "double").open(Control(steps=3)).info
    assert (held.latency_ticks, held.max_frames) == (2 + 3, 2)
    assert engine_of("image of 2", "smooth").open(Control(steps=3)).info.latency_ticks == 2 + 1


def test_the_safety_checker_comes_before_every_stage() -> None:
    engine = ImageEngine(cheap_model(safety=BlackList(-1.0)), stages=("corner-logo",))
    (out,) = run(engine, engine.open(), frames(1))
    assert out.image[-2:, -2:].min() == 255
    out.image[-2:, -2:] = 0
    assert not out.image.any()
    assert engine.open().info.stages == ("corner-logo",)


def test_an_unknown_stage_is_named_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"no frame stage 'slow-motion'.*corner-logo, double"):
        IdentityEngine(stages=("slow-motion",))


@pytest.mark.parametrize("model", ["mini-image", "mini-video"])
def test_the_example_s_stages_on_the_bundled_models(model: str) -> None:
    options = {"device": "cpu", "dtype": "float32"}
    plain = load_engine(model, **options)  # type: ignore[arg-type]
    staged = load_engine(model, stages=("double", "corner-logo"), **options)  # type: ignore[arg-type]
    control = Control.of({"prompt": "a robot on the beach", "seed": 3})

    def generated(engine: Engine) -> list[Frame]:
        with engine.open(control) as stream:
            out: list[Frame] = []
            for _ in range(2):
                while not stream.generate(stream.info.frames_per_chunk):
                    engine.tick()
                    out += stream.pull()
                    exact(stream)
            out += stream.flush()
            exact(stream)
            engine.check_integrity()
        engine.close()
        return out

    own, out = generated(plain), generated(staged)
    assert len(out) == 2 * len(own) - 1
    assert [frame.seq for frame in out] == list(range(len(out)))
    side = own[0].image.shape[0] // 8
    assert all(frame.image[-side:, -side:].min() == 255 for frame in out)
    for got, wanted in zip(out[::2], own, strict=True):
        np.testing.assert_array_equal(got.image[:-side], wanted.image[:-side])
        assert got.pts * got.time_base == wanted.pts * wanted.time_base


# ---- a live session ----


@pytest.fixture
def benches() -> Iterator[list[Bench]]:
    made: list[Bench] = []
    yield made
    for bench in made:
        bench.close()


def post(front: Front, seq: int) -> None:
    """An input a microsecond after the one before it, so that the pacer holds nothing up."""
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
    """A take of inputs, a change of controls and frames from the prompt, written as the front writes it."""
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
    engine: dict[str, object] = {"width": 8, "height": 8, "stages": ("double",)}
    info = IdentityEngine(width=8, height=8, stages=("double",)).open().info
    machine = json.loads(json.dumps(describe_machine("identity", engine, info, 1)))
    again = load_engine(**loader_words(machine))  # type: ignore[arg-type]
    assert again.open().info.stages == ("double",)
    assert "stages" not in describe_machine("identity", {"width": 8}, info, 1)["loader"]  # type: ignore[operator]


# ---- a render ----


def rendered(folder: Path, output: str, *stages: str, source: Path | None, **changes: object) -> Path:
    request = RenderRequest(
        source=source,
        output=folder / output,
        control=Control(),
        engine={"stages": stages},
        **changes,  # type: ignore[arg-type]
    )

    def load(stages: tuple[str, ...]) -> Engine:
        return IdentityEngine(width=64, height=48, stages=stages)

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
    """Of frames 0 to 4 the filter skipped 1 and 2; the doubler makes one at 1.5 and one at 3.5."""
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
