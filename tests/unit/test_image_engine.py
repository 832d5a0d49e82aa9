"""The image engine over an arithmetic model: order, accounting, slots of F frames, two streams, edge cases."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
import torch

from pipelines.backends.table import choose_backend
from pipelines.core.control_table import CONTROLS
from pipelines.core.controls import Control
from pipelines.core.errors import ControlError, InputError, ModelError, OutOfMemoryError
from pipelines.core.tick_log import StreamRecord
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.image.stream import ImageStream
from tests.fakes.image_model import ArithmeticDenoiser, BlackList, HashPrompts, cheap_model, frames


def run(stream: ImageStream, engine: ImageEngine, pictures: list[Frame]) -> list[Frame]:
    """Run a render loop, which drops nothing."""
    out = []
    for picture in pictures:
        while not stream.push(picture):
            engine.tick()
            check(stream, engine)
            out += stream.pull()
        check(stream, engine)
    return out + stream.flush()


def check(stream: ImageStream, engine: ImageEngine) -> None:
    account = stream.accounting
    assert account.taken == account.out + account.skipped + account.in_flight
    engine.core.ring.check_integrity()


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("frames_per_slot", [1, 2, 3])
def test_every_frame_comes_out_once_in_order(steps: int, frames_per_slot: int) -> None:
    engine = ImageEngine(cheap_model(), frames_per_slot=frames_per_slot)
    with engine.open(Control(steps=steps)) as stream:
        pictures = frames(11)  # a partial slot at the end for F = 2 and 3
        out = run(stream, engine, pictures)
        assert [f.source_seq for f in out] == list(range(11))
        assert [f.seq for f in out] == list(range(11))
        assert [(f.pts, f.time_base, f.captured_ns) for f in out] == [
            (f.pts, f.time_base, f.captured_ns) for f in pictures
        ]
        assert stream.accounting.out == 11
    assert engine.core.ring.held_rows == ()


def test_result_of_a_frame_does_not_depend_on_frames_per_slot() -> None:
    outs = []
    for size in (1, 2, 3):
        engine = ImageEngine(cheap_model(), frames_per_slot=size)
        outs.append(run(engine.open(Control(seed_lock=False)), engine, frames(6)))
    for other in outs[1:]:
        for one, two in zip(outs[0], other, strict=True):
            assert np.abs(one.image.astype(int) - two.image.astype(int)).max() <= 1


def test_one_frame_a_tick_when_depth_is_at_least_steps() -> None:
    engine = ImageEngine(cheap_model())
    stream = engine.open(Control(steps=3, depth=3))
    given = []
    for picture in frames(8):
        assert stream.push(picture)
        engine.tick()
        given.append(len(stream.pull()))
    assert given == [0, 0, 1, 1, 1, 1, 1, 1]
    assert stream.info.latency_ticks == 2


def test_push_is_refused_at_depth_and_when_the_ring_is_full() -> None:
    engine = ImageEngine(cheap_model(), max_slots=3)
    one, two = engine.open(Control(depth=2)), engine.open()
    a, b, c = frames(3)
    assert [one.push(a), one.push(b), one.push(c)] == [True, True, False]
    assert [two.push(a), two.push(b)] == [True, False]
    assert one.accounting.taken == 2


def test_a_stream_that_is_never_pulled_stops_taking_frames_and_loses_none() -> None:
    engine = ImageEngine(cheap_model(), max_slots=2)
    stream = engine.open(Control(steps=1))
    pictures, taken = iter(frames(100)), 0
    for picture in pictures:
        if not stream.push(picture):
            break
        taken += 1
        engine.tick()
    assert taken == 6  # three buffers for each slot of the ring
    assert len(stream.flush()) == 6


def test_a_shorter_slot_waits_for_older_ones() -> None:
    """Slot 0 has 4 steps, slot 1 has one: slot 1 finishes in its first tick and is released after slot 0."""
    engine = ImageEngine(cheap_model())
    stream = engine.open(Control(steps=4))
    one, two = frames(2)
    stream.push(one)
    stream.apply(Control(steps=1))
    stream.push(two)
    seen = []
    for _ in range(4):
        engine.tick()
        check(stream, engine)
        seen.append([f.source_seq for f in stream.pull()])
    assert seen == [[], [], [], [0, 1]]
    assert [t.finished for t in engine.log.ticks()] == [((0, 1),), (), (), ((0, 0),)]


def test_moving_everything_while_streaming_loses_nothing() -> None:
    choose = random.Random(3)
    engine = ImageEngine(cheap_model(), frames_per_slot=2, max_slots=5)
    stream = engine.open()
    out: list[Frame] = []
    pictures = frames(200)
    for picture in pictures:
        if choose.random() < 0.5:
            stream.apply(
                Control.of(
                    {
                        "strength": choose.choice([0.3, 0.5, 1.0]),
                        "steps": choose.randint(1, 8),
                        "depth": choose.randint(1, 8),
                        "prompt": choose.choice(["a", "b", "a:2 | c"]),
                        "guidance_mode": choose.choice(["none", "full", "self", "onetime"]),
                        "guidance_scale": choose.uniform(0.5, 3),
                        "step_function": choose.choice(["lcm", "tcd", "turbo"]),
                        "prompt_change": choose.choice(["cut", "glide"]),
                        "transition_frames": choose.randint(0, 5),
                        "seed_lock": choose.random() < 0.5,
                    }
                )
            )
        while not stream.push(picture):
            engine.tick()
            check(stream, engine)
            out += stream.pull()
        check(stream, engine)
        if choose.random() < 0.3:
            engine.tick()
    out += stream.flush()
    assert [f.source_seq for f in out] == list(range(200))


def test_accounting_is_exact_with_the_filter_on() -> None:
    engine = ImageEngine(cheap_model())
    stream = engine.open(Control(similarity_filter=True, similarity_max_skips=4))
    still = frames(1)[0]
    pictures = [Frame(image=still.image, pts=i, time_base=Fraction(1, 24), seq=i, captured_ns=None) for i in range(20)]
    out = run(stream, engine, pictures)
    assert [f.source_seq for f in out] == [0, 5, 10, 15]
    assert stream.accounting.skipped == 16


def test_two_streams_together_equal_the_two_alone() -> None:
    settings = (
        Control.of({"prompt": "a cat", "steps": 2, "guidance_mode": "self", "guidance_scale": 1.5}),
        Control.of({"prompt": "a robot", "steps": 3, "strength": 0.8, "seed": 5, "guidance_mode": "full"}),
    )
    pictures = (frames(6), frames(6, start=50))
    alone = []
    for control, mine in zip(settings, pictures, strict=True):
        engine = ImageEngine(cheap_model())
        alone.append(run(engine.open(control), engine, mine))
    denoiser = ArithmeticDenoiser()
    engine = ImageEngine(cheap_model(denoiser=denoiser))
    streams = [engine.open(control) for control in settings]
    together: list[list[Frame]] = [[], []]
    for pair in zip(*pictures, strict=True):
        for stream, picture, out in zip(streams, pair, together, strict=True):
            assert stream.push(picture)
            out += stream.pull()
        engine.tick()
    for stream, out in zip(streams, together, strict=True):
        out += stream.flush()
    assert max(len(times) for times, _ in denoiser.calls) >= 5  # they did share batches
    for lone, shared in zip(alone, together, strict=True):
        assert [f.source_seq for f in lone] == [f.source_seq for f in shared]
        assert all(
            np.abs(a.image.astype(int) - b.image.astype(int)).max() <= 1 for a, b in zip(lone, shared, strict=True)
        )


def test_prompt_only_frames_are_stamped_and_walk_smoothly() -> None:
    engine = ImageEngine(cheap_model())

    def stream_of(degrees: float) -> list[Frame]:
        with engine.open(Control(noise_walk_deg=degrees, steps=1), frame_rate=Fraction(30)) as stream:
            out = []
            for _ in range(6):
                assert stream.generate()
                engine.tick()
                out += stream.pull()
            return out

    still, slow, fast = (stream_of(d) for d in (0.0, 2.0, 20.0))
    assert [(f.pts, f.time_base, f.source_seq) for f in still] == [(i, Fraction(1, 30), None) for i in range(6)]
    assert all(np.array_equal(f.image, still[0].image) for f in still)

    def motion(out: list[Frame]) -> float:
        pairs = itertools.pairwise(out)
        return float(np.mean([np.abs(a.image.astype(float) - b.image).mean() for a, b in pairs]))

    assert 0 < motion(slow) < motion(fast) / 4


def test_generate_takes_all_or_nothing_and_slots_do_not_mix_kinds() -> None:
    engine = ImageEngine(cheap_model(), frames_per_slot=2, max_slots=3)
    stream = engine.open()
    assert not stream.generate(7)
    assert stream.accounting.taken == 0
    assert stream.push(frames(1)[0])  # half a slot, padded when the kind changes
    assert stream.generate(3)
    assert [f.source_seq for f in stream.flush()] == [0, None, None, None]


def test_reset_and_close_give_everything_back() -> None:
    engine = ImageEngine(cheap_model(), frames_per_slot=2)
    stream = engine.open()
    first = [f.image for f in run(stream, engine, frames(4))]
    for picture in frames(5):
        stream.push(picture)
    engine.tick()
    stream.reset()
    assert engine.core.ring.held_rows == ()
    assert stream.accounting.taken == stream.accounting.in_flight == 0
    assert all(np.array_equal(a, f.image) for a, f in zip(first, run(stream, engine, frames(4)), strict=True))
    stream.push(frames(1)[0])
    stream.close()
    stream.close()
    assert engine.core.ring.held_rows == ()
    with pytest.raises(InputError, match="closed"):
        stream.push(frames(1)[0])
    engine.close()
    with pytest.raises(InputError, match="closed"):
        engine.open()


def test_flagged_pictures_are_black() -> None:
    engine = ImageEngine(cheap_model(safety=BlackList(-1.0)))
    (out,) = run(engine.open(), engine, frames(1))
    assert not out.image.any()


def test_wrong_frames_sizes_and_backends_are_refused_with_a_remedy() -> None:
    engine = ImageEngine(cheap_model())
    with pytest.raises(InputError, match="Resize it"):
        engine.open().push(frames(1, side_px=8)[0])
    with pytest.raises(ControlError, match="multiple of 2: try 16"):
        ImageEngine(cheap_model(), width=17)
    with pytest.raises(ModelError, match="Use auto, eager, cuda-graph, compiled"):
        choose_backend("magic", "image", torch.device("cpu"))
    with pytest.raises(ModelError, match="CUDA"):
        choose_backend("cuda-graph", "image", torch.device("cpu"))


def test_a_refused_change_changes_nothing() -> None:
    prompts = HashPrompts()
    engine = ImageEngine(cheap_model(prompts=prompts))
    stream = engine.open(Control.of({"prompt": "a cat"}))
    before, encoded = stream.controls, list(prompts.encoded)
    for change, words in (
        ({"prompt": "a dog", "strength": 0.1, "steps": 8}, "Raise strength"),
        ({"prompt": "a dog", "width": 32}, "Load the engine again"),
        ({"prompt": "a dog", "lora_scale": 0.5}, "No LoRA"),
    ):
        with pytest.raises(ControlError, match=words):
            stream.apply(Control.of(change))
    assert stream.controls == before
    assert prompts.encoded == encoded
    stream.apply(Control.of({"width": 16, "height": 0, "model": "cheap", "lora_scale": 1.0}))
    with pytest.raises(ControlError):
        engine.open(Control(steps=8, strength=0.02))
    assert stream.controls.values["width"] == 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "a dog", "strength": 0.1, "steps": 8}, "Raise strength"),
        ({"prompt": "a dog", "width": 32}, "Load the engine again"),
        ({"prompt": "a dog", "lora_scale": 0.5}, "No LoRA"),
    ],
)
def test_an_open_that_fails_leaves_nothing_open(change: dict[str, object], words: str) -> None:
    prompts = HashPrompts()
    engine = ImageEngine(cheap_model(prompts=prompts), max_slots=1)
    encoded = list(prompts.encoded)
    with pytest.raises(ControlError, match=words):
        engine.open(Control.of(change))
    with pytest.raises(InputError, match="frame rate"):
        engine.open(frame_rate=Fraction(0))
    assert (engine.log.records(), engine.core.ring.held_rows, prompts.encoded) == ((), (), encoded)
    stream = engine.open()
    assert len(run(stream, engine, frames(3))) == 3
    assert [r.stream for r in engine.log.records() if isinstance(r, StreamRecord)] == [0, 0]  # open, flush
    engine.close()


def test_defaults_of_the_model_come_before_the_callers() -> None:
    engine = ImageEngine(cheap_model(defaults={"steps": 1, "strength": 0.7, "step_function": "turbo"}))
    stream = engine.open(Control(strength=0.4))
    assert (stream.controls.steps, stream.controls.strength) == (1, 0.4)
    assert stream.controls.step_function == "turbo"
    assert set(stream.controls.values) == set(CONTROLS)


def test_too_little_memory_says_what_to_do() -> None:
    class Hungry(ArithmeticDenoiser):
        def __call__(self, *args: object) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine = ImageEngine(cheap_model(denoiser=Hungry()))
    stream = engine.open()
    stream.push(frames(1)[0])
    with pytest.raises(OutOfMemoryError, match=r"too little memory for 1 slots .* --size 10x10 or smaller"):
        engine.tick()


def test_too_little_memory_to_rehearse_says_what_to_do() -> None:
    """Before the first frame, while the parts are run once at the size asked for."""

    class Hungry(ArithmeticDenoiser):
        def __call__(self, *args: object) -> torch.Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    engine = ImageEngine(cheap_model(denoiser=Hungry()))
    with pytest.raises(OutOfMemoryError, match=r"too little memory for 2 slots .* start with --size"):
        engine.rehearse(2)


def test_models_with_pooled_text_get_it_with_sizes_for_every_row() -> None:
    denoiser = ArithmeticDenoiser()
    model = cheap_model(denoiser=denoiser, prompts=HashPrompts(pooled=True), wants_time_ids=True)
    engine = ImageEngine(model, width=32, frames_per_slot=2)
    stream = engine.open(Control(guidance_mode="full", guidance_scale=2.0))
    stream.generate(2)
    engine.tick()
    condition = denoiser.calls[0][1]
    assert condition.pooled is not None
    assert condition.time_ids is not None
    assert condition.pooled.shape == (4, 8)
    assert condition.time_ids.tolist() == [[16, 32, 0, 0, 16, 32]] * 4
    assert not condition.pooled[0].equal(condition.pooled[2]) or stream.controls.negative_prompt == ""
