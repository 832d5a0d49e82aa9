"""Owns rollouts: many prompts in lockstep, as one batch on one device; frames come in pieces, in temporal order.

The engine's parts without its streams: the KV cache under any policy, the preset's steps, a clean pass after each
chunk, the streaming decoder. With the same noise, a stream's frames equal those of `VideoEngine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.folded_cache import StreamsInStep
from bench.rollout_context import Context, choose_context
from pipelines.core.errors import InputError
from pipelines.video.chunk_noise import draw_noise
from pipelines.video.codecs.codec import FrameDecoder
from pipelines.video.executed import WARM_PASSES, ExecutedDenoiser
from pipelines.video.flow import CLEAN_TIMESTEP, FlowStep
from pipelines.video.model import VideoCondition, VideoModel
from pipelines.video.options import VideoOptions, chosen_policy, chosen_preset
from pipelines.video.sampling import SAMPLERS
from pipelines.video.wan.text_cache import TextKVCache

Noise = Callable[[int, int, int], Tensor]
"""(step: 0 for the start, i after the i-th step; index of the first latent frame; frames) -> [N, C, F, h, w]."""
ROLLOUT_BACKEND = "cuda-graph"
"""On CUDA where none is named: many streams fill the device without compiling."""
DECODED_TOGETHER = 32
"""Streams per call of the decoder, whose full-size features dominate memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """options: of the engine (window, sink, policy, storage, ...); max_streams is ignored.

    seed: of the noise. folded: see bench.folded_cache; None chooses.
    """

    options: VideoOptions = field(default_factory=VideoOptions)
    seed: int = 0
    folded: bool | None = None


def device_noise(shape: tuple[int, int, int, int], seed: int, device: torch.device) -> Noise:
    """Noise drawn on the device for all streams at once: fast, and reproducible for the same number of streams.

    shape: (streams, C, h, w).
    """
    generator = torch.Generator(device).manual_seed(seed)
    streams, channels, height, width = shape

    def draw(step: int, first: int, frames: int) -> Tensor:
        return torch.randn((streams, channels, frames, height, width), generator=generator, device=device)

    return draw


def engine_noise(shape: tuple[int, int, int, int], seeds: Sequence[int], device: torch.device) -> Noise:
    """The engine's own noise, with a seed per stream. shape: (streams, C, h, w)."""

    def draw(step: int, first: int, frames: int) -> Tensor:
        drawn = [
            draw_noise(shape[1:], seed=seed, step=step, first_frame=first, frames=frames, locked=False)
            for seed in seeds
        ]
        return torch.stack(drawn).to(device)

    return draw


class Rollout:
    """N endless streams in lockstep. Raises InputError for presets that use another chunk schedule or guidance."""

    def __init__(
        self,
        model: VideoModel,
        prompts: Sequence[str],
        settings: RolloutSettings | None = None,
        *,
        actions: Tensor | None = None,
        noise: Noise | None = None,
    ) -> None:
        """actions: [N, latents, 5] by ACTION_NAMES, zeros after the last; None: no actions. noise: None for device
        noise.
        """
        settings = settings or RolloutSettings()
        options, transformer = settings.options, model.transformer
        self.preset = chosen_preset(model.preset, options)
        if self.preset.stream != "chunk" or self.preset.guidance > 1:
            raise InputError(
                f"Rollouts go chunk by chunk without guidance, not {self.preset.stream!r} with "
                f"{self.preset.guidance:g}.",
                "Choose the kind of stream 'chunk', or measure through the engine.",
            )
        if actions is not None and not model.takes_actions:
            raise InputError(f"{model.name} takes no actions.", "Use a model that has a folder actions/.")
        self.model, self.streams, self._actions = model, len(prompts), actions
        self.width, self.height = options.width or model.size_px[0], options.height or model.size_px[1]
        latent_height, latent_width = self.height // model.codec.factor, self.width // model.codec.factor
        self.shape = (self.streams, model.codec.latent_channels, latent_height, latent_width)
        policy = chosen_policy(self.preset, transformer.grid(latent_height, latent_width))
        self._executor = model.runtime.make_executor()
        self._denoiser = ExecutedDenoiser(model.runtime.denoiser, self._executor.calls(warm_calls=WARM_PASSES))
        with torch.inference_mode():
            self.cache = StreamsInStep(
                transformer,
                policy,
                model.runtime,
                streams=self.streams,
                storage=options.storage,
                folded=settings.folded,
            )
            self.text = TextKVCache(transformer, rows=self.streams, tokens=transformer.config.text_len)
            for row, prompt in enumerate(prompts):
                self.text.write(row, model.text.encode(prompt))
        self.context: Context = choose_context(model, policy, self.shape, (self.height, self.width))
        self._groups, self._decoders = self._make_decoders()
        self.noise = noise or device_noise(self.shape, settings.seed, model.device)
        self.latents = 0
        """Latent frames so far."""

    def _make_decoders(self) -> tuple[list[slice], list[FrameDecoder]]:
        groups = [slice(i, min(i + DECODED_TOGETHER, self.streams)) for i in range(0, self.streams, DECODED_TOGETHER)]
        make = self.model.runtime.make_frame_decoder
        decoders = [
            make(self._executor, height=self.height, width=self.width, rows=group.stop - group.start)
            for group in groups
        ]
        return groups, decoders

    @property
    def bytes(self) -> Mapping[str, int]:
        """Memory of all streams: cache, prompts, decoder."""
        decoder = sum(decoder.decoder.bytes for decoder in self._decoders)
        return {"kv": self.cache.bytes, "text": self.text.bytes, "decoder": decoder}

    def pieces(self, frames: int) -> Iterator[Tensor]:
        """The next `frames` frames, or up to a chunk more: uint8 [N, F, H, W, 3] on the device, each valid until the
        next.
        """
        made = 0
        while made < frames:
            piece = self.next_piece()
            made += piece.shape[1]
            yield piece

    @torch.inference_mode()
    def next_piece(self) -> Tensor:
        """The frames of the next chunk: uint8 [N, F, H, W, 3]; F is 4 n - 3 for the first chunk, else 4 n."""
        frames = self.preset.chunk_frames
        self._pass_context()
        self.cache.begin(frames)
        latents = self._denoise(frames)
        if self.preset.clean_pass:
            self._one_pass(latents, CLEAN_TIMESTEP, self.latents)
        self.context.finished(latents)
        self.latents += frames
        parts = [decoder.decode(latents[group]) for group, decoder in zip(self._groups, self._decoders, strict=True)]
        pictures = parts[0] if len(parts) == 1 else torch.cat(parts)
        self.context.decoded(pictures)
        return pictures

    def _denoise(self, frames: int) -> Tensor:
        """[N, C, F, h, w] float32."""
        steps = self.preset.step_list(first=self.latents == 0).steps()
        sampler = SAMPLERS[self.preset.sampler]
        latents = self.noise(0, self.latents, frames).float()
        for number, step in enumerate(steps, 1):
            velocity = self._one_pass(latents, step.timestep, self.latents).to(latents.dtype)
            following: FlowStep | None = steps[number] if number < len(steps) else None

            def fresh(number: int = number) -> Tensor:
                return self.noise(number, self.latents, frames).float().flatten(0, 1)

            moved = sampler(latents.flatten(0, 1), velocity.flatten(0, 1), step, following, fresh)
            latents = moved.view(latents.shape)
        return latents

    def _one_pass(self, latents: Tensor, timestep: float, first: int) -> Tensor:
        """The velocity of a pass of the cache's current chunk; first: index of its first latent frame."""
        frames = latents.shape[2]
        times = torch.full((self.streams, frames), timestep, device=latents.device)
        inputs = {} if self._actions is None else {"actions": self._actions_of(self._actions, first, frames)}
        condition = VideoCondition(text=self.text.view(range(self.streams)), inputs=inputs)
        view: Any = self.cache.view()
        return self._denoiser(latents, times, condition, view)

    def _actions_of(self, actions: Tensor, first: int, frames: int) -> Tensor:
        known = actions[:, max(first, 0) : first + frames]
        missing = frames - known.shape[1]
        return torch.nn.functional.pad(known, (0, 0, 0, missing)).to(self.model.device)

    def _pass_context(self) -> None:
        again = self.context.before_chunk(self.latents)
        if again is None:
            return
        self.cache.reset()
        self.cache.begin(again.latents.shape[2])
        self._one_pass(again.latents, CLEAN_TIMESTEP, again.first)
