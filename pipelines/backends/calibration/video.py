"""Owns the recording of a video model's parts: its eager engine makes clips of prompts and actions, and redraws clips.

Prompts, seeds, actions, strengths and cuts vary. Only passes with a full window are recorded. Independent of recipes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cache.kv.view import KVView
from pipelines.core.controls import Control
from pipelines.core.errors import ModelError
from pipelines.core.execution import Executor
from pipelines.core.parts import Part, Tensors
from pipelines.video.codecs.codec import FrameDecoder
from pipelines.video.codecs.tiny import TinyDecoderStream
from pipelines.video.engine import VideoEngine
from pipelines.video.model import MakeFrameDecoder, VideoCondition, VideoDenoiser, VideoModel
from pipelines.video.options import VideoOptions
from pipelines.video.part_denoiser import PassInputs

from .recorder import Recorder
from .scenes import Scenes

_TRIES = 3  # streams without a single sample
_FULL_CHUNKS = 3  # of a stream, after those that fill its window
_ACTIONS = ("camera_x", "camera_y", "camera_zoom", "push_x", "push_y")
_PASS_AXES = dict.fromkeys((3, 4, 5, 6), 1)  # keys and values: [layers, rows, ...]


def video_samples(
    model: VideoModel,
    parts: Sequence[Part],
    count: int,
    *,
    options: VideoOptions | None = None,
    world: Path | None = None,
    seed: int = 0,
) -> dict[str, list[Tensors]]:
    """Return `count` inputs of each part, "pass" or "decode", in its order and of its shapes.

    model: with its eager runtime. options: of the engine that the parts are for. world: world.json of a bundled model.
    Deterministic, up to the rounding of kernels.
    """
    by_name = {part.name: part for part in parts}
    decoded = Recorder()
    denoiser = _Denoiser(model, by_name["pass"]) if "pass" in by_name else None
    recorders = {"decode": decoded} | ({"pass": denoiser.calls} if denoiser else {})
    runtime = replace(
        model.runtime,
        denoiser=denoiser or model.runtime.denoiser,
        make_frame_decoder=_recording(model.runtime.make_frame_decoder, decoded),
    )
    engine = VideoEngine(replace(model, runtime=runtime), replace(options or VideoOptions(), max_streams=1))
    scenes = Scenes(seed, world)
    for name, recorder in recorders.items():
        played = 0
        while name in by_name and len(recorder) < count:
            if played == _TRIES and not len(recorder):
                raise ModelError(f"This engine makes no {name} of these shapes.", "Use --backend eager.")
            _play(engine, scenes)
            played += 1
    engine.close()
    return {name: recorders[name].samples(count, 1, seed) for name in by_name}


def _play(engine: VideoEngine, scenes: Scenes) -> None:
    """Let one stream fill its window and make `_FULL_CHUNKS` more chunks, with changes of prompt and action."""
    draw, core = scenes.random, engine.core
    redraws = draw.random() < 0.3
    chunks = math.ceil(core.preset.window_frames / core.preset.chunk_frames) + _FULL_CHUNKS
    with engine.open(Control.of({"prompt": scenes.prompt(), "seed": draw.randrange(2**32)})) as stream:
        for number in range(chunks):
            if core.model.takes_actions and draw.random() < 0.5:
                stream.apply(Control.of({draw.choice(_ACTIONS): draw.uniform(-1, 1)}))
            if number and draw.random() < 0.2:
                change = draw.choice(("glide", "cut"))
                stream.apply(Control.of({"prompt": scenes.prompt(), "prompt_change": change}))
            frames = stream.info.frames_per_chunk
            if redraws:
                for frame in scenes.clip(frames, core.width, core.height):
                    stream.push(frame)
            else:
                stream.generate(frames)
            while not stream.pull():
                engine.tick()


class _Denoiser:
    """A `VideoDenoiser` that records the passes that a part fits."""

    def __init__(self, model: VideoModel, part: Part) -> None:
        self._denoiser: VideoDenoiser = model.runtime.denoiser
        self._part = part
        self._inputs = PassInputs(
            model.transformer,
            past_tokens=part.inputs["past_keys"].shape[2],
            text_tokens=part.inputs["text_keys"].shape[2],
        )
        self.calls = Recorder(_PASS_AXES)

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, condition: VideoCondition, kv: KVView
    ) -> torch.Tensor:
        fits = latents.shape[1:] == self._part.inputs["latents"].shape[1:]
        if fits and not self._inputs.refusal(condition, kv):
            gathered = self._inputs.gather(0, latents, timesteps, condition, kv)
            self.calls.add(*(gathered[name] for name in self._part.inputs))
        return self._denoiser(latents, timesteps, condition, kv)


def _recording(make: MakeFrameDecoder, decoded: Recorder) -> MakeFrameDecoder:
    def recording(executor: Executor, *, height: int, width: int, rows: int = 1) -> FrameDecoder:
        return _Decoder(make(executor, height=height, width=width, rows=rows), decoded)

    return recording


class _Decoder:
    """A `FrameDecoder` that records the steps after a stream's first."""

    def __init__(self, plain: FrameDecoder, decoded: Recorder) -> None:
        self._plain, self._decoded = plain, decoded
        self.decoder = plain.decoder

    def decode(self, latents: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        if isinstance(self.decoder, TinyDecoderStream) and self.decoder.latents_done(0):
            memory = self.decoder.memory
            state = (memory.read(slot, None) for slot in range(len(memory.shapes)))
            self._decoded.add(latents.float(), *state)
        return self._plain.decode(latents, rows)
