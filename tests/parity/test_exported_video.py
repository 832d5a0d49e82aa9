"""The pass of mini-video as trt/ exports it, executed by ONNX Runtime, equals the passes of the engine's own ticks.

Two streams with prompts and actions that change, a cached past, steps and clean passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from cache.kv.view import KVView
from pipelines.backends.base import Backend
from pipelines.backends.table import backend_table
from pipelines.core.controls import Control
from pipelines.core.parts import signature_of
from pipelines.load import load_engine
from pipelines.video.engine import VideoEngine
from pipelines.video.model import VideoCondition, VideoNetworks, VideoRuntime
from pipelines.video.parts import pass_part
from pipelines.video.runtime import plain_runtime
from pipelines.video.wan.text_cache import KeysValues, TextView
from pipelines.video.wan.transformer import CausalWanTransformer
from tests.fakes.onnx_recipe import OnnxRecipe
from trt.onnx_check import FLOAT32_RELATIVE, HALF_DB, decibels, relative_error

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytestmark = pytest.mark.timeout(900)


@dataclass
class Call:
    """A pass of the engine: inputs of the part by name, and what the engine's own pass gave."""

    inputs: Mapping[str, torch.Tensor]
    outputs: tuple[torch.Tensor, ...]


class WatchedText:
    """A text view that keeps what was read."""

    def __init__(self, text: TextView) -> None:
        self._text, self.signature = text, text.signature
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def exchange(self, layer: int, compute: Callable[[torch.Tensor], KeysValues]) -> KeysValues:
        keys, values = self._text.exchange(layer, compute)
        self.keys.append(keys.clone())
        self.values.append(values.clone())
        return keys, values


class WatchedCache:
    """A view of the cache that keeps what was written, and what was read besides."""

    def __init__(self, view: KVView) -> None:
        self._view, self.query_rotation, self.observes = view, view.query_rotation, view.observes
        self.recall = view.recall
        self.own: list[KeysValues] = []
        self.attended: list[KeysValues] = []

    def observe(self, layer: int, queries: torch.Tensor) -> None:
        self._view.observe(layer, queries)

    def exchange(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> KeysValues:
        self.own.append((keys.clone(), values.clone()))
        attended = self._view.exchange(layer, keys, values)
        self.attended.append((attended[0].clone(), attended[1].clone()))
        return attended

    def past(self, transformer: CausalWanTransformer) -> KeysValues:
        """Rotated keys and values without the pass's own: where its own rotated keys stand, is found by value."""
        own = transformer.rotary.rotate(self.own[0][0], *self.query_rotation)[0]
        stands = (self.attended[0][0][0][:, None] == own[None].to(self.attended[0][0].dtype)).flatten(2).all(-1).any(1)
        assert int(stands.sum()) == own.shape[0]
        return (
            torch.stack([keys[:, ~stands] for keys, _ in self.attended]),
            torch.stack([values[:, ~stands] for _, values in self.attended]),
        )


@dataclass
class WatchedDenoiser:
    runtime: VideoRuntime
    transformer: CausalWanTransformer
    calls: dict[object, list[Call]] = field(default_factory=dict)  # by shapes: the first two and the newest
    count: Counter[object] = field(default_factory=Counter)

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, condition: VideoCondition, kv: KVView
    ) -> torch.Tensor:
        text, view = WatchedText(condition.text), WatchedCache(kv)
        watched = VideoCondition(text=text, inputs=condition.inputs)
        velocity = self.runtime.denoiser(latents, timesteps, watched, view)  # type: ignore[arg-type]
        past_keys, past_values = view.past(self.transformer)
        cos, sin = (table.expand(latents.shape[0], *table.shape[-3:]).clone() for table in kv.query_rotation)
        inputs = {
            "latents": latents.clone(),
            "timesteps": timesteps.clone(),
            "text_keys": torch.stack(text.keys),
            "text_values": torch.stack(text.values),
            "past_keys": past_keys,
            "past_values": past_values,
            "cos": cos,
            "sin": sin,
            **{name: value.clone() for name, value in sorted(condition.inputs.items())},
        }
        keys, values = (torch.stack(tensors) for tensors in zip(*view.own, strict=True))
        shapes = signature_of(tuple(inputs.values()))
        self.count[shapes] += 1
        kept = self.calls.setdefault(shapes, [])
        kept[2:] = [Call(inputs=inputs, outputs=(velocity.clone(), keys, values))]
        return velocity


@dataclass(frozen=True, kw_only=True)
class WatchedBackend(Backend):
    made: list[WatchedDenoiser]

    def video(self, networks: VideoNetworks) -> VideoRuntime:
        runtime = plain_runtime(networks)
        self.made.append(WatchedDenoiser(runtime, networks.transformer))
        return replace(runtime, denoiser=self.made[-1])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def watched() -> WatchedDenoiser:
    backend = WatchedBackend(name="watched", purpose="", made=[])
    engine = load_engine(
        "mini-video",
        device="cpu",
        dtype="float32",
        width=64,
        height=64,
        backend="watched",
        backends=backend_table(backend),
        notice=lambda text: None,
    )
    assert isinstance(engine, VideoEngine)
    first = engine.open(Control.of({"prompt": "a red ball on a beach", "seed": 1}))
    second = engine.open(Control.of({"prompt": "a house at night", "seed": 2}))
    for tick in range(40):
        for stream in (first, second):
            while stream.generate():
                pass
            stream.pull()
        if tick == 20:
            first.apply(Control.of({"prompt": "a blue cube", "camera_x": 0.7}))
        engine.tick()
    engine.close()
    return backend.made[0]


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.soak)], ids=str)
@torch.no_grad()
def test_passes_of_the_engine(watched: WatchedDenoiser, tmp_path: Path, dtype: torch.dtype) -> None:
    ((shapes, count),) = watched.count.most_common(1)
    assert count >= 5
    calls = watched.calls[shapes]
    assert calls[-1].inputs["past_keys"].shape[2] > 0
    assert not torch.equal(calls[0].inputs["text_keys"], calls[-1].inputs["text_keys"])
    transformer = watched.transformer
    transformer.set_precision(dtype)
    narrow = ("text_keys", "text_values", "past_keys", "past_values")

    def cast(call: Call) -> dict[str, torch.Tensor]:
        return {name: value.to(dtype) if name in narrow else value for name, value in call.inputs.items()}

    part = pass_part(transformer, cast(calls[0]))
    recipe = OnnxRecipe(bakes_weights=True)
    recipe.build(part, [], tmp_path, lambda text: None)
    run = recipe.load(part, tmp_path)
    worst = 0.0
    for call in calls:
        inputs = tuple(cast(call).values())
        wanted = part.module(*inputs)
        for got, want, engines in zip(run(*inputs), wanted, call.outputs, strict=True):
            worst = max(worst, relative_error(got, want))
            if dtype is torch.float32:
                assert relative_error(got, engines) <= FLOAT32_RELATIVE
    limit = FLOAT32_RELATIVE if dtype is torch.float32 else 10 ** (-HALF_DB / 20)
    assert worst <= limit, decibels(worst)
