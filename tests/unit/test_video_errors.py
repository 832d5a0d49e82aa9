"""Invalid input to the video engine, and out of memory: clear errors, and nothing else is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.core.controls import Control
from pipelines.core.errors import ControlError, InputError, ModelError, OutOfMemoryError, StreamError
from pipelines.video.engine import VideoEngine
from tests.fakes.image_model import frames as other_pictures
from tests.fakes.video_engine import KINDS, run_chunks, small_engine


@pytest.fixture
def engine() -> VideoEngine:
    return small_engine()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 50}, "width cannot be 50 pixels. It must be a multiple of 16: try 48."),
        ({"height": 8}, "height cannot be 8 pixels. It must be a multiple of 16: try 16."),
        ({"window_frames": 2}, "A window of 2 latent frames cannot hold a sink of 1 and a pass of 2"),
        ({"sink_frames": 5}, "A window of 6 latent frames cannot hold a sink of 5 and a pass of 2"),
        ({"policy": "all"}, "There is no cache policy 'all'. Use one of: full, window, sink"),
        ({"policy": "participative"}, "smaller than the budget of 16 and a chunk of 2: make it at least 18"),
        ({"policy_options": {"speed": 3}}, "has no option speed"),
        ({"stream": "sideways"}, "There is no kind of stream 'sideways'. Use one of: chunk, step-batch, rolling"),
        ({"stream": "rolling", "policy": "rebuild", "window_frames": 12}, "passes context before a chunk"),
        ({"storage": "paper"}, "unknown KV storage 'paper'"),
        ({"chunk_frames": -1}, "chunk_frames cannot be -1"),
        ({"rewind_bytes": -1}, "rewind_bytes cannot be -1"),
    ],
)
def test_choices_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises((ControlError, InputError, ModelError)) as caught:
        small_engine(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"chunk_frames": 3}, "This engine was made for chunks of 1 to 2 latent frames"),
        ({"guidance_scale": 3.0}, "these streams have no cache row for a negative prompt"),
        ({"width": 64}, "width cannot become 64 in an open stream (it is 48)"),
        ({"kv_policy": "full"}, "kv_policy cannot become 'full' in an open stream (it is 'sink')"),
        ({"steps": 4}, "steps does not apply to a video model. It is a control of an image model."),
        ({"rewind_to": 3}, "rewind_to cannot be 3. Chunks that can be rewound to: none yet."),
    ],
)
def test_controls_that_cannot_be_change_nothing(engine: VideoEngine, control: dict[str, object], message: str) -> None:
    stream = engine.open()
    before = stream.controls
    with pytest.raises(ControlError) as caught:
        stream.apply(Control.of({**control, "seed": 99}))
    assert message in str(caught.value)
    assert stream.controls == before
    with pytest.raises(ControlError):
        small_engine().open(Control.of(control))


@pytest.mark.parametrize(
    ("kind", "control", "message"),
    [
        ("step-batch", {"chunk_steps": 4}, "This kind of stream runs at most 3 steps"),
        ("step-batch", {"input_use": "first-frame"}, "which has no clean pass"),
        ("step-batch", {"rewind_to": 0}, "rewind_to works only in streams that denoise one chunk after another"),
        ("rolling", {"rewind_to": 0}, "rewind_to works only in streams that denoise one chunk after another"),
    ],
)
def test_controls_that_a_kind_of_stream_cannot_take(kind: str, control: dict[str, object], message: str) -> None:
    stream = small_engine(KINDS[kind]).open()
    with pytest.raises(ControlError) as caught:
        stream.apply(Control.of(control))
    assert message in str(caught.value)


def test_pictures_of_another_size_are_refused(engine: VideoEngine) -> None:
    stream = engine.open()
    with pytest.raises(InputError, match=r"this stream takes uint8 \(32, 48, 3\)"):
        stream.push(other_pictures(1)[0])
    with pytest.raises(InputError, match="0 frames cannot be generated"):
        stream.generate(0)
    assert stream.accounting.taken == 0


def test_out_of_memory_in_a_pass_loses_nothing(engine: VideoEngine) -> None:
    stream, expected = engine.open(), small_engine()
    denoiser = engine.core.passes._denoiser
    assert stream.generate(5)
    engine.tick()

    def short(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine.core.passes._denoiser = short
    with pytest.raises(OutOfMemoryError, match=r"too little memory for 1 passes .* Use a smaller --size, or a smaller"):
        engine.tick()
    engine.core.passes._denoiser = denoiser
    images = [frame.image for frame in stream.flush()]
    assert np.array_equal(images, run_chunks(expected.open(), expected, 1))


def test_what_fails_in_one_stream_s_decoding_is_its_own_error(engine: VideoEngine) -> None:
    good, bad = engine.open(), engine.open()
    decoder = engine.core.decoders[bad.index]

    def short(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    decoder.decode = short  # type: ignore[method-assign]
    for stream in (good, bad):
        assert stream.generate(5)
    engine.tick()
    with pytest.raises(StreamError, match="The stream failed: OutOfMemoryError") as caught:
        engine.tick()
    assert caught.value.stream is bad
    bad.close()
    assert len(good.flush()) == 5


def test_out_of_memory_while_the_engine_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pipelines.video.state.KVCache", short)
    with pytest.raises(OutOfMemoryError, match=r"too little memory for the engine. Use a smaller --size"):
        small_engine()


def test_an_engine_without_a_stream_ticks_for_nothing(engine: VideoEngine) -> None:
    engine.tick()
    assert engine.log.records() == ()


def test_a_full_cache_ends_its_stream_alone_and_says_what_to_do() -> None:
    engine = small_engine(policy="full", policy_options={"max_frames": 6})
    long, short = engine.open(), engine.open()
    run_chunks(long, engine, 3)
    assert short.generate(5)
    assert long.generate(8)
    with pytest.raises(
        StreamError, match="The stream failed: the full cache holds 6 latent frames and 8 are needed: reset it"
    ) as caught:
        engine.tick()
    assert caught.value.stream is long
    long.close()
    assert len(short.flush()) == 5
