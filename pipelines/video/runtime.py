"""Owns the eager runtime of a video model: its networks in plain PyTorch, neither compiled nor captured.

The backends in pipelines/backends/ build on it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from cache.kv.kernels import PLAIN_KERNELS
from pipelines.core.execution import EagerExecutor, Executor

from .codecs.codec import FrameDecoder, VideoCodec, VideoDecoder
from .codecs.frame_decoder import CodecFrameDecoder, decode_later
from .model import MakeFrameDecoder, VideoNetworks, VideoRuntime
from .wan.blocks import BlockExecution
from .wan.denoiser import WanDenoiser


def plain_runtime(networks: VideoNetworks) -> VideoRuntime:
    """Return the eager runtime of the networks."""
    return VideoRuntime(
        backend="eager",
        denoiser=WanDenoiser(networks.transformer, BlockExecution(attention=networks.attention)),
        make_frame_decoder=frame_decoders(networks.codec),
        kernels=PLAIN_KERNELS,
        make_executor=EagerExecutor,
    )


def frame_decoders(
    codec: VideoCodec, decode_all: Callable[[VideoDecoder, torch.Tensor], torch.Tensor] = decode_later
) -> MakeFrameDecoder:
    """Return a factory of frame decoders over a codec's streaming decoders. decode_all: `decode_later`, or it
    compiled."""

    def make(executor: Executor, *, height: int, width: int, rows: int = 1) -> FrameDecoder:
        return CodecFrameDecoder(
            codec.decoder(height=height, width=width, rows=rows),
            calls=executor.calls(warm_calls=CodecFrameDecoder.WARM_CALLS),
            decode_all=decode_all,
        )

    return make
