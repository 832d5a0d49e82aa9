"""Owns what batching engines do alike: opening and closing of streams, whose error it is, the check when idle.

Independent of what a tick does; the image and the video engine say that.
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
from .stream_base import StreamBase
from .tick_log import TickLog

StreamT = TypeVar("StreamT", bound=StreamBase)


class EngineBase(ABC, Generic[StreamT]):
    """See contracts.Engine for the contract of every method."""

    clear_errors: tuple[type[Exception], ...] = (InputError,)
    """Errors of a stream whose message says enough by itself; of others the type is said too."""

    def __init__(self, log: TickLog, frame_rate: Fraction) -> None:
        """frame_rate: of prompt-only frames, where `open` is not told another, in frames a second."""
        self._tick_log, self._frame_rate = log, frame_rate
        self._streams: dict[int, StreamT] = {}
        self._opened = 0
        self._closed = False

    @property
    def log(self) -> TickLog:
        """What happened, tick by tick."""
        return self._tick_log

    @torch.inference_mode()
    def open(self, control: Control | None = None, frame_rate: Fraction | None = None) -> StreamT:
        """A new stream, with the model's defaults and then `control` applied.

        frame_rate: of prompt-only frames, in frames a second; None: the model's own (24 for images). Raises
        ControlError, and opens nothing, when the controls do not fit together; InputError when there is no room.
        """
        if self._closed:
            raise InputError("The engine is closed.", "Load it again.")
        rate = self._frame_rate if frame_rate is None else frame_rate
        if rate <= 0:
            raise InputError(f"A frame rate of {rate} is not above 0.")
        stream = self._make_stream(self._opened, rate, control or Control())
        self._streams[self._opened] = stream
        self._opened += 1
        return stream

    @abstractmethod
    def _make_stream(self, number: int, frame_rate: Fraction, control: Control) -> StreamT:
        """The stream of that number."""

    @abstractmethod
    def tick(self) -> None:
        """See contracts.Engine."""

    def close(self) -> None:
        """Close all streams and let the model go."""
        for stream in tuple(self._streams.values()):
            stream.close()
        self._closed = True

    def check_integrity(self) -> None:
        """Assert that counts, buffers and storage agree, between ticks. Host integers only: it waits for nothing."""
        for stream in self._streams.values():
            stream.check_integrity()
        self._check_storage()

    @abstractmethod
    def _check_storage(self) -> None:
        """Assert that what the streams share agrees with itself and with them."""

    def _forget(self, number: int) -> None:
        del self._streams[number]

    @contextmanager
    def _attribute_errors(self, stream: StreamT) -> Iterator[None]:
        """What goes wrong in one stream's own part is its error."""
        try:
            yield
        except Exception as error:  # whatever it is, it is this stream's error and no other's
            kind = "" if isinstance(error, self.clear_errors) else f"{type(error).__name__}: "
            raise StreamError(f"The stream failed: {kind}{error}", "Open a new one.", stream=stream) from error
