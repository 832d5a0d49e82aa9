"""The contract of conditioners, tested with a probe in both engines: branches, live columns, inputs by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from cache.ring import RingField
from pipelines.conditioning import CONDITIONERS
from pipelines.conditioning.actions import ACTION_NAMES, ActionConditioner
from pipelines.conditioning.base import (
    Conditioner,
    EngineParts,
    Inputs,
    NewSlot,
    PassView,
    StreamConditioner,
    StreamPlace,
)
from pipelines.conditioning.frames import FrameConditions
from pipelines.conditioning.stream import all_inputs, make_conditioners
from pipelines.core.controls import Control, Controls
from pipelines.image.engine import ImageEngine
from pipelines.image.model import Condition
from pipelines.video.engine import VideoEngine
from pipelines.video.options import VideoOptions
from tests.fakes.image_model import ArithmeticDenoiser, cheap_model
from tests.fakes.video_engine import KINDS, SMALL, small_model


class Probe(Conditioner):
    """A branched field with the seed at admission, and a column that follows the guidance scale immediately."""

    name = "probe"
    controls = frozenset({"guidance_scale"})
    columns = ("scale", "frames")

    def __init__(self, parts: EngineParts) -> None:
        self.fields = {"probe": RingField(shape=(2, 1), dtype=torch.int64)}
        self.branched = frozenset({"probe"})
        self.changes: list[float] = []
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def stream(self, controls: Controls, place: StreamPlace) -> StreamConditioner:
        return ProbeOfStream(self, controls.guidance_scale)

    def inputs(self, view: PassView) -> Inputs:
        assert view.timesteps.shape[0] == view.latents.shape[0]
        self.seen.append((view.field("probe")[..., 0].clone(), view.columns(self.name).clone()))
        return {}


class ProbeOfStream(StreamConditioner):
    def __init__(self, probe: Probe, scale: float) -> None:
        self._probe, self._scale = probe, scale

    @property
    def now(self) -> float:
        return self._scale

    def change(self, controls: Controls) -> Any:
        return lambda: self._probe.changes.append(controls.guidance_scale)

    def tick(self, controls: Controls) -> bool:
        moved, self._scale = controls.guidance_scale != self._scale, controls.guidance_scale
        return moved

    def write(self, slot: NewSlot, fields: Mapping[str, torch.Tensor]) -> None:
        fields["probe"].copy_(torch.tensor([[slot.controls.seed], [-slot.controls.seed]]))

    def columns(self, slot: NewSlot) -> tuple[float, ...]:
        return self._scale, float(len(slot.inputs))


def probed() -> tuple[list[Probe], Any]:
    made: list[Probe] = []

    def make(parts: EngineParts) -> Probe:
        made.append(Probe(parts))
        return made[-1]

    return made, (*CONDITIONERS, make)


def test_an_image_batch_has_branches_frames_and_columns_that_follow() -> None:
    made, conditioners = probed()
    engine = ImageEngine(cheap_model(), frames_per_slot=2, conditioners=conditioners)
    (probe,) = made
    stream = engine.open(Control.of({"steps": 3, "guidance_mode": "full", "guidance_scale": 2.0, "seed": 5}))
    stream.generate(2)
    engine.tick()
    stream.apply(Control(seed=7, guidance_scale=4.0))
    assert probe.changes == [4.0]
    stream.generate(2)
    engine.tick()
    (first, then), (fields, columns) = probe.seen
    assert first.tolist() == [5, 5, -5, -5], "the extra row of a slot of two frames sees the other branch"
    assert then.tolist() == [[2.0, 2.0]] * 4
    assert fields.tolist() == [5, 5, 7, 7, -5, -5, -7, -7], "a slot in flight keeps what it was born with"
    assert columns.tolist() == [[4.0, 2.0]] * 8, "and follows what follows"


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_pass_has_them_for_each_latent_frame(kind: str) -> None:
    made, conditioners = probed()
    preset = replace(KINDS[kind], guidance=2.0, negative_prompt="dull")
    engine = VideoEngine(small_model(preset), VideoOptions(max_streams=1), conditioners=conditioners)
    (probe,) = made
    stream = engine.open(Control(seed=5))
    stream.generate(stream.info.frames_per_chunk)
    engine.tick()
    n = preset.chunk_frames
    (fields, columns) = probe.seen[0]
    assert fields.tolist() == [[5] * n, [-5] * n]
    assert columns.tolist() == [[[2.0, 4 * n - 3.0]] * n] * 2
    probe.seen.clear()
    stream.apply(Control(seed=7, guidance_scale=4.0))
    stream.generate(stream.info.frames_per_chunk)
    stream.flush()
    assert {scale for _, columns in probe.seen for scale in columns[..., 0].flatten().tolist()} == {4.0}
    assert {abs(seed) for fields, _ in probe.seen for seed in fields.flatten().tolist()} == {5, 7}
    if kind == "rolling":
        joint = [fields.tolist() for fields, _ in probe.seen if fields.shape[1] == 2 * n]
        assert joint[0] == [[5] * n + [7] * n, [-5] * n + [-7] * n]


class Fixed(Conditioner):
    """Always adds the same input."""

    def __init__(self, name: str, **inputs: float) -> None:
        self.name, self._inputs = name, inputs

    def stream(self, controls: Controls, place: StreamPlace) -> StreamConditioner:
        return StreamConditioner()

    def inputs(self, view: PassView) -> Inputs:
        return {name: torch.tensor(value) for name, value in self._inputs.items()}


def test_inputs_reach_the_denoiser_by_name_and_equal_names_add_up() -> None:
    seen: list[Condition] = []

    class Watched(ArithmeticDenoiser):
        def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
            seen.append(condition)
            return super().__call__(latents, timestep, condition)

    fixed = (lambda parts: Fixed("one", residual=1.0, other=5.0)), (lambda parts: Fixed("two", residual=2.0))
    engine = ImageEngine(cheap_model(denoiser=Watched()), conditioners=(*CONDITIONERS, *fixed))
    stream = engine.open()
    stream.generate()
    stream.flush()
    assert {name: float(value) for name, value in seen[0].inputs.items()} == {"residual": 3.0, "other": 5.0}


def parts_of(engine: str, takes: frozenset[str] = frozenset()) -> EngineParts:
    core = ImageEngine(cheap_model()).core
    return replace(core._parts(), engine=engine, takes=takes)


def test_equal_names_of_conditioners_or_fields_are_an_error() -> None:
    parts = parts_of("image")
    with pytest.raises(AssertionError):
        make_conditioners([lambda p: Fixed("one"), lambda p: Fixed("one")], parts)
    other = Probe(parts)
    other.name = "other"
    with pytest.raises(AssertionError, match="a field of that name"):
        make_conditioners([Probe, lambda p: other], parts)


def test_actions_are_of_video_engines_and_given_to_models_that_take_them() -> None:
    assert ActionConditioner.of(parts_of("image")) is None
    engine = VideoEngine(small_model(SMALL), VideoOptions(max_streams=1))
    assert [conditioner.name for conditioner in engine.core.conditioners] == ["text", "actions"]

    class View:
        def columns(self, conditioner: str) -> torch.Tensor:
            return torch.full((1, 2, len(ACTION_NAMES)), 0.5)

    taking = ActionConditioner(parts_of("video", frozenset({"actions"})))
    assert all_inputs([taking], View())["actions"].shape == (1, 2, 5)  # type: ignore[arg-type]
    assert all_inputs([ActionConditioner(parts_of("video"))], View()) == {}  # type: ignore[arg-type]


def test_conditions_of_frames_are_joined_chosen_and_emptied() -> None:
    one = FrameConditions(columns={"a": ((1.0, 2.0), (3.0, 4.0))}, fields={"f": torch.tensor([[1], [2]])})
    two = FrameConditions(columns={"a": ((5.0, 6.0),)}, fields={"f": torch.tensor([[3]])})
    joined = FrameConditions.joined([one, two])
    assert joined.columns == {"a": ((1.0, 2.0), (3.0, 4.0), (5.0, 6.0))}
    assert joined.fields["f"].tolist() == [[1], [2], [3]]
    chosen = joined.select([2, 0])
    assert (chosen.columns["a"], chosen.fields["f"].tolist()) == (((5.0, 6.0), (1.0, 2.0)), [[3], [1]])
    empty = two.nothing(2)
    assert (empty.columns["a"], empty.fields["f"].tolist()) == (((0.0, 0.0),) * 2, [[0], [0]])
