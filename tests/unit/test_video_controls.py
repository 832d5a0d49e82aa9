"""When a changed control of a video stream takes effect, for every row of the control table that applies to it.

The stream has chunks of 2 latents, 2 steps and a clean pass, and another chunk always waits. A change is made after the
first pass of a chunk: *next tick* takes effect in its second pass, *next slot* and *next chunk* in the next chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from app.takes.recorder import complete_control
from app.worker.proxy import SessionProxy
from pipelines.conditioning.actions import ACTION_NAMES
from pipelines.core.control_table import CONTROLS, Propagation
from pipelines.core.controls import Control
from pipelines.core.errors import InputError
from pipelines.core.tick_log import BirthRecord, RowRecord
from pipelines.video.chunks import ChunkSlot
from pipelines.video.passes import PassRequest
from pipelines.video.presets import VideoPreset
from pipelines.video.schedules import PassPart
from tests.fakes.small_kv import positions
from tests.fakes.video_engine import SMALL, acting_engine, run_chunks, small_engine, video_frames

GUIDED = replace(SMALL, guidance=3.0, negative_prompt="dull")
Found = list[tuple[PassRequest, tuple[PassPart, ...]]]


class Bench:
    """A stream in steady state. inputs: redraw input frames instead of generating. acts: with actions."""

    def __init__(
        self, preset: VideoPreset = SMALL, *, inputs: bool = False, acts: bool = False, **control: object
    ) -> None:
        self.engine = acting_engine(preset) if acts else small_engine(preset)
        self.stream = self.engine.open(Control.of({"prompt": "a cat", **control}))
        self.inputs = inputs
        self.supply = iter(video_frames(4000))
        self.last: tuple[RowRecord, ...] = ()
        while len(self.chunk_factory) < 3:
            self.step()
        while self.last[0].task != "denoise" or self.last[0].step:
            self.step()

    def step(self) -> tuple[RowRecord, ...]:
        """Push a chunk, tick, pull. Returns the rows of the tick."""
        stream = self.stream
        if self.inputs:
            while stream.push(next(self.supply)):
                pass
        else:
            stream.generate(stream.info.frames_per_chunk)
        self.engine.tick()
        stream.pull()
        self.engine.core.cache.check_integrity()
        self.last = self.engine.log.ticks()[-1].rows
        return self.last

    @property
    def chunk_factory(self) -> list[BirthRecord]:
        return [record for record in self.engine.log.records() if isinstance(record, BirthRecord)]

    def watch_actions(self) -> dict[str, float]:
        """Record the actions of the latest pass."""
        seen = dict.fromkeys(ACTION_NAMES, 0.0)
        run = self.engine.core.passes.run

        def watched(requests: Sequence[PassRequest]) -> list[torch.Tensor]:
            (action,) = set(requests[-1].conditions.columns["actions"])
            seen.update(zip(ACTION_NAMES, action, strict=True))
            return run(requests)

        self.engine.core.passes.run = watched  # type: ignore[method-assign]
        return seen

    def text(self) -> torch.Tensor:
        """Return the prompt's keys in the stream's row."""
        rows = self.engine.core.text_rows
        return rows._keys[:, self.stream._stream_rows.text_rows[0]].clone()

    def negative(self) -> torch.Tensor:
        row = self.stream._stream_rows.negative_text
        assert row is not None
        return self.engine.core.text_rows._keys[:, row].clone()

    def onset(self, change: Control, felt: Callable[[Bench], bool]) -> tuple[int, int]:
        """Return (ticks, admitted chunks) from the tick that apply() names to the first with the change."""
        born = len(self.chunk_factory)
        assert not felt(self)
        assert self.stream.apply(change) == self.engine.core.next_tick
        for tick in range(12):
            self.step()
            if felt(self):
                return tick, len(self.chunk_factory) - born
        raise AssertionError("never felt")


def _born(name: str, value: object) -> Callable[[Bench], bool]:
    return lambda bench: getattr(bench.chunk_factory[-1], name) == value


def _text_is(prompt: str) -> Callable[[Bench], bool]:
    wanted = Bench(prompt=prompt).text()
    return lambda bench: torch.equal(bench.text(), wanted)


MEASURED: dict[str, tuple[dict[str, object], Callable[[Bench], bool]]] = {
    "strength": ({"strength": 0.6, "noise_control": False}, lambda b: b.chunk_factory[-1].strength == 0.6),
    "seed": ({"seed": 77}, _born("seed", 77)),
    "seed_lock": ({"seed_lock": True}, _born("seed_lock", True)),
    "chunk_frames": ({"chunk_frames": 1}, lambda b: len(b.chunk_factory[-1].source_seqs) == 4),
    "chunk_steps": ({"chunk_steps": 3}, lambda b: len(b.chunk_factory[-1].timesteps) == 3),
    "noise_control": ({"noise_control": False}, lambda b: b.chunk_factory[-1].strength == 0.8),
}


@pytest.mark.parametrize("name", MEASURED)
def test_a_change_is_felt_by_the_next_chunk(name: str) -> None:
    change, felt = MEASURED[name]
    inputs = name in ("strength", "noise_control")
    assert CONTROLS[name].propagation in (Propagation.NEXT_SLOT, Propagation.NEXT_CHUNK)
    bench = Bench(inputs=inputs)
    # The second step and the clean pass of the chunk in flight come first.
    assert bench.onset(Control.of(change), felt) == (2, 1)


@pytest.mark.parametrize("name", ACTION_NAMES)
def test_an_action_is_felt_by_the_next_chunk_and_holds(name: str) -> None:
    assert CONTROLS[name].propagation is Propagation.NEXT_CHUNK
    bench = Bench(acts=True)
    seen = bench.watch_actions()
    assert bench.onset(Control.of({name: -0.5}), lambda b: seen[name] == -0.5) == (2, 1)
    assert seen == {**dict.fromkeys(ACTION_NAMES, 0.0), name: -0.5}
    for _ in range(7):
        bench.step()
    assert bench.onset(Control.of({name: 0}), lambda b: seen[name] == 0) == (1, 1)


def test_a_prompt_glides_in_with_the_next_chunk_or_cuts_in_at_the_next_tick() -> None:
    robot = _text_is("a robot")
    assert Bench().onset(Control.of({"prompt": "a robot"}), robot) == (2, 1)
    for how in ("cut", "flush"):
        assert Bench(prompt_change=how).onset(Control.of({"prompt": "a robot"}), robot) == (0, 0)
    assert Bench().onset(Control.of({"prompt": "a robot", "prompt_change": "cut"}), robot) == (0, 0)


def test_a_negative_prompt_and_guidance_where_the_preset_has_them() -> None:
    bench = Bench(GUIDED)
    assert bench.last[0].extra
    assert bench.last[0].guidance_scale == 3.0
    assert len(bench.stream._stream_rows.kv_rows[0]) == 2
    dull = bench.negative()
    assert not dull.equal(bench.text())
    other = Bench(GUIDED, negative_prompt="grey").negative()
    assert bench.onset(Control.of({"negative_prompt": "grey"}), lambda b: b.negative().equal(other)) == (2, 1)
    scaled = bench.onset(Control(guidance_scale=1.5), lambda b: b.last[0].guidance_scale == 1.5)
    assert scaled == (0, 0)


def test_guidance_is_that_of_the_formula() -> None:
    """At scale 1 the negative prompt has no influence; at 0 the prompt has none."""

    def video(preset: VideoPreset, **control: object) -> list[np.ndarray]:
        engine = small_engine(preset, torch.float64)
        return run_chunks(engine.open(Control.of(control)), engine, 2)

    plain = video(SMALL, prompt="a cat")
    assert np.array_equal(plain, video(GUIDED, prompt="a cat", guidance_scale=1.0))
    assert np.array_equal(plain, video(GUIDED, prompt="a robot", negative_prompt="a cat", guidance_scale=0.0))
    assert not np.array_equal(plain, video(GUIDED, prompt="a cat", guidance_scale=3.0))


def test_a_gliding_transition_moves_with_the_frames_of_the_chunks() -> None:
    bench = Bench()
    cat, robot = (bench.engine.core.prompts.encode(text).embeds for text in ("a cat", "a robot"))
    shares = []
    write = bench.engine.core.text_rows.write

    def watched(row: int, embeddings: torch.Tensor) -> int:
        shares.append(float((embeddings - cat).norm() / (robot - cat).norm()))
        return write(row, embeddings)

    bench.engine.core.text_rows.write = watched  # type: ignore[method-assign]
    bench.stream.apply(Control.of({"prompt": "a robot", "transition_frames": 16}))
    for _ in range(9):
        bench.step()
    assert shares == pytest.approx([0.5, 1.0])  # 8 frames a chunk


def test_blends_are_of_embeddings_and_change_with_the_next_chunk() -> None:
    bench = Bench(prompt="a cat | a robot")
    before = bench.text()
    assert bench.onset(Control(prompt_blend="slerp"), lambda b: not torch.equal(b.text(), before)) == (2, 1)


def test_a_smaller_first_chunk() -> None:
    engine = small_engine()
    stream = engine.open(Control(first_chunk_frames=1))
    assert stream.info.frames_per_chunk == 1
    assert len(run_chunks(stream, engine, 2)) == 9
    assert [len(b.source_seqs) for b in engine.log.records() if isinstance(b, BirthRecord)] == [1, 8]
    stream.reset()
    stream.apply(Control(first_chunk_frames=2))
    assert stream.info.frames_per_chunk == 5


def test_paused_streams_compute_nothing_from_the_next_tick_on_and_take_nothing() -> None:
    bench = Bench()
    ticks, counts = len(bench.engine.log.ticks()), bench.stream.accounting
    bench.stream.apply(Control(paused=True))
    assert not bench.stream.busy
    for _ in range(5):
        bench.engine.tick()
    assert len(bench.engine.log.ticks()) == ticks
    assert not bench.stream.generate(8)
    assert not bench.stream.push(next(bench.supply))
    assert bench.stream.accounting == counts
    with pytest.raises(InputError, match="Set paused to off first"):
        bench.stream.flush()
    bench.stream.apply(Control(paused=False))
    bench.engine.tick()
    assert bench.engine.log.ticks()[-1].rows[0].step == 1  # where it stopped


def test_a_pause_changes_nothing_of_the_video() -> None:
    engine = small_engine()
    plain = run_chunks(engine.open(), engine, 3)
    stream = engine.open()
    assert stream.generate(5)
    engine.tick()
    stream.apply(Control(paused=True))
    engine.tick()
    stream.apply(Control(paused=False))
    rest = run_chunks(stream, engine, 2)
    assert np.array_equal(plain, [*rest])


def test_a_seed_lock_gives_every_frame_the_same_noise() -> None:
    engine = small_engine()
    starts: list[torch.Tensor] = []
    stream = engine.open(Control(seed_lock=True))
    bear = stream._chunk_schedule.admit

    def watched(slot: ChunkSlot, context: Sequence[torch.Tensor]) -> None:
        starts.append(slot.latents.clone())
        bear(slot, context)

    stream._chunk_schedule.admit = watched  # type: ignore[method-assign]
    run_chunks(stream, engine, 2)
    stream.apply(Control(seed_lock=False))
    run_chunks(stream, engine, 2)
    frames = [start[:, i] for start in starts for i in range(start.shape[1])]
    assert all(frame.equal(frames[0]) for frame in frames[:4])
    assert not any(a.equal(b) for i, a in enumerate(frames[4:]) for b in frames[4:][i + 1 :])


def test_a_scene_cut_comes_with_the_next_chunk_and_goes_back_by_itself() -> None:
    bench = Bench()
    stream_rows = bench.stream._stream_rows
    onset = bench.onset(Control(scene_cut=True), lambda b: stream_rows.ledger().shot == 1)
    assert onset == (2, 1)
    assert not bench.stream.controls.scene_cut
    standing = positions(bench.engine.core.cache, stream_rows.kv_rows[0][0])
    assert max(np.diff(standing)) > 10  # a jump in time
    for _ in range(6):
        bench.step()
    assert stream_rows.ledger().shot == 1


def test_every_control_of_a_video_model_is_measured_here() -> None:
    here = {
        *MEASURED,
        *ACTION_NAMES,
        *("prompt", "prompt_change", "negative_prompt", "guidance_scale", "transition_frames", "prompt_blend"),
        *("first_chunk_frames", "paused", "scene_cut"),
        *("rewind_to", "input_use"),  # tests/unit/test_video_memory.py, test_video_inputs.py
    }
    videos = {n for n, s in CONTROLS.items() if "video" in s.engines and s.propagation is not Propagation.REOPEN}
    assert here == videos


def test_chunks_of_a_step_batch_keep_their_prompts_as_they_move_from_row_to_row() -> None:
    preset = replace(SMALL, steps=(1000, 750, 500), stream="step-batch", clean_pass=False, chunk_frames=1)
    engine = small_engine(preset)
    stream = engine.open(Control.of({"prompt": "a cat"}))
    keys = {text: Bench(prompt=text).text() for text in ("a cat", "a robot")}
    held = []
    for tick in range(6):
        if tick == 3:
            stream.apply(Control.of({"prompt": "a robot"}))
        assert stream.generate(stream.info.frames_per_chunk)
        engine.tick()
        stream.pull()
        rows = [engine.core.text_rows._keys[:, row] for row, _ in enumerate(stream._stream_rows.text_rows)]
        held.append([next((name for name, k in keys.items() if k.equal(row)), "") for row in rows])
    cat, robot = "a cat", "a robot"
    assert held == [
        [cat, "", ""],
        [cat, cat, ""],
        [cat, cat, cat],
        [robot, cat, cat],
        [robot, robot, cat],
        [robot, robot, robot],
    ]


def test_a_new_stream_is_not_told_what_was_asked_for_once() -> None:
    bench = Bench()
    bench.stream.apply(Control(scene_cut=True, seed=4))
    told = complete_control(bench.stream)
    assert told.seed == 4
    assert told.scene_cut is None
    assert told.rewind_to is None
    session = SessionProxy("a", control=Control(), prompt_only=True, send=lambda _: None, on_close=lambda _: None)
    session.set_control(Control(rewind_to=3, scene_cut=True, seed=5))
    assert session.control == Control(seed=5)
