"""Actions of a video model: the embedder and its folder, and that a latent keeps the action with which it was
admitted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.takes.recorder import complete_control
from cache.kv.view import KVView
from pipelines.conditioning.actions import ACTION_NAMES, NO_ACTION, Action
from pipelines.core.control_table import CONTROLS, Propagation
from pipelines.core.controls import Control
from pipelines.core.errors import ControlError, ModelLayoutError
from pipelines.core.tick_log import ControlRecord
from pipelines.video.engine import VideoEngine
from pipelines.video.executed import ExecutedDenoiser
from pipelines.video.model import VideoCondition
from pipelines.video.passes import PassRequest
from pipelines.video.stream import VideoStream
from pipelines.video.wan.actions import ActionEmbedder, load_actions, save_actions
from pipelines.video.wan.denoiser import WanDenoiser
from pipelines.video.wan.text_cache import TextKVCache
from tests.fakes.tiny_video_model import random_actions
from tests.fakes.video_engine import (
    KINDS,
    ROLLING,
    SMALL,
    acting_engine,
    acting_transformer,
    run_chunks,
    small_engine,
    video_frames,
)

CPU = torch.device("cpu")


def load(folder: Path, **changes: Any) -> ActionEmbedder:
    return load_actions(folder, **{"dim": 32, "device": CPU, "dtype": torch.float32, **changes})


# -- the embedder and its folder ---------------------------------------------------------------------------------------


def test_no_action_adds_exactly_nothing() -> None:
    embedder = random_actions(32)
    assert embedder(torch.zeros(2, 3, 5)).count_nonzero() == 0
    assert embedder(torch.eye(5)[None]).abs().amin() > 0
    assert [*embedder.state_dict()] == ["linear_1.weight", "linear_2.weight"]


def test_a_folder_is_written_and_read(tmp_path: Path) -> None:
    embedder = random_actions(32)
    save_actions(embedder.half(), tmp_path / "actions")
    config = json.loads((tmp_path / "actions" / "config.json").read_text())
    assert config == {"names": list(ACTION_NAMES), "dim": 32, "hidden": 32}
    read = load(tmp_path / "actions", dtype=torch.bfloat16)
    assert read.linear_1.weight.dtype == torch.float32, "as the time embedding"
    assert torch.equal(read.linear_2.weight, embedder.linear_2.weight.float())
    assert not any(parameter.requires_grad for parameter in read.parameters())
    save_actions(ActionEmbedder(32, 8), tmp_path / "narrow")
    assert load(tmp_path / "narrow").hidden == 8


def test_gains_multiply_the_actions(tmp_path: Path) -> None:
    embedder, gains = random_actions(32), [1.5, 1, 2.0, 0.5, 1.25]
    save_actions(embedder, tmp_path, gains)
    actions = torch.rand(2, 3, 5) * 2 - 1
    torch.testing.assert_close(load(tmp_path)(actions), embedder(actions * torch.tensor(gains)))


def rewritten(folder: Path, **config: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def reweighted(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: rewritten(f, names=["jump", *ACTION_NAMES[1:]]),
            "names the actions .*'jump'.*in this order: camera_x",
        ),
        (lambda f: rewritten(f, names=list(ACTION_NAMES[::-1])), "names the actions"),
        (lambda f: rewritten(f, dim=64), "dim 64; the transformer's time embedding is 32 wide"),
        (lambda f: rewritten(f, hidden="x"), "hidden 'x'"),
        (lambda f: rewritten(f, gains=[1, 1, 1]), r"gains \[1, 1, 1\]"),
        (lambda f: rewritten(f, gains=[1, 1, 1, 1, 0]), "5 numbers above 0"),
        (lambda f: rewritten(f, gains=[1, 1, 1, 1, "2"]), "gains"),
        (lambda f: rewritten(f, hidden=16), r"linear_1.weight is \(32, 5\), not \(16, 5\)"),
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no"), "model.safetensors"),
        (
            lambda f: reweighted(f, lambda w: w.pop("linear_2.weight")),
            "holds linear_1.weight, not linear_1.weight, lin",
        ),
        (lambda f: reweighted(f, lambda w: w["linear_1.weight"].view(-1)[:1].fill_(float("nan"))), "not finite"),
    ],
)
def test_a_folder_that_cannot_be_is_refused(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    save_actions(random_actions(32), tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelLayoutError, match=message):
        load(tmp_path)


# -- controls ----------------------------------------------------------------------------------------------------------


def test_the_controls_are_the_actions() -> None:
    for name in ACTION_NAMES:
        spec = CONTROLS[name]
        assert (spec.kind, spec.minimum, spec.maximum, spec.default) == ("float", -1, 1, 0)
        assert (spec.propagation, spec.engines, spec.momentary) == (Propagation.NEXT_CHUNK, ("video",), False)


def test_a_model_without_actions_refuses_them() -> None:
    engine = small_engine()
    stream = engine.open(Control(camera_x=0.0))
    assert not stream.info.takes_actions
    for name in ACTION_NAMES:
        with pytest.raises(
            ControlError, match=f"{name} cannot be 0.5: the model small takes no actions. Leave it at 0"
        ):
            stream.apply(Control.of({name: 0.5}))
    with pytest.raises(ControlError, match="takes no actions"):
        engine.open(Control(push_y=-1.0))


@pytest.mark.parametrize("value", [1.01, float("nan"), "left", True])
def test_an_action_is_a_number_of_its_range(value: object) -> None:
    with pytest.raises(ControlError, match="push_x"):
        Control.of({"push_x": value})


def test_log_and_takes_carry_them() -> None:
    engine = acting_engine()
    stream = engine.open()
    assert stream.info.takes_actions
    stream.apply(Control(camera_zoom=-1.0))
    last = [record for record in engine.log.records() if isinstance(record, ControlRecord)][-1]
    assert last.changes == {"camera_zoom": -1.0}
    assert complete_control(stream).camera_zoom == -1.0


# -- passes ------------------------------------------------------------------------------------------------------------


class Passes:
    """Records the requests of an engine's ticks."""

    def __init__(self, engine: VideoEngine) -> None:
        self.requests: list[PassRequest] = []
        run = engine.core.passes.run

        def watched(requests: Any) -> Any:
            self.requests += requests
            return run(requests)

        engine.core.passes.run = watched  # type: ignore[method-assign]


def actions_of(request: PassRequest) -> tuple[Action, ...]:
    """Of each frame."""
    return request.conditions.columns["actions"]


def action(**named: float) -> Action:
    return tuple(named.get(name, 0.0) for name in ACTION_NAMES)


def steered(stream: VideoStream, engine: VideoEngine, actions: list[dict[str, float]]) -> list[np.ndarray]:
    """Run a chunk for each set of actions, with which it is admitted."""
    images: list[np.ndarray] = []
    for named in actions:
        stream.apply(Control.of({**dict.fromkeys(ACTION_NAMES, 0), **named}))
        images += run_chunks(stream, engine, 1)
    return images


WAY: list[dict[str, float]] = [{"camera_x": 1.0}, {}, {"push_y": -0.5}, {"camera_zoom": 0.25, "push_x": 1.0}]


def test_without_an_action_the_video_is_that_of_the_model_without_actions() -> None:
    videos = []
    for engine in (small_engine(), acting_engine()):
        videos.append(run_chunks(engine.open(), engine, 3))
    assert np.array_equal(videos[0], videos[1])


@pytest.mark.parametrize("kind", KINDS)
def test_streams_in_one_batch_have_their_own(kind: str) -> None:
    def video(*ways: list[dict[str, float]]) -> list[np.ndarray]:
        engine = acting_engine(KINDS[kind], torch.float64, max_streams=2)
        streams = [engine.open() for _ in ways]
        images: list[list[np.ndarray]] = [[] for _ in ways]
        for step in range(len(WAY)):
            for stream, way in zip(streams, ways, strict=True):
                stream.apply(Control.of({**dict.fromkeys(ACTION_NAMES, 0), **way[step]}))
                assert stream.generate(stream.info.frames_per_chunk)
            while any(stream._assembler.next_full for stream in streams):
                engine.tick()
        for stream, shown in zip(streams, images, strict=True):
            shown += [frame.image for frame in stream.flush()]
        return [np.stack(shown) for shown in images]

    one, other = video(WAY, WAY[::-1])
    assert np.array_equal(one, video(WAY)[0])
    assert np.array_equal(other, video(WAY[::-1])[0])
    assert not np.array_equal(one, other)


def test_both_branches_of_guidance_have_them() -> None:
    engine = acting_engine(replace(SMALL, guidance=3.0, negative_prompt="dull"))
    stream = engine.open(Control(camera_y=-1.0))
    seen: list[torch.Tensor] = []
    denoiser = engine.core.passes._denoiser

    def watched(latents: torch.Tensor, timesteps: torch.Tensor, condition: VideoCondition, kv: KVView) -> torch.Tensor:
        seen.append(condition.inputs["actions"])
        return denoiser(latents, timesteps, condition, kv)

    engine.core.passes._denoiser = watched
    run_chunks(stream, engine, 1)
    assert all(torch.equal(given, torch.tensor([[action(camera_y=-1.0)] * 2] * 2)) for given in seen)


def test_a_joint_window_has_the_actions_of_its_chunks() -> None:
    engine = acting_engine(ROLLING)
    stream, passes = engine.open(), Passes(engine)
    for named in WAY[:3]:
        stream.apply(Control.of({**dict.fromkeys(ACTION_NAMES, 0), **named}))
        assert stream.generate(stream.info.frames_per_chunk)
        while stream._assembler.next_full:
            engine.tick()
    told = [action(**named) for named in WAY[:3] for _ in range(2)]
    assert actions_of(passes.requests[2]) == tuple(told)
    stream.flush()
    clean = [actions_of(request) for request in passes.requests if set(request.timesteps) == {0.0}]
    assert clean == [(told[0],) * 2, (told[2],) * 2, (told[4],) * 2]


def test_a_picture_has_none() -> None:
    engine = acting_engine()
    stream, passes = engine.open(Control(camera_x=1.0, input_use="first-frame")), Passes(engine)
    assert stream.push(video_frames(1)[0])
    stream.flush()
    assert [actions_of(request) for request in passes.requests] == [(NO_ACTION,)]


# -- what is passed again ----------------------------------------------------------------------------------------------


def test_frames_that_are_seen_again_after_a_cut_have_the_actions_of_their_births() -> None:
    engine = acting_engine(window_frames=8)
    stream, passes = engine.open(), Passes(engine)
    steered(stream, engine, [*WAY, {"camera_y": 1.0}])
    passes.requests.clear()
    stream.apply(Control.of({"prompt": "a robot", "prompt_change": "cut"}))
    run_chunks(stream, engine, 1)
    born = [action(**named) for named in [*WAY, {"camera_y": 1.0}] for _ in range(2)]
    kept = [born[frame] for frame in (0, 3, 4, 5, 6, 7, 8, 9)]
    assert [actions_of(request) for request in passes.requests[:4]] == [tuple(kept[i : i + 2]) for i in (0, 2, 4, 6)]
    assert actions_of(passes.requests[4]) == (action(camera_y=1.0),) * 2
    passes.requests.clear()
    stream.apply(Control.of({"prompt": "a cat"}))  # once more: the frames have other numbers in the cache now
    run_chunks(stream, engine, 1)
    again = [*kept[:1], *kept[3:], *[action(camera_y=1.0)] * 2]
    assert [actions_of(request) for request in passes.requests[:4]] == [tuple(again[i : i + 2]) for i in (0, 2, 4, 6)]


def test_a_rebuilt_cache_has_them_and_an_anchor_has_none() -> None:
    engine = acting_engine(policy="rebuild", policy_options={"context_frames": 3}, max_streams=1)
    stream, passes = engine.open(), Passes(engine)
    steered(stream, engine, [*WAY, {}])
    contexts = [actions_of(request) for request in passes.requests if request.latents.shape[1] not in (2,)]
    assert contexts[-1] == (NO_ACTION, *[action(camera_zoom=0.25, push_x=1.0)] * 2)


def test_pictures_of_earlier_shots_have_none() -> None:
    engine = acting_engine(policy="dual", policy_options={"context_frames": 3, "local_frames": 6}, max_streams=1)
    stream, passes = engine.open(Control(push_x=1.0)), Passes(engine)
    run_chunks(stream, engine, 2)
    stream.apply(Control(scene_cut=True))
    run_chunks(stream, engine, 1)
    contexts = [actions_of(request) for request in passes.requests if request.latents.shape[1] == 3]
    assert contexts == [(NO_ACTION,) * 3] * 2


@pytest.mark.parametrize("policy", ["sink", "rebuild"])
def test_a_rewound_stream_remembers_the_actions_of_then(policy: str) -> None:
    options: dict[str, Any] = {"rebuild": {"policy_options": {"context_frames": 3}}, "sink": {}}[policy]
    engine = acting_engine(policy=policy, max_streams=1, **options)
    stream, passes = engine.open(), Passes(engine)
    steered(stream, engine, WAY[:3])
    first = steered(stream, engine, WAY[3:])
    steered(stream, engine, [{"camera_x": -1.0}] * 2)
    stream.apply(Control(rewind_to=3))
    assert np.array_equal(first, steered(stream, engine, WAY[3:]))
    passes.requests.clear()
    stream.apply(Control.of({"rewind_to": 3, "prompt": "a robot", "prompt_change": "cut"}))
    run_chunks(stream, engine, 1)
    context = [seen for request in passes.requests if 0.0 in request.timesteps for seen in actions_of(request)]
    assert action(camera_x=-1.0) not in context
    assert action(push_y=-0.5) in context


# -- backends ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_captured_pass_takes_them_as_an_input() -> None:
    """A graph does not keep actions: a replay reads the ones passed to it."""
    transformer = acting_transformer(torch.float32)
    text = TextKVCache(transformer, rows=1, tokens=6)
    text.write(0, torch.randn(6, 12))
    calls: list[tuple[torch.Tensor, ...]] = []

    def captured(key: object, function: Callable[..., torch.Tensor], *inputs: torch.Tensor, kept: object = None) -> Any:
        calls.append(inputs)
        return function(*inputs)

    denoiser = ExecutedDenoiser(WanDenoiser(transformer), captured)
    engine = acting_engine(max_streams=1)
    engine.core.cache.begin(0, 2)
    view = engine.core.cache.view([0])
    latents, timesteps, actions = torch.randn(1, 4, 2, 4, 6), torch.full((1, 2), 500.0), torch.rand(1, 2, 5)

    def passed(**inputs: torch.Tensor) -> torch.Tensor:
        return denoiser(latents, timesteps, VideoCondition(text=text.view([0]), inputs=inputs), view)

    given = passed(actions=actions)
    assert torch.equal(given, transformer(latents, timesteps, text.view([0]), view, actions))
    assert not torch.equal(given, passed(actions=torch.zeros(1, 2, 5)))
    passed()
    assert [len(inputs) for inputs in calls] == [3, 3, 2]
    assert calls[0][2] is actions
