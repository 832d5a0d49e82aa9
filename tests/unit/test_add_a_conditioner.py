"""The example conditioner in both engines, on the bundled models: without its words frames are unchanged, and each slot
keeps its own bias."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples.add_a_conditioner import WORDS, WordBias
from pipelines.conditioning import CONDITIONERS
from pipelines.conditioning.base import LATENT_BIAS, EngineParts, Inputs, PassView
from pipelines.core.control_table import EngineKind
from pipelines.core.controls import Control
from pipelines.core.errors import ControlError
from pipelines.load import load_engine
from tests.fakes.image_model import frames

WARM, COLD, PLAIN = "a red ball, warm", "a red ball, cold", "a red ball"
KINDS: tuple[EngineKind, ...] = ("image", "video")
STREAMS = {"image": {"steps": 3, "prompt": PLAIN}, "video": {"prompt": PLAIN}}
STEP_BATCH = {"stream": "step-batch", "policy": "window", "max_streams": 2}


class Watched(WordBias):
    """Records the bias of each row of each pass, at one latent: it is equal in all channels."""

    def __init__(self, parts: EngineParts) -> None:
        super().__init__(parts, WORDS)
        self.seen: list[list[float]] = []

    def inputs(self, view: PassView) -> Inputs:
        inputs = super().inputs(view)
        self.seen.append(inputs[LATENT_BIAS][..., 0, 0, 0].flatten().tolist())
        return inputs


class Bench:
    """An engine of the given kind, with or without the example."""

    def __init__(self, kind: EngineKind, *, example: bool = True, **video: Any) -> None:
        self.kind, self.example = kind, example
        self._watched: list[Watched] = []
        self.engine = load_engine(
            f"mini-{kind}",
            device="cpu",
            video={**STEP_BATCH, **video} if kind == "video" else None,
            conditioners=(*CONDITIONERS, self._make) if example else CONDITIONERS,
            notice=lambda sentence: None,
        )

    def _make(self, parts: EngineParts) -> Watched:
        self._watched.append(Watched(parts))
        return self._watched[0]

    @property
    def seen(self) -> list[list[float]]:
        """Return the bias of each row, pass by pass; per latent frame for the video engine."""
        return self._watched[0].seen

    def open(self, **controls: object) -> Any:
        return self.engine.open(Control.of({**STREAMS[self.kind], **controls}))

    def ask(self, stream: Any) -> None:
        """For one slot or chunk."""
        assert stream.generate(stream.info.frames_per_chunk)

    def latents(self) -> int:
        """Return the latents of a slot of one frame, or of a later chunk."""
        return 1 if self.kind == "image" else self.engine.core.preset.chunk_frames  # type: ignore[attr-defined]


def pictures(finished: Any) -> np.ndarray:
    return np.stack([frame.image for frame in finished])


def run(bench: Bench, prompts: list[str], **controls: object) -> np.ndarray:
    """Run a slot or chunk with each prompt, admitting one per tick."""
    stream = bench.open(**controls)
    found = []
    for prompt in prompts:
        stream.apply(Control.of({"prompt": prompt}))
        bench.ask(stream)
        bench.engine.tick()
        found += stream.pull()
    return pictures([*found, *stream.flush()])


@pytest.mark.parametrize("kind", KINDS)
def test_off_is_exactly_off(kind: EngineKind) -> None:
    plain = run(Bench(kind, example=False), [PLAIN] * 2)
    bench = Bench(kind)
    assert np.array_equal(plain, run(bench, [PLAIN] * 2))
    assert bench.seen
    assert not any(value for rows in bench.seen for value in rows)
    warm, without = run(Bench(kind), [WARM] * 2), run(Bench(kind, example=False), [WARM] * 2)
    assert not np.array_equal(warm, without)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slot_keeps_what_it_was_born_with(kind: EngineKind) -> None:
    bench = Bench(kind)
    run(bench, [WARM, PLAIN, COLD])
    by_tick = {
        "image": [[0.5], [0.5, 0.0], [0.5, 0.0, -0.5], [0.0, -0.5], [-0.5]],
        "video": [[0.5], [0.0, 0.5], [-0.5, 0.0, 0.5], [-0.5, 0.0, 0.5], [-0.5, 0.0], [-0.5]],  # the newest first
    }
    expected = [value for tick in by_tick[kind] for value in tick for _ in range(bench.latents())]
    assert [value for rows in bench.seen for value in rows] == expected


def test_a_cut_changes_the_text_in_flight_and_leaves_what_slots_were_born_with() -> None:
    bench = Bench("image")
    stream = bench.open(prompt=WARM, prompt_change="cut")
    bench.ask(stream)
    bench.engine.tick()
    stream.apply(Control.of({"prompt": COLD}))
    bench.ask(stream)
    bench.engine.tick()
    assert bench.seen == [[0.5], [0.5, -0.5]]
    embeds = bench.engine.core.ring.tensor("embeds")  # type: ignore[attr-defined]
    assert torch.equal(embeds[0, 0], embeds[1, 0])


@pytest.mark.parametrize("mode", ["full", "onetime"])
def test_an_extra_row_of_an_image_has_its_owners(mode: str) -> None:
    bench = Bench("image")
    guided = {"guidance_mode": mode, "guidance_scale": 3.0, "negative_prompt": "a dog"}
    assert len(run(bench, [PLAIN, WARM], **guided)) == 2
    extra = [0.0, 0.5] if mode == "full" else [0.5]
    assert [0.0, 0.5, *extra] in bench.seen


def test_the_negative_row_of_a_video_has_its_owners() -> None:
    bench = Bench("video", stream="chunk", guidance=True)
    stream = bench.open(prompt=WARM, guidance_scale=3.0)
    bench.ask(stream)
    stream.flush()
    assert all(set(rows) == {0.5} and len(rows) % 2 == 0 for rows in bench.seen)


@pytest.mark.parametrize("kind", KINDS)
def test_streams_in_one_batch_do_not_mix(kind: EngineKind) -> None:
    def run_two(bench: Bench) -> tuple[np.ndarray, np.ndarray]:
        streams = bench.open(prompt=WARM), bench.open(prompt=PLAIN)
        for _ in range(2):
            for stream in streams:
                bench.ask(stream)
            bench.engine.tick()
        first, second = (pictures(stream.flush()) for stream in streams)
        return first, second

    bench = Bench(kind)
    warm, plain = run_two(bench)
    without_warm, without = run_two(Bench(kind, example=False))
    assert np.array_equal(plain, without)
    assert not np.array_equal(warm, without_warm)
    assert any({0.0, 0.5} == set(rows) for rows in bench.seen), "they never shared a batch"


def test_frames_that_are_seen_again_have_what_they_were_born_with() -> None:
    """A video's kept frames are passed again after a prompt cut, and after a rewind."""
    bench = Bench("video", stream="chunk", policy="sink", max_streams=1)
    stream = bench.open(prompt=WARM)
    for _ in range(2):
        bench.ask(stream)
        stream.flush()
    bench.seen.clear()
    stream.apply(Control.of({"prompt": PLAIN, "prompt_change": "cut"}))
    bench.ask(stream)
    stream.flush()
    context = [rows for rows in bench.seen if set(rows) == {0.5}]
    assert context
    assert set(bench.seen[-1]) == {0.0}
    bench.seen.clear()
    stream.apply(Control.of({"rewind_to": 2, "prompt": COLD}))
    bench.ask(stream)
    stream.flush()
    assert [rows for rows in bench.seen if set(rows) == {0.5}] == context
    assert set(bench.seen[-1]) == {-0.5}


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_cannot_be_is_refused_with_a_remedy(kind: EngineKind) -> None:
    bench = Bench(kind)
    stream = bench.open()
    before = stream.controls
    with pytest.raises(ControlError, match=r"both cold and warm\. Use one"):
        stream.apply(Control.of({"prompt": "warm | cold"}))
    assert stream.controls is before
    with pytest.raises(ControlError, match="both cold and warm"):
        bench.open(prompt="warm cold")


def test_the_example_runs(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    command = [sys.executable, "-m", "examples.add_a_conditioner", WARM, str(target)]
    subprocess.run(command, check=True, timeout=120)
    assert target.stat().st_size > 1000


def test_it_steers_a_camera_too() -> None:
    bench = Bench("image")
    stream = bench.open(prompt="a red ball, warm:1 | a tree:3")
    for frame in frames(2, side_px=stream.info.width):
        assert stream.push(frame)
    stream.flush()
    assert {value for rows in bench.seen for value in rows} == {0.125}
