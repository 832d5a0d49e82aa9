"""bench.video_quality and bench.video_scores: formulas by hand, streaming, and which streams fail which bars."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.motion import Transitions
from bench.motion_judge import load_motion_judge
from bench.sheets import Keeper, write_png
from bench.video_quality import (
    FRAME_RATE,
    StreamFigures,
    StreamMeter,
    colour_histogram,
    histogram_distance,
    measure_stream,
    picture_figures,
)
from bench.video_scores import Bar, bars, motion_shares, spans_of, summary, truth_of
from train.clips.motions import ClipSpec


def _spec(motion: int) -> ClipSpec:
    one = torch.tensor([3, 4])
    return ClipSpec(subject=one, place=one, light=one * 0, style=one * 0, motion=torch.full((2,), motion))


def _figures(seconds: int, **changes: Tensor) -> StreamFigures:
    """Return two streams that pan to the right endlessly, recognised throughout."""
    ones = torch.ones(2, seconds)
    count = seconds * FRAME_RATE - 1
    background = torch.tensor([-1.2, 0.0, 0.0]).expand(2, count, 3)
    window = Transitions(
        background=background,
        subject=torch.zeros(2, count, 4),
        degree=torch.full((2, count, 1), 0.7),
        flicker=torch.ones(2, count, 1),
    )
    fields = {
        "sharpness": 8 * ones,
        "saturation": 0.4 * ones,
        "histogram": torch.full((2, seconds, 512), 1 / 512),
        "degree": 0.7 * ones,
        "flicker": ones,
        "classes": truth_of(_spec(8))[:, None].expand(2, seconds, 3),
        "motion": window,
    }
    return StreamFigures(**{**fields, **changes})  # type: ignore[arg-type]


def _missed(figures: StreamFigures, motion: int = 8) -> set[str]:
    told = summary(figures, _spec(motion), load_motion_judge())
    return {bar.name for bar in bars(told) if not bar.met}


def _fading(start: float, end: float, seconds: int = 60) -> Tensor:
    return torch.linspace(start, end, seconds).expand(2, seconds)


def test_a_steady_stream_meets_every_bar() -> None:
    assert _missed(_figures(60)) == set()


def test_each_failure_misses_its_own_bars() -> None:
    assert _missed(_figures(60, saturation=_fading(0.4, 0.1))) == {"saturation_kept"}
    assert _missed(_figures(60, saturation=_fading(0.4, 0.7))) == {"saturation_kept"}
    assert _missed(_figures(60, sharpness=_fading(8, 20))) == {"sharpness_kept"}
    assert _missed(_figures(60, degree=_fading(0.7, 0.1))) == {"degree_kept"}
    lost = truth_of(_spec(8))[:, None].repeat(1, 60, 1)
    lost[0, 30:, 0] = 0
    assert _missed(_figures(60, classes=lost)) == {"subject_lost_at_the_end"}
    never = lost.clone()
    never[..., 1] = 0
    assert {"place_0_to_5_s", "subject_lost_at_the_end"} <= _missed(_figures(60, classes=never))


def test_a_stream_that_freezes_loses_its_motion() -> None:
    moving = _figures(60)
    frozen = Transitions(*(part.clone() for part in moving.motion))
    for part in frozen:
        part[:, 300:] = 0
    degree = moving.degree.clone()
    degree[:, 20:] = 0
    assert _missed(_figures(60, motion=frozen, degree=degree)) == {"degree_kept", "motion_lost_at_the_end"}
    shares = motion_shares(_figures(60, motion=frozen), _spec(0), load_motion_judge(), spans_of(60))
    assert shares == {"start": 0.0, "end": 1.0}


def test_a_bar_is_not_met_by_no_number() -> None:
    assert not Bar(name="a", value=math.nan, minimum=0).met
    assert Bar(name="a", value=1.0, minimum=1.0, maximum=1.0).record() == {
        "value": 1.0,
        "least": 1.0,
        "most": 1.0,
        "met": True,
    }


def test_picture_figures_by_hand() -> None:
    ramp = torch.arange(32.0).view(1, 1, 1, 32).expand(1, 3, 32, 32) / 64
    found = picture_figures(ramp)
    assert float(found.sharpness) == pytest.approx(255 / 64 * (30 + 2 * 0.5) / 32, rel=1e-4)
    assert float(found.saturation) == 0
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 0.9
    assert float(picture_figures(red).saturation) == pytest.approx(0.9)
    assert float(picture_figures(red).sharpness) == 0
    shares = colour_histogram(red)
    assert float(shares[0, 7 * 64]) == 1
    assert float(histogram_distance(shares, colour_histogram(1 - red))) == 1
    assert float(histogram_distance(shares, shares)) == 0


def _stream(frames: int) -> Tensor:
    """uint8 [2, frames, 32, 32, 3]: a texture that moves one pixel per frame."""
    rng = np.random.default_rng(3)
    wide = torch.from_numpy(rng.integers(0, 255, (2, 1, 16, 64, 3), dtype=np.uint8))
    wide = wide.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, 0, :32]
    return torch.stack([wide[:, :, t : t + 32] for t in range(frames)], 1)


def test_pieces_are_measured_as_the_whole_is() -> None:
    frames = _stream(3 * FRAME_RATE)
    whole = measure_stream([frames], shrink=1)
    pieces = measure_stream([frames[:, :9], frames[:, 9:10], frames[:, 10:]], shrink=1)
    for name in ("sharpness", "saturation", "histogram", "degree", "flicker"):
        assert torch.allclose(getattr(whole, name), getattr(pieces, name), atol=1e-5), name
    assert whole.seconds == 3
    assert whole.motion.degree.shape == (2, 3 * FRAME_RATE - 1, 1)
    assert whole.window(1, 2).degree.shape == (2, 15, 1)
    assert float((whole.degree - 1).abs().max()) < 0.15
    assert float(whole.histogram_drift()[:, 2].max()) == 0


def test_noise_is_sharper_and_flickers_and_bleaching_loses_colour() -> None:
    frames = _stream(FRAME_RATE)
    plain = measure_stream([frames], shrink=1)
    noise = torch.randint(-40, 40, frames.shape, generator=torch.Generator().manual_seed(1))
    noisy = measure_stream([(frames.long() + noise).clamp(0, 255).byte()], shrink=1)
    pale = measure_stream([(128 + frames // 2).byte()], shrink=1)
    still = measure_stream([frames[:, :1].expand_as(frames)], shrink=1)
    assert bool((noisy.sharpness > 1.1 * plain.sharpness).all())
    assert bool((noisy.flicker > 2 * plain.flicker).all())
    assert bool((pale.saturation < 0.6 * plain.saturation).all())
    assert float(still.degree.max()) == 0
    assert float(still.flicker.max()) < 1e-3


def test_less_than_a_second_has_no_figures() -> None:
    meter = StreamMeter()
    meter.add(_stream(8))
    with pytest.raises(ValueError, match="less than a second"):
        meter.figures()


def test_kept_frames_become_a_png(tmp_path: Path) -> None:
    import cv2

    frames = _stream(20)
    keeper = Keeper((0, 1), 2)
    assert sum(piece.shape[1] for piece in keeper.passing([frames[:, :7], frames[:, 7:]])) == 20
    sheet = keeper.sheet()
    assert sheet.shape == (64, 64, 3)
    assert torch.equal(sheet[:32, 32:], frames[0, 16])
    write_png(sheet, tmp_path / "sheet.png")
    read = cv2.imread(str(tmp_path / "sheet.png"))
    assert read is not None
    assert np.array_equal(read[..., ::-1], sheet.numpy())
