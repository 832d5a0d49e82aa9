"""The video engine's contract: inputs and outputs of a stream, exact counts, order, several streams."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from pipelines.core.controls import Control
from pipelines.core.errors import InputError
from pipelines.core.tick_log import BirthRecord, PushRecord, StreamRecord, TimingRecord
from pipelines.core.types import Frame
from pipelines.video.engine import VideoEngine
from pipelines.video.stream import VideoStream
from tests.fakes.video_engine import HEIGHT_PX, KINDS, WIDTH_PX, run_chunks, small_engine, video_frames


@pytest.fixture
def engine() -> VideoEngine:
    return small_engine()


def pushed(engine: VideoEngine, stream: VideoStream, frames: list[Frame]) -> list[Frame]:
    """Return the output for these inputs, driving the stream like a render."""
    out: list[Frame] = []
    for frame in frames:
        while not stream.push(frame):
            engine.tick()
            out += stream.pull()
    return out + stream.flush()


def test_what_a_stream_says_of_itself(engine: VideoEngine) -> None:
    stream = engine.open()
    info = stream.info
    assert (info.width, info.height, info.engine, info.backend) == (WIDTH_PX, HEIGHT_PX, "video", "eager")
    assert (info.frame_rate, engine.open(frame_rate=Fraction(25)).info.frame_rate) == (16, 25)
    assert (info.frames_per_chunk, info.max_frames_per_chunk, info.max_frames) == (5, 8, 8)
    assert info.latency_ticks == 2  # 2 steps and a clean pass, less one
    run_chunks(stream, engine, 1)
    assert stream.info.frames_per_chunk == 8


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_chunk_gives_4n_minus_3_frames_and_later_ones_4n(kind: str) -> None:
    engine = small_engine(KINDS[kind])
    n = KINDS[kind].chunk_frames
    with engine.open() as stream:
        images = run_chunks(stream, engine, 3)
        images += [frame.image for frame in stream.flush()]
        assert len(images) == 12 * n - 3
        assert all(image.shape == (HEIGHT_PX, WIDTH_PX, 3) and image.dtype == np.uint8 for image in images)
        assert stream.accounting.in_flight == 0


def test_a_chunk_comes_out_before_its_clean_pass_which_is_still_done(engine: VideoEngine) -> None:
    stream = engine.open()
    assert stream.generate(5)
    engine.tick()
    assert stream.pull() == []
    engine.tick()
    assert len(stream.pull()) == 5
    assert stream.busy  # the clean pass
    engine.tick()
    assert not stream.busy
    ticks = len(engine.log.ticks())
    engine.tick()
    assert len(engine.log.ticks()) == ticks  # nothing to do, not counted
    assert [row.task for tick in engine.log.ticks() for row in tick.rows] == ["denoise", "denoise", "clean"]


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_exact_at_any_moment(kind: str) -> None:
    engine, dice = small_engine(KINDS[kind]), random.Random(4)
    stream = engine.open()
    taken = out = 0
    supply = iter(video_frames(400))
    for _ in range(300):
        match dice.randrange(6):
            case 0:
                count = dice.choice([1, 2, stream.info.frames_per_chunk])
                taken += count if stream.generate(count) else 0
            case 1 | 2:
                taken += stream.push(next(supply))
            case 3 | 4:
                engine.tick()
            case 5:
                out += len(stream.pull())
        counts = stream.accounting
        assert (counts.taken, counts.out, counts.skipped) == (taken, out, 0)
        assert counts.taken == counts.out + counts.in_flight
    out += len(stream.flush())
    assert (stream.accounting.out, stream.accounting.in_flight) == (out, 0)
    assert taken == out > 50
    engine.core.cache.check_integrity()


@pytest.mark.parametrize("kind", KINDS)
def test_every_output_names_its_input_in_order(kind: str) -> None:
    engine = small_engine(KINDS[kind])
    stream = engine.open()
    supply = video_frames(23)
    out = pushed(engine, stream, supply)
    assert [frame.source_seq for frame in out] == list(range(23))  # a padded chunk's padding does not come out
    assert [(f.pts, f.time_base, f.captured_ns) for f in out] == [(f.pts, f.time_base, f.captured_ns) for f in supply]
    assert [frame.seq for frame in out] == list(range(23))


def test_prompt_only_frames_are_stamped_at_the_stream_s_rate(engine: VideoEngine) -> None:
    stream = engine.open(frame_rate=Fraction(10))
    assert stream.generate(3)
    out = stream.flush()
    assert [(frame.pts, frame.time_base, frame.source_seq) for frame in out] == [
        (n, Fraction(1, 10), None) for n in range(3)
    ]
    assert stream.generate(8)
    assert stream.flush()[0].pts == 3


def test_admission_is_bounded_and_says_so(engine: VideoEngine) -> None:
    stream = engine.open()
    assert not stream.generate(6)  # more than a chunk
    assert stream.generate(5)
    assert not stream.generate(1)  # a full one waits to be born
    engine.tick()
    assert stream.generate(8)
    assert not stream.push(video_frames(1)[0])
    assert stream.accounting.taken == 13
    outcomes = [record.outcome for record in engine.log.records() if isinstance(record, PushRecord)]
    assert outcomes.count("refused") == 3


def test_a_stream_that_is_never_pulled_stops_and_loses_nothing(engine: VideoEngine) -> None:
    stream = engine.open()
    for _ in range(200):
        stream.generate(stream.info.frames_per_chunk)
        engine.tick()
    assert not stream.generate(8)
    counts = stream.accounting
    assert len(stream.flush()) == counts.taken


def test_switching_between_camera_and_prompt_pads_and_goes_on(engine: VideoEngine) -> None:
    stream = engine.open()
    supply = video_frames(40)
    out: list[Frame] = []

    def settle() -> None:
        while stream.busy:
            engine.tick()
            out.extend(stream.pull())

    for frame in supply[:3]:
        assert stream.push(frame)
    assert not stream.generate(8)  # three of five: padded, and born first
    settle()
    assert stream.generate(8)
    settle()
    for frame in supply[3:11]:
        assert stream.push(frame)
    settle()
    assert [f.source_seq for f in out] == [0, 1, 2, *[None] * 8, *range(3, 11)]
    assert engine.core.encoder.latents_done(stream.index) == 3  # one ahead, for the gap, and two


@pytest.mark.parametrize("kind", KINDS)
def test_reset_starts_the_same_video_again(kind: str) -> None:
    engine = small_engine(KINDS[kind])
    stream = engine.open(Control.of({"prompt": "a cat"}))

    def video() -> list[np.ndarray]:
        assert stream.accounting.taken == 0
        return [*run_chunks(stream, engine, 4), *(frame.image for frame in stream.flush())]

    first = video()
    stream.generate(3)
    engine.tick()
    stream.reset()
    assert np.array_equal(first, video())


@pytest.mark.parametrize("kind", KINDS)
def test_streams_do_not_see_each_other(kind: str) -> None:
    """Two streams with different prompts and seeds, out of step, in float64: each as if it were alone."""
    preset = KINDS[kind]
    controls = [Control.of({"prompt": "a cat", "seed": 1}), Control.of({"prompt": "a robot", "seed": 8})]
    alone = []
    for control in controls:
        engine = small_engine(preset, torch.float64)
        stream = engine.open(control)
        alone.append([*run_chunks(stream, engine, 4), *(f.image for f in stream.flush())])
    engine = small_engine(preset, torch.float64)
    first, second = (engine.open(control) for control in controls)
    together: list[list[np.ndarray]] = [[], []]
    asked = [0, 0]
    for turn in range(400):
        for which, stream in enumerate((first, second)):
            if asked[which] < 4 and turn >= 3 * which:
                asked[which] += stream.generate(stream.info.frames_per_chunk)
        engine.tick()
        for which, stream in enumerate((first, second)):
            together[which] += [frame.image for frame in stream.pull()]
    for which, stream in enumerate((first, second)):
        together[which] += [frame.image for frame in stream.flush()]
    assert any(len({row.stream for row in tick.rows}) == 2 for tick in engine.log.ticks())
    assert np.array_equal(alone[0], together[0])
    assert np.array_equal(alone[1], together[1])


def test_passes_of_equal_shape_are_one_batch() -> None:
    engine = small_engine()
    batches: list[int] = []
    backend = engine.core.passes._denoiser
    engine.core.passes._denoiser = lambda latents, *rest: (batches.append(len(latents)), backend(latents, *rest))[1]
    streams = [engine.open(), engine.open()]
    for stream in streams:
        assert stream.generate(5)
    while any(stream.has_work for stream in streams):
        engine.tick()
    assert batches == [2, 2, 2]


def test_places_are_given_back() -> None:
    engine = small_engine(max_streams=1)
    stream = engine.open(Control.of({"prompt": "a cat"}))
    first = run_chunks(stream, engine, 2)
    with pytest.raises(InputError, match=r"All 1 streams of this engine are in use. Close one"):
        engine.open()
    stream.close()
    stream.close()
    again = engine.open(Control.of({"prompt": "a cat"}))
    assert np.array_equal(first, run_chunks(again, engine, 2))
    with pytest.raises(InputError, match="The stream is closed"):
        stream.generate()
    engine.close()
    with pytest.raises(InputError, match="The engine is closed"):
        engine.open()


def test_the_log_tells_what_happened(engine: VideoEngine) -> None:
    with engine.open(Control.of({"prompt": "a cat", "seed": 3})) as stream:
        run_chunks(stream, engine, 2)
    records = engine.log.records()
    chunk_factory = [record for record in records if isinstance(record, BirthRecord)]
    assert [(b.slot, b.tick, b.seed, len(b.source_seqs), len(b.timesteps)) for b in chunk_factory] == [
        (0, 0, 3, 5, 2),
        (1, 3, 3, 8, 2),
    ]
    assert [record.event for record in records if isinstance(record, StreamRecord)] == ["open", "close"]
    assert sum(isinstance(record, TimingRecord) for record in records) == len(engine.log.ticks()) == 6
    assert [tick.finished for tick in engine.log.ticks()] == [(), ((0, 0),), (), (), ((0, 1),), ()]


@pytest.mark.parametrize("kind", KINDS)
def test_an_idle_engine_finds_a_cache_that_disagrees_with_itself(kind: str) -> None:
    engine = small_engine(KINDS[kind])
    stream = engine.open()
    run_chunks(stream, engine, 3)
    engine.check_integrity()
    row = next(row for row in engine.core.cache._rows if len(row.ledger.spans) > 1)
    row.ledger = replace(row.ledger, spans=row.ledger.spans[::-1])
    with pytest.raises(AssertionError):
        engine.check_integrity()
