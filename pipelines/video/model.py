"""The contracts between loading, backends and the video engine: what a causal video model consists of.

pipelines/video/loading/load.py reads `VideoNetworks`, a backend makes a `VideoRuntime` of them, and the engine runs the
`VideoModel` that holds both. None depends on the internals of another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from cache.kv.kernels import KVKernels
from cache.kv.view import KVView
from pipelines.core.contracts import Notify
from pipelines.core.execution import Executor
from pipelines.core.origin import Origin
from pipelines.core.preparation import NoPreparation, Preparation

from .codecs.codec import FrameDecoder, VideoCodec
from .loading.checkpoint_keys import KeyReport
from .presets import VideoPreset
from .wan.attention import PLAIN, AttentionBackend
from .wan.text_cache import TextView
from .wan.transformer import CausalWanTransformer
from .wan.umt5 import TextEncoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoCondition:
    """Conditioning of a pass over B rows, in addition to latents and timesteps.

    text: the prompts' keys and values. inputs: keyword inputs of the network, each [B, F, ...] on the device:
    {"actions": [B, F, 5] float32 in [-1, 1]} for a model that takes actions, else empty.
    """

    text: TextView
    inputs: Mapping[str, torch.Tensor]


class VideoDenoiser(Protocol):
    """velocity = denoiser(latents, timesteps, condition, kv).

    latents: [B, C, F, h, w] noisy latents x_t. timesteps: [B, F] float32 in [0, 1000], one for each latent frame.
    kv: what the pass sees of the cache, and where it writes its keys and values. Returns the velocity v = noise - x0,
    [B, C, F, h, w], valid until the next call. An image denoiser returns x0; flow samplers (Euler's step x + ds v) need
    the velocity, and recovering v from x0 = x_t - s v would lose precision at small s.
    """

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, condition: VideoCondition, kv: KVView
    ) -> torch.Tensor: ...


class MakeFrameDecoder(Protocol):
    """Make a frame decoder for `rows` streams of height × width pixels, whose calls the executor runs."""

    def __call__(self, executor: Executor, *, height: int, width: int, rows: int = 1) -> FrameDecoder: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoNetworks:
    """The loaded networks, from which a backend makes a runtime.

    attention: the chosen attention kernel. origin: what another process can load the same engine from, to compile its
    parts; None: nothing is compiled beside the engine. notice: what the user should see.
    """

    transformer: CausalWanTransformer
    codec: VideoCodec
    attention: AttentionBackend = PLAIN
    origin: Origin | None = None
    notice: Notify = logger.warning


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSizes:
    """The sizes that most chunks of an engine have, once the window is full.

    frames, past_frames: latent frames of a pass, and of the past that it attends to. height, width: in pixels.
    """

    frames: int
    past_frames: int
    height: int
    width: int


def expects_nothing(sizes: ChunkSizes) -> None:
    """For runtimes that need not know sizes beforehand."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoRuntime:
    """What a video engine calls; made by a backend.

    backend: its name, for display. kernels: of the KV cache. make_executor: makes one executor per engine. storage: of
    the KV cache, if the denoiser's attention needs a particular one; "": any.
    backend: its name, for display. kernels: of the KV cache. make_executor: makes one executor per engine.
    preparation: makes faster forms of the parts while the engine runs; a runtime that prepares serves one engine.
    expect: told by an engine, before its first tick, which sizes its chunks will have; only if they are denoised one by
    one.
    """

    backend: str
    denoiser: VideoDenoiser
    make_frame_decoder: MakeFrameDecoder
    kernels: KVKernels
    make_executor: Callable[[], Executor]
    storage: str = ""
    preparation: Preparation = field(default_factory=NoPreparation)
    expect: Callable[[ChunkSizes], None] = expects_nothing


MakeVideoRuntime = Callable[[VideoNetworks], VideoRuntime]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoModel:
    """A loaded causal video model.

    name: for display. family: a name of loading/families.py; why: how it was recognised; both are shown.
    transformer: for its sizes, and to project prompts into the text cache; passes go through `runtime`.
    text: encodes prompts to embeddings [tokens, D] on the device. preset: defaults that suit the weights.
    licence: one line. commercial: False if the licence forbids commercial use. weights: how the checkpoint's names were
    matched.
    """

    name: str
    family: str
    why: str
    transformer: CausalWanTransformer
    codec: VideoCodec
    runtime: VideoRuntime
    text: TextEncoder
    preset: VideoPreset
    dtype: torch.dtype
    device: torch.device
    licence: str
    commercial: bool
    weights: KeyReport

    @property
    def takes_actions(self) -> bool:
        """Whether the model takes actions, which move camera and subject."""
        return self.transformer.action_embedder is not None

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) in pixels that the weights were trained for."""
        return self.preset.width, self.preset.height

    @property
    def multiple_px(self) -> int:
        """Both sides of a frame must be multiples of this: the codec's factor times the larger side of a patch."""
        return self.codec.factor * max(self.transformer.config.patch_size[1:])
