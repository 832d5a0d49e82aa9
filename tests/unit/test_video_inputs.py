"""Input frames of a video stream: encoded as one clip, mixed with noise according to motion; a picture as first
frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.core.controls import Control
from pipelines.core.tick_log import BirthRecord
from pipelines.video.chunks import ChunkSlot
from pipelines.video.codecs.codec import encode_clip, encode_image
from pipelines.video.codecs.pixels import to_pixels
from pipelines.video.motion import MotionNoise
from tests.fakes.video_engine import HEIGHT_PX, SMALL, WIDTH_PX, random_codec, run_chunks, small_engine, video_frames


def test_input_frames_are_encoded_as_one_clip_and_mixed_with_noise() -> None:
    engine = small_engine()
    stream = engine.open(Control.of({"strength": 0.5, "noise_control": False}))
    supply = video_frames(13)
    starts = []
    bear = stream._chunk_schedule.admit

    def watched(slot: ChunkSlot, context: Sequence[torch.Tensor]) -> None:
        starts.append((slot.latents.clone(), slot.noise(0), slot.birth.plan))
        bear(slot, context)

    stream._chunk_schedule.admit = watched  # type: ignore[method-assign]
    for frame in supply:
        while not stream.push(frame):
            engine.tick()
            stream.pull()
    stream.flush()
    clip = to_pixels(np.stack([frame.image for frame in supply]))
    with torch.inference_mode():
        latents = encode_clip(random_codec(torch.float32), clip)[0]
    for number, (start, noise, plan) in enumerate(starts):
        assert plan.steps[0].timestep == pytest.approx(1000 * plan.mix)  # warped: the network is told what was mixed in
        assert plan.mix == pytest.approx(5 * 0.5 / (1 + 4 * 0.5))
        expected = (1 - plan.mix) * latents[:, 2 * number : 2 * number + 2] + plan.mix * noise
        torch.testing.assert_close(start, expected, rtol=0, atol=2e-6)


def test_movement_lowers_the_noise_scale_smoothly() -> None:
    """StreamDiffusionV2's numbers: s = 0.9 (0.8 - 0.1 d) + 0.1 s_before."""
    still = [np.zeros((2, 2, 3), np.uint8)] * 4
    moved = [np.full((2, 2, 3), 255 * (i % 2), np.uint8) for i in range(1, 5)]
    control = MotionNoise()
    assert control.scale(still, 0.8, controlled=True) == pytest.approx(0.8)
    assert control.scale(moved, 0.8, controlled=True) == pytest.approx(0.9 * 0.7 + 0.1 * 0.8)
    assert control.scale(still[:1] * 4, 0.8, controlled=True) == pytest.approx(0.9 * 0.8 + 0.1 * 0.71)
    slow = [np.full((2, 2, 3), 12 + i, np.uint8) for i in range(2)]
    control.reset()
    assert control.scale(slow, 0.8, controlled=True) == pytest.approx(0.9 * (0.8 - 0.1 * (1 / 127.5) / 0.2) + 0.08)
    assert control.scale(moved, 0.8, controlled=False) == 0.8


def test_a_step_batched_stream_keeps_its_number_of_steps_at_any_strength() -> None:
    preset = replace(
        SMALL, steps=(700, 500, 400, 200), warp=False, shift=8.0, chunk_frames=1, stream="step-batch", clean_pass=False
    )
    engine = small_engine(preset)
    chunk_factory = []
    for strength, expected in ((0.8, (700, 500, 400, 200)), (0.4, (300, 214.3, 171.4, 85.7))):
        stream = engine.open(Control.of({"strength": strength, "noise_control": False}))
        for frame in video_frames(1):
            stream.push(frame)
        stream.flush()
        chunk_factory.append(next(r for r in reversed(engine.log.records()) if isinstance(r, BirthRecord)))
        assert chunk_factory[-1].timesteps == pytest.approx(expected, abs=0.1)
        stream.close()


def test_a_picture_begins_the_video_and_the_prompt_goes_on() -> None:
    engine = small_engine()
    stream = engine.open(Control.of({"prompt": "a cat", "input_use": "first-frame"}))
    run_chunks(stream, engine, 2)
    picture = video_frames(1)[0]
    assert stream.push(picture)
    frames = stream.flush()
    assert [frame.source_seq for frame in frames] == [0]
    ledger = stream._stream_rows.ledger()
    assert ledger.next_frame == 1  # the video before it is forgotten
    codec = random_codec(torch.float32)
    with torch.inference_mode():
        latents = encode_image(codec, to_pixels(picture.image[None])[:, :, 0])
        decoded = codec.decoder(height=HEIGHT_PX, width=WIDTH_PX).decode(latents)
    assert np.abs(frames[0].image - 255 * decoded[0, :, 0].permute(1, 2, 0).numpy()).max() <= 0.51
    assert len(run_chunks(stream, engine, 2)) == 16  # chunks of 4n frames from here on
    tasks = [row.task for tick in engine.log.ticks() for row in tick.rows]
    assert tasks[-6:] == ["denoise", "denoise", "clean"] * 2
