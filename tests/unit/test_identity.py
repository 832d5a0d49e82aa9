"""The identity engine fulfils the Engine and Stream contracts: order, depth, latency and exact accounting."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from pipelines.core.contracts import Engine, Stream
from pipelines.core.controls import Control, Controls
from pipelines.core.errors import InputError
from pipelines.core.types import Accounting, Frame
from pipelines.identity import IdentityEngine, pattern_picture


def frame(seq: int, size: int = 4) -> Frame:
    image = np.full((size, size, 3), seq, np.uint8)
    return Frame(image=image, pts=seq * 10, time_base=Fraction(1, 1000), seq=seq, captured_ns=seq * 7)


def small(latency_ticks: int = 1, max_slots: int = 8) -> IdentityEngine:
    return IdentityEngine(width=4, height=4, latency_ticks=latency_ticks, max_slots=max_slots)


def test_it_is_an_engine_and_a_stream() -> None:
    engine: Engine = IdentityEngine()
    stream: Stream = engine.open()
    assert stream.info.model == "identity"


@pytest.mark.parametrize("latency_ticks", [0, 1, 3])
def test_a_frame_comes_back_unchanged_after_the_stated_ticks(latency_ticks: int) -> None:
    engine = small(latency_ticks)
    stream = engine.open()
    assert stream.push(frame(5))
    for _ in range(latency_ticks):
        engine.tick()
        assert stream.pull() == []
    engine.tick()
    (out,) = stream.pull()
    assert (out.source_seq, out.pts, out.captured_ns, out.seq) == (5, 50, 35, 0)
    assert np.array_equal(out.image, frame(5).image)


def test_order_depth_and_accounting() -> None:
    engine = small()
    stream = engine.open(Control(depth=2))
    assert [stream.push(frame(i)) for i in range(3)] == [True, True, False]
    assert stream.accounting == Accounting(taken=2, out=0, skipped=0, in_flight=2)
    engine.tick()
    engine.tick()
    assert stream.accounting == Accounting(taken=2, out=0, skipped=0, in_flight=2)
    assert [f.source_seq for f in stream.pull()] == [0, 1]
    assert stream.accounting == Accounting(taken=2, out=2, skipped=0, in_flight=0)


def test_rows_are_shared_by_streams_and_given_back() -> None:
    engine = small(max_slots=3)
    one, two = engine.open(), engine.open()
    assert all(one.push(frame(i)) for i in range(2))
    assert [two.push(frame(i)) for i in range(2)] == [True, False]
    one.close()
    assert two.push(frame(1))


def test_depth_can_shrink_without_losing_frames() -> None:
    engine = small()
    stream = engine.open()
    assert all(stream.push(frame(i)) for i in range(4))
    assert stream.apply(Control(depth=1)) == 0
    assert not stream.push(frame(9))
    assert [f.source_seq for f in stream.flush()] == [0, 1, 2, 3]


def test_generate_makes_stamped_changing_pictures() -> None:
    engine = small(latency_ticks=0)
    stream = engine.open(frame_rate=Fraction(12))
    assert stream.generate(2)
    one, two = stream.flush()
    assert (one.source_seq, one.captured_ns, two.pts, two.time_base) == (None, None, 1, Fraction(1, 12))
    assert not np.array_equal(one.image, two.image)
    assert not stream.generate(9)
    assert stream.accounting.taken == 2


def test_reset_restarts_the_counters() -> None:
    engine = small()
    with engine.open() as stream:
        stream.push(frame(0))
        stream.reset()
        assert stream.accounting == Accounting(taken=0, out=0, skipped=0, in_flight=0)
        assert stream.flush() == []


def test_a_wrong_size_says_what_is_wanted() -> None:
    with pytest.raises(InputError, match=r"takes \(4, 4, 3\) uint8"):
        small().open().push(frame(0, size=5))
    with pytest.raises(InputError, match="width cannot be 0"):
        IdentityEngine(width=0)


def test_a_small_model_draws_on_the_identity() -> None:
    """With the controls at the time when a frame is finished, and never modifying the input."""

    class Bright(IdentityEngine):
        def draw(self, image: np.ndarray, controls: Controls) -> np.ndarray:
            return np.full_like(image, round(100 * controls.strength))

    engine = Bright(model="bright", width=4, height=2, latency_ticks=1)
    with engine.open() as stream:
        assert (stream.info.model, stream.info.backend) == ("bright", "bright")
        black = np.zeros((2, 4, 3), np.uint8)
        assert stream.push(Frame(image=black, pts=0, time_base=Fraction(1), seq=0))
        engine.tick()
        stream.apply(Control(strength=0.25))
        (frame,) = stream.flush()
    assert (frame.image == 25).all()
    assert not black.any()


@pytest.mark.parametrize("number", [0, 1, 77])
def test_the_test_pattern_is_three_drifting_waves(number: int) -> None:
    width, height = 48, 32
    x, y = (np.linspace(0, 2 * np.pi, length) for length in (width, height))
    waves = [np.sin(x[None] + number * 0.1) + np.cos(y[:, None] - number * 0.1 * speed) for speed in (1, 2, 3)]
    picture = pattern_picture(width, height, number)
    assert picture.dtype == np.uint8
    assert np.abs(picture - (np.stack(waves, -1) + 2) * 63.75).max() < 2  # row and column are rounded down each
