"""Owns what the streams of one video engine share: sizes, caches, codec state, text, the tick count and the log.

Allocates all memory of streams when the engine is made, except encoders (at the first input frame). Independent of
any single stream; runs no ticks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from cache.kv.bank import units
from cache.kv.cache import KVCache, KVShape
from cache.kv.plan import KVError
from cache.kv.policies import KVPolicy
from pipelines.conditioning.base import ConditionerFactory, EngineParts
from pipelines.conditioning.stream import all_fields, make_conditioners, no_conditions
from pipelines.core.conditions import PromptCache, TextCondition
from pipelines.core.controls import Controls
from pipelines.core.errors import InputError
from pipelines.core.parts import Part
from pipelines.core.tick_log import TickLog
from pipelines.core.transfers import Readback

from .codecs.codec import FrameDecoder, VideoEncoder, frames_of
from .codecs.parts import decode_step_part
from .executed import WARM_PASSES, ExecutedDenoiser
from .model import ChunkSizes, VideoModel
from .options import VideoOptions, check_size, chosen_policy, chosen_preset, chosen_storage
from .parts import timed_pass_part
from .passes import PassRunner
from .past import PASTS, PastParts, StreamPast, make_past
from .recache import chosen_recaching
from .schedules import CHUNK_SCHEDULES
from .stream_rows import StreamRows
from .wan.text_cache import TextKVCache

_MAX_STREAMS = 4
_SHARE_OF_FREE_MEMORY = 0.6
_BUFFERS = 4  # of finished chunks, for each stream


class PromptEmbeddings:
    """Adapts a text encoder to pipelines.core.conditions.PromptEncoder."""

    def __init__(self, model: VideoModel) -> None:
        self._text = model.text

    def encode(self, text: str) -> TextCondition:
        """Return the embeddings [tokens, D] of a text."""
        return TextCondition(embeds=self._text.encode(text))


class VideoCore:
    """The shared state of a video engine. Raises ControlError, InputError or ModelError for invalid options."""

    def __init__(
        self,
        model: VideoModel,
        options: VideoOptions,
        tick_log: TickLog | None,
        conditioners: Sequence[ConditionerFactory],
        policies: Mapping[str, type[KVPolicy]],
    ) -> None:
        self.model, self.options = model, options
        self.preset = chosen_preset(model.preset, options)
        self.width, self.height = options.width or model.size_px[0], options.height or model.size_px[1]
        check_size(self.width, self.height, model.multiple_px)
        factor, transformer = model.codec.factor, model.transformer
        self.latent_shape = (model.codec.latent_channels, self.height // factor, self.width // factor)
        self.policy = chosen_policy(self.preset, transformer.grid(*self.latent_shape[1:]), policies)
        self.chunk_schedule = CHUNK_SCHEDULES[self.preset.stream]
        self._check_policy()
        self.storage = chosen_storage(options.storage, model.runtime.storage, self.policy, model.device)
        self.branches = 1 + (self.preset.guidance > 1 if options.guidance is None else options.guidance)
        self.executor = model.runtime.make_executor()
        self.rows = self.chunk_schedule.max_rows(self.preset)
        self.recaching = chosen_recaching(transformer.layers, options.recache_from, options.recache_drift)
        self._check_recaching()
        self.streams = options.max_streams or self._fitting_streams()
        self.cache = self._make_cache()
        self._text_rows = self.chunk_schedule.text_rows(self.preset) + self.branches - 1
        self.text_rows = TextKVCache(
            transformer, rows=self.streams * self._text_rows, tokens=transformer.config.text_len
        )
        self.prompts = PromptCache(PromptEmbeddings(model))
        self.conditioners = make_conditioners(conditioners, self._parts())
        self.decoders = tuple(self._make_decoder() for _ in range(self.streams))
        self._encoder: VideoEncoder | None = None
        self._picture_encoders: dict[int, VideoEncoder] = {}
        denoiser = ExecutedDenoiser(model.runtime.denoiser, self.executor.calls(warm_calls=WARM_PASSES))
        self.passes = PassRunner(
            denoiser, self.cache, self.text_rows, device=model.device, conditioners=self.conditioners
        )
        self.log = tick_log if tick_log is not None else TickLog()
        self.next_tick = 0
        self.latents = self._latent_memory()
        self.fields = self._field_memory()

    def _parts(self) -> EngineParts:
        return EngineParts(
            engine="video",
            model=self.model.name,
            device=self.model.device,
            latent_shape=self.latent_shape,
            max_frames=self.preset.chunk_frames,
            takes=frozenset({"actions"} if self.model.takes_actions else ()),
            prompts=self.prompts,
            text_store=self.text_rows,
        )

    def _check_policy(self) -> None:
        chunkwise = self.preset.stream == "chunk"
        if not chunkwise and self.preset.policy in ("rebuild", "dual"):
            raise InputError(
                f"The cache policy {self.preset.policy!r} passes context before a chunk or a shot, which a stream of "
                f"the kind {self.preset.stream!r} cannot do.",
                "Use the kind 'chunk', or another policy.",
            )

    def _check_recaching(self) -> None:
        if self.recaching is None:
            return
        layers = self.model.transformer.layers
        if not 0 < self.recaching.boundaries[0] < layers or self.recaching.drift < 0:
            raise InputError(
                f"Recaching cannot begin at layer {self.options.recache_from} of {layers}, with a drift of "
                f"{self.options.recache_drift:g}.",
                f"Choose a layer from 1 to {layers - 1}, or a drift above 0.",
            )
        if self.preset.stream != "chunk" or self.branches > 1 or type(self.policy) in PASTS:
            raise InputError(
                "Only streams of the kind 'chunk' without guidance, whose cache keeps the frames that it has seen, can "
                "keep layers of them when the prompt is cut.",
                "Leave recache_from and recache_drift at 0.",
            )

    def _make_decoder(self) -> FrameDecoder:
        """Make the decoder of one stream; a decoder with a single row can be captured."""
        return self.model.runtime.make_frame_decoder(self.executor, height=self.height, width=self.width)

    def _make_cache(self) -> KVCache:
        shape = self._kv_shape(self.streams * self.rows * self.branches)
        try:
            return KVCache(
                shape,
                self.policy,
                rotary=self.model.transformer.rotary,
                storage=self.storage,
                kernels=self.model.runtime.kernels,
            )
        except KVError as error:
            raise InputError(f"The cache cannot be made: {error}.") from error

    def _kv_shape(self, rows: int) -> KVShape:
        transformer = self.model.transformer
        return KVShape(
            layers=transformer.layers,
            heads=transformer.heads,
            head_dim=transformer.head_dim,
            grid=transformer.grid(*self.latent_shape[1:]),
            cache_rows=rows,
            dtype=transformer.dtype,
            device=self.model.device,
            boundaries=() if self.recaching is None else self.recaching.boundaries,
        )

    def _fitting_streams(self) -> int:
        """How many streams' KV caches fit into the free memory of a GPU, from 1 to 4; 4 on other devices."""
        if self.model.device.type != "cuda":
            return _MAX_STREAMS
        shape = self._kv_shape(self.rows * self.branches)
        numbers = shape.layers * shape.cache_rows * self.policy.capacity_tokens * shape.heads * shape.head_dim
        needed = numbers * shape.dtype.itemsize * units(self.storage, self.policy)
        free = torch.cuda.mem_get_info(self.model.device)[0]
        return max(1, min(_MAX_STREAMS, int(free * _SHARE_OF_FREE_MEMORY / needed)))

    def _latent_memory(self) -> torch.Tensor:
        channels, height, width = self.latent_shape
        chunks = self.chunk_schedule.max_slots(self.preset) + 1
        size = (self.streams, chunks, channels, self.preset.chunk_frames, height, width)
        return torch.zeros(size, device=self.model.device, dtype=self.options.work_dtype)

    def _field_memory(self) -> dict[str, torch.Tensor]:
        """Allocate each field of the conditioners: [streams, chunks, frames, *shape]."""
        streams, chunks, _, frames, *_ = self.latents.shape
        return {
            name: torch.zeros((streams, chunks, frames, *field.shape), dtype=field.dtype, device=self.model.device)
            for name, field in all_fields(self.conditioners).items()
        }

    # -- compiled forms ------------------------------------------------------------------------------------------------

    lora_scale = Controls.lora_scale.default
    """LoRA files are merged when a model is loaded."""

    def part(self, name: str, inputs: dict[str, torch.Tensor]) -> Part:
        """Return a part of the model at the shapes of `inputs`, for a compiler. name: pass or decode."""
        model = self.model
        return timed_pass_part(model.transformer, inputs) if name == "pass" else decode_step_part(model.codec, inputs)

    def announce_sizes(self) -> None:
        """Tell the runtime which sizes most chunks will have, if the schedule denoises one chunk at a time."""
        preset = self.preset
        if preset.stream == "chunk":
            frames, past = preset.chunk_frames, preset.window_frames - preset.chunk_frames
            sizes = ChunkSizes(frames=frames, past_frames=past, height=self.height, width=self.width)
            self.model.runtime.expect(sizes)

    # -- for one stream ------------------------------------------------------------------------------------------------

    def stream_rows(self, index: int) -> StreamRows:
        """Return the cache rows and the latents of the stream with this index."""
        first = index * self.rows * self.branches
        pairs = [tuple(first + b * self.rows + i for b in range(self.branches)) for i in range(self.rows)]
        texts = range(index * self._text_rows, (index + 1) * self._text_rows)
        positive = self.chunk_schedule.text_rows(self.preset)
        return StreamRows(
            cache=self.cache,
            kv_rows=tuple(pairs),
            text_rows=tuple(texts[:positive]),
            negative_text=texts[positive] if self.branches == 2 else None,
            latents=self.latents[index],
            fields={name: memory[index] for name, memory in self.fields.items()},
        )

    def past(self, stream_rows: StreamRows) -> StreamPast:
        """Make what the stream keeps beside its KV cache."""
        parts = PastParts(
            stream_rows=stream_rows,
            policy=self.policy,
            chunk_frames=self.preset.chunk_frames,
            latent_shape=self.latent_shape,
            size=(self.height, self.width),
            time_factor=self.model.codec.time_factor,
            dtype=self.options.work_dtype,
            device=self.model.device,
            encode=self.encode_pictures,
            nothing=no_conditions(self.conditioners, self.model.device),
            recaching=self.recaching,
        )
        return make_past(self.policy, parts)

    @property
    def max_frames(self) -> int:
        """Frames of the largest chunk that does not begin a stream."""
        return frames_of(self.preset.chunk_frames, first=False, time_factor=self.model.codec.time_factor)

    def make_readback(self) -> Readback:
        """Make the host buffers of one stream's finished chunks."""
        buffers = _BUFFERS + self.chunk_schedule.max_slots(self.preset)
        return Readback(buffers, (self.max_frames, self.height, self.width, 3), self.model.device)

    # -- pictures to latents -------------------------------------------------------------------------------------------

    @property
    def encoder(self) -> VideoEncoder:
        """The streaming encoder, with a row for each stream; created at the first input frame."""
        if self._encoder is None:
            self._encoder = self.model.codec.encoder(height=self.height, width=self.width, rows=self.streams)
        return self._encoder

    @property
    def has_encoder(self) -> bool:
        """Whether the encoder has been created, that is, any stream has had input frames."""
        return self._encoder is not None

    def encode_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures [k, 3, H, W] in [0, 1] -> latents [C, k, h, w], each encoded alone as the first frame of a video."""
        count = pictures.shape[0]
        encoder = self._picture_encoders.get(count)
        if encoder is None:
            encoder = self.model.codec.encoder(height=self.height, width=self.width, rows=count)
            self._picture_encoders[count] = encoder
        encoder.reset()
        repeated = 1 + self.model.codec.encoder_delay_frames
        latents = encoder.encode(pictures[:, :, None].expand(-1, -1, repeated, -1, -1))
        return latents[:, :, 0].transpose(0, 1)
