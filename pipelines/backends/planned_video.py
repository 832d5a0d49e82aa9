"""Owns a video runtime whose passes and decoders run compiled as soon as their plans are ready.

The passes and decoding steps of the sizes that most chunks have are compiled; all others run as they are. What a stream
keeps, its cache and its decoder's state, is the same memory for both. Independent of recipes and engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pipelines.core.contracts import Notify
from pipelines.core.parts import Part, PartCall
from pipelines.video.codecs.parts import PartFrameDecoder, decode_step, decode_step_part
from pipelines.video.codecs.tiny import TinyDecoderStream, TinyVideoCodec
from pipelines.video.part_denoiser import PartVideoDenoiser, one_row_part
from pipelines.video.parts import timed_pass_part

from .background import PlanPreparation
from .recipe import Recipe
from .threads import torch_threads

if TYPE_CHECKING:
    from cache.kv.view import KVView
    from pipelines.core.execution import Executor
    from pipelines.video.codecs.codec import FrameDecoder, RowState, VideoCodec
    from pipelines.video.model import (
        ChunkSizes,
        MakeFrameDecoder,
        VideoCondition,
        VideoDenoiser,
        VideoNetworks,
        VideoRuntime,
    )
    from pipelines.video.wan.transformer import CausalWanTransformer


class PlannedVideoDenoiser:
    """A `VideoDenoiser` that is the plain one until a compiled pass is ready. notice: is told, once for each reason,
    which passes run plainly even then.

    Around a compiled pass, which has threads of its own, PyTorch works with one thread: its small copies gain nothing
    from more, and waking these costs an eighth of the time of a chunk (mini-video on two cores).
    """

    def __init__(self, plain: VideoDenoiser, transformer: CausalWanTransformer, notice: Notify) -> None:
        self._plain, self._transformer, self._notice = plain, transformer, notice
        self._compiled: PartVideoDenoiser | None = None
        self._said: set[str] = set()
        self._threads = 1  # PyTorch's, of a plain pass

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, condition: VideoCondition, kv: KVView
    ) -> torch.Tensor:
        """See `pipelines.video.model.VideoDenoiser`."""
        if self._compiled is None:
            return self._plain(latents, timesteps, condition, kv)
        with torch_threads(1) as self._threads:
            velocity = self._compiled(latents, timesteps, condition, kv)
        for reason in self._compiled.plain_passes.keys() - self._said:
            self._said.add(reason)
            self._notice(f"Passes run in PyTorch where {reason}.")
        return velocity

    def part(self, inputs: dict[str, torch.Tensor]) -> Part:
        """See `pipelines.backends.forms.PartUser`."""
        return timed_pass_part(self._transformer, inputs)

    def use(self, part: Part, call: PartCall) -> None:
        """See `pipelines.backends.forms.PartUser`."""
        self._compiled = PartVideoDenoiser(call, part, self._run_plain, self._transformer)

    def use_plain(self) -> None:
        """See `pipelines.backends.forms.PartUser`."""
        self._compiled = None

    def missing(self, batch: int) -> Part | None:
        """See `pipelines.backends.forms.PartUser`: the sizes are wanted from the start."""
        return None

    def _run_plain(
        self, latents: torch.Tensor, timesteps: torch.Tensor, condition: VideoCondition, kv: KVView
    ) -> torch.Tensor:
        with torch_threads(self._threads):
            return self._plain(latents, timesteps, condition, kv)


class PlannedFrameDecoder:
    """A `FrameDecoder` that is the plain one until a compiled step is given to `use`."""

    def __init__(self, plain: FrameDecoder) -> None:
        self._plain = plain
        self._compiled: PartFrameDecoder | None = None

    @property
    def decoder(self) -> RowState:
        """See `pipelines.video.codecs.codec.FrameDecoder`."""
        return self._plain.decoder

    def decode(self, latents: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """See `pipelines.video.codecs.codec.FrameDecoder`."""
        return (self._compiled or self._plain).decode(latents, rows)

    def use(self, form: tuple[Part, PartCall] | None) -> None:
        """Use a compiled step, or none, from now on; the state stays."""
        if form is None:
            self._compiled = None
            return
        state = self._plain.decoder
        assert isinstance(state, TinyDecoderStream)
        part, call = form
        self._compiled = PartFrameDecoder(call, part, self._plain, state)


class PlannedFrameDecoders:
    """A `MakeFrameDecoder` whose decoders all change to a compiled step when it is ready."""

    def __init__(self, plain: MakeFrameDecoder, codec: VideoCodec) -> None:
        self._plain, self._codec = plain, codec
        self._made: list[PlannedFrameDecoder] = []
        self._form: tuple[Part, PartCall] | None = None

    def __call__(self, executor: Executor, *, height: int, width: int, rows: int = 1) -> FrameDecoder:
        """See `pipelines.video.model.MakeFrameDecoder`."""
        decoder = self._plain(executor, height=height, width=width, rows=rows)
        if rows > 1:
            return decoder
        planned = PlannedFrameDecoder(decoder)
        planned.use(self._form)
        self._made.append(planned)
        return planned

    def part(self, inputs: dict[str, torch.Tensor]) -> Part:
        """See `pipelines.backends.forms.PartUser`."""
        return decode_step_part(self._codec, inputs)

    def use(self, part: Part, call: PartCall) -> None:
        """See `pipelines.backends.forms.PartUser`."""
        self._give((part, call))

    def use_plain(self) -> None:
        """See `pipelines.backends.forms.PartUser`."""
        self._give(None)

    def missing(self, batch: int) -> Part | None:
        """See `pipelines.backends.forms.PartUser`: the sizes are wanted from the start."""
        return None

    def _give(self, form: tuple[Part, PartCall] | None) -> None:
        self._form = form
        for decoder in self._made:
            decoder.use(form)


def planned_video(
    networks: VideoNetworks, plain: VideoRuntime, recipes: Mapping[str, Recipe], *, builds: bool = True
) -> VideoRuntime:
    """Return a runtime that makes and uses plans of its parts. plain: what runs until they are ready.

    recipes: by name of the part, "pass" and "decode" (of the tiny autoencoder). builds: make the plans that are not
    stored. Without an origin the runtime is `plain`.
    """
    if networks.origin is None:
        return plain
    preparation = PlanPreparation(
        recipes,
        backend=plain.backend,
        origin=networks.origin,
        device=networks.transformer.device,
        builds=builds,
        notice=networks.notice,
    )
    denoiser = PlannedVideoDenoiser(plain.denoiser, networks.transformer, networks.notice)
    preparation.add("pass", denoiser)
    tiny = networks.codec if isinstance(networks.codec, TinyVideoCodec) else None
    decoders = PlannedFrameDecoders(plain.make_frame_decoder, networks.codec)
    preparation.add("decode", decoders)

    def expect(sizes: ChunkSizes) -> None:
        factor = networks.codec.factor
        preparation.want(
            one_row_part(
                networks.transformer,
                frames=sizes.frames,
                past_frames=sizes.past_frames,
                latent_size=(sizes.height // factor, sizes.width // factor),
            )
        )
        if tiny is not None:
            preparation.want(decode_step(tiny, frames=sizes.frames, height=sizes.height, width=sizes.width))

    return replace(
        plain,
        denoiser=denoiser,
        make_frame_decoder=plain.make_frame_decoder if tiny is None else decoders,
        preparation=preparation,
        expect=expect,
    )
