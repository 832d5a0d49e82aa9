"""Frame stages: exact counts at every step, consistent numbers and times, and the same frames from every output."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from examples.add_a_frame_stage import Doubler
from pipelines.core.contracts import Engine, Stream
from pipelines.core.controls import Control
from pipelines.core.errors import InputError
from pipelines.core.frame_stages import StageChain, between
from pipelines.core.types import Frame
from pipelines.identity import IdentityEngine
from pipelines.image.engine import ImageEngine
from pipelines.load import load_engine
from tests.fakes.frame_stages import EverySecond, Shrinking, Smooth, add_test_rows, engine_of
from tests.fakes.image_model import BlackList, cheap_model, frames
from tests.fakes.video_engine import video_frames

HALF = Fraction(1, 2)


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    add_test_rows(monkeypatch)


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


def offered(kind: str, count: int) -> list[Frame]:
    return video_frames(count) if kind == "video" else frames(count)


def run(engine: Engine, stream: Stream, pictures: list[Frame]) -> list[Frame]:
    """Run a stream like a render does; counts are checked at every step."""
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
