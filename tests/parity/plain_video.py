"""Causal video streams as plain loops over diffusers' own modules, without a cache: every pass sees the whole past.

A mask over frames defines what a pass attends to. Written from the papers; shares no code with the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformer3DModel
from torch import nn

Steps = Sequence[tuple[float, float]]
"""(timestep, sigma), noisiest first."""
Visible = Callable[[int, int], list[int]]
"""(first frame of a chunk, its frames) -> the earlier frames that it sees."""


def everything(start: int, frames: int) -> list[int]:
    """All earlier frames."""
    return list(range(start))


def sliding(window: int, sink: int) -> Visible:
    """The first `sink` frames, and the latest ones; with the chunk at most `window`."""

    def visible(start: int, frames: int) -> list[int]:
        room = window - min(sink, start) - frames
        return [f for f in range(start) if f < sink or f >= start - room]

    return visible


class MaskedProcessor(WanAttnProcessor):
    """diffusers' processor, with a mask on self-attention."""

    mask: torch.Tensor | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Any = None,
    ) -> torch.Tensor:
        mask = self.mask if encoder_hidden_states is None else attention_mask
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, rotary_emb)


def act(stock: WanTransformer3DModel, first: torch.Tensor, second: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """Make diffusers' transformer add silu(a first') second' to its time embedding. Returns a setter of a: [B, F, 5].

    first: [hidden, 5]. second: [dim, hidden]. The embedding is per token, with frames in order.
    """
    now: list[torch.Tensor] = []

    def add(module: nn.Module, inputs: Any, embedding: torch.Tensor) -> torch.Tensor:
        hidden = now[0] @ first.T
        added = (hidden * torch.sigmoid(hidden)) @ second.T
        return embedding + added.repeat_interleave(embedding.shape[1] // added.shape[1], dim=1)

    def say(actions: torch.Tensor) -> None:
        now[:] = [actions]

    stock.condition_embedder.time_embedder.register_forward_hook(add)
    return say


class PlainDenoiser:
    """diffusers' transformer over a history of frames, each with its timestep and the frames that it may attend to."""

    say_actions: Callable[[int], None] | None = None
    """Told of the number of frames of a pass that begins with the stream's first frame."""

    def __init__(self, stock: WanTransformer3DModel, embeddings: torch.Tensor) -> None:
        """embeddings: [L, text_dim]."""
        self._stock, self._embeddings = stock, embeddings[None]
        self._processor = MaskedProcessor()
        for block in stock.blocks:
            block.attn1.set_processor(self._processor)

    def velocity(
        self, frames: Sequence[torch.Tensor], timesteps: Sequence[float], sees: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """frames: [C, h, w] each. sees: the frames that each one attends to, itself included. Returns [C, F, h, w]."""
        if self.say_actions is not None:
            self.say_actions(len(frames))
        latents = torch.stack(list(frames), dim=1)[None]
        tokens = latents.shape[3] * latents.shape[4] // 4
        allowed = torch.zeros((len(frames), len(frames)), dtype=torch.bool)
        for frame, seen in enumerate(sees):
            allowed[frame, list(seen)] = True
        self._processor.mask = allowed.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        per_token = torch.tensor(list(timesteps), dtype=latents.dtype)[None].repeat_interleave(tokens, 1)
        return self._stock(latents, per_token, self._embeddings, return_dict=False)[0][0]


def noise(shape: tuple[int, int, int], seed: int, step: int, frame: int) -> torch.Tensor:
    """The engine's definition of a frame's noise: [C, h, w] float32."""
    words = np.random.SeedSequence((seed, step, frame)).generate_state(2, np.uint32)
    generator = torch.Generator().manual_seed((int(words[0]) << 31) ^ int(words[1]))
    return torch.randn(shape, generator=generator)


class PlainStream:
    """Common base: steps, noise, finished latents. dtype: of latents and network."""

    def __init__(
        self, denoiser: PlainDenoiser, steps: Steps, *, shape: tuple[int, int, int], seed: int, dtype: torch.dtype
    ) -> None:
        self.denoiser, self.steps, self.shape, self.seed, self.dtype = denoiser, steps, shape, seed, dtype
        self.clean: list[torch.Tensor] = []

    def start(self, first: int, frames: int) -> list[torch.Tensor]:
        """Return the initial noise of a chunk."""
        return [self.noise(0, first + i) for i in range(frames)]

    def noise(self, step: int, frame: int) -> torch.Tensor:
        return noise(self.shape, self.seed, step, frame).to(self.dtype)

    def step(self, latents: torch.Tensor, velocity: torch.Tensor, index: int, frame: int) -> torch.Tensor:
        """Return one frame's latents after step `index`."""
        _, sigma = self.steps[index]
        x0 = latents.double() - sigma * velocity.double()
        if index + 1 == len(self.steps):
            return x0.to(self.dtype)
        after = self.steps[index + 1][1]
        return ((1 - after) * x0 + after * self.noise(index + 1, frame).double()).to(self.dtype)


def chunk_by_chunk(
    stream: PlainStream, chunks: Sequence[int], visible: Visible, clean_timestep: float | None = 0.0
) -> torch.Tensor:
    """Self-Forcing, algorithm 2. clean_timestep None: the past has the last step's noise level."""
    sees: list[list[int]] = []
    history: list[torch.Tensor] = []
    times: list[float] = []
    for frames in chunks:
        first = len(history)
        own = list(range(first, first + frames))
        sees += [[*visible(first, frames), *own]] * frames
        x = stream.start(first, frames)
        for index, (timestep, _) in enumerate(stream.steps):
            velocity = stream.denoiser.velocity([*history, *x], [*times, *[timestep] * frames], sees)[:, first:]
            before = x
            x = [stream.step(x[i], velocity[:, i], index, first + i) for i in range(frames)]
        history += x if clean_timestep is not None else before
        times += [clean_timestep if clean_timestep is not None else stream.steps[-1][0]] * frames
        stream.clean += x
    return torch.stack(stream.clean, dim=1)


def step_batched(stream: PlainStream, chunks: Sequence[int], visible: Visible) -> torch.Tensor:
    """StreamDiffusionV2: every step has a separate past, at its own noise level."""
    histories: list[list[torch.Tensor]] = [[] for _ in stream.steps]
    sees: list[list[int]] = []
    for frames in chunks:
        first = len(stream.clean)
        own = list(range(first, first + frames))
        sees += [[*visible(first, frames), *own]] * frames
        x = stream.start(first, frames)
        for index, (timestep, _) in enumerate(stream.steps):
            histories[index] += x
            times = [timestep] * len(histories[index])
            velocity = stream.denoiser.velocity(histories[index], times, sees)[:, first:]
            x = [stream.step(x[i], velocity[:, i], index, first + i) for i in range(frames)]
        stream.clean += x
    return torch.stack(stream.clean, dim=1)


def rolling(stream: PlainStream, chunks: int, size: int, visible: Visible, *, keeps: bool) -> torch.Tensor:
    """Rolling Forcing: a window of as many chunks as there are steps, the cleanest first. keeps False: no past."""
    depth = len(stream.steps)
    sees: list[list[int]] = []  # of the clean frames, as they were when their own clean pass ran
    window: list[list[torch.Tensor]] = []
    levels: list[int] = []
    for turn in range(chunks + depth - 1):
        done = len(stream.clean)
        if turn < chunks:
            window.append(stream.start(turn * size, size))
            levels.append(0)
        past = visible(done, size * len(window)) if keeps else []
        own = list(range(done, done + size * len(window)))
        frames = [*stream.clean, *(frame for chunk in window for frame in chunk)]
        times = [0.0] * done + [stream.steps[level][0] for level in levels for _ in range(size)]
        if keeps:
            velocity = stream.denoiser.velocity(frames, times, [*sees, *[[*past, *own]] * len(own)])[:, done:]
        else:
            alone = [list(range(len(own)))] * len(own)
            velocity = stream.denoiser.velocity(frames[done:], times[done:], alone)
        for place, chunk in enumerate(window):
            for i in range(size):
                frame = done + place * size + i
                chunk[i] = stream.step(chunk[i], velocity[:, place * size + i], levels[place], frame)
        levels = [level + 1 for level in levels]
        if levels[0] == depth:
            stream.clean += window.pop(0)
            levels.pop(0)
            sees += [[*past, *range(done, done + size)]] * size
    return torch.stack(stream.clean, dim=1)
