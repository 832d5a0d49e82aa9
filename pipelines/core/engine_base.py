"""Owns what all batching engines share: opening and closing streams, attributing errors, the integrity check.

Independent of what a tick does: the image and the video engine define that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Generic, TypeVar

import torch

from .controls import Control
from .errors import InputError, StreamError
from .preparation import NoPreparation, Preparation
from .stream_base import StreamBase
from .tick_log import TickLog

StreamT = TypeVar("StreamT", bound=StreamBase)


class EngineBase(ABC, Generic[StreamT]):
    """See contracts.Engine for the contract of every method."""

    clear_errors: tuple[type[Exception], ...] = (InputError,)
    """Errors whose message is clear by itself; the message of any other is preceded by its type."""

    def __init__(self, log: TickLog, frame_rate: Fraction) -> None:
        """frame_rate: default of `open` for prompt-only frames, in frames per second."""
        self._tick_log, self._frame_rate = log, frame_rate
        self._streams: dict[int, StreamT] = {}
        self._opened = 0
        self._closed = False

    @property
    def log(self) -> TickLog:
        """The record of what happened, tick by tick."""
        return self._tick_log

    @property
    def preparation(self) -> Preparation:
        """See contracts.Engine; here nothing is prepared."""
        return NoPreparation()

    @torch.inference_mode()
    def open(self, control: Control | None = None, frame_rate: Fraction | None = None) -> StreamT:
        """Open a stream, with the model's defaults and then `control` applied.

        frame_rate: of prompt-only frames, in frames per second; None: the model's own (24 for images). Opens nothing
        and raises ControlError when the controls are not valid together, InputError when the engine is closed, the rate
        is not above 0 or no more streams fit.
        """
        if self._closed:
            raise InputError("The engine is closed.", "Load it again.")
        rate = self._frame_rate if frame_rate is None else frame_rate
        if rate <= 0:
            raise InputError(f"The frame rate cannot be {rate}: it must be above 0.")
        stream = self._make_stream(self._opened, rate, control or Control())
        self._streams[self._opened] = stream
        self._opened += 1
        return stream

    @abstractmethod
    def _make_stream(self, number: int, frame_rate: Fraction, control: Control) -> StreamT:
        """Create stream `number`."""

    @abstractmethod
    def tick(self) -> None:
        """See contracts.Engine."""

    def close(self) -> None:
        """Close all streams; the engine cannot be used afterwards."""
        for stream in tuple(self._streams.values()):
            stream.close()
        self._closed = True

    def check_integrity(self) -> None:
        """Assert, between ticks, that counts, buffers and storage agree. Host integers only; waits for nothing."""
        for stream in self._streams.values():
            stream.check_integrity()
        self._check_storage()

    @abstractmethod
    def _check_storage(self) -> None:
        """Assert that shared storage is consistent, in itself and with the streams."""

    def _forget(self, number: int) -> None:
        del self._streams[number]

    @contextmanager
    def _attribute_errors(self, stream: StreamT) -> Iterator[None]:
        """Turn any exception raised inside into a StreamError of `stream`."""
        try:
            yield
        except Exception as error:  # whatever it is, only this stream is affected
            kind = "" if isinstance(error, self.clear_errors) else f"{type(error).__name__}: "
            raise StreamError(f"The stream failed: {kind}{error}", "Open a new one.", stream=stream) from error
