"""Owns a minimal loop over a causal video transformer: chunks of latents, decoded to frames in host memory.

n denoising passes with fresh noise between them, and a clean pass that writes the chunk's keys and values, as in
Self-Forcing (Huang et al. 2025, algorithm 2). No prompts, camera, controls or sessions: see the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bench.video_shapes import VideoShape
from cache.kv.cache import KVCache, KVShape
from cache.kv.policies import make_policy
from pipelines.video.codecs.codec import FrameDecoder
from pipelines.video.executed import WARM_PASSES, ExecutedDenoiser
from pipelines.video.flow import CLEAN_TIMESTEP, FlowStep, StepList, denoised, noised
from pipelines.video.model import VideoCondition, VideoRuntime
from pipelines.video.options import chosen_storage
from pipelines.video.wan.text_cache import TextKVCache
from pipelines.video.wan.transformer import CausalWanTransformer

STEPS = StepList(raw=(1000, 750, 500, 250), shift=5.0, warp=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """window_frames includes the chunk; both in latent frames. storage: see `chosen_storage`."""

    window_frames: int
    chunk_frames: int = 3
    policy: str = "window"
    storage: str = "auto"


class ChunkLoop:
    """One endless stream of chunks of latents on a transformer's device."""

    def __init__(
        self, transformer: CausalWanTransformer, shape: VideoShape, settings: LoopSettings, runtime: VideoRuntime
    ) -> None:
        device, grid = transformer.device, transformer.grid(*shape.latent_size)
        self.settings, self.device, self.executor = settings, device, runtime.make_executor()
        self._denoiser = ExecutedDenoiser(runtime.denoiser, self.executor.calls(warm_calls=WARM_PASSES))
        policy = make_policy(
            settings.policy, grid=grid, window_frames=settings.window_frames, chunk_frames=settings.chunk_frames
        )
        self.cache = KVCache(
            KVShape(
                layers=transformer.layers,
                heads=transformer.heads,
                head_dim=transformer.head_dim,
                grid=grid,
                dtype=transformer.dtype,
                device=device,
            ),
            policy,
            rotary=transformer.rotary,
            storage=chosen_storage(settings.storage, runtime.storage, policy, device),
            kernels=runtime.kernels,
        )
        config = shape.transformer
        self.text = TextKVCache(transformer, rows=1, tokens=config.text_len)
        self.embeddings = torch.randn((config.text_len, config.text_dim), device=device, dtype=transformer.dtype)
        self.text.write(0, self.embeddings)
        self._latents = (1, config.in_channels, settings.chunk_frames, *shape.latent_size)
        self._steps: tuple[FlowStep, ...] = STEPS.steps()
        one = (1, settings.chunk_frames)
        self._times = [torch.full(one, s.timestep, device=device) for s in self._steps]
        self._levels = [torch.full(one, s.sigma, device=device, dtype=torch.float64) for s in self._steps]
        self._clean = torch.full(one, CLEAN_TIMESTEP, device=device)

    @property
    def passes(self) -> int:
        """Passes per chunk."""
        return len(self._steps) + 1

    @property
    def filling_chunks(self) -> int:
        """Chunks until the window is full."""
        return -(-self.settings.window_frames // self.settings.chunk_frames)

    def one_pass(self, latents: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The velocity of a pass of the cache's current chunk."""
        condition = VideoCondition(text=self.text.view([0]), inputs={})
        return self._denoiser(latents, times, condition, self.cache.view([0]))

    def noise(self) -> torch.Tensor:
        """Fresh noise [1, C, F, h, w] float32."""
        return torch.randn(self._latents, device=self.device)

    @torch.no_grad()
    def denoise(self) -> torch.Tensor:
        """The next chunk, clean: [1, C, F, h, w] float32. `finish` must follow."""
        self.cache.begin(0, self.settings.chunk_frames)
        latents, last = self.noise(), len(self._steps) - 1
        for i, (times, level) in enumerate(zip(self._times, self._levels, strict=True)):
            clean = denoised(latents, self.one_pass(latents, times), level)
            latents = clean if i == last else noised(clean, self.noise(), self._levels[i + 1])
        return latents

    @torch.no_grad()
    def finish(self, latents: torch.Tensor) -> None:
        """The clean pass."""
        self.one_pass(latents, self._clean)

    def chunk(self) -> None:
        """Run a complete chunk."""
        self.finish(self.denoise())

    def reset(self) -> None:
        """Begin a new stream."""
        self.cache.reset(0)


class FrameOutput:
    """Decodes chunks and copies their frames to host memory; at most two chunks are in flight.

    overlapped: on a separate CUDA stream, concurrent with the next chunk's passes.
    """

    def __init__(self, decoder: FrameDecoder, device: torch.device, *, overlapped: bool) -> None:
        self._decoder, self._device = decoder, device
        self._stream = _stream_beside(device) if overlapped and device.type == "cuda" else None
        self._host: dict[torch.Size, deque[torch.Tensor]] = {}
        self._pending: deque[torch.cuda.Event] = deque()

    def send(self, latents: torch.Tensor) -> torch.Tensor:
        """The buffer that holds the frames [1, F, H, W, 3] once `wait` returns."""
        while len(self._pending) >= 2:
            self._pending.popleft().synchronize()
        with self._on_stream(latents):
            frames = self._decoder.decode(latents)
            host = self._buffer(frames)
            host.copy_(frames, non_blocking=True)
            if self._device.type == "cuda":
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
                self._pending.append(event)
        return host

    def wait(self) -> None:
        """Wait until all sent frames are in host memory."""
        while self._pending:
            self._pending.popleft().synchronize()

    @contextmanager
    def _on_stream(self, latents: torch.Tensor) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        latents.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            yield

    def _buffer(self, frames: torch.Tensor) -> torch.Tensor:
        pinned = self._device.type == "cuda"
        if frames.shape not in self._host:
            three = (torch.empty(frames.shape, dtype=frames.dtype, pin_memory=pinned) for _ in range(3))
            self._host[frames.shape] = deque(three)
        buffers = self._host[frames.shape]
        buffers.rotate(1)
        return buffers[0]


def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    """A stream of higher priority: frames are finished before the next chunk continues."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
    return stream
