"""A video engine whose passes and decoder run as parts makes the frames of one that runs the networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.core.controls import Control
from pipelines.core.execution import Executor
from pipelines.core.types import Picture
from pipelines.load import load_engine
from pipelines.video.codecs.codec import FrameDecoder
from pipelines.video.codecs.parts import PartFrameDecoder, decode_step
from pipelines.video.codecs.tiny import TinyDecoderStream, TinyVideoCodec
from pipelines.video.engine import VideoEngine
from pipelines.video.model import MakeFrameDecoder, VideoModel
from pipelines.video.options import VideoOptions
from pipelines.video.part_denoiser import PartVideoDenoiser, one_row_part

SIZE = 64  # pixels
CHUNK, WINDOW = 2, 6  # latent frames


@pytest.fixture(scope="module")
def model() -> VideoModel:
    engine = load_engine(
        "mini-video",
        device="cpu",
        dtype="float32",
        backend="eager",
        width=SIZE,
        height=SIZE,
        notice=lambda text: None,
        video={"chunk_frames": CHUNK, "window_frames": WINDOW, "sink_frames": 2},
    )
    assert isinstance(engine, VideoEngine)
    return engine.core.model


def frames_of(model: VideoModel, storage: str, policy: str = "sink") -> list[Picture]:
    """Two streams that change their prompt and an action, 5 chunks each; the second starts two ticks later."""
    options = VideoOptions(
        width=SIZE,
        height=SIZE,
        chunk_frames=CHUNK,
        window_frames=WINDOW,
        sink_frames=2,
        policy=policy,
        storage=storage,
        max_streams=2,
    )
    engine, pictures = VideoEngine(model, options), []
    streams = [engine.open(Control.of({"prompt": text})) for text in ("a cat", "a robot on the beach")]
    for chunk in range(5):
        for number, stream in enumerate(streams):
            if chunk == 3:
                stream.apply(Control.of({"prompt": "a fox", "prompt_change": "cut", "camera_x": 0.5}))
            stream.generate(stream.info.frames_per_chunk)
            for _ in range(2 * (1 - number) if chunk == 0 else 0):
                engine.tick()
        while any(stream.busy for stream in streams):
            engine.tick()
            pictures += [frame.image for stream in streams for frame in stream.pull()]
    engine.close()
    return pictures


def with_parts(model: VideoModel) -> tuple[VideoModel, PartVideoDenoiser, list[PartFrameDecoder]]:
    """The model with its passes and decoders run as parts, by the parts' own modules."""
    part = one_row_part(
        model.transformer,
        frames=CHUNK,
        past_frames=WINDOW - CHUNK,
        latent_size=(SIZE // model.codec.factor, SIZE // model.codec.factor),
    )
    denoiser = PartVideoDenoiser(part.module, part, model.runtime.denoiser, model.transformer)
    decoders: list[PartFrameDecoder] = []
    runtime = replace(
        model.runtime,
        denoiser=denoiser,
        make_frame_decoder=_decoding(model.runtime.make_frame_decoder, model, decoders),
    )
    return replace(model, runtime=runtime), denoiser, decoders


def _decoding(plain: MakeFrameDecoder, model: VideoModel, made: list[PartFrameDecoder]) -> MakeFrameDecoder:
    assert isinstance(model.codec, TinyVideoCodec)
    step = decode_step(model.codec, frames=CHUNK, height=SIZE, width=SIZE)

    def make(executor: Executor, *, height: int, width: int, rows: int = 1) -> FrameDecoder:
        decoder = plain(executor, height=height, width=width, rows=rows)
        assert isinstance(decoder.decoder, TinyDecoderStream)
        made.append(PartFrameDecoder(step.module, step, decoder, decoder.decoder))
        return made[-1]

    return make


@pytest.mark.parametrize("storage", ["native", "lean"])
def test_frames_are_the_same(model: VideoModel, storage: str) -> None:
    """Two streams at different steps of their chunks, prompts cut and actions changed on the way. Rows of a batch are
    computed one by one, which may round the last bit of a network's result differently: one level of 255."""
    parted, denoiser, decoders = with_parts(model)
    wanted, got = frames_of(model, storage), frames_of(parted, storage)
    assert len(wanted) == len(got) == 2 * (4 * CHUNK * 5 - 3)
    assert max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(wanted, got, strict=True)) <= 1
    assert all("past tokens" in reason for reason in denoiser.plain_passes), denoiser.plain_passes
    assert [dict(decoder.plain_steps) for decoder in decoders] == [{"it is the first step of the stream": 1}] * 2


def test_passes_that_change_the_past_run_plainly(model: VideoModel) -> None:
    """Heavy hitters sum up attention in each first pass."""
    parted, denoiser, _ = with_parts(model)
    wanted, got = frames_of(model, "native", "heavy-hitter"), frames_of(parted, "native", "heavy-hitter")
    assert max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(wanted, got, strict=True)) <= 1
    assert denoiser.plain_passes["the cache policy changes the past in this pass"] >= 5
