"""What a video stream keeps of its past: re-caching, flushing, rewinding, and every policy over many chunks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cache.kv.policies import POLICIES
from pipelines.conditioning.actions import NO_ACTION
from pipelines.conditioning.frames import FrameConditions
from pipelines.core.controls import Control
from pipelines.core.errors import ControlError
from pipelines.video.codecs.codec import encode_image
from pipelines.video.codecs.pixels import to_pixels
from pipelines.video.engine import VideoEngine
from pipelines.video.past.rebuild import RebuildPast
from pipelines.video.past.rewind import RewindHistory
from pipelines.video.past.shots import ShotAlbum
from pipelines.video.stream import VideoStream
from tests.fakes.video_engine import random_codec, run_chunks, small_engine, video_frames

OPTIONS: dict[str, dict[str, Any]] = {
    "full": {"policy_options": {"max_frames": 400}},
    "window": {},
    "sink": {},
    "adaptive-sink": {"policy_options": {"threshold": 0.5}},
    "deep-sink": {"window_frames": 8, "sink_frames": 3},
    "participative": {"window_frames": 9, "policy_options": {"sink_frames": 2, "budget_frames": 6, "recent_frames": 2}},
    "heavy-hitter": {"policy_options": {"heavy_frames": 2, "recent_frames": 3}},
    "r1-kv": {"window_frames": 8, "policy_options": {"sink_frames": 1, "recent_frames": 2, "pool_tokens": 3}},
    "packed": {
        "policy_options": {
            "sink_frames": 1,
            "mid_blocks": 2,
            "block_frames": 2,
            "recent_frames": 2,
            "pooling": (2, 2, 1),
            "pool_blocks": 3,
        }
    },
    "dual": {"policy_options": {"context_frames": 2, "local_frames": 6}},
    "rebuild": {"policy_options": {"context_frames": 3}},
}


def engine_of(policy: str, **options: Any) -> VideoEngine:
    return small_engine(policy=policy, **{**OPTIONS[policy], "max_streams": 1, **options})


def watch_integrity(engine: VideoEngine) -> None:
    """Check the cache after every tick of this engine's streams."""
    cache, tick = engine.core.cache, engine.tick

    def checked() -> None:
        tick()
        cache.check_integrity()

    engine.tick = checked  # type: ignore[method-assign]


def chunks(stream: VideoStream, engine: VideoEngine, count: int) -> list[np.ndarray]:
    """Like `run_chunks`, checking the cache at every tick."""
    watch_integrity(engine)
    return run_chunks(stream, engine, count)


def test_every_policy_has_a_case() -> None:
    assert set(OPTIONS) == set(POLICIES)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_runs_and_every_change_of_prompt_with_it(policy: str) -> None:
    engine = engine_of(policy)
    stream = engine.open(Control.of({"prompt": "a cat"}))
    held = engine.core.cache.bytes
    frames = len(chunks(stream, engine, 8))
    for how in ("cut", "flush", "glide"):
        stream.apply(Control.of({"prompt": f"a robot {how}", "prompt_change": how}))
        frames += len(run_chunks(stream, engine, 2))
    stream.apply(Control(scene_cut=True))
    frames += len(run_chunks(stream, engine, 4))
    assert frames == 8 * 18 - 3
    assert engine.core.cache.bytes == held
    assert stream.accounting.in_flight == 0


@pytest.mark.parametrize("storage", ["lean", "int8"])
def test_other_storages_run(storage: str) -> None:
    engine = engine_of("sink", storage=storage)
    assert len(chunks(engine.open(), engine, 5)) == 37


# -- changes of the prompt ---------------------------------------------------------------------------------------------


def tasks(engine: VideoEngine) -> list[str]:
    return [row.task for tick in engine.log.ticks() for row in tick.rows]


def test_a_cut_passes_the_kept_frames_again_chunk_by_chunk() -> None:
    """Afterwards the cache equals that of a stream that generated these frames with the new prompt."""
    engine = engine_of("sink", window_frames=8)
    stream = engine.open(Control.of({"prompt": "a cat"}))
    run_chunks(stream, engine, 5)
    before = len(tasks(engine))
    assert stream._stream_rows.ledger().next_frame == 10
    stream.apply(Control.of({"prompt": "a robot", "prompt_change": "cut"}))
    clean = stream._chunk_factory.past._clean.take([0, 3, 4, 5, 6, 7, 8, 9])  # type: ignore[attr-defined]
    assert stream.generate(8)
    for _ in range(4):
        engine.tick()
    assert tasks(engine)[before:] == ["context"] * 4
    assert stream._stream_rows.ledger().next_frame == 8
    other = engine_of("sink", window_frames=8)
    plain = other.open(Control.of({"prompt": "a robot"}))
    with torch.inference_mode():
        plain._conditioning.part("text").write_rows()  # type: ignore[attr-defined]
        for first in (0, 2, 4, 6):
            plain._stream_rows.begin(0, 2)
            latents = clean.latents[:, first : first + 2]
            nothing = FrameConditions(columns={"actions": (NO_ACTION,) * 2}, fields={})
            request = plain._stream_rows.request(0, latents, (0.0, 0.0), 0, conditions=nothing, scale=1.0)
            other.core.passes.run([request])
    ours, theirs = (e.core.cache._bank.store.tensors for e in (engine, other))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_flush_keeps_the_sink_and_the_last_frame() -> None:
    engine = engine_of("sink")
    stream = engine.open(Control.of({"prompt": "a cat"}))
    run_chunks(stream, engine, 5)
    stream.apply(Control.of({"prompt": "a robot", "prompt_change": "flush"}))
    assert stream.generate(8)
    engine.tick()
    assert [span.frame for span in stream._stream_rows.ledger().spans] == [0, 9, 10, 11]
    assert tasks(engine)[-1] == "denoise"  # nothing is computed again


def test_a_cut_and_a_flush_make_another_video_than_a_glide() -> None:
    videos = []
    for how in ("glide", "cut", "flush"):
        engine = engine_of("sink")
        stream = engine.open(Control.of({"prompt": "a cat"}))
        run_chunks(stream, engine, 4)
        stream.apply(Control.of({"prompt": "a robot", "prompt_change": how}))
        videos.append(np.stack(run_chunks(stream, engine, 1)))
    assert not any(np.array_equal(a, b) for i, a in enumerate(videos) for b in videos[i + 1 :])


# -- context of policies -----------------------------------------------------------------------------------------------


def test_a_rebuilt_cache_has_the_last_clean_frames_and_an_anchor_that_is_encoded_again() -> None:
    engine = engine_of("rebuild")
    stream = engine.open()
    images = run_chunks(stream, engine, 4)
    memory = stream._chunk_factory.past
    assert isinstance(memory, RebuildPast)
    latest = memory._clean.take([6, 7]).latents
    assert stream.generate(8)
    engine.tick()
    assert tasks(engine)[-1] == "context"
    job = stream._chunk_schedule._pending[0]
    assert job.kind == "denoise"  # the context pass is over
    assert [span.position for span in stream._stream_rows.ledger().spans] == [0, 1, 2]
    with torch.inference_mode():
        (context,) = memory.context()
        anchor = encode_image(random_codec(torch.float32), to_pixels(images[-9][None])[:, :, 0])
    assert torch.equal(context.latents[:, 1:], latest)
    torch.testing.assert_close(context.latents[:, :1], anchor[0], rtol=0, atol=1e-6)


def test_each_shot_of_a_story_sees_pictures_of_the_earlier_ones() -> None:
    engine = engine_of("dual")
    stream = engine.open(Control.of({"prompt": "one"}))
    images = run_chunks(stream, engine, 2)
    assert tasks(engine)[0] == "context"
    assert [span.phase for span in stream._stream_rows.ledger().spans] == [0, 0, 1, 1, 1, 1]
    stream.apply(Control.of({"prompt": "two", "prompt_change": "cut"}))
    seen: list[torch.Tensor] = []
    encode = engine.core.encode_pictures
    memory = stream._chunk_factory.past
    parts = replace(memory._parts, encode=lambda pictures: seen.append(pictures) or encode(pictures))  # type: ignore[func-returns-value]
    memory._parts = parts
    run_chunks(stream, engine, 1)
    assert len(seen) == 1
    shown = (seen[0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(shown[0], images[0])
    assert len(shown) == 2
    assert [span.phase for span in stream._stream_rows.ledger().spans][-2:] == [1, 1]
    assert stream._stream_rows.ledger().shot == 1


def test_a_first_shot_without_an_empty_context_begins_at_once() -> None:
    options = {"context_frames": 2, "local_frames": 6, "empty_context": False}
    engine = engine_of("dual", policy_options=options)
    stream = engine.open(Control.of({"prompt": "one"}))
    run_chunks(stream, engine, 2)
    assert "context" not in tasks(engine)
    assert [span.phase for span in stream._stream_rows.ledger().spans] == [0, 0, 0, 0]
    stream.apply(Control.of({"prompt": "two", "prompt_change": "cut"}))
    run_chunks(stream, engine, 1)
    assert "context" in tasks(engine)
    assert [span.phase for span in stream._stream_rows.ledger().spans] == [0, 0, 1, 1]


def test_an_album_of_a_long_shot_is_evenly_spaced_and_bounded() -> None:
    album = ShotAlbum(4, (1, 1), torch.device("cpu"))
    for number in range(100):
        album.add(torch.full((1, 1, 3), number, dtype=torch.uint8))
    held = [int(album._store[place, 0, 0, 0]) for place in album._held]
    assert len(set(np.diff(held))) == 1
    assert 2 <= len(held) <= 4
    assert held[0] == 0
    assert held[-1] >= 50
    assert album.chosen(2).shape == (2, 3, 1, 1)


# -- rewinding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["sink", "participative", "heavy-hitter", "r1-kv", "dual", "rebuild"])
def test_a_rewound_stream_makes_the_same_chunks_again(policy: str) -> None:
    engine = engine_of(policy)
    stream = engine.open(Control.of({"prompt": "a cat"}))
    run_chunks(stream, engine, 3)
    first = run_chunks(stream, engine, 4)
    assert stream.apply(Control(rewind_to=3)) == engine.core.next_tick
    again = run_chunks(stream, engine, 4)
    assert stream.controls.rewind_to == -1
    assert np.array_equal(first, again)
    assert stream.accounting.out == 8 * 11 - 3


def test_a_rewound_stream_goes_another_way_with_another_seed_or_prompt() -> None:
    engine = engine_of("sink")
    stream = engine.open(Control.of({"prompt": "a cat"}))
    run_chunks(stream, engine, 3)
    first = run_chunks(stream, engine, 1)
    stream.apply(Control.of({"prompt": "a robot"}))
    run_chunks(stream, engine, 1)
    stream.apply(Control.of({"rewind_to": 3}))
    assert stream.controls.prompt[0].text == "a cat"  # the prompt that held then
    assert np.array_equal(first, run_chunks(stream, engine, 1))
    stream.apply(Control.of({"rewind_to": 3, "seed": 5}))
    assert not np.array_equal(first, run_chunks(stream, engine, 1))
    stream.apply(Control.of({"rewind_to": 3, "prompt": "a dog", "seed": 2}))
    assert stream.controls.prompt[0].text == "a dog"
    assert not np.array_equal(first, run_chunks(stream, engine, 1))


def test_a_rewound_stream_of_inputs_redraws_them_alike() -> None:
    engine = engine_of("sink")
    stream = engine.open(Control.of({"prompt": "a cat"}))
    supply = video_frames(37)

    def redrawn(first: int, last: int) -> list[np.ndarray]:
        images = []
        for frame in supply[first:last]:
            while not stream.push(frame):
                engine.tick()
                images += [f.image for f in stream.pull()]
        while stream.busy:
            engine.tick()
            images += [f.image for f in stream.pull()]
        return images

    redrawn(0, 21)
    first = redrawn(21, 37)
    stream.apply(Control(rewind_to=3))
    assert np.array_equal(first, redrawn(21, 37))


def addresses(history: RewindHistory) -> set[int]:
    rooms = [*history._free, *(kept.buffers for kept in history._kept)]
    parts = [part for room in rooms for part in (*room.cache, room.decoder, room.encoder or (), room.past)]
    return {tensor.data_ptr() for part in parts for tensor in part}


@pytest.mark.parametrize("policy", ["sink", "dual", "rebuild"])
def test_memory_to_rewind_is_taken_when_the_stream_opens_and_never_again(policy: str) -> None:
    engine = engine_of(policy, rewind_bytes=5 << 18)
    stream = engine.open(Control.of({"prompt": "a cat"}))
    history = stream._chunk_factory.history
    taken, places = history.bytes, addresses(history)
    assert 4 << 18 < taken <= 5 << 18
    run_chunks(stream, engine, 22)
    assert 2 < len(history.numbers) < 20  # the earliest places were used again
    assert (history.bytes, addresses(history)) == (taken, places)
    stream.apply(Control(rewind_to=history.numbers[0]))
    run_chunks(stream, engine, 3)
    assert (history.bytes, addresses(history)) == (taken, places)
    stream.reset()
    assert (history.bytes, addresses(history)) == (taken, places)


def test_a_camera_s_encoder_gets_room_once_and_earlier_places_stay() -> None:
    engine = engine_of("sink")
    stream = engine.open(Control.of({"prompt": "a cat"}))
    run_chunks(stream, engine, 3)
    first = run_chunks(stream, engine, 1)
    for frame in video_frames(32):
        while not stream.push(frame):
            engine.tick()
            stream.pull()
    history = stream._chunk_factory.history
    taken, places = history.bytes, addresses(history)
    assert history.numbers[0] == 1
    stream.flush()
    assert (history.bytes, addresses(history)) == (taken, places)
    stream.apply(Control(rewind_to=3))
    assert np.array_equal(first, run_chunks(stream, engine, 1))


def test_places_to_rewind_to_are_bounded_in_bytes() -> None:
    engine = engine_of("sink", rewind_bytes=0)
    stream = engine.open()
    run_chunks(stream, engine, 3)
    with pytest.raises(
        ControlError, match=r"takes \d+ MiB here, and rewind_bytes allows 0 MiB. Load the engine with a larger"
    ):
        stream.apply(Control(rewind_to=2))
    one = engine.core.cache.bytes + 2 * engine.core.decoders[0].decoder.bytes
    engine = engine_of("sink", rewind_bytes=3 * one)
    stream = engine.open()
    run_chunks(stream, engine, 12)
    history = stream._chunk_factory.history
    assert 3 <= len(history.numbers) < 11
    assert history.bytes <= 3 * one
    assert history.numbers[-1] == 11
    with pytest.raises(ControlError, match=r"Chunks that can be rewound to: \d+ to 11"):
        stream.apply(Control(rewind_to=0))
